"""The folder of a run: which files it holds, and whether it may be continued with a given config.

config.json      the exact config of the run
statistics.npz   mean image and RGB covariance of its training set
classes.txt      names of the classes, one a line, in the order of the labels
checkpoints/     see `checkpoint.py`
tensorboard/     curves
results.json     the last evaluation
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError
from alexnet_jax.statistics import Statistics

# What may differ when a run is continued: its length, its devices, its evaluation, and where and how fast data is read.
MAY_CHANGE = (
  'num_epochs',
  'num_steps',
  'eval_every',
  'checkpoint_every',
  'log_every',
  'mesh',
  'eval',
  'data.dir',
  'data.test_split',
  'data.num_threads',
  'data.num_prefetched',
)


def default(config: ConfigDict) -> pathlib.Path:
  """`runs/` + the names of the data and the variants."""
  names = (config.data.name, *config.variants)
  return pathlib.Path('runs', '-'.join(re.sub(r'[^A-Za-z0-9._-]+', '_', name) for name in names))


def start(workdir: pathlib.Path, config: ConfigDict, statistics: Statistics, class_names: Sequence[str]) -> None:
  """Makes the folder of a run, or checks that the run in it is the one to go on with, and keeps what describes it.

  Raises:
    UsageError: if the folder cannot be written to, or holds a run of another config.
  """
  path = workdir / 'config.json'
  if path.exists() and (differing := _differences(flat(load_config(workdir)), flat(config))):
    raise UsageError(
      f'{workdir} holds a run of another config ({"; ".join(differing)}); choose another --workdir, or the same config.'
    )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    statistics.save(workdir / 'statistics.npz')
    _write(workdir / 'classes.txt', '\n'.join(class_names) + '\n')
    _write(path, json.dumps(config.to_dict(), indent=2) + '\n')
  except OSError as error:
    raise UsageError(f'{workdir} cannot be written to ({error.strerror}); choose another --workdir.') from error


def load_config(workdir: pathlib.Path) -> ConfigDict:
  """Reads the config of the run in a folder.

  Raises:
    UsageError: if there is no run, or its config cannot be read.
  """
  try:
    return ConfigDict(json.loads((workdir / 'config.json').read_text()))
  except FileNotFoundError as error:
    raise UsageError(f'{workdir} holds no run; train one there first, or name its folder with --workdir.') from error
  except ValueError as error:
    raise UsageError(f'{workdir}/config.json is damaged ({error}); put back the config of the run.') from error


def load_classes(workdir: pathlib.Path) -> list[str]:
  """Reads the names of the classes of the run in a folder."""
  return (workdir / 'classes.txt').read_text().splitlines()


def write_results(workdir: pathlib.Path, results: dict) -> None:
  """Writes `results.json`."""
  _write(workdir / 'results.json', json.dumps(results, indent=2) + '\n')


def flat(config: ConfigDict) -> dict:
  """Flattens a config to {'model.width': 1.0, ...}, in JSON's types."""

  def flatten(prefix, value):
    if not isinstance(value, dict):
      return {prefix: value}
    return {
      k: v for name, part in value.items() for k, v in flatten(f'{prefix}.{name}' if prefix else name, part).items()
    }

  return flatten('', json.loads(json.dumps(config.to_dict())))


def _write(path, text):
  partial = path.with_name(f'.{path.name}.{os.getpid()}')  # a reader sees the old file or the new one, never a half
  partial.write_text(text)
  partial.replace(path)


def _differences(old, new):
  return [
    f'{field}: {old.get(field, "absent")} there, {new.get(field, "absent")} here'
    for field in sorted(old.keys() | new.keys())
    if old.get(field) != new.get(field) and not any(field == may or field.startswith(f'{may}.') for may in MAY_CHANGE)
  ]
