"""What the networks have in common: a call that computes logits, and the outputs of all layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax.models import towers
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}  # in which layers compute
NONLINEARITIES = {'relu': jax.nn.relu, 'tanh': jnp.tanh}


class Classifier(nnx.Module):
  """A network that classifies images; a subclass declares its layers and yields their outputs.

  `logits = net(images)` computes the logits and `net.activations(images)` the outputs of all layers. Both run on the
  devices of the current mesh, or on the default device if no mesh is set. Neither changes the module, which stores no
  random state, so that both can be called in `jax.jit` as well.

  Attributes:
    LAYER_NAMES: names of all layers that networks of this class can have, in the order of the network.
    num_classes: number of classes.
    num_towers: length of the tower axis of the parameters.
    pools: names of the pooling layers.
  """

  LAYER_NAMES: tuple[str, ...] = ()
  pools: tuple[str, ...]

  def __init__(self, config: ConfigDict, num_classes: int):
    """Sets what does not depend on the layers; the arguments are those of `alexnet.AlexNet`."""
    self.num_classes, self.num_towers, self.image_size = num_classes, config.num_towers, config.image_size
    self.dtype = DTYPES[config.dtype]

  def outputs(self, x: jax.Array, dropout_key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
    """Runs the forward pass and yields `(layer name, output)` for every layer; see the subclasses."""
    raise NotImplementedError

  def __call__(self, images: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Computes the logits of images.

    Args:
      images: [batch, height, width, rgb], crops of `model.image_size` pixels, 0-255 minus the mean image.
      dropout_key: of the dropout masks in training. Without a key all units are active and, in a network with dropout,
        their outputs are halved (section 4.2).

    Returns:
      [batch, class] float32.

    Raises:
      UsageError: if the images have another shape.
    """
    *_, (_, x) = self.outputs(self._inputs(images), dropout_key)
    return self._logits(x)

  def activations(self, images: jax.Array) -> dict[str, jax.Array]:
    """Computes the outputs of all layers at test time, for the images that `__call__` takes.

    Returns:
      The outputs by layer name, float32, in the order of the network, with the channels of the first tower first, as
      {'conv1': [batch, height, width, channel], 'pool1': ..., 'fc7': [batch, unit], ..., 'fc8': logits}. Those of fc6
      and fc7 are not halved by dropout.

    Raises:
      UsageError: if the images have another shape.
    """
    outputs = dict(self.outputs(self._inputs(images)))
    *hidden, last = self.layer_names
    joined = {name: towers.gather(outputs[name]).astype(jnp.float32) for name in hidden}
    return joined | {last: self._logits(outputs[last])}

  @property
  def layer_names(self) -> tuple[str, ...]:
    """Names of the network's layers, in the order of the network."""
    return tuple(name for name in self.LAYER_NAMES if hasattr(self, name) or name in self.pools)

  def _inputs(self, images):
    size = self.image_size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
      raise UsageError(f'images have the shape {images.shape}; the network reads [batch, {size}, {size}, 3].')
    return jnp.asarray(images, self.dtype)

  def _logits(self, x):
    # Without the last units if the number of towers does not divide the number of classes.
    return towers.gather(x)[:, : self.num_classes].astype(jnp.float32)
