"""The training loop."""

import contextlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.runs import environment, run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime import distributed, host_memory
from alexnet_jax.runtime.errors import RunError, Stopped
from alexnet_jax.runtime.preemption import StopRequest
from alexnet_jax.training import run_setup, schedules, step
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.run_setup import RunSetup


def train_and_evaluate(config: ConfigDict, folder: pathlib.Path) -> dict:
  """Trains a network, resuming from the newest checkpoint in its folder, and evaluates it on the test split.

  Args:
    config: from a file in `configs/`.
    folder: folder of the run, see `run_folder`.

  Returns:
    The contents of `results.json`.

  Raises:
    UsageError: if the config is invalid, or the folder contains another run.
    RunError: if the data cannot be read, the loss is not finite, or a checkpoint cannot be read or written; existing
      checkpoints are retained.
    Stopped: if stopped by SIGTERM or Ctrl-C, after saving.
  """
  setup = run_setup.prepare(config, folder)
  with jax.set_mesh(setup.mesh):
    model = train(setup)
    return evaluate.evaluate_and_report(model, setup.test, config, folder, also_read=(setup.train, setup.validation))


def train(setup: RunSetup) -> TrainedModel:
  """Takes the remaining steps of a run, evaluating and saving at their intervals; raises as `train_and_evaluate`."""
  config, folder, last_step = setup.config, setup.folder, setup.last_step
  with (
    run_folder.exclusive_lock(folder) if distributed.is_main_process() else contextlib.nullcontext(),
    contextlib.closing(Checkpoints(folder)) as run_checkpoints,
    contextlib.closing(Progress(folder, config, setup.network.num_classes, len(setup.train), last_step)) as progress,
    StopRequest() as stop,
    host_memory.frozen_objects(),
  ):
    run_setup.write_metadata(setup)
    state, first_step, evaluated_step = run_setup.restore_or_initialise(setup, run_checkpoints, progress)
    environment.record_training(folder, setup.mesh, setup.train, first_step)
    has_plateaued = schedules.has_ended(state.opt_state, config.optimizer.plateau_drops)
    batches = setup.batches(first_step)

    for num_steps in itertools.count(first_step):  # steps taken so far
      results = None
      if num_steps % setup.eval_every == 0 and num_steps > evaluated_step:
        with progress.paused():
          results = validate(setup, state, stop)
        if results:
          evaluated_step = num_steps
          state = observe(setup, state, results['top1_error'])
          has_plateaued = schedules.has_ended(state.opt_state, config.optimizer.plateau_drops)
          progress.evaluated(num_steps, results)
      is_last, is_stopped = num_steps >= last_step or has_plateaued, stop.should_stop(num_steps)
      if num_steps > first_step and (num_steps % setup.checkpoint_every == 0 or is_last or is_stopped):
        with progress.paused():
          check_finite(state, progress.checkpoint_status)
          run_checkpoints.save(num_steps, state, {'evaluated': evaluated_step}, results)
          progress.checkpoint_saved(num_steps)
      if is_last or is_stopped:
        break

      with progress.waiting_for_data():
        batch = next(batches)
      state, metrics = step.train_step(
        state, batch, setup.mean_image, setup.step_key, network=setup.network, optimizer=setup.optimizer
      )
      shifts_colour = config.augment.colour_std > 0 and num_steps < setup.num_colour_steps
      progress.step_dispatched(num_steps + 1, metrics, shifts_colour)
      run_checkpoints.check()
  if is_stopped or not is_last:
    status = f'its checkpoint is saved in {folder}' if num_steps else 'there is no checkpoint yet'
    raise Stopped(f'Stopped after step {num_steps:,} of {last_step:,}; {status}')
  if has_plateaued:
    print(f'Validation error has plateaued at the lowest learning rate; training finished after {num_steps:,} steps.')
  return setup.trained_model(state)


def validate(setup: RunSetup, state: step.TrainState, stop: StopRequest) -> dict | None:
  """Evaluates the validation split with centre crops.

  Returns:
    Error rates, see `metrics.ErrorCounter.result`. None if a signal interrupted the evaluation, which a resumed run
    repeats.
  """
  predictions = evaluate.predict_split(setup.trained_model(state), setup.validation, setup.config, 'centre')
  with contextlib.suppress(Stopped):
    return evaluate.count_errors(stop.until_stopped(predictions), setup.train.class_names).result()
  return None


def observe(setup: RunSetup, state: step.TrainState, error: float) -> step.TrainState:
  """Updates the learning rate schedule of a training state with a validation error (percent) of process 0."""
  error = float(multihost_utils.broadcast_one_to_all(np.float32(error)))  # the processes must not take different paths
  opt_state = schedules.observe(state.opt_state, error, setup.config.optimizer.plateau_patience)
  return state._replace(opt_state=opt_state)


def check_finite(state: step.TrainState, checkpoint_status: str) -> None:
  """Checks that all parameters are finite, so that no checkpoint of a diverged run is saved.

  Args:
    state: the training state.
    checkpoint_status: describes the newest checkpoint, for the message.

  Raises:
    RunError: if a parameter is not finite.
  """
  if not all(jax.tree.leaves(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), state.params))):
    raise RunError(
      f'parameters are not finite after step {int(state.step):,}; {checkpoint_status}. '
      'Train with a lower optimizer.rate in another --workdir.'
    )
