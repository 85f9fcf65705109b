"""Plots of arrays as matplotlib figures, legible from the back of a lecture hall.

The colours are those of Okabe and Ito, which colour-blind readers can distinguish. Everything that a colour shows is
also shown by a hatch, a line style or a word.
"""

import itertools
import math
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alexnet_jax.analysis.measures import NOISE_COLOUR_FRACTION, colour_fractions
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
  '#000000',
  '#E69F00',
  '#56B4E9',
  '#009E73',
  '#0072B2',
  '#D55E00',
  '#CC79A7',
)
TOWER_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
LINES = tuple(zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK), ('-', '--', '-.', ':', '-', '--'), strict=True))
STYLE: dict[Any, Any] = {
  'font.size': 15,
  'text.parse_math': False,  # names of classes may contain $
  'axes.spines.top': False,
  'axes.spines.right': False,
  'hatch.linewidth': 1.5,
  'svg.hashsalt': 'alexnet_jax',  # makes the files of equal figures equal
}
FORMATS = ('.png', '.svg', '.pdf')


@matplotlib.rc_context(STYLE)
def save(figure: Figure, path: pathlib.Path) -> None:
  """Saves a figure as a PNG, SVG or PDF file.

  Raises:
    UsageError: if the file name has another suffix.
    RunError: if the file cannot be written.
  """
  check_suffix(path)
  metadata = {'Date': None} if path.suffix.lower() == '.svg' else {}
  try:
    with atomic_files.atomic_write(path) as partial:
      figure.savefig(partial, dpi=120, bbox_inches='tight', pad_inches=0.15, metadata=metadata)
  except OSError as error:
    raise RunError(f'{path} cannot be written ({error.strerror}); name another --output.') from error


def check_suffix(path: pathlib.Path) -> None:
  """Raises `UsageError` if the suffix of a file name is not .png, .svg or .pdf."""
  if path.suffix.lower() not in FORMATS:
    raise UsageError(f"'{path}' does not end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; name another --output.")


def short_name(name: str, max_length: int = 22) -> str:
  """Shortens a class name: 'n02119789 kit fox, Vulpes macrotis' becomes 'kit fox'."""
  name = re.sub(r'^n\d{8} (?=\S)', '', name).split(',')[0]
  return name if len(name) <= max_length else f'{name[: max_length - 1]}…'


def tower_colour(tower: int) -> str:
  """Returns the colour of a tower; the colours repeat after four towers."""
  return TOWER_COLOURS[tower % len(TOWER_COLOURS)]


# Figure 3.


@matplotlib.rc_context(STYLE)
def draw_kernels(kernels: np.ndarray, *, common_scale: bool = False) -> Figure:
  """Draws the kernels of the first layer by tower, next to a histogram of their colour fractions (figure 3).

  Args:
    kernels: [tower, height, width, rgb, kernel] float32; zero is drawn as mid grey.
    common_scale: whether all kernels are drawn on one scale; otherwise each kernel is scaled by its largest weight.
  """
  percentages = 100 * colour_fractions(kernels)
  num_towers, _, _, _, num_kernels = kernels.shape
  num_columns = min(16, num_kernels)
  num_rows = math.ceil(num_kernels / num_columns)
  figure = Figure(figsize=(16, num_towers * (0.75 * num_rows + 0.75)), layout='constrained')
  grid = figure.add_gridspec(num_towers, 2, width_ratios=[12, 4], hspace=0.12, wspace=0.04)
  bins = [10.0 * edge for edge in range(11)]
  max_count = max(np.histogram(tower_percentages, bins)[0].max() for tower_percentages in percentages)
  for tower in range(num_towers):
    largest = np.abs(kernels).max() if common_scale else np.abs(kernels[tower]).max(axis=(0, 1, 2))
    tiles = 0.5 + kernels[tower] / (2 * np.where(largest > 0, largest, 1))
    _draw_tower(figure.add_subplot(grid[tower, 0]), tower, np.moveaxis(tiles, -1, 0), num_columns)

    axes = figure.add_subplot(grid[tower, 1])
    axes.hist(percentages[tower], bins, color=tower_colour(tower), edgecolor='white')
    axes.set(xlim=(0, 100), ylim=(0, 1.25 * max_count), ylabel='kernels', xticks=(0, 50, 100))
    axes.axvline(100 * NOISE_COLOUR_FRACTION, color=BLACK, linestyle=':')
    axes.set_title(f'colour: {percentages[tower].mean():.0f} % of the energy', fontsize=15)
    if tower == num_towers - 1:
      axes.set_xlabel("colour, % of a kernel's energy (dotted: noise)")
  return figure


