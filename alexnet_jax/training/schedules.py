"""Learning rate schedules of one group of parameters, as Optax schedules whose state is part of the optimizer state."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Factors = tuple[tuple[int, float], ...]  # ((first step, factor of the learning rate from that step on), ...)
CONSTANT: Factors = ((0, 1.0),)


def step_at(fraction: float, last_step: int) -> int:
  """Returns the step at a fraction (0 to 1) of a run of `last_step` steps."""
  return round(fraction * last_step)


@dataclasses.dataclass(frozen=True)
class Steps:
  """Decays the learning rate at fixed steps; an `optax.Schedule`, which maps the number of steps taken to its value.

  Attributes:
    initial: initial learning rate.
    decay_factor: divisor of one decay.
    boundaries: the steps; each decay applies from its step on.
    factors: further factors of the learning rate, by step.
  """

  initial: float
  decay_factor: float
  boundaries: tuple[int, ...] = ()
  factors: Factors = CONSTANT

  def __call__(self, count: jax.Array) -> jax.Array:
    """Returns the learning rate of the next step after `count` steps."""
    num_decays = collections.Counter(self.boundaries)  # two decays may have the same step in a short run
    scales = {boundary: self.decay_factor**-num for boundary, num in num_decays.items()}
    return optax.piecewise_constant_schedule(self.initial, scales)(count) * factor_at(self.factors, count)


class PlateauState(NamedTuple):
  """The state of a plateau schedule.

  Attributes:
    num_steps: number of steps taken, int32.
    num_decays: number of decays so far, int32.
    best_error: lowest validation error so far, percent, float32.
    evaluations_since_best: number of evaluations since the lowest error or the last decay, whichever is later, int32.
  """

  num_steps: jax.Array
  num_decays: jax.Array
  best_error: jax.Array
  evaluations_since_best: jax.Array


@dataclasses.dataclass(frozen=True)
class Plateau:
  """Decays the learning rate when the validation error stops improving (section 5); an `optax.StatefulSchedule`.

  Steps do not decay the learning rate; `observe` does, after an evaluation.

  Attributes:
    initial: initial learning rate.
    decay_factor: divisor of one decay.
    max_decays: number of decays that apply.
    factors: further factors of the learning rate, by step.
  """

  initial: float
  decay_factor: float
  max_decays: int
  factors: Factors = CONSTANT

  def init(self) -> PlateauState:
    """Returns the state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    best_error = jnp.full((), jnp.inf, jnp.float32)
    return PlateauState(num_steps=zero, num_decays=zero, best_error=best_error, evaluations_since_best=zero)

  def update(self, state: PlateauState, **_: Any) -> PlateauState:
    """Counts a step."""
    return state._replace(num_steps=state.num_steps + 1)

  def __call__(self, state: PlateauState, **_: Any) -> jax.Array:
    """Returns the learning rate of the next step."""
    learning_rates = [self.initial / self.decay_factor**num for num in range(self.max_decays + 1)]
    decayed = jnp.array(learning_rates, jnp.float32)[jnp.minimum(state.num_decays, self.max_decays)]
    return decayed * factor_at(self.factors, state.num_steps)


def factor_at(factors: Factors, count: jax.Array) -> jax.Array | float:
  """Returns the factor of the learning rate after `count` steps."""
  boundaries, values = zip(*factors, strict=True)
  return optax.join_schedules([optax.constant_schedule(value) for value in values], boundaries[1:])(count)


def observe(opt_state: optax.OptState, error: float, patience: int) -> optax.OptState:
  """Updates the plateau schedules in an optimizer state with the validation error of one evaluation.

  Args:
    opt_state: state of an optimizer; without plateau schedules it is returned unchanged.
    error: validation error, percent.
    patience: number of evaluations without a new lowest error that trigger a decay.
  """

  def update(node):
    return _observe(node, error, patience) if _is_plateau(node) else node

  return jax.tree.map(update, opt_state, is_leaf=_is_plateau)


@jax.jit
def _observe(state: PlateauState, error: float, patience: int) -> PlateauState:
  has_improved = error < state.best_error
  num_evaluations = jnp.where(has_improved, 0, state.evaluations_since_best + 1)
  decays = num_evaluations >= patience
  return PlateauState(
    state.num_steps,
    state.num_decays + decays,
    jnp.where(has_improved, error, state.best_error).astype(jnp.float32),
    jnp.where(decays, 0, num_evaluations),
  )


def has_ended(opt_state: optax.OptState, max_decays: int) -> bool:
  """Returns whether the validation error has plateaued at the lowest learning rate, which ends a run (section 5).

  Args:
    opt_state: state of an optimizer; False without plateau schedules.
    max_decays: number of decays before the run ends, 3 in the paper.
  """
  plateaus = filter(_is_plateau, jax.tree.leaves(opt_state, is_leaf=_is_plateau))
  return any(int(plateau.num_decays) > max_decays for plateau in plateaus)


def _is_plateau(node: Any) -> bool:
  return isinstance(node, PlateauState)
