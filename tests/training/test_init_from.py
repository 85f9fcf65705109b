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
from alexnet_jax.training import init_from, loop, optimizer, step
from tests.conftest import mesh, mostly_nightly, optimised, small_config


class Parity(Digits):
  """The digits with two classes: even and odd."""

  VERSION = Digits.VERSION

  def _info(self):
    label = tfds.features.ClassLabel(names=['even', 'odd'])
    image = tfds.features.Image(shape=(8, 8, 1), encoding_format='png')
    features = tfds.features.FeaturesDict({'image': image, 'label': label})
    return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=('image', 'label'))

  def _generate_examples(self, test):
    for key, example in super()._generate_examples(test):
      yield key, example | {'label': example['label'] % 2}


def learning_config(data_dir, variants='digits'):
  """Returns a config whose network is nearly as small as that of the `config` fixture, but wide enough to learn."""
  config = small_config(data_dir, variants)
  config.model.width = 1 / 8
  config.num_steps, config.eval_every, config.eval.ten_view = 2, 10**6, False
  config.model.init_std = dict.fromkeys(config.model.init_std, 0.05)
  return config


@pytest.fixture(scope='module')
def origin(data_dir, tmp_path_factory):
  """The folder of a run of two steps."""
  folder = tmp_path_factory.mktemp('origin') / 'run'
  config = learning_config(data_dir)
  config.data.test_split = 'test[:40]'
  loop.train_and_evaluate(config, folder)
  return folder


@pytest.fixture(scope='module')
def learned(data_dir, tmp_path_factory):
  """The folder of a run that has learned the digits."""
  config = learning_config(data_dir)
  config.batch_size = 32
  config.num_steps, config.optimizer.rate = 250, 0.004
  folder = tmp_path_factory.mktemp('learned') / 'run'
  with optimised():
    assert loop.train_and_evaluate(config, folder)['centre']['top1_error'] < 60  # chance is 90
  return folder


def load_params(folder):
  return jax.tree.map(np.asarray, trained_model.load(folder, batch_size=1, num_data=1, num_tower=1).params)


def assert_equal(params, expected, layers):
  for name in layers:
    for part in ('kernel', 'bias'):
      np.testing.assert_array_equal(params[name][part], expected[name][part], err_msg=name)


def draw_params(config):
  """Draws random parameters, in the current mesh."""
  network = build(config.model, 10)
  return step.init_state(
    jax.random.key(3), network=network, optimizer=optimizer.make_optimizer(config.optimizer, 1)
  ).params


CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')


@pytest.mark.parametrize('shape', mostly_nightly([(1, 1), (2, 2)], (2, 2)))
def test_layers_are_loaded_by_name_on_any_mesh(data_dir, origin, shape, capsys):
  config = learning_config(data_dir, 'digits,conv6,finetune')
  config.init_from, config.init_fresh = str(origin), ('fc7', 'fc8')
  current = mesh(*shape)
  with jax.set_mesh(current):
    drawn = draw_params(config)
    params = init_from.initial_params(drawn, config, current)
    assert jax.tree.map(lambda x: x.sharding.spec, params) == jax.tree.map(lambda x: x.sharding.spec, drawn)
  assert_equal(params, load_params(origin), (*CONVOLUTIONS, 'fc6'))
  assert_equal(params, drawn, ('conv6', 'fc7', 'fc8'))
  assert 'randomly initialised: conv6, fc7, fc8' in capsys.readouterr().out


def test_frozen_layers_do_not_change_and_a_run_resumes_without_the_network_they_are_from(data_dir, origin, tmp_path):
  config = learning_config(data_dir, 'digits,finetune')
  config.init_from = str(shutil.copytree(origin, tmp_path / 'origin'))
  config.optimizer.layer_factor.update(dict.fromkeys(CONVOLUTIONS, 0.0))
  config.data.test_split = 'test[:40]'
  loop.train_and_evaluate(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'origin')
  config.num_steps += 2
  assert loop.train_and_evaluate(config, tmp_path / 'run')['step'] == config.num_steps
  before, after = load_params(origin), load_params(tmp_path / 'run')
  assert_equal(after, before, CONVOLUTIONS)
  for name in ('fc6', 'fc7', 'fc8'):
    assert np.any(after[name]['kernel'] != before[name]['kernel']), name


