"""The convolution of one tower on one device, and its gradients.

`lax.conv_general_dilated` is fast on every platform but a CPU, only that the three channels of an image leave their
matrix units idle, so that conv1, which alone has a stride, goes by blocks of pixels there. On a CPU, XLA leaves what
has few output maps, as conv1 and the gradient of conv2's input, to a single core, and computes the gradient of the
kernel as a convolution whose window is the whole image, at a fifth of the speed of a matrix product. There, and only
there, convolutions go to oneDNN where it can be called (`onednn.py`). Where not, these are computed by patches and one
matrix product, a few images at a time so that the patches stay in the cache.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.kernels import onednn
from alexnet_jax.kernels.onednn import Padding, num_windows

# Patches made at a time. Measured on two cores with AVX-512 and 32 MiB of cache, batch 32, gradient of the kernel, for
# conv1 / one tower of conv2 / conv3, milliseconds: XLA 255 / 119 / 72; pieces of 1 image 41 / 23 / 28, of 2: 48 / 22 /
# 25, of 4: 62 / 26 / 24, of 8: 78 / 49 / 38. The patches of an image take 5.2, 3.5 and 1.6 MB.
PIECE_BYTES = 8 * 2**20
FEW_MAPS, FEW_KERNELS = 4, range(17, 33)  # where `conv_by_pairs` is faster
MANY_KERNELS = 96  # where `input_gradient` is


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Convolves maps [batch, height, width, in] with a kernel [height, width, in, out], both of one dtype.

  Args:
    x: input maps.
    kernel: the kernels, odd-sided and square in this network but not by need.
    stride: pixels from one window to the next, on both axes.
    padding: ((top, bottom), (left, right)), zeros.

  Returns:
    Output maps [batch, height, width, out].
  """
  if jax.default_backend() != 'cpu':
    return (conv_by_blocks if stride > 1 else conv_in_tiles)(x, kernel, stride, padding)
  if x.dtype != jnp.float32:
    return plain_conv(x, kernel, stride, padding)
  return (onednn.conv if onednn.is_enabled() else _conv_for_cpu)(x, kernel, stride, padding)


def plain_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """The same as `conv`, as XLA does it throughout."""
  return _conv(x, kernel, (stride, stride), padding)


def _conv(x, kernel, strides, padding):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_for_cpu(x, kernel, stride, padding):
  # The first layer of a network for CIFAR-10: 5 x 5 x 3 windows of a batch of 128 and 32 kernels take XLA 20 ms, on one
  # core or on two, and 64 kernels 8. So two neighbouring pixels are taken as one with 64 kernels: 3.6 ms.
  if stride == 1 and x.shape[-1] <= FEW_MAPS and kernel.shape[-1] in FEW_KERNELS:
    return conv_by_pairs(x, kernel, padding)
  # conv1, milliseconds on one core / two, XLA's and ours: batch 32, 96 kernels 35 / 35 and 42 / 24, 48 kernels for
  # patches of 64 pixels, batch 128, 6.7 / 6.7 and 8 / 4.3; 24 kernels, one tower of these, 59 / 58 and 4.8 / 3.2.
  if stride > 1:
    return conv_by_columns(x, kernel, stride, padding)
  return plain_conv(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
  return _conv_for_cpu(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
  x, kernel = residuals
  # With few kernels our gradient of the input copies more than it computes. Milliseconds on one core / two, ours and
  # XLA's: 64 kernels of a network for CIFAR-10, batch 128, 23 / 14 and 16 / 16; one tower of conv2, 128 kernels, batch
  # 32, 41 / 26 and 35 / 35.
  if stride == 1 and kernel.shape[-1] >= MANY_KERNELS:
    dx = input_gradient(dy, kernel, padding)
  else:
    (dx,) = jax.linear_transpose(functools.partial(plain_conv, kernel=kernel, stride=stride, padding=padding), x)(dy)
  return dx, kernel_gradient(x, dy, kernel.shape, stride, padding)


_conv_for_cpu.defvjp(_forward, _backward)


def conv_by_blocks(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Does what `conv` does, as a convolution of stride 1 over blocks of stride x stride pixels.

  Conv1 reads 48 channels then instead of 3, and its kernels of 11 x 11 pixels are 3 x 3 blocks, a row and a column of
  zeros added. On an H100 the train step of 512 images took 12.0 ms with it and 16.6 without.
  """
  nothing = ((0, 0), (0, 0))
  windows = num_windows(x.shape[1:3], kernel.shape[:2], stride, padding)
  x, _ = _in_blocks(x, windows, kernel.shape[:2], stride, padding)
  as_images = kernel.transpose(3, 0, 1, 2)  # each seen by one window, the whole of it
  kernel, _ = _in_blocks(as_images, (1, 1), kernel.shape[:2], stride, nothing)
  return plain_conv(x, kernel.transpose(1, 2, 3, 0), 1, nothing)


def conv_in_tiles(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Does what `plain_conv` does, in bfloat16 with 64 input channels where there are 48: those added are zeros.

  cuDNN's gradient of the kernel is faster so: on an H100, 512 images, both towers of conv2 0.63 to 0.48 ms. For conv1
  by blocks, 0.48 to 0.40, the zeros take longer to write than they save.
  """
  if x.dtype == jnp.bfloat16 and x.shape[-1] == 48:
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 16)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 16), (0, 0)))
  return plain_conv(x, kernel, stride, padding)


