"""Training: the loop, and what it stands on."""

import contextlib
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from alexnet_jax.data import pipeline, pixel_statistics, sources
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.models import towers
from alexnet_jax.models.registry import Network, build, layer_shapes
from alexnet_jax.runs import checkpoints, config_checks, run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime import distributed, host_memory
from alexnet_jax.runtime.errors import RunError, Stopped, UsageError
from alexnet_jax.runtime.preemption import StopRequest
from alexnet_jax.training import init_from, optimizer, schedules, step
from alexnet_jax.training.progress import Progress


def train_and_evaluate(config: ConfigDict, folder: pathlib.Path) -> dict:
  """Trains a network, going on from the newest checkpoint in its folder, and evaluates it on the test split.

  Args:
    config: from a file in `configs/`.
    folder: of the run; `workdir.py` says what it holds.

  Returns:
    What `results.json` holds.

  Raises:
    UsageError: if the config cannot be run, or the folder holds a run of another.
    RunError: if the data cannot be read, the loss is not finite, or a checkpoint cannot be read or written; older ones
      stay as they are.
    Stopped: if told to by SIGTERM or Ctrl-C, after saving.
  """
  config_checks.check(config)
  if checkpoints.newest_step(folder) is None:  # else the run goes on, and its origin may be gone
    init_from.check(config)
  print(towers.versions())
  mesh = towers.make_mesh(
    config.mesh.data,
    config.mesh.tower,
    num_towers=config.model.num_towers,
    batches={'batch_size': config.batch_size, 'eval.batch_size': config.eval.batch_size},
  )
  print(towers.describe_mesh(mesh))
  pipeline.check_memory(config, towers.data_shard(mesh))
  with distributed.main_process_first():  # prepares the dataset where need be
    labelled, test_split = (config.data.train_split, config.data.validation_split), config.data.test_split
    train, validation, test = sources.open_splits(
      config.data,
      config.model.image_size + config.model.border,
      (*labelled, test_split),
      may_lack_labels={test_split}.difference(labelled) if evaluate.saves_predictions(config) else (),
    )
  evaluate.check_submission(test, config)
  print(f'{train.dataset}: {len(train):,} images to train on, {len(validation):,} to validate, {len(test):,} to test')
  steps_per_epoch = len(train) / config.batch_size
  last_step = config.num_steps or math.ceil(config.num_epochs * steps_per_epoch)
  if last_step > config_checks.MAX_STEPS:
    raise UsageError(
      f'num_epochs={config.num_epochs} takes {last_step:,} steps; {config_checks.MAX_STEPS:,} are the most.'
    )
  eval_every = config.eval_every or math.ceil(steps_per_epoch)
  checkpoint_every = config.checkpoint_every or math.ceil(steps_per_epoch)
  schedule = schedules.make_schedule(config.optimizer, last_step)
  colour_steps = schedules.step_at(config.augment.colour_until, last_step)
  hyper = step.hyperparameters(config.optimizer)

  with jax.set_mesh(mesh):
    network = build(config.model, train.num_classes)
    check_memory(network, config, mesh)
    with distributed.main_process_first() as is_first:
      if is_first:
        run_folder.check_can_hold(folder, config)
      stats = pixel_statistics.load_or_compute(train, config.data.num_threads)
    mean_image = jnp.asarray(stats.mean_image, jnp.float32)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    def trained(state):
      return TrainedModel(network, state.params, mean_image, train.class_names, int(state.step), config.model, mesh)

    with (
      run_folder.exclusive_lock(folder) if distributed.is_main_process() else contextlib.nullcontext(),
      contextlib.closing(Checkpoints(folder)) as run_checkpoints,
      contextlib.closing(Progress(folder, config, train.num_classes, len(train), last_step)) as progress,
      StopRequest() as stop,
    ):
      with distributed.main_process_first() as is_first:
        if is_first:
          run_folder.write_description(folder, config, stats, train.class_names)
        else:
          run_folder.check_is_shared(folder)
      if restored := run_checkpoints.restore(step.abstract_state(network, hyper), mesh):
        state, kept = restored
        first_step, evaluated = int(state.step), kept['evaluated']
        schedule.restore(kept['schedule'])
        progress.saved(first_step)
        print(f'going on from step {first_step:,} in {folder}')
      else:
        state, first_step, evaluated = step.init_state(init_key, network=network, hyper=hyper), 0, 0
        if config.init_from:
          state = state._replace(params=init_from.initial_params(state.params, config, mesh))
      print(parameter_table(state.params, train.num_classes), flush=True)

      rates = optimizer.make_learning_rates(config.optimizer, tuple(state.params), last_step)
      on_host = pipeline.training_batches(
        train,
        stats.covariance,
        config,
        first_step=first_step,
        colour_steps=colour_steps,
        share=towers.data_shard(mesh),
      )
      batches = towers.prefetch_to_devices(mesh, on_host)
      for number in itertools.count(first_step):  # steps taken
        results = None
        if number % eval_every == 0 and number > evaluated:
          with progress.paused(), contextlib.suppress(Stopped):  # then it is done when the run goes on
            predictions = stop.watch(evaluate.predictions(trained(state), validation, config, 'centre'))
            results = evaluate.count_errors(predictions, train.class_names).result()
          if results:
            evaluated = number
            schedule.observe(results['top1_error'])
            progress.evaluated(number, results)
        is_last, told = number >= last_step or schedule.finished, stop.agreed(number)
        if number > first_step and (number % checkpoint_every == 0 or is_last or told):
          with progress.paused():
            run = {'schedule': schedule.state(), 'evaluated': evaluated}
            run_checkpoints.save(number, finite(state, progress.kept), run, results)
            progress.saved(number)
        if is_last or told:
          break

        with progress.waiting_for_data():
          batch = next(batches)
        num_drops = schedule.num_drops(number)
        shifts_colour = config.augment.colour_std > 0 and number < colour_steps
        progress.conditions(
          number, f'{rates.describe(number, num_drops)}; colour shift {"on" if shifts_colour else "off"}'
        )
        state, metrics = step.train_step(
          state, batch, mean_image, rates.at(number, num_drops), step_key, network=network, hyper=hyper
        )
        progress.step_dispatched(number + 1, rates.of_kernels(num_drops), metrics)
    if not is_last:
      raise Stopped(f'stopped after step {number:,} of {last_step:,}, which is saved in {folder}')
    if schedule.finished:
      print(f'the validation error stopped improving at the lowest rate: done after {number:,} steps')
    return evaluate.evaluate_and_report(trained(state), test, config, folder, also_read=(train, validation))


