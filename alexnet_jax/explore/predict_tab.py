"""The tab of predictions: the most probable classes, the crops, and several photographs at once."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from alexnet_jax.data import cropping, image_io
from alexnet_jax.explore import loaded_run, mosaic
from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.explore.visitors import reported

MAX_FILES = 100
PICTURE_SIDE, FRAME = 512, 4  # pixels


def add(runs: Sequence[LoadedRun], stored: gr.State) -> None:
  """Adds the components of one run or two to the current tab.

  Args:
    runs: the runs.
    stored: the stored image of the visitor, [size, size, rgb] uint8.
  """
  agreement = gr.Markdown(visible=len(runs) > 1)
  outputs: list[Any] = [agreement]
  with gr.Row():
    for run in runs:
      with gr.Column(min_width=300):
        bars = gr.Label(label=f'{run.folder.name}: most probable classes', num_top_classes=loaded_run.NUM_CLASSES)
        crops = gr.AnnotatedImage(label='Crops; a mirrored crop has the frame of another one', height=420)
        table = gr.Dataframe(headers=['crop', 'mirrored', 'class', 'probability'], interactive=False, label='Each crop')
        outputs += [bars, crops, table]
  stored.change(reported(functools.partial(_predict, runs)), stored, outputs)
  with gr.Accordion('Several photographs', open=False):
    files = gr.File(file_count='multiple', label='Photographs')
    headers = ['file', *(f'{column} {run.folder.name}' for run in runs for column in ('class,', 'probability,'))]
    classes = gr.Dataframe(headers=[*headers, *(['differ'] if len(runs) > 1 else [])], interactive=False)
    files.change(reported(functools.partial(_predict_files, runs)), files, classes)


def _predict(runs, image):
  """Returns whether the runs agree, and for each its most probable classes, the crops, and the table of the crops."""
  if image is None:
    return [None] * (1 + 3 * len(runs))
  outputs, best = [], []
  for run in runs:
    classes, crops, by_crop = _predict_one(run, image)
    best.append(next(iter(classes)))
    rows = [
      [number, 'yes' if crop.mirrored else 'no', run.model.class_names[row.argmax()], _percent(row.max())]
      for number, (crop, row) in enumerate(zip(crops, by_crop, strict=True), 1)
    ]
    outputs += [classes, _frames(image, crops, run.model.config.image_size), rows]
  agreement = (
    f'Both runs predict **{best[0]}**.' if len(set(best)) == 1 else f'The runs differ: **{"**, **".join(best)}**.'
  )
  return [agreement, *outputs]


def _predict_one(run, image):
  """Returns the most probable classes, the crops, and the probabilities [crop, class]."""
  crops = cropping.TEST_TIME_CROPS[cropping.prediction_crop_set(run.config)](run.model.config.border)
  by_crop = loaded_run.probabilities(run.model, image, crops)
  return loaded_run.best_classes(run.model, by_crop.mean(axis=0)), crops, by_crop


def _percent(fraction):
  return f'{100 * fraction:.1f} %'


def _frames(image: np.ndarray, crops: Sequence[cropping.Crop], size: int) -> tuple[np.ndarray, list]:
  """Returns the magnified image, and the mask and the numbers of the crops of each frame."""
  scale = PICTURE_SIDE / len(image)
  numbers: dict[tuple[int, int], list[str]] = {}
  for number, crop in enumerate(crops, 1):
    numbers.setdefault((int(crop.top), int(crop.left)), []).append(str(number))
  masks = []
  for (top, left), found in numbers.items():
    first_row, first_column, last_row, last_column = (
      round(scale * edge) for edge in (top, left, top + size, left + size)
    )
    mask = np.zeros((PICTURE_SIDE, PICTURE_SIDE))
    mask[first_row:last_row, first_column:last_column] = 1
    mask[first_row + FRAME : last_row - FRAME, first_column + FRAME : last_column - FRAME] = 0
    masks.append((mask, f'crop {" and ".join(found)}'))
  return mosaic.magnify(image, PICTURE_SIDE), masks


def _predict_files(runs, paths):
  """Returns a row for each file: its name, and each run's best class and probability."""
  rows = []
  if len(paths or ()) > MAX_FILES:
    gr.Warning(f'Only the first {MAX_FILES} files are classified; python main.py --mode=predict classifies any number.')
  for path in map(pathlib.Path, (paths or ())[:MAX_FILES]):
    try:
      image = image_io.read_square(path, runs[0].model.stored_size)
    except ValueError as error:
      rows.append([path.name, f'cannot be read: {error}', *[''] * (2 * len(runs) - 1 + (len(runs) > 1))])
      continue
    best = [next(iter(_predict_one(run, image)[0].items())) for run in runs]
    differ = ['yes' if len({name for name, _ in best}) > 1 else 'no'] if len(runs) > 1 else []
    rows.append([path.name, *(value for name, share in best for value in (name, _percent(share))), *differ])
  return rows
