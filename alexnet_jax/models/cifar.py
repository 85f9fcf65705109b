"""The small networks of sections 3.1 and 3.3, for CIFAR-10: one tower, as cuda-convnet's files specify them (facts, 3).

Sizes in the comments are those of the network of 18 %, which sees 32 x 32 pixels, and of that of 11 %, which sees 24.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
from flax import nnx

from alexnet_jax.models.alexnet import MAX_FLOAT32, MAX_KERNELS, NONLINEARITIES
from alexnet_jax.models.layers import (
  Conv,
  Linear,
  LocalConv,
  average_pool,
  local_response_norm,
  max_pool,
  pooled,
  within_map_norm,
)
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# Sides of the kernels; all layers keep the size of their maps, and pooling halves it. A config says how many there are.
CONVS = {'conv1': 5, 'conv2': 5, 'conv3': 5}
LOCALS = {'local3': 3, 'local4': 3}
LAYERS = (*CONVS, *LOCALS, 'fc64', 'fc10')
POOLS = {name: name.replace('conv', 'pool') for name in CONVS}
POOLINGS = {'max': max_pool, 'average': average_pool}


class CifarNet(nnx.Module):
  """Convolutional, locally connected and fully-connected layers, each of them there or not."""

  LAYER_NAMES = tuple(layer for name in LAYERS for layer in (name, POOLS.get(name)) if layer)

  def __init__(self, config: ConfigDict, num_classes: int, *, rngs: nnx.Rngs):
    """Declares the layers; the arguments mean what they mean for `model.AlexNet`.

    Raises:
      UsageError: if the image is too small for the layers.
    """
    self.num_towers, self.nonlinearity, norm = 1, NONLINEARITIES[config.nonlinearity], config.norm
    self.norm = functools.partial(
      within_map_norm if norm.within else local_response_norm,
      k=norm.k,
      size=norm.size,
      alpha=norm.alpha,
      beta=norm.beta,
    )
    self.norm_after, self.norm_pooled = tuple(norm.after), tuple(norm.pooled)
    self.pools = tuple(pool for name, pool in POOLS.items() if config.kernels[name])
    self.poolings = {name: POOLINGS[kind] for name, kind in config.pool.items()}

    def start(name):
      return dict(std=config.init_std[name], bias=config.init_bias[name], num_towers=1, rngs=rngs)

    side, channels = config.image_size, 3
    for name in (*CONVS, *LOCALS, 'fc64'):
      if not config.kernels[name]:
        continue
      number = max(1, round(config.kernels[name] * config.width))
      if name in CONVS:
        padding = (CONVS[name] // 2,) * 2
        setattr(self, name, Conv(channels, number, CONVS[name], padding=(padding, padding), **start(name)))
        side = pooled(side, 3)
      elif name in LOCALS:
        setattr(self, name, LocalConv(side, channels, number, LOCALS[name], **start(name)))
      else:
        setattr(self, name, Linear(side * side * channels, number, **start(name)))
        side = 1
      if side < 1:
        raise UsageError(f'model.image_size={config.image_size} leaves no pixel after {name}; choose 16 or more.')
      channels = number
    self.fc10 = Linear(side * side * channels, num_classes, **start('fc10'))

  def outputs(self, x: jax.Array, dropout_key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
    """Goes through the network, as `alexnet.AlexNet.outputs` does; without dropout, the key changes nothing."""
    del dropout_key
    yield 'conv1', (x := self.layer('conv1', x))  # [1, N, 32, 32, 32]; [1, N, 24, 24, 64]
    yield 'pool1', (x := self.pool('conv1', x))  # [1, N, 16, 16, 32]; [1, N, 12, 12, 64]
    yield 'conv2', (x := self.layer('conv2', x))  # [1, N, 16, 16, 32]; [1, N, 12, 12, 64]
    yield 'pool2', (x := self.pool('conv2', x))  # [1, N, 8, 8, 32]; [1, N, 6, 6, 64]
    if hasattr(self, 'conv3'):
      yield 'conv3', (x := self.layer('conv3', x))  # [1, N, 8, 8, 64]; left out
      yield 'pool3', (x := self.pool('conv3', x))  # [1, N, 4, 4, 64]; left out
    yield 'local3', (x := self.layer('local3', x))  # left out; [1, N, 6, 6, 64]
    yield 'local4', (x := self.layer('local4', x))  # left out; [1, N, 6, 6, 32]
    x = x.reshape(*x.shape[:2], -1)  # rows, columns, channels
    yield 'fc64', (x := self.layer('fc64', x))  # left out in both
    yield 'fc10', self.fc10(x)  # [1, N, 10]

  def layer(self, name: str, x: jax.Array) -> jax.Array:
    """Applies one hidden layer, with its nonlinearity and normalisation; one that is left out hands on what it sees."""
    if not hasattr(self, name):
      return x
    x = self.nonlinearity(getattr(self, name)(x))
    return self.norm(x) if name in self.norm_after else x

  def pool(self, name: str, x: jax.Array) -> jax.Array:
    """Pools what a layer says, with the normalisation that follows."""
    x = self.poolings[name](x)
    return self.norm(x) if name in self.norm_pooled else x


def check_config(config: ConfigDict) -> None:
  """Finds values that make no network.

  Raises:
    UsageError: naming the field of the config's `model` part and what it may be.
  """

  def demand(holds, field, sentence):
    if not holds:
      raise UsageError(f'model.{field} {sentence}.')

  demand(0 < config.width < math.inf, f'width={config.width}', 'must be above 0; 1.0 is the original network')
  demand(config.num_towers == 1, f'num_towers={config.num_towers}', 'must be 1 for the networks of CIFAR-10')
  demand(
    config.nonlinearity in NONLINEARITIES,
    f"nonlinearity='{config.nonlinearity}'",
    f'is unknown; choose {" or ".join(map(repr, NONLINEARITIES))}',
  )
  norm = config.norm
  demand(0 < norm.size < MAX_KERNELS and norm.size % 2, f'norm.size={norm.size}', 'must be odd and 1 or more')
  demand(0 < norm.k <= MAX_FLOAT32, f'norm.k={norm.k}', 'must be above 0; the code of 2012 had 1')
  for field in ('alpha', 'beta'):
    demand(0 <= norm[field] <= MAX_FLOAT32, f'norm.{field}={norm[field]}', 'must be 0 or more, and finite in 32 bits')
  for field in ('after', 'pooled'):
    demand(set(norm[field]) <= set(CONVS), f'norm.{field}={tuple(norm[field])}', f'may name {", ".join(CONVS)}')
  for name, kind in config.pool.items():
    demand(kind in POOLINGS, f"pool.{name}='{kind}'", f'is unknown; choose {" or ".join(map(repr, POOLINGS))}')
  for name, bias in config.init_bias.items():
    demand(abs(bias) <= MAX_FLOAT32, f'init_bias.{name}={bias}', 'must be a finite number')
  for name, number in config.kernels.items():
    demand(number >= 0, f'kernels.{name}={number}', 'must be 0 or more')
    demand(
      number * config.width <= MAX_KERNELS,
      f'kernels.{name}={number}',
      f'times model.width={config.width} must be {MAX_KERNELS:,} or less',
    )
    demand(number or name not in ('conv1', 'conv2'), f'kernels.{name}=0', 'leaves out a layer that must stay')
