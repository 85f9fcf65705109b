"""Inference."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.data.transforms import Crop
from alexnet_jax.evaluation.metrics import label_log_prob
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
  """Looks at one view of every image, as at test time.

  Args:
    params: of the network.
    images: stored images [batch, height, width, rgb] uint8.
    mean_image: [height, width, rgb] float32.
    crop: which patch of the images to look at.
    mean_crop: which patch of the mean image to subtract from it.
    network: whose parameters these are.
    image_size: side of the view in pixels.

  Returns:
    Log-probabilities [batch, class] float32, nats.
  """
  return jax.nn.log_softmax(network.apply(params, _centred(images, mean_image, crop, mean_crop, image_size)))


@functools.partial(jax.jit, static_argnames=('network', 'image_size', 'layer'))
def activations(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  crop: Crop,
  mean_crop: Crop,
  *,
  network: Network,
  image_size: int,
  layer: str,
) -> jax.Array:
  """Computes what one stage of the network says of a view of every image; the arguments are those of `log_probs`.

  Returns:
    [batch, height, width, channel] or [batch, unit] float32, see `network.Network`.
  """
  return network.activations(params, _centred(images, mean_image, crop, mean_crop, image_size))[layer]


@functools.partial(jax.jit, static_argnames=('network', 'image_size'))
def saliency(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  crop: Crop,
  mean_crop: Crop,
  *,
  network: Network,
  image_size: int,
) -> jax.Array:
  """Computes how the log-probability of each image's top class changes with each of the pixels in a view.

  The arguments are those of `log_probs`.

  Returns:
    [batch, height, width, rgb] float32, nats for a grey level, in the places of the view.
  """

  def top_log_prob(x):
    scores = jax.nn.log_softmax(network.apply(params, x))
    return jnp.sum(label_log_prob(scores, jnp.argmax(scores, axis=-1)))

  return jax.grad(top_log_prob)(_centred(images, mean_image, crop, mean_crop, image_size))


def _centred(images, mean_image, crop, mean_crop, image_size):
  return cut(images.astype(jnp.float32), crop, image_size) - cut(mean_image, mean_crop, image_size)


def cut(image: jax.Array, crop: Crop, size: int) -> jax.Array:
  """Cuts a view out of images: [..., height, width, rgb] -> [..., size, size, rgb]."""
  # In one piece: of two, XLA 0.10.2 makes one whose name may be that of another in the same program, and then fails.
  *batch, _, _, rgb = image.shape
  x = lax.dynamic_slice(image, (*(0 for _ in batch), crop.top, crop.left, 0), (*batch, size, size, rgb))
  return jnp.where(crop.mirrored, x[..., ::-1, :], x)
