"""Checkpoints of a run. This is the only module that uses Orbax."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from alexnet_jax.runtime import atomic_files, distributed, host_memory
from alexnet_jax.runtime.errors import RunError, UsageError, first_line

T = TypeVar('T')


class Checkpoints:
  """The checkpoints of a run in `DIR/checkpoints/STEP`: the newest ones, and the one with the lowest validation error.

  A checkpoint contains a pytree of arrays (the state of training) and a JSON object. The number of steps is also the
  position in the data, because a batch depends on the seed and the step alone.

  Saving runs in the background and is atomic: an interrupted save leaves no checkpoint, even if the machine stops. Each
  checkpoint contains a fingerprint of every array, by which damaged checkpoints are detected.
  """

  def __init__(self, workdir: pathlib.Path, num_newest: int = 3):
    """Opens the checkpoints of a run, and makes their folder if necessary.

    Args:
      workdir: folder of the run.
      num_newest: number of newest checkpoints to keep, in addition to the one with the lowest validation error.
    """
    self._folder = (workdir / 'checkpoints').resolve()
    self._step = -1  # of the checkpoint that is being saved

    def validation_error(metrics):
      return metrics['top1_error']

    policies = [
      ocp.checkpoint_managers.LatestN(num_newest),
      ocp.checkpoint_managers.BestN(
        get_metric_fn=validation_error, reverse=True, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
    options = ocp.CheckpointManagerOptions(
      best_fn=validation_error,  # without it, Orbax does not save the errors, and a resumed run does not know them
      best_mode='min',
      preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
      enable_async_checkpointing=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._sync_partial),  # before Orbax renames the folder
      cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=('state', 'run'))

  def newest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, or None if there is no checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, run: dict, results: dict | None = None) -> None:
    """Starts to save a checkpoint in the background, unless this step is already saved.

    Args:
      step: number of training steps taken.
      state: pytree of arrays on their devices, which may be donated once this method returns.
      run: other state of training, representable as JSON.
      results: validation results after this step, with 'top1_error' in percent; None without a validation.

    Raises:
      RunError: if this checkpoint or the previous one cannot be written.
    """
    if step == self.newest_step():
      return
    run = run | {'fingerprints': fingerprints(state)}
    metrics = results and {'top1_error': results['top1_error']}
    with self._write_errors():
      self._manager.wait_until_finished()
      host_memory.release_unused()  # the reference cycles and the memory that the previous save left
      self._step = step
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
        metrics=metrics,
      )

  def check(self) -> None:
    """Checks the checkpoint that was saved last, unless it is still being saved.

    Raises:
      RunError: if it could not be written.
    """
    if not self._manager.is_saving_in_progress():
      with self._write_errors():
        self._manager.wait_until_finished()

  def restore(self, layout: Callable[[dict], Any], mesh: Mesh) -> tuple[Any, dict] | None:
    """Loads the newest readable checkpoint onto a mesh, which may differ from the one that it was saved from.

    Newer checkpoints that cannot be read, or whose fingerprints do not match, are reported and renamed to
    `STEP.broken`. All processes of a run restore the same one.

    Args:
      layout: function from the other state of training to the shapes, dtypes and partition specs of the state, as
        returned by `jax.eval_shape`.
      mesh: devices to load it onto.

    Returns:
      The state and the other state of training; None if there is no checkpoint.

    Raises:
      RunError: if there are checkpoints but none is readable, none of which is renamed, or if this one of several
        processes cannot read arrays.
    """

    def read(step):
      with _read_errors(self._folder / str(step)):
        run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run
        target = ocp.args.StandardRestore(_with_shardings(layout(run), mesh))
        state = self._manager.restore(step, args=ocp.args.Composite(state=target)).state
      _check_fingerprints(fingerprints(state), run.pop('fingerprints'))
      return state, run

    newest = _read_newest(self._folder, read)
    if newest is None:
      return None
    _, restored, broken_steps = newest
    if broken_steps:
      if jax.process_index() == 0:
        for step in broken_steps:
          names = (f'{step}.broken', *(f'{step}.broken-{number}' for number in range(2, 100)))
          unused = next(name for name in names if not (self._folder / name).exists())
          (self._folder / str(step)).rename(self._folder / unused)
      multihost_utils.sync_global_devices('broken checkpoints are renamed')  # before any process lists the folder
      self._manager.reload()
    return restored

  def close(self) -> None:
    """Waits until the last checkpoint is saved.

    Raises:
      RunError: if it cannot be written.
    """
    with self._write_errors():
      self._manager.wait_until_finished()
      self._sync_names()
    self._manager.close()

  def _sync_partial(self) -> None:
    """Waits until the disk contains all files of the checkpoint that is being saved.

    Orbax waits for the arrays alone. It deletes older checkpoints only after this method has returned.
    """
    if jax.process_index() == 0:
      partial = self._folder / f'{self._step}{ocp.utils.TMP_DIR_SUFFIX}'
      for path in (partial, *partial.rglob('*')):
        atomic_files.sync(path)
      self._sync_names()

  def _sync_names(self) -> None:
    """Waits until the disk contains the names of all checkpoints."""
    if jax.process_index() == 0:
      for folder in (self._folder, self._folder.parent):
        atomic_files.sync(folder)

  @contextlib.contextmanager
  def _write_errors(self) -> Iterator[None]:
    """Converts errors of writing to `RunError`."""
    try:
      yield
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:  # TensorStore raises ValueError for a full disk
      step = newest_step(self._folder.parent)
      newest = 'there is no older checkpoint' if step is None else f'the newest complete checkpoint is of step {step:,}'
      raise RunError(
        f'a checkpoint cannot be written to {self._folder} ({first_line(error)}); {newest}. Free '
        'disk space and start again.'
      ) from error


def newest_step(workdir: pathlib.Path) -> int | None:
  """Returns the step of the newest complete checkpoint of a run, or None; makes no folder."""
  return max(ocp.utils.checkpoint_steps(workdir / 'checkpoints'), default=None)


def load_newest_params(
  workdir: pathlib.Path, select: Callable[[dict], dict], mesh: Mesh
) -> tuple[int, dict[str, dict[str, jax.Array]]]:
  """Loads parameters from the newest readable checkpoint, without velocities.

  Args:
    workdir: folder of the run.
    select: function from the shapes of the saved parameters, {'conv1': {'kernel': ..., 'bias': ...}, ...}, to the
      shapes, dtypes and partition specs of the parameters to load. A `UsageError` that it raises is passed on.
    mesh: devices to load them onto.

  Returns:
    The step of the checkpoint, and the parameters.

  Raises:
    UsageError: if there is no checkpoint.
    RunError: if no checkpoint is readable.
  """

  def read(step):
    folder = workdir.resolve() / 'checkpoints' / str(step)
    handler = ocp.PyTreeCheckpointHandler()
    with _read_errors(folder), ocp.Checkpointer(handler) as reader:
      tree = handler.metadata(folder / 'state').tree['params']  # `reader.metadata` warns that a file is missing
      shapes = {layer: {name: tuple(x.shape) for name, x in arrays.items()} for layer, arrays in tree.items()}
      target = {'params': _with_shardings(select(shapes), mesh)}
      args = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
      )
      restored = reader.restore(folder / 'state', args=args)
    with _read_errors(folder), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      saved_fingerprints = reader.restore(folder / 'run')['fingerprints']
    _check_fingerprints(fingerprints(restored), saved_fingerprints)
    return restored['params']

  newest = _read_newest(workdir / 'checkpoints', read)
  if newest is None:
    raise UsageError(f'{workdir} contains no checkpoint; train there first.')
  step, params, _ = newest
  return step, params


def fingerprints(tree: Any) -> dict[str, int]:
  """Returns a 32-bit fingerprint of each array of a pytree, by the path of the array.

  It is the sum of the elements' bits, each weighted by a different odd number, modulo 2 ** 32. It changes with any
  single element and does not depend on the mesh.
  """
  sums = jax.tree.leaves_with_path(_weighted_sums(tree))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): int(x) for path, x in sums}


@jax.jit
def _weighted_sums(tree):
  def weighted_sum(x):
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)

  return jax.tree.map(weighted_sum, tree)


def _check_fingerprints(computed, saved):
  wrong = [name for name, fingerprint in computed.items() if saved.get(name) != fingerprint]
  if wrong:
    others = f', nor do {len(wrong) - 1} more' if len(wrong) > 1 else ''
    raise ValueError(f'{wrong[0]} does not match its fingerprint{others}')


def _read_newest(folder: pathlib.Path, read: Callable[[int], T]) -> tuple[int, T, list[int]] | None:
  """Reads the newest readable checkpoint in a folder.

  Returns:
    Its step, the value of `read(step)`, and the steps of newer checkpoints that are not readable; None if the folder
    contains no checkpoint.

  Raises:
    RunError: if there are checkpoints but none is readable.
  """
  broken_steps: list[int] = []
  for step in sorted(ocp.utils.checkpoint_steps(folder), reverse=True):
    try:
      _in_all_processes(functools.partial(_parse_metadata, folder.resolve() / str(step) / 'state'))
      return step, read(step), broken_steps
    except (UsageError, RunError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # on damaged files the readers raise errors of many types
      reason = first_line(error)
      print(f'The checkpoint of step {step:,} in {folder} cannot be read: {reason}', flush=True)
      broken_steps.append(step)
  if broken_steps:
    raise RunError(
      f'none of the {len(broken_steps)} checkpoint(s) in {folder} can be read, and none was deleted; restore a '
      'complete one, or train in another --workdir.'
    )
  return None


def _in_all_processes(function: Callable[[], None]) -> None:
  """Calls a function in every process, and raises an exception in all of them if it fails in any.

  Without this agreement, a process that cannot read a checkpoint would resume from another one than the others.
  """
  error = None
  try:
    function()
  except Exception as reason:
    error = reason
  failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
  if error:
    raise error
  if len(failed):
    raise OSError(f'process {failed[0]} cannot read it')


@contextlib.contextmanager
def _read_errors(folder: pathlib.Path) -> Iterator[None]:
  """Ends the run if one of several processes cannot read arrays: Orbax makes the others wait for it."""
  try:
    yield
  except Exception as error:
    if distributed.is_single_process() or isinstance(error, UsageError | jax.errors.JaxRuntimeError):
      raise
    raise RunError(
      f'process {jax.process_index()} cannot read {folder} ({first_line(error)}); start again, or rename this folder '
      f'to {folder.name}.broken to resume from the previous checkpoint.'
    ) from error


def _parse_metadata(folder):
  """Raises an exception if the metadata of an array are not JSON, or so deeply nested that TensorStore would crash."""
  # TensorStore 0.1.86 quotes wrong metadata in its errors by a recursive function, which overflows the stack.
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{folder}/'}}).result()
  for name in store.list().result():
    if name.endswith(b'/.zarray'):
      json.loads(store.read(name).result().value)


def shape_differences(saved: dict, expected: dict) -> list[str]:
  """Describes the layers whose parameters differ in shape: ['fc8 is 2 x 4096 x 5, expected 2 x 4096 x 500', ...].

  Args:
    saved: shapes of the saved parameters, {'conv1': {'kernel': (2, 11, 11, 3, 48), 'bias': (2, 48)}, ...}.
    expected: shapes of the parameters of the network.
  """

  def kernel_shape(layers, name):
    return ' x '.join(map(str, layers[name]['kernel'])) if name in layers else 'absent'

  return [
    f'{name} is {kernel_shape(saved, name)}, expected {kernel_shape(expected, name)}'
    for name in sorted(saved.keys() | expected.keys())
    if saved.get(name) != expected.get(name)
  ]


def _with_shardings(abstract_arrays, mesh):
  """Puts abstract arrays on a mesh; `jax.eval_shape` gives them an abstract mesh, and scalars no sharding at all."""

  def put(x):
    spec = x.sharding.spec if x.sharding else jax.P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(put, abstract_arrays)
