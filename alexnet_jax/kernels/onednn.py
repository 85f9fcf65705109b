"""Convolutions and matrix products by oneDNN, which jaxlib contains for a CPU but does not call.

XLA computes both with YNNPACK on a CPU. oneDNN, which PyTorch calls, needs about half the time for the layers of this
network (docs/performance.md). XLA's pass that would insert oneDNN is not built into jaxlib 0.10.1, and is off by
default in newer versions. All of them contain what it would insert: the custom calls below, whose configuration is
XLA's `onednn_config.proto`. The only convolution among them is a forward one, so its gradients are written as forward
convolutions.

XLA does not check a configuration, and its meaning has changed between versions. oneDNN is therefore called only in the
versions it was tested with; `fast_convolution.py` has the fastest forms for other versions. XLA cannot write a program
with such calls to its compilation cache: it confuses it with other programs. The calls are therefore made only while
that cache is off, see `enable`.
"""

import functools
import json
import math
import pathlib
import platform
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.compilation_cache import compilation_cache as jax_compilation_cache

from alexnet_jax.kernels.windows import largest_divisor, pad_axis
from alexnet_jax.runtime import compilation_cache

TESTED_VERSIONS = ('0.10.1', '0.12.0.1')  # of jaxlib, those of requirements.txt

# The gradient of a kernel is computed from this many images at a time, the length of an AVX-512 vector. Larger batches
# are divided into at most MAX_PARTS parts, since many parts take long to compile. Batches of up to WHOLE images are not
# divided: XLA computes the gradient of conv1's maps once for each part and once as a whole, for the biases.
IMAGES, MAX_PARTS, WHOLE = 16, 8, 32
# Gradients of maps that take more bytes are divided into rows instead, in a loop, so that they stay in the cache.
# Milliseconds of conv1 with 32 images on a Zen 4 EPYC: undivided 76, in two parts of 16 images 59 to 88, by 11 rows 45.
MAX_BYTES = 16 * 2**20

# XLA multiplies fewer rows than this by a matrix at the speed of memory, while oneDNN copies the matrix first.
# Milliseconds of fc6, oneDNN and XLA: 1 row 9.1 and 5.2, 3 rows 9.0 and 8.6, 4 rows 9.6 and 10.2, 32 rows 16 and 29.
MIN_ROWS = 4

Padding = tuple[tuple[int, int], tuple[int, int]]


def enable() -> None:
  """Enables the oneDNN kernels if this jaxlib provides them.

  Disables the persistent compilation cache, which delays the start by a few seconds, so call it only for long runs. If
  JAX_COMPILATION_CACHE_DIR names another folder than the default, the cache stays enabled and oneDNN is not used.
  """
  default_folders = (None, str(compilation_cache.default_folder()))
  if is_available() and jax.config.jax_compilation_cache_dir in default_folders:  # type: ignore[attr-defined]
    jax.config.update('jax_enable_compilation_cache', False)
    jax_compilation_cache.reset_cache()  # the cache reads the setting once
    # Without this, gradients are summed over mesh axes of length one, and XLA copies them: 24 ms a step.
    jax.config.update('jax_remove_size_one_mesh_axis_from_type', True)


def is_enabled() -> bool:
  """Returns whether float32 convolutions and products are computed by oneDNN."""
  return is_available() and not jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]


@functools.cache
def is_available() -> bool:
  """Returns whether JAX computes on a CPU, with a jaxlib whose oneDNN calls were tested."""
  known = jax.lib.__version__ in TESTED_VERSIONS and (platform.system(), platform.machine()) == ('Linux', 'x86_64')
  return known and jax.default_backend() == 'cpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Computes `fast_convolution.conv`, in float32."""
  size = output_size(x.shape[1:3], kernel.shape[:2], stride, padding)
  return _conv(x, kernel, size, padding, strides=(stride, stride))


def _conv_forward(x, kernel, stride, padding):
  return conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
  x, kernel = residuals
  dx = input_gradient(dy, kernel, x.shape[1:3], stride, padding)
  return dx, kernel_gradient(x, dy, kernel.shape, stride, padding)


conv.defvjp(_conv_forward, _conv_backward)


