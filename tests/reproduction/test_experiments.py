"""Experiments, claims and the report agree with each other and with the configs."""

import re

import pytest

from alexnet_jax.reproduction import claims, report
from alexnet_jax.reproduction.experiments import EXPERIMENTS, conditions_read
from alexnet_jax.runs import config_checks, config_files
from tests.reproduction.test_verdicts import with_error


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_has_valid_configs(name):
  experiment = EXPERIMENTS[name]
  assert name == experiment.name
  for condition in experiment.conditions:
    config = config_files.load_config(condition.config)
    assert set(condition.fields) <= set(config_files.flatten(config))
    config.update_from_flattened_dict(dict(condition.fields))
    config_checks.check(config)
  assert set(experiment.reads) <= set(EXPERIMENTS)


def test_no_schedule_reads_the_test_split():
  """A condition may validate on the test split, to draw the curve of its error, only if its schedule is fixed."""
  for experiment in EXPERIMENTS.values():
    for condition in experiment.all_conditions():
      config = config_files.load_config(condition.config)
      config.update_from_flattened_dict(dict(condition.fields))
      assert config.optimizer.schedule == 'steps' or config.data.validation_split != config.data.test_split, (
        condition.name
      )


def test_conditions_of_a_pair_differ_in_one_respect():
  def differing_fields(*conditions):
    first, second = (config_files.flatten(config_files.load_config(condition.config)) for condition in conditions)
    return {field for field in first if first[field] != second[field]} - {'variants'}

  assert differing_fields(*EXPERIMENTS['figure1'].conditions) == {'model.nonlinearity'}
  assert differing_fields(*EXPERIMENTS['lrn'].conditions) == {'model.norm.after', 'model.norm.pooled'}
  for experiment in EXPERIMENTS.values():
    conditions = [condition for condition in experiment.conditions if condition.name != 'as_run']
    assert len({tuple(condition.fields.items()) for condition in conditions}) <= 1


@pytest.mark.parametrize('name', ['photographs', 'tiny_neighbours'])
def test_the_recipe_of_2012_has_its_schedule_and_four_crops_a_batch(name):
  paper, as_run = EXPERIMENTS[name].conditions
  changed = {
    field for field in {**paper.fields, **as_run.fields} if paper.fields.get(field) != as_run.fields.get(field)
  }
  assert changed == {'optimizer.schedule', 'optimizer.steps', 'augment.shared_by'}
  config = config_files.load_config(as_run.config)
  config.update_from_flattened_dict(dict(as_run.fields))
  assert config.optimizer.steps == (25 / 91, 51 / 91, 79 / 91)
  frozen_at, *factors = config.optimizer.layer_changes.conv1[-1]
  assert factors == [0, 0]
  assert sum(decay < frozen_at for decay in config.optimizer.steps) == 2
  assert config.batch_size / config.augment.shared_by == 4


def test_conditions_on_tiny_imagenet_differ_from_those_on_cifar_10_in_the_dataset_alone():
  for claim in claims.CLAIMS:
    if not claim.tiny_experiment or claim.experiment == 'photographs':
      continue
    on_tiny, on_main = (EXPERIMENTS[name].all_conditions() for name in (claim.tiny_experiment, claim.experiment))
    for tiny, main in zip(on_tiny, on_main, strict=True):
      config, reference = map(config_files.load_config, (tiny.config, main.config))
      assert config.data.name == 'ilsvrc/tiny_imagenet'
      assert config.data.test_split == tiny.fields['data.validation_split'] == 'validation'
      config.data = reference.data
      assert config == reference
      assert tiny.num_epochs == pytest.approx(main.num_epochs * 2 / 3)
      assert {**tiny.fields, **main.fields} == {**main.fields}
      assert set(tiny.fields) == set(main.fields)


def test_an_experiment_is_unfinished_until_those_that_it_reads_are_finished():
  crops, records = EXPERIMENTS['views'], {'lrn/with': with_error(13.0)}
  assert report.missing_conditions(crops, records) == ['lrn/without', '13pct/13pct', '11pct/11pct']
  assert 'Not finished yet: lrn/without, ' in report.render_entry(crops, records, None)
  assert not report.conclude(dict.fromkeys(EXPERIMENTS, records))


def test_every_section_has_claims_and_every_experiment_tests_one():
  assert {claim.section for claim in claims.CLAIMS} == {'3.1', '3.2', '3.3', '3.4', '4.1', '4.2', '5', '6', '6.1', '7'}
  assert set(report.COMPARISONS) == set(EXPERIMENTS)
  for claim in claims.CLAIMS:
    for study in report.STUDIES:
      assert not claim.experiment_in(study) or EXPERIMENTS[claim.experiment_in(study)].study == study
    assert claim.command or claim.experiment
    assert claim.requires in ('', claims.IMAGENET, claims.TWO_DEVICES)
    assert not (claim.requires and claim.experiment)
    assert bool(claim.comparison) == bool(claim.experiment)


def test_every_claim_compares_conditions_of_its_experiment_in_one_metric():
  tested = [name for claim in claims.CLAIMS for name in (claim.experiment, claim.tiny_experiment) if name]
  assert len(set(tested)) == len(tested)
  for name in tested:
    experiment, comparison = EXPERIMENTS[name], report.COMPARISONS[name]
    names = {condition.name for condition in experiment.conditions} | set(conditions_read(experiment))
    assert {*comparison.higher, comparison.lower} - {''} <= names
    assert bool(comparison.lower) + bool(comparison.accepted) + (comparison.metric.unit == 'points') >= 1
    if comparison.metric.unit == 'epochs':  # the threshold in the figure is that of the metric
      assert comparison.metric.name.endswith(f'{experiment.marked_error:g} %')


def test_the_papers_effects_are_the_numbers_in_the_text_of_the_claims():
  for claim in claims.CLAIMS:
    comparison = claim.comparison
    numbers = [float(number) for number in re.findall(r'\d+(?:\.\d+)?', claim.paper.replace('twice', '2'))]
    if not comparison or comparison.paper is None:
      assert not comparison or claim.experiment in ('kernels', 'photographs') or not numbers
    elif claim.experiment in ('ensemble', 'pretraining', 'lrn'):  # from one error to another
      assert comparison.paper == pytest.approx(numbers[0] - numbers[1])
    else:
      assert numbers[:1] in ([comparison.paper], [])  # run 150 is in the logs alone


def test_the_commands_of_claims_name_existing_configs():
  for claim in claims.CLAIMS:
    for command in claim.command.split('; '):
      if command.startswith(':'):
        config_files.load_config(f'configs/alexnet.py{command.split()[0]}')


def test_the_costs_agree_with_the_configs():
  for config, num_epochs, num_training_images, num_images in report.IMAGENET_RUNS:
    assert config_files.load_config(f'configs/alexnet.py{config}').num_epochs == num_epochs
    assert num_training_images < num_images
  assert '| `:imagenet2012` | 90 | 901,000 | 24 | 22 |' in report.render_cost()  # (facts, 1.6)
