import numpy as np
import pytest
from jax import numpy as jnp

from alexnet_jax.evaluation import metrics

NAMES = ['cat', 'dog', 'ship']


def test_top_k_credit_agrees_in_numpy_and_jax():
  rng = np.random.default_rng(0)
  values = rng.integers(0, 4, (200, 9)).astype(np.float32)  # many ties
  values[3] = np.nan
  labels = rng.integers(0, 9, 200)
  for k in (1, 5):
    credit = metrics.top_k_credit(values, labels, k)
    on_device = metrics.top_k_credit_on_device(jnp.asarray(values), jnp.asarray(labels), k)
    np.testing.assert_allclose(credit, on_device, rtol=1e-6)
    assert 0 < np.mean(credit) < 1


def test_errors_are_counted_over_labelled_images_in_any_blocks():
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


def test_without_labels_the_result_is_empty():
  counter = metrics.ErrorCounter(NAMES)
  counter.add(np.zeros((5, 3), np.float32), np.full(5, -1, np.int32))
  assert counter.result() == {}


def test_best_classes_are_ordered_by_score_and_then_by_index():
  np.testing.assert_array_equal(metrics.best_classes(np.array([[1, 3, 3, 0, 2.0]]), 4), [[1, 2, 4, 0]])


def test_label_log_prob_is_in_nats(one_device):
  scores = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
  np.testing.assert_allclose(metrics.label_log_prob(scores, jnp.array([1, 0])), np.log([0.5, 0.1]), rtol=1e-6)


def test_label_log_prob_is_finite_if_another_class_has_probability_0():
  scores = jnp.array([[0.0, -jnp.inf]])
  assert float(metrics.label_log_prob(scores, jnp.array([0]))[0]) == 0.0


@pytest.mark.parametrize('k', [1, 5])
def test_credit_is_the_fraction_of_random_orders_of_ties(k):
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (50, 8)).astype(np.float32)  # many ties
  label = rng.integers(0, 8, 50)
  expected = np.zeros(50)
  for _ in range(4000):
    order = np.argsort(-(scores + 1e-3 * rng.random(scores.shape)), axis=1)
    expected += (order[:, :k] == label[:, None]).any(1) / 4000
  np.testing.assert_allclose(
    metrics.top_k_credit_on_device(jnp.asarray(scores), jnp.asarray(label), k), expected, atol=0.04
  )


@pytest.mark.parametrize(('score', 'label'), [(np.nan, 0), (1.0, -1), (1.0, 3)])
def test_nan_and_labels_out_of_range_have_no_credit(score, label):
  assert float(metrics.top_k_credit_on_device(jnp.full((1, 3), score), jnp.array([label]), 1)[0]) == 0.0


def test_equal_scores_for_all_classes_have_the_credit_of_chance():
  credit = metrics.top_k_credit_on_device(jnp.zeros((3, 1000)), jnp.array([0, 500, 999]), 5)
  np.testing.assert_allclose(credit, 0.005)
  np.testing.assert_array_equal(metrics.top_k_credit_on_device(jnp.zeros((1, 3)), jnp.array([0]), 5), 1.0)
