"""Verdicts on invented records."""

import pytest

from alexnet_jax.reproduction import verdicts
from alexnet_jax.reproduction.records import Record
from alexnet_jax.reproduction.verdicts import DIRECTION, NOT_REPRODUCED, REPRODUCED
from tests.reproduction.test_records import record


def with_error(*errors, crop_set='nine_view', centre=50.0):
  return [record(results={'centre': {'top1_error': centre}, crop_set: {'top1_error': error}}) for error in errors]


def reaching(*epochs, num_epochs=40):
  """Makes records whose training error falls below 25 % after these numbers of epochs; None for never."""
  curves = ([[0, 10 * (epoch or num_epochs)], [50.0, 24.999 if epoch else 30.0]] for epoch in epochs)
  return [record(curves={'train/error': curve}, num_epochs=num_epochs) for curve in curves]


@pytest.mark.parametrize(
  ('base', 'other', 'expected'),
  [
    ((11.0, 11.2), (13.0, 13.1), REPRODUCED),
    ((11.0, 11.2), (11.9, 11.8), DIRECTION),  # less than half of the paper's two points
    ((11.0, 13.5), (13.4, 15.0), DIRECTION),  # within the spread
    ((13.0, 13.2), (11.0, 11.5), NOT_REPRODUCED),
    ((11.0,), (13.0,), DIRECTION),  # one seed has no spread
    ((11.0,), (13.0, 13.1), DIRECTION),
  ],
)
def test_a_gain_is_judged_by_sign_spread_and_size(base, other, expected):
  records = {'with': with_error(*base), 'without': with_error(*other)}
  measured, verdict = verdicts.compare_errors(records, 'with', 'without', paper=2.0)
  assert verdict == expected
  assert f'with {sum(base) / len(base):.2f} ' in measured


@pytest.mark.parametrize(
  ('fast', 'slow', 'ours', 'expected'),
  [
    ((5, 6), (33, 33), '6.0 times', REPRODUCED),
    ((5, 6), (11, 11), '2.0 times', DIRECTION),
    ((5, 6), (5.6, 6.5), '1.1 times', DIRECTION),
    ((5, 6), (None, None), 'over 7.3 times', REPRODUCED),
    ((20, 20), (None, None), 'over 2.0 times', DIRECTION),
    ((5, 6), (3, 3), '0.5 times', NOT_REPRODUCED),
    ((5, None), (30, 30), 'does not reach 25 %', NOT_REPRODUCED),
  ],
)
def test_a_speed_up_is_judged_by_sign_spread_and_size(fast, slow, ours, expected):
  records = {'relu': reaching(*fast), 'tanh': reaching(*slow)}
  measured, verdict = verdicts.compare_speed(records, 'relu', 'tanh', to_error=25, paper=6)
  assert ours in measured
  assert verdict == expected


def test_an_error_rate_may_be_half_a_point_above_the_paper():
  def conclude(error):
    return verdicts.compare_with_paper({'11pct': with_error(error)}, '11pct', paper=11.0, tolerance=0.5)

  assert conclude(11.4) == ('11.40 (1 seed) %', REPRODUCED)
  assert conclude(11.6).verdict == NOT_REPRODUCED


def test_several_crops_must_help_every_network():
  better, worse = with_error(13.0, centre=14.5), with_error(15.0, centre=14.0)
  records = {'lrn/with': better, '13pct/13pct': with_error(12.0, centre=13.0)}
  measured, verdict = verdicts.compare_crops(records, 'nine_view')
  assert verdict == REPRODUCED
  assert 'lrn/with 14.50 to 13.00 %' in measured
  assert '+1.25 on average over 2 networks' in measured
  assert verdicts.compare_crops({'lrn/with': better, 'lrn/without': worse}, 'nine_view').verdict == DIRECTION
  assert verdicts.compare_crops({'lrn/with': better}, 'nine_view').verdict == DIRECTION


def trained(*pairs):
  """Makes records from pairs of a test error and a training error."""
  return [
    record(results={'centre': {'top1_error': test}}, measured={'training_error': training}) for test, training in pairs
  ]


@pytest.mark.parametrize(
  ('others', 'ours', 'expected'),
  [
    (((14.0, 14.2), (13.5, 13.9)), '+2.80', REPRODUCED),  # each is clearly worse, on average by more than the paper's 2
    (((14.0, 14.2), (11.0, 11.2)), '+1.50', DIRECTION),  # the second is not clearly worse
    (((10.0, 10.2), (11.0, 11.2)), '-0.50', NOT_REPRODUCED),
  ],
)
def test_the_gain_over_several_conditions_is_their_mean(others, ours, expected):
  records = {'one': with_error(*others[0]), 'two': with_error(*others[1]), 'base': with_error(11.0, 11.2)}
  measured, verdict = verdicts.compare_errors(records, 'base', 'one', 'two', paper=2.0)
  assert measured.endswith(ours)
  assert verdict == expected


