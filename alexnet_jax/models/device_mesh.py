"""The device mesh, data x tower, and copies between the host and its devices.

Each device of the data axis computes a shard of the batch, and those of the tower axis hold the towers. Both axes are
Explicit, so that the sharding of every array is part of its type.
"""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping

import flax
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.models.towers import BATCH
from alexnet_jax.runtime.errors import UsageError

# Batches that are copied to the devices at a time. One at a time, a copy of 512 images took 16 ms and more on an H100;
# with two, a step of 10.0 ms took 10.65 ms (docs/performance.md).
NUM_COPIES = 2


def make_mesh(num_data: int, num_tower: int, *, num_towers: int, batches: Mapping[str, int]) -> Mesh:
  """Arranges the devices as data x tower.

  Args:
    num_data: devices along the data axis; 0 for all devices that the tower axis leaves.
    num_tower: devices along the tower axis; 0 for 2 if the number of devices is even and the network has two towers,
      else 1.
    num_towers: towers of the network (2 as published).
    batches: sizes of the batches that are sharded over the data axis, by config field.

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
      else 'set mesh.data and mesh.tower to 0 to use the available devices'
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
  """Returns the shard of every batch that this process reads, as (index, count).

  Processes that differ only in their towers read the same images, so the shard depends on the mesh, not on the process
  index.

  Raises:
    UsageError: if this process holds no device of the mesh, or not one aligned block of its data axis.
  """
  mine = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
  rows = np.flatnonzero(mine.any(axis=1))
  if not rows.size:
    raise UsageError(f'process {jax.process_index()} has no device in the mesh; use all devices.')
  first, num_rows = int(rows[0]), len(rows)
  if rows[-1] - first != num_rows - 1 or first % num_rows or mesh.shape['data'] % num_rows:
    raise UsageError(
      f'mesh.data={mesh.shape["data"]} does not give every process an equal, contiguous shard of the batch; '
      'choose a multiple of the number of processes, or 1.'
    )
  return first // num_rows, mesh.shape['data'] // num_rows


def put_batch(mesh: Mesh, batch):
  """Copies this process's shard of a batch (a pytree of numpy arrays [batch, ...]) to its devices."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), x), batch)


def prefetch_to_devices(mesh: Mesh, batches: Iterable) -> Iterator:
  """Copies batches to the devices ahead of time, `NUM_COPIES` at a time, so that no step waits for a copy.

  Args:
    mesh: of the devices.
    batches: this process's shards, pytrees of numpy arrays [batch, ...].

  Yields:
    The batches, on the devices.

  Raises:
    Whatever reading a batch raises, at once: batches that are being copied are not yielded any more.
  """
  with concurrent.futures.ThreadPoolExecutor(NUM_COPIES) as pool:
    ahead: collections.deque = collections.deque()
    for batch in batches:
      ahead.append(pool.submit(put_batch, mesh, batch))
      if len(ahead) > NUM_COPIES:
        yield ahead.popleft().result()
    yield from (future.result() for future in ahead)


def to_host(mesh: Mesh, tree):
  """Copies a pytree of arrays, sharded over any processes, to this host as numpy arrays."""
  replicated = NamedSharding(mesh, P())
  return jax.tree.map(lambda x: np.asarray(jax.device_put(x, replicated)), tree)


def versions() -> str:
  """Returns the versions of JAX and Flax, in one line."""
  return f'jax {jax.__version__}, flax {flax.__version__}'


def device_memory(mesh: Mesh) -> int | None:
  """Returns the bytes of memory of one device of this process; None if the devices share the host's memory."""
  return (mesh.local_devices[0].memory_stats() or {}).get('bytes_limit')


def accelerators() -> str:
  """Describes the accelerators of this machine; returns '' if there are none."""
  devices = jax.devices()
  return '' if devices[0].platform == 'cpu' else f'{len(devices)} x {devices[0].device_kind}'


def describe_mesh(mesh: Mesh) -> str:
  """Describes the devices of a mesh in one line."""
  device = mesh.devices.flat[0]
  return f'{mesh.size} x {device.device_kind}, mesh data {mesh.shape["data"]} x tower {mesh.shape["tower"]}'
