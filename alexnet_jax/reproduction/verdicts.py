"""Verdicts on the claims: effects with confidence intervals over seeds, tests with Holm's correction, and rules.

A claim has one primary metric, see `claims.py`.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import scipy.stats

from alexnet_jax.reproduction.records import Record

REPRODUCED, OTHER_SIZE = 'reproduced', 'same direction, other size'
INCONCLUSIVE, CONTRADICTED = 'inconclusive', 'contradicted'
SIGNIFICANCE_LEVEL = 0.05  # of the tests after Holm's correction; confidence intervals are of 95 %
# Errors are multiples of 0.01 %, so the effects of several seeds can be equal; their variation is then unknown.
MIN_STDEV = 1e-9
MAX_FACTOR = 2  # an effect of half to twice the paper's counts as the same size

# {condition: [record of each seed]}; the records of trials, see `experiments.trial_name`, are lists of one.
Records = Mapping[str, Sequence[Record]]


class Metric(NamedTuple):
  """A number of a finished training.

  Attributes:
    name: name with the crop set, for the reader.
    value: function that computes it from a record; infinite epochs if the run does not reach an error.
    unit: '%', 'points' (percentage points, of a metric that is a difference) or 'epochs'. Epochs are compared by their
      ratio, the others by their difference.
  """

  name: str
  value: Callable[[Record], float]
  unit: str = '%'


class Comparison(NamedTuple):
  """The test of a claim.

  Attributes:
    metric: the primary metric.
    higher: conditions in which the metric should be higher; their mean is used.
    lower: condition in which it should be lower; empty if the metric itself is the effect, or `accepted` is given.
    paper: the paper's effect, points or ratio; None if the paper gives no number.
    is_minimum: whether the paper's effect is a lower bound.
    accepted: for a claim that is not a difference, the values of the metric that agree with the claim.
    can_contradict: whether values outside of `accepted` contradict the claim; not if the trainings are shorter than the
      paper's.
  """

  metric: Metric
  higher: tuple[str, ...]
  lower: str = ''
  paper: float | None = None
  is_minimum: bool = False
  accepted: tuple[float, float] | None = None
  can_contradict: bool = True

  @property
  def unit(self) -> str:
    """Unit of the effect: 'times', 'points' or '%'."""
    if self.metric.unit == 'epochs':
      return 'times'
    return 'points' if self.lower else self.metric.unit

  def null_value(self, mean: float) -> float:
    """Returns the mean that the test presumes: no effect, or the limit of `accepted` nearest to the mean."""
    return min(self.accepted or (0.0,), key=lambda limit: abs(mean - limit))


class Estimate(NamedTuple):
  """The measured effect of a claim.

  Attributes:
    value: mean difference in points, geometric mean of ratios, or mean of the metric.
    interval: 95 % confidence interval; None if there is one seed, or the effects of all seeds are equal.
    p_value: two-sided p-value of no effect, or of the nearest limit of the accepted values; None without an interval.
    num_seeds: number of seeds that all compared conditions have.
  """

  value: float
  interval: tuple[float, float] | None
  p_value: float | None
  num_seeds: int


class Finding(NamedTuple):
  """The verdict on a claim.

  Attributes:
    estimate: the measured effect; None if a run of the lower condition does not reach the error.
    adjusted_p: p-value after Holm's correction; None without an interval.
    verdict: `REPRODUCED`, `OTHER_SIZE`, `INCONCLUSIVE` or `CONTRADICTED`.
  """

  estimate: Estimate | None
  adjusted_p: float | None
  verdict: str


# Numbers of one record.


def error(record: Record, crop_set: str) -> float:
  """Returns the top-1 error on the test split in percent."""
  return record.results[crop_set]['top1_error']


def training_error(record: Record) -> float:
  """Returns the error of the finished network on the centre crops of its training images, without dropout, percent."""
  return record.measured['training_error']


# Statistics.


def holm(p_values: Sequence[float], num_tests: int) -> list[float]:
  """Returns p-values adjusted by Holm's step-down procedure, in the same order.

  Args:
    p_values: two-sided p-values.
    num_tests: number of tests to correct for; those without a p-value in the list count as 1.
  """
  adjusted, largest = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
    largest = max(largest, min(1.0, (num_tests - rank) * p_values[index]))
    adjusted[index] = largest
  return adjusted


def estimate(records: Records, comparison: Comparison) -> Estimate | None:
  """Estimates the effect of a claim from the seeds that all compared conditions have.

  Ratios are estimated by the differences of logarithms. A run of the higher side that does not reach the error counts
  with its full length.

  Args:
    records: records of the experiment; all conditions have seed 0.
    comparison: the test of the claim.

  Returns:
    The estimate; None if a run of the lower side does not reach the error and another run has its seed.
  """
  metric = comparison.metric
  effects = _by_seed(records, metric, comparison.higher)
  if comparison.lower:
    paired = [record for record in records[comparison.lower] if record.seed in effects]
    if not all(math.isfinite(metric.value(record)) for record in paired):
      return None
    lower = _by_seed({comparison.lower: paired}, metric, (comparison.lower,))
    effects = {seed: effects[seed] - lower[seed] for seed in lower}
  sample = list(effects.values())
  mean, interval, p_value = statistics.mean(sample), None, None
  if len(sample) > 1 and statistics.stdev(sample) > MIN_STDEV:
    test = scipy.stats.ttest_1samp(sample, comparison.null_value(mean))
    low, high = test.confidence_interval(1 - SIGNIFICANCE_LEVEL)
    interval, p_value = (float(low), float(high)), float(test.pvalue)
  if metric.unit == 'epochs':
    mean, interval = math.exp(mean), interval and (math.exp(interval[0]), math.exp(interval[1]))
  return Estimate(mean, interval, p_value, len(sample))


def _by_seed(records, metric, names):
  """Returns the mean of a metric, or of its logarithm, over conditions, by the seeds that all of them have."""

  def value(record):
    measured = metric.value(record)
    return math.log(min(measured, record.num_epochs)) if metric.unit == 'epochs' else measured

  sides = [{record.seed: value(record) for record in records[name]} for name in names]
  seeds = set.intersection(*map(set, sides))
  return {seed: statistics.mean(side[seed] for side in sides) for seed in sorted(seeds)}


def judge(comparison: Comparison, measured: Estimate | None, adjusted_p: float | None) -> str:
  """Returns the verdict on a claim; see `report.RULES`.

  Args:
    comparison: the test of the claim.
    measured: the measured effect.
    adjusted_p: its p-value after Holm's correction; None without an interval.
  """
  if measured is None or adjusted_p is None or adjusted_p > SIGNIFICANCE_LEVEL:
    return INCONCLUSIVE
  if comparison.accepted:
    low, high = comparison.accepted
    if low <= measured.value <= high:
      return REPRODUCED
    return CONTRADICTED if comparison.can_contradict else INCONCLUSIVE
  no_effect = 1.0 if comparison.unit == 'times' else 0.0
  if measured.value < no_effect:
    return CONTRADICTED
  if comparison.paper is None:
    return REPRODUCED
  relative_effect = (measured.value - no_effect) / (comparison.paper - no_effect)
  if comparison.is_minimum:
    relative_effect = min(relative_effect, 1.0)
  return REPRODUCED if 1 / MAX_FACTOR <= relative_effect <= MAX_FACTOR else OTHER_SIZE


def judge_all(tests: Mapping[str, tuple[Records, Comparison]], num_claims: int) -> dict[str, Finding]:
  """Returns the findings of the claims that are tested, whose p-values are corrected together.

  Args:
    tests: {experiment: (its records, its comparison)}.
    num_claims: number of claims to correct for, including those that are not tested yet.
  """
  estimates = {name: estimate(*test) for name, test in tests.items()}
  p_values = {name: made.p_value for name, made in estimates.items() if made and made.p_value is not None}
  adjusted = dict(zip(p_values, holm(list(p_values.values()), num_claims), strict=True))
  return {
    name: Finding(made, adjusted.get(name), judge(tests[name][1], made, adjusted.get(name)))
    for name, made in estimates.items()
  }


def format_estimate(measured: Estimate | None, comparison: Comparison) -> str:
  """Formats an effect with its interval: '+1.95 points [-4.02, 7.92]'."""
  if measured is None:
    return f'{comparison.lower} does not reach the error'
  sign = '+' if comparison.unit == 'points' and not comparison.accepted else ''
  text = f'{measured.value:{sign}.2f} {comparison.unit}'
  if measured.interval:
    text += f' [{measured.interval[0]:.2f}, {measured.interval[1]:.2f}]'
  return text
