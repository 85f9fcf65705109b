"""The TensorBoard curves of a run."""

import pathlib
import sys
import types

import numpy as np
from tensorboard import summary
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from alexnet_jax.runtime.errors import RunError, first_line

# TensorBoard reads and writes files with TensorFlow, whose import takes five seconds, unless this module exists.
sys.modules.setdefault('tensorboard.compat.notf', types.ModuleType('notf'))

CURVES = {  # name on the command line: (tag in TensorBoard, label of the axis)
  'error': ('train/error', 'training error, %'),
  'loss': ('train/loss', 'training loss, nats'),
  'validation': ('validation/top1_error', 'validation error, %'),
}


def open_writer(folder: pathlib.Path) -> summary.Writer:
  """Returns TensorBoard's writer for the curves of a run, which writes in a thread of its own.

  Args:
    folder: folder of the run.
  """
  return summary.Writer(str(folder / 'tensorboard'))


def read_curves(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the curves of a run.

  Args:
    folder: folder of the run.

  Returns:
    {tag: (steps [point] int, values [point] float)}, ordered by step; empty if the run has no curves yet.

  Raises:
    RunError: if a file is damaged.
  """
  if not (folder / 'tensorboard').is_dir():
    return {}
  max_points = {event_accumulator.TENSORS: 0, event_accumulator.SCALARS: 0}  # 0: no maximum
  curves = {}
  try:
    events = event_accumulator.EventAccumulator(str(folder / 'tensorboard'), max_points).Reload()
    for tag in events.Tags()[event_accumulator.TENSORS]:
      points = {event.step: _to_float(event.tensor_proto) for event in events.Tensors(tag)}
      steps = sorted(points)
      curves[tag] = np.array(steps), np.array([points[step] for step in steps])
  except Exception as error:  # on damaged files TensorBoard raises errors of many types
    raise RunError(
      f'the curves in {folder}/tensorboard cannot be read ({first_line(error)}); restore them, or remove that folder.'
    ) from error
  return curves


def _to_float(tensor):
  """Converts a scalar; for other shapes, TensorBoard would allocate whatever size a damaged file contains."""
  if tensor.tensor_shape.dim:
    raise ValueError('a value is not a scalar')
  return float(tensor_util.make_ndarray(tensor))
