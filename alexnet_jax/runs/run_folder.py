"""The folder of a run: its files, and whether a config can start or resume a run in it.

config.json      the exact config of the run, and the version of the format of its files
statistics.npz   mean image and RGB covariance of its training set
classes.txt      class names by label, one per line
checkpoints/     see `checkpoints.py`
tensorboard/     curves
results.json     results of the last evaluation of the test split
results-*.json   results of the last evaluation of another dataset or split
environment.json software, devices and data of the training and of the evaluations, see `environment.py`
features/        activations for the training images, see `analysis/figures.py`; safe to delete
predictions/     predictions for a split, see `saved_predictions.py`
submission.txt   the five best classes of each image in the format of ILSVRC
"""

import contextlib
import json
import pathlib
import re
import shutil
import urllib.parse
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import cropping, pixel_statistics
from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.runs import checkpoints, config_checks, config_files
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError, first_line, printable

NO_RUN = '{folder} contains no run; train one, or name its folder with --workdir.'
# Fields, and parts of a config, that may change when a run resumes: its length, logging and devices, the precision of
# its computations, its evaluation, and the location and speed of its input pipeline.
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
  """Returns `runs/DATA-VARIANTS`, the default folder of a run."""
  names = (config.data.name, *config.variants)
  return pathlib.Path('runs', '-'.join(map(file_name, names)))


def prepare(folder: pathlib.Path, config: ConfigDict) -> None:
  """Makes the folder of a run if necessary, and checks that the run can start or resume in it.

  A folder without checkpoints can be used again with any config.

  Raises:
    UsageError: if the folder is not writable, contains a run with another config, or contains results or predictions
      but no checkpoints. They would be mistaken for those of the new network.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(folder / '.writable', '')
    (folder / '.writable').unlink()
  except OSError as error:
    raise UsageError(f'{folder} cannot be written to ({error.strerror}); choose another --workdir.') from error
  if checkpoints.newest_step(folder) is None:
    outputs = (folder / 'predictions', folder / 'submission.txt', *sorted(folder.glob('results*.json')))
    if found := [path.name for path in outputs if path.exists()]:
      raise UsageError(
        f'{folder} contains {", ".join(found)} of a network whose checkpoints were removed; remove or move them, or '
        'choose another --workdir.'
      )
    return
  if differences := [text for field, text in _differences(load_config(folder), config) if not _may_change(field)]:
    raise UsageError(
      f'{folder} contains a run with another config ({"; ".join(differences)}); use the same config, or choose another '
      '--workdir.'
    )


def check_has_no_run(folder: pathlib.Path) -> None:
  """Raises `UsageError` if a folder contains a run."""
  if checkpoints.newest_step(folder) is not None:
    raise UsageError(f'{folder} already contains a run; choose another folder.')


def check_is_shared(folder: pathlib.Path) -> None:
  """Raises `UsageError` if this process has no access to the files that process 0 wrote to the folder of the run."""
  if not (folder / 'config.json').exists():
    raise UsageError(
      f'{folder.absolute()} is not the folder that process 0 writes to; choose a --workdir that all machines share.'
    )


def exclusive_lock(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Returns a context that prevents other processes from training in the same folder.

  Raises:
    LockedError: on entry, if another process is training there.
  """
  message = f'another process is training in {folder}; wait until it finishes, or choose another --workdir.'
  return atomic_files.exclusive_lock(folder / '.lock', message)


