"""The folder of a run: which files it holds, and whether it may be continued with a given config.

config.json      the exact config of the run
statistics.npz   mean image and RGB covariance of its training set
classes.txt      names of the classes, one a line, in the order of the labels
checkpoints/     see `checkpoint.py`
tensorboard/     curves
results.json     the last evaluation
features/        of the training images, see `figures.py`; may be removed
predictions/     what was predicted for a split, see `predictions.py`
submission.txt   the five best classes of each image, as ILSVRC takes them
"""

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.runs import config_checks
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError
from alexnet_jax.data.pixel_statistics import PixelStatistics, load

# What may differ when a run is continued: its length, its devices, the precision in which they compute, its evaluation,
# and where and how fast data is read.
CHANGEABLE_FIELDS = (
  'num_epochs',
  'num_steps',
  'eval_every',
  'checkpoint_every',
  'log_every',
  'heartbeat',
  'mesh',
  'model.dtype',
  'eval',
  'data.dir',
  'data.test_split',
  'data.unreadable',
  'data.num_threads',
  'data.num_prefetched',
)


def default_folder(config: ConfigDict) -> pathlib.Path:
  """`runs/` + the names of the data and the variants."""
  names = (config.data.name, *config.variants)
  return pathlib.Path('runs', '-'.join(re.sub(r'[^A-Za-z0-9._-]+', '_', name) for name in names))


def check_can_hold(folder: pathlib.Path, config: ConfigDict) -> None:
  """Checks that a folder can take a run, and that a run which is in it is the one to go on with.

  A folder without checkpoints has no run to lose, whatever its config.

  Raises:
    UsageError: if the folder cannot be written to, or holds a run of another config, or predictions of a network whose
      checkpoints are gone, which would be taken for those of the new one.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / '.writable', '')
    (folder / '.writable').unlink()
  except OSError as error:
    raise UsageError(f'{folder} cannot be written to ({error.strerror}); choose another --workdir.') from error
  if not _has_checkpoints(folder):
    if (folder / 'predictions').exists():
      raise UsageError(
        f'{folder}/predictions holds what a network predicted whose checkpoints are gone; remove or move it, or choose '
        'another --workdir.'
      )
    return
  if differing := _differences(config_checks.flatten(load_config(folder)), config_checks.flatten(config)):
    raise UsageError(
      f'{folder} holds a run of another config ({"; ".join(differing)}); choose another --workdir, or the same config.'
    )


def check_holds_no_run(folder: pathlib.Path) -> None:
  """Checks that a folder holds no run.

  Raises:
    UsageError: if it does.
  """
  if _has_checkpoints(folder):
    raise UsageError(f'{folder} holds a run already; choose another folder.')


def check_is_shared(folder: pathlib.Path) -> None:
  """Checks that what another process has written to a folder is here, too.

  Raises:
    UsageError: if it is not.
  """
  if not (folder / 'config.json').exists():
    raise UsageError(
      f'{folder.absolute()} is not the folder that process 0 writes to; choose a --workdir that all machines share.'
    )


def exclusive_lock(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Keeps other processes from training in a folder at the same time.

  Raises:
    UsageError: if another one does.
  """
  sentence = f'another process is training in {folder}; wait for its end, or choose another --workdir.'
  return atomic_files.exclusive_lock(folder / '.lock', sentence)


def write_description(folder: pathlib.Path, config: ConfigDict, statistics: PixelStatistics, class_names: Sequence[str]) -> None:
  """Keeps what describes the run in a folder that `check` found good.

  Raises:
    UsageError: if the run in it began with other images or classes, or holds imported weights.
  """
  if _has_checkpoints(folder):
    kept = load_statistics(folder)
    if not kept.num_images:
      raise UsageError(
        f'{folder} holds imported weights, which no training can go on from; start from them in another --workdir, '
        f'with --config.init_from={folder}.'
      )
    same_images = all(np.array_equal(new, old) for new, old in zip(statistics, kept, strict=True))
    if not same_images or list(class_names) != load_classes(folder):
      raise UsageError(
        f'{folder} holds a run that began with other training images or classes; '
        'choose another --workdir, or the same version of the dataset.'
      )
  else:
    shutil.rmtree(folder / 'features', ignore_errors=True)  # of a network whose checkpoints are gone
  statistics.save(folder / 'statistics.npz')
  _write(folder / 'classes.txt', '\n'.join(class_names) + '\n')
  _write(folder / 'config.json', json.dumps(config.to_dict(), indent=2) + '\n')


def load_config(folder: pathlib.Path) -> ConfigDict:
  """Reads the config of the run in a folder.

  Raises:
    UsageError: if there is no run, or its config cannot be read.
  """
  try:
    config = config_checks.add_missing_fields(ConfigDict(json.loads((folder / 'config.json').read_text())))
    config_checks.check(config)
  except OSError as error:
    raise UsageError(f'{folder} holds no run; train one there first, or name its folder with --workdir.') from error
  except KeyError as error:
    raise UsageError(
      f'{folder}/config.json lacks the field {error}; it is damaged, or of another version of this project: put it '
      'back, or go on with that version.'
    ) from error
  except (ValueError, TypeError, AttributeError) as error:
    raise UsageError(f'{folder}/config.json is damaged ({error}); put back the config of the run.') from error
  return config


def load_classes(folder: pathlib.Path) -> list[str]:
  """Reads the names of the classes of the run in a folder.

  Raises:
    UsageError: if they are not there.
  """
  try:
    return (folder / 'classes.txt').read_text().removesuffix('\n').split('\n')
  except OSError as error:
    raise UsageError(f'{folder}/classes.txt is missing; put it back, one class a line.') from error


def load_statistics(folder: pathlib.Path) -> PixelStatistics:
  """Reads the statistics of the training set of the run in a folder.

  Raises:
    UsageError: if they are not there.
  """
  statistics = load(folder / 'statistics.npz')
  if statistics is None:
    raise UsageError(f'{folder}/statistics.npz is missing or damaged; put it back, or train in another --workdir.')
  return statistics


def write_results(folder: pathlib.Path, results: dict) -> None:
  """Writes `results.json`.

  Raises:
    RunError: if it cannot be written.
  """
  try:
    _write(folder / 'results.json', json.dumps(results, indent=2) + '\n')
  except OSError as error:
    raise RunError(f'{folder}/results.json cannot be written ({error.strerror}); it would say {results}') from error


def write_submission(folder: pathlib.Path, lines: Sequence[str]) -> None:
  """Writes `submission.txt`.

  Raises:
    RunError: if it cannot be written.
  """
  try:
    _write(folder / 'submission.txt', ''.join(f'{line}\n' for line in lines))
  except OSError as error:
    raise RunError(f'{folder}/submission.txt cannot be written ({error.strerror}).') from error


def _has_checkpoints(folder):
  return any((folder / 'checkpoints').glob('[0-9]*'))


def _write(path, text):
  with atomic_files.atomic_write(path) as partial:
    partial.write_text(text)


def _differences(old, new):
  return [
    f'{field}: {old.get(field, "absent")} there, {new.get(field, "absent")} here'
    for field in sorted(old.keys() | new.keys())
    if old.get(field) != new.get(field) and not any(field == may or field.startswith(f'{may}.') for may in CHANGEABLE_FIELDS)
  ]
