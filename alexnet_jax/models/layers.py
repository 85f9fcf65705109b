"""The layers of section 3, for activations with a leading tower axis.

Parameters are float32. A layer computes with the dtype of the activations that it reads, and hands on the same; only
normalisation has float32 inside, whatever it reads.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.kernels import convolution, onednn
from alexnet_jax.models import layers, towers
from alexnet_jax.models.towers import BATCH, MAPS, PARAMS


class Conv(nnx.Module):
  """A convolutional layer: every tower convolves with kernels of its own.

  Attributes:
    kernel: [tower, height, width, in, out] float32.
    bias: [tower, out] float32, one for each kernel.
  """

  def __init__(
    self, num_in, num_out, size, *, stride=1, padding=((0, 0), (0, 0)), std, bias, num_towers, rngs: nnx.Rngs
  ):
    """Declares the kernels.

    Args:
      num_in: channels a kernel sees; twice a tower's own where the towers meet.
      num_out: kernels of one tower.
      size: side of a kernel in pixels.
      stride: pixels from one window to the next.
      padding: ((top, bottom), (left, right)), zeros.
      std: standard deviation of the initial weights, drawn from a Gaussian with zero mean (section 5).
      bias: initial bias (section 5).
      num_towers: length of the tower axis.
      rngs: source of the initial weights.
    """
    self.stride, self.padding = stride, padding
    self.kernel = nnx.Param(gaussian(rngs.params(), (num_towers, size, size, num_in, num_out), std))
    self.bias = nnx.Param(constant((num_towers, num_out), bias))

  def __call__(self, x):
    """Maps [tower, batch, height, width, in], or [batch, height, width, in], to [tower, batch, height, width, out]."""
    return layers.conv(x, self.kernel[...], self.bias[...], stride=self.stride, padding=self.padding)


class LocalConv(nnx.Module):
  """A locally connected layer: as a convolution, but every place of the map has kernels of its own (facts, 3).

  Attributes:
    kernel: [tower, height, width, window, out] float32; the window's inputs in the order row, column, channel.
    bias: [tower, height, width, out] float32.
  """

  def __init__(self, side, num_in, num_out, size, *, std, bias, num_towers, rngs: nnx.Rngs):
    """Declares the kernels of a layer that keeps the size of its maps.

    Args:
      side: of the square maps, pixels.
      num_in: channels a kernel sees.
      num_out: kernels of one tower at each place.
      size: side of a kernel in pixels; odd.
      std: standard deviation of the initial weights, drawn from a Gaussian with zero mean.
      bias: initial bias.
      num_towers: length of the tower axis.
      rngs: source of the initial weights.
    """
    self.size = size
    self.kernel = nnx.Param(gaussian(rngs.params(), (num_towers, side, side, size * size * num_in, num_out), std))
    self.bias = nnx.Param(constant((num_towers, side, side, num_out), bias))

  def __call__(self, x):
    """Maps [tower, batch, height, width, in] to [tower, batch, height, width, out]; around the maps are zeros."""
    _, _, height, width, _ = x.shape
    x = x.transpose(0, 2, 3, 1, 4)  # places first: a matrix product for each, of all images with the kernels there
    around = (self.size // 2, self.size // 2, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), around, around, (0, 0, 0), (0, 0, 0)))
    window = itertools.product(range(self.size), repeat=2)
    windows = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in window], axis=-1)
    y = jnp.einsum('thwni,thwio->thwno', windows, self.kernel[...].astype(x.dtype)).transpose(0, 3, 1, 2, 4)
    return y + self.bias[...].astype(x.dtype)[:, None]


class Linear(nnx.Module):
  """A fully-connected layer: every tower holds a part of the units.

  Attributes:
    kernel: [tower, in, out] float32.
    bias: [tower, out] float32.
  """

  def __init__(self, num_in, num_out, *, std, bias, num_towers, rngs: nnx.Rngs):
    """Declares the weights; the arguments mean what they mean for `Conv`."""
    self.kernel = nnx.Param(gaussian(rngs.params(), (num_towers, num_in, num_out), std))
    self.bias = nnx.Param(constant((num_towers, num_out), bias))

  def __call__(self, x):
    """Maps [tower, batch, in], or [batch, in] seen by every tower, to [tower, batch, out]."""
    kernel = self.kernel[...]
    if x.ndim == 2:
      x = towers.broadcast(x, len(kernel))
    return layers.linear(x, kernel) + self.bias[...].astype(x.dtype)[:, None, :]


def gaussian(key, shape, std) -> jax.Array:
  """Draws initial weights [tower, ...] float32 from a Gaussian with zero mean (section 5)."""
  # In a row for each tower: the numbers are the same, and XLA compiles a state in 1.5 seconds on a CPU instead of 4.2.
  rows = (shape[0], math.prod(shape[1:]))
  return jnp.float32(std) * jax.random.normal(key, rows, jnp.float32, out_sharding=towers.PARAMS).reshape(shape)


def constant(shape, value) -> jax.Array:
  """Makes initial biases [tower, ...] float32, all of one value (section 5)."""
  return jnp.broadcast_to(jnp.float32(value), shape, out_sharding=towers.PARAMS)


def max_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
  """Takes the maximum over windows that overlap where size > stride (section 3.4).

  The last window of a row or column may hang over the edge; only what lies inside counts (facts, 1.3).

  Where several pixels of a window tie, they share its gradient: on a GPU equally, on a CPU first the rows, then the
  pixels of each row.

  Args:
    x: [tower, batch, height, width, channel].
    size: side of the window, z in the paper.
    stride: pixels from one window to the next, s in the paper; no more than size.

  Returns:
    [tower, batch, pooled(height), pooled(width), channel], where pooled(n) = ceil((n - size) / stride) + 1.
  """
  if jax.default_backend() != 'cpu' and _in_cells(size, stride) ** 2 <= 16:
    return _pool_at_once(x, x.shape, size, stride)
  return _pool(_pool(x, 3, size, stride), 2, size, stride)


# Along one axis, then along the other: two passes of three slices move a third of the memory of one pass of nine. And a
# gradient of its own: on a CPU, that of `lax.reduce_window` takes four times as long, that of `jnp.maximum` twice.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(x, axis, size, stride):
  return functools.reduce(jnp.maximum, _window_slices(x, axis, size, stride))


def _pool_forward(x, axis, size, stride):
  y = layers.materialise(_pool(x, axis, size, stride))  # for the next layer, its gradient, and that of every pixel here
  return y, (x, y)


def _pool_backward(axis, size, stride, residuals, dy):
  x, y = residuals
  pixels = _window_slices(x, axis, size, stride)
  # No pixel is greater. Two ways to say it, or XLA writes the comparisons to memory, for the number and the places.
  share = dy / sum((pixel >= y).astype(dy.dtype) for pixel in pixels)
  parts = [jnp.where(pixel == y, share, 0) for pixel in pixels]
  # Cells of `stride` pixels cover the axis. Window w begins with cell w: its i-th pixel lies in cell w + i // stride.
  num_cells = -(-x.shape[axis] // stride)

  def in_cells(i):
    return _pad(parts[i], axis, 0, (i // stride, num_cells - i // stride - y.shape[axis], 0))

  gradients = [sum(in_cells(i) for i in range(offset, size, stride)) for offset in range(stride)]
  cells = jnp.stack(gradients, axis + 1).reshape(*x.shape[:axis], num_cells * stride, *x.shape[axis + 1 :])
  return (lax.slice_in_dim(cells, 0, x.shape[axis], 1, axis),)


_pool.defvjp(_pool_forward, _pool_backward)


# A GPU waits for its memory, so it is to move little of it: one pass, and a gradient that reads, instead of maps and
# maxima, 16 bits for each window that tell which of its pixels have the maximum.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool_at_once(x, shape, size, stride):
  return _pool_at_once_forward(x, shape, size, stride)[0]


def _pool_at_once_forward(x, shape, size, stride):
  pixels = {
    (i, j): pixel
    for i, row in enumerate(_window_slices(x, 2, size, stride))
    for j, pixel in enumerate(_window_slices(row, 3, size, stride))
  }
  y = functools.reduce(jnp.maximum, pixels.values())
  maximal = sum((pixel == y).astype(jnp.uint16) << _bit(i, j, size, stride) for (i, j), pixel in pixels.items())
  return y, maximal


def _pool_at_once_backward(shape, size, stride, maximal, dy):
  share = dy / lax.population_count(maximal).astype(dy.dtype)
  # Cells of `stride` x `stride` pixels cover the maps. Window w begins with cell w, so that the pixels of a cell lie in
  # its own window and in some of those before, on either axis.
  num_cells = {axis: -(-shape[axis] // stride) for axis in (2, 3)}
  num_before = (size - 1) // stride

  def with_edges(x):  # in memory, or what reads it asks at every step whether it has left the maps
    for axis, number in num_cells.items():
      x = _pad(x, axis, 0, (num_before, number - x.shape[axis], 0))
    return lax.optimization_barrier(x)

  def in_pixels(x, before):  # what the window so many cells before has for each pixel
    for (axis, number), back in zip(num_cells.items(), before, strict=True):
      x = jnp.repeat(lax.slice_in_dim(x, num_before - back, num_before - back + number, 1, axis), stride, axis)
    return x

  share, maximal = with_edges(share), with_edges(maximal)
  row, column = (lax.broadcasted_iota(jnp.uint16, in_pixels(maximal, (0, 0)).shape, axis) % stride for axis in (2, 3))
  dx = 0
  for before in itertools.product(range(num_before + 1), repeat=2):
    bit = _bit(row + before[0] * stride, column + before[1] * stride, size, stride)
    dx += jnp.where(in_pixels(maximal, before) >> bit & 1 == 1, in_pixels(share, before), 0)
  return (dx[:, :, : shape[2], : shape[3]],)


_pool_at_once.defvjp(_pool_at_once_forward, _pool_at_once_backward)


def _bit(i, j, size, stride):
  """Numbers the pixels of the cells that a window lies in; those that are not in the window have a bit, too."""
  return i * _in_cells(size, stride) + j


def _in_cells(size, stride):
  """The side of a window, rounded up to whole cells."""
  return -(-size // stride) * stride


def _window_slices(x, axis, size, stride, beyond=-jnp.inf):
  """The first pixels of all windows along an axis, the second pixels, and so on; past the edge, `beyond`."""
  span = (pooled(x.shape[axis], size, stride) - 1) * stride + 1
  if overhang := max(span - 1 + size - x.shape[axis], 0):
    x = _pad(x, axis, beyond, (0, overhang, 0))
  return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)]


def _pad(x, axis, value, before_after_between):
  """Pads one axis; less than 0 cuts off."""
  return lax.pad(
    x, jnp.array(value, x.dtype), [before_after_between if a == axis else (0, 0, 0) for a in range(x.ndim)]
  )


def average_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
  """Takes the mean over windows; of one that hangs over the edge, over what lies inside (facts, 3).

  Arguments and result are those of `max_pool`.
  """
  for axis in (3, 2):
    num_windows = pooled(x.shape[axis], size, stride)
    num_inside = [min(size, x.shape[axis] - stride * window) for window in range(num_windows)]
    shape = [num_windows if a == axis else 1 for a in range(x.ndim)]
    x = sum(_window_slices(x, axis, size, stride, 0)) / jnp.array(num_inside, x.dtype).reshape(shape)
  return x


def pooled(side: int, size: int, stride: int = 2) -> int:
  """Counts the windows along a side; the last may hang over (facts, 1.3)."""
  return math.ceil((side - size) / stride) + 1


def local_response_norm(
  x: jax.Array, k: float = 2.0, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
  """Divides each activity by (k + alpha * sum of squares over `size` neighbouring maps) ** beta (section 3.3).

  The window is centred and clipped at the first and last map of the tower. `alpha` multiplies the sum as in the paper:
  Caffe and PyTorch divide it by `size` first, so their alpha is 5 times ours; TensorFlow's depth_radius is size // 2,
  its alpha ours.

  Args:
    x: [tower, batch, height, width, channel].
    k: additive constant.
    size: maps in the window, n in the paper; odd.
    alpha: factor of the sum of squares.
    beta: exponent.

  Returns:
    An array like `x`.
  """
  return _divide_by_neighbours(x, (4,), k, size, alpha, beta)


def within_map_norm(
  x: jax.Array, k: float = 1.0, size: int = 5, alpha: float = 1e-3 / 25, beta: float = 0.75
) -> jax.Array:
  """Divides each activity by (k + alpha * sum of squares over size x size neighbours in its own map) ** beta.

  Paper: it has no such normalisation. The code of 2012 did this to layer 2 after the normalisation across maps, with
  the constants that are the defaults here: scale 0.001 over a window of 25 (facts, 1.2). The window is centred and
  clipped at the borders of the map. Arguments and result are those of `local_response_norm`.
  """
  return _divide_by_neighbours(x, (2, 3), k, size, alpha, beta)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _divide_by_neighbours(x, axes, k, size, alpha, beta):
  """Divides by (k + alpha * sum of squares of the neighbours along some axes) ** beta, in float32."""
  return _forward(x, axes, k, size, alpha, beta)[0]


def _forward(x, axes, k, size, alpha, beta):
  in_float32 = _in_float32(x)
  denominator = _denominator(in_float32, axes, k, size, alpha)
  y = (in_float32 * _negative_power(denominator, beta)).astype(x.dtype)
  # A GPU computes denominators faster than it reads them.
  return y, (x, denominator if jax.default_backend() == 'cpu' else None)


def _backward(axes, k, size, alpha, beta, residuals, dy):
  x, denominator = residuals
  dtype = x.dtype
  if denominator is None:
    x = x * lax.optimization_barrier(jnp.ones((), dtype))  # or XLA sees that it had the denominators, and keeps them
    denominator = _denominator(_in_float32(x), axes, k, size, alpha)
  x, dy = _in_float32(x), _in_float32(dy)
  # y_i = x_i d_i^-beta and d_i holds x_j^2 for every neighbour j, so x_j also acts through all of its neighbours' d_i.
  # All of it follows from dy_i d_i^(-beta - 1) and x, so that is all that need be written for the neighbours to read.
  share = lax.optimization_barrier(dy * _negative_power(denominator, beta + 1))
  dx = share * denominator - 2 * alpha * beta * x * _window_sum(share * x, axes, size)
  return (dx.astype(dtype),)


_divide_by_neighbours.defvjp(_forward, _backward)


def _in_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _denominator(x, axes, k, size, alpha):
  return k + alpha * _window_sum(jnp.square(x), axes, size)


def _window_sum(x, axes, size):
  """Sums over neighbours along each axis."""
  for axis in axes:
    length, around = x.shape[axis], _pad(x, axis, 0, (size // 2, size // 2, 0))
    if jax.default_backend() == 'cpu':  # else XLA reads the middle slice from x, and so writes that to memory as well
      around = lax.optimization_barrier(around)
    x = functools.reduce(jnp.add, [lax.slice_in_dim(around, i, i + length, 1, axis) for i in range(size)])
  return x


def _negative_power(x, exponent):
  if exponent % 1 == 0.75:  # roots and products are several times faster than a power
    root = lax.rsqrt(x)
    return root ** (2 * int(exponent) + 1) * jnp.sqrt(root)
  return x**-exponent


def dropout(x: jax.Array, key: jax.Array | None) -> jax.Array:
  """Drops each unit with probability one half, literally as published (section 4.2).

  In training (a key is given) the units that stay keep their value. At test time (no key) all are there, times 0.5.
  """
  if key is None:
    return 0.5 * x
  keep = jax.random.bernoulli(key, 0.5, x.shape, out_sharding=towers.MAPS)
  return jnp.where(keep, x, 0)


def conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, stride: int = 1, padding=((0, 0), (0, 0))) -> jax.Array:
  """Convolves with each tower's own kernels, and adds their biases.

  Args:
    x: [tower, batch, height, width, in], the maps of each tower; or [batch, height, width, in], seen by every tower.
    kernel: [tower, height, width, in, out]; taken in the dtype of the maps.
    bias: [tower, out]; likewise.
    stride: pixels from one window to the next, on both axes.
    padding: ((top, bottom), (left, right)), zeros.

  Returns:
    [tower, batch, height, width, out].
  """
  shared = x.ndim == 4

  # Inside, a device sees its own towers only: one of them, or both where there is one device.
  @jax.shard_map(in_specs=(BATCH if shared else MAPS, PARAMS, PARAMS), out_specs=MAPS)
  def on_device(x, kernel, bias):
    kernel, bias = (  # their gradients are summed over the data axis
      jax.lax.pcast(array, ('data',), to='varying').astype(x.dtype) for array in (kernel, bias)
    )
    if not shared:
      each = zip(x, kernel, bias, strict=True)
      return jnp.stack([convolution.conv(x_t, k_t, stride, padding) + b_t for x_t, k_t, b_t in each])
    x = jax.lax.pcast(x, ('tower',), to='varying')
    # One wide convolution instead of two narrow ones on the same maps.
    y = convolution.conv(x, jnp.concatenate(list(kernel), axis=-1), stride, padding)
    y = _with_whole_gradient(y + bias.reshape(-1))
    return jnp.moveaxis(y.reshape(*y.shape[:-1], len(kernel), -1), -2, 0)

  return on_device(x, kernel, bias)


@jax.custom_vjp
def _with_whole_gradient(y):
  """Hands on maps whose gradient is written to memory as it is read, and not by towers and then once more."""
  return y


_with_whole_gradient.defvjp(lambda y: (y, None), lambda _, dy: (jax.lax.optimization_barrier(dy),))


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies what each tower's units read by their weights.

  Args:
    x: [tower, batch, in].
    kernel: [tower, in, out]; taken in the dtype of x.

  Returns:
    [tower, batch, out].
  """
  kernel = kernel.astype(x.dtype)
  if not _goes_to_onednn(x):
    return jnp.einsum('tni,tio->tno', x, kernel)

  @jax.shard_map(in_specs=(MAPS, PARAMS), out_specs=MAPS)
  def on_device(x, kernel):
    return onednn.matmul(x, jax.lax.pcast(kernel, ('data',), to='varying'))  # its gradient is summed over the data axis

  return on_device(x, kernel)


def materialise(x: jax.Array) -> jax.Array:
  """Hands on maps [tower, batch, ..., channel] as they are; on a CPU they are computed once for all that reads them."""
  if not _goes_to_onednn(x):
    return x
  return jax.shard_map(onednn.materialise, in_specs=MAPS, out_specs=MAPS)(x)


def _goes_to_onednn(x):
  return onednn.is_enabled() and x.dtype == jnp.float32
