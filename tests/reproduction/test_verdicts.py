"""Verdicts on invented records, and the statistics against SciPy."""

import math

import numpy as np
import pytest
import scipy.stats

from alexnet_jax.reproduction import report, verdicts
from alexnet_jax.reproduction.claims import (
  CLAIMS,
  COLOUR_GAP,
  NEIGHBOURS,
  NINE_CROP_GAIN,
  NINE_CROPS,
  OVERFITTING,
  TO_25_PERCENT,
  TO_35_PERCENT,
  TRAINING_ERROR,
)
from alexnet_jax.reproduction.verdicts import (
  CONTRADICTED,
  INCONCLUSIVE,
  OTHER_SIZE,
  REPRODUCED,
  Comparison,
  Estimate,
  Finding,
)
from tests.reproduction.test_records import record


def with_error(*errors, crop_set='nine_view', centre=50.0, first_seed=0):
  return [
    record(results={'centre': {'top1_error': centre}, crop_set: {'top1_error': error}}, seed=seed)
    for seed, error in enumerate(errors, first_seed)
  ]


def reaching(*epochs, num_epochs=40):
  """Makes records whose training error falls below 25 % after these numbers of epochs; None for never."""
  curves = ([[0, 10 * (epoch or num_epochs)], [50.0, 24.999 if epoch else 30.0]] for epoch in epochs)
  return [record(curves={'train/error': curve}, num_epochs=num_epochs, seed=seed) for seed, curve in enumerate(curves)]


def trained(*pairs):
  """Makes records from pairs of a test error and a training error."""
  return [
    record(results={'centre': {'top1_error': test}}, measured={'training_error': training}, seed=seed)
    for seed, (test, training) in enumerate(pairs)
  ]


def find(records, comparison):
  """Returns the finding of a single claim, whose p-value needs no correction."""
  return verdicts.judge_all({'only': (records, comparison)}, num_claims=1)['only']


def test_paired_differences_are_estimated_as_by_scipy():
  """The seeds decide the pairs, not the order of the records; seeds of one side alone are left out."""
  higher, lower = (13.0, 13.4, 12.7), (11.2, 12.1, 11.4, 10.0)
  records = {'without': with_error(*higher)[::-1], 'with': with_error(*lower)}
  measured = verdicts.estimate(records, Comparison(NINE_CROPS, ('without',), 'with'))
  expected = scipy.stats.ttest_rel(higher, lower[:3])
  assert measured.value == pytest.approx(np.mean(np.subtract(higher, lower[:3])))
  assert measured.interval == pytest.approx(expected.confidence_interval(0.95))
  assert measured.p_value == pytest.approx(expected.pvalue)
  assert measured.num_seeds == 3


def test_ratios_are_compared_by_their_logarithms():
  fast, slow = (5.0, 6.0, 6.5), (33.0, 31.0, 40.0)
  comparison = Comparison(TO_25_PERCENT, ('tanh',), 'relu')
  measured = verdicts.estimate({'relu': reaching(*fast), 'tanh': reaching(*slow)}, comparison)
  expected = scipy.stats.ttest_rel(np.log(slow), np.log(fast))
  assert measured.value == pytest.approx(scipy.stats.gmean(np.divide(slow, fast)), rel=1e-3)
  assert measured.interval == pytest.approx(np.exp(expected.confidence_interval(0.95)), rel=1e-3)
  assert measured.p_value == pytest.approx(expected.pvalue, rel=1e-2)


def test_holms_procedure_rejects_step_by_step():
  """At every level, the adjusted p-values select what the procedure of 1979 rejects."""
  rng = np.random.default_rng(0)
  for num_tests in (1, 3, 12):
    p_values = list(rng.random(num_tests) ** 4)
    adjusted = verdicts.holm(p_values, num_tests)
    for level in rng.random(50):
      rejected = set()
      for step, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (num_tests - step):
          break
        rejected.add(int(index))
      assert {index for index, p in enumerate(adjusted) if p <= level} == rejected


