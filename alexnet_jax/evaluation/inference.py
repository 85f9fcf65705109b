"""Jitted computations of a trained network on one crop of every image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.data.cropping import Crop
from alexnet_jax.models.registry import Network


@functools.partial(jax.jit, static_argnames=('network', 'image_size'))
def log_probs(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  crop: Crop,
  mean_crop: Crop,
  *,
  network: Network,
  image_size: int,
) -> jax.Array:
  """Computes the log-probabilities of all classes for a crop of every image.

  Args:
    params: parameters of the network.
    images: stored images [batch, height, width, rgb] uint8.
    mean_image: [height, width, rgb] float32, 0-255.
    crop: crop of the images.
    mean_crop: crop of the mean image, which is subtracted.
    network: the network.
    image_size: side of the crops, pixels.

  Returns:
    [batch, class] float32, nats.
  """
  return jax.nn.log_softmax(network.apply(params, _network_inputs(images, mean_image, crop, mean_crop, image_size)))


@functools.partial(jax.jit, static_argnames='network')
def arranged(params: dict, *, network: Network) -> dict:
  """Returns parameters for `log_probs` alone, see `Network.arrange_for_inference`."""
  return network.arrange_for_inference(params)


@functools.partial(jax.jit, static_argnames=('network', 'image_size', 'layers'))
def activations(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  crop: Crop,
  mean_crop: Crop,
  *,
  network: Network,
  image_size: int,
  layers: tuple[str, ...],
) -> tuple[jax.Array, ...]:
  """Computes the outputs of layers, such as 'fc7', for a crop of every image.

  The other arguments are those of `log_probs`.

  Returns:
    For each layer, [batch, height, width, channel] or [batch, unit] float32, see `registry.Network`.
  """
  outputs = network.activations(params, _network_inputs(images, mean_image, crop, mean_crop, image_size))
  return tuple(outputs[layer] for layer in layers)


def _network_inputs(images, mean_image, crop, mean_crop, image_size):
  return cut(images.astype(jnp.float32), crop, image_size) - cut(mean_image, mean_crop, image_size)


def cut(image: jax.Array, crop: Crop, size: int) -> jax.Array:
  """Cuts a crop out of images: [..., height, width, rgb] -> [..., size, size, rgb]."""
  # One slice over all axes: XLA 0.10.2 merges two slices into one, whose name may clash with another, and then fails.
  *batch, _, _, rgb = image.shape
  x = lax.dynamic_slice(image, (*(0 for _ in batch), crop.top, crop.left, 0), (*batch, size, size, rgb))
  return jnp.where(crop.mirrored, x[..., ::-1, :], x)
