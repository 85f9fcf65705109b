"""The networks by name, as pure functions of their parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from alexnet_jax.models import alexnet, checks, cifar, device_mesh, towers

if TYPE_CHECKING:
  from ml_collections import ConfigDict

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # in which layers compute
MODULES: dict[str, type[alexnet.AlexNet] | type[cifar.CifarNet]] = {
  'alexnet': alexnet.AlexNet,
  'cifar': cifar.CifarNet,
}
CHECKS = {'alexnet': alexnet.check_config, 'cifar': cifar.check_config}


class Network(NamedTuple):
  """A network as pure functions of a nested dict of arrays, {'conv1': {'kernel': ..., 'bias': ...}, ...}.

  Attributes:
    init: key -> params. Call it under `jax.jit`, in a mesh.
    apply: (params, images, dropout_key=None) -> logits. Images are [batch, height, width, rgb] float32, 0-255 minus the
      mean image; logits [batch, class] float32. Without a dropout key all units are active and, in a network with
      dropout, their outputs are halved.
    activations: (params, images) -> the output of every layer at test time, {'conv1': [batch, height, width, channel],
      'pool1': ..., 'fc7': [batch, unit], ..., 'fc8': logits}, float32, the channels of the first tower first. Those of
      fc6 and fc7 are not halved by dropout.
    num_classes: number of classes.
    num_towers: length of the tower axis of its parameters.
    layer_names: names of its layers, in the order of the network.
  """

  init: Callable
  apply: Callable
  activations: Callable
  num_classes: int
  num_towers: int
  layer_names: tuple[str, ...]


_networks: dict[tuple, Network] = {}


def check_config(config: ConfigDict) -> None:
  """Validates the `model` part of a config, including that the image is large enough for the layers.

  Raises:
    UsageError: naming the field and its valid values.
  """
  with device_mesh.shapes_only_mesh():
    build(config, num_classes=2)  # any number: the layers before the last do not depend on it


def build(config: ConfigDict, num_classes: int) -> Network:
  """Returns the network of a config's `model` part, without allocating memory. Call it in the mesh it will run on.

  Networks of equal configs are one object, so that programs compiled for the first one are reused.

  Raises:
    UsageError: if the fields do not describe a network.
  """
  key = (config.to_json(), num_classes, jax.sharding.get_abstract_mesh())
  if key not in _networks:
    _networks[key] = _build(config.copy_and_resolve_references(), num_classes)  # the caller's config may change
  return _networks[key]


def _build(config, num_classes):
  checks.require_one_of(config, 'name', MODULES)
  checks.require_one_of(config, 'dtype', DTYPES)
  CHECKS[config.name](config)
  dtype, kind = DTYPES[config.dtype], MODULES[config.name]
  new = functools.partial(kind, config, num_classes)
  module = nnx.eval_shape(lambda: new(rngs=nnx.Rngs(0)))
  graph = nnx.graphdef(module)

  def init(key):
    return nnx.to_pure_dict(nnx.state(new(rngs=nnx.Rngs(key)), nnx.Param))

  def apply(params, images, dropout_key=None):
    *_, (_, x) = nnx.merge(graph, params).outputs(images.astype(dtype), dropout_key)
    x = towers.gather(x)[:, :num_classes]  # without the last unit if the number of classes is odd
    return x.astype(jnp.float32)

  def activations(params, images):
    outputs = nnx.merge(graph, params).outputs(images.astype(dtype))
    joined = {
      name: towers.gather(x).astype(jnp.float32) for name, x in outputs if name.startswith('pool') or name in params
    }
    last = list(joined)[-1]
    return joined | {last: joined[last][:, :num_classes]}

  layer_names = tuple(name for name in kind.LAYER_NAMES if hasattr(module, name) or name in module.pools)
  return Network(init, apply, activations, num_classes, module.num_towers, layer_names)


def layer_shapes(network: Network, params: dict, image_size: int, mesh: Mesh) -> dict[str, tuple[int, ...]]:
  """Returns the output shape of every layer for one image, in the order of the network; nothing is computed.

  Args:
    network: built for the mesh.
    params: its parameters, or their shapes.
    image_size: side of the crops, pixels.
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
