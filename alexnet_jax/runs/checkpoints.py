"""Checkpoints of a run: all that knows of Orbax."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from alexnet_jax.runtime.errors import RunError, UsageError, first_line

LONGEST_REASON = 200  # characters of what a library says


class Checkpoints:
  """The newest checkpoints of a run and the best, `DIR/checkpoints/STEP`: the state, and where the schedule stands.

  The step in the state is also the position in the data: a batch depends on the seed and the step alone.

  Saves go on in the background and are atomic: what is half written when a run dies never counts as a checkpoint. With
  each goes a fingerprint of every array, by which a damaged one is known.
  """

  def __init__(self, workdir: pathlib.Path, num_kept: int = 3):
    """Opens, or makes, the checkpoints of a run.

    Args:
      workdir: of the run.
      num_kept: how many of the newest are kept, beside that of the lowest validation error.
    """
    self._folder = (workdir / 'checkpoints').absolute()

    def error(results):
      return results['top1_error']

    policies = [
      ocp.checkpoint_managers.LatestN(num_kept),
      ocp.checkpoint_managers.BestN(get_metric_fn=error, reverse=True, n=1, keep_checkpoints_without_metrics=False),
    ]
    options = ocp.CheckpointManagerOptions(
      best_fn=error,  # else the error rates are not written, and forgotten when the run goes on
      best_mode='min',
      preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
      enable_async_checkpointing=True,
      cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=('state', 'run'))

  def newest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, run: dict, results: dict | None = None) -> None:
    """Saves in the background; a step that is there already is not saved again.

    Args:
      step: steps taken.
      state: arrays on their devices; free to be donated when this returns.
      run: what else to continue from, as JSON.
      results: error rates on the validation split, if it was looked at after this step.

    Raises:
      RunError: if this one, or the one before, cannot be written.
    """
    if step == self.newest_step():
      return
    run = run | {'fingerprints': fingerprints(state)}
    metrics = results and {'top1_error': results['top1_error']}
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
        metrics=metrics,
      )

  def restore(self, abstract_state: Any, mesh: Mesh) -> tuple[Any, dict] | None:
    """Loads the newest checkpoint onto a mesh, which need not be the one that it was saved from.

    One that cannot be read, or whose fingerprints do not fit, is named and set aside as `STEP.broken`, and the one
    before it is taken.

    Args:
      abstract_state: shapes, dtypes and partition specs, as `jax.eval_shape` gives them.
      mesh: where to load it.

    Returns:
      The state, and what else was saved; None if there is no checkpoint.

    Raises:
      RunError: if there are checkpoints and none can be read; all are left as they are.
    """
    target = _on_mesh(abstract_state, mesh)

    def read(step):
      args = ocp.args.Composite(state=ocp.args.StandardRestore(target), run=ocp.args.JsonRestore())
      restored = self._manager.restore(step, args=args)
      _compare(fingerprints(restored.state), restored.run.pop('fingerprints'))
      return restored.state, restored.run

    step, found, broken = _newest_readable(self._folder, read)
    if step is None:
      return None
    if broken:
      if jax.process_index() == 0:
        for number in broken:
          (self._folder / str(number)).rename(self._folder / f'{number}.broken')
      multihost_utils.sync_global_devices('broken checkpoints are set aside')  # before any process looks again
      self._manager.reload()
    return found

  def close(self) -> None:
    """Waits for the last save to end.

    Raises:
      RunError: if it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
    self._manager.close()

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:  # TensorStore raises ValueError for a full disk
      older = newest_step(self._folder.parent)
      kept = f'the newest whole one is that of step {older:,}' if older is not None else 'there is none before it'
      raise RunError(
        f'a checkpoint cannot be written to {self._folder} ({first_line(error)[:LONGEST_REASON]}); {kept}. Make room '
        'and start again.'
      ) from error


def newest_step(workdir: pathlib.Path) -> int | None:
  """Returns the step of the newest whole checkpoint of a run, or None; makes no folder."""
  return max(ocp.utils.checkpoint_steps(workdir / 'checkpoints'), default=None)


def load_newest_params(workdir: pathlib.Path, select: Callable[[dict], dict], mesh: Mesh) -> tuple[int, dict]:
  """Loads parameters alone of the newest checkpoint that can be read, without their velocities.

  Args:
    workdir: of the run.
    select: takes the shapes of the parameters that are there, {'conv1': {'kernel': ..., 'bias': ...}, ...}, and returns
      shapes, dtypes and partition specs of those to load; what it raises is passed on.
    mesh: where to load them.

  Returns:
    The step, and the parameters.

  Raises:
    UsageError: if there is no checkpoint.
    RunError: if none can be read.
  """

  def read(step):
    folder = workdir.absolute() / 'checkpoints' / str(step)
    with ocp.PyTreeCheckpointer() as reader:
      tree = reader.metadata(folder / 'state').item_metadata.tree['params']
      shapes = {layer: {name: tuple(x.shape) for name, x in arrays.items()} for layer, arrays in tree.items()}
      target = {'params': _on_mesh(select(shapes), mesh)}
      args = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
      )
      restored = reader.restore(folder / 'state', args=args)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      _compare(fingerprints(restored), reader.restore(folder / 'run')['fingerprints'])
    return restored['params']

  step, params, _ = _newest_readable(workdir / 'checkpoints', read)
  if step is None:
    raise UsageError(f'{workdir} holds no checkpoint yet; train there first.')
  return step, params


def fingerprints(tree) -> dict[str, int]:
  """Returns a number for each array of a pytree, which any change of an element changes, and no change of the mesh.

  It is the sum of the elements' 32 bits, each times an odd number of its own, modulo 2 ** 32.
  """
  numbers = _fingerprints(tree)
  named = {jax.tree_util.keystr(path, simple=True, separator='/'): x for path, x in jax.tree.leaves_with_path(numbers)}
  return {name: int(x) for name, x in named.items()}


@jax.jit
def _fingerprints(tree):
  def one(x):
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)

  return jax.tree.map(one, tree)


def _compare(found, saved):
  wrong = [name for name, number in found.items() if saved.get(name) != number]
  if wrong:
    raise ValueError(f'{wrong[0]} is not as it was saved' + (f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''))


def _newest_readable(folder, read):
  """Reads the newest checkpoint that can be; returns its step, or None, what was read, and the broken steps."""
  broken = []
  for step in sorted(ocp.utils.checkpoint_steps(folder), reverse=True):
    try:
      return step, read(step), broken
    except (UsageError, MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # broken files lead the readers to raise whatever they come upon
      print(
        f'the checkpoint of step {step:,} in {folder} cannot be read: {first_line(error)[:LONGEST_REASON]}', flush=True
      )
      broken.append(step)
  if broken:
    raise RunError(
      f'none of the {len(broken)} checkpoint(s) in {folder} can be read, and nothing was deleted; put back a whole '
      'one, or train in another --workdir.'
    )
  return None, None, broken


def shape_differences(there: dict, here: dict) -> list[str]:
  """Says how shapes of parameters differ, layer by layer: 'fc8 is 2 x 4096 x 5 there and 2 x 4096 x 500 here'."""

  def say(layers, name):
    return ' x '.join(map(str, layers[name]['kernel'])) if name in layers else 'absent'

  return [
    f'{name} is {say(there, name)} there and {say(here, name)} here'
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]


def _on_mesh(abstract_arrays, mesh):
  """Says where arrays go: eval_shape leaves an abstract mesh, which Orbax does not take, and on a scalar nothing."""

  def place(x):
    spec = x.sharding.spec if x.sharding else jax.P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, abstract_arrays)
