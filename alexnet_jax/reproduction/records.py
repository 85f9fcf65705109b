"""What is kept of a finished training: a small JSON with its command, machine, error rates and curves."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alexnet_jax.runtime import atomic_files, host_memory
from alexnet_jax.runtime.errors import RunError, UsageError

KEPT_RATES = ('top1_error', 'top5_error', 'log_prob')  # of each way to look at test images
SIGNIFICANT = 4  # digits of a point of a curve


class Record(NamedTuple):
  """A finished training.

  Attributes:
    command: that trains the same.
    commit: of this project; ends in '+' where files differed from it.
    date: on which it ended, ISO 8601.
    hardware: processor, cores and memory, or accelerators.
    versions: of jax and flax.
    seed: of the run; of an average, how many networks it is of.
    dataset: name and version, such as 'cifar10/3.0.2'.
    num_epochs: trained for.
    steps_per_epoch: training images over the batch size.
    minutes: spent in training steps.
    results: {'centre': {'top1_error': percent, 'top5_error': percent, 'log_prob': nats}, ...} on the test split.
    curves: {'train/error': ([step, ...], [percent, ...]), 'train/loss': ..., 'validation/top1_error': ...}.
    measured: what `inspection.py` found in the run, such as {'colour': [percent, percent]}.
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
  measured: Mapping[str, object] = {}

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a curve as (epochs [point], values [point]); both are empty where it has none of that name."""
    steps, values = self.curves.get(name, ((), ()))
    return np.asarray(steps, float) / self.steps_per_epoch, np.asarray(values, float)

  def training_curve(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve of the training error, of batches before their own update."""
    return self.curve('train/error')

  def test_curve(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve of the test error of the centre, for a run that also validated on the test split."""
    epochs, errors = self.curve('validation/top1_error')
    return np.append(epochs, self.num_epochs), np.append(errors, self.results['centre']['top1_error'])


def epochs_to(error: float, curve: tuple[np.ndarray, np.ndarray]) -> float | None:
  """Says after how many epochs a curve, (epochs [point], percent [point]), first fell below an error; None: never."""
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
  versions: str,
  devices: str,
  batch_size: int,
  num_images: int,
  results: Mapping,
  curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
  measured: Mapping[str, object] | None = None,
) -> Record:
  """Collects what is worth keeping of a training that has just ended.

  Args:
    command: that trains the same.
    seed: of the run.
    versions: of jax and flax.
    devices: what it ran on, in words, where that is no CPU.
    batch_size: images in a step.
    num_images: in the training split.
    results: what `results.json` holds.
    curves: of TensorBoard, {'train/loss': (steps [point], values [point]), ...}.
    measured: what `inspection.py` found.
  """
  speed = curves.get('speed/images_per_second', ((0,), (0.0,)))[1]
  num_trained = results['step'] * batch_size
  return Record(
    command=command,
    commit=_commit(),
    date=datetime.date.today().isoformat(),
    hardware=devices or _processor(),
    versions=versions,
    seed=seed,
    dataset=results['dataset'],
    num_epochs=round(num_trained / num_images, 3),
    steps_per_epoch=num_images / batch_size,
    minutes=round(num_trained / float(np.median(speed)) / 60, 1) if np.median(speed) > 0 else 0.0,
    results={
      crop_set: {name: round(rates[name], 4) for name in KEPT_RATES}
      for crop_set, rates in results.items()
      if isinstance(rates, Mapping) and KEPT_RATES[0] in rates
    },
    curves={
      name: (steps.tolist(), [float(f'{value:.{SIGNIFICANT}g}') for value in values])
      for name, (steps, values) in curves.items()
      if name in ('train/error', 'train/loss', 'validation/top1_error')
    },
    measured=measured or {},
  )


def _commit():
  """Names the commit that is checked out beside this file; 'unknown' where git does not know one."""
  git = ['git', '-C', os.path.dirname(os.path.abspath(__file__))]
  try:
    commit = subprocess.run([*git, 'rev-parse', '--short=10', 'HEAD'], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, 'diff', '--quiet', 'HEAD', '--', '.', '../configs'], check=False).returncode
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
  return commit.stdout.strip() + ('+' if changed else '')


def _processor():
  cpu = pathlib.Path('/proc/cpuinfo')
  lines = cpu.read_text().splitlines() if cpu.exists() else []
  names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
  try:
    mine = len(os.sched_getaffinity(0))  # fewer than there are where `taskset` says so
  except AttributeError:  # macOS
    mine = os.cpu_count()
  cores = f'{mine} cores' if mine == os.cpu_count() else f'{mine} of {os.cpu_count()} cores'
  return f'{next(names, platform.machine())}, {cores}, {host_memory.total_bytes() / 2**30:.0f} GiB'


def save(path: pathlib.Path, record: Record) -> None:
  """Writes an outcome, one curve a line.

  Raises:
    RunError: if it cannot be written.
  """
  lines = [f'  {json.dumps(name)}: {json.dumps(value)}' for name, value in record._asdict().items() if name != 'curves']
  curves = [f'    {json.dumps(name)}: {json.dumps(points)}' for name, points in record.curves.items()]
  lines.append('  "curves": {\n' + ',\n'.join(curves) + '\n  }')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.atomic_write(path) as partial:
      partial.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
  except OSError as error:
    raise RunError(f'{path} cannot be written ({error.strerror}).') from error


def load(path: pathlib.Path) -> Record | None:
  """Reads an outcome; None if there is none.

  Raises:
    UsageError: if it is damaged.
  """
  try:
    return Record(**json.loads(path.read_text()))
  except FileNotFoundError:
    return None
  except (ValueError, TypeError, OSError) as error:
    raise UsageError(f'{path} is damaged; put it back, or delete it and train anew.') from error