@pytest.mark.parametrize(('other', 'expected'), [(60.0, REPRODUCED), (11.1, DIRECTION), (11.0, NOT_REPRODUCED)])
def test_any_clear_effect_is_reproduced_if_the_paper_gives_no_number(other, expected):
  records = {'base': with_error(11.0, 11.0), 'other': with_error(other, 11.0 if other == 11.1 else other)}
  assert verdicts.compare_errors(records, 'base', 'other', paper=None).verdict == expected


def test_a_larger_effect_is_reproduced_if_the_number_of_the_paper_is_a_lower_bound():
  records = {'base': with_error(11.0, 11.2), 'other': with_error(14.0, 14.2)}
  assert verdicts.compare_errors(records, 'base', 'other', paper=1.0).verdict == DIRECTION
  assert verdicts.compare_errors(records, 'base', 'other', paper=1.0, at_least=True).verdict == REPRODUCED


def test_an_average_of_all_seeds_needs_no_repetition():
  def verdict(error):
    records = {'averaged': with_error(error), 'paper': with_error(18.5, 18.9, 18.6)}
    return verdicts.compare_errors(records, 'averaged', 'paper', paper=2.6, min_seeds=1).verdict

  assert verdict(16.0) == REPRODUCED
  assert verdict(18.5) == DIRECTION  # no better than the best


def test_an_error_that_is_reached_only_by_the_final_evaluation_counts():
  late = record(
    curves={'validation/top1_error': [[0, 200], [50.0, 40.0]]},
    num_epochs=24.0,
    results={'centre': {'top1_error': 30.0}},
  )
  records = {'fast': [late], 'slow': [late]}
  finding = verdicts.compare_speed(records, 'fast', 'slow', to_error=35, paper=2, curve=Record.test_curve)
  assert 'slow 22.0' in finding.measured


def test_training_errors_can_be_compared_instead_of_test_errors():
  records = {'base': trained((50.0, 10.0), (50.0, 10.0)), 'other': trained((40.0, 12.5), (40.0, 12.5))}
  assert verdicts.compare_errors(records, 'base', 'other', paper=None, in_training=True) == (
    'base 10.00 ± 0.00 (2 seeds) % in training; other 12.50 ± 0.00 (2 seeds) % in training: +2.50',
    REPRODUCED,
  )


@pytest.mark.parametrize(
  ('other', 'expected'),
  [
    (((30.0, 1.0), (31.0, 1.0)), REPRODUCED),
    (((30.0, 1.0), (21.0, 1.0)), DIRECTION),  # one seed is not worse
    (((30.0, 27.0), (31.0, 28.0)), NOT_REPRODUCED),  # worse, but no further from its training error
    (((20.0, 1.0), (19.0, 1.0)), NOT_REPRODUCED),  # further, but not worse
  ],
)
def test_overfitting_is_a_higher_error_and_a_larger_gap(other, expected):
  records = {'base': trained((21.0, 16.0), (22.0, 17.0)), 'other': trained(*other)}
  assert verdicts.compare_overfitting(records, 'base', 'other').verdict == expected


def test_the_speed_of_reaching_a_test_error_can_be_compared_without_a_number_of_the_paper():
  def reaching_test(epochs):
    results = {'centre': {'top1_error': 29.0}}
    curve = [[0, 10 * epochs], [50.0, 29.999]]
    return 2 * [record(curves={'validation/top1_error': curve}, num_epochs=40, results=results)]

  records = {'fast': reaching_test(4), 'slow': reaching_test(6)}
  measured, verdict = verdicts.compare_speed(records, 'fast', 'slow', to_error=30, paper=None, curve=Record.test_curve)
  assert measured.endswith('1.5 times')
  assert verdict == REPRODUCED


@pytest.mark.parametrize(
  ('percentages', 'expected'),
  [
    (((77.0, 15.0), (20.0, 70.0)), REPRODUCED),  # either tower may be the colourful one
    (((77.0, 15.0), (50.0, 40.0)), DIRECTION),
    (((67.0, 66.0), (66.0, 67.0)), NOT_REPRODUCED),  # noise
  ],
)
def test_towers_specialise_if_one_is_colourful_and_the_other_grey(percentages, expected):
  paper, photographs = ([record(measured={'colour': pair})] for pair in percentages)
  records = {'paper': paper, 'photographs/paper': photographs, 'not measured': [record()]}
  finding = verdicts.compare_tower_colours(records)
  assert finding.verdict == expected
  assert f'paper {percentages[0][0]:.0f} and {percentages[0][1]:.0f} %; photographs/paper' in finding.measured


@pytest.mark.parametrize(('pixels', 'expected'), [(20.0, REPRODUCED), (47.0, DIRECTION), (60.0, NOT_REPRODUCED)])
def test_neighbours_in_fc7_share_the_class_more_often_than_in_pixels(pixels, expected):
  paper, as_run = ([record(measured={'same_class': {'fc7': fc7, 'pixels': pixels}})] for fc7 in (45.0, 52.0))
  finding = verdicts.compare_neighbours({'paper': paper, 'as_run': as_run}, 'paper', 'as_run')
  assert finding.verdict == expected
  assert f'as_run 52 (1 seed) % in fc7, {pixels:.0f} (1 seed) % in pixels' in finding.measured
