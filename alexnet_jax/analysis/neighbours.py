"""Exact nearest neighbours among features that are too many for memory (section 6.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from alexnet_jax.runtime.errors import RunError

BLOCK_BYTES = 2**26  # of the features looked through at a time; with the next block being read, twice that
QUERIES_AT_ONCE = 1024  # so many share one reading of the features
SPARE = 26  # candidates kept beside the k, so that few queries need a second reading


def nearest(queries: np.ndarray, train: np.ndarray, k: int, block_rows: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Finds the k nearest rows of each query, exactly as a search with all distances in double precision would.

  The devices compute a lower bound of every distance: |t|^2 - 2 q.t in single precision, less what rounding can have
  done to it. The rows of the smallest bounds are measured again on the host, in double precision. Where even the
  largest bound kept does not lie above the k-th of those distances (copies of one image, say), the rows are read a
  second time and all whose bound lies below it are measured. Of equal distances the earlier row comes first.

  Args:
    queries: [query, ...] float32, in memory or mapped.
    train: [image, ...] float32, in memory or mapped; it is read block by block.
    k: neighbours, at most as many as there are rows.
    block_rows: rows of a block; 0 for as many as take 64 MB.

  Returns:
    Indices [query, k] int64 and distances [query, k] float64, nearest first.

  Raises:
    RunError: if there are numbers that are not finite.
  """
  queries, train = queries.reshape(len(queries), -1), train.reshape(len(train), -1)
  block_rows = min(block_rows or max(1, BLOCK_BYTES // (4 * train.shape[1])), len(train))
  groups = [queries[start : start + QUERIES_AT_ONCE] for start in range(0, len(queries), QUERIES_AT_ONCE)]
  found = []
  with tqdm.tqdm(total=len(groups) * len(train), unit=' rows', unit_scale=True, desc='Distances', mininterval=1) as bar:
    for group in groups:
      found.append(_nearest_of_group(np.asarray(group), train, k, block_rows, bar))
  indices, squares = (np.concatenate(part) for part in zip(*found, strict=True))
  return indices, np.sqrt(squares)


def _nearest_of_group(queries, train, k, block_rows, bar):
  num_kept = min(k + SPARE, len(train))
  shape = (len(queries), num_kept)
  on_device = jnp.asarray(queries)
  bounds, candidates = jnp.full(shape, jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
  for first, block, num_rows in _blocks(train, block_rows):
    bounds.block_until_ready()  # else a fast disk would pile up blocks before a slow device
    bounds, candidates = _keep_smallest(bounds, candidates, on_device, block, first, num_rows)
    bar.update(num_rows)
  bounds, candidates = np.asarray(bounds), np.asarray(candidates)
  if not np.isfinite(bounds).all():
    raise RunError('some features are no finite numbers, or too large to square; look at the run they come from.')

  best = [_merge(query, train[rows], rows, k) for query, rows in zip(queries, candidates, strict=True)]
  # What the k-th distance is as |t|^2 - 2 q.t, a little enlarged since double precision rounds, too.
  limits = np.array([squares[-1] for _, squares in best]) * (1 + 1e-9) - np.square(queries, dtype=np.float64).sum(1)
  unsure = np.flatnonzero(bounds[:, -1] <= limits) if num_kept < len(train) else np.array([], int)
  if unsure.size:
    bar.total += len(train)
    for first, block, num_rows in _blocks(train, block_rows):
      close = np.asarray(_bounds_of(on_device[unsure], block))[:, :num_rows] <= limits[unsure, None]
      for number, is_close in zip(unsure, close, strict=True):
        rows = np.setdiff1d(first + np.flatnonzero(is_close), best[number][0])
        best[number] = _merge(queries[number], block[rows - first], rows, k, best[number])
      bar.update(num_rows)
  return tuple(np.stack(part) for part in zip(*best, strict=True))


def _blocks(rows, block_rows):
  """Yields (number of the first row, a block of rows in memory, how many of it are rows): the last is filled up."""
  for first in range(0, len(rows), block_rows):
    block = np.array(rows[first : first + block_rows])
    num_rows = len(block)
    yield first, np.pad(block, ((0, block_rows - num_rows), (0, 0))), num_rows


def _merge(query, rows, indices, k, best=((), ())):
  """Measures rows in double precision, and returns the indices and squares of the k nearest of them and the best."""
  squares = np.square(rows.astype(np.float64) - query).sum(1)
  indices, squares = (np.concatenate([old, new]) for old, new in zip(best, (indices, squares), strict=True))
  order = np.lexsort((indices, squares))[:k]
  return indices[order].astype(np.int64), squares[order]


@jax.jit
def _bounds_of(queries, block):
  """Returns [query, row]: what |t|^2 - 2 q.t is at least, whatever the order in which products were added.

  It is -inf where a number is not finite, so that such a row cannot go unseen.
  """
  num_products = block.shape[1] + 16  # of 24 bits, with the steps after them
  squares = jnp.sum(block**2, axis=1)
  sizes = 2 * jnp.linalg.norm(queries, axis=1)[:, None] * jnp.sqrt(squares)
  products = jnp.matmul(queries, block.T, precision='highest')
  rounding, underflow = num_products * 2.0**-24, num_products * 2.0**-123
  bounds = squares - 2 * products - rounding * (squares + sizes) - underflow
  return jnp.where(jnp.isnan(bounds), -jnp.inf, bounds)


@jax.jit
def _keep_smallest(bounds, candidates, queries, block, first, num_rows):
  """Takes a block's rows in among the smallest bounds [query, kept] and their rows."""
  new = _bounds_of(queries, block)
  row = jnp.arange(len(block))
  new = jnp.where(row < num_rows, new, jnp.inf)
  rows = jnp.broadcast_to(first + row, new.shape)
  all_bounds, all_rows = jnp.concatenate([bounds, new], 1), jnp.concatenate([candidates, rows], 1)
  smallest, place = jax.lax.top_k(-all_bounds, bounds.shape[1])
  return -smallest, jnp.take_along_axis(all_rows, place, 1)
