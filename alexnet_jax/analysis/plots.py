"""The figures themselves: arrays in, a matplotlib figure out. They are to be read from the last row of a lecture hall.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; none of them says anything that a hatch, a
line style or a word does not say as well.
"""

import itertools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alexnet_jax.analysis import measures
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
TOWERS = (BLUE, VERMILLION, GREEN, PURPLE)  # one colour for each tower
FORMATS = ('.png', '.svg', '.pdf')

LINES = tuple(zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK), ('-', '--', '-.', ':', '-', '--'), strict=True))
STYLE = {
  'font.size': 15,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'hatch.linewidth': 1.5,
  'svg.hashsalt': 'alexnet_jax',  # the same figure is the same file
}


@matplotlib.rc_context(STYLE)
def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a figure as PNG, SVG or PDF.

  Raises:
    UsageError: if the name ends otherwise.
    RunError: if it cannot be written.
  """
  check_suffix(path)
  try:
    metadata = {'Date': None} if path.suffix.lower() == '.svg' else {}
    with atomic_files.atomic_write(path) as partial:
      figure.savefig(partial, dpi=120, bbox_inches='tight', pad_inches=0.15, metadata=metadata)
  except OSError as error:
    raise RunError(f'{path} cannot be written ({error.strerror}); name another --output.') from error


def check_suffix(path: pathlib.Path) -> None:
  """Finds a name that is neither PNG nor SVG nor PDF.

  Raises:
    UsageError: saying which names are.
  """
  if path.suffix.lower() not in FORMATS:
    raise UsageError(
      f"'{path}' does not end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; name the --output so that it does."
    )


def short_name(name: str, length: int = 22) -> str:
  """Shortens a class's name: no WordNet id, and the first of its synonyms ('n02119789 kit fox, Vulpes macrotis')."""
  name = re.sub(r'^n\d{8} (?=\S)', '', name).split(',')[0]
  return name if len(name) <= length else f'{name[: length - 1]}…'


# Figure 3.


@matplotlib.rc_context(STYLE)
def draw_kernels(kernels: np.ndarray, *, common_scale: bool = False) -> Figure:
  """Draws the kernels of the first layer, tower above tower, and beside them how colourful they are (figure 3).

  Args:
    kernels: [tower, height, width, rgb, kernel] float32; zero is drawn as mid grey.
    common_scale: draw all on one scale, instead of each so that its strongest weight is black or of full colour.
  """
  shares = measures.colour_fractions(kernels)
  num_towers, _, _, _, num_kernels = kernels.shape
  num_columns = min(16, num_kernels)
  num_rows = math.ceil(num_kernels / num_columns)
  figure = Figure(figsize=(16, num_towers * (0.75 * num_rows + 0.75)), layout='constrained')
  grid = figure.add_gridspec(num_towers, 2, width_ratios=[12, 4], hspace=0.12, wspace=0.04)
  bins = np.linspace(0, 100, 11)
  most = max(np.histogram(100 * of_tower, bins)[0].max() for of_tower in shares)
  for tower in range(num_towers):
    largest = np.abs(kernels if common_scale else kernels[tower]).max(axis=None if common_scale else (0, 1, 2))
    tiles = 0.5 + kernels[tower] / (2 * np.where(largest > 0, largest, 1))
    axes = figure.add_subplot(grid[tower, 0])
    axes.imshow(_mosaic(np.moveaxis(tiles, -1, 0), num_columns), interpolation='nearest')
    axes.set_axis_off()
    axes.set_title(f'tower {tower}', loc='left', color=TOWERS[tower % len(TOWERS)], weight='bold')

    axes = figure.add_subplot(grid[tower, 1])
    axes.hist(100 * shares[tower], bins, color=TOWERS[tower % len(TOWERS)], edgecolor='white')
    axes.set(xlim=(0, 100), ylim=(0, 1.25 * most), ylabel='kernels', xticks=(0, 50, 100))
    axes.axvline(100 * measures.NOISE_FRACTION, color=BLACK, linestyle=':')
    axes.set_title(f'colour: {100 * shares[tower].mean():.0f} % of the energy', fontsize=15)
    if tower == num_towers - 1:
      axes.set_xlabel("colour's share in a kernel, % (dotted: noise)")
  return figure


def _mosaic(tiles, num_columns, gap=1):
  """Sets tiles [tile, height, width, ...] side by side on white, row after row."""
  num_tiles, height, width = tiles.shape[:3]
  num_rows = math.ceil(num_tiles / num_columns)
  mosaic = np.ones((num_rows * (height + gap) - gap, num_columns * (width + gap) - gap, *tiles.shape[3:]))
  for number, tile in enumerate(tiles):
    top, left = number // num_columns * (height + gap), number % num_columns * (width + gap)
    mosaic[top : top + height, left : left + width] = tile
  return mosaic


