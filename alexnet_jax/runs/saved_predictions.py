"""Predictions for a split, saved in the folder of the run: `DIR/predictions/DATASET-SPLIT/CROP_SET/`.

about.json      dataset with its fingerprint and its selected classes, split, crop set ('protocol') and training step of
                the network
log_probs.npy   [image, class] float32, nats; nan for an image that could not be read
labels.npy      [image] int32, -1 if unknown, -2 for an image that could not be read

They are read as memory maps, because log-probabilities of 50,000 images in 1000 classes take 200 MB. The folder appears
only once it is complete.
"""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from alexnet_jax.runs import run_folder
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.runtime.growing_array import GrowingArray

Block = tuple[np.ndarray, np.ndarray]  # log-probabilities [image, class] float32, labels [image] int32
BLOCK_BYTES = 1 << 26


class SavedPredictions(NamedTuple):
  """The predictions of a network for every image of a split, in order.

  Attributes:
    log_probs: [image, class] float32, nats; memory-mapped.
    labels: [image] int32, -1 if unknown, `metrics.SKIPPED` for an image that could not be read.
    num_steps: number of training steps of the network.
  """

  log_probs: np.ndarray
  labels: np.ndarray
  num_steps: int

  def blocks(self) -> Iterator[Block]:
    """Yields the predictions in order, in blocks of up to 64 MiB."""
    num_rows = max(1, BLOCK_BYTES // (4 * self.log_probs.shape[1]))
    for first in range(0, len(self.labels), num_rows):
      yield np.asarray(self.log_probs[first : first + num_rows]), self.labels[first : first + num_rows]


class PredictionFiles(NamedTuple):
  """The files of the predictions for a split.

  Attributes:
    run_folder: folder of the run.
    dataset: dataset with its version, such as 'ilsvrc/2012/1.0.0'.
    split: split in TFDS's notation, such as 'validation'.
    crop_set: 'centre', 'ten_view' or 'nine_view'.
    fingerprint: of the dataset, see `Source.fingerprint`; None for that of any predictions to load.
    classes: names of the selected classes, in the order of their labels; empty for all classes of the dataset.
  """

  run_folder: pathlib.Path
  dataset: str
  split: str
  crop_set: str
  fingerprint: str | None = None
  classes: tuple[str, ...] = ()

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the files."""
    return self.run_folder / 'predictions' / run_folder.file_name(f'{self.dataset}-{self.split}') / self.crop_set

  def _about(self):
    fields = {'dataset': self.dataset, 'fingerprint': self.fingerprint, 'classes': list(self.classes)}
    return fields | {'split': self.split, 'protocol': self.crop_set}

  def load(self) -> SavedPredictions | None:
    """Loads the predictions; returns None if they are missing, damaged or of other data."""
    try:
      about = json.loads((self.folder / 'about.json').read_text())
      log_probs = np.load(self.folder / 'log_probs.npy', mmap_mode='r', allow_pickle=False)
      labels = np.array(np.load(self.folder / 'labels.npy', mmap_mode='r', allow_pickle=False))
      is_same = all(about.get(name, value) == value for name, value in self._about().items() if value is not None)
      num_images, num_classes = log_probs.shape
      is_complete = labels.shape == (num_images,) and (log_probs.dtype, labels.dtype) == (np.float32, np.int32)
      is_valid = is_complete and ((labels >= -2) & (labels < num_classes)).all() and isinstance(about['step'], int)
      return SavedPredictions(log_probs, labels, about['step']) if is_same and is_valid else None
    except Exception:  # on damaged files numpy and json raise errors of many types
      return None

  def save(self, blocks: Iterable[Block], num_steps: int, shape: tuple[int, int]) -> None:
    """Saves predictions, replacing older ones.

    Args:
      blocks: predictions for all images, in the order of the split.
      num_steps: number of training steps of the network.
      shape: number of images, number of classes.

    Raises:
      RunError: if they cannot be written; older predictions are retained.
    """
    partial = self.folder.with_name(f'.{self.folder.name}.{os.getpid()}')
    try:
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      with (
        contextlib.closing(GrowingArray(partial / 'log_probs.npy', shape[1:], np.float32)) as log_probs,
        contextlib.closing(GrowingArray(partial / 'labels.npy', (), np.int32)) as labels,
      ):
        for block_log_probs, block_labels in blocks:
          log_probs.append(block_log_probs)
          labels.append(block_labels)
      (partial / 'about.json').write_text(json.dumps(self._about() | {'step': num_steps}, indent=2) + '\n')
      shutil.rmtree(self.folder, ignore_errors=True)
      partial.rename(self.folder)
    except OSError as error:
      raise RunError(f'predictions cannot be written to {self.folder} ({error.strerror}).') from error
    finally:
      shutil.rmtree(partial, ignore_errors=True)
