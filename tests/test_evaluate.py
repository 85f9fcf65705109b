import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment, data, evaluate, model, towers
from alexnet_jax.trained import Trained
from tests.conftest import mesh


@pytest.fixture
def test_source(config):
  return data.open_splits(config.data, 96, ['test'])[0]


def untrained(config, shape=(1, 1)):
  config.model.init_std = dict.fromkeys(config.model.init_std, 0.05)
  current = mesh(*shape)
  with jax.set_mesh(current):
    network = model.build(config.model, 10)
    params = jax.jit(network.init)(jax.random.key(0))
  return Trained(network, params, jnp.asarray(MEAN), list('0123456789'), 0, config.model, current)


MEAN = np.full((96, 96, 3), 80, np.float32)


def run(config, source, shape, views, batch_size=32):
  config.eval.batch_size = batch_size
  return evaluate.evaluate(untrained(config, shape), source, config, views)


def test_errors_are_those_of_a_plain_recomputation(config, test_source, one_device):
  trained = untrained(config)
  images = np.stack([test_source[i]['image'] for i in range(360)])
  labels = np.array([int(test_source[i]['label']) for i in range(360)])
  probabilities = np.zeros((360, 10))
  apply = jax.jit(trained.network.apply)
  for top, left, mirrored in augment.ten_views():
    x = (images - MEAN)[:, top : top + 64, left : left + 64]
    x = x[:, :, ::-1] if mirrored else x
    probabilities += np.asarray(jax.nn.softmax(apply(trained.params, towers.put_batch(one_device, x)))) / 10
  ranks = np.argsort(-probabilities, axis=1)
  found = evaluate.evaluate(trained, test_source, config, augment.ten_views())
  assert found['num_examples'] == 360
  assert found['top1_error'] == pytest.approx(100 * np.mean(ranks[:, 0] != labels), abs=1e-3)
  assert found['top5_error'] == pytest.approx(100 * np.mean(~(ranks[:, :5] == labels[:, None]).any(1)), abs=1e-3)
  assert found['log_prob'] == pytest.approx(np.log(probabilities[np.arange(360), labels]).mean(), rel=1e-4)


@pytest.mark.parametrize(('shape', 'batch_size'), [((1, 1), 7), ((1, 1), 500), ((2, 2), 100), ((4, 1), 32)])
def test_batch_size_and_mesh_change_nothing(config, test_source, shape, batch_size):
  plain = run(config, test_source, (1, 1), augment.centre_view())
  other = run(config, test_source, shape, augment.centre_view(), batch_size)
  assert other == pytest.approx(plain, rel=1e-4)


def test_blanks_that_fill_the_last_batch_count_for_nothing(one_device):
  log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
  with_blank = evaluate.score(
    jnp.concatenate([log_probs, jnp.full((1, 2), jnp.nan)]), jnp.array([0, 1, 0]), jnp.array([1.0, 1.0, 0.0])
  )
  without = evaluate.score(log_probs, jnp.array([0, 1]), jnp.array([1.0, 1.0]))
  assert jax.tree.map(float, with_blank) == jax.tree.map(float, without)


def test_table_shows_what_was_measured():
  row = {'top1_error': 37.5, 'top5_error': 17.0, 'log_prob': -1.61466}
  results = {'dataset': 'ilsvrc/2010', 'split': 'test', 'num_examples': 150_000, 'step': 1000, 'ten_view': row}
  text = evaluate.table(results)
  assert '150,000 images' in text
  assert 'ten views' in text
  assert '37.50 %' in text
  assert 'centre' not in text
