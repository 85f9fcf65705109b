"""One step of training and one of evaluation. Needs jax, flax and optax only."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax import optimizer, towers
from alexnet_jax.augment import View
from alexnet_jax.network import Network

if TYPE_CHECKING:
  from ml_collections import ConfigDict


class TrainState(NamedTuple):
  """All that a step changes.

  Attributes:
    params: {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}, float32.
    opt_state: the velocities, of the same shapes.
    step: steps taken so far, int32.
  """

  params: dict
  opt_state: optax.OptState
  step: jax.Array


class Hyperparameters(NamedTuple):
  """The constants of the update rule (section 5), as `optimizer.momentum_sgd` takes them."""

  momentum: float
  weight_decay: float
  bias_decay: bool
  layer_decay: tuple[tuple[str, float], ...] = ()  # hashable, since jit is told

  def rule(self, rates: dict) -> optax.GradientTransformation:
    """Makes the update rule for the rates of a step."""
    return optimizer.momentum_sgd(rates, **self._replace(layer_decay=dict(self.layer_decay))._asdict())


def hyperparameters(config: ConfigDict) -> Hyperparameters:
  """Takes them out of the `optimizer` part of a config."""
  factors = tuple((name, factor) for name, factor in config.layer_decay.items() if factor != 1)
  return Hyperparameters(config.momentum, config.weight_decay, config.bias_decay, factors)


@functools.partial(jax.jit, static_argnames=('network', 'hyper'))
def init_state(key: jax.Array, *, network: Network, hyper: Hyperparameters) -> TrainState:
  """Draws the initial parameters; velocities and step are zero. The same for any mesh."""
  params = network.init(key)
  opt_state = hyper.rule({}).init(params)
  return TrainState(params, opt_state, jnp.zeros((), jnp.int32))


def abstract_state(network: Network, hyper: Hyperparameters) -> TrainState:
  """Returns the shapes, dtypes and partition specs of a state, without making one."""
  return jax.eval_shape(lambda key: init_state(key, network=network, hyper=hyper), jax.random.key(0))


# XLA's own kernels for the products of the fully-connected layers are no faster on a GPU than cuBLAS', and take it two
# seconds to choose.
@functools.partial(
  jax.jit,
  static_argnames=('network', 'hyper'),
  donate_argnames='state',
  compiler_options={'xla_gpu_enable_triton_gemm': False},
)
def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  mean_image: jax.Array,
  rates: dict,
  key: jax.Array,
  *,
  network: Network,
  hyper: Hyperparameters,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step of stochastic gradient descent on the mean log-probability of the labels (section 5).

  Args:
    state: where training stands; its buffers are reused.
    batch: 'image' [batch, height, width, rgb] uint8, crops; 'mirrored' [batch] bool, which of them to mirror;
      'mean_offset' [batch, 2] int32 and 'mean_mirrored' [batch] bool, which part of the mean image to subtract from
      each; 'colour' [batch, rgb] float32, the colour shift; 'scale' [batch] float32, what to multiply the shifted image
      by; 'label' [batch] int32.
    mean_image: [stored height, stored width, rgb] float32, 0-255.
    rates: learning rates, float32 scalars in the structure of the parameters.
    key: of the run; each step folds its number into it.
    network: what to train.
    hyper: constants of the update rule.

  Returns:
    The new state, and the metrics of this batch before the update: 'loss' in nats, 'error' in percent.
  """

  def loss(params):
    images = subtract_mean(batch['image'], batch['mirrored'], mean_image, batch['mean_offset'], batch['mean_mirrored'])
    images = (images + batch['colour'][:, None, None, :]) * batch['scale'][:, None, None, None]
    logits = network.apply(params, images, jax.random.fold_in(key, state.step))
    return -jnp.mean(label_log_prob(jax.nn.log_softmax(logits), batch['label'])), logits

  (nats, logits), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
  rule = hyper.rule(rates)
  updates, opt_state = rule.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  error = 100 * jnp.mean(1 - top_k_credit(logits, batch['label'], 1))
  return TrainState(params, opt_state, state.step + 1), {'loss': nats, 'error': error}


@functools.partial(jax.jit, static_argnames=('network', 'image_size'))
def log_probs(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  view: View,
  mean_view: View,
  *,
  network: Network,
  image_size: int,
) -> jax.Array:
  """Looks at one view of every image, as at test time.

  Args:
    params: of the network.
    images: stored images [batch, height, width, rgb] uint8.
    mean_image: [height, width, rgb] float32.
    view: which patch of the images to look at.
    mean_view: which patch of the mean image to subtract from it.
    network: whose parameters these are.
    image_size: side of the view in pixels.

  Returns:
    Log-probabilities [batch, class] float32, nats.
  """
  return jax.nn.log_softmax(network.apply(params, _centred(images, mean_image, view, mean_view, image_size)))