def output_size(size: Sequence[int], window: Sequence[int], stride: int, padding: Padding) -> tuple[int, int]:
  """Returns the (height, width) of the output maps of a convolution.

  Args:
    size: (height, width) of the input maps, pixels.
    window: (height, width) of the kernels.
    stride: from one window to the next.
    padding: ((top, bottom), (left, right)).
  """
  height, width = (
    (side + sum(edges) - length) // stride + 1 for side, length, edges in zip(size, window, padding, strict=True)
  )
  return height, width


def input_gradient(dy: jax.Array, kernel: jax.Array, size: tuple[int, int], stride: int, padding: Padding) -> jax.Array:
  """Computes the gradient of a convolution with respect to its input.

  Args:
    dy: gradient of the output maps [batch, height, width, out] float32.
    kernel: [height, width, in, out] float32.
    size: (height, width) of the input maps.
    stride: as in the forward pass.
    padding: as in the forward pass.

  Returns:
    The gradient of the input maps [batch, height, width, in].
  """
  between = (0, 0, stride - 1)  # zeros for the input pixels at which no window begins
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), between, between, (0, 0, 0)))
  edges = [
    (length - 1 - before, side + before - outputs)
    for length, (before, _), side, outputs in zip(kernel.shape[:2], padding, size, dy.shape[1:3], strict=True)
  ]
  return _conv(dy, kernel[::-1, ::-1], size, edges, num_in_axis=3, num_out_axis=2)


def kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape, stride: int, padding: Padding) -> jax.Array:
  """Computes the gradient of a convolution with respect to its kernel.

  This is a convolution of the input with the gradient of the output that sums over images instead of channels. The
  channels are merged with the width, so that a row of a kernel, with all its columns and channels, is a row of the
  result, and oneDNN computes many neighbours at a time. A few images at a time are used, so that the operands stay in
  the cache.

  Args:
    x: input maps [batch, height, width, in] float32.
    dy: gradient of the output maps [batch, height, width, out] float32.
    kernel_shape: (height, width, in, out).
    stride: as in the forward pass.
    padding: as in the forward pass.

  Returns:
    The gradient of the kernel, of `kernel_shape`.
  """
  if len(x) <= WHOLE and dy.nbytes > MAX_BYTES:
    return _kernel_gradient_by_rows(x, dy, kernel_shape, stride, padding)
  num_images = len(x) if len(x) <= WHOLE else max(IMAGES, math.ceil(len(x) / MAX_PARTS))
  parts = [slice(first, first + num_images) for first in range(0, len(x), num_images)]
  return sum(_kernel_gradient(x[part], dy[part], kernel_shape, stride, padding) for part in parts)


