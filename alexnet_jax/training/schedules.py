"""Schedules."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def step_at(fraction: float, last_step: int) -> int:
  """Returns the step at a fraction of the run."""
  return round(fraction * last_step)


@dataclasses.dataclass
class Plateau:
  """Divides the rate when the validation error stops improving; after the last division, stops (section 5).

  Attributes:
    max_drops: divisions before the run ends, 3 in the paper.
    patience: evaluations without a new best error before a division.
    drops: divisions so far.
    best_error: lowest validation error so far, percent.
    evaluations_since_best: evaluations since then, or since the last division.
  """

  max_drops: int
  patience: int
  drops: int = 0
  best_error: float = float('inf')
  evaluations_since_best: int = 0

  def num_drops(self, step: int) -> int:
    """Returns how often the rate for the step to come has been divided."""
    del step
    return self.drops

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
    boundaries: steps from which one more division holds.
  """

  boundaries: tuple[int, ...]
  finished = False

  def num_drops(self, step: int) -> int:
    """Returns how often the rate for the step to come has been divided."""
    return sum(step >= boundary for boundary in self.boundaries)

  def observe(self, error: float) -> None:
    """Does nothing: this schedule was fixed beforehand."""

  def state(self) -> dict[str, float]:
    """Returns nothing: the step says it all."""
    return {}

  def restore(self, state: dict[str, float]) -> None:
    """Does nothing."""


def make_schedule(config: ConfigDict, last_step: int) -> Plateau | Steps:
  """Makes the schedule of a config's `optimizer` part.

  Args:
    config: the `optimizer` part of a config.
    last_step: steps of the whole run, of which `steps` gives fractions.

  Raises:
    UsageError: for an unknown `schedule`.
  """
  if config.schedule == 'plateau':
    return Plateau(config.plateau_drops, config.plateau_patience)
  if config.schedule == 'steps':
    return Steps(tuple(step_at(fraction, last_step) for fraction in config.steps))
  raise UsageError(f"optimizer.schedule='{config.schedule}' is unknown; choose 'plateau' or 'steps'.")
