"""The small networks of sections 3.1 and 3.3 for CIFAR-10, with one tower, as cuda-convnet specifies them (facts, 3).

Sizes in the comments are those of the network of 18 %, for 32 x 32 pixels, and of the network of 11 %, for 24 x 24.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
from flax import nnx

from alexnet_jax.models import checks
from alexnet_jax.models.classifier import NONLINEARITIES, Classifier
from alexnet_jax.models.layers import (
  Conv,
  Linear,
  LocalConv,
  average_pool,
  local_response_norm,
  max_pool,
  num_windows,
  within_map_norm,
)
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# Sides of the kernels. Layers do not change the size of the maps, and pooling halves it. A config has their number.
CONVS = {'conv1': 5, 'conv2': 5, 'conv3': 5}
LOCALS = {'local3': 3, 'local4': 3}
LAYERS = (*CONVS, *LOCALS, 'fc64', 'fc10')
POOLS = {name: name.replace('conv', 'pool') for name in CONVS}
POOLINGS = {'max': max_pool, 'average': average_pool}


class CifarNet(Classifier):
  """Convolutional, locally connected and fully-connected layers, most of them optional."""

  LAYER_NAMES = tuple(layer for name in LAYERS for layer in (name, POOLS.get(name)) if layer)

  def __init__(self, config: ConfigDict, num_classes: int, *, rngs: nnx.Rngs):
    """Declares the layers; the arguments are those of `alexnet.AlexNet`.

    Raises:
      UsageError: if the image is too small for the layers.
    """
    super().__init__(config, num_classes)
    self.nonlinearity, norm = NONLINEARITIES[config.nonlinearity], config.norm
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

    def initial(name):
      return dict(std=config.init_std[name], bias=config.init_bias[name], num_towers=1, rngs=rngs)

    side, channels = config.image_size, 3
    for name in (*CONVS, *LOCALS, 'fc64'):
      if not config.kernels[name]:
        continue
      num_kernels = max(1, round(config.kernels[name] * config.width))
      if name in CONVS:
        padding = (CONVS[name] // 2,) * 2
        setattr(self, name, Conv(channels, num_kernels, CONVS[name], padding=(padding, padding), **initial(name)))
        side = num_windows(side, 3)
      elif name in LOCALS:
        setattr(self, name, LocalConv(side, channels, num_kernels, LOCALS[name], **initial(name)))
      else:
        setattr(self, name, Linear(side * side * channels, num_kernels, **initial(name)))
        side = 1
      if side < 1:
        raise UsageError(f'model.image_size={config.image_size} leaves no pixel after {name}; choose 16 or more.')
      channels = num_kernels
    self.fc10 = Linear(side * side * channels, num_classes, **initial('fc10'))

  def outputs(self, x: jax.Array, dropout_key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
    """Runs the forward pass, as `alexnet.AlexNet.outputs`; the key is ignored, since there is no dropout."""
    del dropout_key
    yield 'conv1', (x := self.layer('conv1', x))  # [1, N, 32, 32, 32]; [1, N, 24, 24, 64]
    yield 'pool1', (x := self.pool('conv1', x))  # [1, N, 16, 16, 32]; [1, N, 12, 12, 64]
    yield 'conv2', (x := self.layer('conv2', x))  # [1, N, 16, 16, 32]; [1, N, 12, 12, 64]
    yield 'pool2', (x := self.pool('conv2', x))  # [1, N, 8, 8, 32]; [1, N, 6, 6, 64]
    if hasattr(self, 'conv3'):
      yield 'conv3', (x := self.layer('conv3', x))  # [1, N, 8, 8, 64]; absent
      yield 'pool3', (x := self.pool('conv3', x))  # [1, N, 4, 4, 64]; absent
    yield 'local3', (x := self.layer('local3', x))  # absent; [1, N, 6, 6, 64]
    yield 'local4', (x := self.layer('local4', x))  # absent; [1, N, 6, 6, 32]
    x = x.reshape(*x.shape[:2], -1)  # rows, columns, channels
    yield 'fc64', (x := self.layer('fc64', x))  # absent in both
    yield 'fc10', self.fc10(x)  # [1, N, 10]

  def layer(self, name: str, x: jax.Array) -> jax.Array:
    """Applies a hidden layer with its nonlinearity and normalisation; returns the input of a layer that is absent."""
    if not hasattr(self, name):
      return x
    x = self.nonlinearity(getattr(self, name)(x))
    return self.norm(x) if name in self.norm_after else x

  def pool(self, name: str, x: jax.Array) -> jax.Array:
    """Pools the output of a layer, with the normalisation that follows."""
    x = self.poolings[name](x)
    return self.norm(x) if name in self.norm_pooled else x


def check_config(config: ConfigDict) -> None:
  """Validates the `model` part of a config.

  Raises:
    UsageError: naming the field and its valid values.
  """
  checks.check_width(config)
  checks.require(config.num_towers == 1, f'num_towers={config.num_towers}', 'must be 1 for the networks of CIFAR-10')
  checks.require_one_of(config, 'nonlinearity', NONLINEARITIES)
  checks.check_norm(config.norm)
  checks.check_biases(config)
  for field in ('after', 'pooled'):
    checks.check_names(config, f'norm.{field}', tuple(CONVS))
  for name in config.pool:
    checks.require_one_of(config, f'pool.{name}', POOLINGS)
  optional = ('conv3', *LOCALS, 'fc64')
  checks.check_kernels(config, optional, 'removes a required layer; conv3, the local layers and fc64 are optional')
