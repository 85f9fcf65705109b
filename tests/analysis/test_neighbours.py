import numpy as np
import pytest
import sklearn.datasets

from alexnet_jax.analysis import neighbours
from alexnet_jax.runtime.errors import RunError


def search(queries, train, k):
  """All distances in double precision; of equal ones the earlier row first."""
  squares = np.stack([np.square(train.astype(np.float64) - query).sum(1) for query in queries.astype(np.float64)])
  indices = np.argsort(squares, axis=1, kind='stable')[:, :k]
  return indices, np.sqrt(np.take_along_axis(squares, indices, 1))


def rectified(rng, *shape):
  return np.maximum(rng.standard_normal(shape, np.float32) - 0.5, 0)


def copies(rng):
  """Each row fifty times, more than there are candidates, and in another order."""
  return np.repeat(rectified(rng, 12, 40), 50, axis=0)[rng.permutation(600)]


def close_together(rng):
  """Rows that differ by far less than |a|^2 + |b|^2 - 2ab in single precision can tell."""
  return np.float32(100) + 1e-3 * rng.standard_normal((600, 40)).astype(np.float32)


def digits(rng):
  return sklearn.datasets.load_digits().data.astype(np.float32)  # whole numbers, with ties


ROWS = {
  'rectified': lambda rng: rectified(rng, 600, 40),
  'copies': copies,
  'close together': close_together,
  'all alike': lambda rng: np.ones((600, 40), np.float32),
  'tiny': lambda rng: rectified(rng, 600, 40) * np.float32(1e-25),
  'digits': digits,
}


@pytest.mark.parametrize('rows', ROWS)
@pytest.mark.parametrize('block_rows', [0, 7, 256])
def test_what_is_found_equals_a_search_in_double_precision(rows, block_rows):
  rng = np.random.default_rng(0)
  train = ROWS[rows](rng)
  queries = np.concatenate([train[::100], train[:3] * np.float32(1.01)])
  indices, distances = neighbours.nearest(queries, train, 6, block_rows)
  expected, expected_distances = search(queries, train, 6)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(distances, expected_distances)


def test_single_precision_alone_would_not_find_them():
  train = close_together(np.random.default_rng(0))
  products = (train**2).sum(1) - 2 * train[:10] @ train.T
  assert (np.argsort(products, axis=1)[:, :6] != search(train[:10], train, 6)[0]).any()


def test_queries_come_in_groups_and_features_may_be_maps_on_disk(tmp_path, monkeypatch):
  monkeypatch.setattr(neighbours, 'QUERIES_AT_ONCE', 3)
  rng = np.random.default_rng(1)
  np.save(tmp_path / 'train.npy', rectified(rng, 90, 2, 3, 5))
  train, queries = np.load(tmp_path / 'train.npy', mmap_mode='r'), rectified(rng, 7, 2, 3, 5)
  indices, distances = neighbours.nearest(queries, train, 90, 32)
  expected, expected_distances = search(queries.reshape(7, -1), train.reshape(90, -1), 90)
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(distances, expected_distances)


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
@pytest.mark.parametrize('where', ['queries', 'train'])
def test_what_is_not_finite_is_said(value, where):
  rows = {name: rectified(np.random.default_rng(2), 50, 8) for name in ('queries', 'train')}
  rows[where][30, 2] = value
  with pytest.raises(RunError, match='no finite numbers'):
    neighbours.nearest(rows['queries'], rows['train'], 2)