def _draw_tower(axes: Axes, tower: int, tiles: np.ndarray, num_columns: int, **imshow_options: Any) -> None:
  """Draws the tiles of a tower in a grid below the tower's name."""
  axes.imshow(_mosaic(tiles, num_columns), interpolation='nearest', **imshow_options)
  axes.set_axis_off()
  axes.set_title(f'tower {tower}', loc='left', color=tower_colour(tower), weight='bold')


def _mosaic(tiles: np.ndarray, num_columns: int) -> np.ndarray:
  """Arranges tiles [tile, height, width, ...] row by row on white: [height, width, ...]."""
  gap, (num_tiles, height, width) = 1, tiles.shape[:3]
  num_rows = math.ceil(num_tiles / num_columns)
  mosaic = np.ones((num_rows * (height + gap) - gap, num_columns * (width + gap) - gap, *tiles.shape[3:]))
  for index, tile in enumerate(tiles):
    top, left = index // num_columns * (height + gap), index % num_columns * (width + gap)
    mosaic[top : top + height, left : left + width] = tile
  return mosaic


# Figure 4.


@matplotlib.rc_context(STYLE)
def draw_predictions(
  images: np.ndarray,
  log_probs: np.ndarray,
  class_names: Sequence[str],
  labels: Sequence[int] | np.ndarray | None = None,
) -> Figure:
  """Draws images with the five most probable classes of each (figure 4, left).

  Args:
    images: [image, height, width, rgb] uint8.
    log_probs: [image, class] float, nats.
    class_names: class names by label.
    labels: [image] true labels, whose bars have another colour and a hatch; -1, or None for all, if unknown.
  """
  num_columns = min(4, len(images))
  num_rows = math.ceil(len(images) / num_columns)
  figure = Figure(figsize=(4 * num_columns, 5.6 * num_rows), layout='constrained')
  subfigures = figure.subfigures(num_rows, num_columns, squeeze=False, hspace=0.03, wspace=0.03).flat
  best_labels = np.argsort(-log_probs, axis=1, kind='stable')[:, :5]
  for index, (subfigure, image) in enumerate(zip(subfigures, images, strict=False)):
    image_axes, bar_axes = subfigure.subplots(2, 1, height_ratios=[3.2, 2])
    true_label = -1 if labels is None else int(labels[index])
    _draw_image(image_axes, image)
    if true_label >= 0:
      image_axes.set_xlabel(short_name(class_names[true_label]), weight='bold', labelpad=6)
    best = best_labels[index]
    _draw_bars(
      bar_axes,
      100 * np.exp(log_probs[index, best].astype(np.float64)),
      [short_name(class_names[label]) for label in best],
      [label == true_label for label in best],
    )
  return figure


def _draw_image(axes: Axes, image: np.ndarray, **imshow_options: Any) -> None:
  axes.imshow(image, interpolation='nearest' if len(image) < 64 else 'antialiased', **imshow_options)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)


