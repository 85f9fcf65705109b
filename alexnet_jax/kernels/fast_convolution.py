"""Fast forms of the convolution of the towers that one device holds.

`lax.conv_general_dilated` is fast on every platform but a CPU. On a GPU only conv1 is slow: the three channels of an
image leave the matrix units idle, so conv1 is computed over blocks of pixels.

On a CPU, XLA computes convolutions with few output maps, such as conv1 and the gradient of conv2's input, on a single
core, and the gradient of the kernel as a convolution whose window is the whole image, at a fifth of the speed of a
matrix product. Float32 convolutions therefore use oneDNN where it can be called (`onednn.py`). Elsewhere they are
computed from patches and one matrix product, a few images at a time, so that the patches stay in the cache.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.kernels import barriers, onednn
from alexnet_jax.kernels.onednn import Padding, output_size
from alexnet_jax.kernels.windows import largest_divisor

# Bytes of the patches made at a time. Measured on two cores with AVX-512 and 32 MiB of cache, batch 32, gradient of the
# kernel, for conv1 / one tower of conv2 / conv3, milliseconds: XLA 255 / 119 / 72; pieces of 1 image 41 / 23 / 28, of
# 2: 48 / 22 / 25, of 4: 62 / 26 / 24, of 8: 78 / 49 / 38. The patches of an image take 5.2, 3.5 and 1.6 MB.
PIECE_BYTES = 8 * 2**20
FEW_MAPS, FEW_KERNELS = 4, range(17, 33)  # for which `conv_by_pairs` is faster
MANY_KERNELS = 96  # from which `input_gradient` is faster


def conv_on_device(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Computes `layers.conv_on_device`.

  Where all towers read the same maps, one wide convolution replaces two narrow ones, unless joining the kernels takes
  longer than reading the maps twice.
  """
  if x.ndim == 5 or x.size < sum(kernel_t.size for kernel_t in kernel):
    maps = x if x.ndim == 5 else [x] * len(kernel)
    towers = zip(maps, kernel, bias, strict=True)
    ys = [conv(x_t, kernel_t, stride, padding) + bias_t for x_t, kernel_t, bias_t in towers]
    # A CPU would compute the whole gradient again, on a single core, while it sums it for the biases.
    return jnp.stack([barriers.with_whole_gradient(y) for y in ys] if jax.default_backend() == 'cpu' else ys)
  y = conv(x, jnp.concatenate(list(kernel), axis=-1), stride, padding)
  y = barriers.with_whole_gradient(y + bias.reshape(-1))
  return jnp.moveaxis(y.reshape(*y.shape[:-1], len(kernel), -1), -2, 0)


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Convolves the maps of one tower.

  Args:
    x: input maps [batch, height, width, in].
    kernel: [height, width, in, out], of the same dtype; height and width may differ.
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
  """Computes `conv` by XLA's convolution on every platform."""
  return _conv(x, kernel, (stride, stride), padding)


def _conv(x, kernel, strides, padding):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_for_cpu(x, kernel, stride, padding):
  # The first layer of a CIFAR-10 network, windows of 5 x 5 x 3, batch 128: with 32 kernels XLA takes 20 ms, on one core
  # or two, and with 64 kernels 8 ms. Two neighbouring pixels as one with 64 kernels take 3.6 ms.
  if stride == 1 and x.shape[-1] <= FEW_MAPS and kernel.shape[-1] in FEW_KERNELS:
    return conv_by_pairs(x, kernel, padding)
  # conv1, milliseconds on one core / two cores, XLA and this: batch 32, 96 kernels 35 / 35 and 42 / 24; 48 kernels on
  # crops of 64 pixels, batch 128, 6.7 / 6.7 and 8 / 4.3; 24 kernels, one tower of these, 59 / 58 and 4.8 / 3.2.
  if stride > 1:
    return conv_by_columns(x, kernel, stride, padding)
  return plain_conv(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
  return _conv_for_cpu(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, dy):
  x, kernel = residuals
  # With few kernels this gradient of the input copies more than it computes. Milliseconds on one core / two cores, this
  # and XLA: 64 kernels of a CIFAR-10 network, batch 128, 23 / 14 and 16 / 16; one tower of conv2, 128 kernels, batch
  # 32, 41 / 26 and 35 / 35.
  if stride == 1 and kernel.shape[-1] >= MANY_KERNELS:
    dx = input_gradient(dy, kernel, padding)
  else:
    (dx,) = jax.linear_transpose(functools.partial(plain_conv, kernel=kernel, stride=stride, padding=padding), x)(dy)
  return dx, kernel_gradient(x, dy, kernel.shape, stride, padding)


_conv_for_cpu.defvjp(_forward, _backward)


def conv_by_blocks(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Computes `conv` as a convolution of stride 1 over blocks of stride x stride pixels.

  Conv1 then reads 48 channels instead of 3, and its kernels of 11 x 11 pixels become 3 x 3 blocks, with a row and a
  column of zeros added. On an H100 the train step of 512 images took 12.0 ms with blocks and 16.6 ms without.
  """
  no_padding = ((0, 0), (0, 0))
  windows = output_size(x.shape[1:3], kernel.shape[:2], stride, padding)
  x, _ = _in_blocks(x, windows, kernel.shape[:2], stride, padding)
  as_images = kernel.transpose(3, 0, 1, 2)  # a kernel as an image with a single window
  kernel, _ = _in_blocks(as_images, (1, 1), kernel.shape[:2], stride, no_padding)
  return plain_conv(x, kernel.transpose(1, 2, 3, 0), 1, no_padding)


def conv_in_tiles(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Computes `plain_conv`; 48 input channels in bfloat16 are padded with zeros to 64.

  This makes cuDNN's gradient of the kernel faster: on an H100, 512 images, both towers of conv2, 0.63 to 0.48 ms. For
  conv1 by blocks (0.48 to 0.40 ms) writing the zeros takes longer than they save.
  """
  if x.dtype == jnp.bfloat16 and x.shape[-1] == 48:
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 16)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 16), (0, 0)))
  return plain_conv(x, kernel, stride, padding)