def test_the_verdicts_of_all_claims_are_corrected_together():
  tests = {
    'clear': (
      {'a': with_error(13.0, 13.2, 13.1), 'b': with_error(11.0, 11.1, 11.2)},
      Comparison(NINE_CROPS, ('a',), 'b'),
    ),
    'weak': (
      {'a': with_error(13.0, 13.2, 13.1), 'b': with_error(11.0, 12.0, 11.5)},
      Comparison(NINE_CROPS, ('a',), 'b'),
    ),
    'single': ({'a': with_error(13.0), 'b': with_error(11.0)}, Comparison(NINE_CROPS, ('a',), 'b')),
  }
  assert find(*tests['weak']).verdict == REPRODUCED
  findings = verdicts.judge_all(tests | {f'{n}': tests['weak'] for n in range(5)}, num_claims=10)
  assert findings['clear'].verdict == REPRODUCED
  assert findings['weak'].verdict == findings['single'].verdict == INCONCLUSIVE
  assert findings['weak'].estimate.interval[0] > 0  # significant without the correction
  assert findings['weak'].adjusted_p == pytest.approx(9 * findings['weak'].estimate.p_value)  # 1 of 10 is smaller
  assert findings['single'].adjusted_p is None


@pytest.mark.parametrize(
  ('base', 'other', 'expected'),
  [
    ((11.0, 11.2), (13.0, 13.1), REPRODUCED),
    ((11.0, 11.2), (11.9, 11.5), INCONCLUSIVE),
    ((11.0, 11.2), (13.0, 13.2), INCONCLUSIVE),  # equal differences, whose variation is unknown
    ((11.0, 11.2), (11.9, 12.11), OTHER_SIZE),  # less than half of the paper's two points
    ((11.0, 11.2), (15.5, 15.71), OTHER_SIZE),  # more than twice
    ((11.0, 13.5), (13.4, 15.0), INCONCLUSIVE),  # within the spread
    ((13.0, 13.2), (11.0, 11.21), CONTRADICTED),
    ((13.0, 13.2), (11.0, 12.5), INCONCLUSIVE),
    ((11.0,), (13.0,), INCONCLUSIVE),  # one seed has no spread
    ((11.0,), (13.0, 13.1), INCONCLUSIVE),
  ],
)
def test_a_gain_is_judged_by_sign_interval_and_size(base, other, expected):
  records = {'with': with_error(*base), 'without': with_error(*other)}
  finding = find(records, Comparison(NINE_CROPS, ('without',), 'with', paper=2.0))
  assert finding.verdict == expected
  assert (finding.estimate.interval is None) == (len(base) == 1 or other == (13.0, 13.2))


@pytest.mark.parametrize(
  ('fast', 'slow', 'ours', 'expected'),
  [
    ((5, 6), (30, 36.5), 6.0, REPRODUCED),
    ((5, 6), (10, 12.1), 2.0, OTHER_SIZE),  # one more instead of five
    ((5, 6), (5.6, 6.5), 1.1, INCONCLUSIVE),
    ((5, 6), (2.5, 3.05), 0.5, CONTRADICTED),
    ((8, 8.1), (None, None), 4.97, REPRODUCED),  # the full length of 40 epochs
    ((20, 20.1), (None, None), 2.0, OTHER_SIZE),
  ],
)
def test_a_speed_up_is_judged_by_sign_interval_and_size(fast, slow, ours, expected):
  comparison = Comparison(TO_25_PERCENT, ('tanh',), 'relu', paper=6)
  finding = find({'relu': reaching(*fast), 'tanh': reaching(*slow)}, comparison)
  assert finding.estimate.value == pytest.approx(ours, rel=0.02)
  assert finding.verdict == expected


def test_a_speed_up_is_not_estimated_if_the_fast_condition_does_not_reach_the_error():
  comparison = Comparison(TO_25_PERCENT, ('tanh',), 'relu', paper=6)
  finding = find({'relu': reaching(5, 5.1, None), 'tanh': reaching(30, 30)}, comparison)
  assert finding.estimate.num_seeds == 2  # the third seed has no pair
  finding = find({'relu': reaching(5, None), 'tanh': reaching(30, 30)}, comparison)
  assert finding == Finding(None, None, INCONCLUSIVE)
  assert verdicts.format_estimate(finding.estimate, comparison) == 'relu does not reach the error'


