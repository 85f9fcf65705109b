"""The tab of predictions: the most probable classes, the crops, and several photographs at once."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np
from gradio.image_utils import encode_image_array_to_base64

from alexnet_jax.data import cropping, image_io
from alexnet_jax.explore import loaded_run
from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.explore.visitors import reported

MAX_FILES = 100
CROPS = """<figure style="margin: 0">
<svg viewBox="0 0 {side} {side}" role="img" aria-label="Crops"
style="display: block; width: 100%; max-height: 420px">
<image href="{image}" width="{side}" height="{side}" style="image-rendering: pixelated"/>
<g fill="none" stroke-width="{line}" font-size="{font}" font-weight="bold" dominant-baseline="central">
{frames}</g></svg>
<figcaption>The crops and their numbers. A mirrored crop has the frame of another one.</figcaption></figure>"""


def add(by_title: Mapping[str, LoadedRun], stored: gr.State) -> None:
  """Adds the components of one run or two to the current tab.

  Args:
    by_title: the runs by their titles.
    stored: the stored image of the visitor, [size, size, rgb] uint8.
  """
  runs = list(by_title.values())
  agreement = gr.Markdown(visible=len(runs) > 1)
  outputs: list[Any] = [agreement]
  with gr.Row():
    for title in by_title:
      with gr.Column(min_width=300):
        bars = gr.Label(label=f'{title}: most probable classes', num_top_classes=loaded_run.NUM_CLASSES)
        crops = gr.HTML(label='Crops')
        table = gr.Dataframe(headers=['crop', 'mirrored', 'class', 'probability'], interactive=False, label='Each crop')
        outputs += [bars, crops, table]
  stored.change(reported(functools.partial(_predict, runs)), stored, outputs)
  with gr.Accordion('Several photographs', open=False):
    files = gr.File(file_count='multiple', label='Photographs')
    headers = ['file', *(f'{column} {title}' for title in by_title for column in ('class,', 'probability,'))]
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
    outputs += [classes, _draw_crops(image, crops, run.model.config.image_size), rows]
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


def _draw_crops(image: np.ndarray, crops: Sequence[cropping.Crop], size: int) -> str:
  """Draws the frames of the crops, with their numbers, into an image [side, side, rgb] uint8; returns HTML.

  The image is part of the HTML: Gradio would write the frames, which are the same for all images, to the same files for
  all visitors, and send a visitor a file that is being written for another.
  """
  side, font = len(image), len(image) / 16
  numbers: dict[tuple[int, int], list[str]] = {}
  for number, crop in enumerate(crops, 1):
    numbers.setdefault((int(crop.left), int(crop.top)), []).append(str(number))
  frames = []
  for index, (corner, found) in enumerate(numbers.items()):
    fractions = [start / (side - size) if side > size else 0 for start in corner]  # of the way to the last position
    x, y = (start + f * size + (1 - 2 * f) * 3 * font for start, f in zip(corner, fractions, strict=True))
    hue, anchor = 360 * index // len(numbers), ('start', 'middle', 'end')[round(2 * fractions[0])]
    frames.append(
      f'<rect x="{corner[0]}" y="{corner[1]}" width="{size}" height="{size}" stroke="hsl({hue} 90% 60%)"/>'
      f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="hsl({hue} 90% 60%)" stroke="black" paint-order="stroke">'
      f'{", ".join(found)}</text>'
    )
  return CROPS.format(
    side=side, image=encode_image_array_to_base64(image), font=font, line=side / 128, frames=''.join(frames)
  )


def _predict_files(runs, paths):
  """Returns a row for each file: its name, and each run's best class and probability."""
  rows = []
  if len(paths or ()) > MAX_FILES:
    gr.Warning(f'Only the first {MAX_FILES} files are classified; python main.py --mode=predict classifies any number.')
  for path in map(pathlib.Path, (paths or ())[:MAX_FILES]):
    try:
      image = image_io.read_square(path, runs[0].model.stored_size, exif=True)
    except ValueError as error:
      rows.append([path.name, f'cannot be read: {error}', *[''] * (2 * len(runs) - 1 + (len(runs) > 1))])
      continue
    best = [next(iter(_predict_one(run, image)[0].items())) for run in runs]
    differ = ['yes' if len({name for name, _ in best}) > 1 else 'no'] if len(runs) > 1 else []
    rows.append([path.name, *(value for name, share in best for value in (name, _percent(share))), *differ])
  return rows
