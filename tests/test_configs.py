import pathlib

import ml_collections
import pytest

from alexnet_jax.evaluation import ensemble
from alexnet_jax.models import registry
from alexnet_jax.runs import config_checks, config_files, run_folder
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import init_from, loop
from configs import alexnet, cifar10

ROOT = pathlib.Path(__file__).parents[1]


def test_the_paper_recipe_has_the_numbers_of_the_paper():
  """Facts, sections 1.5 to 1.7."""
  config = alexnet.paper()
  assert (config.batch_size, config.num_epochs, config.model.image_size) == (128, 90, 224)
  optimizer = config.optimizer
  assert (optimizer.rate, optimizer.momentum, optimizer.weight_decay) == (0.01, 0.9, 0.0005)
  assert (optimizer.schedule, optimizer.rate_factor, optimizer.plateau_drops) == ('plateau', 10, 3)
  assert set(config.model.init_std.values()) == {0.01}
  ones = {name for name, bias in config.model.init_bias.items() if bias == 1}
  assert ones - {'conv6'} == {'conv2', 'conv4', 'conv5', 'fc6', 'fc7'}  # the paper does not specify conv6
  assert (config.augment.crop, config.augment.mirror, config.augment.colour_std) == (True, True, 0.1)


def test_as_run_has_the_numbers_of_run_145():
  """Facts, section 7, row by row; test_optimizer.py tests the learning rates."""
  config = alexnet.get_config('imagenet2012,as_run')
  norm = config.model.norm
  assert (norm.k, norm.size, norm.alpha, norm.beta) == (2.0, 5, 2e-5, 0.75)
  assert (norm.before, norm.after, norm.within) == (('conv1',), ('conv2',), ('conv2',))
  std = {name: 0.03 if name in ('conv3', 'conv4', 'conv5', 'conv6') else 0.01 for name in alexnet.LAYERS}
  assert config.model.init_std.to_dict() == std
  assert config.model.init_bias == alexnet.paper().model.init_bias
  assert config.model.centre_mean
  augment = config.augment
  assert (augment.offsets, augment.shared_by, augment.colour_std) == (33, 32, 0.1)
  assert (augment.colour_rescale, augment.colour_until) == (True, 67 / 91)
  assert not config.data.reshuffle
  assert not config.optimizer.bias_decay
  assert (config.batch_size, config.num_epochs) == (128, 91)


@pytest.mark.parametrize('name', [*alexnet.DATASETS, *alexnet.VARIANTS])
def test_no_variant_adds_a_field(name):
  assert config_files.flatten(alexnet.get_config(name)).keys() == config_files.flatten(alexnet.paper()).keys()


@pytest.mark.parametrize('recipes', [alexnet, cifar10])
def test_every_variant_is_documented(recipes):
  page = (ROOT / 'docs' / 'variants.md').read_text()
  names = [*recipes.VARIANTS, *getattr(recipes, 'DATASETS', ()), *getattr(recipes, 'NETWORKS', ())]
  assert not [name for name in names if f'`{name}`' not in page]


@pytest.mark.parametrize('name', ['digits', 'cifar10', 'imagenette', 'tiny_imagenet'])
def test_no_validation_split_is_the_test_split(name):
  data = alexnet.get_config(name).data
  assert data.validation_split.startswith('train[')
  assert data.test_split not in (data.train_split, data.validation_split)


def test_digits_are_the_default_dataset_and_are_not_mirrored():
  config = alexnet.get_config()
  assert config.data.name == 'digits'
  assert not config.augment.mirror


@pytest.mark.parametrize(
  ('variants', 'message'),
  [
    ('nonsense', 'there are as_run, .*, and the datasets digits, '),
    ('digits,cifar10', 'are 2 datasets; name one'),
    ('digits,,tanh', "'digits,,tanh' contains an empty name; remove a comma"),
    ('one_tower,run150', 'one_tower and run150 exclude each other: a single tower'),
    ('without_conv5,without_conv3,without_conv4', 'needs one of these layers'),
  ],
)
def test_invalid_variants_are_reported(variants, message):
  with pytest.raises(ValueError, match=message):
    alexnet.get_config(variants)


@pytest.mark.slow
def test_every_field_is_read(config, trained_run, tmp_path, monkeypatch):
  """A field that no code reads is a bug. Trains with both schedules and records the fields that are read."""
  fields_read, prefixes = set(), {}

  def record_prefixes(part, prefix):
    prefixes[id(part)] = prefix
    for key, value in part.items():
      if isinstance(value, ml_collections.ConfigDict):
        record_prefixes(value, f'{prefix}{key}.')

  getitem, freeze = ml_collections.ConfigDict.__getitem__, registry.FrozenConfigDict

  def record_and_get(self, key):
    fields_read.add(prefixes.get(id(self), '?') + str(key))
    return getitem(self, key)

  def freeze_and_record(config):
    """Copying a config does not count, but reading the copy does."""
    with pytest.MonkeyPatch.context() as unpatched:
      unpatched.setattr(ml_collections.ConfigDict, '__getitem__', getitem)
      frozen = freeze(config)
      record_prefixes(frozen, 'model.')
    return frozen

  config.model.kernels.update(conv6=128, bottleneck=128)  # otherwise their fields are not read
  fields = set(config_files.flatten(config))
  for schedule in ('plateau', 'steps'):
    config.optimizer.schedule = schedule
    if schedule == 'steps':  # this run has its length in epochs
      config.num_steps, config.num_epochs, config.data.train_split = 0, 1, 'train[:16]'
      config.init_from, config.init_fresh = str(trained_run), ('fc8',)  # which is larger without a bottleneck
    record_prefixes(config, '')
    with monkeypatch.context() as patched:
      # Writing config.json and validating or comparing configs read every field and do not count.
      patched.setattr(run_folder, 'write_metadata', lambda *_: None)
      patched.setattr(config_checks, 'check', lambda config: None)
      patched.setattr(init_from, '_differences', lambda *_: [])
      patched.setattr(ml_collections.ConfigDict, '__getitem__', record_and_get)
      patched.setattr(registry, 'FrozenConfigDict', freeze_and_record)
      patched.setattr(ml_collections.FrozenConfigDict, '__eq__', object.__eq__)  # the original reads all fields
      run_folder.default_folder(config)
      loop.train_and_evaluate(config, tmp_path / schedule)
      with pytest.raises(UsageError, match=r'classes\.txt is missing'):
        ensemble.evaluate_ensemble(config, [tmp_path / 'plateau', tmp_path / 'steps'])
  assert fields - fields_read == {'heartbeat'}  # which main.py reads
