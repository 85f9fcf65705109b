"""Exact nearest neighbours among features that do not fit in memory (section 6.1)."""

import math
from collections.abc import Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from alexnet_jax.runtime.errors import RunError

BLOCK_BYTES = 2**26  # size of a block of features; two blocks are in memory at a time
MAX_QUERIES = 1024  # queries that are compared in one pass over the features
NUM_SPARE = 26  # candidates per query in addition to k; with these, few queries require a second pass


class Rows(Protocol):
  """Rows of numbers that are read when they are indexed: an array, in memory or memory-mapped, or the like."""

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape [row, ...] of all rows."""

  def __len__(self) -> int: ...

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray: ...


def find_nearest(queries: np.ndarray, train: Rows, k: int, rows_per_block: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Finds the k nearest rows of each query, exactly as if all distances were computed in double precision.

  The devices compute a lower bound of every distance: |t|^2 - 2 q.t in single precision, minus the largest possible
  rounding error. The rows with the smallest bounds are the candidates; the host computes their distances in double
  precision. A query is undecided if its largest candidate bound is not above its k-th distance, as with many copies of
  an image. For undecided queries, a second pass computes the distances of all rows whose bound is not above the k-th
  distance. Of equal distances, the earlier row comes first.

  Args:
    queries: [query, ...] float32, in memory or memory-mapped.
    train: [image, ...] float32, read in blocks.
    k: number of neighbours, 1 to the number of rows.
    rows_per_block: rows in a block; 0 for blocks of 64 MB.

  Returns:
    Indices [query, k] int64 and distances [query, k] float64, nearest first.

  Raises:
    RunError: if a feature is not finite, or too large to be squared.
  """
  queries = _flatten(queries)
  rows_per_block = min(rows_per_block or max(1, BLOCK_BYTES // (4 * math.prod(train.shape[1:]))), len(train))
  groups = [queries[start : start + MAX_QUERIES] for start in range(0, len(queries), MAX_QUERIES)]
  nearest = []
  with tqdm.tqdm(total=len(groups) * len(train), unit=' rows', unit_scale=True, desc='Distances', mininterval=1) as bar:
    for group in groups:
      nearest += _find_nearest(np.asarray(group), train, k, rows_per_block, bar)
  indices, squares = (np.stack(arrays) for arrays in zip(*nearest, strict=True))
  return indices, np.sqrt(squares)


def _find_nearest(queries, train, k, rows_per_block, bar) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns the indices [k] and squared distances [k] of the nearest rows of each query."""
  bounds, candidates = _find_candidates(queries, train, min(k + NUM_SPARE, len(train)), rows_per_block, bar)
  if not np.isfinite(bounds).all():
    raise RunError('some features are not finite or too large to be squared; check the run that they come from.')
  nearest = [_merge(query, _flatten(train[rows]), rows, k) for query, rows in zip(queries, candidates, strict=True)]
  if bounds.shape[1] == len(train):
    return nearest

  # The k-th distance in the form |t|^2 - 2 q.t, slightly enlarged because double precision rounds as well.
  limits = np.array([squares[-1] for _, squares in nearest]) * (1 + 1e-9) - np.square(queries, dtype=np.float64).sum(1)
  undecided = np.flatnonzero(bounds[:, -1] <= limits)
  if undecided.size:
    bar.total += len(train)
    queries_on_device = jnp.asarray(queries[undecided])
    for first, block, num_rows in _read_blocks(train, rows_per_block):
      is_close = np.asarray(_lower_bounds(queries_on_device, block))[:, :num_rows] <= limits[undecided, None]
      for query, is_close_row in zip(undecided, is_close, strict=True):
        rows = np.setdiff1d(first + np.flatnonzero(is_close_row), nearest[query][0])
        nearest[query] = _merge(queries[query], block[rows - first], rows, k, nearest[query])
      bar.update(num_rows)
  return nearest


def _find_candidates(queries, train, num_candidates, rows_per_block, bar) -> tuple[np.ndarray, np.ndarray]:
  """Returns the smallest lower bounds of each query, in ascending order, and their rows: [query, candidate] each."""
  queries_on_device, shape = jnp.asarray(queries), (len(queries), num_candidates)
  bounds, candidates = jnp.full(shape, jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
  for first, block, num_rows in _read_blocks(train, rows_per_block):
    bounds.block_until_ready()  # otherwise blocks would accumulate in memory if the disk is faster than the device
    bounds, candidates = _update_candidates(bounds, candidates, queries_on_device, block, first, num_rows)
    bar.update(num_rows)
  return np.asarray(bounds), np.asarray(candidates)


def _read_blocks(rows, rows_per_block) -> Iterator[tuple[int, np.ndarray, int]]:
  """Yields (index of the first row, block, number of rows in it); the last block is padded with zeros."""
  for first in range(0, len(rows), rows_per_block):
    block = _flatten(np.array(rows[first : first + rows_per_block]))
    num_rows = len(block)
    yield first, np.pad(block, ((0, rows_per_block - num_rows), (0, 0))), num_rows


def _flatten(rows):
  """Returns the rows as an array [row, value]."""
  return rows.reshape(len(rows), -1)


def _merge(query, rows, indices, k, nearest=((), ())) -> tuple[np.ndarray, np.ndarray]:
  """Returns the indices and squared distances of the k nearest among new rows and the previously nearest ones."""
  squares = np.square(rows.astype(np.float64) - query).sum(1)
  indices, squares = (np.concatenate([old, new]) for old, new in zip(nearest, (indices, squares), strict=True))
  order = np.lexsort((indices, squares))[:k]
  return indices[order].astype(np.int64), squares[order]


@jax.jit
def _lower_bounds(queries, block):
  """Returns lower bounds [query, row] of |t|^2 - 2 q.t that hold for any order of summation.

  A bound is -inf if a number is not finite, which makes the row a candidate.
  """
  num_products = block.shape[1] + 16  # roundings to 24 bits: one per product, and those of the steps below
  squares = jnp.sum(block**2, axis=1)
  sizes = 2 * jnp.linalg.norm(queries, axis=1)[:, None] * jnp.sqrt(squares)
  products = jnp.matmul(queries, block.T, precision='highest')
  rounding, underflow = num_products * 2.0**-24, num_products * 2.0**-123
  bounds = squares - 2 * products - rounding * (squares + sizes) - underflow
  return jnp.where(jnp.isnan(bounds), -jnp.inf, bounds)


@jax.jit
def _update_candidates(bounds, candidates, queries, block, first, num_rows):
  """Returns the smallest bounds [query, candidate] and their rows after a further block of rows."""
  row = jnp.arange(len(block))
  block_bounds = jnp.where(row < num_rows, _lower_bounds(queries, block), jnp.inf)
  rows = jnp.broadcast_to(first + row, block_bounds.shape)
  all_bounds, all_rows = jnp.concatenate([bounds, block_bounds], 1), jnp.concatenate([candidates, rows], 1)
  smallest, ranks = jax.lax.top_k(-all_bounds, bounds.shape[1])
  return -smallest, jnp.take_along_axis(all_rows, ranks, 1)
