"""Checkpoints of a run: all that knows of Orbax."""

import pathlib

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from alexnet_jax.step import TrainState


class Checkpoints:
  """The newest checkpoints of a run, `DIR/checkpoints/STEP`: the state, and where the schedule stands.

  The step in the state is also the position in the data: a batch depends on the seed and the step alone.

  Saves go on in the background and are atomic: what is half written when a run dies never counts as a checkpoint.
  """

  def __init__(self, workdir: pathlib.Path, num_kept: int = 3):
    """Opens, or makes, the checkpoints of a run.

    Args:
      workdir: of the run.
      num_kept: how many of the newest are kept.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=num_kept, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(
      (workdir / 'checkpoints').absolute(), options=options, item_names=('state', 'run')
    )

  def newest_step(self) -> int | None:
    """Returns the step of the newest whole checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, run: dict) -> None:
    """Saves in the background; a step that is there already is not saved again.

    Args:
      step: steps taken.
      state: arrays on their devices; free to be donated when this returns.
      run: what else to continue from, as JSON.
    """
    if step != self.newest_step():
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)))

  def restore(self, abstract_state: TrainState, mesh: Mesh) -> tuple[TrainState, dict]:
    """Loads the newest checkpoint onto a mesh, which need not be the one that it was saved from.

    Args:
      abstract_state: shapes, dtypes and partition specs, as `jax.eval_shape` gives them.
      mesh: where to load it.

    Returns:
      The state, and what else was saved.
    """
    target = _on_mesh(abstract_state, mesh)
    restored = self._manager.restore(
      self.newest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore(target), run=ocp.args.JsonRestore())
    )
    return restored.state, restored.run

  def close(self) -> None:
    """Waits for the last save to end."""
    self._manager.close()


def newest_step(workdir: pathlib.Path) -> int | None:
  """Returns the step of the newest whole checkpoint of a run, or None; makes no folder."""
  return max(ocp.utils.checkpoint_steps(workdir / 'checkpoints'), default=None)


def load_params(workdir: pathlib.Path, step: int, abstract_params: dict, mesh: Mesh) -> dict:
  """Loads parameters alone, without their velocities.

  Args:
    workdir: of the run.
    step: of the checkpoint.
    abstract_params: shapes, dtypes and partition specs of those to load, which may be some of the layers.
    mesh: where to load them.
  """
  target = {'params': _on_mesh(abstract_params, mesh)}
  with ocp.PyTreeCheckpointer() as reader:
    args = ocp.args.PyTreeRestore(
      target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    return reader.restore(_state_folder(workdir, step), args=args)['params']


def param_shapes(workdir: pathlib.Path, step: int) -> dict[str, dict[str, tuple[int, ...]]]:
  """Returns the shapes of the parameters in a checkpoint, {'conv1': {'kernel': ..., 'bias': ...}, ...}."""
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(_state_folder(workdir, step)).item_metadata.tree['params']
  return {layer: {name: tuple(x.shape) for name, x in arrays.items()} for layer, arrays in tree.items()}


def differing(there: dict, here: dict) -> list[str]:
  """Says how shapes of parameters differ, layer by layer: 'fc8 is 2 x 4096 x 5 there and 2 x 4096 x 500 here'."""

  def say(layers, name):
    return ' x '.join(map(str, layers[name]['kernel'])) if name in layers else 'absent'

  return [
    f'{name} is {say(there, name)} there and {say(here, name)} here'
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]


def _state_folder(workdir, step):
  return (workdir / 'checkpoints' / str(step) / 'state').absolute()


def _on_mesh(abstract_arrays, mesh):
  """Says where arrays go: eval_shape leaves an abstract mesh, which Orbax does not take, and on a scalar nothing."""

  def place(x):
    spec = x.sharding.spec if x.sharding else jax.P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, abstract_arrays)
