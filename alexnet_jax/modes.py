"""The modes of main.py: train, eval and predict."""

import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from alexnet_jax.kernels import onednn
from alexnet_jax.runs import config_checks, run_folder
from alexnet_jax.runtime import extras, host_memory, preemption
from alexnet_jax.runtime.errors import UsageError


def check_arguments(
  mode: str, images: Sequence[str], workdirs: Sequence[str], is_distributed: bool, has_output_flags: bool
) -> None:
  """Checks that the command line fits the mode.

  Args:
    mode: 'train', 'eval' or 'predict'.
    images: arguments that are not flags.
    workdirs: folders of runs.
    is_distributed: whether this is one of several processes.
    has_output_flags: whether `--output` or `--exif` is set, which apply to predictions alone.

  Raises:
    UsageError: if it does not.
  """
  if images and mode != 'predict':
    raise UsageError(
      f"'{' '.join(images)}' is not a flag. Flags begin with --; image files require --mode=predict. See --help."
    )
  if has_output_flags and mode != 'predict':
    raise UsageError(f'--output and --exif require --mode=predict, not {mode}; omit them.')
  if is_distributed and mode == 'predict':
    raise UsageError('--mode=predict runs in one process; omit the flags for several processes.')
  if len(workdirs) > 1 and mode != 'eval':
    raise UsageError(f'--workdir={",".join(workdirs)} names {len(workdirs)} runs; only --mode=eval accepts several.')


def load_run(config: ConfigDict | None, workdirs: Sequence[str]) -> tuple[ConfigDict, list[pathlib.Path]]:
  """Returns the config and the folders of the runs, with defaults for omitted flags.

  Args:
    config: the config of the command line, or None to load that of the run and to use all devices of this machine.
    workdirs: the folders of the command line. If there are none, the default folder of the config is returned.

  Raises:
    UsageError: if both are missing, the config is invalid, or a folder contains no run.
  """
  folders = [pathlib.Path(folder).expanduser() for folder in workdirs]
  if config is not None:
    config_checks.check(config)
    return config, folders or [run_folder.default_folder(config)]
  if not folders:
    raise UsageError('name the run with --workdir=FOLDER.')
  config = run_folder.load_config(folders[0])
  config.mesh.data = config.mesh.tower = 0
  return config, folders


def run(
  mode: str,
  config: ConfigDict,
  folders: Sequence[pathlib.Path],
  images: Sequence[str],
  output: str | None,
  exif: bool = False,
) -> int:
  """Trains, evaluates or predicts, and returns the number of images that could not be read.

  Only the modules of the mode are imported, because those of training take seconds.

  Args:
    mode: 'train', 'eval' or 'predict'.
    config: of the run.
    folders: of the run; with 'eval', several folders are evaluated as an ensemble.
    images: files, folders and patterns to classify, for 'predict'.
    output: file of the predictions, for 'predict', or None.
    exif: whether to rotate images as their EXIF data specifies, for 'predict'.

  Raises:
    UsageError: if the request is invalid.
    RunError: if it fails at run time.
    Stopped: if a signal stopped the training, after a checkpoint was saved.
  """
  if mode != 'train':
    _warn_of_ignored_fields(config, folders)
  if mode == 'predict':
    predict_files = extras.resolve('alexnet_jax.evaluation.predict:predict_files')
    draw = None
    if output and not output.endswith('.json'):
      draw = extras.resolve('alexnet_jax.analysis.figures:draw_file_predictions')
    return predict_files(images, folders[0], config, output, draw, exif)
  if mode == 'eval':
    preemption.exit_on_signals()  # there is nothing to save
  onednn.enable()
  host_memory.trim_after_compiling()
  if mode == 'train':
    results = extras.resolve('alexnet_jax.training.loop:train_and_evaluate')(config, folders[0])
  elif len(folders) > 1:
    results = extras.resolve('alexnet_jax.evaluation.ensemble:evaluate_ensemble')(config, folders)
  else:
    results = extras.resolve('alexnet_jax.evaluation.evaluate:evaluate_run')(config, folders[0])
  return sum(results['skipped'].values())


def _warn_of_ignored_fields(config, folders):
  for folder in folders:
    if ignored := run_folder.ignored_fields(folder, config):
      more = f'; {len(ignored) - 3} more fields' if len(ignored) > 3 else ''
      print(f'warning: the network is that of {folder} ({"; ".join(ignored[:3])}{more}).', file=sys.stderr)
