"""The layers of section 3, for activations with a leading tower axis.

Every function here is the definition of a layer, in plain JAX. The decorator `fast_form` names a function in `kernels/`
that computes the same values faster on some platform, up to rounding; ALEXNET_JAX_FAST_KERNELS=0 selects the
definitions.

Parameters are float32. A layer computes in the dtype of its input and returns that dtype; normalisation computes in
float32.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax.kernels import fast_convolution, fast_pooling, fast_response_norm, inference_layout
from alexnet_jax.kernels.dispatch import fast_form
from alexnet_jax.kernels.onednn import Padding
from alexnet_jax.kernels.windows import num_windows, pad_axis, window_slices
from alexnet_jax.models import towers

NO_PADDING: Padding = ((0, 0), (0, 0))


class Conv(nnx.Module):
  """A convolutional layer: every tower convolves its maps with its own kernels.

  Attributes:
    kernel: [tower, height, width, in, out] float32.
    bias: [tower, out] float32.
  """

  def __init__(
    self,
    num_in: int,
    num_out: int,
    size: int,
    *,
    stride: int = 1,
    padding: Padding = NO_PADDING,
    std: float,
    bias: float,
    num_towers: int,
    rngs: nnx.Rngs,
  ):
    """Declares the kernels.

    Args:
      num_in: input channels of a kernel; those of all towers in a cross-tower layer.
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

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [tower, batch, height, width, in], or [batch, height, width, in], to [tower, batch, height, width, out]."""
    return conv(x, self.kernel.get_value(), self.bias[...], self.stride, self.padding)


class LocalConv(nnx.Module):
  """A locally connected layer: a convolution with separate kernels at every position of the map (facts, 3).

  Attributes:
    kernel: [tower, height, width, window, out] float32; the inputs of a window in the order row, column, channel.
    bias: [tower, height, width, out] float32.
  """

  def __init__(
    self, side: int, num_in: int, num_out: int, size: int, *, std: float, bias: float, num_towers: int, rngs: nnx.Rngs
  ):
    """Declares the kernels of a layer whose output maps are as large as its input maps.

    Args:
      side: of the square maps, pixels.
      num_in: input channels of a kernel.
      num_out: kernels of one tower at each position.
      size: side of a kernel in pixels; odd.
      std: standard deviation of the initial weights, drawn from a Gaussian with zero mean.
      bias: initial bias.
      num_towers: length of the tower axis.
      rngs: source of the initial weights.
    """
    self.size = size
    self.kernel = nnx.Param(gaussian(rngs.params(), (num_towers, side, side, size * size * num_in, num_out), std))
    self.bias = nnx.Param(constant((num_towers, side, side, num_out), bias))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [tower, batch, height, width, in] to [tower, batch, height, width, out]; the maps are padded with zeros."""
    _, _, height, width, _ = x.shape
    x = x.transpose(0, 2, 3, 1, 4)  # positions first: at each, a matrix product of all images with its kernels
    edges = (self.size // 2, self.size // 2, 0)
    x = pad_axis(pad_axis(x, 1, 0, edges), 2, 0, edges)
    offsets = itertools.product(range(self.size), repeat=2)
    windows = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in offsets], axis=-1)
    y = jnp.einsum('thwni,thwio->thwno', windows, self.kernel[...].astype(x.dtype)).transpose(0, 3, 1, 2, 4)
    return y + self.bias[...].astype(x.dtype)[:, None]


