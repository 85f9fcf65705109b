"""A network as pure functions, whichever module describes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax import cifar, model, towers
from alexnet_jax.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # that layers compute with
NETWORKS = {'alexnet': (model.AlexNet, model.check), 'cifar': (cifar.CifarNet, cifar.check)}


class Network(NamedTuple):
  """A network as two pure functions over a plain nested dict of arrays, {'conv1': {'kernel': ..., 'bias': ...}, ...}.

  Attributes:
    init: key -> params. Call it under `jax.jit`, in a mesh.
    apply: (params, images, dropout_key=None) -> logits. Images are [batch, height, width, rgb] float32, 0-255 less the
      mean image; logits [batch, class] float32. The key is given in training; without it every unit is there and, with
      dropout, outputs are halved.
    activations: (params, images) -> what every stage says of images at test time, {'conv1': [batch, height, width,
      channel], 'pool1': ..., 'fc7': [batch, unit], ..., 'fc8': logits}, float32, the units of the first tower first;
      those of fc6 and fc7 as they leave the nonlinearity, not halved by dropout.
    num_classes: classes it tells apart.
    num_towers: length of the tower axis of its parameters.
    stages: names of its stages, in their order.
  """

  init: Callable
  apply: Callable
  activations: Callable
  num_classes: int
  num_towers: int
  stages: tuple[str, ...]


_networks: dict[tuple, Network] = {}


def build(config: ConfigDict, num_classes: int) -> Network:
  """Makes the network of a config's `model` part; takes no memory. Call it in the mesh it will run on.

  Networks of equal configs are one object, so that what was compiled for the first serves the next.

  Raises:
    UsageError: if the fields do not make a network.
  """
  key = (config.to_json(), num_classes, jax.sharding.get_abstract_mesh())
  if key not in _networks:
    _networks[key] = _build(config.copy_and_resolve_references(), num_classes)  # the caller's may change
  return _networks[key]


def _build(config, num_classes):
  kind, check = NETWORKS[config.name]
  check(config)
  if config.dtype not in DTYPES:
    raise UsageError(f"model.dtype='{config.dtype}' is unknown; choose {' or '.join(map(repr, DTYPES))}.")
  dtype = DTYPES[config.dtype]
  new = functools.partial(kind, config, num_classes)
  module = nnx.eval_shape(lambda: new(rngs=nnx.Rngs(0)))
  graph = nnx.graphdef(module)

  def init(key):
    return nnx.to_pure_dict(nnx.state(new(rngs=nnx.Rngs(key)), nnx.Param))

  def apply(params, images, dropout_key=None):
    *_, (_, x) = nnx.merge(graph, params).stages(images.astype(dtype), dropout_key)
    x = towers.gather(x)[:, :num_classes]  # a last unit without a class, of an odd number of them, is cut off
    return x.astype(jnp.float32)

  def activations(params, images):
    stages = nnx.merge(graph, params).stages(images.astype(dtype))
    seen = {
      name: towers.gather(x).astype(jnp.float32) for name, x in stages if name.startswith('pool') or name in params
    }
    last = list(seen)[-1]
    return seen | {last: seen[last][:, :num_classes]}

  stages = tuple(name for name in kind.STAGES if hasattr(module, name) or name in module.pools)
  return Network(init, apply, activations, num_classes, module.num_towers, stages)
