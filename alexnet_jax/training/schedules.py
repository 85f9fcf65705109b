"""Schedules, which decide when the learning rate decays."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def step_at(fraction: float, last_step: int) -> int:
  """Returns the step at a fraction (0 to 1) of a run of `last_step` steps."""
  return round(fraction * last_step)


@dataclasses.dataclass
class Plateau:
  """Decays the learning rate when the validation error stops improving, and ends the run after that (section 5).

  Attributes:
    max_decays: number of decays before the run ends, 3 in the paper.
    patience: number of evaluations without a new lowest error that trigger a decay.
    num_decays: number of decays so far.
    best_error: lowest validation error so far, percent.
    evaluations_since_best: number of evaluations since the lowest error or the last decay, whichever is later.
  """

  max_decays: int
  patience: int
  num_decays: int = 0
  best_error: float = float('inf')
  evaluations_since_best: int = 0

  def num_decays_at(self, step: int) -> int:
    """Returns the number of decays in effect after `step` steps, which must be the current step."""
    del step
    return self.num_decays

  def observe(self, error: float) -> None:
    """Updates the schedule with the validation error (percent) of one evaluation."""
    if error < self.best_error:
      self.best_error, self.evaluations_since_best = error, 0
    else:
      self.evaluations_since_best += 1
    if self.evaluations_since_best >= self.patience:
      self.num_decays, self.evaluations_since_best = self.num_decays + 1, 0

  @property
  def finished(self) -> bool:
    """Whether the validation error has plateaued at the lowest learning rate."""
    return self.num_decays > self.max_decays

  def state(self) -> dict[str, Any]:
    """Returns the state to save in a checkpoint; existing checkpoints fix the names."""
    return {
      'drops': self.num_decays,
      'best_error': self.best_error,
      'evaluations_since_best': self.evaluations_since_best,
    }

  def restore(self, state: dict[str, Any]) -> None:
    """Restores what `state` returned."""
    self.num_decays, self.best_error = state['drops'], state['best_error']
    self.evaluations_since_best = state['evaluations_since_best']


@dataclasses.dataclass
class Steps:
  """Decays the learning rate at fixed steps.

  Attributes:
    boundaries: the steps; each decay applies from its step on.
  """

  boundaries: tuple[int, ...]
  finished = False

  def num_decays_at(self, step: int) -> int:
    """Returns the number of decays in effect after `step` steps."""
    return sum(step >= boundary for boundary in self.boundaries)

  def observe(self, error: float) -> None:
    """Ignores the validation error."""

  def state(self) -> dict[str, Any]:
    """Returns an empty state: the step determines the learning rate."""
    return {}

  def restore(self, state: dict[str, Any]) -> None:
    """Ignores the state."""


def make_schedule(config: ConfigDict, last_step: int) -> Plateau | Steps:
  """Creates the schedule of the `optimizer` part of a config.

  Args:
    config: the `optimizer` part, validated by `config_checks`.
    last_step: length of the run; `config.steps` are fractions of it.
  """
  if config.schedule == 'plateau':
    return Plateau(config.plateau_drops, config.plateau_patience)
  return Steps(tuple(step_at(fraction, last_step) for fraction in config.steps))
