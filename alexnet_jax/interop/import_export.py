"""Exports runs to files and folders of weights, checks such folders, and imports weights as runs."""

import argparse
import contextlib
import os
import pathlib
import shlex

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import cropping
from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.evaluation import trained_model
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.interop import caffe_files, huggingface_files, layout, weight_files
from alexnet_jax.models import device_mesh, towers
from alexnet_jax.models.registry import build
from alexnet_jax.runs import run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError


def export_command(options: argparse.Namespace) -> int:
  """Runs the subcommand `weights export` and returns the exit status."""
  export_run(options.workdir, options.file, options.format, options.license)
  return 0


def check_command(options: argparse.Namespace) -> int:
  """Runs the subcommand `weights check` and returns the exit status."""
  print(check_folder(options.folder))
  return 0


def import_command(options: argparse.Namespace) -> int:
  """Runs the subcommand `weights import` and returns the exit status."""
  import_weights(options.file, options.workdir, mean=options.mean, classes=options.classes, net=options.net)
  return 0


def export_run(
  workdir: pathlib.Path, output: pathlib.Path, file_format: str | None = None, licence: str = 'unknown'
) -> None:
  """Exports the newest checkpoint of a run to a .safetensors or .onnx file, or to a folder.

  Args:
    workdir: folder of the run.
    output: the file to write, which is replaced if it exists, or the folder to create.
    file_format: 'huggingface' for a folder, see `huggingface_files`; None for a file, in the format of its suffix.
    licence: of the weights, for the model card of the folder.

  Raises:
    UsageError: if the file type is unknown, a file has a licence, the folder to create exists, or `workdir` contains no
      run or checkpoint.
    RunError: if the output cannot be written.
  """
  if file_format is None:
    weight_files.check_file_type(output, weight_files.WRITERS)
    if licence != 'unknown':
      raise UsageError(f'--license={licence} applies to --format=huggingface only; omit it for {output}.')
  elif output.exists():
    raise UsageError(f'{output} already exists; choose another folder.')
  model = trained_model.load(workdir, batch_size=1, num_data=1, num_tower=1)
  tensors = layout.to_tensors(model.params, model.config, len(model.class_names))
  mean_image = np.asarray(model.mean_image)
  config = run_folder.load_config(workdir)
  weights = layout.Weights(config, tensors, mean_image, model.class_names, model.num_steps)
  try:
    if file_format is None:
      with atomic_files.atomic_write(output) as partial:
        weight_files.write(partial, weights)
    else:
      huggingface_files.write(output, weights, model, run_folder.load_results(workdir, model.num_steps), licence)
  except OSError as error:
    raise RunError(f'{output} cannot be written ({error.strerror}); choose a folder with free space.') from error
  print(f'{output}: {_summary(weights)}')


def check_folder(folder: pathlib.Path) -> str:
  """Checks an exported folder, and returns a message with the largest difference of the logits of its probe.

  Raises:
    UsageError: if the folder is not an exported one.
    RunError: if a file is missing, damaged or was changed, or a logit differs by more than the tolerance.
  """
  expected, tolerance = huggingface_files.read_expected(folder)
  model = to_model(weight_files.read(folder))
  return huggingface_files.check_logits(folder, model, expected, tolerance)


def import_weights(
  path: pathlib.Path,
  workdir: pathlib.Path,
  *,
  mean: pathlib.Path | None = None,
  classes: pathlib.Path | None = None,
  net: str | None = None,
) -> None:
  """Creates the folder of a run from a file of weights: config, class names, mean image and a checkpoint.

  The run can be evaluated, and other runs can be initialised from it. The checkpoint contains parameters without
  velocities. If the file contains no config, the training recipe in the config is the paper's. The RGB covariance of
  the training set, which is unknown, is zero.

  Args:
    path: a file that `weight_files.read` reads.
    workdir: folder to create.
    mean: Caffe's mean image, for a .caffemodel file.
    classes: file with the names of the classes, one per line; None for those in the file of weights.
    net: network of a .caffemodel file that does not identify it, one of the values of `caffe_files.NETS`.

  Raises:
    UsageError: if the file, the mean image or the class names cannot be read or do not fit each other, or the folder
      contains a run.
    RunError: if the folder cannot be written.
  """
  run_folder.check_has_no_run(workdir)  # before reading the file, which takes longer
  weights = read_weights(path, mean=mean, classes=classes, net=net)
  if weights.mean_image is None:
    raise UsageError(f'{path} does not contain the mean image of its training set; name that file with --mean.')
  try:
    _write_run(workdir, weights)
  except OSError as error:
    raise RunError(f'{workdir} cannot be written ({error.strerror}); choose a folder with free space.') from error
  print(f'{workdir}: {_summary(weights)}')
  command = 'python', 'main.py', *_config_flags(weights.config.data), '--mode=eval', f'--workdir={workdir}'
  print(f'Evaluate it with {shlex.join(command)}')


