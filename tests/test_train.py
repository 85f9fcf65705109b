import json

import jax
import numpy as np
import pytest

from alexnet_jax import evaluate, model, step, train
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.errors import RunError, UsageError
from tests.conftest import mesh


def final_state(config, folder):
  """Reads the newest checkpoint of a run, as numpy arrays."""
  current = mesh(1, 1)
  with jax.set_mesh(current):
    network = model.build(config.model, 10)
    hyper = step.Hyperparameters(config.optimizer.momentum, config.optimizer.weight_decay)
    state, run = Checkpoints(folder).restore(step.abstract_state(network, hyper), current)
  return jax.tree.map(np.asarray, state), run


def assert_bit_equal(one, other):
  (states, run), (other_states, other_run) = one, other
  assert run == other_run
  for (path, a), b in zip(jax.tree.leaves_with_path(states), jax.tree.leaves(other_states), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_train_stop_continue_is_train_through_bit_for_bit(config, tmp_path):
  """Across a rate drop: the plateau's state, too, is part of the checkpoint."""
  config.num_steps, config.eval_every, config.checkpoint_every = 10, 3, 4
  config.optimizer.plateau_patience = 1
  config.optimizer.rate = 1e-7  # nothing is learned, so the plateau is reached at once
  config.augment.mirror = True
  train.train_and_evaluate(config, tmp_path / 'straight')
  through = final_state(config, tmp_path / 'straight')
  assert 0 < through[1]['schedule']['drops'] <= 3

  for num_steps in (3, 8, 10):  # stops on and off the steps of checkpoints and evaluations
    config.num_steps = num_steps
    train.train_and_evaluate(config, tmp_path / 'stopped')
  assert_bit_equal(final_state(config, tmp_path / 'stopped'), through)


def test_the_run_leaves_what_the_contract_says(config, tmp_path, capsys):
  results = train.train_and_evaluate(config, tmp_path)
  assert json.loads((tmp_path / 'results.json').read_text()) == results
  assert results['dataset'] == 'digits/1.0.0'
  assert (results['split'], results['num_examples'], results['step']) == ('test', 360, 4)
  for protocol in ('centre', 'ten_view'):
    assert set(results[protocol]) == {'top1_error', 'top5_error', 'log_prob'}
    assert 0 <= results[protocol]['top5_error'] <= results[protocol]['top1_error'] <= 100
    assert results[protocol]['log_prob'] < 0
  assert list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))
  assert json.loads((tmp_path / 'config.json').read_text())['model']['image_size'] == 64
  output = capsys.readouterr().out
  assert f'jax {jax.__version__}' in output
  assert 'ten views' in output

  again = evaluate.evaluate_workdir(config, tmp_path)
  assert again == results


def test_a_finished_run_is_not_started_over(config, tmp_path, capsys):
  first = train.train_and_evaluate(config, tmp_path)
  before = final_state(config, tmp_path)
  capsys.readouterr()
  assert train.train_and_evaluate(config, tmp_path) == first
  assert 'going on from step 4' in capsys.readouterr().out
  assert_bit_equal(final_state(config, tmp_path), before)


def test_the_step_compiles_once_and_once_after_a_restore(config, tmp_path):
  config.eval.ten_view = False
  for num_steps in (3, 6):
    config.num_steps = num_steps
    before = step.train_step._cache_size()
    train.train_and_evaluate(config, tmp_path)
    assert step.train_step._cache_size() - before == 1


def test_two_seeds_are_two_runs(config, tmp_path):
  config.eval.ten_view = False
  config.num_steps = 1
  kernels = []
  for seed in (0, 1):
    config.seed = seed
    train.train_and_evaluate(config, tmp_path / str(seed))
    kernels.append(final_state(config, tmp_path / str(seed))[0].params['conv1']['kernel'])
  assert np.all(kernels[0] != kernels[1])


def test_a_plateau_at_the_lowest_rate_ends_the_run(config, tmp_path):
  config.num_steps, config.eval_every, config.eval.ten_view = 50, 1, False
  config.optimizer.rate, config.optimizer.plateau_patience = 1e-9, 1
  results = train.train_and_evaluate(config, tmp_path)
  assert results['step'] == 5  # one evaluation sets the best error, four more find no better one


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoints(config, tmp_path):
  config.checkpoint_every, config.eval.ten_view = 2, False
  train.train_and_evaluate(config, tmp_path)
  before = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  good = final_state(config, tmp_path)

  config.num_steps = 12
  network_rate, step_fn = 1e30, step.train_step

  def exploding(state, batch, mean_image, rate, key, **kwargs):
    return step_fn(state, batch, mean_image, np.float32(network_rate), key, **kwargs)

  step.train_step = exploding
  try:
    with pytest.raises(RunError, match=r'(loss|parameters).*step \d.*checkpoints from before are kept.*optimizer.rate'):
      train.train_and_evaluate(config, tmp_path)
  finally:
    step.train_step = step_fn
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == before
  assert_bit_equal(final_state(config, tmp_path), good)


def test_evaluating_what_does_not_fit_says_so(config, tmp_path):
  with pytest.raises(UsageError, match='holds no run'):
    evaluate.evaluate_workdir(config, tmp_path / 'nothing')
  config.eval.ten_view = False
  train.train_and_evaluate(config, tmp_path / 'run')
  (tmp_path / 'run' / 'classes.txt').write_text('one\ntwo\nthree\n')
  with pytest.raises(UsageError, match='has 10 classes'):
    evaluate.evaluate_workdir(config, tmp_path / 'run')


def test_a_small_network_learns_the_digits(config, tmp_path):
  """Real images, real learning: chance is 90 % error."""
  config.num_steps, config.batch_size, config.model.width = 300, 32, 1 / 8
  config.optimizer.rate, config.eval_every = 0.004, 10**6
  config.model.init_std = dict.fromkeys(config.model.init_std, 0.05)
  config.eval.ten_view = False
  results = train.train_and_evaluate(config, tmp_path)
  assert results['centre']['top1_error'] < 30


def test_cifar10_trains(config, tmp_path, shared_data):
  config.data.name, config.data.dir = 'cifar10', str(shared_data / 'tfds')
  config.data.train_split, config.data.validation_split, config.data.test_split = (
    'train[:2%]',
    'train[99%:]',
    'test[:3%]',
  )
  config.eval.ten_view = False
  results = train.train_and_evaluate(config, tmp_path)
  assert (results['num_examples'], results['dataset']) == (300, 'cifar10/3.0.2')


def test_an_odd_number_of_classes_is_counted_without_the_surplus_unit(one_device, config):
  network = model.build(config.model, 7)
  params = jax.jit(network.init)(jax.random.key(0))
  counted = train.parameter_table(params, 7).splitlines()
  fc8 = next(line for line in counted if line.startswith('fc8'))
  assert int(fc8.split()[1].replace(',', '')) == 7 * (params['fc8']['kernel'].shape[1] + 1)
