"""What pictures show: the five best classes of each image file, as a table, as JSON, or drawn (figure 4, left)."""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.data import image_io, transforms
from alexnet_jax.evaluation import evaluate, metrics
from alexnet_jax.evaluation.trained_model import TrainedModel, load
from alexnet_jax.models import towers
from alexnet_jax.runtime.errors import RunError, UsageError

NUM_SHOWN = 5  # classes of each picture
MOST_DRAWN = 40  # pictures on one page
BATCH_SIZE = 32
DRAWN = ('.png', '.svg', '.pdf')


class Prediction(NamedTuple):
  """What a network says of an image file.

  Attributes:
    path: of the file.
    image: [size, size, rgb] uint8, as the network was given it.
    log_probs: [class] float32, nats.
  """

  path: pathlib.Path
  image: np.ndarray
  log_probs: np.ndarray


def predict_files(
  paths: Sequence[str],
  folder: pathlib.Path,
  config: ConfigDict,
  output: str | None = None,
  draw: Callable[[Sequence['Prediction'], Sequence[str], pathlib.Path], None] | None = None,
) -> int:
  """Prints the five best classes of image files, and writes them where that is asked for.

  Args:
    paths: files, folders and patterns, see `images.find`.
    folder: of the run whose newest checkpoint is asked.
    config: `eval.ten_view` says whether it looks at ten views or at the centre; a network that was trained without
      mirror images (`augment.mirror`) looks at the centre, since half of the views are such. `mesh` says on which
      devices.
    output: FILE.json; or FILE.png, .svg or .pdf for at most 40 images with their classes.
    draw: draws predictions, given the class names, to an image file; required for such an `output`.

  Returns:
    How many files were skipped because they cannot be read; each is named on stderr.

  Raises:
    UsageError: if there is no such run or no picture, or `output` is of another kind.
    RunError: if none of the pictures can be read, or `output` cannot be written.
  """
  suffix = pathlib.Path(output).suffix.lower() if output else ''
  if output and suffix not in ('.json', *DRAWN):
    raise UsageError(f'--output={output} must end in .json, {", ".join(DRAWN[:-1])} or {DRAWN[-1]}.')
  if not paths:
    raise UsageError('name pictures: files, folders, or patterns in quotes.')
  found = image_io.find_images(paths)
  if suffix in DRAWN and len(found) > MOST_DRAWN:
    raise UsageError(f'{output} would show {len(found):,} pictures; draw {MOST_DRAWN} or fewer, or write a .json.')
  batch_size = min(BATCH_SIZE, len(found))
  trained = load(folder, batch_size=batch_size, num_data=config.mesh.data or 1, num_tower=config.mesh.tower)
  crop_set = evaluate.crop_sets(config)[-1] if config.augment.mirror else 'centre'
  skipped, drawn, listed = [], [], []
  for prediction in predict(trained, found, crop_set, batch_size, skipped):
    best = metrics.best_classes(prediction.log_probs[None], NUM_SHOWN)[0].tolist()
    classes = [(trained.class_names[label], float(np.exp(prediction.log_probs[label]))) for label in best]
    tqdm.tqdm.write('\n'.join((str(prediction.path), *(f'  {100 * p:5.1f} %  {name}' for name, p in classes))))
    listed.append({'file': str(prediction.path), 'classes': [{'class': name, 'probability': p} for name, p in classes]})
    if suffix in DRAWN:
      drawn.append(prediction)
  for sentence in skipped:
    print(f'skipped {sentence}', file=sys.stderr)
  if not listed:
    raise RunError(f'none of the {len(found):,} pictures can be read.')
  try:
    if suffix == '.json':
      pathlib.Path(output).write_text(json.dumps({'pictures': listed, 'skipped': skipped}, indent=2) + '\n')
    elif suffix:
      draw(drawn, trained.class_names, pathlib.Path(output))
  except OSError as error:
    raise RunError(f'{output} cannot be written ({error.strerror}).') from error
  return len(skipped)


def predict(
  trained: TrainedModel, paths: Sequence[pathlib.Path], crop_set: str, batch_size: int, skipped: list[str]
) -> Iterator[Prediction]:
  """Asks a network about image files, one batch after the other.

  Args:
    trained: the network.
    paths: of the files.
    crop_set: 'centre', 'ten_view' or 'nine_view'.
    batch_size: how many it is asked about at a time.
    skipped: takes a sentence for each file that cannot be read.

  Yields:
    A prediction for each file that can be read, in order.
  """
  size = trained.stored_size
  batch, names = np.zeros((batch_size, size, size, 3), np.uint8), []

  def ask():
    log_probs = towers.to_host(
      trained.mesh, trained.log_probs(batch, transforms.TEST_TIME_CROPS[crop_set](trained.config.border))
    )
    for path, image, row in zip(names, batch.copy(), log_probs, strict=False):  # the last batch may not be full
      yield Prediction(path, image, row)

  for path in tqdm.tqdm(paths, unit=' pictures', leave=False, disable=len(paths) <= batch_size):
    try:
      batch[len(names)] = image_io.read_square(path, size)
    except ValueError as error:
      skipped.append(f'{path}: {error}')
      continue
    names.append(path)
    if len(names) == batch_size:
      yield from ask()
      names = []
  if names:
    yield from ask()
