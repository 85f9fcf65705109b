"""Figure 2, drawn from the shapes of the network that a config really makes, and from the mesh that holds it."""

import math
from collections.abc import Sequence
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

OBLIQUE = (0.42, 0.30)  # where the third dimension goes
GAP = 1.15  # between a layer and the next


class LayerSummary(NamedTuple):
  """What the figure says of a layer.

  Attributes:
    name: 'conv1', ... 'fc8'.
    shape: of one tower's maps, (height, width, channel), or of its units, (unit,).
    kernel: of one tower, (height, width, in, out) or (in, out).
    sees_all: whether it reads what all towers made: Figure 2's crossing arrows.
    num_parameters: of all towers; of fc8 those with a class.
    notes: what else happens in it, such as 'stride 4', a line each.
  """

  name: str
  shape: tuple[int, ...]
  kernel: tuple[int, ...]
  sees_all: bool
  num_parameters: int
  notes: tuple[str, ...]


def read_layers(config: ConfigDict, num_classes: int, mesh: Mesh) -> list[LayerSummary]:
  """Reads the layers off the shapes of a network.

  Args:
    config: the `model` part of a config.
    num_classes: classes to tell apart.
    mesh: that will hold it.

  Raises:
    UsageError: if the fields do not make a network.
  """
  alexnet.require_alexnet(config, 'this figure')
  with jax.set_mesh(mesh):
    network = build(config, num_classes)
    params = jax.eval_shape(network.init, jax.random.key(0))
  found, seen = [], (config.image_size, config.image_size, 3)
  for name, shape in layer_shapes(network, params, config.image_size, mesh).items():
    if name in params:
      kernel, bias = params[name]['kernel'].shape[1:], params[name]['bias']
      of_all = seen[-1] if len(kernel) == 4 else math.prod(seen)
      found.append(
        LayerSummary(
          name,
          (*shape[:-1], bias.shape[1]),
          kernel,
          network.num_towers > 1 and name != 'conv1' and kernel[-2] == of_all,
          sum(x.size for x in params[name].values()) // bias.size * shape[-1],
          tuple(_notes(name, config)),
        )
      )
    else:
      size = config.pool_size
      notes = [f'max pooling {size} x {size}', f'to {shape[0]} x {shape[1]}']
      if found[-1].name in config.norm.pooled:
        notes.append(_normalised(config))
      found[-1] = found[-1]._replace(notes=(*found[-1].notes, *notes))
    seen = shape
  return found


def _notes(name, config):
  if name in alexnet.WINDOWS and alexnet.WINDOWS[name][1] > 1:
    yield f'stride {alexnet.WINDOWS[name][1]}'
  if name in (*config.norm.before, *config.norm.after, *config.norm.within):
    yield _normalised(config)
  if config.dropout and name in ('fc6', 'fc7'):
    yield 'dropout'


def _normalised(config):
  return 'normalised\nacross all towers' if config.norm.joined and config.num_towers > 1 else 'normalised'


