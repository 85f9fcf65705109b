"""What follows from the outcomes of an experiment: ours beside the paper's, and a verdict."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from alexnet_jax.reproduction.records import Record, epochs_to

REPRODUCED, DIRECTION, NOT_REPRODUCED = 'reproduced', 'in direction only', 'not reproduced'
FACTOR = 2  # an effect between half and twice that of the paper is of its size
TEN_VIEW_GAIN = 1.5  # 39.0 to 37.5 %, top-1, in the footnote of table 1
# Percentage points between the towers in the published Caffe network (bvlc_alexnet), whose conv1 has 77 and 15 %; the
# paper has a picture and no number.
COLOUR_GAP = 62

Outcomes = Mapping[str, Sequence[Record]]  # of each arm, one for each seed; of each trial, see `trial_name`, one
Conclusion = Callable[[Outcomes], 'Finding']


class Finding(NamedTuple):
  """What an experiment has shown.

  Attributes:
    ours: the measured numbers, in words.
    verdict: REPRODUCED, DIRECTION or NOT_REPRODUCED.
  """

  ours: str
  verdict: str


# Numbers of one outcome, percent.


def error(record: Record, crop_set: str = '', rate: str = 'top1_error') -> float:
  """Returns an error on the test split, by default the one from as many views as there are."""
  return record.results[crop_set or list(record.results)[-1]][rate]


def training_error(record: Record) -> float:
  """Returns the error of the finished network on the training images, their centre patches and with all neurons."""
  return record.measured['training_error']


def colour_gap(record: Record) -> float:
  """Returns by how much one tower's conv1 is more colourful than the other's, percentage points."""
  shares = record.measured['colour']
  return max(shares) - min(shares)


# Numbers of several, and what to think of them.


def mean_and_std(values: Sequence[float], digits: int = 2) -> str:
  """Writes values as their mean and standard deviation: '11.20 ± 0.15 (3 seeds)'."""
  if len(values) == 1:
    return f'{values[0]:.{digits}f} (1 seed)'
  return f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f} ({len(values)} seeds)'


def separated(lower: Sequence[float], higher: Sequence[float], num_needed: int = 2) -> bool:
  """Says whether every value of one side lies below every value of the other, and there are enough on both."""
  return min(len(lower), len(higher)) >= num_needed and max(lower) < min(higher)


def verdict(share: float, is_clear: bool) -> str:
  """Judges an effect.

  Args:
    share: its size over that of the paper's; where the paper has no number, 1 if it is there and 0 if not.
    is_clear: whether it is larger than the spread.
  """
  if share <= 0:
    return NOT_REPRODUCED
  return REPRODUCED if is_clear and 1 / FACTOR <= share <= FACTOR else DIRECTION


def relative_effect(effect: float, paper: float | None) -> float:
  """Returns the size of an effect over that of the paper's; for `verdict`."""
  return float(effect > 0) if paper is None else effect / paper


# Conclusions.


def gain(
  base: str,
  *others: str,
  paper: float | None,
  at_least: bool = False,
  num_needed: int = 2,
  of: Callable[[Record], float] = error,
  what: str = '',
) -> Conclusion:
  """Compares an arm with others by their error.

  Args:
    base: the arm that should have the lower error.
    others: the arms that should have a higher one.
    paper: by how much in the paper, on average over the others, percentage points; None: it does not say.
    at_least: whether the paper says that it is more than that.
    num_needed: seeds of every arm without which it could be chance; 1 where the base stands for all seeds.
    of: returns the error of an outcome, percent.
    what: kind of error, for the reader.
  """

  def conclude(records: Outcomes) -> Finding:
    errors = {name: [of(record) for record in records[name]] for name in (base, *others)}
    difference = statistics.mean(statistics.mean(errors[name]) for name in others) - statistics.mean(errors[base])
    ours = '; '.join(f'{name} {mean_and_std(values)} %{what}' for name, values in errors.items())
    is_clear = all(separated(errors[base], errors[name], num_needed) for name in others)
    share = relative_effect(difference, paper)
    return Finding(f'{ours}: {difference:+.2f}', verdict(min(share, 1) if at_least else share, is_clear))

  return conclude


def overfits(base: str, other: str) -> Conclusion:
  """Compares two arms by their test error of the centre patch, and by how far it lies above the training error.

  Args:
    base: the arm that should generalise better.
    other: the arm that should have the higher test error, and the larger gap.
  """

  def conclude(records: Outcomes) -> Finding:
    errors = {name: [error(record, 'centre') for record in records[name]] for name in (base, other)}
    gaps = {
      name: [error(record, 'centre') - training_error(record) for record in records[name]] for name in (base, other)
    }
    ours = '; '.join(
      f'{name} {mean_and_std(errors[name])} %, {statistics.mean(gaps[name]):+.2f} above training' for name in errors
    )
    differences = [statistics.mean(of[other]) - statistics.mean(of[base]) for of in (errors, gaps)]
    is_clear = separated(errors[base], errors[other]) and separated(gaps[base], gaps[other])
    return Finding(f'{ours}: {differences[0]:+.2f}', verdict(float(min(differences) > 0), is_clear))

  return conclude