def conv_by_pairs(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Does what `conv` does, for a stride of 1, as a convolution of stride 2 with twice as many kernels, one wider.

  Each kernel stands in it twice, for the even pixels of a row and, moved by one, for the odd ones.
  """
  (top, bottom), (left, right) = padding
  odd = (x.shape[2] + left + right - kernel.shape[1] + 1) % 2  # a last pixel without a neighbour is cut off again
  both = jnp.concatenate([jnp.pad(kernel, ((0, 0), (i, 1 - i), (0, 0), (0, 0))) for i in range(2)], axis=-1)
  y = _conv(x, both, (1, 2), ((top, bottom), (left, right + odd)))
  batch, height, pairs, _ = y.shape
  return y.reshape(batch, height, 2 * pairs, -1)[:, :, : 2 * pairs - odd]


def conv_by_columns(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Does what `conv` does, for kernels a few strides wide.

  An image is cut into columns as wide as the stride. A patch is as high as a kernel and one column wide, so that it is
  copied once, although several windows see it: one product tells what it gives to each of them, to be moved and added.
  """
  kernel_height, kernel_width, num_in, num_out = kernel.shape
  height, width = num_windows(x.shape[1:3], kernel.shape[:2], stride, padding)
  in_kernel = math.ceil(kernel_width / stride)  # columns
  in_image = width + in_kernel - 1
  x = _fit(x, (height - 1) * stride + kernel_height, in_image * stride, padding)
  x = x.reshape(len(x), -1, in_image, stride * num_in)
  weights = jnp.pad(kernel, ((0, 0), (0, in_kernel * stride - kernel_width), (0, 0), (0, 0)))
  weights = weights.reshape(kernel_height, in_kernel, stride * num_in, num_out).transpose(0, 2, 1, 3)
  weights = weights.reshape(-1, in_kernel * num_out)

  def of_piece(x):
    patches = [lax.slice_in_dim(x, i, i + (height - 1) * stride + 1, stride, axis=1) for i in range(kernel_height)]
    products = jnp.concatenate(patches, axis=-1).reshape(-1, len(weights)) @ weights
    products = products.reshape(-1, height, in_image, in_kernel, num_out)
    return functools.reduce(jnp.add, [products[:, :, i : i + width, i] for i in range(in_kernel)])

  pieces = _in_pieces(x, height * in_image * max(weights.shape) * 4)  # the larger of patches and products
  return lax.map(of_piece, pieces).reshape(-1, height, width, num_out)


def input_gradient(dy: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Computes the gradient of a convolution of stride 1 with respect to its input.

  Args:
    dy: gradient of the output maps [batch, height, width, out].
    kernel: [height, width, in, out].
    padding: as in the forward pass.

  Returns:
    An array as the input maps [batch, height, width, in].
  """
  turned = kernel[::-1, ::-1].swapaxes(2, 3)  # what an input pixel says to the outputs, seen from the pixel
  around = tuple(
    (size - 1 - before, size - 1 - after) for size, (before, after) in zip(kernel.shape[:2], padding, strict=True)
  )
  return conv_by_columns(dy, turned, 1, around)


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
  _, height, width, _ = dy.shape
  x, (blocks_high, blocks_wide) = _in_blocks(x, (height, width), (kernel_height, kernel_width), stride, padding)
  # Pixels last: the patches are then made row by row, already transposed for the product.
  bytes_per_image = height * width * blocks_high * blocks_wide * x.shape[-1] * 4
  pieces = _in_pieces(x, bytes_per_image).transpose(0, 4, 1, 2, 3), _in_pieces(dy, bytes_per_image)

  def of_piece(x, dy):
    patches = jnp.stack(
      [x[:, :, i : i + height, j : j + width] for i in range(blocks_high) for j in range(blocks_wide)]
    )
    return patches.reshape(-1, dy.size // num_out) @ dy.reshape(-1, num_out)

  total, _ = lax.scan(
    lambda total, piece: (total + of_piece(*piece), None),
    of_piece(*(array[0] for array in pieces)),
    jax.tree.map(lambda array: array[1:], pieces),
  )

  total = total.reshape(blocks_high, blocks_wide, stride, stride, num_in, num_out).transpose(0, 2, 1, 3, 4, 5)
  return total.reshape(blocks_high * stride, blocks_wide * stride, num_in, num_out)[:kernel_height, :kernel_width]


def _in_blocks(x, windows, kernel_size, stride, padding):
  """Lays maps out by blocks of stride x stride pixels: a convolution of that stride is one of stride 1 over them.

  The windows are rounded up to whole blocks. Returns blocks [batch, row, column, channel], and how many a window has.
  """
  in_window = tuple(math.ceil(side / stride) for side in kernel_size)
  height, width = ((number + blocks - 1) * stride for number, blocks in zip(windows, in_window, strict=True))
  return _space_to_depth(_fit(x, height, width, padding), stride), in_window


def _fit(x, height, width, padding):
  """Pads maps at the top and on the left, and at the other ends pads them, or cuts them off, to a size."""
  (top, _), (left, _) = padding
  edges = ((0, 0, 0), (top, height - top - x.shape[1], 0), (left, width - left - x.shape[2], 0), (0, 0, 0))
  return lax.pad(x, jnp.zeros((), x.dtype), edges)  # negative: cut off


def _in_pieces(x, bytes_per_image):
  """Divides a batch: [batch, ...] -> [piece, image, ...], whose patches take `bytes_per_image` for each image."""
  most = max(PIECE_BYTES // bytes_per_image, 1)
  per_piece = max(number for number in range(1, min(most, len(x)) + 1) if len(x) % number == 0)
  return x.reshape(-1, per_piece, *x.shape[1:])


def _space_to_depth(x, size):
  batch, height, width, channel = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channel).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, height // size, width // size, size * size * channel)
