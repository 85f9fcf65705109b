import numpy as np
import pytest
from jax import numpy as jnp

from alexnet_jax.evaluation import metrics

NAMES = ['cat', 'dog', 'ship']


def test_top_k_credit_is_that_of_the_step():
  rng = np.random.default_rng(0)
  values = rng.integers(0, 4, (200, 9)).astype(np.float32)  # many ties
  values[3] = np.nan
  labels = rng.integers(0, 9, 200)
  for k in (1, 5):
    found = metrics.top_k_credit(values, labels, k)
    np.testing.assert_allclose(
      found, metrics.top_k_credit_on_device(jnp.asarray(values), jnp.asarray(labels), k), rtol=1e-6
    )
    assert 0 < np.mean(found) < 1


def test_tally_counts_what_has_a_label_whatever_the_blocks():
  log_probs = np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]], np.float32))
  labels = np.array([0, 1, -1, 0], np.int32)
  whole, parts = metrics.ErrorCounter(NAMES), metrics.ErrorCounter(NAMES)
  whole.add(log_probs, labels)
  for row in range(4):
    parts.add(log_probs[row : row + 1], labels[row : row + 1])
  result = whole.result()
  assert parts.result() == result | {'log_prob': pytest.approx(result['log_prob'])}
  assert whole.num_examples == 4
  assert result['top1_error'] == pytest.approx(200 / 3)
  assert result['top5_error'] == 0
  assert result['log_prob'] == pytest.approx(np.log([0.7, 0.3, 0.1]).mean())
  assert result['confused'] == [['cat', 'ship', 1], ['dog', 'cat', 1]]


def test_without_labels_there_is_nothing_to_tell():
  tally = metrics.ErrorCounter(NAMES)
  tally.add(np.zeros((5, 3), np.float32), np.full(5, -1, np.int32))
  assert tally.result() == {}


def test_best_classes_come_best_first_and_of_equals_the_first():
  np.testing.assert_array_equal(metrics.best_classes(np.array([[1, 3, 3, 0, 2.0]]), 4), [[1, 2, 4, 0]])
