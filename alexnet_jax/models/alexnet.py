"""The network of Figure 2, line by line, and what the variants of a config make of it.

Sizes in the comments are those of the paper: 224 x 224 images, two towers, 1000 classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax.models import towers
from alexnet_jax.models.layers import Conv, Linear, dropout, local_response_norm, max_pool, pooled, within_map_norm
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# Section 3.5: side, stride and padding of the kernels. A config says how many there are, which layers see both towers,
# and the padding that is None here. conv6 is not in figure 2 but in the networks marked with a star (section 6).
WINDOWS = {
  'conv1': (11, 4, None),
  'conv2': (5, 1, None),
  'conv3': (3, 1, (1, 1)),
  'conv4': (3, 1, (1, 1)),
  'conv5': (3, 1, None),
  'conv6': (3, 1, (1, 1)),
}
POOLED = ('conv1', 'conv2', 'conv5')
LINEAR = ('bottleneck', 'fc8')  # without a nonlinearity; the first before a head of very many classes (facts, 4)
LAYERS = (*WINDOWS, 'fc6', 'fc7', *LINEAR)
POOLS = {name: name.replace('conv', 'pool') for name in POOLED}
MAX_TOWERS, MAX_KERNELS = 16, 2**20  # more is a slip of the keyboard
MAX_FLOAT32 = 3.4e38  # finite in 32 bits
NONLINEARITIES = {'relu': jax.nn.relu, 'tanh': jnp.tanh}


class AlexNet(nnx.Module):
  """Five convolutional and three fully-connected layers, half of the kernels in each of two towers (section 3.5)."""

  LAYER_NAMES = tuple(layer for name in LAYERS for layer in (name, POOLS.get(name)) if layer)

  def __init__(self, config: ConfigDict, num_classes: int, *, rngs: nnx.Rngs):
    """Declares the layers.

    Args:
      config: the `model` part of a config.
      num_classes: classes to tell apart, 2 or more; an odd number leaves the last unit of the last tower unused.
      rngs: source of the initial weights.

    Raises:
      UsageError: if the image is too small for the layers.
    """
    self.num_towers, self.meet = config.num_towers, tuple(config.meet)
    self.pools = tuple(POOLS.values())
    self.nonlinearity = NONLINEARITIES[config.nonlinearity]
    self.dropout = dropout if config.dropout else lambda x, key: x
    self.pool_size, norm = config.pool_size, config.norm
    self.local_response_norm = functools.partial(
      local_response_norm, k=norm.k, size=norm.size, alpha=norm.alpha, beta=norm.beta
    )
    self.norm_before, self.norm_after, self.norm_within = tuple(norm.before), tuple(norm.after), tuple(norm.within)
    self.norm_pooled, self.norm_joined = tuple(norm.pooled), norm.joined

    def start(name):
      return dict(std=config.init_std[name], bias=config.init_bias[name], num_towers=self.num_towers, rngs=rngs)

    def num_seen(name, own):  # of what a layer reads, one tower's own or that of all
      return own * self.num_towers if name in self.meet else own

    def num_kernels(name):  # of one tower
      return max(1, round(config.kernels[name] * config.width))

    side, channels = config.image_size, 3
    for name, (size, stride, padding) in WINDOWS.items():
      channels = num_seen(name, channels)
      if config.kernels[name]:
        padding = padding or both_sides(config.padding[name])
        conv = Conv(channels, num_kernels(name), size, stride=stride, padding=(padding, padding), **start(name))
        setattr(self, name, conv)
        side, channels = (side + sum(padding) - size) // stride + 1, num_kernels(name)
      if name in POOLED:
        side = pooled(side, config.pool_size)
      if side < 1:
        raise UsageError(f'model.image_size={config.image_size} leaves no pixel after {name}; choose 64 or more.')
    self.fc6 = Linear(side * side * num_seen('fc6', channels), num_kernels('fc6'), **start('fc6'))
    self.fc7 = Linear(num_seen('fc7', num_kernels('fc6')), num_kernels('fc7'), **start('fc7'))
    units = num_kernels('fc7')
    if config.kernels.bottleneck:
      self.bottleneck = Linear(num_seen('bottleneck', units), num_kernels('bottleneck'), **start('bottleneck'))
      units = num_kernels('bottleneck')
    self.fc8 = Linear(num_seen('fc8', units), math.ceil(num_classes / self.num_towers), **start('fc8'))

  def outputs(self, x: jax.Array, dropout_key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
    """Goes through the network, and yields the name and the outputs of each stage.

    Args:
      x: images [batch, height, width, rgb], 0-255 less the mean image; layers compute in their dtype.
      dropout_key: given in training; without it every unit is there and, with dropout, outputs are halved.

    Yields:
      'conv1', 'pool1', ... 'fc8', in the order of the network, and [tower, batch, ...] in the dtype of x. The last are
      logits.
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
    yield 'conv6', (x := self.layer('conv6', x))  # left out: the same
    yield 'fc6', (x := self.layer('fc6', x))  # [2, N, 2048]
    x = self.dropout(x, keys[0])
    yield 'fc7', (x := self.layer('fc7', x))  # [2, N, 2048]
    x = self.dropout(x, keys[1])
    yield 'bottleneck', (x := self.layer('bottleneck', x))  # left out: the same
    yield 'fc8', self.layer('fc8', x)  # [2, N, 500]

  def layer(self, name: str, x: jax.Array) -> jax.Array:
    """Applies one layer, with its nonlinearity and normalisation; one that is left out hands on what it would see."""
    if name in self.meet:
      x = towers.gather(x)  # what follows sees the maps of both towers
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
    """Pools what a layer says; there are networks which normalise after that."""
    x = max_pool(x, self.pool_size)
    return self.across_maps(x) if name in self.norm_pooled else x

  def across_maps(self, x: jax.Array) -> jax.Array:
    """Normalises across the maps of each tower, or of all as if there was one."""
    if self.norm_joined:
      return towers.scatter(self.local_response_norm(towers.gather(x)[None])[0], self.num_towers)
    return self.local_response_norm(x)


