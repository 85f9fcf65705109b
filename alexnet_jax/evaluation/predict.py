"""Classification of image files: their five most probable classes, as text, JSON or a figure (figure 4, left)."""

import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.data import cropping, image_io
from alexnet_jax.evaluation import metrics
from alexnet_jax.evaluation.trained_model import TrainedModel, load
from alexnet_jax.models import device_mesh
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError

NUM_CLASSES_SHOWN = 5  # per image
MAX_IMAGES_DRAWN = 40
BATCH_SIZE = 32
FIGURE_SUFFIXES = ('.png', '.svg', '.pdf')


class Prediction(NamedTuple):
  """The prediction for an image file.

  Attributes:
    path: path of the file.
    image: stored image [size, size, rgb] uint8.
    log_probs: [class] float32, nats.
  """

  path: pathlib.Path
  image: np.ndarray
  log_probs: np.ndarray


Draw = Callable[[Sequence[Prediction], Sequence[str], pathlib.Path], None]


def predict_files(
  paths: Sequence[str],
  folder: pathlib.Path,
  config: ConfigDict,
  output: str | None = None,
  draw: Draw | None = None,
  exif: bool = False,
) -> int:
  """Prints the five most probable classes of image files, and optionally writes them to a file.

  Args:
    paths: files, folders and patterns, see `image_io.find_images`.
    folder: folder of the run, whose newest checkpoint is used.
    config: the whole config. Its `mesh` part selects the devices; see `cropping.prediction_crop_set` for the crops.
    output: file to write: .json; or .png, .svg or .pdf, for 40 images or fewer.
    draw: function that draws predictions, given the class names, to a file; required if `output` is a figure.
    exif: whether to rotate images as their EXIF data specifies.

  Returns:
    Number of files that could not be read; they are listed on stderr.

  Raises:
    UsageError: if there is no such run or image, or `output` has another suffix.
    RunError: if no image can be read, or `output` cannot be written.
  """
  output_path = pathlib.Path(output) if output else None
  images = _find_images(paths, output_path)
  num_data = config.mesh.data or 1
  batch_size = math.ceil(min(BATCH_SIZE, len(images)) / num_data) * num_data
  model = load(folder, batch_size=batch_size, num_data=num_data, num_tower=config.mesh.tower)
  crop_set = cropping.prediction_crop_set(config)
  skipped: list[str] = []
  predictions: list[Prediction] = []
  rows = []
  for prediction in predict(model, images, crop_set, batch_size, skipped, exif):
    rows.append(_best_classes(prediction, model.class_names))
    lines = (f'  {100 * row["probability"]:5.1f} %  {row["class"]}' for row in rows[-1]['classes'])
    tqdm.tqdm.write('\n'.join((rows[-1]['file'], *lines)))
    if output_path and output_path.suffix.lower() in FIGURE_SUFFIXES:
      predictions.append(prediction)
  for message in skipped:
    print(f'skipped {message}', file=sys.stderr)
  if not rows:
    raise RunError(f'none of the {len(images):,} images can be read.')
  try:
    if output_path and predictions:
      assert draw is not None
      draw(predictions, model.class_names, output_path)
    elif output_path:
      atomic_files.write_text(output_path, json.dumps({'pictures': rows, 'skipped': skipped}, indent=2) + '\n')
  except OSError as error:
    raise RunError(f'{output} cannot be written ({error.strerror}).') from error
  return len(skipped)


def _find_images(paths, output_path):
  """Returns the paths of the images; raises `UsageError` if there are none, or `output_path` does not fit them."""
  suffix = output_path.suffix.lower() if output_path else '.json'
  if suffix not in ('.json', *FIGURE_SUFFIXES):
    *others, last = ('.json', *FIGURE_SUFFIXES)
    raise UsageError(f'--output={output_path} must end in {", ".join(others)} or {last}.')
  if output_path and not output_path.parent.is_dir():
    raise UsageError(f'--output={output_path} cannot be written, because its folder does not exist; make it first.')
  if not paths:
    raise UsageError('name images: files, folders, or quoted patterns.')
  images = image_io.find_images(paths)
  if suffix in FIGURE_SUFFIXES and len(images) > MAX_IMAGES_DRAWN:
    raise UsageError(
      f'{output_path} would show {len(images):,} images; name {MAX_IMAGES_DRAWN} or fewer, or write a .json file.'
    )
  return images


def _best_classes(prediction, class_names):
  """Returns the file and its most probable classes as written to JSON."""
  best = metrics.best_classes(prediction.log_probs[None], NUM_CLASSES_SHOWN)[0].tolist()
  classes = [{'class': class_names[label], 'probability': float(np.exp(prediction.log_probs[label]))} for label in best]
  return {'file': str(prediction.path), 'classes': classes}


def predict(
  model: TrainedModel,
  paths: Sequence[pathlib.Path],
  crop_set: str,
  batch_size: int,
  skipped: list[str],
  exif: bool = False,
) -> Iterator[Prediction]:
  """Classifies image files, batch by batch.

  Args:
    model: the trained network.
    paths: paths of the files.
    crop_set: 'centre', 'ten_view' or 'nine_view'.
    batch_size: number of images per batch.
    skipped: list to which a message is appended for each file that cannot be read.
    exif: whether to rotate images as their EXIF data specifies.

  Yields:
    The predictions for the readable files, in order.
  """
  size = model.stored_size
  batch = np.zeros((batch_size, size, size, 3), np.uint8)
  batch_paths: list[pathlib.Path] = []
  crops = cropping.TEST_TIME_CROPS[crop_set](model.config.border)
  model = model.arranged()

  def predict_batch():
    log_probs = device_mesh.to_host(model.mesh, model.log_probs(batch, crops))
    for path, image, row in zip(batch_paths, batch.copy(), log_probs, strict=False):  # the last batch may not be full
      yield Prediction(path, image, row)

  for path in tqdm.tqdm(paths, unit=' images', leave=False, disable=len(paths) <= batch_size):
    try:
      batch[len(batch_paths)] = image_io.read_square(path, size, exif)
    except ValueError as error:
      skipped.append(f'{path}: {error}')
      continue
    batch_paths.append(path)
    if len(batch_paths) == batch_size:
      yield from predict_batch()
      batch_paths = []
  if batch_paths:
    yield from predict_batch()
