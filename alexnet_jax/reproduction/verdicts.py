"""Verdicts on experiments: measured effects, compared with those of the paper.

The functions `compare_...` take the records of an experiment and the names of the conditions to compare.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from alexnet_jax.reproduction.records import Curve, Record, epochs_to_error

REPRODUCED, DIRECTION, NOT_REPRODUCED = 'reproduced', 'in direction only', 'not reproduced'
MAX_FACTOR = 2  # an effect of half to twice the paper's counts as the same size
TEN_CROP_GAIN = 1.5  # 39.0 to 37.5 %, top-1, in the footnote of table 1
# Difference between the towers' colour fractions in the published Caffe network (bvlc_alexnet), whose conv1 has 77 and
# 15 %, in percentage points; the paper has a figure and no number.
COLOUR_GAP = 62
MIN_RELATIVE_COLOUR_GAP = 0.1  # smaller differences, relative to `COLOUR_GAP`, count as noise

# {condition: [record of each seed]}; the records of trials, see `experiments.trial_name`, are lists of one.
Records = Mapping[str, Sequence[Record]]


class Finding(NamedTuple):
  """The result of an experiment.

  Attributes:
    measured: the measured numbers, as text.
    verdict: `REPRODUCED`, `DIRECTION` or `NOT_REPRODUCED`.
  """

  measured: str
  verdict: str


# Numbers of one record.


def error(record: Record, crop_set: str = '') -> float:
  """Returns the top-1 error on the test split in percent, by default of the largest crop set that was evaluated."""
  return record.results[crop_set or list(record.results)[-1]]['top1_error']


def training_error(record: Record) -> float:
  """Returns the error of the finished network on the centre crops of its training images, without dropout, percent."""
  return record.measured['training_error']


# Numbers of several records.


def format_mean_and_std(values: Sequence[float], num_digits: int = 2) -> str:
  """Formats values as their mean and standard deviation: '11.20 ± 0.15 (3 seeds)'."""
  if len(values) == 1:
    return f'{values[0]:.{num_digits}f} (1 seed)'
  return f'{statistics.mean(values):.{num_digits}f} ± {statistics.stdev(values):.{num_digits}f} ({len(values)} seeds)'


def are_separated(lower: Sequence[float], higher: Sequence[float], min_seeds: int = 2) -> bool:
  """Returns whether every lower value is below every higher one, and both have at least `min_seeds` values."""
  return min(len(lower), len(higher)) >= min_seeds and max(lower) < min(higher)


def judge(relative_effect: float, is_clear: bool) -> str:
  """Returns the verdict on an effect.

  Args:
    relative_effect: the effect divided by the paper's, see `relative_to_paper`.
    is_clear: whether the effect exceeds the spread of the seeds.
  """
  if relative_effect <= 0:
    return NOT_REPRODUCED
  return REPRODUCED if is_clear and 1 / MAX_FACTOR <= relative_effect <= MAX_FACTOR else DIRECTION


def relative_to_paper(effect: float, paper: float | None) -> float:
  """Returns an effect divided by the paper's; if the paper gives no number, 1 for a positive effect, else 0."""
  return float(effect > 0) if paper is None else effect / paper


# Conclusions.


def compare_errors(
  records: Records,
  base: str,
  *others: str,
  paper: float | None,
  at_least: bool = False,
  min_seeds: int = 2,
  in_training: bool = False,
) -> Finding:
  """Compares the error of a condition with that of others, which should be higher.

  Args:
    records: records of the experiment.
    base: the condition that should have the lower error.
    *others: the conditions that should have a higher error.
    paper: the paper's difference, averaged over `others`, percentage points; None if it gives no number.
    at_least: whether the paper's difference is a lower bound.
    min_seeds: number of seeds of every condition that a clear effect requires; 1 if the base averages all seeds.
    in_training: whether to compare training errors instead of test errors.
  """
  error_of, suffix = (training_error, ' in training') if in_training else (error, '')
  errors = {name: [error_of(record) for record in records[name]] for name in (base, *others)}
  difference = statistics.mean(statistics.mean(errors[name]) for name in others) - statistics.mean(errors[base])
  measured = '; '.join(f'{name} {format_mean_and_std(values)} %{suffix}' for name, values in errors.items())
  is_clear = all(are_separated(errors[base], errors[name], min_seeds) for name in others)
  relative_effect = relative_to_paper(difference, paper)
  if at_least:
    relative_effect = min(relative_effect, 1)
  return Finding(f'{measured}: {difference:+.2f}', judge(relative_effect, is_clear))


def compare_overfitting(records: Records, base: str, other: str) -> Finding:
  """Compares two conditions by their test error on centre crops, and by its distance to the training error.

  Args:
    records: records of the experiment.
    base: the condition that should generalise better.
    other: the condition that should have the higher test error and the larger gap.
  """
  errors = {name: [error(record, 'centre') for record in records[name]] for name in (base, other)}
  gaps = {
    name: [error(record, 'centre') - training_error(record) for record in records[name]] for name in (base, other)
  }
  measured = '; '.join(
    f'{name} {format_mean_and_std(errors[name])} %, {statistics.mean(gaps[name]):+.2f} above training error'
    for name in errors
  )
  differences = [statistics.mean(values[other]) - statistics.mean(values[base]) for values in (errors, gaps)]
  is_clear = are_separated(errors[base], errors[other]) and are_separated(gaps[base], gaps[other])
  return Finding(f'{measured}: {differences[0]:+.2f}', judge(float(min(differences) > 0), is_clear))