@functools.partial(jax.jit, static_argnames=('network', 'image_size', 'stage'))
def activations(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  view: View,
  mean_view: View,
  *,
  network: Network,
  image_size: int,
  stage: str,
) -> jax.Array:
  """Computes what one stage of the network says of a view of every image; the arguments are those of `log_probs`.

  Returns:
    [batch, height, width, channel] or [batch, unit] float32, see `network.Network`.
  """
  return network.activations(params, _centred(images, mean_image, view, mean_view, image_size))[stage]


@functools.partial(jax.jit, static_argnames=('network', 'image_size'))
def saliency(
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  view: View,
  mean_view: View,
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

  return jax.grad(top_log_prob)(_centred(images, mean_image, view, mean_view, image_size))


def _centred(images, mean_image, view, mean_view, image_size):
  return look(images.astype(jnp.float32), view, image_size) - look(mean_image, mean_view, image_size)


def look(image: jax.Array, view: View, size: int) -> jax.Array:
  """Cuts a view out of images: [..., height, width, rgb] -> [..., size, size, rgb]."""
  # In one piece: of two, XLA 0.10.2 makes one whose name may be that of another in the same program, and then fails.
  *batch, _, _, rgb = image.shape
  x = lax.dynamic_slice(image, (*(0 for _ in batch), view.top, view.left, 0), (*batch, size, size, rgb))
  return jnp.where(view.mirrored, x[..., ::-1, :], x)


def subtract_mean(
  crops: jax.Array, mirrored: jax.Array, mean_image: jax.Array, mean_offset: jax.Array, mean_mirrored: jax.Array
) -> jax.Array:
  """Mirrors crops and subtracts from each its part of the mean image.

  Args:
    crops: [batch, height, width, rgb] uint8.
    mirrored: [batch] bool, whether to mirror a crop left to right.
    mean_image: [stored height, stored width, rgb] float32.
    mean_offset: [batch, 2] int32, first row and column of a crop's part of the mean image.
    mean_mirrored: [batch] bool, whether to mirror that part.

  Returns:
    [batch, height, width, rgb] float32.
  """
  batch = towers.BATCH

  @jax.shard_map(in_specs=(batch, batch, jax.P(), batch, batch), out_specs=batch)
  def on_device(crops, mirrored, mean_image, mean_offset, mean_mirrored):
    def one(crop, mirrored, mean_offset, mean_mirrored):
      mean = lax.dynamic_slice(mean_image, (mean_offset[0], mean_offset[1], 0), crop.shape)
      crop, mean = jnp.where(mirrored, crop[:, ::-1], crop), jnp.where(mean_mirrored, mean[:, ::-1], mean)
      return crop.astype(jnp.float32) - mean

    return jax.vmap(one)(crops, mirrored, mean_offset, mean_mirrored)

  return on_device(crops, mirrored, mean_image, mean_offset, mean_mirrored)


def label_log_prob(log_probs: jax.Array, label: jax.Array) -> jax.Array:
  """Picks each label's log-probability: [batch, class] and [batch] -> [batch]."""
  return jnp.sum(log_probs, axis=-1, where=_is(label, log_probs))


def top_k_credit(scores: jax.Array, label: jax.Array, k: int) -> jax.Array:
  """Says how far each label is among the k best-scored classes.

  Classes that tie for the last places share them, as in the 2012 code (facts, section 2), so that a network which
  says the same of every class is right in k of all classes and not always.

  Args:
    scores: [batch, class].
    label: [batch] int32.
    k: places.

  Returns:
    [batch] float32, 1 for in, 0 for out, between for a shared place; 0 where a score is no number.
  """
  own = jnp.sum(scores, axis=-1, where=_is(label, scores), keepdims=True)
  better = jnp.sum(scores > own, axis=-1)
  tied = jnp.sum(scores == own, axis=-1)
  return jnp.where(tied > 0, jnp.clip((k - better) / jnp.maximum(tied, 1), 0.0, 1.0), 0.0)


def _is(label, scores):
  """A mask [batch, class], true at each label."""
  return label[:, None] == lax.iota(jnp.int32, scores.shape[-1])