@pytest.mark.slow
def test_the_chain_of_the_networks_with_a_star(data_dir, origin, tmp_path, capsys):
  """Run 145, 146-2009, 146-2011 with a bottleneck, 146-2012 without it (facts, 4)."""
  for previous, variant, loaded in (
    (origin, 'run146_2009', 'conv1, conv2, conv3, conv4, conv5'),
    (tmp_path / 'run146_2009', 'run146_2011', 'conv1, conv2, conv3, conv4, conv5, conv6'),
    (tmp_path / 'run146_2011', 'run146_2012', 'conv1, conv2, conv3, conv4, conv5, conv6, fc6, fc7'),
  ):
    config = learning_config(data_dir, f'digits,{variant}')
    config.init_from = str(previous)
    loop.train_and_evaluate(config, tmp_path / variant)
    assert f': {loaded}\n' in capsys.readouterr().out
  assert 'bottleneck' in load_params(tmp_path / 'run146_2011')
  assert 'bottleneck' not in load_params(tmp_path / 'run146_2012')


@pytest.mark.slow
def test_a_file_of_weights_initialises_like_the_run(data_dir, origin, tmp_path):
  import_export.export_run(origin, tmp_path / 'digits.safetensors')
  config = learning_config(data_dir, 'digits,finetune')
  current, results = mesh(1, 2), []
  with jax.set_mesh(current):
    drawn = draw_params(config)
    for config.init_from in (str(origin), str(tmp_path / 'digits.safetensors')):
      results.append(init_from.initial_params(drawn, config, current))
  assert_equal(*results, results[0])
  shardings = [jax.tree.map(lambda x: x.sharding, params) for params in results]
  assert shardings[0] == shardings[1]


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_fine_tuning_beats_training_from_scratch_in_the_same_number_of_steps(data_dir, learned, tmp_path, seed):
  errors = {}
  for variants in ('digits', 'digits,finetune'):
    config = learning_config(data_dir, variants)
    config.data.name, config.seed, config.batch_size, config.num_steps = 'parity', seed, 32, 40
    config.optimizer.rate = 0.004
    if 'finetune' in variants:
      config.init_from = str(learned)
      config.optimizer.rate *= 0.25
    errors[variants] = loop.train_and_evaluate(config, tmp_path / variants)['centre']['top1_error']
  assert errors['digits,finetune'] < errors['digits'] - 5


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'init_from': 'nowhere'}, 'init_from=nowhere does not exist'),
    ({'init_from': 'tests'}, 'init_from=tests contains no checkpoint'),
    ({'init_from': 'README.md'}, r"Unknown file type '\.md' of README\.md"),
    ({'init_fresh': ('fc9',)}, 'init_fresh contains fc9; the layers of this network are conv1'),
    ({'model.kernels.conv4': 96}, 'differ in shape: conv4 is .*, expected .*; conv5 is .*init_fresh'),
    ({'init_fresh': (*CONVOLUTIONS, 'fc6', 'fc7', 'fc8')}, 'no layer can be loaded'),
    ({'init_from': ''}, 'init_fresh=.* lists layers that are not loaded from another network, and init_from is empty'),
  ],
)
def test_layers_that_cannot_be_loaded_are_reported(data_dir, origin, tmp_path, changes, message):
  config = learning_config(data_dir, 'digits,finetune')
  config.init_from = str(origin)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=message):
    loop.train_and_evaluate(config, tmp_path)


def test_fields_that_change_the_meaning_of_weights_are_reported(data_dir, origin, capsys):
  config = learning_config(data_dir, 'digits,tanh,finetune')
  config.init_from = str(origin)
  current = mesh(1, 1)
  with jax.set_mesh(current):
    init_from.initial_params(draw_params(config), config, current)
  assert 'model.nonlinearity was relu and is tanh' in capsys.readouterr().out
