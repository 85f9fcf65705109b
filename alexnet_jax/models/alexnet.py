"""The network of Figure 2, line by line, and the variants that a config selects.

Sizes in the comments are those of the paper: 224 x 224 images, two towers, 1000 classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
from flax import nnx

from alexnet_jax.models import checks, towers
from alexnet_jax.models.classifier import NONLINEARITIES, Classifier
from alexnet_jax.models.layers import Conv, Linear, dropout, local_response_norm, max_pool, num_windows, within_map_norm
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# Section 3.5: side, stride and padding of the kernels. A config has their number, the cross-tower layers, and the
# padding that is None here. conv6 is not in figure 2 but in the networks marked with a star (section 6).
WINDOWS = {
  'conv1': (11, 4, None),
  'conv2': (5, 1, None),
  'conv3': (3, 1, (1, 1)),
  'conv4': (3, 1, (1, 1)),
  'conv5': (3, 1, None),
  'conv6': (3, 1, (1, 1)),
}
POOLED = ('conv1', 'conv2', 'conv5')
LINEAR = ('bottleneck', 'fc8')  # without a nonlinearity; the bottleneck is for very many classes (facts, 4)
LAYERS = (*WINDOWS, 'fc6', 'fc7', *LINEAR)
POOLS = {name: name.replace('conv', 'pool') for name in POOLED}
MAX_TOWERS = 16  # larger numbers are typing errors


class AlexNet(Classifier):
  """Five convolutional and three fully-connected layers, half of the kernels in each of two towers (section 3.5).

  >>> net = AlexNet(config.model, num_classes=1000, rngs=nnx.Rngs(0))
  >>> logits = net(images)  # [batch, 224, 224, rgb], 0-255 minus the mean image -> [batch, 1000]
  >>> fc7 = net.activations(images)['fc7']  # [batch, 4096]
  """

  LAYER_NAMES = tuple(layer for name in LAYERS for layer in (name, POOLS.get(name)) if layer)

  def __init__(self, config: ConfigDict, num_classes: int, *, rngs: nnx.Rngs):
    """Declares the layers.

    Args:
      config: the `model` part of a config.
      num_classes: number of classes, 2 or more; unless `num_towers` divides it, the last units are unused.
      rngs: source of the initial weights.

    Raises:
      UsageError: if the image is too small for the layers.
    """
    super().__init__(config, num_classes)
    self.cross_tower, self.pools = tuple(config.meet), tuple(POOLS.values())
    self.nonlinearity = NONLINEARITIES[config.nonlinearity]
    self.dropout = dropout if config.dropout else lambda x, key: x
    self.pool_size, norm = config.pool_size, config.norm
    self.local_response_norm = functools.partial(
      local_response_norm, k=norm.k, size=norm.size, alpha=norm.alpha, beta=norm.beta
    )
    self.norm_before, self.norm_after, self.norm_within = tuple(norm.before), tuple(norm.after), tuple(norm.within)
    self.norm_pooled, self.norm_joined = tuple(norm.pooled), norm.joined

    def initial(name):
      return dict(std=config.init_std[name], bias=config.init_bias[name], num_towers=self.num_towers, rngs=rngs)

    def num_inputs(name, num_per_tower):
      return num_per_tower * self.num_towers if name in self.cross_tower else num_per_tower

    def num_kernels(name):  # of one tower
      return max(1, round(config.kernels[name] * config.width))

    side, channels = config.image_size, 3
    for name, (size, stride, padding) in WINDOWS.items():
      channels = num_inputs(name, channels)
      if config.kernels[name]:
        padding = padding or both_sides(config.padding[name])
        conv = Conv(channels, num_kernels(name), size, stride=stride, padding=(padding, padding), **initial(name))
        setattr(self, name, conv)
        side, channels = (side + sum(padding) - size) // stride + 1, num_kernels(name)
      if name in POOLED:
        side = num_windows(side, config.pool_size)
      if side < 1:
        raise UsageError(f'model.image_size={config.image_size} leaves no pixel after {name}; choose 64 or more.')
    self.fc6 = Linear(side * side * num_inputs('fc6', channels), num_kernels('fc6'), **initial('fc6'))
    self.fc7 = Linear(num_inputs('fc7', num_kernels('fc6')), num_kernels('fc7'), **initial('fc7'))
    units = num_kernels('fc7')
    if config.kernels.bottleneck:
      self.bottleneck = Linear(num_inputs('bottleneck', units), num_kernels('bottleneck'), **initial('bottleneck'))
      units = num_kernels('bottleneck')
    self.fc8 = Linear(num_inputs('fc8', units), math.ceil(num_classes / self.num_towers), **initial('fc8'))

  def outputs(self, x: jax.Array, dropout_key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
    """Runs the forward pass and yields `(layer name, output)` for every layer.

    Args:
      x: images [batch, height, width, rgb], 0-255 minus the mean image; layers compute in their dtype.
      dropout_key: of the dropout masks in training. Without a key all units are active and, in a network with dropout,
        their outputs are halved.

    Yields:
      The names 'conv1', 'pool1', ... 'fc8' in the order of the network, and outputs [tower, batch, ...] in the dtype of
      x. The last ones are logits. The output of a layer that the network lacks is its input; if the layer is in
      `meet`, that is the maps of all towers, [batch, ...].
    """
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)

    yield 'conv1', (x := self.layer('conv1', x))  # [2, N, 55, 55, 48]
    yield 'pool1', (x := self.pool('conv1', x))  # [2, N, 27, 27, 48]
    yield 'conv2', (x := self.layer('conv2', x))  # [2, N, 27, 27, 128]
    yield 'pool2', (x := self.pool('conv2', x))  # [2, N, 13, 13, 128]
    yield 'conv3', (x := self.layer('conv3', x))  # [2, N, 13, 13, 192]
    yield 'conv4', (x := self.layer('conv4', x))  # [2, N, 13, 13, 192]
    yield 'conv5', (x := self.layer('conv5', x))  # [2, N, 13, 13, 128]
    yield 'pool5', (x := self.pool('conv5', x))  # [2, N, 6, 6, 128]
    yield 'conv6', (x := self.layer('conv6', x))  # not in figure 2
    yield 'fc6', (x := self.layer('fc6', x))  # [2, N, 2048]
    x = self.dropout(x, keys[0])
    yield 'fc7', (x := self.layer('fc7', x))  # [2, N, 2048]
    x = self.dropout(x, keys[1])
    yield 'bottleneck', (x := self.layer('bottleneck', x))  # not in figure 2
    yield 'fc8', self.layer('fc8', x)  # [2, N, 500]

  def layer(self, name: str, x: jax.Array) -> jax.Array:
    """Applies a layer with its nonlinearity and normalisation; returns the input of a layer that the network lacks."""
    if name in self.cross_tower:
      x = towers.gather(x)  # the maps of both towers
    if not hasattr(self, name):
      return x
    if name == 'fc6':
      x = x.reshape(*x.shape[:-3], -1)  # rows, columns, channels
    x = getattr(self, name)(x)
    if name in self.norm_before:
      x = self.across_maps(x)
    if name not in LINEAR:
      x = self.nonlinearity(x)
    if name in self.norm_after:
      x = self.across_maps(x)
    if name in self.norm_within:
      x = within_map_norm(x)
    return x

  def pool(self, name: str, x: jax.Array) -> jax.Array:
    """Pools the output of a layer, and normalises it in networks that normalise after pooling."""
    x = max_pool(x, self.pool_size)
    return self.across_maps(x) if name in self.norm_pooled else x

  def across_maps(self, x: jax.Array) -> jax.Array:
    """Normalises across the maps of each tower, or across those of all towers."""
    if self.norm_joined:
      return towers.scatter(self.local_response_norm(towers.gather(x)[None])[0], self.num_towers)
    return self.local_response_norm(x)


def require_alexnet(config: ConfigDict, tool: str) -> None:
  """Checks that a config describes an AlexNet.

  Args:
    config: the `model` part of a config.
    tool: that supports no other network, for the message.

  Raises:
    UsageError: if it describes another network.
  """
  if config.name != 'alexnet':
    raise UsageError(f"{tool} supports AlexNets only, and model.name='{config.name}' is another network.")


def both_sides(padding: int | Sequence[int]) -> tuple[int, int]:
  """Returns the padding (top and left, bottom and right) of a config's number, for both sides, or pair."""
  return (padding, padding) if isinstance(padding, int) else (padding[0], padding[1])