def require_alexnet(config: ConfigDict, tool: str) -> None:
  """Finds a config that is not of an AlexNet.

  Args:
    config: the `model` part of a config.
    tool: what takes no other network, in a word.

  Raises:
    UsageError: if it is of another network.
  """
  if config.name != 'alexnet':
    raise UsageError(f"{tool} is for AlexNets alone, and model.name='{config.name}' is another network.")


def both_sides(padding: int | Sequence[int]) -> tuple[int, int]:
  """Spells out a config's padding: one number for both sides, or (top and left, bottom and right)."""
  return (padding, padding) if isinstance(padding, int) else tuple(padding)


def check_config(config: ConfigDict) -> None:
  """Finds values that make no network.

  Raises:
    UsageError: naming the field of the config's `model` part and what it may be.
  """

  def demand(holds, field, sentence):
    if not holds:
      raise UsageError(f'model.{field} {sentence}.')

  demand(0 < config.width < math.inf, f'width={config.width}', 'must be above 0; 1.0 is the published network')
  demand(
    1 <= config.num_towers <= MAX_TOWERS,
    f'num_towers={config.num_towers}',
    f'must be 1 to {MAX_TOWERS}; the paper has 2',
  )
  demand(config.pool_size >= 2, f'pool_size={config.pool_size}', 'must be 2, the stride, or more; the paper has 3')
  demand(
    config.nonlinearity in NONLINEARITIES,
    f"nonlinearity='{config.nonlinearity}'",
    f'is unknown; choose {" or ".join(map(repr, NONLINEARITIES))}',
  )
  for name, padding in config.padding.items():
    size, sides = WINDOWS[name][0], both_sides(padding)
    demand(
      len(sides) == 2 and all(isinstance(side, int) and 0 <= side < size for side in sides),
      f'padding.{name}={padding}',
      f'must be 0 to {size - 1}, or two such numbers',
    )
  norm = config.norm
  demand(
    0 < norm.size < MAX_KERNELS and norm.size % 2,
    f'norm.size={norm.size}',
    'must be odd and 1 or more; the paper has 5',
  )
  demand(0 < norm.k <= MAX_FLOAT32, f'norm.k={norm.k}', 'must be above 0; the paper has 2')
  for field in ('alpha', 'beta'):
    demand(0 <= norm[field] <= MAX_FLOAT32, f'norm.{field}={norm[field]}', 'must be 0 or more, and finite in 32 bits')
  for name, bias in config.init_bias.items():
    demand(abs(bias) <= MAX_FLOAT32, f'init_bias.{name}={bias}', 'must be a finite number')
  for field in ('before', 'after', 'within'):
    names = tuple(norm[field])
    demand(set(names) <= set(WINDOWS), f'norm.{field}={names}', f'may name {", ".join(WINDOWS)}')
  demand(
    set(config.meet) <= set(LAYERS) - {'conv1'},
    f'meet={tuple(config.meet)}',
    f'may name {", ".join(LAYERS[1:])}; conv1 reads the image',
  )
  pooled_norms = tuple(norm.pooled)
  demand(set(pooled_norms) <= set(POOLED), f'norm.pooled={pooled_norms}', f'may name {", ".join(POOLED)}')
  left_out = [name for name in WINDOWS if name in config.meet and not config.kernels[name]]
  demand(
    not left_out or (left_out == ['conv3'] and not {'conv4', 'conv5'} & set(config.meet)),
    f'meet={tuple(config.meet)}',
    f'has {", ".join(left_out)} without kernels; only conv3 can hand on the maps of both towers, to a layer that has '
    'not met itself',
  )
  for name, number in config.kernels.items():
    demand(number >= 0, f'kernels.{name}={number}', 'must be 0 or more')
    demand(
      number * config.width <= MAX_KERNELS,
      f'kernels.{name}={number}',
      f'times model.width={config.width} must be {MAX_KERNELS:,} or less',
    )
    may_go = name in ('conv3', 'conv4', 'conv5', 'conv6', 'bottleneck')
    demand(
      number or may_go,
      f'kernels.{name}=0',
      'leaves out a layer that must stay; conv3 to conv6 and the bottleneck may go',
    )
  demand(
    any(config.kernels[name] for name in ('conv3', 'conv4', 'conv5')),
    'kernels',
    'leaves out conv3, conv4 and conv5; one must stay',
  )