def compare_speed(
  records: Records,
  fast: str,
  slow: str,
  *,
  to_error: float,
  paper: float | None,
  curve: Callable[[Record], Curve] = Record.training_curve,
) -> Finding:
  """Compares the epochs that two conditions take to reach an error.

  A slow run that never reaches the error counts with its full length, and the ratio is then a lower bound.

  Args:
    records: records of the experiment.
    fast: the condition that should take fewer epochs.
    slow: the condition that should take more epochs.
    to_error: error to reach, percent.
    paper: the paper's ratio; None if it gives no number.
    curve: function that returns the curve of a record.
  """
  epochs = {name: [epochs_to_error(to_error, curve(record)) for record in records[name]] for name in (fast, slow)}
  fast_epochs = [epoch for epoch in epochs[fast] if epoch is not None]
  if len(fast_epochs) < len(epochs[fast]):
    return Finding(f'{fast} does not reach {to_error:g} % in {records[fast][0].num_epochs:g} epochs', NOT_REPRODUCED)
  is_bound = None in epochs[slow]
  slow_epochs = [
    record.num_epochs if epoch is None else epoch for epoch, record in zip(epochs[slow], records[slow], strict=True)
  ]
  ratio = statistics.mean(slow_epochs) / statistics.mean(fast_epochs)
  measured = (
    f'{fast} {format_mean_and_std(fast_epochs, 1)} epochs, {slow} {"more than " if is_bound else ""}'
    f'{format_mean_and_std(slow_epochs, 1)}: {"over " if is_bound else ""}{ratio:.1f} times'
  )
  if ratio <= 1:
    return Finding(measured, NOT_REPRODUCED)
  relative_effect = relative_to_paper(ratio, paper)
  if is_bound:
    relative_effect = min(relative_effect, 1)
  return Finding(measured, judge(relative_effect, are_separated(fast_epochs, slow_epochs)))


def compare_with_paper(records: Records, condition: str, *, paper: float, tolerance: float) -> Finding:
  """Compares the test error of a condition with the paper's.

  Args:
    records: records of the experiment.
    condition: name of the condition.
    paper: the paper's error, percent.
    tolerance: percentage points by which the measured error may exceed it.
  """
  errors = [error(record) for record in records[condition]]
  is_reproduced = statistics.mean(errors) <= paper + tolerance
  return Finding(f'{format_mean_and_std(errors)} %', REPRODUCED if is_reproduced else NOT_REPRODUCED)


def compare_crops(records: Records, crop_set: str) -> Finding:
  """Compares the error with several crops to that with the centre crop, over all records that have both.

  Args:
    records: records of the experiment.
    crop_set: 'nine_view' or 'ten_view'.
  """
  errors = {
    name: [(error(record, 'centre'), error(record, crop_set)) for record in seeds if crop_set in record.results]
    for name, seeds in records.items()
  }
  gains = [centre - several for pairs in errors.values() for centre, several in pairs]
  measured = '; '.join(
    f'{name} {statistics.mean(centre for centre, _ in pairs):.2f} to '
    f'{statistics.mean(several for _, several in pairs):.2f} %'
    for name, pairs in errors.items()
    if pairs
  )
  num_networks = f' on average over {len(gains)} networks' if len(gains) > 1 else ''
  return Finding(
    f'{measured}: {statistics.mean(gains):+.2f}{num_networks}',
    judge(statistics.mean(gains) / TEN_CROP_GAIN, len(gains) > 1 and min(gains) > 0),
  )


def compare_tower_colours(records: Records) -> Finding:
  """Compares the colour fractions of the towers in conv1, over all records that have them (section 6.1)."""
  with_colour = {name: [record for record in seeds if 'colour' in record.measured] for name, seeds in records.items()}
  fractions = [record.measured['colour'] for seeds in with_colour.values() for record in seeds]
  gaps = [max(towers) - min(towers) for towers in fractions]
  measured = '; '.join(
    f'{name} {", ".join(" and ".join(f"{percent:.0f}" for percent in record.measured["colour"]) for record in seeds)} %'
    for name, seeds in with_colour.items()
    if seeds
  )
  relative_effect = statistics.mean(gaps) / COLOUR_GAP
  return Finding(
    f"colour fraction of conv1's energy in the two towers: {measured}",
    judge(relative_effect if relative_effect > MIN_RELATIVE_COLOUR_GAP else 0, min(gaps) > COLOUR_GAP / MAX_FACTOR),
  )


def compare_neighbours(records: Records, *conditions: str) -> Finding:
  """Compares how often the nearest neighbours in fc7, and those in pixels, have the class of their query.

  Args:
    records: records of the experiment.
    *conditions: names of the conditions.
  """
  fc7, pixels = (
    {name: [record.measured['same_class'][space] for record in records[name]] for name in conditions}
    for space in ('fc7', 'pixels')
  )
  measured = '; '.join(
    f'{name} {format_mean_and_std(fc7[name], 0)} % in fc7, {format_mean_and_std(pixels[name], 0)} % in pixels'
    for name in conditions
  )
  all_fc7, all_pixels = ([percent for seeds in space.values() for percent in seeds] for space in (fc7, pixels))
  has_effect = statistics.mean(all_fc7) > statistics.mean(all_pixels)
  is_clear = max(all_pixels) < min(all_fc7)  # each percentage is of 3,000 neighbours, so one seed is enough
  return Finding(
    f"fraction of the six nearest neighbours that have their query's class: {measured}",
    judge(float(has_effect), is_clear),
  )
