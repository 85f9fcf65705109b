import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from alexnet_jax.data import sources
from alexnet_jax.evaluation import ensemble, evaluate
from alexnet_jax.models import device_mesh
from alexnet_jax.runs import config_checks, config_files, run_folder
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import loop
from configs import alexnet

ROOT = pathlib.Path(__file__).parents[2]


def with_value(field, value):
  config = alexnet.get_config()
  part, _, name = field.rpartition('.')
  section = config
  for key in part.split('.') if part else ():
    section = section[key]
  section[name] = value
  return config


@pytest.mark.parametrize('variant', [*alexnet.DATASETS, *alexnet.VARIANTS])
def test_every_variant_is_valid(variant):
  config_checks.check(alexnet.get_config(variant))


@pytest.mark.parametrize(
  'field', ['batch_size', 'log_every', 'heartbeat', 'eval.batch_size', 'optimizer.plateau_patience']
)
def test_some_counts_must_be_positive(field):
  with pytest.raises(UsageError, match=rf'{field}=0 must be 1 or more'):
    config_checks.check(with_value(field, 0))


def test_counts_must_be_integers():
  config = alexnet.get_config()
  config = ConfigDict(config.to_dict() | {'batch_size': 32.5})  # as of a config file; the command line checks types
  with pytest.raises(UsageError, match=r'batch_size=32\.5 must be an integer'):
    config_checks.check(config)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('num_steps', -1),
    ('optimizer.rate', float('nan')),
    ('optimizer.momentum', float('inf')),
    ('seed', -2),
    ('mesh.data', -1),
    ('model.init_std.conv1', -0.1),
  ],
)
def test_numbers_must_not_be_negative(field, value):
  with pytest.raises(UsageError, match=rf'{field}=.* must be 0 or more'):
    config_checks.check(with_value(field, value))


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('seed', 2**32, 'seed=4294967296 must be 4,294,967,295 or less'),
    ('optimizer.momentum', 1.0, 'optimizer.momentum=1.0 must be less than 1'),
    ('model.norm.size', 101, 'norm.size=101 must be odd, 1 to 99'),
    ('optimizer.rate_factor', 0.0, 'must be 0.001 to 1,000,000'),
    ('num_epochs', 0, 'both 0'),
    ('data.unreadable', 'ignore', "data.unreadable='ignore' is unknown; choose 'fail' or 'skip'"),
    ('data.classes', ('1',), 'must name two or more different classes'),
    ('data.classes', ('1', '2', '1'), 'must name two or more different classes'),
    ('data.classes', ('1', 2), r'data.classes=\[.1., 2\] must contain names'),
    ('optimizer.schedule', 'cosine', "optimizer.schedule='cosine' is unknown; choose 'plateau' or 'steps'"),
    ('eval.ensemble', 'median', "eval.ensemble='median' is unknown; choose 'mean' or 'search'"),
    ('model.name', 'resnet', "model.name='resnet' is unknown; choose 'alexnet' or 'cifar'"),
    ('model.dtype', 'float16', "model.dtype='float16' is unknown; choose 'float32' or 'bfloat16'"),
    ('model.image_size', 32, 'model.image_size=32 leaves no pixel after conv5'),
    ('model.meet', (['fc6'],), 'may contain conv2, conv3'),
    ('model.padding.conv2', 5, 'model.padding.conv2=5 must be 0 to 4, or two such numbers'),
    ('model.padding.conv1', (2, 2, 2), 'must be 0 to 10, or two such numbers'),
    ('init_fresh', ('fc8', 'fc9'), 'init_fresh contains fc9; the layers of this network are conv1, .*, fc7, fc8'),
    ('init_fresh', ('bottleneck',), 'init_fresh contains bottleneck; the layers of this network are conv1'),
    ('augment.offsets', 34, 'must be 1 to 33'),
    ('augment.offsets', 0, 'must be 1 to 33'),
    ('augment.colour_until', 1.5, 'augment.colour_until=1.5 must be given as fractions'),
    ('optimizer.steps', (25, 51, 79), r'optimizer.steps=\[25, 51, 79\] must be given as fractions of the run'),
    ('optimizer.steps', (0.5,) * 51, 'optimizer.steps contains 51 steps; name 50 or fewer'),
    ('optimizer.layer_changes.conv1', ((72, 0.0, 0.0),), 'optimizer.layer_changes.conv1=.* must be given as fractions'),
    ('optimizer.layer_changes.conv1', ((0.5, 0.0),), 'must contain triples'),
    ('optimizer.layer_changes.conv1', ((0.5, 'a', 1.0),), 'must contain triples'),
    ('optimizer.steps', ('x',), 'must be given as fractions'),
    ('optimizer.steps', (float('nan'),), 'must be given as fractions'),
    ('optimizer.layer_changes.conv1', (0.5, 0.0), 'must contain triples'),
    ('optimizer.layer_factor.fc8', -1.0, 'optimizer.layer_factor.fc8=-1.0 must be 0 or more'),
    ('optimizer.bias_drops', -2, 'must be -1 or more'),
  ],
)
def test_invalid_values_are_usage_errors(field, value, message):
  with pytest.raises(UsageError, match=message):
    config_checks.check(with_value(field, value))


