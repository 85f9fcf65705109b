"""One step of training and one of evaluation. Needs jax, flax and optax only."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax.evaluation.metrics import label_log_prob, top_k_credit_on_device
from alexnet_jax.models import towers
from alexnet_jax.models.registry import Network
from alexnet_jax.training import optimizer

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
  error = 100 * jnp.mean(1 - top_k_credit_on_device(logits, batch['label'], 1))
  return TrainState(params, opt_state, state.step + 1), {'loss': nats, 'error': error}


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