@pytest.mark.parametrize(
  ('errors', 'expected'),
  [
    ((10.9, 11.0, 11.1), REPRODUCED),  # every value of the interval rounds to 11 %
    ((10.6, 11.0, 11.4), INCONCLUSIVE),
    ((11.8, 11.9, 12.0), CONTRADICTED),  # none does
    ((10.0, 10.1, 10.2), CONTRADICTED),
    ((11.0,), INCONCLUSIVE),
  ],
)
def test_an_error_rate_must_round_to_the_papers(errors, expected):
  finding = find({'11pct': with_error(*errors)}, Comparison(NINE_CROPS, ('11pct',), accepted=(10.5, 11.5)))
  assert finding.verdict == expected
  if len(errors) > 1:
    expected_interval = scipy.stats.ttest_1samp(errors, 0).confidence_interval(0.95)
    assert finding.estimate.interval == pytest.approx(expected_interval)


def test_trainings_shorter_than_the_papers_do_not_contradict_an_error_rate():
  comparison = Comparison(NINE_CROPS, ('11pct',), accepted=(10.5, 11.5), can_contradict=False)
  assert find({'11pct': with_error(13.8, 13.9, 14.0)}, comparison).verdict == INCONCLUSIVE
  assert find({'11pct': with_error(10.9, 11.0, 11.1)}, comparison).verdict == REPRODUCED


def test_several_crops_are_compared_within_each_network():
  def networks(*pairs):
    return [with_error(several, centre=centre, first_seed=seed)[0] for seed, (centre, several) in enumerate(pairs)]

  comparison = Comparison(NINE_CROP_GAIN, ('with',))
  finding = find({'with': networks((14.5, 13.0), (16.0, 14.6), (19.0, 17.4))}, comparison)
  assert finding.estimate.value == pytest.approx(1.5)
  assert (finding.estimate.num_seeds, finding.verdict) == (3, REPRODUCED)
  assert find({'with': networks((14.5, 13.0), (14.0, 15.0))}, comparison).verdict == INCONCLUSIVE
  assert find({'with': networks((14.5, 13.0))}, comparison).verdict == INCONCLUSIVE


@pytest.mark.parametrize(
  ('others', 'ours', 'expected'),
  [
    (((14.0, 14.2), (13.5, 13.9)), 2.8, REPRODUCED),  # more than the paper's 2 points
    (((14.0, 14.6), (11.0, 13.2)), 2.1, INCONCLUSIVE),  # the second varies
    (((10.0, 10.2), (10.9, 11.1)), -0.55, CONTRADICTED),
  ],
)
def test_the_gain_over_several_conditions_is_their_mean(others, ours, expected):
  records = {'one': with_error(*others[0]), 'two': with_error(*others[1]), 'base': with_error(11.0, 11.21)}
  finding = find(records, Comparison(NINE_CROPS, ('one', 'two'), 'base', paper=2.0))
  assert finding.estimate.value == pytest.approx(ours, abs=0.01)
  assert finding.verdict == expected


@pytest.mark.parametrize(
  ('other', 'expected'),
  [((60.0, 60.2), REPRODUCED), ((11.1, 11.0), INCONCLUSIVE), ((10.0, 10.1), CONTRADICTED)],
)
def test_any_significant_effect_is_reproduced_if_the_paper_gives_no_number(other, expected):
  records = {'base': with_error(11.0, 11.12), 'other': with_error(*other)}
  assert find(records, Comparison(NINE_CROPS, ('other',), 'base')).verdict == expected


def test_a_larger_effect_is_reproduced_if_the_number_of_the_paper_is_a_lower_bound():
  records = {'base': with_error(11.0, 11.2), 'other': with_error(14.0, 14.21)}
  comparison = Comparison(NINE_CROPS, ('other',), 'base', paper=1.0)
  assert find(records, comparison).verdict == OTHER_SIZE
  assert find(records, comparison._replace(is_minimum=True)).verdict == REPRODUCED
  assert find(records, comparison._replace(is_minimum=True, paper=7.0)).verdict == OTHER_SIZE


def test_averages_are_compared_with_their_own_networks():
  (claim,) = (claim for claim in CLAIMS if claim.experiment == 'ensemble')
  averages = [
    average._replace(measured={'member_errors': [average.results['ten_view']['top1_error'] + gain] * 5})
    for average, gain in zip(with_error(16.0, 17.0, 16.5, crop_set='ten_view'), (2.5, 2.6, 2.7), strict=True)
  ]
  finding = find({'averaged': averages}, claim.comparison)
  expected = scipy.stats.ttest_1samp((2.5, 2.6, 2.7), 0).confidence_interval(0.95)
  assert finding.estimate.interval == pytest.approx(expected)
  assert finding.verdict == REPRODUCED
  assert find({'averaged': averages[:1]}, claim.comparison).verdict == INCONCLUSIVE


