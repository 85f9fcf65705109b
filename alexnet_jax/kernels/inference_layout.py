"""Parameters laid out for inference on a CPU: the same numbers, in the order in which oneDNN reads them fastest.

Training stores the kernels of both towers in one array, and those of a fully-connected layer as [tower, in, out].
oneDNN reads an array from its beginning, so XLA copies the kernels of every tower in each call, and oneDNN multiplies
by a kernel [out, in] up to 1.8 times as fast. Both are therefore arranged once, before many batches. While the original
parameters are in use as well, both are in memory.
"""

import dataclasses

import jax
import jax.numpy as jnp

from alexnet_jax.kernels import dispatch, onednn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transposed:
  """The kernel of a fully-connected layer, [tower, in, out], stored as [tower, out, in]. It has no gradient."""

  stored: jax.Array

  def __jax_array__(self) -> jax.Array:
    return self.stored.swapaxes(1, 2)

  def __len__(self) -> int:
    return len(self.stored)


def arrange_conv(kernel: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
  """Divides a kernel [tower, height, width, in, out] into those of the towers, if one CPU computes all of them."""
  return tuple(kernel) if _is_one_cpu() else kernel


def arrange_linear(kernel: jax.Array) -> jax.Array | Transposed:
  """Transposes a kernel [tower, in, out], if one CPU computes all towers and oneDNN multiplies stacks of matrices."""
  return Transposed(kernel.swapaxes(1, 2)) if _is_one_cpu() and onednn.multiplies_stacks() else kernel


def _is_one_cpu():
  mesh = jax.sharding.get_abstract_mesh()
  return dispatch.is_enabled() and onednn.is_enabled() and not mesh.empty and mesh.size == 1


def linear_on_device(x: jax.Array, kernel: jax.Array | Transposed) -> jax.Array:
  """Computes `layers.linear_on_device` in float32."""
  if not onednn.is_enabled() or x.dtype != jnp.float32:
    return NotImplemented
  if isinstance(kernel, Transposed):
    return onednn.matmul_transposed(x, kernel.stored)
  return onednn.matmul(x, kernel)
