"""The two GPUs of Figure 2: everything in this project that knows of devices.

Every parameter and every activation of a tower carries a leading tower axis, and that axis is laid over the devices of
the mesh. Normalisation, pooling and dropout cannot cross towers, because the axis is not theirs. Where Figure 2's
arrows cross, `gather` stands: it is the only place where towers exchange maps.

An array that every tower sees alike (the image, or what `gather` returns) has no tower axis: [batch, ..., channel].
"""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.runtime.errors import UsageError

PARAMS = P('tower')  # [tower, ...]: each device keeps the kernels of its own tower
MAPS = P('tower', 'data')  # [tower, batch, ...]
BATCH = P('data')  # [batch, ...]: what every tower sees alike

# Batches on their way to the devices at a time. Copied one after the other, those of 512 images take an H100 16 ms and
# more; with two at a time a step of 10.0 ms took 10.65 (benchmarks/README.md).
COPIES = 2


def make_mesh(num_data: int, num_tower: int, *, num_towers: int, batches: Mapping[str, int]) -> Mesh:
  """Lays the devices out as data x tower.

  Args:
    num_data: devices along the data axis; 0 takes what the tower axis leaves.
    num_tower: devices along the tower axis; 0 takes 2 when the number of devices is even and the network has two
      towers, else 1.
    num_towers: towers of the network (2 as published).
    batches: sizes of the batches to be shared by the devices of the data axis, by config field.

  Returns:
    A mesh with the Explicit axes ('data', 'tower').

  Raises:
    UsageError: if there are too few devices, or the mesh does not divide the towers and the batches evenly.
  """
  devices = jax.devices()
  if num_tower == 0:
    splits_evenly = len(devices) % (2 * max(num_data, 1)) == 0
    num_tower = 2 if num_towers == 2 and splits_evenly else 1
  if num_data == 0:
    num_data = max(len(devices) // num_tower, 1)
  if min(num_data, num_tower) < 0:
    raise UsageError(
      f'mesh.data={num_data} and mesh.tower={num_tower} must not be negative; 0 lets the mesh fit itself.'
    )
  if num_towers % num_tower:
    choice = f'1 or {num_towers}' if num_towers > 1 else '1'
    raise UsageError(
      f'mesh.tower={num_tower} does not divide the {num_towers} tower(s) of the network; choose {choice}.'
    )
  needed = num_data * num_tower
  if needed > len(devices):
    advice = (
      f'on a CPU, simulate them: JAX_NUM_CPU_DEVICES={needed} python main.py ... --config.mesh.tower={num_tower}'
      if devices[0].platform == 'cpu'
      else 'leave mesh.data and mesh.tower at 0 to use what there is'
    )
    raise UsageError(
      f'mesh.data={num_data} x mesh.tower={num_tower} needs {needed} devices and there are {len(devices)}; {advice}.'
    )
  for field, size in batches.items():
    if size % num_data:
      raise UsageError(
        f'mesh.data={num_data} does not divide {field}={size}; choose a multiple of it, or set mesh.data.'
      )
  grid = np.asarray(devices[:needed]).reshape(num_data, num_tower)
  return Mesh(grid, ('data', 'tower'), axis_types=(AxisType.Explicit,) * 2)


def data_shard(mesh: Mesh) -> tuple[int, int]:
  """Says which share of every batch this process reads, as (index, count).

  Processes that differ only in tower read the same images, so the share follows the mesh, not the process index.

  Raises:
    UsageError: if this process holds no device of the mesh, or not one aligned block of its data axis.
  """
  mine = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
  rows = np.flatnonzero(mine.any(axis=1))
  if not rows.size:
    raise UsageError(f'process {jax.process_index()} has no device in the mesh; let it use all devices.')
  first, num_rows = int(rows[0]), len(rows)
  if rows[-1] - first != num_rows - 1 or first % num_rows or mesh.shape['data'] % num_rows:
    raise UsageError(
      f'mesh.data={mesh.shape["data"]} does not give every process an equal, contiguous share of the batch; '
      'choose a multiple of the number of processes, or 1.'
    )
  return first // num_rows, mesh.shape['data'] // num_rows


def put_batch(mesh: Mesh, batch):
  """Places this process's share of a batch (a pytree of numpy arrays [batch, ...]) on its devices."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), x), batch)


def prefetch_to_devices(mesh: Mesh, batches: Iterable) -> Iterator:
  """Does what `put_batch` does for one batch after the other, ahead of whoever asks, so that no step waits for a copy.

  The next `COPIES` batches are on their way while a step computes.

  Args:
    mesh: whose devices they go to.
    batches: this process's shares, pytrees of numpy arrays [batch, ...]; without end or not.

  Yields:
    The same, [batch, ...], on the devices.

  Raises:
    Whatever reading a batch raises, as soon as it does: the batches on their way are not handed out.
  """
  with concurrent.futures.ThreadPoolExecutor(COPIES) as pool:
    ahead = collections.deque()
    for batch in batches:
      ahead.append(pool.submit(put_batch, mesh, batch))
      if len(ahead) > COPIES:
        yield ahead.popleft().result()
    yield from (future.result() for future in ahead)


def to_host(mesh: Mesh, tree):
  """Brings arrays of the mesh to this host, whole, whatever process holds their parts: a pytree of numpy arrays."""
  everywhere = NamedSharding(mesh, P())
  return jax.tree.map(lambda x: np.asarray(jax.device_put(x, everywhere)), tree)


def gather(x: jax.Array) -> jax.Array:
  """Shows every tower the channels of all: Figure 2's crossing arrows.

  Args:
    x: [tower, batch, ..., channel], the maps of each tower.

  Returns:
    [batch, ..., tower * channel], the first tower's channels first.
  """
  return jnp.concatenate(list(jax.reshard(x, P(None, 'data'))), axis=-1)  # the all-gather


def scatter(x: jax.Array, num_towers: int) -> jax.Array:
  """Hands each tower its own channels back, the inverse of `gather`: [batch, ..., tower * channel] -> [tower, ...]."""
  return jax.reshard(jnp.stack(jnp.split(x, num_towers, axis=-1)), MAPS)


def broadcast(x: jax.Array, num_towers: int) -> jax.Array:
  """Hands each tower its copy of what all see: [batch, ...] -> [tower, batch, ...]."""
  return jnp.broadcast_to(x, (num_towers, *x.shape), out_sharding=MAPS)


def versions() -> str:
  """Says in one line what a run stands on."""
  return f'jax {jax.__version__}, flax {flax.__version__}'


def device_memory(mesh: Mesh) -> int | None:
  """Returns the bytes of memory of a device of this process; None where it is the host's, which all of them share."""
  return (mesh.local_devices[0].memory_stats() or {}).get('bytes_limit')


def accelerators() -> str:
  """Says in words which accelerators there are; empty where there is a CPU alone."""
  devices = jax.devices()
  return '' if devices[0].platform == 'cpu' else f'{len(devices)} x {devices[0].device_kind}'


def describe_mesh(mesh: Mesh) -> str:
  """Says in one line which devices the mesh holds."""
  device = mesh.devices.flat[0]
  return f'{mesh.size} x {device.device_kind}, mesh data {mesh.shape["data"]} x tower {mesh.shape["tower"]}'
