"""Windows along the axes of an array: the parts that layers and their fast forms share."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def num_windows(side: int, size: int, stride: int = 2) -> int:
  """Counts the pooling windows along a side; the last one may extend past the edge (facts, 1.3)."""
  return math.ceil((side - size) / stride) + 1


def window_slices(x: jax.Array, axis: int, size: int, stride: int, fill: float = -jnp.inf) -> list[jax.Array]:
  """Slices an axis into `size` arrays: the first elements of all windows, the second elements, and so on.

  Args:
    x: any array.
    axis: along which the windows lie.
    size: of a window.
    stride: from one window to the next.
    fill: value past the edge, where the last window extends past it.

  Returns:
    `size` arrays with one element per window along the axis.
  """
  span = (num_windows(x.shape[axis], size, stride) - 1) * stride + 1
  if overhang := max(span - 1 + size - x.shape[axis], 0):
    x = pad_axis(x, axis, fill, (0, overhang, 0))
  return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)]


def pad_axis(x: jax.Array, axis: int, fill: float, edges: tuple[int, int, int]) -> jax.Array:
  """Pads one axis by (before, after, between elements); a negative number crops it."""
  no_edges = (0, 0, 0)
  return lax.pad(x, jnp.array(fill, x.dtype), [edges if a == axis else no_edges for a in range(x.ndim)])


def largest_divisor(number: int, limit: int) -> int:
  """Returns the largest divisor of a positive number up to a limit, at least 1: the size of equal parts."""
  return max(part for part in range(1, max(1, min(limit, number)) + 1) if number % part == 0)