# Figure 4.


@matplotlib.rc_context(STYLE)
def draw_predictions(
  images: np.ndarray, log_probs: np.ndarray, class_names: Sequence[str], labels: Sequence[int] | None = None
) -> Figure:
  """Draws images with the five most probable classes of each (figure 4, left).

  Args:
    images: [image, height, width, rgb] uint8.
    log_probs: [image, class], nats.
    class_names: in the order of the classes.
    labels: the true classes, whose bars are of another colour and hatched; None, or -1 for an image, if not known.
  """
  num_columns = min(4, len(images))
  num_rows = math.ceil(len(images) / num_columns)
  figure = Figure(figsize=(4 * num_columns, 5.6 * num_rows), layout='constrained')
  parts = figure.subfigures(num_rows, num_columns, squeeze=False, hspace=0.03, wspace=0.03).flat
  best = np.argsort(-log_probs, axis=1, kind='stable')[:, :5]
  for number, (part, image) in enumerate(zip(parts, images, strict=False)):
    above, below = part.subplots(2, 1, height_ratios=[3.2, 2])
    label = -1 if labels is None else int(labels[number])
    _show_image(above, image)
    if label >= 0:
      above.set_xlabel(short_name(class_names[label]), weight='bold', labelpad=6)
    _draw_bars(
      below,
      100 * np.exp(log_probs[number, best[number]].astype(np.float64)),
      [short_name(class_names[one]) for one in best[number]],
      [one == label for one in best[number]],
    )
  return figure


def _show_image(axes: Axes, image, **options):
  axes.imshow(image, interpolation='nearest' if len(image) < 64 else 'antialiased', **options)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)


def _draw_bars(axes, percent, names, are_true):
  """Draws horizontal bars, the first on top, each with its name on it."""
  places = range(len(names))
  bars = axes.barh(places, percent, height=0.86, color=SKY)
  for place, bar, name, is_true in zip(places, bars, names, are_true, strict=True):
    if is_true:
      bar.set(facecolor=ORANGE, edgecolor='white', hatch='//', linewidth=0)
    text = axes.text(2, place, name, va='center', weight='bold' if is_true else 'normal')
    text.set_bbox({'facecolor': 'white', 'alpha': 0.6, 'edgecolor': 'none', 'pad': 1})
    axes.text(122, place, f'{percent[place]:.0f} %', va='center', ha='right', color='dimgrey', fontsize=13)
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
  """Draws images, and to the right of each those nearest to it (figure 4, right).

  Args:
    queries: [image, height, width, rgb] uint8, for the first column.
    neighbours: [image, neighbour, height, width, rgb] uint8, nearest first.
    query_names: names of their classes.
    neighbour_names: names of the classes of the neighbours, [image][neighbour]; one that differs from the query's is
      marked.
  """
  num_rows, num_neighbours = neighbours.shape[:2]
  figure = Figure(figsize=(2 * num_neighbours + 2.6, 2.35 * num_rows + 0.5), layout='compressed')
  widths = [1, 0.18, *[1] * num_neighbours]
  axes = figure.subplots(num_rows, num_neighbours + 2, squeeze=False, width_ratios=widths)
  for row in range(num_rows):
    axes[row, 1].set_axis_off()
    own = query_names[row] if query_names else None
    _show_image(axes[row, 0], queries[row])
    if own is not None:
      axes[row, 0].set_xlabel(short_name(own, 16), fontsize=13, weight='bold')
    for column in range(num_neighbours):
      one = axes[row, column + 2]
      _show_image(one, neighbours[row, column])
      if neighbour_names:
        name = neighbour_names[row][column]
        is_same = own is None or name == own
        mark = '' if is_same else '≠ '
        one.set_xlabel(mark + short_name(name, 16), fontsize=13, color=BLACK if is_same else VERMILLION)
  axes[0, 0].set_title('image', fontsize=15)
  above = axes[0, 2].transAxes
  title = axes[0, 2].text(0, 1.04, 'nearest training images, the nearest first', transform=above)
  title.set_in_layout(False)  # it is wider than its column
  return figure


# Figure 1.


