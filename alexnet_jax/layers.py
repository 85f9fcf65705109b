"""The layers of section 3, for activations with a leading tower axis."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alexnet_jax import towers


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
    y = towers.conv(x, self.kernel[...], stride=self.stride, padding=self.padding)
    return y + self.bias[...][:, None, None, None, :]


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
    return jnp.einsum('tni,tio->tno', x, kernel) + self.bias[...][:, None, :]


def gaussian(key, shape, std) -> jax.Array:
  """Draws initial weights [tower, ...] float32 from a Gaussian with zero mean (section 5)."""
  return jnp.float32(std) * jax.random.normal(key, shape, jnp.float32, out_sharding=towers.PARAMS)


def constant(shape, value) -> jax.Array:
  """Makes initial biases [tower, ...] float32, all of one value (section 5)."""
  return jnp.full(shape, value, jnp.float32, out_sharding=towers.PARAMS)


def max_pool(x: jax.Array, size: int = 3, stride: int = 2) -> jax.Array:
  """Takes the maximum over windows that overlap where size > stride (section 3.4).

  Along one axis, then along the other: the gradient of maxima of slices is about four times as fast on a CPU as that
  of `lax.reduce_window`, and two passes of three slices move a third of the memory of one pass of nine. Where several
  pixels tie, they share the gradient.

  Args:
    x: [tower, batch, height, width, channel].
    size: side of the window, z in the paper.
    stride: pixels from one window to the next, s in the paper.

  Returns:
    [tower, batch, (height - size) // stride + 1, (width - size) // stride + 1, channel].
  """

  def along(axis, x):
    span = (x.shape[axis] - size) // stride * stride + 1
    return functools.reduce(jnp.maximum, [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)])

  return along(2, along(3, x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def local_response_norm(
  x: jax.Array, k: float = 2.0, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
  """Divides each activity by (k + alpha * sum of squares over `size` neighbouring maps) ** beta (section 3.3).

  The window is centred and clipped at the first and last map of the tower. `alpha` multiplies the sum as in the paper:
  Caffe and PyTorch divide it by `size` first, so their alpha is 5 times ours; TensorFlow's depth_radius is size // 2,
  its alpha ours.

  Args:
    x: [tower, batch, height, width, channel] float32.
    k: additive constant.
    size: maps in the window, n in the paper; odd.
    alpha: factor of the sum of squares.
    beta: exponent.

  Returns:
    An array like `x`.
  """
  return _normalise(x, k, size, alpha, beta)[0]


def _normalise(x, k, size, alpha, beta):
  denominator = k + alpha * _window_sum(jnp.square(x), size)
  return x * _negative_power(denominator, beta), (x, denominator)


def _normalise_gradient(k, size, alpha, beta, residuals, dy):
  del k
  x, denominator = residuals
  scale = _negative_power(denominator, beta)
  # y_i = x_i d_i^-beta and d_i holds x_j^2 for every neighbour j, so x_j also acts through all of its neighbours' d_i.
  return (dy * scale - 2 * alpha * beta * x * _window_sum(dy * x * scale / denominator, size),)


local_response_norm.defvjp(_normalise, _normalise_gradient)


def _window_sum(x, size):
  """Sums over neighbouring channels; as a product with a band matrix it runs at the speed of matrix products."""
  channel = lax.iota(jnp.int32, x.shape[-1])
  band = (jnp.abs(channel[:, None] - channel) <= size // 2).astype(x.dtype)
  return jnp.einsum('tnhwc,cd->tnhwd', x, band, precision=lax.Precision.HIGHEST)


def _negative_power(x, exponent):
  if exponent == 0.75:  # two square roots are several times faster than a power
    root = lax.rsqrt(x)
    return root * jnp.sqrt(root)
  return x**-exponent


def dropout(x: jax.Array, key: jax.Array | None) -> jax.Array:
  """Drops each unit with probability one half, literally as published (section 4.2).

  In training (a key is given) the units that stay keep their value. At test time (no key) all are there, times 0.5.
  """
  if key is None:
    return 0.5 * x
  keep = jax.random.bernoulli(key, 0.5, x.shape, out_sharding=towers.MAPS)
  return jnp.where(keep, x, 0)
