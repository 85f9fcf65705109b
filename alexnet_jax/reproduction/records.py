"""Records of finished trainings: small JSON files with the command, the machine, the error rates and the curves."""

import datetime
import json
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alexnet_jax.models import device_mesh
from alexnet_jax.runs import environment
from alexnet_jax.runtime import atomic_files, host_memory, processor
from alexnet_jax.runtime.errors import RunError, UsageError

RECORDED_METRICS = ('top1_error', 'top5_error', 'log_prob')
RECORDED_CURVES = ('train/error', 'train/loss', 'validation/top1_error')
NUM_SIGNIFICANT_DIGITS = 4  # of the values of a curve

Curve = tuple[np.ndarray, np.ndarray]  # epochs [point], values [point]


class Record(NamedTuple):
  """A finished training, or the evaluation of an average of trained networks; the fields are the keys of the JSON file.

  Attributes:
    command: command that repeats it.
    commit: commit of this project, see `environment.commit`; 'unknown' without a checkout. Old records end in '+'
      instead of '-dirty'.
    date: date on which it ended, ISO 8601.
    hardware: processor, cores and memory, or accelerators.
    versions: versions of JAX and Flax.
    seed: seed of the run; for an average, its number.
    dataset: name and version, such as 'cifar10/3.0.2'.
    num_epochs: number of epochs trained.
    steps_per_epoch: number of training images divided by the batch size.
    minutes: time spent in training steps.
    results: {'centre': {'top1_error': percent, 'top5_error': percent, 'log_prob': nats}, ...} on the test split.
    curves: {'train/error': ([step, ...], [percent, ...]), 'train/loss': ..., 'validation/top1_error': ...}.
    measured: results of further measurements, see `analysis/measures.py`, such as {'colour': [percent, percent]}.
  """

  command: str
  commit: str
  date: str
  hardware: str
  versions: str
  seed: int
  dataset: str
  num_epochs: float
  steps_per_epoch: float
  minutes: float
  results: Mapping[str, Mapping[str, float]]
  curves: Mapping[str, tuple[list[int], list[float]]]
  measured: Mapping = {}

  def curve(self, name: str) -> Curve:
    """Returns a curve as (epochs [point], values [point]); both are empty if there is no curve of that name."""
    steps, values = self.curves.get(name, ((), ()))
    return np.asarray(steps, float) / self.steps_per_epoch, np.asarray(values, float)

  def training_curve(self) -> Curve:
    """Returns the training error in percent, of each batch before its own update."""
    return self.curve('train/error')

  def test_curve(self) -> Curve:
    """Returns the test error in percent, on centre crops, of a run whose validation split is the test split."""
    epochs, errors = self.curve('validation/top1_error')
    return np.append(epochs, self.num_epochs), np.append(errors, self.results['centre']['top1_error'])


def epochs_to_error(error: float, curve: Curve) -> float | None:
  """Returns the epoch at which a curve first falls below an error in percent, interpolated linearly; None if never."""
  epochs, errors = curve
  below = np.flatnonzero(errors < error)
  if not below.size:
    return None
  after = below[0]
  if not after:
    return float(epochs[0])
  before = after - 1
  return float(np.interp(error, errors[[after, before]], epochs[[after, before]]))


def make_record(
  *,
  command: str,
  seed: int,
  batch_size: int,
  num_images: int,
  results: Mapping,
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Record:
  """Makes the record of a training that has just ended in this process.

  Args:
    command: command that repeats it.
    seed: seed of the run; for an average, its number.
    batch_size: number of images in a training step.
    num_images: number of images in the training split.
    results: contents of `results.json`.
    curves: curves of TensorBoard, {'train/loss': (steps [point], values [point]), ...}.
  """
  _, speeds = curves.get('speed/images_per_second', ((0,), (0.0,)))
  num_trained_images, images_per_second = results['step'] * batch_size, float(np.median(speeds))
  return Record(
    command=command,
    commit=environment.commit(num_digits=10) or 'unknown',
    date=datetime.date.today().isoformat(),
    hardware=device_mesh.accelerators() or _processor(),
    versions=device_mesh.versions(),
    seed=seed,
    dataset=results['dataset'],
    num_epochs=round(num_trained_images / num_images, 3),
    steps_per_epoch=num_images / batch_size,
    minutes=round(num_trained_images / images_per_second / 60, 1) if images_per_second > 0 else 0.0,
    results={
      crop_set: {name: round(metrics[name], 4) for name in RECORDED_METRICS}
      for crop_set, metrics in results.items()
      if isinstance(metrics, Mapping) and RECORDED_METRICS[0] in metrics
    },
    curves={
      name: (steps.tolist(), [float(f'{value:.{NUM_SIGNIFICANT_DIGITS}g}') for value in values])
      for name, (steps, values) in curves.items()
      if name in RECORDED_CURVES
    },
  )


def _processor():
  num_available = processor.num_cores()
  cores = f'{num_available} cores' if num_available == os.cpu_count() else f'{num_available} of {os.cpu_count()} cores'
  return f'{processor.name()}, {cores}, {host_memory.total_bytes() / 2**30:.0f} GiB'


def save(path: pathlib.Path, record: Record) -> None:
  """Writes a record as JSON with one curve per line, or raises `RunError`; creates its folder if necessary."""
  lines = [f'  {json.dumps(name)}: {json.dumps(value)}' for name, value in record._asdict().items() if name != 'curves']
  curves = [f'    {json.dumps(name)}: {json.dumps(points)}' for name, points in record.curves.items()]
  lines.append('  "curves": {\n' + ',\n'.join(curves) + '\n  }')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')
  except OSError as error:
    raise RunError(f'{path} cannot be written ({error.strerror}).') from error


def load(path: pathlib.Path) -> Record | None:
  """Reads a record; returns None if the file does not exist, and raises `UsageError` if it is damaged."""
  try:
    return Record(**json.loads(path.read_text()))
  except FileNotFoundError:
    return None
  except (ValueError, TypeError, OSError) as error:
    raise UsageError(f'{path} is damaged; restore it, or delete it to repeat the training.') from error
