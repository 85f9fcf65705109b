"""The networks by name, as pure functions of their parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax.kernels import inference_layout
from alexnet_jax.models import alexnet, checks, cifar, layers, towers
from alexnet_jax.models.classifier import DTYPES, Classifier

MODULES: dict[str, Callable[..., Classifier]] = {'alexnet': alexnet.AlexNet, 'cifar': cifar.CifarNet}
ARRANGEMENTS: dict[Any, Callable] = {
  layers.Conv: inference_layout.arrange_conv,
  layers.Linear: inference_layout.arrange_linear,
}
CHECKS = {'alexnet': alexnet.check_config, 'cifar': cifar.check_config}


@dataclasses.dataclass(frozen=True)
class Network:
  """A network as pure functions of a nested dict of arrays, {'conv1': {'kernel': ..., 'bias': ...}, ...}.

  Networks of equal configs are equal. A jitted function that takes a network as a static argument is therefore compiled
  once for all of them.

  Attributes:
    config: the `model` part of a config.
    num_classes: number of classes.
  """

  config: FrozenConfigDict
  num_classes: int

  def init(self, key: jax.Array) -> dict:
    """Draws the parameters, float32, sharded over the current mesh. Call it under `jax.jit`."""
    return nnx.to_pure_dict(nnx.state(self._new(key), nnx.Param))

  def apply(self, params: dict, images: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Computes logits [batch, class] float32, see `Classifier.__call__`."""
    return self.module(params)(images, dropout_key)

  def activations(self, params: dict, images: jax.Array) -> dict[str, jax.Array]:
    """Computes the outputs of all layers, see `Classifier.activations`."""
    return self.module(params).activations(images)

  def arrange_for_inference(self, params: dict) -> dict:
    """Returns parameters for `apply` alone, in the order in which it reads them fastest (kernels/inference_layout.py).

    Call it under `jax.jit`, in the mesh of the inference, before many batches. The results differ by rounding.
    """
    arranged = {}
    for name, layer in params.items():
      arrange = ARRANGEMENTS.get(type(getattr(self._abstract, name)))
      arranged[name] = layer | {'kernel': arrange(layer['kernel'])} if arrange else layer
    return arranged

  def module(self, params: dict) -> Classifier:
    """Returns the Flax module with the given parameters."""
    return nnx.merge(nnx.graphdef(self._abstract), params)

  @property
  def num_towers(self) -> int:
    """Length of the tower axis of the parameters."""
    return self.config.num_towers

  @property
  def layer_names(self) -> tuple[str, ...]:
    """Names of the layers, in the order of the network."""
    return self._abstract.layer_names

  def __hash__(self) -> int:
    return self._hash

  @functools.cached_property
  def _hash(self):  # jit calls it at every step, and hashing all fields of a config takes 36 microseconds
    return hash((self.config, self.num_classes))

  @functools.cached_property
  def _abstract(self):
    return nnx.eval_shape(lambda: self._new(jax.random.key(0)))

  def _new(self, key):
    return MODULES[self.config.name](self.config, self.num_classes, rngs=nnx.Rngs(key))


def build(config: ConfigDict, num_classes: int) -> Network:
  """Returns the network of a config's `model` part, without allocating memory.

  Raises:
    UsageError: if the fields do not describe a network, or the image is too small for the layers.
  """
  checks.require_one_of(config, 'name', MODULES)
  checks.require_one_of(config, 'dtype', DTYPES)
  CHECKS[config.name](config)
  network = Network(FrozenConfigDict(config.copy_and_resolve_references()), num_classes)
  _ = network.layer_names  # declares the layers, which checks the size of the image
  return network


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