def _draw_bars(axes: Axes, percentages: np.ndarray, names: Sequence[str], is_true: Sequence[bool]) -> None:
  """Draws horizontal bars from top to bottom, each labelled with its name and percentage."""
  positions = range(len(names))
  bars = axes.barh(positions, percentages, height=0.86, color=SKY)
  for position, bar, name, is_true_class in zip(positions, bars, names, is_true, strict=True):
    if is_true_class:
      bar.set(facecolor=ORANGE, edgecolor='white', hatch='//', linewidth=0)
    text = axes.text(2, position, name, va='center', weight='bold' if is_true_class else 'normal')
    text.set_bbox({'facecolor': 'white', 'alpha': 0.6, 'edgecolor': 'none', 'pad': 1})
    axes.text(122, position, f'{percentages[position]:.0f} %', va='center', ha='right', color='dimgrey', fontsize=13)
  axes.set(xlim=(0, 122), ylim=(len(names) - 0.5, -0.5), xticks=[], yticks=[])
  axes.spines[['bottom', 'left']].set_visible(False)
  axes.axvline(0, color='black', linewidth=1)


@matplotlib.rc_context(STYLE)
def draw_neighbours(
  queries: np.ndarray,
  neighbours: np.ndarray,
  query_names: Sequence[str] | None = None,
  neighbour_names: Sequence[Sequence[str]] | None = None,
) -> Figure:
  """Draws each query image in a row with its nearest neighbours (figure 4, right).

  Args:
    queries: [image, height, width, rgb] uint8.
    neighbours: [image, neighbour, height, width, rgb] uint8, nearest first.
    query_names: class names of the queries.
    neighbour_names: [image][neighbour] class names of the neighbours; those that differ from the query's are marked.
  """
  num_rows, num_neighbours = neighbours.shape[:2]
  figure = Figure(figsize=(2 * num_neighbours + 2.6, 2.35 * num_rows + 0.5), layout='compressed')
  widths = [1, 0.18, *[1] * num_neighbours]
  grid = figure.subplots(num_rows, num_neighbours + 2, squeeze=False, width_ratios=widths)
  for row in range(num_rows):
    grid[row, 1].set_axis_off()
    query_name = query_names[row] if query_names else None
    _draw_image(grid[row, 0], queries[row])
    if query_name is not None:
      grid[row, 0].set_xlabel(short_name(query_name, 16), fontsize=13, weight='bold')
    for column in range(num_neighbours):
      axes = grid[row, column + 2]
      _draw_image(axes, neighbours[row, column])
      if neighbour_names:
        name = neighbour_names[row][column]
        is_same = query_name is None or name == query_name
        mark = '' if is_same else '≠ '
        axes.set_xlabel(mark + short_name(name, 16), fontsize=13, color=BLACK if is_same else VERMILLION)
  grid[0, 0].set_title('image', fontsize=15)
  title = grid[0, 2].text(0, 1.04, 'nearest training images, the nearest first', transform=grid[0, 2].transAxes)
  title.set_in_layout(False)  # it is wider than its column
  return figure


# Figure 1.


@matplotlib.rc_context(STYLE)
def draw_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
  """Draws training curves, with a panel for each quantity and a line for each run (figure 1).

  Args:
    panels: {name of a quantity: {name of a run: (epochs [point], values [point])}}.
  """
  runs = list(dict.fromkeys(run for curves in panels.values() for run in curves))
  lines = dict(zip(runs, itertools.cycle(LINES), strict=False))
  figure = Figure(figsize=(8 * len(panels), 5.5), layout='constrained')
  for axes, (quantity, curves) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
    for run, (epochs, values) in curves.items():
      colour, style = lines[run]
      marker = 'o' if len(epochs) < 20 else None
      axes.plot(epochs, values, style, color=colour, linewidth=2.5, label=run, marker=marker)
    _format_curves(axes, quantity, has_legend=len(runs) > 1)
  return figure


@matplotlib.rc_context(STYLE)
def draw_comparison(
  conditions: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], quantity: str, *, level: float | None = None
) -> Figure:
  """Draws the curves of several conditions, with a line style for each condition and a line for each seed.

  Args:
    conditions: {name of a condition: [(epochs [point], values [point]) of each seed]}.
    quantity: name of the quantity on the vertical axis.
    level: value that is marked by a horizontal dotted line.
  """
  figure = Figure(figsize=(8, 5.5), layout='constrained')
  axes = figure.subplots()
  for (condition, curves), (colour, style) in zip(conditions.items(), itertools.cycle(LINES), strict=False):
    for seed, (epochs, values) in enumerate(curves):
      alpha, label = (0.5, None) if seed else (1, condition)
      axes.plot(epochs, values, style, color=colour, linewidth=2, alpha=alpha, label=label)
  if level is not None:
    axes.axhline(level, color=BLACK, linestyle=':', linewidth=1.5)
  _format_curves(axes, quantity, has_legend=len(conditions) > 1)
  return figure


