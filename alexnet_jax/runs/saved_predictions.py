"""What a network predicted for a split, kept in the folder of its run: `DIR/predictions/DATASET-SPLIT/PROTOCOL/`.

about.json      dataset, split, protocol, and the step of the network
log_probs.npy   [image, class] float32, nats; no numbers for an image that could not be read
labels.npy      [image] int32, -1 where none is known, -2 for an image that could not be read

The files are read where they lie (1000 classes of 50,000 images take 200 MB); they hold all images, or are not there.
"""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from alexnet_jax.runtime.errors import RunError

Block = tuple[np.ndarray, np.ndarray]  # log-probabilities [image, class] float32, labels [image] int32
BLOCK_BYTES = 1 << 26


class SavedPredictions(NamedTuple):
  """What a network predicted, image by image.

  Attributes:
    log_probs: [image, class] float32, nats; read from the disk when it is looked at.
    labels: [image] int32, -1 where none is known, `scores.SKIPPED` for an image that could not be read.
    num_steps: steps that the network was trained for.
  """

  log_probs: np.ndarray
  labels: np.ndarray
  num_steps: int

  def blocks(self) -> Iterator[Block]:
    """Goes through the images in order, as many at a time as take 64 MiB."""
    num_rows = max(1, BLOCK_BYTES // (4 * self.log_probs.shape[1]))
    for first in range(0, len(self.labels), num_rows):
      yield np.asarray(self.log_probs[first : first + num_rows]), self.labels[first : first + num_rows]


def load(folder: pathlib.Path, dataset: str, split: str, crop_set: str) -> SavedPredictions | None:
  """Returns what is kept in the folder of a run, or None.

  Args:
    folder: of the run.
    dataset: such as 'ilsvrc/2012/1.0.0'.
    split: such as 'validation'.
    protocol: 'centre', 'ten_view' or 'nine_view'.
  """
  place = _place(folder, dataset, split, crop_set)
  try:
    about = json.loads((place / 'about.json').read_text())
    log_probs = np.load(place / 'log_probs.npy', mmap_mode='r', allow_pickle=False)
    labels = np.load(place / 'labels.npy', allow_pickle=False)
    is_asked_for = (about['dataset'], about['split'], about['protocol']) == (dataset, split, crop_set)
    is_whole = log_probs.ndim == 2 and labels.shape == log_probs.shape[:1]
    return SavedPredictions(log_probs, labels, about['step']) if is_asked_for and is_whole else None
  except Exception:  # broken files lead the readers to raise whatever they come upon
    return None


def save(
  blocks: Iterable[Block],
  folder: pathlib.Path,
  *,
  dataset: str,
  split: str,
  crop_set: str,
  num_steps: int,
  shape: tuple[int, int],
) -> SavedPredictions:
  """Keeps predictions in the folder of a run, in place of older ones.

  Args:
    blocks: the predictions, image by image in the order of the split.
    folder: of the run.
    dataset: such as 'ilsvrc/2012/1.0.0'.
    split: such as 'validation'.
    protocol: 'centre', 'ten_view' or 'nine_view'.
    num_steps: steps that the network was trained for.
    shape: (images, classes).

  Raises:
    RunError: if they cannot be written; what was there before stays.
  """
  place = _place(folder, dataset, split, crop_set)
  partial = place.with_name(f'.{place.name}.{os.getpid()}')
  try:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log_probs = np.lib.format.open_memmap(partial / 'log_probs.npy', 'w+', np.float32, shape)
    labels, done = np.empty(shape[0], np.int32), 0
    for some_log_probs, some_labels in blocks:
      rows = slice(done, done + len(some_labels))
      log_probs[rows], labels[rows] = some_log_probs, some_labels
      done = rows.stop
    log_probs.flush()
    np.save(partial / 'labels.npy', labels)
    about = {'dataset': dataset, 'split': split, 'protocol': crop_set, 'step': num_steps}
    (partial / 'about.json').write_text(json.dumps(about, indent=2) + '\n')
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
  except OSError as error:
    raise RunError(f'predictions cannot be written to {place} ({error.strerror}).') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return SavedPredictions(log_probs, labels, num_steps)


def _place(folder, dataset, split, crop_set):
  return folder / 'predictions' / re.sub(r'[^A-Za-z0-9._-]+', '_', f'{dataset}-{split}') / crop_set
