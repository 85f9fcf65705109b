import numpy as np
import pytest

from alexnet_jax.analysis import neighbours
from alexnet_jax.runtime.errors import RunError
from tests.conftest import scikit_digits


def search(queries, train, k):
  """Computes all distances in double precision; of equal distances, the earlier row comes first."""
  squares = np.stack([np.square(train.astype(np.float64) - query).sum(1) for query in queries.astype(np.float64)])
  indices = np.argsort(squares, axis=1, kind='stable')[:, :k]
  return indices, np.sqrt(np.take_along_axis(squares, indices, 1))


def rectified(rng, *shape):
  return np.maximum(rng.standard_normal(shape, np.float32) - 0.5, 0)


def copies(rng):
  """Repeats each row fifty times, which is more often than there are candidates, in random order."""
  return np.repeat(rectified(rng, 12, 40), 50, axis=0)[rng.permutation(600)]


def close_together(rng):
  """Returns rows whose differences |a|^2 + |b|^2 - 2ab cannot resolve in single precision."""
  return np.float32(100) + 1e-3 * rng.standard_normal((600, 40)).astype(np.float32)


def digits(rng):
  return scikit_digits().data.astype(np.float32)  # integers, with equal distances


ROWS = {
  'rectified': lambda rng: rectified(rng, 600, 40),
  'copies': copies,
  'close together': close_together,
  'all alike': lambda rng: np.ones((600, 40), np.float32),
  'tiny': lambda rng: rectified(rng, 600, 40) * np.float32(1e-25),
  'digits': digits,
}


@pytest.mark.parametrize('rows', ROWS)
@pytest.mark.parametrize('rows_per_block', [0, 7, 256])
def test_the_result_equals_a_search_in_double_precision(rows, rows_per_block):
  rng = np.random.default_rng(0)
  train = ROWS[rows](rng)
  queries = np.concatenate([train[::100], train[:3] * np.float32(1.01)])
  indices, distances = neighbours.find_nearest(queries, train, 6, rows_per_block)
  expected, expected_distances = search(queries, train, 6)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(distances, expected_distances)


def test_a_search_in_single_precision_would_be_wrong():
  train = close_together(np.random.default_rng(0))
  products = (train**2).sum(1) - 2 * train[:10] @ train.T
  assert (np.argsort(products, axis=1)[:, :6] != search(train[:10], train, 6)[0]).any()


def test_queries_are_processed_in_groups_and_features_may_be_memory_mapped_maps(tmp_path, monkeypatch):
  monkeypatch.setattr(neighbours, 'MAX_QUERIES', 3)
  rng = np.random.default_rng(1)
  np.save(tmp_path / 'train.npy', rectified(rng, 90, 2, 3, 5))
  train, queries = np.load(tmp_path / 'train.npy', mmap_mode='r'), rectified(rng, 7, 2, 3, 5)
  indices, distances = neighbours.find_nearest(queries, train, 90, 32)
  expected, expected_distances = search(queries.reshape(7, -1), train.reshape(90, -1), 90)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(distances, expected_distances)


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
@pytest.mark.parametrize('array', ['queries', 'train'])
def test_features_that_are_not_finite_are_reported(value, array):
  rows = {name: rectified(np.random.default_rng(2), 50, 8) for name in ('queries', 'train')}
  rows[array][30, 2] = value
  with pytest.raises(RunError, match='not finite'):
    neighbours.find_nearest(rows['queries'], rows['train'], 2)
