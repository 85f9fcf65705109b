"""A network as pure functions, whichever module describes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.models import alexnet, cifar, towers
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # that layers compute with
NETWORKS = {'alexnet': (alexnet.AlexNet, alexnet.check_config), 'cifar': (cifar.CifarNet, cifar.check_config)}


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
    layer_names: names of its layers, in their order.
  """

  init: Callable
  apply: Callable
  activations: Callable
  num_classes: int
  num_towers: int
  layer_names: tuple[str, ...]


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
    *_, (_, x) = nnx.merge(graph, params).outputs(images.astype(dtype), dropout_key)
    x = towers.gather(x)[:, :num_classes]  # a last unit without a class, of an odd number of them, is cut off
    return x.astype(jnp.float32)

  def activations(params, images):
    outputs = nnx.merge(graph, params).outputs(images.astype(dtype))
    seen = {
      name: towers.gather(x).astype(jnp.float32) for name, x in outputs if name.startswith('pool') or name in params
    }
    last = list(seen)[-1]
    return seen | {last: seen[last][:, :num_classes]}

  layer_names = tuple(name for name in kind.LAYER_NAMES if hasattr(module, name) or name in module.pools)
  return Network(init, apply, activations, num_classes, module.num_towers, layer_names)


def layer_shapes(network: Network, params: dict, image_size: int, mesh: Mesh) -> dict[str, tuple[int, ...]]:
  """Returns the shape of what each stage of a network says of one image, in their order; nothing is computed.

  Args:
    network: built for the mesh.
    params: its parameters, or their shapes.
    image_size: side of what it sees, pixels.
    mesh: the devices.
  """
  with jax.set_mesh(mesh):
    images = jax.ShapeDtypeStruct(
      (mesh.shape['data'], image_size, image_size, 3),
      jnp.float32,
      sharding=jax.NamedSharding(mesh, towers.BATCH),
    )
    shapes = jax.eval_shape(network.activations, params, images)
  return {layer: shapes[layer].shape[1:] for layer in network.layer_names}