INVALID_IN_EACH_PART = [
  ('seed', -1),
  ('init_fresh', ('fc9',)),
  ('mesh.tower', -1),
  ('model.nonlinearity', 'sigmoid'),
  ('model.norm.size', 4),
  ('model.kernels.conv1', 0),
  ('optimizer.schedule', 'cosine'),
  ('augment.offsets', 0),
  ('data.unreadable', 'ignore'),
  ('eval.ensemble', 'median'),
]


@pytest.mark.parametrize(('field', 'value'), INVALID_IN_EACH_PART)
def test_invalid_values_are_reported_before_anything_else_is_done(field, value, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError('a device, dataset or run was used')

  monkeypatch.setattr(device_mesh, 'make_mesh', fail)
  monkeypatch.setattr(sources, 'open_splits', fail)
  monkeypatch.setattr(run_folder, 'load_config', fail)
  monkeypatch.setattr(run_folder, 'load_classes', fail)
  config, folder = with_value(field, value), tmp_path / 'run'
  for run in (loop.train_and_evaluate, evaluate.evaluate_run):
    with pytest.raises(UsageError, match=field):
      run(config, folder)
  with pytest.raises(UsageError, match=field):
    ensemble.evaluate_ensemble(config, [folder, folder])
  assert not list(tmp_path.iterdir())


def test_the_network_to_start_from_is_checked_before_anything_else_is_done(trained_run, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError('a device was used')

  monkeypatch.setattr(device_mesh, 'make_mesh', fail)
  empty = tmp_path / 'empty'
  empty.mkdir()
  for fields, message in (
    ({'init_fresh': ('fc8',)}, 'init_fresh=.* and init_from is empty'),
    ({'init_from': str(tmp_path / 'missing')}, 'init_from=.*missing does not exist'),
    ({'init_from': 'x' * 5000}, 'does not exist'),
    ({'init_from': str(empty)}, 'init_from=.*empty contains no checkpoint'),
  ):
    config = alexnet.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UsageError, match=message):
      loop.train_and_evaluate(config, tmp_path / 'run')
  config = with_value('init_from', str(trained_run))
  config_checks.check_initialisation(config)
  assert list(tmp_path.iterdir()) == [empty]


def test_a_config_without_a_field_or_with_another_type_is_a_usage_error():
  config = alexnet.get_config()
  del config.augment['offsets']
  with pytest.raises(UsageError, match=r"the config lacks the field 'augment\.offsets'; add it"):
    config_checks.check(config)
  config = alexnet.get_config()
  config.optimizer.rate = None
  with pytest.raises(UsageError, match=r'a value of another type than configs/alexnet\.py .*; correct it'):
    config_checks.check(config)


def test_validation_uses_no_device():
  program = 'from alexnet_jax.runs import config_checks, config_files\n'
  program += "for name in ('alexnet', 'cifar10'): config_checks.check(config_files.load_config(f'configs/{name}.py'))"
  environment = os.environ | {'JAX_PLATFORMS': 'none_of_this_name'}  # JAX fails as soon as it looks up a device
  result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, env=environment, capture_output=True, check=False)
  assert result.returncode == 0, result.stderr


def test_flatten_returns_every_field_by_its_full_name():
  values = config_files.flatten(alexnet.paper())
  assert values['model.init_bias.conv2'] == 1.0
  assert values['optimizer.steps'] == [25 / 91, 51 / 91, 79 / 91]
