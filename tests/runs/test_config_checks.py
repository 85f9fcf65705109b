import pytest

from alexnet_jax.runs import config_checks
from alexnet_jax.runtime.errors import UsageError
from configs import alexnet


def with_value(field, value):
  config = alexnet.get_config()
  part, _, name = field.rpartition('.')
  section = config
  for key in part.split('.') if part else ():
    section = section[key]
  section[name] = value
  return config


@pytest.mark.parametrize('variant', [*alexnet.DATASETS, *alexnet.VARIANTS])
def test_every_variant_is_within_bounds(variant):
  config_checks.check(alexnet.get_config(variant))


@pytest.mark.parametrize(
  'field', ['batch_size', 'log_every', 'heartbeat', 'eval.batch_size', 'optimizer.plateau_patience']
)
def test_counts_must_be_positive(field):
  with pytest.raises(UsageError, match=rf'{field}=0 must be 1 or more'):
    config_checks.check(with_value(field, 0))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('num_steps', -1),
    ('optimizer.rate', float('nan')),
    ('optimizer.momentum', float('inf')),
    ('seed', -2),
    ('model.init_std.conv1', -0.1),
  ],
)
def test_amounts_must_not_be_negative(field, value):
  with pytest.raises(UsageError, match=rf'{field}=.* must be 0 or more'):
    config_checks.check(with_value(field, value))


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('seed', 2**32, 'seed=4294967296 must be 4,294,967,295 or less'),
    ('optimizer.rate_factor', 0.0, 'above 0'),
    ('num_epochs', 0, 'both 0'),
    ('data.unreadable', 'ignore', "data.unreadable='ignore' is unknown; choose 'fail' or 'skip'"),
    ('augment.offsets', 34, 'must be 1 to 33'),
    ('augment.offsets', 0, 'must be 1 to 33'),
    ('augment.colour_until', 1.5, 'augment.colour_until=1.5 must be in fractions'),
    ('optimizer.steps', (25, 51, 79), r'optimizer.steps=\[25, 51, 79\] must be in fractions of the run'),
    ('optimizer.layer_changes.conv1', ((72, 0.0, 0.0),), 'optimizer.layer_changes.conv1=.* must be in fractions'),
    ('optimizer.layer_changes.conv1', ((0.5, 0.0),), 'must be of triples'),
    ('optimizer.layer_changes.conv1', ((0.5, 'a', 1.0),), 'must be of triples'),
    ('optimizer.steps', ('x',), 'must be in fractions'),
    ('optimizer.steps', (float('nan'),), 'must be in fractions'),
    ('optimizer.layer_changes.conv1', (0.5, 0.0), 'must be of triples'),
    ('optimizer.layer_factor.fc8', -1.0, 'optimizer.layer_factor.fc8=-1.0 must be 0 or more'),
    ('optimizer.bias_drops', -2, 'must be -1, for all, or more'),
  ],
)
def test_other_bounds(field, value, sentence):
  with pytest.raises(UsageError, match=sentence):
    config_checks.check(with_value(field, value))


def test_flat_names_every_field():
  names = config_checks.flatten(alexnet.paper())
  assert names['model.init_bias.conv2'] == 1.0
  assert names['optimizer.steps'] == [25 / 91, 51 / 91, 79 / 91]