def check_memory(network: Network, config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Finds a run that cannot fit on the devices.

  Counts what nothing can do without, and takes none: parameters, velocities and gradients, and what the layers say of
  a batch, which the gradients are computed from.

  Raises:
    UsageError: if that is more than the memory of a device.
  """
  params = jax.eval_shape(network.init, jax.random.key(0))
  num_params = sum(x.size for x in jax.tree.leaves(params))
  outputs = [math.prod(shape) for shape in layer_shapes(network, params, config.model.image_size, mesh).values()]
  there = towers.device_memory(mesh) or host_memory.total_bytes() / len(mesh.local_devices)
  sizes = (('batch_size', config.batch_size, sum(outputs)), ('eval.batch_size', config.eval.batch_size, max(outputs)))
  for field, batch_size, num_outputs in sizes:
    needed = 4 * (3 * num_params / mesh.shape['tower'] + batch_size * num_outputs / mesh.size)
    if needed > there:
      raise UsageError(
        f'{field}={batch_size} and {num_params:,} parameters take {needed / 1e9:,.0f} GB or more on each device, and '
        f'there are {there / 1e9:,.0f}; choose a smaller {field}, model.width or model.image_size, or more devices.'
      )


def finite(state: step.TrainState, kept: str) -> step.TrainState:
  """Passes on a state that is worth keeping.

  Args:
    state: where training stands.
    kept: says which checkpoint there is.

  Raises:
    RunError: if a parameter is not a finite number.
  """
  if not all(jax.tree.leaves(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), state.params))):
    raise RunError(
      f'parameters are no longer finite numbers after step {int(state.step):,}; {kept}. '
      'Start again with a lower optimizer.rate, in another --workdir.'
    )
  return state


def parameter_table(params: dict, num_classes: int) -> str:
  """Shows every layer's kernels, whole and on each device: on two tower devices a device holds half of them.

  With an odd number of classes one unit of fc8 has no class; its weights are there but not counted.
  """
  lines = [f'{"":8}{"parameters":>12}  {"kernels (tower x ...)":26}on each device']
  total = 0
  for name, layer in params.items():
    kernel = layer['kernel']
    count = sum(x.size for x in layer.values())
    if name == 'fc8':
      count = count // layer['bias'].size * num_classes
    total += count
    whole = ' x '.join(map(str, kernel.shape))
    local = ' x '.join(map(str, kernel.sharding.shard_shape(kernel.shape)))
    lines.append(f'{name:8}{count:12,}  {whole:26}{local}')
  return '\n'.join((*lines, f'{"":8}{total:12,}'))
