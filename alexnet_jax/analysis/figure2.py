"""Figure 2, drawn from the shapes of the network that a config defines and from the mesh of its devices."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import matplotlib
from jax.sharding import Mesh
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon
from ml_collections import ConfigDict

from alexnet_jax.analysis import plots
from alexnet_jax.models import alexnet
from alexnet_jax.models.registry import build, layer_shapes

OBLIQUE = (0.42, 0.30)  # direction of the third dimension: right and up, per unit of depth
GAP, COMPACT_GAP = 1.15, 0.75  # distance between consecutive layers
INCHES, COMPACT_INCHES = 0.92, 0.62  # inches per unit of length; the size of the text does not change


class LayerSummary(NamedTuple):
  """A layer as the figure shows it.

  Attributes:
    name: 'conv1', ... 'fc8'.
    shape: shape of the output of one tower, (height, width, channel) or (unit,).
    kernel: shape of the kernel of one tower, (height, width, in, out) or (in, out).
    reads_all_towers: whether the layer reads the outputs of all towers, Figure 2's crossing arrows.
    num_parameters: number of parameters in all towers; of fc8, only those of units with a class.
    notes: further properties and operations, such as 'stride 4', one per line.
  """

  name: str
  shape: tuple[int, ...]
  kernel: tuple[int, ...]
  reads_all_towers: bool
  num_parameters: int
  notes: tuple[str, ...]


def read_layers(config: ConfigDict, num_classes: int, mesh: Mesh) -> list[LayerSummary]:
  """Reads the layers from the shapes of a network's parameters and outputs.

  Args:
    config: the `model` part of a config.
    num_classes: number of classes.
    mesh: mesh of the network.

  Returns:
    The layers from conv1 to fc8; a pooling layer is noted in the layer before it.

  Raises:
    UsageError: if the config does not define an AlexNet.
  """
  alexnet.require_alexnet(config, 'this figure')
  with jax.set_mesh(mesh):
    network = build(config, num_classes)
    params = jax.eval_shape(network.init, jax.random.key(0))
  layers: list[LayerSummary] = []
  input_shape: tuple[int, ...] = (config.image_size, config.image_size, 3)
  for name, shape in layer_shapes(network, params, config.image_size, mesh).items():
    if name in params:
      kernel, bias = params[name]['kernel'].shape[1:], params[name]['bias']
      num_all_inputs = input_shape[-1] if len(kernel) == 4 else math.prod(input_shape)
      reads_all_towers = network.num_towers > 1 and name != 'conv1' and kernel[-2] == num_all_inputs
      num_parameters = sum(x.size for x in params[name].values()) // bias.size * shape[-1]
      tower_shape = (*shape[:-1], bias.shape[1])
      notes = tuple(_layer_notes(name, config))
      layers.append(LayerSummary(name, tower_shape, kernel, reads_all_towers, num_parameters, notes))
    else:
      layers[-1] = layers[-1]._replace(notes=(*layers[-1].notes, *_pooling_notes(layers[-1].name, shape, config)))
    input_shape = shape
  return layers


def _layer_notes(name: str, config: ConfigDict) -> Iterator[str]:
  if name in alexnet.WINDOWS and alexnet.WINDOWS[name][1] > 1:
    yield f'stride {alexnet.WINDOWS[name][1]}'
  if name in (*config.norm.before, *config.norm.after, *config.norm.within):
    yield _normalisation_note(config)
  if config.dropout and name in ('fc6', 'fc7'):
    yield 'dropout'


def _pooling_notes(pooled_layer: str, shape: Sequence[int], config: ConfigDict) -> Iterator[str]:
  yield f'max pooling {config.pool_size} x {config.pool_size}'
  yield f'to {shape[0]} x {shape[1]}'
  if pooled_layer in config.norm.pooled:
    yield _normalisation_note(config)


def _normalisation_note(config: ConfigDict) -> str:
  return 'normalised\nacross all towers' if config.norm.joined and config.num_towers > 1 else 'normalised'


@matplotlib.rc_context(plots.STYLE)
def draw_figure2(
  layers: Sequence[LayerSummary],
  image_size: int,
  num_classes: int,
  mesh: Mesh,
  num_towers: int,
  *,
  compact: bool = False,
) -> Figure:
  """Draws the layers of each tower in a row, and the devices that hold them.

  Args:
    layers: layers as returned by `read_layers`.
    image_size: side of the image in pixels.
    num_classes: number of classes.
    mesh: mesh of the network.
    num_towers: number of towers of the network.
    compact: whether to omit the numbers below the layers, so that the figure fits on a narrow screen.
  """
  gap = COMPACT_GAP if compact else GAP
  rows = [0.0] if num_towers == 1 else [1.75 - 3.5 * tower / (num_towers - 1) for tower in range(num_towers)]
  figure = Figure(layout='constrained')
  axes = figure.add_subplot()
  axes.set_axis_off()
  axes.set_aspect('equal')

  image = _Box(axes, 0, 0, (image_size, image_size, 3), '0.85')
  left = image.right + gap
  inputs, towers_left = [image], left - 0.35
  for layer in layers:
    boxes = [_Box(axes, left, y, layer.shape, _tint(plots.tower_colour(tower))) for tower, y in enumerate(rows)]
    for tower, box in enumerate(boxes):
      for source_tower, source in enumerate(inputs):
        is_crossing = source is not image and source_tower != tower
        if not is_crossing or layer.reads_all_towers:
          _draw_arrow(axes, source, box, is_crossing=is_crossing)
    axes.text(boxes[0].centre, min(rows) - 1.55, layer.name, ha='center', va='top', weight='bold')
    if not compact:
      _describe_layer(axes, boxes[0].centre, min(rows) - 1.55, layer)
    inputs, left = boxes, boxes[0].right + gap
  towers_right = inputs[0].right + 0.35
  classes = _Box(axes, towers_right + gap, 0, (num_classes,), '0.85')
  for source in inputs:
    _draw_arrow(axes, source, classes, is_crossing=False)
  axes.text(classes.centre, min(rows) - 1.55, 'softmax', ha='center', va='top', weight='bold')
  _draw_devices(axes, towers_left, towers_right, rows, mesh)
  if not compact:
    total = sum(layer.num_parameters for layer in layers)
    axes.text(image.centre, min(rows) - 3.75, 'parameters', ha='center', va='top', fontsize=12)
    axes.text(classes.centre, min(rows) - 3.75, f'{total:,}', ha='center', va='top', fontsize=12, weight='bold')
  if any(layer.reads_all_towers for layer in layers):
    legend = "dashed: reads the other tower's maps"
    axes.text(towers_right, max(rows) + 1.53, legend, ha='right', va='bottom', fontsize=13)
  low, high = min(rows) - (2.1 if compact else 4.1), max(rows) + 2.1
  axes.set(xlim=(-0.8, classes.right + 0.2), ylim=(low, high))
  width, height = classes.right + 1.0, high - low + 0.2
  scale = COMPACT_INCHES if compact else INCHES
  figure.set_size_inches(scale * width, scale * height)
  return figure


class _Box:
  """A solid for the maps or units of one tower: channels to the right, rows upwards, columns into the page."""

  def __init__(self, axes: Axes, left: float, y: float, shape: Sequence[int], colour: str | tuple[float, float, float]):
    *sides, depth = shape
    if sides:
      height, into, width = 2.5 * math.sqrt(sides[0] / 224), 2.5 * math.sqrt(sides[1] / 224), 0.085 * math.sqrt(depth)
    else:
      height, into, width = 0.03 * math.sqrt(depth), 0.35, 0.26
    x, z = OBLIQUE[0] * into, OBLIQUE[1] * into
    self.y, self.right = y, left + width + x
    self.left, self.centre = left, left + (width + x) / 2
    low, high = y - (height + z) / 2, y - (height + z) / 2 + height
    right = left + width
    for corners, brightness in (
      ([(left, low), (right, low), (right, high), (left, high)], 1.0),
      ([(left, high), (right, high), (right + x, high + z), (left + x, high + z)], 1.12),
      ([(right, low), (right + x, low + z), (right + x, high + z), (right, high)], 0.86),
    ):
      face = tuple(min(1, brightness * channel) for channel in to_rgb(colour))
      axes.add_patch(Polygon(corners, facecolor=face, edgecolor='0.25', linewidth=1.2, zorder=3))
    axes.text((left + right) / 2, low - 0.06, f'{depth:,}', ha='center', va='top', fontsize=12, zorder=5)
    if sides:
      label_x, alignment = ((left + right) / 2, 'center') if width > 0.4 else (left - 0.06, 'right')
      axes.text(label_x, (low + high) / 2, str(sides[0]), ha=alignment, va='center', fontsize=12, zorder=5)
      axes.text(left + x / 2 - 0.03, high + z / 2 + 0.02, str(sides[1]), ha='right', va='bottom', fontsize=12, zorder=5)


def _draw_arrow(axes: Axes, source: _Box, target: _Box, *, is_crossing: bool) -> None:
  axes.annotate(
    '',
    (target.left - 0.02, target.y),
    (source.right, source.y),
    arrowprops={
      'arrowstyle': '-|>',
      'linestyle': (0, (4, 2)) if is_crossing else '-',
      'color': plots.BLACK if is_crossing else '0.45',
      'linewidth': 1.8,
      'shrinkA': 0,
      'shrinkB': 0,
      'mutation_scale': 14,
    },
    gid='crossing' if is_crossing else 'straight',
    zorder=4,
  )


def _describe_layer(axes: Axes, x: float, y: float, layer: LayerSummary) -> None:
  *window, num_inputs, _ = layer.kernel
  size = ' x '.join(map(str, (*window, num_inputs))) if window else f'reads {num_inputs:,}'
  axes.text(x, y - 0.42, '\n'.join((size, *layer.notes)), ha='center', va='top', fontsize=12, linespacing=1.35)
  axes.text(x, y - 2.2, f'{layer.num_parameters:,}', ha='center', va='top', fontsize=12)


def _draw_devices(axes: Axes, left: float, right: float, rows: Sequence[float], mesh: Mesh) -> None:
  """Draws a box around the towers that are on the same devices, and names the devices."""
  num_groups = mesh.shape['tower']
  towers_per_group = len(rows) // num_groups
  for group in range(num_groups):
    towers = range(group * towers_per_group, (group + 1) * towers_per_group)
    low, high = min(rows[tower] for tower in towers) - 1.35, max(rows[tower] for tower in towers) + 1.45
    axes.add_patch(
      FancyBboxPatch(
        (left, low), right - left, high - low, boxstyle='round,pad=0,rounding_size=0.15', color='0.955', zorder=0
      )
    )
    tower_names = ' and '.join(f'tower {tower}' for tower in towers)
    devices = [f'{device.platform}:{device.id}' for device in mesh.devices[:, group]]
    sharding = ', which share each batch' if len(devices) > 1 else ''
    title = f'{tower_names} on {" and ".join(devices)}{sharding}'
    text = axes.text(left + 0.15, high + 0.1, title, weight='bold', va='bottom')
    text.set(zorder=6, bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1})  # above the crossing arrows


def _tint(colour: str) -> tuple[float, float, float]:
  red, green, blue = (1 - 0.55 * (1 - channel) for channel in to_rgb(colour))
  return red, green, blue