def speed_up(
  fast: str,
  slow: str,
  *,
  to_error: float,
  paper: float | None,
  of: Callable[[Record], tuple] = Record.training_curve,
) -> Conclusion:
  """Compares after how many epochs two arms reach an error; one that never does counts as its whole length.

  Args:
    fast: the arm that should need fewer.
    slow: the arm that should need more.
    to_error: percent.
    paper: how many times as many in the paper; None: it does not say.
    of: returns the curve of an outcome.
  """

  def conclude(records: Outcomes) -> Finding:
    epochs = {name: [epochs_to(to_error, of(record)) for record in records[name]] for name in (fast, slow)}
    if None in epochs[fast]:
      return Finding(f'{fast} does not reach {to_error:g} % in {records[fast][0].num_epochs:g} epochs', NOT_REPRODUCED)
    is_bound = None in epochs[slow]
    slowest = [found or record.num_epochs for found, record in zip(epochs[slow], records[slow], strict=True)]
    ratio = statistics.mean(slowest) / statistics.mean(epochs[fast])
    ours = (
      f'{fast} {mean_and_std(epochs[fast], 1)} epochs, {slow} {"more than " if is_bound else ""}'
      f'{mean_and_std(slowest, 1)}: '
      f'{"over " if is_bound else ""}{ratio:.1f} times'
    )
    if ratio <= 1:
      return Finding(ours, NOT_REPRODUCED)
    share = relative_effect(ratio, paper)
    return Finding(ours, verdict(min(share, 1) if is_bound else share, separated(epochs[fast], slowest)))

  return conclude


def reaches(condition: str, *, paper: float, within: float) -> Conclusion:
  """Compares the test error of an arm with the paper's.

  Args:
    condition: its name.
    paper: its error, percent.
    within: percentage points that still are the same error.
  """

  def conclude(records: Outcomes) -> Finding:
    errors = [error(record) for record in records[condition]]
    found = statistics.mean(errors)
    is_same = found <= paper + within
    return Finding(f'{mean_and_std(errors)} %', REPRODUCED if is_same else NOT_REPRODUCED)

  return conclude


def more_views(crop_set: str) -> Conclusion:
  """Compares several views with the centre, on all trainings that looked at both.

  Args:
    crop_set: 'nine_view' or 'ten_view'.
  """

  def conclude(records: Outcomes) -> Finding:
    pairs = {
      name: [(error(record, 'centre'), error(record, crop_set)) for record in some if crop_set in record.results]
      for name, some in records.items()
    }
    pairs = {name: found for name, found in pairs.items() if found}
    gains = [centre - several for found in pairs.values() for centre, several in found]
    ours = '; '.join(
      f'{name} {statistics.mean(centre for centre, _ in found):.2f} to '
      f'{statistics.mean(several for _, several in found):.2f} %'
      for name, found in pairs.items()
    )
    several = f' on average over {len(gains)} networks' if len(gains) > 1 else ''
    ours = f'{ours}: {statistics.mean(gains):+.2f}{several}'
    return Finding(ours, verdict(statistics.mean(gains) / TEN_VIEW_GAIN, len(gains) > 1 and min(gains) > 0))

  return conclude


def specialised() -> Conclusion:
  """Looks whether conv1 became colourful in one tower and grey in the other; a tenth of the known gap is no sign."""

  def conclude(records: Outcomes) -> Finding:
    networks = {name: [record for record in some if 'colour' in record.measured] for name, some in records.items()}
    gaps = [colour_gap(record) for some in networks.values() for record in some]
    ours = '; '.join(
      f'{name} {", ".join(" and ".join(f"{share:.0f}" for share in record.measured["colour"]) for record in some)} %'
      for name, some in networks.items()
      if some
    )
    share = statistics.mean(gaps) / COLOUR_GAP
    ours = f"colour's share of conv1's energy in the two towers: {ours}"
    return Finding(ours, verdict(share if share > 0.1 else 0, min(gaps) > COLOUR_GAP / FACTOR))

  return conclude


def alike(*conditions: str) -> Conclusion:
  """Looks whether what is near in fc7 is of one class, more often than what is near in pixels.

  Args:
    *conditions: whose networks are asked.
  """

  def conclude(records: Outcomes) -> Finding:
    shares = {condition: [record.measured['same_class'] for record in records[condition]] for condition in conditions}
    found = '; '.join(
      f'{condition} {mean_and_std([of["fc7"] for of in some], 0)} %, '
      f'in pixels {mean_and_std([of["pixels"] for of in some], 0)} %'
      for condition, some in shares.items()
    )
    fc7, pixels = ([of[place] for some in shares.values() for of in some] for place in ('fc7', 'pixels'))
    effect = statistics.mean(fc7) - statistics.mean(pixels)
    is_clear = max(pixels) < min(fc7)  # of 3,000 neighbours each
    return Finding(
      f'of the six nearest in fc7 are of the class of their image: {found}',
      verdict(relative_effect(effect, None), is_clear),
    )

  return conclude