def read_weights(
  path: pathlib.Path, *, mean: str | os.PathLike | None, classes: str | os.PathLike | None, net: str | None
) -> layout.Weights:
  """Reads a file of weights, and the files with its mean image and class names; see `import_weights`.

  Returns:
    The weights, without a mean image if neither `path` nor `mean` has it.

  Raises:
    UsageError: if a file cannot be read, or the files do not fit each other.
  """
  weights = weight_files.read(path, net=net)
  if mean is not None:
    weights = weights._replace(mean_image=_read_mean_image(pathlib.Path(mean), path, weights))
  if classes is not None:
    weights = weights._replace(class_names=_read_classes(pathlib.Path(classes), path, len(weights.class_names)))
  return weights


def to_model(weights: layout.Weights) -> TrainedModel:
  """Returns the network of a file of weights, which must contain a mean image, on one device."""
  config, class_names = weights.config.model, weights.class_names
  mesh, params = _put_params(weights)
  mean_image = jnp.asarray(weights.mean_image, jnp.float32)
  return TrainedModel(build(config, len(class_names)), params, mean_image, class_names, weights.num_steps, config, mesh)


def _put_params(weights):
  """Returns a mesh of one device and the parameters on it."""
  mesh = device_mesh.make_mesh(1, 1, num_towers=weights.config.model.num_towers, batches={})
  return mesh, jax.device_put(weights.params(), jax.NamedSharding(mesh, towers.PARAMS))


def _config_flags(data):
  """Returns the flags with which main.py reads the test split of the dataset, and its classes, of a network."""
  if data.name == 'ilsvrc/2012':
    flags = ['--config=configs/alexnet.py:imagenet2012']
  else:
    fields = f'--config.data.name={data.name}', f'--config.data.test_split={data.test_split}'
    flags = ['--config=configs/alexnet.py', *fields]
  return [*flags, f'--config.data.classes={tuple(data.classes)}'] if data.classes else flags


def _read_mean_image(mean, path, weights):
  if path.suffix != '.caffemodel':
    raise UsageError(f'{path} contains its own mean image; omit --mean={mean}.')
  image = caffe_files.read_mean_image(mean)
  size = cropping.stored_size(weights.config.model)
  if image.shape != (size, size, 3):
    height, width, _ = image.shape
    raise UsageError(
      f'The mean image {mean} is 3 x {height} x {width} and should be 3 x {size} x {size}; choose another file.'
    )
  return image


def _read_classes(classes, path, num_classes):
  try:
    names = classes.read_text('utf-8-sig').removesuffix('\n').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise UsageError(f'{classes} cannot be read ({error}); choose a text file with one class per line.') from error
  if len(names) != num_classes:
    raise UsageError(
      f'{classes} names {len(names):,} classes, but the network in {path} has {num_classes:,}; list one class per line.'
    )
  return names


def _write_run(folder, weights):
  config = weights.config
  statistics = PixelStatistics(np.asarray(weights.mean_image, np.float64), np.zeros((3, 3)), 0)
  run_folder.prepare(folder, config)
  run_folder.write_metadata(folder, config, statistics, weights.class_names)
  mesh, params = _put_params(weights)
  with jax.set_mesh(mesh), contextlib.closing(Checkpoints(folder)) as checkpoints:
    checkpoints.save(weights.num_steps, {'params': params}, {})


def _summary(weights):
  num_params = sum(x.size for x in weights.tensors.values())
  return f'{num_params:,} parameters, {len(weights.class_names):,} classes, step {weights.num_steps:,}'
