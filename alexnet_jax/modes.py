"""The three modes of main.py."""

import pathlib
import pkgutil
from collections.abc import Sequence

from ml_collections import ConfigDict

from alexnet_jax.kernels import onednn
from alexnet_jax.runs import config_checks, run_folder
from alexnet_jax.runtime import host_memory
from alexnet_jax.runtime.errors import UsageError


def check_arguments(mode: str, images: Sequence[str], workdirs: Sequence[str], is_distributed: bool) -> None:
  """Checks that the command line fits the mode.

  Raises:
    UsageError: if it does not.
  """
  if images and mode != 'predict':
    raise UsageError(
      f"'{' '.join(images)}' is not a flag; flags begin with --, as in --help; images go with --mode=predict."
    )
  if is_distributed and mode == 'predict':
    raise UsageError('--mode=predict runs in one process; omit the flags for several processes.')
  if len(workdirs) > 1 and mode != 'eval':
    raise UsageError(f'--workdir={",".join(workdirs)} names {len(workdirs)} runs; several go with --mode=eval.')


def load_run(config: ConfigDict | None, workdirs: Sequence[str]) -> tuple[ConfigDict, list[pathlib.Path]]:
  """Returns the config and the folders of the runs, with defaults for what the command line omits.

  Without a config it is that of the run, on the devices of this machine.

  Raises:
    UsageError: if both are missing, the config cannot be run, or there is no run.
  """
  if config is not None:
    config_checks.check(config)
    return config, [pathlib.Path(folder) for folder in workdirs] or [run_folder.default_folder(config)]
  if not workdirs:
    raise UsageError('name the run with --workdir=FOLDER.')
  folders = [pathlib.Path(folder) for folder in workdirs]
  config = run_folder.load_config(folders[0])
  config.mesh.data = config.mesh.tower = 0
  return config, folders


def run(
  mode: str, config: ConfigDict, folders: Sequence[pathlib.Path], images: Sequence[str], output: str | None
) -> int:
  """Trains, evaluates or predicts, and returns how many images could not be read.

  Only the modules of the mode are imported, which takes seconds for training.

  Raises:
    UsageError, RunError, Stopped: as the mode.
  """
  if mode == 'predict':
    predict_files = pkgutil.resolve_name('alexnet_jax.evaluation.predict:predict_files')
    draw = pkgutil.resolve_name('alexnet_jax.analysis.figures:draw_file_predictions')
    return predict_files(images, folders[0], config, output, draw)
  onednn.enable()
  host_memory.trim_after_compiling()
  if mode == 'train':
    results = pkgutil.resolve_name('alexnet_jax.training.loop:train_and_evaluate')(config, folders[0])
  elif len(folders) > 1:
    results = pkgutil.resolve_name('alexnet_jax.evaluation.ensemble:evaluate_ensemble')(config, folders)
  else:
    results = pkgutil.resolve_name('alexnet_jax.evaluation.evaluate:evaluate_workdir')(config, folders[0])
  return len(results['skipped'])


def newest_checkpoint(folder: pathlib.Path) -> str:
  """Describes the newest checkpoint of a run, for the message of a failure."""
  step = pkgutil.resolve_name('alexnet_jax.runs.checkpoints:newest_step')(folder)
  return 'there is no checkpoint yet' if step is None else f'the newest checkpoint is that of step {step:,}'
