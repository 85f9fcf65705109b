"""Runs and files of weights."""

import argparse
import contextlib
import pathlib
import shlex

import jax
import numpy as np

from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import caffe_files, layout, weight_files
from alexnet_jax.models import towers
from alexnet_jax.runs import run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runs.run_folder import check_holds_no_run, load_config
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError


def export_command(options: argparse.Namespace) -> int:
  """Runs `weights export` and returns 0."""
  export_run(options.workdir, options.file)
  return 0


def import_command(options: argparse.Namespace) -> int:
  """Runs `weights import` and returns 0."""
  import_weights(options.file, options.workdir, mean=options.mean, classes=options.classes, net=options.net)
  return 0


def export_run(workdir: pathlib.Path, output: pathlib.Path) -> None:
  """Writes the newest checkpoint of a run to a .safetensors or .onnx file.

  Raises:
    UsageError: if there is no run or checkpoint, or the suffix is unknown.
    RunError: if the file cannot be written.
  """
  if output.suffix not in ('.safetensors', '.onnx'):
    raise UsageError(f'{output} has no suffix that says what to write; end it in .safetensors or .onnx.')

  network = trained_model.load(workdir, batch_size=1, num_data=1, num_tower=1)
  tensors = layout.to_tensors(network.params, network.config, len(network.class_names))
  mean_image = np.asarray(network.mean_image)
  weights = layout.Weights(load_config(workdir), tensors, mean_image, network.class_names, network.num_steps)
  try:
    with atomic_files.atomic_write(output) as partial:
      weight_files.write(partial, weights)
  except OSError as error:
    raise RunError(f'{output} cannot be written ({error.strerror}); name a file in a folder with room.') from error
  print(f'{output}: {_summary(weights)}')


def import_weights(
  file: pathlib.Path,
  workdir: pathlib.Path,
  *,
  mean: pathlib.Path | None = None,
  classes: pathlib.Path | None = None,
  net: str | None = None,
) -> None:
  """Makes the folder of a run from a file of weights: config, classes, mean image, and a checkpoint.

  The checkpoint is what training writes, with velocities of zero. What the file does not say (how it was trained) is
  the paper's recipe; the RGB covariance of its training images is not known and set to zero.

  Args:
    file: what `read` reads.
    workdir: the folder.
    mean: Caffe's mean image, where the file is Caffe's.
    classes: names of the classes, one a line.
    net: which of `weight_files.NETS` a .caffemodel is.

  Raises:
    UsageError: if the file, the mean image or the classes cannot be read or do not fit, or the folder holds a run.
    RunError: if the folder cannot be written.
  """
  check_holds_no_run(workdir)  # before much is read
  weights = weight_files.read(file, net=net)
  if mean is not None:
    weights = weights._replace(mean_image=_read_mean(mean, file, weights))
  if weights.mean_image is None:
    raise UsageError(f'{file} does not hold the mean image of its training set; name it with --mean.')
  if classes is not None:
    weights = weights._replace(class_names=_read_classes(classes, file, len(weights.class_names)))
  try:
    _write_workdir(workdir, weights)
  except OSError as error:
    raise RunError(f'{workdir} cannot be written ({error.strerror}); choose a folder with room.') from error
  print(f'{workdir}: {_summary(weights)}')
  print(f'evaluate it with python main.py {_of_its_data(weights.config.data)} --mode=eval --workdir={workdir}')


def _of_its_data(data):
  """Says with which flags main.py reads the data that a network was made for."""
  if data.name == 'ilsvrc/2012':
    return '--config=configs/alexnet.py:imagenet2012'
  own = f'--config.data.name={data.name}', f'--config.data.test_split={data.test_split}'
  return shlex.join(('--config=configs/alexnet.py', *own))


def _read_mean(mean, file, weights):

  if file.suffix != '.caffemodel':
    raise UsageError(f'{file} has a mean image of its own; leave --mean={mean} out.')
  image = caffe_files.read_mean(mean)
  size = weights.config.model.image_size + weights.config.model.border
  if image.shape != (size, size, 3):
    height, width, _ = image.shape
    raise UsageError(f'the mean image {mean} is 3 x {height} x {width} and should be 3 x {size} x {size}.')
  return image


def _read_classes(classes, file, num_classes):
  try:
    names = classes.read_text().removesuffix('\n').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise UsageError(f'{classes} cannot be read ({error}); name a text file with one class a line.') from error
  if len(names) != num_classes:
    raise UsageError(f'{classes} names {len(names):,} classes and {file} tells {num_classes:,} apart.')
  return names


def _write_workdir(folder, weights):

  config = weights.config
  statistics = PixelStatistics(np.asarray(weights.mean_image, np.float64), np.zeros((3, 3)), 0)
  run_folder.check_can_hold(folder, config)
  run_folder.write_description(folder, config, statistics, weights.class_names)
  mesh = towers.make_mesh(1, 1, num_towers=config.model.num_towers, batches={})
  with jax.set_mesh(mesh):
    params = jax.device_put(weights.params(), jax.NamedSharding(mesh, towers.PARAMS))
    with contextlib.closing(Checkpoints(folder)) as saved:
      saved.save(weights.num_steps, {'params': params}, {})


def _summary(weights):
  count = sum(x.size for x in weights.tensors.values())
  return f'{count:,} parameters, {len(weights.class_names):,} classes, step {weights.num_steps:,}'
