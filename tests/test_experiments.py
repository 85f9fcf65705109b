import pytest

from alexnet_jax import claims, command, experiments, fields
from alexnet_jax.experiments import DIRECTION, EXPERIMENTS, NOT_REPRODUCED, REPRODUCED
from tests.test_outcomes import outcome


def with_error(*errors, protocol='nine_view', centre=50.0):
  rates = ({'centre': {'top1_error': centre}, protocol: {'top1_error': error}} for error in errors)
  return [outcome(results=results) for results in rates]


def reaching(*epochs, num_epochs=40):
  """Outcomes whose training error falls below 25 % after so many epochs; None: never."""
  curves = ([[0, 10 * (epoch or num_epochs)], [50.0, 24.999 if epoch else 30.0]] for epoch in epochs)
  return [outcome(curves={'train/error': curve}, num_epochs=num_epochs) for curve in curves]


@pytest.mark.parametrize(
  ('base', 'other', 'expected'),
  [
    ((11.0, 11.2), (13.0, 13.1), REPRODUCED),
    ((11.0, 11.2), (11.9, 11.8), DIRECTION),  # less than half of the paper's two points
    ((11.0, 13.5), (13.4, 15.0), DIRECTION),  # within the spread
    ((13.0, 13.2), (11.0, 11.5), NOT_REPRODUCED),
  ],
)
def test_a_gain_is_judged_by_sign_spread_and_size(base, other, expected):
  ours, verdict = experiments.gain('with', 'without', paper=2.0)(
    {'with': with_error(*base), 'without': with_error(*other)}
  )
  assert verdict == expected
  assert f'with {sum(base) / 2:.2f} ±' in ours


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
def test_a_speed_up_is_judged_by_how_often(fast, slow, ours, expected):
  conclude = experiments.speed_up('relu', 'tanh', to_error=25, paper=6)
  found, verdict = conclude({'relu': reaching(*fast), 'tanh': reaching(*slow)})
  assert ours in found
  assert verdict == expected


def test_an_error_rate_may_be_half_a_point_above_the_paper():
  conclude = experiments.reaches('11pct', paper=11.0, within=0.5)
  assert conclude({'11pct': with_error(11.4)}) == ('11.40 (1 seed) %', REPRODUCED)
  assert conclude({'11pct': with_error(11.6)}).verdict == NOT_REPRODUCED


def test_more_views_must_help_every_network():
  better, worse = with_error(13.0, centre=14.5), with_error(15.0, centre=14.0)
  ours, verdict = experiments.more_views({'lrn/with': better, '13pct/13pct': with_error(12.0, centre=13.0)})
  assert verdict == REPRODUCED
  assert 'with 14.50 to 13.00 %' in ours
  assert '+1.25 on average over 2 networks' in ours
  assert experiments.more_views({'lrn/with': better, 'lrn/without': worse}).verdict == DIRECTION


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_can_be_configured(name):
  experiment = EXPERIMENTS[name]
  assert name == experiment.name
  for arm in experiment.arms:
    config = command.load_config(arm.config)
    known = fields.flat(config)
    assert set(arm.fields) <= set(known)
    config.update_from_flattened_dict(dict(arm.fields))
    fields.check(config)
  assert set(experiment.reads) <= set(EXPERIMENTS)


def test_sides_of_a_pair_differ_in_one_thing():
  def differing(one, other):
    one, other = (fields.flat(command.load_config(name)) for name in (one, other))
    return {field for field in one if one[field] != other[field]} - {'variants'}

  assert differing(*(arm.config for arm in EXPERIMENTS['figure1'].arms)) == {'model.nonlinearity'}
  assert differing(*(arm.config for arm in EXPERIMENTS['lrn'].arms)) == {'model.norm.after', 'model.norm.pooled'}
  for experiment in EXPERIMENTS.values():
    assert len({tuple(arm.fields.items()) for arm in experiment.arms}) <= 1


def test_what_reads_other_experiments_waits_for_them():
  views = EXPERIMENTS['views']
  assert claims.missing(views, {'lrn/with': with_error(13.0)}) == ['lrn/without', '13pct/13pct', '11pct/11pct']
  assert 'Not run to the end yet: lrn/without, ' in claims.entry(views, {'lrn/with': with_error(13.0)})


def test_all_sections_of_the_paper_have_claims_and_all_experiments_belong_to_one():
  assert {claim.section for claim in claims.CLAIMS} == {'3.1', '3.2', '3.3', '3.4', '4.1', '4.2', '5', '6', '6.1', '7'}
  assert {claim.experiment for claim in claims.CLAIMS} - {''} == set(EXPERIMENTS)
  for claim in claims.CLAIMS:
    assert claim.command or claim.experiment


def test_the_commands_of_the_table_name_real_configs():
  for claim in claims.CLAIMS:
    for one in claim.command.split('; '):
      if one.startswith(':'):
        command.load_config(f'configs/alexnet.py{one.split()[0]}')
