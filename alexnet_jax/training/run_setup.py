"""Setup of a training run: devices, data, network and folder, and the state that training starts from."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.data import cropping, pipeline, pixel_statistics, sources
from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.models import device_mesh
from alexnet_jax.models.registry import Network, build, layer_shapes
from alexnet_jax.runs import checkpoints, config_checks, run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime import distributed, host_memory
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import init_from, old_checkpoints, schedules, step
from alexnet_jax.training.optimizer import Optimizer, make_optimizer
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class RunSetup:
  """What a training run needs and does not change.

  Attributes:
    config: the whole config.
    folder: folder of the run.
    mesh: the devices.
    train: training split.
    validation: validation split, which the plateau schedule reads.
    test: test split, which is evaluated at the end.
    network: the network.
    statistics: pixel statistics of the training split.
    mean_image: [stored height, stored width, rgb] float32, 0-255, on the devices.
    init_key: key of the initial parameters.
    step_key: key of the training steps.
    last_step: length of the run.
  """

  config: ConfigDict
  folder: pathlib.Path
  mesh: Mesh
  train: Source
  validation: Source
  test: Source
  network: Network
  statistics: PixelStatistics
  mean_image: jax.Array
  init_key: jax.Array
  step_key: jax.Array
  last_step: int

  @functools.cached_property
  def eval_every(self) -> int:
    """Number of steps between evaluations of the validation split; once an epoch by default."""
    return self.config.eval_every or math.ceil(len(self.train) / self.config.batch_size)

  @functools.cached_property
  def checkpoint_every(self) -> int:
    """Number of steps between checkpoints; once an epoch by default."""
    return self.config.checkpoint_every or math.ceil(len(self.train) / self.config.batch_size)

  @functools.cached_property
  def num_colour_steps(self) -> int:
    """Number of steps, from the first, whose images get a colour shift."""
    return schedules.step_at(self.config.augment.colour_until, self.last_step)

  @functools.cached_property
  def optimizer(self) -> Optimizer:
    """The update rule with its learning rates."""
    return make_optimizer(self.config.optimizer, self.last_step)

  def batches(self, first_step: int) -> Iterator[dict[str, jax.Array]]:
    """Returns an infinite iterator over the training batches of the steps from `first_step` on, on the devices."""
    dataset = pipeline.training_dataset(
      self.train,
      self.statistics.covariance,
      self.config,
      num_colour_steps=self.num_colour_steps,
      shard=device_mesh.data_shard(self.mesh),
    )
    return device_mesh.prefetch_to_devices(self.mesh, pipeline.prefetch(dataset[first_step:], self.config))

  def trained_model(self, state: TrainState) -> TrainedModel:
    """Returns the network with the parameters of a training state."""
    return TrainedModel(
      self.network,
      state.params,
      self.mean_image,
      self.train.class_names,
      int(state.step),
      self.config.model,
      self.mesh,
    )


def prepare(config: ConfigDict, folder: pathlib.Path) -> RunSetup:
  """Validates the config of a run and sets up its devices, data and network, in this order; creates the folder last.

  Raises:
    UsageError: if the config is invalid for the devices or the dataset, or the folder contains another run.
    RunError: if the data cannot be read.
  """
  config_checks.check(config)
  if checkpoints.newest_step(folder) is None:  # a resumed run does not need the network it was initialised from
    config_checks.check_initialisation(config)
  mesh = make_mesh(config)
  train, validation, test = open_splits(config)
  last_step = compute_last_step(config, len(train))
  with jax.set_mesh(mesh):
    network = build(config.model, train.num_classes)
    check_memory(network, config, mesh)
    with distributed.main_process_first() as is_first:
      if is_first:
        run_folder.prepare(folder, config)
      statistics = pixel_statistics.load_or_compute(train, config.data.num_threads)
    mean_image = jnp.asarray(statistics.mean_image, jnp.float32)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
  return RunSetup(
    config=config,
    folder=folder,
    mesh=mesh,
    train=train,
    validation=validation,
    test=test,
    network=network,
    statistics=statistics,
    mean_image=mean_image,
    init_key=init_key,
    step_key=step_key,
    last_step=last_step,
  )


def make_mesh(config: ConfigDict) -> Mesh:
  """Creates and prints the mesh of a config, and checks that batches in preparation fit into the host's memory.

  Raises:
    UsageError: if the devices do not fit the config, or the batches do not fit into memory.
  """
  print(device_mesh.versions())
  mesh = device_mesh.make_mesh(
    config.mesh.data,
    config.mesh.tower,
    num_towers=config.model.num_towers,
    batches={'batch_size': config.batch_size, 'eval.batch_size': config.eval.batch_size},
  )
  print(device_mesh.describe_mesh(mesh))
  pipeline.check_memory(config, device_mesh.data_shard(mesh))
  return mesh


def open_splits(config: ConfigDict) -> tuple[Source, ...]:
  """Opens the training, validation and test splits, and prepares the dataset if necessary.

  Raises:
    UsageError: if the dataset does not fit the config.
    RunError: if it cannot be read.
  """
  data = config.data
  labelled = (data.train_split, data.validation_split)
  with distributed.main_process_first():
    splits = sources.open_splits(
      data,
      cropping.stored_size(config.model),
      (*labelled, data.test_split),
      allow_unlabelled={data.test_split}.difference(labelled) if evaluate.saves_predictions(config) else (),
    )
  train, validation, test = splits
  evaluate.check_submission(test, config)
  print(f'{train.dataset}: {len(train):,} training, {len(validation):,} validation and {len(test):,} test images')
  return splits


def compute_last_step(config: ConfigDict, num_images: int) -> int:
  """Returns the length of a run in steps, given the number of training images.

  Raises:
    UsageError: if it exceeds what a step counter of 32 bits can hold.
  """
  last_step = config.num_steps or math.ceil(config.num_epochs * num_images / config.batch_size)
  if last_step > config_checks.MAX_STEPS:
    raise UsageError(
      f'num_epochs={config.num_epochs} takes {last_step:,} steps; the maximum is {config_checks.MAX_STEPS:,}.'
    )
  return last_step


def write_metadata(setup: RunSetup) -> None:
  """Writes the config, the statistics and the class names to the folder of a run.

  Raises:
    UsageError: if the run in the folder was trained on other images or classes, or the folder is not shared by all
      processes.
  """
  with distributed.main_process_first() as is_first:
    if is_first:
      run_folder.write_metadata(setup.folder, setup.config, setup.statistics, setup.train.class_names)
    else:
      run_folder.check_is_shared(setup.folder)


def restore_or_initialise(
  setup: RunSetup, run_checkpoints: Checkpoints, progress: Progress
) -> tuple[TrainState, int, int]:
  """Restores the newest checkpoint of a run, or initialises a new run, and prints its parameters.

  Returns:
    The training state, the number of steps taken, and the step of the last evaluation of the validation split.

  Raises:
    UsageError: if layers of another network cannot be loaded.
    RunError: if there are checkpoints and none can be read.
  """
  abstract_state = step.abstract_state(setup.network, setup.optimizer)
  if restored := run_checkpoints.restore(lambda saved: old_checkpoints.layout(abstract_state, saved), setup.mesh):
    state, saved = restored
    first_step, evaluated_step = int(state.step), saved['evaluated']
    state = old_checkpoints.convert(state, saved, setup.optimizer)
    progress.checkpoint_saved(first_step)
    print(f'Resuming from step {first_step:,} ({setup.folder})')
  else:
    state = step.init_state(setup.init_key, network=setup.network, optimizer=setup.optimizer)
    first_step = evaluated_step = 0
    if setup.config.init_from:
      state = state._replace(params=init_from.initial_params(state.params, setup.config, setup.mesh))
  print(parameter_overview.get_parameter_overview(state.params, include_stats='sharding'), flush=True)
  return state, first_step, evaluated_step


def check_memory(network: Network, config: ConfigDict, mesh: Mesh) -> None:
  """Checks that a run can fit into the memory of the devices, without allocating any.

  Counts the minimum: parameters, velocities and gradients, and the layer outputs of a batch, from which the gradients
  are computed.

  Raises:
    UsageError: if the minimum exceeds the memory of a device.
  """
  params = jax.eval_shape(network.init, jax.random.key(0))
  num_params = sum(x.size for x in jax.tree.leaves(params))
  outputs = [math.prod(shape) for shape in layer_shapes(network, params, config.model.image_size, mesh).values()]
  available = device_mesh.device_memory(mesh) or host_memory.total_bytes() / len(mesh.local_devices)
  sizes = (('batch_size', config.batch_size, sum(outputs)), ('eval.batch_size', config.eval.batch_size, max(outputs)))
  for field, batch_size, num_outputs in sizes:
    required = 4 * (3 * num_params / mesh.shape['tower'] + batch_size * num_outputs / mesh.size)
    if required > available:
      raise UsageError(
        f'{field}={batch_size} and {num_params:,} parameters require at least {required / 1e9:,.0f} GB on each device, '
        f'but a device has {available / 1e9:,.0f} GB; reduce {field}, model.width or model.image_size, or use more '
        'devices.'
      )
