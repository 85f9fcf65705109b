"""Fast form of response normalisation, with a gradient of its own.

On a CPU the denominators are saved for the gradient. A GPU recomputes them, which is faster than reading them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.kernels.windows import pad_axis


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def divide_by_neighbours(
  x: jax.Array, axes: tuple[int, ...], k: float, size: int, alpha: float, beta: float
) -> jax.Array:
  """Computes `layers.divide_by_neighbours`, in float32."""
  return _forward(x, axes, k, size, alpha, beta)[0]


def _forward(x, axes, k, size, alpha, beta):
  wide = _in_float32(x)
  denominator = _denominator(wide, axes, k, size, alpha)
  y = (wide * _negative_power(denominator, beta)).astype(x.dtype)
  return y, (x, denominator if jax.default_backend() == 'cpu' else None)


def _backward(axes, k, size, alpha, beta, residuals, dy):
  x, denominator = residuals
  dtype = x.dtype
  # y_i = x_i d_i^-beta and d_i contains x_j^2 for every neighbour j, so x_j also acts through all of its neighbours'
  # d_i, by dy_i d_i^(-beta - 1).
  if denominator is not None:
    x, dy = _in_float32(x), _in_float32(dy)
    dy_scaled = dy * _negative_power(denominator, beta) / denominator  # XLA saves the power of the forward pass
  else:
    x = x * lax.optimization_barrier(jnp.ones((), dtype))  # or XLA saves the denominators of the forward pass
    x, dy = _in_float32(x), _in_float32(dy)
    denominator = _denominator(x, axes, k, size, alpha)
    dy_scaled = lax.optimization_barrier(dy * _negative_power(denominator, beta + 1))  # written for the neighbours
  # The product with an infinite denominator is not a number, which reports maps that overflow.
  dx = dy_scaled * denominator - 2 * alpha * beta * x * _window_sum(dy_scaled * x, axes, size)
  return (dx.astype(dtype),)


divide_by_neighbours.defvjp(_forward, _backward)


def _in_float32(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _denominator(x, axes, k, size, alpha):
  return k + alpha * _window_sum(jnp.square(x), axes, size)


def _window_sum(x, axes, size):
  """Sums over neighbours along each axis."""
  for axis in axes:
    length, padded = x.shape[axis], pad_axis(x, axis, 0, (size // 2, size // 2, 0))
    if jax.default_backend() == 'cpu':  # or XLA reads the middle slice from x, and writes x to memory as well
      padded = lax.optimization_barrier(padded)
    x = functools.reduce(jnp.add, [lax.slice_in_dim(padded, i, i + length, 1, axis) for i in range(size)])
  return x


def _negative_power(x, exponent):
  if exponent % 1 == 0.75:  # roots are several times faster than a power
    return lax.rsqrt(x * jnp.sqrt(x)) / x ** int(exponent)
  return x**-exponent