def write_metadata(
  folder: pathlib.Path, config: ConfigDict, statistics: PixelStatistics, class_names: Sequence[str]
) -> None:
  """Writes the config, pixel statistics and class names of a run to a folder that `prepare` has accepted.

  Raises:
    UsageError: if the run to resume has other training images or classes, or its weights were imported.
    RunError: if a file cannot be written.
  """
  if checkpoints.newest_step(folder) is not None:
    saved = load_statistics(folder)
    if not saved.num_images:
      raise UsageError(
        f'{folder} contains imported weights, from which no training can resume; start a new run from them in another '
        f'--workdir, with --config.init_from={folder}.'
      )
    same_images = all(
      np.array_equal(getattr(statistics, name), getattr(saved, name)) for name in PixelStatistics._fields
    )
    if not same_images or list(class_names) != load_classes(folder):
      raise UsageError(
        f'{folder} contains a run with other training images or classes; use the same version of the dataset, or '
        'choose another --workdir.'
      )
  else:
    for name in ('features', 'tensorboard'):  # of a network whose checkpoints were removed, or that had none yet
      shutil.rmtree(folder / name, ignore_errors=True)
  fields = {'format_version': config_files.FORMAT_VERSION} | config.to_dict()
  try:
    statistics.save(folder / 'statistics.npz')
    atomic_files.write_text(folder / 'classes.txt', '\n'.join(class_names) + '\n')
    atomic_files.write_text(folder / 'config.json', json.dumps(fields, indent=2) + '\n')
  except OSError as error:
    raise RunError(f'the files of the run cannot be written to {folder} ({error.strerror}).') from error


def load_config(folder: pathlib.Path) -> ConfigDict:
  """Loads the config of a run.

  Raises:
    UsageError: if the folder contains no run, or its config is damaged or of a newer version of this project.
  """
  try:
    fields = json.loads((folder / 'config.json').read_text())
    if 'model_type' in fields:
      raise UsageError(
        f'{folder} was exported for the Hugging Face Hub; import it with '
        f'`python -m alexnet_jax weights import {folder} RUN`, and name RUN.'
      )
    if (version := fields.pop('format_version', 0)) > config_files.FORMAT_VERSION:
      raise UsageError(
        f'{folder} has format version {printable(version)}, and this program reads versions up to '
        f'{config_files.FORMAT_VERSION}; use the version of the project that wrote it.'
      )
    config = config_files.add_missing_fields(ConfigDict(fields))
    try:
      config_checks.check_values(config)
    except UsageError as error:
      raise UsageError(f'{folder}/config.json is invalid: {printable(error)}') from error
  except OSError as error:
    raise UsageError(NO_RUN.format(folder=folder)) from error
  except KeyError as error:
    raise UsageError(
      f'{folder}/config.json lacks the field {first_line(error)}: it is damaged, or was written by another version of '
      'this project; restore it, or use that version.'
    ) from error
  except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
    raise UsageError(
      f'{folder}/config.json is damaged ({first_line(error)}); restore the config of the run.'
    ) from error
  return config


def load_classes(folder: pathlib.Path) -> list[str]:
  """Loads the class names of a run, by label; raises `UsageError` if there is no run, or their file is missing."""
  try:
    return (folder / 'classes.txt').read_text().removesuffix('\n').split('\n')
  except UnicodeDecodeError as error:
    raise UsageError(f'{folder}/classes.txt is damaged; restore it, with one class per line.') from error
  except OSError as error:
    if not folder.is_dir():
      raise UsageError(NO_RUN.format(folder=folder)) from error
    raise UsageError(f'{folder}/classes.txt is missing; restore it, with one class per line.') from error


def load_statistics(folder: pathlib.Path) -> PixelStatistics:
  """Loads the pixel statistics of a run's training set; raises `UsageError` if the file is missing or damaged."""
  statistics = pixel_statistics.load(folder / 'statistics.npz')
  if statistics is None:
    raise UsageError(f'{folder}/statistics.npz is missing or damaged; restore it, or train in another --workdir.')
  return statistics


def ignored_fields(folder: pathlib.Path, config: ConfigDict) -> list[str]:
  """Describes the fields of a config that an evaluation ignores, because it uses the network of the run.

  Raises:
    UsageError: if the folder contains no run.
  """
  differences = _differences(load_config(folder), config)
  return [text for field, text in differences if field.startswith('model.') and not field.startswith('model.init_')]


