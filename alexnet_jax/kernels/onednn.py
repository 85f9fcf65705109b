"""Convolutions and matrix products by oneDNN, which jaxlib carries for a CPU but does not call.

XLA leaves both to YNNPACK on a CPU. oneDNN, which PyTorch calls, needs about half as long for the layers of this
network (benchmarks/README.md). The pass of XLA that would put oneDNN in is not built into jaxlib 0.10.1, and off in
0.11.2. Both have what it would put in: the custom calls below, whose configuration is XLA's `onednn_config.proto`. The
only convolution among them is a forward one, so that its gradients are written as such.

Nothing checks a configuration, and what it means has changed from one XLA to another. So oneDNN is called in those
versions alone with which it was tried; `convolution.py` has what is fastest in others. And XLA cannot write a program
with such calls to its cache of compiled programs: it mistakes them for others there, with whatever consequence. So they
are made only where that cache is off, see `use`.
"""

import functools
import json
import math
import pathlib
import platform

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.compilation_cache import compilation_cache as jax_compilation_cache

from alexnet_jax.runtime import compilation_cache

TESTED_VERSIONS = ('0.10.1', '0.11.2')  # versions of jaxlib: those of requirements.txt

# In the gradient of a kernel, images at a time: as many numbers as a vector of AVX-512 holds. More where the batch is
# so large that its many parts would take long to compile.
IMAGES, MOST_PARTS = 16, 8

Padding = tuple[tuple[int, int], tuple[int, int]]


def enable() -> None:
  """Takes to oneDNN from now on, where it is available; for work that is longer than compiling.

  It turns the cache of compiled programs off, so that what trains faster starts a few seconds later. Whoever named a
  folder for the cache (JAX_COMPILATION_CACHE_DIR) keeps it, and does without oneDNN.
  """
  if is_available() and jax.config.jax_compilation_cache_dir in (None, str(compilation_cache.default_folder())):
    jax.config.update('jax_enable_compilation_cache', False)
    jax_compilation_cache.reset_cache()  # it looks at the setting once
    # Or gradients are summed over the devices of an axis where it has but one, and XLA copies them: 24 ms a step.
    jax.config.update('jax_remove_size_one_mesh_axis_from_type', True)


def is_enabled() -> bool:
  """Says whether convolutions and products of float32 go to oneDNN."""
  return is_available() and not jax.config.jax_enable_compilation_cache


@functools.cache
def is_available() -> bool:
  """Says whether JAX computes on a CPU, and in a version whose oneDNN is called as we know it."""
  known = jax.lib.__version__ in TESTED_VERSIONS and (platform.system(), platform.machine()) == ('Linux', 'x86_64')
  return known and jax.default_backend() == 'cpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Does what `convolution.conv` does, in float32."""
  size = num_windows(x.shape[1:3], kernel.shape[:2], stride, padding)
  return _conv(x, kernel, size, padding, strides=(stride, stride))


def _conv_forward(x, kernel, stride, padding):
  return conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
  x, kernel = residuals
  dx = input_gradient(dy, kernel, x.shape[1:3], stride, padding)
  return dx, kernel_gradient(x, dy, kernel.shape, stride, padding)


conv.defvjp(_conv_forward, _conv_backward)