def _kernel_gradient_by_rows(x, dy, kernel_shape, stride, padding):
  num_rows, (top, _) = dy.shape[1], padding[0]
  per_part = largest_divisor(num_rows, MAX_BYTES * num_rows // dy.nbytes)

  def height(num_windows):  # of the input that they read
    return (num_windows - 1) * stride + kernel_shape[0]

  bottom = height(num_rows) - top - x.shape[1]  # negative if the maps extend past the last windows
  x = pad_axis(x, 1, 0, (top, bottom, 0))

  def of_part(first):
    x_part = lax.dynamic_slice_in_dim(x, first * stride, height(per_part), axis=1)
    dy_part = lax.dynamic_slice_in_dim(dy, first, per_part, axis=1)
    return _kernel_gradient(x_part, dy_part, kernel_shape, stride, ((0, 0), padding[1]))

  return lax.map(of_part, jnp.arange(0, num_rows, per_part)).sum(axis=0)


def _kernel_gradient(x, dy, kernel_shape, stride, padding):
  kernel_height, kernel_width, num_in, _ = kernel_shape
  batch, height, width, _ = x.shape
  (top, bottom), (left, right) = (
    (before, (outputs - 1) * stride + length - before - side)
    for outputs, length, (before, _), side in zip(dy.shape[1:3], kernel_shape[:2], padding, x.shape[1:3], strict=True)
  )
  images_last = x.reshape(batch, -1).T
  gradient = _conv(
    images_last.reshape(1, height, width * num_in, batch),
    dy,
    (kernel_height, kernel_width * num_in),
    ((top, bottom), (left * num_in, right * num_in)),
    dilations=(stride, stride * num_in),
    spatial_axes=(1, 2),
    num_in_axis=0,
  )
  return gradient.reshape(kernel_shape)


@jax.custom_vjp
def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies stacks of matrices, [stack, rows, inner] by [stack, inner, columns], in float32.

  XLA multiplies fewer than `MIN_ROWS` rows, and stacks of several matrices on a processor without AVX-512, where oneDNN
  may not terminate.
  """
  return _matmul(a, b)


def _matmul_forward(a, b):
  return _matmul(a, b), (a, b)


def _matmul_backward(residuals, dy):
  a, b = residuals
  da = matmul_transposed(dy, b)
  # The gradient of the weights waits for the last reader of the weights, which are then updated in place, without a
  # copy.
  dy = dy + 0 * da[:1, :1, :1]
  return da, _matmul(a, dy, transpose_a=True)


matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul_transposed(a: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies [stack, rows, inner] by matrices stored as [stack, columns, inner], like `matmul`; without gradients."""
  if a.shape[1] < MIN_ROWS:
    return _matmul(a, b, transpose_b=True)
  return _matmul(b, a, transpose_b=True).swapaxes(1, 2)  # fc6, 32 images, 13 ms; the other way round 16.5


def _conv(
  x,
  kernel,
  size,
  padding,
  *,
  strides=(1, 1),
  dilations=(1, 1),
  spatial_axes=(0, 1),
  num_in_axis=2,
  num_out_axis=3,
):
  """Convolves maps [batch, height, width, in] with kernels whose axes are in any order."""
  crop = [min(edge, 0) for edges in padding for edge in edges]
  if any(crop):  # the maps extend past the last windows
    top, bottom, left, right = crop
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
  befores, afters = zip(*([max(edge, 0) for edge in edges] for edges in padding), strict=True)
  maps = {'dims': 4, 'data': {'batch_dim': 0, 'spatial_dims': (1, 2), 'feature_dim': 3}}
  axes = {'spatial_dims': spatial_axes, 'input_feature_dim': num_in_axis, 'output_feature_dim': num_out_axis}
  config = {
    'dims': 4,
    'input': maps,
    'kernel': {'dims': 4, 'filter': axes},
    'output': maps,
    'window': {
      'size': [kernel.shape[axis] for axis in spatial_axes],
      'pad_left': befores,
      'pad_right': afters,
      'strides': strides,
      'window_dilations': dilations,
    },
    'feature_groups': 1,
  }
  return _call('convolution', {'onednn_conv_config': config}, (len(x), *size, kernel.shape[num_out_axis]), x, kernel)


def _matmul(a, b, *, transpose_a=False, transpose_b=False):
  if a.shape[1] < MIN_ROWS or (len(a) > 1 and not multiplies_stacks()):
    inner = (1 if transpose_a else 2,), (2 if transpose_b else 1,)
    return lax.dot_general(a, b, (inner, ((0,), (0,))))
  config = {'transpose_a': transpose_a, 'transpose_b': transpose_b}
  shape = (len(a), a.shape[2 if transpose_a else 1], b.shape[1 if transpose_b else 2])
  return _call('matmul', {'onednn_matmul_config': config}, shape, a, b)


@functools.cache
def multiplies_stacks() -> bool:
  """Returns whether one call may multiply several pairs of matrices.

  Without AVX-512, oneDNN 3.7 (jaxlib 0.10) starts a task for each pair, and each task starts others, which XLA
  schedules after the first: about one call in a thousand does not terminate, or crashes the process. XLA's own product
  is as fast there (docs/performance.md).
  """
  return 'avx512' in pathlib.Path('/proc/cpuinfo').read_text()


def _call(name, config, shape, *operands):
  like = jax.typeof(operands[0])
  call = jax.ffi.ffi_call(
    f'__onednn${name}',
    jax.ShapeDtypeStruct(shape, like.dtype, sharding=like.sharding, manual_axis_type=like.manual_axis_type),
    custom_call_api_version=2,  # whose configuration is text
    legacy_backend_config=json.dumps({'outer_dimension_partitions': []} | config),
  )
  return call(*operands)