@matplotlib.rc_context(STYLE)
def draw_conditions(
  conditions: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
  quantity: str,
  title: str,
  *,
  level: float | None = None,
  decays: Sequence[float] = (),
) -> Figure:
  """Draws the mean curve of each condition in a band from the lowest to the highest seed.

  A second panel magnifies the curves after the first decay of the learning rate, where small effects are visible, if
  each has at least two points there. Curves of fewer than 20 points have markers.

  Args:
    conditions: {name of a condition: [(epochs [point], values [point]) of each seed]}.
    quantity: name of the quantity on the vertical axis, which is in percent.
    title: title of the figure.
    level: value that is marked by a horizontal line.
    decays: epochs at which the learning rate decays, marked by vertical lines.
  """
  aligned = {}  # values [seed, point] of each condition at the epochs of its first seed
  for name, curves in conditions.items():
    epochs = curves[0][0]
    aligned[name] = epochs, np.stack([np.interp(epochs, *curve) for curve in curves])
  is_magnified = decays and all(np.count_nonzero(epochs >= decays[0]) > 1 for epochs, _ in aligned.values())
  figure = Figure(figsize=(13 if is_magnified else 9, 6), layout='constrained')
  axes, *magnified = figure.subplots(1, 2, width_ratios=(2, 1)) if is_magnified else [figure.subplots()]
  for panel in (axes, *magnified):
    _draw_bands(panel, aligned)
    if level is not None:
      panel.axhline(level, color=BLACK, linestyle=':', linewidth=1.5)
    for epoch in decays:
      panel.axvline(epoch, color='0.5', linestyle=':', linewidth=1.5)
  if level is not None:
    across = axes.get_yaxis_transform()
    axes.text(0.995, level, f'{level:g} %', transform=across, ha='right', va='bottom', fontsize=13)
  if decays:
    down = axes.get_xaxis_transform()
    text = 'learning rate decays '
    axes.text(decays[0], 0.02, text, transform=down, ha='right', va='bottom', fontsize=13, color='0.3')
  _format_curves(axes, quantity, has_legend=False)
  for panel in magnified:
    _format_curves(panel, '', has_legend=False)
    _magnify(panel, list(aligned.values()), decays[0])
    panel.set_title('after the first decay, magnified', loc='left', fontsize=14, pad=12)
  figure.legend(*axes.get_legend_handles_labels(), loc='outside lower left', ncols=2, frameon=False)
  axes.set_title(title, loc='left', fontsize=16, pad=12)
  return figure