def num_windows(size: tuple[int, int], window: tuple[int, int], stride: int, padding: Padding) -> tuple[int, int]:
  """Counts the windows of a convolution along the height and the width of maps of this size, all in pixels."""
  height, width = (
    (side + sum(around) - length) // stride + 1 for side, length, around in zip(size, window, padding, strict=True)
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
    An array as the input maps [batch, height, width, in].
  """
  between = (0, 0, stride - 1)  # zeros, for input pixels at which no window begins
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), between, between, (0, 0, 0)))
  around = [
    (length - 1 - before, side + before - outputs)
    for length, (before, _), side, outputs in zip(kernel.shape[:2], padding, size, dy.shape[1:3], strict=True)
  ]
  # Turned: what an input pixel says to the outputs, seen from the pixel.
  return _conv(dy, kernel[::-1, ::-1], size, around, num_in_axis=3, num_out_axis=2)


def kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape, stride: int, padding: Padding) -> jax.Array:
  """Computes the gradient of a convolution with respect to its kernel.

  That is a convolution too, of the input with the gradient of the output, which sums over images as others sum over
  channels. The channels lie side by side in a row of width x channel here. So a row of a kernel, all its columns and
  channels, is a row of the result, and oneDNN computes many neighbours at a time. It does a few images at a time, so
  that what it reads again and again stays in the cache.

  Args:
    x: input maps [batch, height, width, in] float32.
    dy: gradient of the output maps [batch, height, width, out] float32.
    kernel_shape: (height, width, in, out).
    stride: as in the forward pass.
    padding: as in the forward pass.

  Returns:
    An array of `kernel_shape`.
  """
  num_images = max(IMAGES, math.ceil(len(x) / MOST_PARTS))
  parts = [slice(first, first + num_images) for first in range(0, len(x), num_images)]
  return sum(_kernel_gradient(x[part], dy[part], kernel_shape, stride, padding) for part in parts)


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

  More than one matrix by more than one go to XLA on a processor without AVX-512, where oneDNN may never end.
  """
  return _matmul(a, b)


def _matmul_forward(a, b):
  return _matmul(a, b), (a, b)


def _matmul_backward(residuals, dy):
  a, b = residuals
  da = _matmul(dy, b, transpose_b=True)
  # The gradient of the weights waits for what reads them last: XLA would copy them before they are updated in place.
  dy = dy + 0 * da[:1, :1, :1]
  return da, _matmul(a, dy, transpose_a=True)


matmul.defvjp(_matmul_forward, _matmul_backward)


def materialise(x: jax.Array) -> jax.Array:
  """Hands on maps [..., channel] float32 as they are, computed once.

  XLA computes what looks cheap, as pooling does, anew for everything that reads it, in loops that suit the reader. It
  does not look into a product, here with ones and zeros: what that returns lies in memory.
  """
  channels = x.shape[-1]
  return _matmul(x.reshape(1, -1, channels), jnp.eye(channels)[None]).reshape(x.shape)


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
  """Convolves maps [batch, height, width, in] with kernels that have their axes anywhere."""
  cut = [min(edge, 0) for around in padding for edge in around]
  if any(cut):  # maps that reach farther than the windows
    top, bottom, left, right = cut
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))
  befores, afters = zip(*([max(edge, 0) for edge in around] for around in padding), strict=True)
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
  if len(a) > 1 and not _multiplies_stacks():
    inner = (1 if transpose_a else 2,), (2 if transpose_b else 1,)
    return lax.dot_general(a, b, (inner, ((0,), (0,))))
  config = {'transpose_a': transpose_a, 'transpose_b': transpose_b}
  shape = (len(a), a.shape[2 if transpose_a else 1], b.shape[1 if transpose_b else 2])
  return _call('matmul', {'onednn_matmul_config': config}, shape, a, b)


@functools.cache
def _multiplies_stacks() -> bool:
  """Says whether one call may multiply more than one matrix by another.

  Without AVX-512 oneDNN 3.7 (jaxlib 0.10) starts a task for each of them, and from there others for its parts, which
  XLA lets wait for the end of the first: some call in a thousand never ends, or breaks the process off. XLA itself is
  as fast there (benchmarks/README.md).
  """
  return 'avx512' in pathlib.Path('/proc/cpuinfo').read_text()


def _call(name, config, shape, *operands):
  like = jax.typeof(operands[0])
  call = jax.ffi.ffi_call(
    f'__onednn${name}',
    jax.ShapeDtypeStruct(shape, like.dtype, sharding=like.sharding, manual_axis_type=like.manual_axis_type),
    custom_call_api_version=2,  # the one in which a configuration is text
    legacy_backend_config=json.dumps({'outer_dimension_partitions': []} | config),
  )
  return call(*operands)
