import ml_collections
import pytest

from alexnet_jax import fields, train, workdir
from configs import alexnet


def test_the_paper_recipe_has_the_numbers_of_the_paper():
  """Facts, sections 1.5 to 1.7."""
  config = alexnet.paper()
  assert (config.batch_size, config.num_epochs, config.model.image_size) == (128, 90, 224)
  optimizer = config.optimizer
  assert (optimizer.rate, optimizer.momentum, optimizer.weight_decay) == (0.01, 0.9, 0.0005)
  assert (optimizer.schedule, optimizer.rate_factor, optimizer.plateau_drops) == ('plateau', 10, 3)
  assert set(config.model.init_std.values()) == {0.01}
  ones = {name for name, bias in config.model.init_bias.items() if bias == 1}
  assert ones == {'conv2', 'conv4', 'conv5', 'fc6', 'fc7'}
  assert (config.augment.crop, config.augment.mirror, config.augment.colour_std) == (True, True, 0.1)


@pytest.mark.parametrize('name', alexnet.DATASETS)
def test_every_dataset_variant_adds_no_field(name):
  assert fields.flat(alexnet.get_config(name)).keys() == fields.flat(alexnet.paper()).keys()


@pytest.mark.parametrize('name', ['digits', 'cifar10', 'imagenette'])
def test_nothing_is_tuned_on_the_reported_split(name):
  data = alexnet.get_config(name).data
  assert data.validation_split.startswith('train[')
  assert data.test_split not in (data.train_split, data.validation_split)


def test_digits_are_the_default_and_are_not_mirrored():
  config = alexnet.get_config()
  assert config.data.name == 'digits'
  assert not config.augment.mirror


@pytest.mark.parametrize(
  ('variants', 'sentence'), [('nonsense', 'there are digits, '), ('digits,cifar10', 'two datasets')]
)
def test_wrong_variants_say_why(variants, sentence):
  with pytest.raises(ValueError, match=sentence):
    alexnet.get_config(variants)


def test_every_field_is_read_by_something(config, tmp_path, monkeypatch):
  """A field that nobody reads is a bug. Trains with both schedules and records what is looked at."""
  read, names = set(), {}

  def name_parts(part, prefix):
    names[id(part)] = prefix
    for key, value in part.items():
      if isinstance(value, ml_collections.ConfigDict):
        name_parts(value, f'{prefix}{key}.')

  original = ml_collections.ConfigDict.__getitem__

  def recording(self, key):
    read.add(names.get(id(self), '?') + str(key))
    return original(self, key)

  names_of_all = set(fields.flat(config))
  for schedule in ('plateau', 'steps'):
    config.optimizer.schedule = schedule
    if schedule == 'steps':  # here, the length is given by epochs
      config.num_steps, config.num_epochs, config.data.train_split = 0, 1, 'train[:16]'
    name_parts(config, '')
    with monkeypatch.context() as patched:
      # Writing config.json, comparing it and checking bounds look at every field, and do not count.
      patched.setattr(workdir, 'start', lambda *_: None)
      patched.setattr(fields, 'check', lambda config: None)
      patched.setattr(ml_collections.ConfigDict, '__getitem__', recording)
      workdir.default(config)
      train.train_and_evaluate(config, tmp_path / schedule)
  assert names_of_all - read == set()
