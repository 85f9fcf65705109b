"""Where XLA must write an array to memory.

XLA fuses whatever it can and computes a cheap array anew for each of its readers. These identities keep it from doing
so where that is slower.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def with_whole_gradient(y: jax.Array) -> jax.Array:
  """Returns maps unchanged; their gradient is written to memory once, for all of its readers."""
  return y


with_whole_gradient.defvjp(lambda y: (y, None), lambda _, dy: (jax.lax.optimization_barrier(dy),))


def computed_once_on_cpu(tree):
  """Returns arrays unchanged; a CPU computes them once for all readers.

  The new velocity of the update is read by the update of the weights and returned as well. Without the barrier XLA
  computes it for both, and copies it and the weights first.
  """
  return jax.lax.optimization_barrier(tree) if jax.default_backend() == 'cpu' else tree


def written_once_on_cpu(x: jax.Array) -> jax.Array:
  """Returns an array unchanged; a CPU writes it to memory once for all readers, even if it is cheap to compute.

  XLA removes its barriers before it fuses operations, but does not fuse them into the branches of a conditional. The
  condition is always true. The barrier hides that from XLA, which would remove the conditional.
  """
  if jax.default_backend() != 'cpu':
    return x
  return jax.lax.cond(jax.lax.optimization_barrier(jnp.bool_(True)), lambda x: x, jnp.zeros_like, x)