def is_imported(folder: pathlib.Path) -> bool:
  """Returns whether the weights of a run were imported, in which case its config does not name their data."""
  return not load_statistics(folder).num_images


def results_name(folder: pathlib.Path, config: ConfigDict, dataset: str, split: str) -> str:
  """Returns the name of the file for the results of a run on a dataset and split, which a config selects.

  Returns:
    'results.json' for the test split of the run, and for every split if its weights were imported. Other results do not
    replace those of the training; they have a file of their own, such as 'results-digits_1.0.0-train.json', and
    'results-digits_1.0.0-test%5B%3A9%5D.json' for 'test[:9]'.
  """
  selection = {'data.name', 'data.test_split', 'data.classes'}
  if is_imported(folder) or selection.isdisjoint(dict(_differences(load_config(folder), config))):
    return 'results.json'
  name = urllib.parse.quote(f'{dataset}-{split}'.replace('/', '_'), safe='')  # slices of a split have different names
  return f'results-{name}.json'


def file_name(text: str) -> str:
  """Replaces the characters of a text that a file name should not contain by '_'."""
  return re.sub(r'[^A-Za-z0-9._-]+', '_', text)


def write_results(folder: pathlib.Path, results: dict, name: str = 'results.json') -> None:
  """Writes the results of an evaluation; raises `RunError` if the file cannot be written."""
  try:
    atomic_files.write_text(folder / name, json.dumps(results, indent=2) + '\n')
  except OSError as error:
    raise RunError(f'{folder}/{name} cannot be written ({error.strerror}); the results are {results}') from error


def load_results(folder: pathlib.Path, num_steps: int, name: str = 'results.json') -> dict:
  """Loads the results of an evaluation.

  Args:
    folder: folder of the run.
    num_steps: number of training steps of the checkpoint that was evaluated.
    name: name of the file.

  Returns:
    The content of the file; empty if there is none, or if it describes another checkpoint.

  Raises:
    UsageError: if the file is damaged.
  """
  try:
    results = json.loads((folder / name).read_text())
    if results['step'] != num_steps:
      return {}
    _check_results(results)
    return results
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise UsageError(f'{folder}/{name} is damaged; evaluate the run again with --mode=eval.') from error


def _check_results(results):
  """Raises `ValueError`, or an error of a missing field, unless results have the fields that an evaluation writes."""
  errors = [results[crop_set] for crop_set in cropping.CROP_SET_TITLES if results.get(crop_set)]
  percentages = [values[name] for values in errors for name in ('top1_error', 'top5_error')]
  texts, counts = (results['dataset'], results['split']), (results['num_examples'], results['step'])
  if not all(isinstance(x, str) for x in texts) or not all(isinstance(x, int) and 0 <= x < 2**63 for x in counts):
    raise ValueError('a field has a value of another type')
  if not all(isinstance(x, int | float) and -1e-3 <= x <= 100 for x in percentages):
    raise ValueError('an error is not a percentage')


def write_submission(folder: pathlib.Path, lines: Sequence[str]) -> None:
  """Writes `submission.txt`; raises `RunError` if the file cannot be written."""
  try:
    atomic_files.write_text(folder / 'submission.txt', ''.join(f'{line}\n' for line in lines))
  except OSError as error:
    raise RunError(f'{folder}/submission.txt cannot be written ({error.strerror}).') from error


def _differences(trained, config):
  """Returns the fields that differ between the config of a run and another one, each with a description."""
  saved, given = config_files.flatten(trained), config_files.flatten(config)
  return [
    (field, f'{field}: {saved.get(field, "absent")} in the run, {given.get(field, "absent")} given')
    for field in sorted(saved.keys() | given.keys())
    if saved.get(field) != given.get(field)
  ]


def _may_change(field):
  return any(field == name or field.startswith(f'{name}.') for name in CHANGEABLE_FIELDS)
