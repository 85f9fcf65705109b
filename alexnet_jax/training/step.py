"""The training state and one training step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from alexnet_jax.evaluation.metrics import label_log_prob, top_k_credit_on_device
from alexnet_jax.models import towers
from alexnet_jax.models.registry import Network
from alexnet_jax.training.optimizer import Optimizer, learning_rates

# On a CPU, XLA otherwise orders operations so that several can run at once. Every large one uses all cores by itself.
LESS_MEMORY = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}


class TrainState(NamedTuple):
  """What a training step updates.

  Attributes:
    params: {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}, float32.
    opt_state: state of the optimizer: velocities, learning rates, and the state of their schedule.
    step: number of steps taken so far, int32.
  """

  params: dict
  opt_state: optax.OptState
  step: jax.Array


@functools.partial(jax.jit, static_argnames=('network', 'optimizer'), compiler_options=LESS_MEMORY)
def init_state(key: jax.Array, *, network: Network, optimizer: Optimizer) -> TrainState:
  """Draws the initial parameters and sets velocities and step to zero; the result is the same on every mesh."""
  params = network.init(key)
  opt_state = optimizer.transformation().init(params)
  return TrainState(params, opt_state, jnp.zeros((), jnp.int32))


def abstract_state(network: Network, optimizer: Optimizer) -> TrainState:
  """Returns the shapes, dtypes and partition specs of a state without allocating it."""
  return init_state.eval_shape(jax.random.key(0), network=network, optimizer=optimizer)


# On a GPU, XLA's own kernels for the fully-connected layers are no faster than those of cuBLAS, and choosing them takes
# two seconds.
@functools.partial(
  jax.jit,
  static_argnames=('network', 'optimizer'),
  donate_argnames='state',
  compiler_options=LESS_MEMORY | {'xla_gpu_enable_triton_gemm': False},
)
def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  mean_image: jax.Array,
  key: jax.Array,
  *,
  network: Network,
  optimizer: Optimizer,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step of stochastic gradient descent on the mean negative log-probability of the labels (section 5).

  Args:
    state: the training state, which is donated: its buffers are reused.
    batch: a dict of:
      'image': [batch, height, width, rgb] uint8, crops.
      'mirrored': [batch] bool, whether to mirror a crop left to right.
      'mean_offset': [batch, 2] int32, first row and column of the crop of the mean image to subtract.
      'mean_mirrored': [batch] bool, whether to mirror that crop of the mean image.
      'colour': [batch, rgb] float32, colour shift in grey levels.
      'scale': [batch] float32, factor applied to the shifted image.
      'label': [batch] int32.
    mean_image: [stored height, stored width, rgb] float32, 0-255.
    key: key of the run; every step folds its number into it.
    network: the network to train.
    optimizer: the update rule with its learning rates.

  Returns:
    The new state, and metrics: 'loss' in nats and 'error' in percent of the batch before the update, and the
    'learning_rates' of the update by group of parameters.
  """

  def loss(params):
    images = subtract_mean(batch['image'], batch['mirrored'], mean_image, batch['mean_offset'], batch['mean_mirrored'])
    images = (images + batch['colour'][:, None, None, :]) * batch['scale'][:, None, None, None]
    logits = network.apply(params, images, jax.random.fold_in(key, state.step))
    return -jnp.mean(label_log_prob(jax.nn.log_softmax(logits), batch['label'])), logits

  (nats, logits), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
  updates, opt_state = optimizer.transformation().update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  error = 100 * jnp.mean(1 - top_k_credit_on_device(logits, batch['label'], 1))
  metrics = {'loss': nats, 'error': error, 'learning_rates': learning_rates(opt_state)}
  return TrainState(params, opt_state, state.step + 1), metrics


def subtract_mean(
  crops: jax.Array, mirrored: jax.Array, mean_image: jax.Array, mean_offset: jax.Array, mean_mirrored: jax.Array
) -> jax.Array:
  """Mirrors the crops and subtracts from each its own crop of the mean image.

  Args:
    crops: [batch, height, width, rgb] uint8.
    mirrored: [batch] bool, whether to mirror a crop left to right.
    mean_image: [stored height, stored width, rgb] float32, 0-255.
    mean_offset: [batch, 2] int32, first row and column of the crop of the mean image.
    mean_mirrored: [batch] bool, whether to mirror the crop of the mean image.

  Returns:
    [batch, height, width, rgb] float32.
  """

  @jax.shard_map(in_specs=(towers.BATCH, towers.BATCH, jax.P(), towers.BATCH, towers.BATCH), out_specs=towers.BATCH)
  def on_device(crops, mirrored, mean_image, mean_offset, mean_mirrored):
    def subtract(crop, mirrored, mean_offset, mean_mirrored):
      mean = lax.dynamic_slice(mean_image, (mean_offset[0], mean_offset[1], 0), crop.shape)
      crop, mean = jnp.where(mirrored, crop[:, ::-1], crop), jnp.where(mean_mirrored, mean[:, ::-1], mean)
      return crop.astype(jnp.float32) - mean

    return jax.vmap(subtract)(crops, mirrored, mean_offset, mean_mirrored)

  return on_device(crops, mirrored, mean_image, mean_offset, mean_mirrored)
