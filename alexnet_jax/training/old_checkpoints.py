"""Reads training states that were saved before the learning rate schedule was part of the optimizer state.

Such a checkpoint has the velocities of all parameters in one tree, `opt_state[2].trace`, and the schedule in its JSON
object, `{'schedule': {'drops': ..., 'best_error': ..., 'evaluations_since_best': ...}}`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.training.optimizer import Optimizer
from alexnet_jax.training.schedules import PlateauState
from alexnet_jax.training.step import TrainState


def layout(abstract_state: TrainState, saved: dict) -> TrainState:
  """Returns the shapes of the state in a checkpoint, given those of a current state and the saved JSON object."""
  if 'schedule' not in saved:
    return abstract_state
  velocities = optax.TraceState(abstract_state.params)
  return abstract_state._replace(opt_state=(optax.EmptyState(), optax.EmptyState(), velocities))


def convert(state: TrainState, saved: dict, optimizer: Optimizer) -> TrainState:
  """Returns the current form of a state that was restored with `layout`."""
  if 'schedule' not in saved:
    return state

  @jax.jit
  def make_opt_state(state):
    def set_state(node):
      if isinstance(node, optax.TraceState):  # of one group
        return optax.TraceState(_select(node.trace, state.opt_state[2].trace))
      if isinstance(node, PlateauState):
        return _plateau_state(state.step, saved['schedule'])
      return state.step if node.dtype == jnp.int32 else node  # counters of steps, and learning rates

    opt_state = optimizer.transformation().init(state.params)
    return jax.tree.map(set_state, opt_state, is_leaf=lambda x: isinstance(x, optax.TraceState | PlateauState))

  return state._replace(opt_state=make_opt_state(state))


def _select(masked: Any, tree: Any) -> Any:
  """Masks a tree like another one."""

  def is_masked(node):
    return isinstance(node, optax.MaskedNode)

  return jax.tree.map(lambda node, x: node if is_masked(node) else x, masked, tree, is_leaf=is_masked)


def _plateau_state(num_steps: jax.Array, schedule: dict) -> PlateauState:
  return PlateauState(
    num_steps,
    jnp.asarray(schedule['drops'], jnp.int32),
    jnp.asarray(schedule['best_error'], jnp.float32),
    jnp.asarray(schedule['evaluations_since_best'], jnp.int32),
  )
