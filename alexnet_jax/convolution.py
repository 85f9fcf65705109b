"""The convolution of one tower on one device, and its gradient with respect to the kernel.

`lax.conv_general_dilated` is fast on every platform except for one thing: on a CPU, XLA computes the gradient of the
kernel as a convolution whose window is the whole image, at a fifth of the speed of a matrix product. There, and only
there, the gradient is the textbook one instead: patches, transposed, times the gradient of the output, a few images at
a time so that the patches stay in the cache.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Measured on two cores with AVX-512, batch 32 (conv1 / conv2 / conv3 of one tower, milliseconds): XLA 255 / 119 / 72,
# pieces of 1: 72 / 46 / 34, of 2: 58 / 38 / 25, of 4: 76 / 39 / 25, of 8: 89 / 52 / 25, of 32: 138 / 84 / 47.
IMAGES_PER_PIECE = 2

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Convolves maps [batch, height, width, in] with a kernel [height, width, in, out], both float32.

  Args:
    x: input maps.
    kernel: the kernels, odd-sided and square in this network but not by need.
    stride: pixels from one window to the next, on both axes.
    padding: ((top, bottom), (left, right)), zeros.

  Returns:
    Output maps [batch, height, width, out].
  """
  return (_conv_for_cpu if jax.default_backend() == 'cpu' else plain_conv)(x, kernel, stride, padding)


def plain_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """The same as `conv`, as XLA does it throughout."""
  return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


_conv_for_cpu = jax.custom_vjp(plain_conv, nondiff_argnums=(2, 3))


def _forward(x, kernel, stride, padding):
  return plain_conv(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
  x, kernel = residuals
  (dx,) = jax.linear_transpose(functools.partial(plain_conv, kernel=kernel, stride=stride, padding=padding), x)(dy)
  return dx, kernel_gradient(x, dy, kernel.shape, stride, padding)


_conv_for_cpu.defvjp(_forward, _backward)


def kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape, stride: int, padding: Padding) -> jax.Array:
  """Computes the gradient of a convolution with respect to its kernel.

  Args:
    x: input maps [batch, height, width, in].
    dy: gradient of the output maps [batch, height, width, out].
    kernel_shape: (height, width, in, out).
    stride: as in the forward pass.
    padding: as in the forward pass.

  Returns:
    An array of `kernel_shape`.
  """
  kernel_height, kernel_width, num_in, num_out = kernel_shape
  batch, height, width, _ = dy.shape
  # A convolution of stride s is one of stride 1 over blocks of s x s pixels, the kernel rounded up to whole blocks.
  blocks_high, blocks_wide = math.ceil(kernel_height / stride), math.ceil(kernel_width / stride)
  (top, _), (left, _) = padding
  below = (height + blocks_high - 1) * stride - top - x.shape[1]
  right = (width + blocks_wide - 1) * stride - left - x.shape[2]
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, below, 0), (left, right, 0), (0, 0, 0)))  # negative: cut off
  x = _space_to_depth(x, stride)
  depth = x.shape[-1]

  def of_piece(x, dy):
    patches = jnp.concatenate(
      [x[:, i : i + height, j : j + width] for i in range(blocks_high) for j in range(blocks_wide)], axis=-1
    )
    return patches.reshape(-1, blocks_high * blocks_wide * depth).T @ dy.reshape(-1, num_out)

  per_piece = math.gcd(batch, IMAGES_PER_PIECE)
  pieces = (x.reshape(-1, per_piece, *x.shape[1:]), dy.reshape(-1, per_piece, height, width, num_out))
  total, _ = lax.scan(
    lambda total, piece: (total + of_piece(*piece), None),
    of_piece(x[:per_piece], dy[:per_piece]),
    jax.tree.map(lambda array: array[1:], pieces),
  )

  total = total.reshape(blocks_high, blocks_wide, stride, stride, num_in, num_out).transpose(0, 2, 1, 3, 4, 5)
  return total.reshape(blocks_high * stride, blocks_wide * stride, num_in, num_out)[:kernel_height, :kernel_width]


def _space_to_depth(x, size):
  batch, height, width, channel = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channel).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, height // size, width // size, size * size * channel)
