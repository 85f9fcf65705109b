import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from alexnet_jax.data.digits import Digits
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import import_export
from alexnet_jax.models.registry import build
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import init_from, loop, step
from tests.conftest import mesh, optimised, small_config


class Parity(Digits):
  """The digits under another label set: even or odd."""

  VERSION = Digits.VERSION

  def _info(self):
    label = tfds.features.ClassLabel(names=['even', 'odd'])
    image = tfds.features.Image(shape=(8, 8, 1), encoding_format='png')
    features = tfds.features.FeaturesDict({'image': image, 'label': label})
    return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=('image', 'label'))

  def _generate_examples(self, test):
    for key, example in super()._generate_examples(test):
      yield key, example | {'label': example['label'] % 2}


def small(config, names='digits'):
  """The config of some variants, nearly as small as the `config` fixture, but wide enough to learn."""
  other = small_config(config.data.dir, names)
  other.model.width = 1 / 8
  other.num_steps, other.eval_every, other.eval.ten_view = 2, 10**6, False
  other.model.init_std = dict.fromkeys(other.model.init_std, 0.05)
  return other


@pytest.fixture(scope='module')
def origin(data_dir, tmp_path_factory):
  """A small network that has learned the digits."""
  config = small(small_config(data_dir))
  config.batch_size = 32
  config.num_steps, config.optimizer.rate = 250, 0.004
  folder = tmp_path_factory.mktemp('origin') / 'run'
  with optimised():
    assert loop.train_and_evaluate(config, folder)['centre']['top1_error'] < 60  # chance is 90
  return folder


def params_of(folder):
  return jax.tree.map(np.asarray, trained_model.load(folder, batch_size=1, num_data=1, num_tower=1).params)


def assert_same(found, expected, layers):
  for name in layers:
    for part in ('kernel', 'bias'):
      np.testing.assert_array_equal(found[name][part], expected[name][part], err_msg=name)


CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
def test_layers_are_taken_by_name_on_any_mesh(config, origin, shape, capsys):
  config = small(config, 'digits,conv6,finetune')
  config.init_from, config.init_fresh = str(origin), ('fc7', 'fc8')
  current = mesh(*shape)
  with jax.set_mesh(current):
    network = build(config.model, 10)
    fresh = step.init_state(jax.random.key(3), network=network, hyper=step.hyperparameters(config.optimizer)).params
    found = init_from.initial_params(fresh, config, current)
    assert jax.tree.map(lambda x: x.sharding.spec, found) == jax.tree.map(lambda x: x.sharding.spec, fresh)
  assert_same(found, params_of(origin), (*CONVOLUTIONS, 'fc6'))
  assert_same(found, fresh, ('conv6', 'fc7', 'fc8'))
  assert 'fresh: conv6, fc7, fc8' in capsys.readouterr().out


def test_frozen_layers_stay_bit_by_bit_and_the_others_learn(config, origin, tmp_path):
  config = small(config, 'digits,finetune')
  config.init_from = str(origin)
  config.optimizer.layer_factor.update(dict.fromkeys(CONVOLUTIONS, 0.0))
  loop.train_and_evaluate(config, tmp_path)
  before, after = params_of(origin), params_of(tmp_path)
  assert_same(after, before, CONVOLUTIONS)
  for name in ('fc6', 'fc7', 'fc8'):
    assert np.any(after[name]['kernel'] != before[name]['kernel']), name


def test_a_run_goes_on_without_what_it_started_from(config, origin, tmp_path):
  config = small(config, 'digits,finetune')
  config.init_from = str(shutil.copytree(origin, tmp_path / 'origin'))
  loop.train_and_evaluate(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'origin')
  config.num_steps += 2
  assert loop.train_and_evaluate(config, tmp_path / 'run')['step'] == config.num_steps


def test_the_chain_of_the_networks_with_a_star(config, origin, tmp_path, capsys):
  """Run 145, 146-2009, 146-2011 with a bottleneck, 146-2012 without it (facts, 4)."""
  for before, names, taken in (
    (origin, 'run146_2009', 'conv1, conv2, conv3, conv4, conv5'),
    (tmp_path / 'run146_2009', 'run146_2011', 'conv1, conv2, conv3, conv4, conv5, conv6'),
    (tmp_path / 'run146_2011', 'run146_2012', 'conv1, conv2, conv3, conv4, conv5, conv6, fc6, fc7'),
  ):
    chained = small(config, f'digits,{names}')
    chained.init_from = str(before)
    loop.train_and_evaluate(chained, tmp_path / names)
    assert f': {taken}\n' in capsys.readouterr().out
  assert 'bottleneck' in params_of(tmp_path / 'run146_2011')
  assert 'bottleneck' not in params_of(tmp_path / 'run146_2012')


def test_a_file_of_weights_is_as_good_as_the_run(config, origin, tmp_path):
  import_export.export_run(origin, tmp_path / 'digits.safetensors')
  config = small(config, 'digits,finetune')
  current, found = mesh(1, 2), []
  with jax.set_mesh(current):
    network = build(config.model, 10)
    fresh = step.init_state(jax.random.key(3), network=network, hyper=step.hyperparameters(config.optimizer)).params
    for config.init_from in (str(origin), str(tmp_path / 'digits.safetensors')):
      found.append(init_from.initial_params(fresh, config, current))
  assert_same(*found, found[0])
  shardings = [jax.tree.map(lambda x: x.sharding, params) for params in found]
  assert shardings[0] == shardings[1]


@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_fine_tuning_beats_training_from_scratch_at_equal_steps(config, origin, tmp_path, seed):
  errors = {}
  for names in ('digits', 'digits,finetune'):
    own = small(config, names)
    own.data.name, own.seed, own.batch_size, own.num_steps, own.optimizer.rate = 'parity', seed, 32, 40, 0.004
    if 'finetune' in names:
      own.init_from = str(origin)
      own.optimizer.rate *= 0.25
    errors[names] = loop.train_and_evaluate(own, tmp_path / names)['centre']['top1_error']
  assert errors['digits,finetune'] < errors['digits'] - 5


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'init_from': 'nowhere'}, 'init_from=nowhere does not exist'),
    ({'init_from': 'tests'}, 'init_from=tests holds no checkpoint'),
    ({'init_from': 'README.md'}, r'README\.md has no suffix that says what it is'),
    ({'init_fresh': ('fc9',)}, 'init_fresh names fc9; this network has .*conv1'),
    ({'model.kernels.conv4': 96}, 'layers of other shapes: conv4 is .* there and .* here; conv5 is .*init_fresh'),
    ({'init_fresh': (*CONVOLUTIONS, 'fc6', 'fc7', 'fc8')}, 'has no layer to take'),
    ({'init_from': ''}, 'init_fresh=.* is of layers that start fresh'),
  ],
)
def test_what_cannot_be_taken_says_why(config, origin, tmp_path, changes, sentence):
  config = small(config, 'digits,finetune')
  config.init_from = str(origin)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=sentence):
    loop.train_and_evaluate(config, tmp_path)


def test_what_weights_meant_there_is_said(config, origin, capsys):
  config = small(config, 'digits,tanh,finetune')
  config.init_from = str(origin)
  current = mesh(1, 1)
  with jax.set_mesh(current):
    network = build(config.model, 10)
    fresh = step.init_state(jax.random.key(3), network=network, hyper=step.hyperparameters(config.optimizer)).params
    init_from.initial_params(fresh, config, current)
  assert 'model.nonlinearity was relu and is tanh' in capsys.readouterr().out