class Linear(nnx.Module):
  """A fully-connected layer: every tower holds a part of the units.

  Attributes:
    kernel: [tower, in, out] float32.
    bias: [tower, out] float32.
  """

  def __init__(self, num_in: int, num_out: int, *, std: float, bias: float, num_towers: int, rngs: nnx.Rngs):
    """Declares the weights; the arguments are those of `Conv`."""
    self.kernel = nnx.Param(gaussian(rngs.params(), (num_towers, num_in, num_out), std))
    self.bias = nnx.Param(constant((num_towers, num_out), bias))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [tower, batch, in], or [batch, in] read by every tower, to [tower, batch, out]."""
    kernel = self.kernel.get_value()
    if x.ndim == 2:
      x = towers.broadcast(x, len(kernel))
    else:
      x = towers.reshard(x, towers.MAPS)  # a reshape of a single image with 1 x 1 positions loses the axis 'data'
    return linear(x, kernel) + self.bias[...].astype(x.dtype)[:, None, :]


def gaussian(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
  """Draws initial weights [tower, ...] float32 from a Gaussian with zero mean (section 5)."""
  # The draws are the same in one row for each tower, and XLA compiles them in 1.5 seconds on a CPU instead of 4.2.
  rows = (shape[0], math.prod(shape[1:]))
  return jnp.float32(std) * jax.random.normal(
    key, rows, jnp.float32, out_sharding=towers.sharding(towers.PARAMS)
  ).reshape(shape)


def constant(shape: tuple[int, ...], value: float) -> jax.Array:
  """Makes initial biases [tower, ...] float32 of one value (section 5)."""
  return jnp.broadcast_to(jnp.float32(value), shape, out_sharding=towers.sharding(towers.PARAMS))


def conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int = 1, padding: Padding = NO_PADDING) -> jax.Array:
  """Convolves the maps of each tower with that tower's kernels, and adds the biases.

  Args:
    x: [tower, batch, height, width, in], the maps of each tower; or [batch, height, width, in], read by every tower.
    kernel: [tower, height, width, in, out], or the kernels of each tower; used in the dtype of the maps.
    bias: [tower, out]; likewise.
    stride: pixels from one window to the next, on both axes.
    padding: ((top, bottom), (left, right)), zeros.

  Returns:
    [tower, batch, height, width, out].
  """
  is_shared = x.ndim == 4

  # Inside, a device has its own towers only: one of them, or both on a single device.
  def on_device(x, kernel, bias):
    kernel, bias = jax.tree.map(lambda array: towers.varying(array, 'data').astype(x.dtype), (kernel, bias))
    if is_shared:
      x = towers.varying(x, 'tower')
    return conv_on_device(x, kernel, bias, stride, padding)

  in_specs = (towers.BATCH if is_shared else towers.MAPS, towers.PARAMS, towers.PARAMS)
  return towers.on_each_device(on_device, in_specs, towers.MAPS)(x, kernel, bias)


@fast_form(fast_convolution.conv_on_device)
def conv_on_device(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Computes `conv` for the towers of one device; the arguments are those of `conv`, without other devices' towers."""
  maps = [x] * len(kernel) if x.ndim == 4 else x
  return jnp.stack(
    [
      lax.conv_general_dilated(x_t, kernel_t, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      + b_t
      for x_t, kernel_t, b_t in zip(maps, kernel, bias, strict=True)
    ]
  )


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies the inputs of each tower's units by their weights.

  Args:
    x: [tower, batch, in].
    kernel: [tower, in, out]; used in the dtype of the inputs.

  Returns:
    [tower, batch, out].
  """

  def on_device(x, kernel):
    return linear_on_device(x, jax.tree.map(lambda array: towers.varying(array, 'data').astype(x.dtype), kernel))

  return towers.on_each_device(on_device, (towers.MAPS, towers.PARAMS), towers.MAPS)(x, kernel)


@fast_form(inference_layout.linear_on_device)
def linear_on_device(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes `linear` for the towers of one device."""
  return jnp.einsum('tni,tio->tno', x, kernel)


@fast_form(fast_pooling.max_pool)
def max_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
  """Takes the maximum over windows, which overlap if size > stride (section 3.4).

  The last window of a row or column may extend past the edge; only pixels inside count (facts, 1.3). Tied pixels of a
  window divide its gradient equally.

  Args:
    x: [tower, batch, height, width, channel].
    size: side of the window, z in the paper.
    stride: pixels from one window to the next, s in the paper; at most size.

  Returns:
    [tower, batch, num_windows(height), num_windows(width), channel].
  """
  rows = window_slices(x, 2, size, stride)
  return jnp.max(jnp.stack([pixels for row in rows for pixels in window_slices(row, 3, size, stride)]), axis=0)


def average_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
  """Takes the mean over windows; for a window that extends past the edge, over the pixels inside (facts, 3).

  Arguments and result are those of `max_pool`.
  """
  for axis in (3, 2):
    num = num_windows(x.shape[axis], size, stride)
    num_inside = [min(size, x.shape[axis] - stride * window) for window in range(num)]
    shape = [num if a == axis else 1 for a in range(x.ndim)]
    x = sum(window_slices(x, axis, size, stride, 0)) / jnp.array(num_inside, x.dtype).reshape(shape)
  return x


def local_response_norm(
  x: jax.Array, k: float = 2.0, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
  """Divides each activity by (k + alpha * sum of squares over `size` neighbouring maps) ** beta (section 3.3).

  The window is centred and clipped at the first and last map of the tower. `alpha` multiplies the sum as in the paper.
  Caffe and PyTorch divide it by `size` first, so their alpha is 5 times ours; TensorFlow's alpha is ours, and its
  depth_radius is size // 2.

  Args:
    x: [tower, batch, height, width, channel].
    k: additive constant.
    size: maps in the window, n in the paper; odd.
    alpha: factor of the sum of squares.
    beta: exponent.

  Returns:
    An array like `x`.
  """
  return divide_by_neighbours(x, (4,), k, size, alpha, beta)


def within_map_norm(
  x: jax.Array, k: float = 1.0, size: int = 5, alpha: float = 1e-3 / 25, beta: float = 0.75
) -> jax.Array:
  """Divides each activity by (k + alpha * sum of squares over size x size neighbours in its own map) ** beta.

  Paper: it has no such normalisation. The code of 2012 applied this to layer 2 after the normalisation across maps,
  with the constants that are the defaults here: scale 0.001 over a window of 25 (facts, 1.2). The window is centred and
  clipped at the edges of the map. Arguments and result are those of `local_response_norm`.
  """
  return divide_by_neighbours(x, (2, 3), k, size, alpha, beta)


@fast_form(fast_response_norm.divide_by_neighbours)
def divide_by_neighbours(
  x: jax.Array, axes: tuple[int, ...], k: float, size: int, alpha: float, beta: float
) -> jax.Array:
  """Divides by (k + alpha * sum of squares of the neighbours along some axes) ** beta, in float32.

  Args:
    x: any array.
    axes: along which neighbours lie.
    k: additive constant.
    size: of the centred window along each axis; odd.
    alpha: factor of the sum of squares.
    beta: exponent.

  Returns:
    An array like `x`.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  total = jnp.square(wide)
  for axis in axes:
    padded = pad_axis(total, axis, 0, (size // 2, size // 2, 0))
    total = functools.reduce(jnp.add, window_slices(padded, axis, size, 1))
  return (wide / (k + alpha * total) ** beta).astype(x.dtype)


def dropout(x: jax.Array, key: jax.Array | None) -> jax.Array:
  """Drops each unit with probability one half, literally as published (section 4.2).

  In training (with a key) the remaining units are not rescaled. At test time (without a key) all units are multiplied
  by 0.5.
  """
  if key is None:
    return 0.5 * x
  is_active = jax.random.bernoulli(key, 0.5, x.shape, out_sharding=towers.sharding(towers.MAPS))
  return jnp.where(is_active, x, 0)