def check_config(config: ConfigDict) -> None:
  """Validates the `model` part of a config.

  Raises:
    UsageError: naming the field and its valid values.
  """
  checks.check_width(config)
  is_valid = 1 <= config.num_towers <= MAX_TOWERS
  checks.require(is_valid, f'num_towers={config.num_towers}', f'must be 1 to {MAX_TOWERS}; the paper has 2')
  checks.require(
    config.pool_size >= 2, f'pool_size={config.pool_size}', 'must be at least the stride of 2; the paper has 3'
  )
  checks.require_one_of(config, 'nonlinearity', NONLINEARITIES)
  for name, padding in config.padding.items():
    size = WINDOWS[name][0]
    sides = (padding,) * 2 if isinstance(padding, int) else tuple(padding)
    is_valid = len(sides) == 2 and all(isinstance(side, int) and 0 <= side < size for side in sides)
    checks.require(is_valid, f'padding.{name}={padding}', f'must be 0 to {size - 1}, or two such numbers')
  checks.check_norm(config.norm)
  checks.check_biases(config)
  for field in ('before', 'after', 'within'):
    checks.check_names(config, f'norm.{field}', tuple(WINDOWS))
  checks.check_names(config, 'norm.pooled', POOLED)
  checks.check_names(config, 'meet', LAYERS[1:])
  optional = ('conv3', 'conv4', 'conv5', 'conv6', 'bottleneck')
  checks.check_kernels(config, optional, 'removes a required layer; conv3 to conv6 and the bottleneck are optional')
  has_middle = any(config.kernels[name] for name in ('conv3', 'conv4', 'conv5'))
  checks.require(has_middle, 'kernels', 'removes conv3, conv4 and conv5; one of them is required')
  removed = [name for name in optional if name in config.meet and not config.kernels[name]]
  checks.require(
    not removed or (removed == ['conv3'] and not {'conv4', 'conv5'} & set(config.meet)),
    f'meet={tuple(config.meet)}',
    f'names {", ".join(removed)} without kernels; only conv3 can pass the maps of both towers through, to a layer that '
    'is not in model.meet',
  )