@matplotlib.rc_context(STYLE)
def draw_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
  """Draws training curves, one panel for each quantity and one line for each run (figure 1).

  Args:
    panels: {name of a quantity: {name of a run: (epochs [point], values [point])}}; those in percent begin at 0.
  """
  runs = list(dict.fromkeys(run for curves in panels.values() for run in curves))
  lines = dict(zip(runs, itertools.cycle(LINES), strict=False))
  figure = Figure(figsize=(8 * len(panels), 5.5), layout='constrained')
  for axes, (quantity, curves) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
    for run, (epochs, values) in curves.items():
      colour, style = lines[run]
      is_sparse = len(epochs) < 20
      axes.plot(epochs, values, style, color=colour, linewidth=2.5, label=run, marker='o' if is_sparse else None)
    axes.set(xlabel='epochs', ylabel=quantity)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    if len(runs) > 1:
      axes.legend(frameon=False)
  return figure


@matplotlib.rc_context(STYLE)
def draw_comparison(
  arms: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], quantity: str, *, level: float | None = None
) -> Figure:
  """Draws the curves of trainings that differ in one thing, a line for each seed and a kind of line for each arm.

  Args:
    arms: {name of an arm: [(epochs [point], values [point]) of each seed]}.
    quantity: what the values are.
    level: where a dotted line is drawn across.
  """
  figure = Figure(figsize=(8, 5.5), layout='constrained')
  axes = figure.subplots()
  for (arm, curves), (colour, style) in zip(arms.items(), itertools.cycle(LINES), strict=False):
    for number, (epochs, values) in enumerate(curves):
      axes.plot(
        epochs,
        values,
        style,
        color=colour,
        linewidth=2,
        alpha=1 if number == 0 else 0.5,
        label=arm if not number else None,
      )
  if level is not None:
    axes.axhline(level, color=BLACK, linestyle=':', linewidth=1.5)
  axes.set(xlabel='epochs', ylabel=quantity)
  axes.set_xlim(left=0)
  axes.set_ylim(bottom=0)
  axes.grid(axis='y', color='0.9')
  axes.set_axisbelow(True)
  if len(arms) > 1:
    axes.legend(frameon=False)
  return figure


# Inside the network.


@matplotlib.rc_context(STYLE)
def draw_maps(
  image: np.ndarray, maps: np.ndarray, layer: str, num_towers: int, *, common_scale: bool = False
) -> Figure:
  """Draws the maps of a layer, tower by tower, beside the image.

  Args:
    image: what the network saw, [height, width, rgb] uint8.
    maps: [height, width, channel], the first tower's channels first.
    layer: its name.
    num_towers: of the network.
    common_scale: draw all on one scale, instead of each from its smallest to its largest value.
  """
  of_towers = np.split(np.moveaxis(maps, -1, 0).astype(np.float64), num_towers)
  num_maps = len(of_towers[0])
  num_columns = math.ceil(math.sqrt(2 * num_maps))
  num_rows = math.ceil(num_maps / num_columns)
  height = num_towers * (12 * num_rows / num_columns + 0.6)
  figure = Figure(figsize=(16, max(height, 4)), layout='constrained')
  grid = figure.add_gridspec(num_towers, 2, width_ratios=[1, 3.4])
  axes = figure.add_subplot(grid[:, 0])
  _show_image(axes, image)
  axes.set_title(f'{layer}: {maps.shape[-1]} maps of {maps.shape[0]} x {maps.shape[1]}', fontsize=15)
  for tower, own in enumerate(of_towers):
    low, high = (f(maps) if common_scale else f(own, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    tiles = (own - low) / np.where(high > low, high - low, 1)
    axes = figure.add_subplot(grid[tower, 1])
    axes.imshow(_mosaic(tiles, num_columns), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
    axes.set_axis_off()
    axes.set_title(f'tower {tower}', loc='left', color=TOWERS[tower % len(TOWERS)], weight='bold')
  return figure


@matplotlib.rc_context(STYLE)
def draw_saliency(images: np.ndarray, gradients: np.ndarray, titles: Sequence[str], threshold: float = 3.0) -> Figure:
  """Draws images, and under each where a small change of a pixel changes its top class's log-probability most.

  Args:
    images: what the network saw, [image, height, width, rgb] uint8.
    gradients: [image, height, width, rgb], of the log-probability.
    titles: of the images.
    threshold: gradients smaller than so many of their standard deviations count as zero, 3 in the tool of 2012.
  """
  figure = Figure(figsize=(3.4 * len(images), 7.4), layout='constrained')
  axes = figure.subplots(2, len(images), squeeze=False)
  for column, (image, gradient, title) in enumerate(zip(images, gradients, titles, strict=True)):
    _show_image(axes[0, column], image)
    axes[0, column].set_title(title, fontsize=14)
    size = measures.strong_gradients(gradient, threshold)
    vmax = np.percentile(size[size > 0], 90) if size.any() else 1.0  # a few are so large that all others would pale
    _show_image(axes[1, column], size, cmap='Greys', vmin=0, vmax=vmax)
    axes[1, column].spines[:].set(visible=True, color='0.8')
  return figure