def conv_by_pairs(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Computes `conv` with a stride of 1 as a convolution with a stride of 2 in rows and twice the number of kernels.

  Each kernel occurs twice, one pixel wider: for the even pixels of a row and, shifted by one, for the odd pixels.
  """
  (top, bottom), (left, right) = padding
  odd = (x.shape[2] + left + right - kernel.shape[1] + 1) % 2  # the partner of the last pixel is cropped again
  both = jnp.concatenate([jnp.pad(kernel, ((0, 0), (i, 1 - i), (0, 0), (0, 0))) for i in range(2)], axis=-1)
  y = _conv(x, both, (1, 2), ((top, bottom), (left, right + odd)))
  batch, height, pairs, _ = y.shape
  return y.reshape(batch, height, 2 * pairs, -1)[:, :, : 2 * pairs - odd]


def conv_by_columns(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Computes `conv` for kernels a few strides wide.

  An image is divided into columns as wide as the stride. A patch is as high as a kernel and one column wide, and is
  copied once although several windows contain it. One matrix product computes the contributions of a patch to all of
  these windows, which are then shifted and added.
  """
  kernel_height, kernel_width, num_in, num_out = kernel.shape
  height, width = output_size(x.shape[1:3], kernel.shape[:2], stride, padding)
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
  """Computes `onednn.input_gradient` of a convolution of stride 1 by columns."""
  rotated = kernel[::-1, ::-1].swapaxes(2, 3)  # maps the outputs to the input pixels that they read
  (height, width), ((top, bottom), (left, right)) = kernel.shape[:2], padding
  edges = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
  return conv_by_columns(dy, rotated, 1, edges)


def kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape, stride: int, padding: Padding) -> jax.Array:
  """Computes `onednn.kernel_gradient` from patches and one matrix product."""
  kernel_height, kernel_width, num_in, num_out = kernel_shape
  _, height, width, _ = dy.shape
  x, (blocks_high, blocks_wide) = _in_blocks(x, (height, width), (kernel_height, kernel_width), stride, padding)
  # With pixels on the last axis, patches are made row by row, already transposed for the product.
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
  """Divides maps into blocks of stride x stride pixels, over which the convolution has a stride of 1.

  Windows are rounded up to whole blocks. Returns blocks [batch, row, column, channel], and the blocks of a window.
  """
  in_window = tuple(math.ceil(side / stride) for side in kernel_size)
  height, width = ((number + blocks - 1) * stride for number, blocks in zip(windows, in_window, strict=True))
  return _space_to_depth(_fit(x, height, width, padding), stride), in_window


def _fit(x, height, width, padding):
  """Pads maps at the top and left, and pads or crops them at the bottom and right to a size."""
  (top, _), (left, _) = padding
  edges = ((0, 0, 0), (top, height - top - x.shape[1], 0), (left, width - left - x.shape[2], 0), (0, 0, 0))
  return lax.pad(x, jnp.zeros((), x.dtype), edges)  # a negative edge crops


def _in_pieces(x, bytes_per_image):
  """Divides a batch into pieces whose patches take at most `PIECE_BYTES`: [batch, ...] -> [piece, image, ...]."""
  per_piece = largest_divisor(len(x), PIECE_BYTES // bytes_per_image)
  return x.reshape(-1, per_piece, *x.shape[1:])


def _space_to_depth(x, size):
  batch, height, width, channel = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channel).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, height // size, width // size, size * size * channel)
