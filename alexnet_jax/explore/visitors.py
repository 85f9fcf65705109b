"""What a visitor does and reads: the upload of a photograph, and messages of errors."""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read when Gradio is imported

import gradio as gr
import numpy as np

from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.runtime.errors import RunError, UsageError

LONG: dict[str, Any] = {'concurrency_id': 'long', 'concurrency_limit': 1}  # options of events that run one at a time
TQDM = gr.Progress(track_tqdm=True)  # a default argument that shows the bars of tqdm on the page


def add_photograph() -> gr.Image:
  """Adds the component with which a visitor uploads a photograph; its value is the path of the file.

  Gradio would decode the file with Pillow before a function of ours is called, without the limits of `image_io`.
  """
  photograph = gr.Image(label='Photograph', sources=['upload', 'clipboard', 'webcam'], height=260)
  photograph.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
  return photograph


def clip_unit(run: LoadedRun, layer: str, unit: float | None) -> Any:
  """Returns the number of the nearest unit that a layer has, or no change if it has the unit."""
  nearest = int(np.clip(unit or 0, 0, run.model.layer_shape(layer)[-1] - 1))
  return gr.skip() if nearest == unit else nearest


def reported(function: Callable) -> Callable:
  """Returns a function whose `UsageError` or `RunError` the page shows to the visitor."""

  @functools.wraps(function)
  def run(*args):
    try:
      return function(*args)
    except (UsageError, RunError) as error:
      raise gr.Error(str(error), print_exception=False) from error

  run.__name__ = getattr(function, 'func', function).__name__.lstrip('_')  # in the API; a partial has no name
  return run
