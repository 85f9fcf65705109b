"""The update rule of section 5, and the schedules that set its rate."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def momentum_sgd(rate: jax.Array | float, momentum: float, weight_decay: float) -> optax.GradientTransformation:
  """The two equations of section 5.

      v <- momentum * v - weight_decay * rate * w - rate * gradient
      w <- w + v

  The rate is inside the velocity, so when it drops, what was gathered at the old rate goes on; `optax.sgd` scales the
  whole velocity by the new rate instead. A rate of 0 means no update at all: neither v nor w changes by a bit.

  Paper: 'weight decay' is said of w, all that is learned; so biases decay, too. The 2012 code spared them (facts, 1.5).

  Args:
    rate: learning rate, epsilon in the paper; may be traced.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.

  Returns:
    A transformation whose state is the velocity v. Add its updates to the weights with `optax.apply_updates`.
  """
  rule = optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(rate),
    optax.trace(momentum),
  )

  def update(gradients, state, params):
    updates, new_state = rule.update(gradients, state, params)
    moves = jnp.asarray(rate) != 0
    updates = jax.tree.map(lambda u: jnp.where(moves, u, 0), updates)
    new_state = jax.tree.map(lambda new, old: jnp.where(moves, new, old), new_state, state)
    return updates, new_state

  return optax.GradientTransformation(rule.init, update)


@dataclasses.dataclass
class Plateau:
  """Divides the rate when the validation error stops improving; after the last division, stops (section 5).

  Attributes:
    base_rate: initial rate.
    factor: what the rate is divided by, 10 in the paper.
    max_drops: divisions before the run ends, 3 in the paper.
    patience: evaluations without a new best error before a division.
    drops: divisions so far.
    best_error: lowest validation error so far, percent.
    evaluations_since_best: evaluations since then, or since the last division.
  """

  base_rate: float
  factor: float
  max_drops: int
  patience: int
  drops: int = 0
  best_error: float = float('inf')
  evaluations_since_best: int = 0

  def rate(self, step: int) -> float:
    """Returns the rate for the step to come."""
    del step
    return self.base_rate / self.factor**self.drops

  def observe(self, error: float) -> None:
    """Takes in the validation error (percent) of one evaluation."""
    if error < self.best_error:
      self.best_error, self.evaluations_since_best = error, 0
    else:
      self.evaluations_since_best += 1
    if self.evaluations_since_best >= self.patience:
      self.drops, self.evaluations_since_best = self.drops + 1, 0

  @property
  def finished(self) -> bool:
    """True when the error stopped improving at the lowest rate."""
    return self.drops > self.max_drops

  def state(self) -> dict[str, float]:
    """Returns what a checkpoint must keep."""
    return {name: getattr(self, name) for name in ('drops', 'best_error', 'evaluations_since_best')}

  def restore(self, state: dict[str, float]) -> None:
    """Goes on from a kept state."""
    for name, value in state.items():
      setattr(self, name, value)


@dataclasses.dataclass
class Steps:
  """Divides the rate at given steps.

  Attributes:
    base_rate: initial rate.
    factor: what the rate is divided by.
    boundaries: steps from which one more division holds.
  """

  base_rate: float
  factor: float
  boundaries: tuple[int, ...]
  finished = False

  def rate(self, step: int) -> float:
    """Returns the rate for the step to come."""
    return self.base_rate / self.factor ** sum(step >= boundary for boundary in self.boundaries)

  def observe(self, error: float) -> None:
    """Does nothing: this schedule was fixed beforehand."""

  def state(self) -> dict[str, float]:
    """Returns nothing: the step says it all."""
    return {}

  def restore(self, state: dict[str, float]) -> None:
    """Does nothing."""


def make_schedule(config: ConfigDict, steps_per_epoch: float) -> Plateau | Steps:
  """Makes the schedule of a config's `optimizer` part.

  Raises:
    UsageError: for an unknown `schedule`.
  """
  if config.schedule == 'plateau':
    return Plateau(config.rate, config.rate_factor, config.plateau_drops, config.plateau_patience)
  if config.schedule == 'steps':
    boundaries = tuple(round(epoch * steps_per_epoch) for epoch in config.step_epochs)
    return Steps(config.rate, config.rate_factor, boundaries)
  raise UsageError(f"optimizer.schedule='{config.schedule}' is unknown; choose 'plateau' or 'steps'.")
