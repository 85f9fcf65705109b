"""The two GPUs of Figure 2: how arrays are sharded over the towers, and the exchange of maps between towers.

Every parameter and every activation of a tower has a leading tower axis, which is sharded over the mesh axis 'tower'.
Normalisation, pooling and dropout cannot cross towers, because they do not operate on that axis. `gather` is called
exactly where Figure 2's arrows cross; it is the only exchange of maps between towers.

Arrays that every tower reads, such as the images and the results of `gather`, have no tower axis: [batch, ...,
channel].
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

PARAMS = P('tower')  # [tower, ...]: each device holds the kernels of its own towers
MAPS = P('tower', 'data')  # [tower, batch, ...]
BATCH = P('data')  # [batch, ...]: read by every tower


def gather(x: jax.Array) -> jax.Array:
  """Joins the channels of all towers, for every tower to read: Figure 2's crossing arrows.

  Args:
    x: [tower, batch, ..., channel], the maps of each tower.

  Returns:
    [batch, ..., tower * channel], the first tower's channels first.
  """
  return jnp.concatenate(list(jax.reshard(x, P(None, 'data'))), axis=-1)  # the all-gather


def scatter(x: jax.Array, num_towers: int) -> jax.Array:
  """Splits channels between the towers, the inverse of `gather`: [batch, ..., tower * channel] -> [tower, ...]."""
  return jax.reshard(jnp.stack(jnp.split(x, num_towers, axis=-1)), MAPS)


def broadcast(x: jax.Array, num_towers: int) -> jax.Array:
  """Copies an array to every tower: [batch, ...] -> [tower, batch, ...]."""
  return jnp.broadcast_to(x, (num_towers, *x.shape), out_sharding=MAPS)
