import pytest

from alexnet_jax.reproduction import claims, report
from alexnet_jax.reproduction.experiments import EXPERIMENTS
from alexnet_jax.runs import config_checks, config_files
from tests.reproduction.test_verdicts import with_error


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_can_be_configured(name):
  experiment = EXPERIMENTS[name]
  assert name == experiment.name
  for condition in experiment.conditions:
    config = config_files.load_config(condition.config)
    known = config_checks.flatten(config)
    assert set(condition.fields) <= set(known)
    config.update_from_flattened_dict(dict(condition.fields))
    config_checks.check(config)
  assert set(experiment.reads) <= set(EXPERIMENTS)


def test_nothing_hangs_on_the_reported_split():
  """Where the curve of the test error is drawn, the schedule must not read it."""
  for experiment in EXPERIMENTS.values():
    for condition in experiment.all_conditions():
      config = config_files.load_config(condition.config)
      config.update_from_flattened_dict(dict(condition.fields))
      assert config.optimizer.schedule == 'steps' or config.data.validation_split != config.data.test_split, (
        condition.name
      )


def test_sides_of_a_pair_differ_in_one_thing():
  def differing(one, other):
    one, other = (config_checks.flatten(config_files.load_config(name)) for name in (one, other))
    return {field for field in one if one[field] != other[field]} - {'variants'}

  assert differing(*(condition.config for condition in EXPERIMENTS['figure1'].conditions)) == {'model.nonlinearity'}
  assert differing(*(condition.config for condition in EXPERIMENTS['lrn'].conditions)) == {
    'model.norm.after',
    'model.norm.pooled',
  }
  for experiment in EXPERIMENTS.values():
    assert len({tuple(condition.fields.items()) for condition in experiment.conditions}) <= 1


def test_what_reads_other_experiments_waits_for_them():
  crops = EXPERIMENTS['views']
  assert report.missing(crops, {'lrn/with': with_error(13.0)}) == ['lrn/without', '13pct/13pct', '11pct/11pct']
  assert 'Not run to the end yet: lrn/without, ' in report.entry(crops, {'lrn/with': with_error(13.0)})


def test_all_sections_of_the_paper_have_claims_and_all_experiments_belong_to_one():
  assert {claim.section for claim in claims.CLAIMS} == {'3.1', '3.2', '3.3', '3.4', '4.1', '4.2', '5', '6', '6.1', '7'}
  assert {claim.experiment for claim in claims.CLAIMS} - {''} == set(EXPERIMENTS)
  for claim in claims.CLAIMS:
    assert claim.command or claim.experiment
    assert claim.needs in ('', claims.IMAGENET, claims.TWO_DEVICES)
    assert not (claim.needs and claim.experiment)


def test_the_commands_of_the_table_name_real_configs():
  for claim in claims.CLAIMS:
    for one in claim.command.split('; '):
      if one.startswith(':'):
        config_files.load_config(f'configs/alexnet.py{one.split()[0]}')


def test_the_costs_are_those_of_the_configs():
  for config, epochs, training_images, all_images in report.RUNS:
    assert config_files.load_config(f'configs/alexnet.py{config}').num_epochs == epochs
    assert training_images < all_images
  assert '| `:imagenet2012` | 90 | 901,000 | 24 | 22 |' in report.cost()  # (facts, 1.6)