@matplotlib.rc_context(plots.STYLE)
def draw_figure2(
  found: Sequence[LayerSummary], image_size: int, num_classes: int, mesh: Mesh, num_towers: int
) -> Figure:
  """Draws the layers of each tower in a row of its own, and who holds them.

  Args:
    found: what `layers` found.
    image_size: side of the image, pixels.
    num_classes: classes to tell apart.
    mesh: that holds the network.
    num_towers: of the network.
  """
  lines = [0.0] if num_towers == 1 else [1.75 - 3.5 * tower / (num_towers - 1) for tower in range(num_towers)]
  figure = Figure(layout='constrained')
  axes = figure.add_subplot()
  axes.set_axis_off()
  axes.set_aspect('equal')

  image = _Box(axes, 0, 0, (image_size, image_size, 3), '0.85')
  left = image.right + GAP
  before, begin = [image] * num_towers, left - 0.35
  for number, layer in enumerate(found):
    boxes = [
      _Box(axes, left, y, layer.shape, _tint(plots.TOWERS[tower % len(plots.TOWERS)])) for tower, y in enumerate(lines)
    ]
    for tower, box in enumerate(boxes):
      for other, source in enumerate(before if number else before[:1]):
        if number == 0 or tower == other or layer.sees_all:
          _arrow(axes, source, box, is_crossing=bool(number) and tower != other)
    _describe(axes, boxes[0].centre, min(lines) - 1.55, layer)
    before, left = boxes, boxes[0].right + GAP
  end = before[0].right + 0.35
  classes = _Box(axes, end + GAP, 0, (num_classes,), '0.85')
  for source in before:
    _arrow(axes, source, classes, is_crossing=False)
  axes.text(classes.centre, min(lines) - 1.55, 'softmax', ha='center', va='top', weight='bold')
  _draw_devices(axes, begin, end, lines, mesh, num_towers)
  total = sum(layer.num_parameters for layer in found)
  axes.text(image.centre, min(lines) - 3.75, 'parameters', ha='center', va='top', fontsize=12)
  axes.text(classes.centre, min(lines) - 3.75, f'{total:,}', ha='center', va='top', fontsize=12, weight='bold')
  if any(layer.sees_all for layer in found):
    meaning = "dashed: reads the other tower's maps"
    axes.text(end, max(lines) + 1.53, meaning, ha='right', va='bottom', fontsize=13)
  width, height = classes.right + 1.0, max(lines) - min(lines) + 6.4
  axes.set(xlim=(-0.8, classes.right + 0.2), ylim=(min(lines) - 4.1, max(lines) + 2.1))
  figure.set_size_inches(0.92 * width, 0.92 * height)
  return figure


class _Box:
  """One tower's maps, or units, as a solid: channels to the right, rows upwards, columns into the page."""

  def __init__(self, axes, left, y, shape, colour):
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
    for corners, shade in (
      ([(left, low), (right, low), (right, high), (left, high)], 1.0),
      ([(left, high), (right, high), (right + x, high + z), (left + x, high + z)], 1.12),
      ([(right, low), (right + x, low + z), (right + x, high + z), (right, high)], 0.86),
    ):
      face = [min(1, shade * part) for part in to_rgb(colour)]
      axes.add_patch(Polygon(corners, facecolor=face, edgecolor='0.25', linewidth=1.2, zorder=3))
    label = dict(fontsize=12, zorder=5)
    axes.text((left + right) / 2, low - 0.06, f'{depth:,}', ha='center', va='top', **label)
    if sides:
      is_wide = width > 0.4
      place = ((left + right) / 2, 'center') if is_wide else (left - 0.06, 'right')
      axes.text(place[0], (low + high) / 2, sides[0], ha=place[1], va='center', **label)
      axes.text(left + x / 2 - 0.03, high + z / 2 + 0.02, sides[1], ha='right', va='bottom', **label)


def _arrow(axes, source, target, *, is_crossing):
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


def _describe(axes: Axes, x, y, layer):
  axes.text(x, y, layer.name, ha='center', va='top', weight='bold')
  *window, num_seen, _ = layer.kernel
  seen = ' x '.join(map(str, (*window, num_seen))) if window else f'reads {num_seen:,}'
  axes.text(x, y - 0.42, '\n'.join((seen, *layer.notes)), ha='center', va='top', fontsize=12, linespacing=1.35)
  axes.text(x, y - 2.2, f'{layer.num_parameters:,}', ha='center', va='top', fontsize=12)


def _draw_devices(axes, begin, end, lines, mesh, num_towers):
  """Draws a field around the towers that the same devices hold."""
  num_shares = mesh.shape['tower']
  held = num_towers // num_shares
  for share in range(num_shares):
    own = lines[share * held : (share + 1) * held]
    low, high = min(own) - 1.35, max(own) + 1.45
    axes.add_patch(
      FancyBboxPatch(
        (begin, low), end - begin, high - low, boxstyle='round,pad=0,rounding_size=0.15', color='0.955', zorder=0
      )
    )
    first = share * held
    which = ' and '.join(f'tower {tower}' for tower in range(first, first + held))
    devices = [f'{device.platform}:{device.id}' for device in mesh.devices[:, share]]
    sharing = ', which share each batch' if len(devices) > 1 else ''
    text = axes.text(
      begin + 0.15, high + 0.1, f'{which} on {" and ".join(devices)}{sharing}', weight='bold', va='bottom'
    )
    text.set(zorder=6, bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1})  # above the arrows that cross there


def _tint(colour):
  return tuple(1 - 0.55 * (1 - part) for part in to_rgb(colour))
