"""The two GPUs of Figure 2: how arrays are sharded over the towers, and the exchange of maps between towers.

Every parameter and every activation of a tower has a leading tower axis, which is sharded over the mesh axis 'tower'.
Normalisation, pooling and dropout cannot cross towers, because they do not operate on that axis. `gather` is called
exactly where Figure 2's arrows cross; it is the only exchange of maps between towers.

Arrays that every tower reads, such as the images and the results of `gather`, have no tower axis: [batch, ...,
channel].

Without a mesh (`jax.set_mesh`), both towers are computed on the default device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

PARAMS = P('tower')  # [tower, ...]: each device holds the kernels of its own towers
MAPS = P('tower', 'data')  # [tower, batch, ...]
BATCH = P('data')  # [batch, ...]: read by every tower


def has_mesh() -> bool:
  """Returns whether a mesh is set, over whose devices arrays are sharded."""
  return not jax.sharding.get_abstract_mesh().empty


def sharding(spec: P) -> P | None:
  """Returns the sharding of a new array: `spec` in a mesh, None without one."""
  return spec if has_mesh() else None


def on_each_device(function: Callable, in_specs: P | tuple[P, ...], out_specs: P) -> Callable:
  """Returns `jax.shard_map` of a function, which then reads each device's own towers; without a mesh, the function."""
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs) if has_mesh() else function


def varying(x: jax.Array, axis: str) -> jax.Array:
  """Marks an array as different on each device of a mesh axis, inside `on_each_device`; its gradient is summed."""
  return lax.pcast(x, (axis,), to='varying') if has_mesh() else x


def reshard(x: jax.Array, spec: P) -> jax.Array:
  """Changes the sharding of an array; without a mesh, returns it unchanged."""
  return jax.reshard(x, spec) if has_mesh() else x


def gather(x: jax.Array) -> jax.Array:
  """Joins the channels of all towers, for every tower to read: Figure 2's crossing arrows.

  Args:
    x: [tower, batch, ..., channel], the maps of each tower.

  Returns:
    [batch, ..., tower * channel], the first tower's channels first.
  """
  return jnp.concatenate(list(reshard(x, P(None, 'data'))), axis=-1)  # the all-gather


def scatter(x: jax.Array, num_towers: int) -> jax.Array:
  """Splits channels between the towers, the inverse of `gather`: [batch, ..., tower * channel] -> [tower, ...]."""
  return reshard(jnp.stack(jnp.split(x, num_towers, axis=-1)), MAPS)


def broadcast(x: jax.Array, num_towers: int) -> jax.Array:
  """Copies an array to every tower: [batch, ...] -> [tower, batch, ...]."""
  return jnp.broadcast_to(x, (num_towers, *x.shape), out_sharding=sharding(MAPS))
