"""The software, devices and data with which a run was trained and evaluated: `environment.json` in its folder.

{"training": [{"first_step": 0, ...}, ...], "evaluation": {"results.json": {...}, ...}}

`training` has an entry for every environment in which the run resumed; it holds from `first_step` until that of the
next entry. `evaluation` has an entry for each file of results, of the evaluation that wrote it last. An entry is that
of `describe`. With the config and its seed, it determines the numbers of the run.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from alexnet_jax.kernels import dispatch, onednn
from alexnet_jax.models import device_mesh
from alexnet_jax.runtime import atomic_files, distributed, processor
from alexnet_jax.runtime.errors import RunError

if TYPE_CHECKING:
  from alexnet_jax.data.sources import Source

FILE = 'environment.json'
PACKAGES = (
  'alexnet_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'tensorflow-datasets',
  'numpy',
  'pillow',
  'simplejpeg',
)


def describe(mesh: Mesh, source: Source) -> dict[str, Any]:
  """Describes what the numbers of a run depend on in addition to its config.

  Args:
    mesh: the devices.
    source: a split of the dataset.

  Returns:
    Versions of Python and of the packages by name; 'commit', see `commit`; 'platform', 'processor' and 'num_cores',
    those that this process may use; 'devices' and 'backend', the software that drives them; 'num_processes'; whether
    'fast_kernels' and 'onednn' are enabled; 'matmul_precision' and 'xla_flags' as set by the user; 'dataset' with its
    version, and 'dataset_fingerprint', a hash of the sizes of its splits.
  """
  return {
    'python': platform.python_version(),
    **{name: _version(name) for name in PACKAGES},
    'commit': commit(),
    'platform': platform.platform(),
    'processor': processor.name(),
    'num_cores': processor.num_cores(),
    'devices': device_mesh.describe_mesh(mesh),
    'backend': mesh.devices.flat[0].client.platform_version,
    'num_processes': jax.process_count(),
    'fast_kernels': dispatch.is_enabled(),
    'onednn': onednn.is_enabled(),
    'matmul_precision': jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'dataset': source.dataset,
    'dataset_fingerprint': source.fingerprint,
  }


def commit(num_digits: int = 40) -> str | None:
  """Returns the commit of this project's checkout, or None without one.

  It ends in '-dirty' if a tracked file of the package or a config file was modified. Others, such as the results of
  experiments, do not change numbers.

  Args:
    num_digits: length of the hash.
  """
  git = ['git', '-C', str(pathlib.Path(__file__).parent)]
  run = functools.partial(
    subprocess.run, check=True, capture_output=True, text=True, env=os.environ | {'GIT_OPTIONAL_LOCKS': '0'}
  )
  try:
    run([*git, 'ls-files', '--error-unmatch', '.'])  # fails in the checkout of another project
    head = run([*git, 'rev-parse', f'--short={num_digits}', 'HEAD']).stdout.strip()
    modified = run([*git, 'diff', '--name-only', 'HEAD', '--', '..', ':(top)configs']).stdout
  except (OSError, subprocess.CalledProcessError):  # no git, or an installation outside a checkout
    return None
  return f'{head}-dirty' if modified else head


def record_training(folder: pathlib.Path, mesh: Mesh, source: Source, first_step: int) -> None:
  """Records the environment of a training, unless the run resumes in the same one.

  Args:
    folder: folder of the run.
    mesh: the devices.
    source: the training split.
    first_step: number of steps that the run has taken. Later entries, of steps that will be repeated, are removed.

  Raises:
    RunError: if `environment.json` cannot be written.
  """
  if distributed.is_main_process():
    recorded, current = load(folder), describe(mesh, source)
    entries = [entry for entry in recorded['training'] if entry['first_step'] < first_step]
    if not entries or entries[-1] != current | {'first_step': entries[-1]['first_step']}:
      entries.append({'first_step': first_step} | current)
    _write(folder, recorded | {'training': entries})


def record_evaluation(folder: pathlib.Path, mesh: Mesh, source: Source, results_name: str) -> None:
  """Records the environment of an evaluation.

  Args:
    folder: folder of the run.
    mesh: the devices.
    source: the split.
    results_name: name of the file of the results.

  Raises:
    RunError: if `environment.json` cannot be written.
  """
  if distributed.is_main_process():
    recorded = load(folder)
    _write(folder, recorded | {'evaluation': recorded['evaluation'] | {results_name: describe(mesh, source)}})


def load(folder: pathlib.Path) -> dict[str, Any]:
  """Loads `environment.json`; without entries if the file is missing or damaged."""
  try:
    recorded = json.loads((folder / FILE).read_text())
    return {
      'training': [entry | {'first_step': int(entry['first_step'])} for entry in recorded['training']],
      'evaluation': dict(recorded['evaluation']),
    }
  except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
    return {'training': [], 'evaluation': {}}


def _write(folder, recorded):
  try:
    atomic_files.write_text(folder / FILE, json.dumps(recorded, indent=2) + '\n')
  except OSError as error:
    raise RunError(f'{folder}/{FILE} cannot be written ({error.strerror}).') from error


def _version(package):
  """Returns the version of an installed package, or None."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
