"""Fast forms of overlapping max-pooling, with gradients of their own.

On a CPU, XLA's gradient of `lax.reduce_window` takes four times as long and that of `jnp.maximum` twice as long.
Pooling along one axis and then along the other, two passes of three slices, moves a third of the memory of one pass of
nine.

A GPU is limited by its memory. There, one pass pools both axes, and the gradient reads 16 bits for each window, which
mark the maxima, instead of the maps and their maxima.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.kernels import barriers
from alexnet_jax.kernels.windows import pad_axis, window_slices

MAX_MARKED_PIXELS = 16  # bits of the mark of a window


def max_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
  """Computes `layers.max_pool`. A CPU divides the gradient of tied pixels between rows first, then within each row."""
  if jax.default_backend() != 'cpu' and _cell_size(size, stride) ** 2 <= MAX_MARKED_PIXELS:
    return _pool_both_axes(x, x.shape, size, stride)
  return _pool_axis(_pool_axis(x, 3, size, stride), 2, size, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool_axis(x, axis, size, stride):
  return functools.reduce(jnp.maximum, window_slices(x, axis, size, stride))


def _pool_axis_forward(x, axis, size, stride):
  # The maxima are read by the next layer, its gradient, and the gradient here at every pixel.
  y = barriers.written_once_on_cpu(_pool_axis(x, axis, size, stride))
  return y, (x, y)


def _pool_axis_backward(axis, size, stride, residuals, dy):
  x, y = residuals
  pixels = window_slices(x, axis, size, stride)
  # No pixel is greater than the maximum. With one spelling of the comparison for both uses XLA writes it to memory.
  dy_per_tie = dy / sum((pixel >= y).astype(dy.dtype) for pixel in pixels)
  parts = [jnp.where(pixel == y, dy_per_tie, 0) for pixel in pixels]
  # Cells of `stride` pixels cover the axis. Window w begins with cell w: its i-th pixel lies in cell w + i // stride.
  num_cells = -(-x.shape[axis] // stride)

  def in_cells(i):
    return pad_axis(parts[i], axis, 0, (i // stride, num_cells - i // stride - y.shape[axis], 0))

  gradients = [sum(in_cells(i) for i in range(offset, size, stride)) for offset in range(stride)]
  cells = jnp.stack(gradients, axis + 1).reshape(*x.shape[:axis], num_cells * stride, *x.shape[axis + 1 :])
  return (lax.slice_in_dim(cells, 0, x.shape[axis], 1, axis),)


_pool_axis.defvjp(_pool_axis_forward, _pool_axis_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool_both_axes(x, shape, size, stride):
  return _pool_both_axes_forward(x, shape, size, stride)[0]


def _pool_both_axes_forward(x, shape, size, stride):
  pixels = {
    (i, j): pixel
    for i, row in enumerate(window_slices(x, 2, size, stride))
    for j, pixel in enumerate(window_slices(row, 3, size, stride))
  }
  y = functools.reduce(jnp.maximum, pixels.values())
  maxima = sum((pixel == y).astype(jnp.uint16) << _bit(i, j, size, stride) for (i, j), pixel in pixels.items())
  return y, maxima


def _pool_both_axes_backward(shape, size, stride, maxima, dy):
  dy_per_tie = dy / lax.population_count(maxima).astype(dy.dtype)
  # Cells of `stride` x `stride` pixels cover the maps. Window w begins with cell w, so that the pixels of a cell lie in
  # its own window and in some of the windows before it, on either axis.
  num_cells = {axis: -(-shape[axis] // stride) for axis in (2, 3)}
  num_before = (size - 1) // stride

  def with_edges(x):  # written to memory, or every reader tests at each step whether it has left the maps
    for axis, num in num_cells.items():
      x = pad_axis(x, axis, 0, (num_before, num - x.shape[axis], 0))
    return lax.optimization_barrier(x)

  def per_pixel(x, before):  # for each pixel, the value of the window `before` cells before its own
    for (axis, num), back in zip(num_cells.items(), before, strict=True):
      x = jnp.repeat(lax.slice_in_dim(x, num_before - back, num_before - back + num, 1, axis), stride, axis)
    return x

  dy_per_tie, maxima = with_edges(dy_per_tie), with_edges(maxima)
  row, column = (lax.broadcasted_iota(jnp.uint16, per_pixel(maxima, (0, 0)).shape, axis) % stride for axis in (2, 3))
  dx = jnp.zeros((), dy.dtype)
  for before in itertools.product(range(num_before + 1), repeat=2):
    bit = _bit(row + before[0] * stride, column + before[1] * stride, size, stride)
    dx += jnp.where(per_pixel(maxima, before) >> bit & 1 == 1, per_pixel(dy_per_tie, before), 0)
  return (dx[:, :, : shape[2], : shape[3]],)


_pool_both_axes.defvjp(_pool_both_axes_forward, _pool_both_axes_backward)


def _bit(i, j, size, stride):
  """Numbers the pixels of the cells of a window; pixels of these cells outside the window have numbers, too."""
  return i * _cell_size(size, stride) + j


def _cell_size(size, stride):
  """Returns the side of a window, rounded up to whole cells."""
  return -(-size // stride) * stride