def test_an_error_that_is_reached_only_by_the_final_evaluation_counts():
  late = record(
    curves={'validation/top1_error': [[0, 200], [50.0, 40.0]]},
    num_epochs=24.0,
    results={'centre': {'top1_error': 30.0}},
  )
  assert TO_35_PERCENT.value(late) == pytest.approx(22.0)
  assert TO_25_PERCENT.value(late) == math.inf


def test_training_errors_can_be_compared_instead_of_test_errors():
  records = {'base': trained((50.0, 10.0), (50.0, 10.2)), 'other': trained((40.0, 12.5), (40.0, 12.6))}
  finding = find(records, Comparison(TRAINING_ERROR, ('other',), 'base'))
  assert finding.estimate.value == pytest.approx(2.45)
  assert finding.verdict == REPRODUCED


@pytest.mark.parametrize(
  ('other', 'expected'),
  [
    (((30.0, 1.0), (31.0, 2.1)), REPRODUCED),
    (((30.0, 1.0), (21.0, 1.0)), INCONCLUSIVE),  # the seeds disagree
    (((30.0, 27.0), (31.0, 28.1)), CONTRADICTED),  # worse, but closer to its training error
  ],
)
def test_overfitting_is_the_distance_of_test_and_training_error(other, expected):
  records = {'base': trained((21.0, 16.0), (22.0, 17.0)), 'other': trained(*other)}
  assert find(records, Comparison(OVERFITTING, ('other',), 'base')).verdict == expected


@pytest.mark.parametrize(
  ('percentages', 'expected'),
  [
    (((77.0, 15.0), (20.0, 75.0), (70.0, 12.0)), REPRODUCED),  # either tower may be the colourful one
    (((77.0, 15.0), (50.0, 40.0), (70.0, 30.0)), INCONCLUSIVE),
    (((67.0, 66.0), (66.0, 67.0), (60.0, 62.0)), CONTRADICTED),  # noise
  ],
)
def test_towers_specialise_if_one_is_colourful_and_the_other_grey(percentages, expected):
  (claim,) = (claim for claim in CLAIMS if claim.experiment == 'kernels')
  records = {'paper': [record(measured={'colour': pair}, seed=seed) for seed, pair in enumerate(percentages)]}
  assert claim.comparison.metric is COLOUR_GAP
  assert find(records, claim.comparison).verdict == expected


@pytest.mark.parametrize(
  ('pixels', 'expected'), [((20.0, 20.5), REPRODUCED), ((47.0, 38.0), INCONCLUSIVE), ((60.0, 61.0), CONTRADICTED)]
)
def test_neighbours_in_fc7_share_the_class_more_often_than_in_pixels(pixels, expected):
  records = {
    'paper': [
      record(measured={'same_class': {'fc7': fc7, 'pixels': other}}, seed=seed)
      for seed, (fc7, other) in enumerate(zip((45.0, 45.9), pixels, strict=True))
    ]
  }
  comparison = Comparison(NEIGHBOURS, ('paper',))
  assert find(records, comparison).verdict == expected
  assert find({'paper': records['paper'][:1]}, comparison).verdict == INCONCLUSIVE


def test_effects_are_formatted_with_sign_unit_and_interval():
  points, times, level = (
    Comparison(NINE_CROPS, ('a',), 'b'),
    Comparison(TO_25_PERCENT, ('a',), 'b'),
    Comparison(NINE_CROPS, ('a',), accepted=(10.5, 11.5)),
  )
  assert verdicts.format_estimate(Estimate(1.234, (-0.5, 3.0), 0.1, 2), points) == '+1.23 points [-0.50, 3.00]'
  assert verdicts.format_estimate(Estimate(-1.234, None, None, 1), points) == '-1.23 points'
  assert verdicts.format_estimate(Estimate(7.03, (6.6, 7.49), 0.1, 3), times) == '7.03 times [6.60, 7.49]'
  assert verdicts.format_estimate(Estimate(11.2, None, None, 1), level) == '11.20 %'
  assert report.format_mean_and_std([11.0, 11.2]) == '11.10 ± 0.14'
  assert report.format_mean_and_std([11.0]) == '11.00'