def _draw_bands(axes: Axes, aligned: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
  for (condition, (epochs, values)), (colour, style) in zip(aligned.items(), itertools.cycle(LINES), strict=False):
    num_seeds = f'{len(values)} seed{"s" if len(values) > 1 else ""}'
    marker, label = 'o' if len(epochs) < 20 else None, f'{condition} ({num_seeds})'
    axes.plot(epochs, values.mean(axis=0), style, color=colour, linewidth=2, label=label, marker=marker)
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _magnify(axes: Axes, aligned: Sequence[tuple[np.ndarray, np.ndarray]], first_epoch: float) -> None:
  """Limits the axes to the points of the curves from an epoch onwards."""
  last_epoch = max(epochs[-1] for epochs, _ in aligned)
  shown = np.concatenate([values[:, epochs >= first_epoch].ravel() for epochs, values in aligned])
  margin = max(0.1 * float(np.ptp(shown)), 0.1)
  axes.set(xlim=(first_epoch, last_epoch), ylim=(shown.min() - margin, shown.max() + margin))


OURS, OURS_ALONE = 'ours, 95 % interval', 'ours, no interval'
MARKERS: dict[str, dict[str, Any]] = {  # in the legend of `draw_claims`
  OURS: {'marker': 'o', 'color': BLUE, 'markersize': 10, 'linewidth': 2.5},
  OURS_ALONE: {'marker': 'o', 'color': 'dimgrey', 'markersize': 10, 'linewidth': 0, 'markerfacecolor': 'white'},
  'the paper': {
    'marker': 'D',
    'color': ORANGE,
    'markersize': 11,
    'linewidth': 0,
    'markerfacecolor': 'none',
    'markeredgewidth': 2.5,
  },
}


class Row(NamedTuple):
  """A row of `draw_claims`.

  Attributes:
    label: the claim.
    ours: the measured effect.
    interval: its confidence interval; None if there is none.
    paper: the paper's effect; None if it gives no number.
    verdict: the verdict.
  """

  label: str
  ours: float
  interval: tuple[float, float] | None
  paper: float | None
  verdict: str


@matplotlib.rc_context(STYLE)
def draw_claims(panels: Mapping[str, tuple[Sequence[Row], float, tuple[float, float]]], title: str) -> Figure:
  """Draws the effect of each claim with its confidence interval next to the paper's, with a panel for each unit.

  Args:
    panels: {label of the horizontal axis: (rows, value of no effect, limits of the axis)}. Values beyond the limits are
      drawn as arrows. The axis is logarithmic if no effect is 1.
    title: title of the figure.
  """
  heights = [len(rows) + 2 for rows, _, _ in panels.values()]
  figure = Figure(figsize=(17, 0.42 * sum(heights) + 1.4), layout='constrained')
  grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
  for axes, (quantity, (rows, no_effect, (low, high))) in zip(grid.flat, panels.items(), strict=True):
    for position, row in enumerate(rows):
      _draw_row(axes, position, row, low, high)
      axes.text(1.03, position, row.verdict, transform=axes.get_yaxis_transform(), va='center')
    if no_effect == 1:
      ticks = [tick for tick in (0.5, 1, 2, 5, 10) if low <= tick <= high]
      axes.set_xscale('log')
      axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
      axes.minorticks_off()
    axes.axvline(no_effect, color=BLACK, linewidth=1)
    axes.set(xlim=(low, high), ylim=(len(rows) - 0.5, -0.5), xlabel=quantity)
    axes.set_yticks(range(len(rows)), [textwrap.fill(row.label, 70, break_on_hyphens=False) for row in rows])
    axes.tick_params(axis='y', length=0, pad=12)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
  handles = [Line2D([], [], label=label, **style) for label, style in MARKERS.items()]
  figure.suptitle(title, x=0.01, ha='left', fontsize=18, weight='bold')
  figure.legend(handles=handles, loc='outside lower left', ncols=3, frameon=False)
  return figure


def _draw_row(axes: Axes, position: int, row: Row, low: float, high: float) -> None:
  """Draws the interval of a row, our effect and the paper's between the limits of the axis."""
  for label, effect in (('the paper', row.paper), (OURS if row.interval else OURS_ALONE, row.ours)):
    if effect is not None:
      arrow = {'marker': '<' if effect < low else '>'} if not low <= effect <= high else {}
      axes.plot(np.clip(effect, low, high), position, **MARKERS[label] | arrow, clip_on=False)
      if arrow:
        axes.annotate(
          f'{effect:+.2f}',
          (np.clip(effect, low, high), position),
          xytext=(12 if effect < low else -12, 0),
          textcoords='offset points',
          ha='left' if effect < low else 'right',
          va='center',
        )
  if row.interval:
    axes.plot(np.clip(row.interval, low, high), [position, position], **MARKERS[OURS] | {'marker': None})
    for limit, is_beyond, marker in ((low, row.interval[0] < low, '<'), (high, row.interval[1] > high, '>')):
      if is_beyond:
        axes.plot(limit, position, **MARKERS[OURS] | {'marker': marker}, clip_on=False)


def _format_curves(axes: Axes, quantity: str, *, has_legend: bool) -> None:
  axes.set(xlabel='epochs', ylabel=quantity)
  axes.set_xlim(left=0)
  axes.set_ylim(bottom=0)
  axes.grid(axis='y', color='0.9')
  axes.set_axisbelow(True)
  if has_legend:
    axes.legend(frameon=False)


# Inside the network.


@matplotlib.rc_context(STYLE)
def draw_maps(
  image: np.ndarray, maps: np.ndarray, layer: str, num_towers: int, *, common_scale: bool = False
) -> Figure:
  """Draws the kernel maps of a layer by tower, next to the image.

  Args:
    image: [height, width, rgb] uint8, the crop that the network was evaluated on.
    maps: [height, width, channel] float, the channels of the first tower first.
    layer: name of the layer.
    num_towers: number of towers of the network.
    common_scale: whether all maps are drawn on one scale; otherwise each is scaled from its minimum to its maximum.
  """
  maps_by_tower = np.split(np.moveaxis(maps, -1, 0).astype(np.float64), num_towers)
  num_maps = len(maps_by_tower[0])
  num_columns = math.ceil(math.sqrt(2 * num_maps))
  num_rows = math.ceil(num_maps / num_columns)
  height = num_towers * (12 * num_rows / num_columns + 0.6)
  figure = Figure(figsize=(16, max(height, 4)), layout='constrained')
  grid = figure.add_gridspec(num_towers, 2, width_ratios=[1, 3.4])
  axes = figure.add_subplot(grid[:, 0])
  _draw_image(axes, image)
  axes.set_title(f'{layer}: {maps.shape[-1]} maps of {maps.shape[0]} x {maps.shape[1]}', fontsize=15)
  for tower, tower_maps in enumerate(maps_by_tower):
    low, high = (f(maps) if common_scale else f(tower_maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    tiles = (tower_maps - low) / np.where(high > low, high - low, 1)
    _draw_tower(figure.add_subplot(grid[tower, 1]), tower, tiles, num_columns, cmap='gray', vmin=0, vmax=1)
  return figure


@matplotlib.rc_context(STYLE)
def draw_saliency(images: np.ndarray, gradients: np.ndarray, titles: Sequence[str], threshold: float = 3.0) -> Figure:
  """Draws images, each above the gradient of its top class's log-probability with respect to the pixels.

  Args:
    images: [image, height, width, rgb] uint8, the crops that the network was evaluated on.
    gradients: [image, height, width, rgb] float, nats per grey level.
    titles: titles of the images.
    threshold: gradients below this many standard deviations are drawn as zero; 3 in the tool of 2012.
  """
  figure, grid = _draw_titled_images(images, titles, num_rows=2)
  for axes, gradient in zip(grid[1], gradients, strict=True):
    _draw_strength(axes, gradient, threshold)
  return figure


@matplotlib.rc_context(STYLE)
def draw_explanations(
  images: Sequence[np.ndarray], values: Sequence[np.ndarray], titles: Sequence[str], *, in_colour: bool = False
) -> Figure:
  """Draws images, each above the values of its explanation.

  Args:
    images: [height, width, rgb] uint8 each, the crops that the network was evaluated on.
    values: for each image, [height, width] float, drawn over the image with the range below it, red if positive and
      blue if negative; or a gradient [height, width, rgb] float.
    titles: titles of the images.
    in_colour: whether gradients are drawn in their colours, with zero as mid grey; otherwise their magnitude is drawn.
  """
  figure, grid = _draw_titled_images(images, titles, num_rows=2)
  for axes, image, array in zip(grid[1], images, values, strict=True):
    if array.ndim == 2:
      largest = np.abs(array).max() or 1.0
      _draw_image(axes, image.mean(axis=-1), cmap='gray', vmin=0, vmax=255)
      axes.imshow(array, cmap='RdBu_r', vmin=-largest, vmax=largest, alpha=0.8 * np.abs(array) / largest)
      axes.set_xlabel(f'{array.min():.2g} to {array.max():.2g}', fontsize=13)
    elif in_colour:
      scale = np.percentile(np.abs(array), 99.5) or 1.0  # outliers would fade all others
      _draw_image(axes, np.clip(0.5 + array / (2 * scale), 0, 1))
    else:
      _draw_strength(axes, array, threshold=0)
  return figure


@matplotlib.rc_context(STYLE)
def draw_images(images: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
  """Draws images [height, width, rgb] uint8 in a row, below their titles."""
  return _draw_titled_images(images, titles, num_rows=1)[0]


def _draw_titled_images(
  images: Sequence[np.ndarray] | np.ndarray, titles: Sequence[str], num_rows: int
) -> tuple[Figure, np.ndarray]:
  """Draws images in the first of `num_rows` rows; returns the figure and its axes [row, image]."""
  figure = Figure(figsize=(3.4 * len(images), 3.7 * num_rows), layout='constrained')
  grid = figure.subplots(num_rows, len(images), squeeze=False)
  for axes, image, title in zip(grid[0], images, titles, strict=True):
    _draw_image(axes, image)
    axes.set_title(title, fontsize=14)
  return figure, grid


def _draw_strength(axes: Axes, gradient: np.ndarray, threshold: float) -> None:
  """Draws the magnitude of a gradient [height, width, rgb], darkest where it is largest."""
  strength = strong_gradients(gradient, threshold)
  vmax = np.percentile(strength[strength > 0], 90) if strength.any() else 1.0  # outliers would fade all others
  _draw_image(axes, strength, cmap='Greys', vmin=0, vmax=vmax)
  axes.spines[:].set(visible=True, color='0.8')


@matplotlib.rc_context(STYLE)
def draw_similarity(
  matrix: np.ndarray,
  rows: Sequence[tuple[str, int | None]],
  columns: Sequence[tuple[str, int | None]],
  titles: Sequence[str],
  measure: str,
) -> Figure:
  """Draws the similarity of layers as a matrix, with its value in each cell and lines between towers.

  Args:
    matrix: [row, column] float; cells below 0 have the colour of 0, and those that are not finite are empty.
    rows: name and tower of each row's layer; None for the whole layer. The layers of a tower are consecutive.
    columns: those of the columns.
    titles: names of the runs on the vertical and on the horizontal axis.
    measure: name of the measure.
  """
  figure = Figure(figsize=(0.62 * len(columns) + 3.6, 0.62 * len(rows) + 2.2), layout='constrained')
  axes = figure.subplots()
  image = axes.imshow(matrix, cmap='viridis', vmin=0, vmax=1)
  for row, column in np.argwhere(np.isfinite(matrix)):
    value = matrix[row, column]
    axes.text(
      column, row, f'{value:.2f}', ha='center', va='center', fontsize=10, color='white' if value < 0.6 else BLACK
    )
  for axis, parts, title in ((axes.yaxis, rows, titles[0]), (axes.xaxis, columns, titles[1])):
    axis.set_ticks(range(len(parts)), [layer if tower is None else f'{layer}, tower {tower}' for layer, tower in parts])
    axis.set_label_text(title)
    for label, (_, tower) in zip(axis.get_ticklabels(), parts, strict=True):
      label.set_color(BLACK if tower is None else tower_colour(tower))
  axes.tick_params(axis='x', rotation=90)
  for line, parts in ((axes.axhline, rows), (axes.axvline, columns)):
    for position in range(1, len(parts)):
      if parts[position][1] != parts[position - 1][1]:
        line(position - 0.5, color='white', linewidth=4)
  figure.colorbar(image, label=measure, shrink=0.8)
  return figure


def strong_gradients(gradient: np.ndarray, threshold: float) -> np.ndarray:
  """Returns the largest magnitude of a gradient among the channels, with weak gradients set to 0.

  Args:
    gradient: [height, width, rgb] float.
    threshold: gradients below this many standard deviations are weak.

  Returns:
    [height, width] float, 0 or more.
  """
  magnitude = np.abs(gradient)
  return np.where(magnitude < threshold * gradient.std(), 0, magnitude).max(axis=-1)
