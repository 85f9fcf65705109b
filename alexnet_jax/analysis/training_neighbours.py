"""The training images of a run that are nearest to other images in a layer (figure 4, right), or in the pixels."""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from alexnet_jax.analysis import features
from alexnet_jax.analysis.features import DatasetImages
from alexnet_jax.analysis.neighbours import Rows, find_nearest
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.trained_model import IMAGES_PER_DEVICE, TrainedModel
from alexnet_jax.runtime.errors import UsageError

PIXELS = 'pixels'  # instead of a layer


class TrainingNeighbours(NamedTuple):
  """The nearest training images of each query, nearest first.

  Attributes:
    images: [query, k, size, size, rgb] uint8.
    labels: [query, k] int32.
    distances: [query, k] float64, Euclidean distances of the activations, or of the pixels in grey levels.
  """

  images: np.ndarray
  labels: np.ndarray
  distances: np.ndarray


def find(
  model: TrainedModel, run: pathlib.Path, images: np.ndarray, layer: str, k: int, data_dir: str | None = None
) -> TrainingNeighbours:
  """Finds the k nearest training images of each image.

  The activations of the training images are computed once and saved to RUN/features/; pixels are read every time.

  Args:
    model: the network.
    run: folder of its run.
    images: stored images [query, size, size, rgb] uint8.
    layer: layer whose activations are compared, or 'pixels' for the pixels of the centre crops.
    k: number of neighbours.
    data_dir: folder of the datasets; None for the run's.

  Raises:
    UsageError: if there is no such layer or dataset, or `k` is not 1 to the number of training images.
    RunError: as `features.extract` or `find_nearest`.
  """
  dataset = open_training_set(model, run, data_dir)
  evaluate.check_classes(dataset.source, model.network.num_classes, run)
  _check_k(k, len(dataset))
  source, train_rows, indices = open_training_rows(model, run, layer, dataset)
  _check_k(k, len(train_rows))  # skipped images have no row
  rows, distances = find_nearest(represent(model, images, layer), train_rows, k)
  examples = [source.read_batch(indices[query_rows].tolist()) for query_rows in rows]
  near_images, near_labels = map(np.stack, zip(*examples, strict=True))
  return TrainingNeighbours(near_images, near_labels, distances)


def _check_k(k, num_images):
  if not 1 <= k <= num_images:
    raise UsageError(f'--k={k} must be 1 to {num_images:,}, the number of training images.')


def represent(model: TrainedModel, images: np.ndarray, layer: str) -> np.ndarray:
  """Computes what is compared: [image, ...] float32 activations of a layer, or pixels of the centre crops, 0-255."""
  if layer == PIXELS:
    return model.centre_crops(images).astype(np.float32)
  return model.in_batches(lambda batch: model.activations(batch, layer), images)


class TrainingRows(NamedTuple):
  """What the training images of a run are compared by.

  Attributes:
    source: the training split.
    rows: [image, ...] float32, memory-mapped, or read when they are indexed; skipped images have no row.
    indices: [image] int64, index of each row's image in the split.
  """

  source: Source
  rows: Rows
  indices: np.ndarray


class _Pixels:
  """The centre crops of a split, [image, size, size, rgb] float32, which are read when they are indexed."""

  def __init__(self, model: TrainedModel, source: Source):
    self._model, self._source = model, source
    size = model.config.image_size
    self.shape = len(source), size, size, 3

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    images, _ = self._source.read_batch(np.arange(len(self))[rows].tolist())
    return represent(self._model, images, PIXELS)


def open_training_set(model: TrainedModel, run: pathlib.Path, data_dir: str | None = None) -> DatasetImages:
  """Opens the training split of a run; the arguments and errors are those of `find`."""
  batch_size = IMAGES_PER_DEVICE * model.mesh.shape['data']
  return features.open_dataset(run, model.stored_size, directory=data_dir, batch_size=batch_size)


def open_training_rows(model: TrainedModel, run: pathlib.Path, layer: str, dataset: DatasetImages) -> TrainingRows:
  """Opens what the training images of a run are compared by; activations are computed and saved first if necessary.

  The arguments and errors are those of `find`.
  """
  if layer == PIXELS:
    return TrainingRows(dataset.source, _Pixels(model, dataset.source), np.arange(len(dataset)))
  model.check_layer(layer)
  data = dataset.about['dataset'], dataset.about['split'], dataset.about['fingerprint']
  name = '-'.join((layer, f'step{model.num_steps}', *data))
  folder = run / 'features' / re.sub(r'[^A-Za-z0-9._-]+', '_', name)
  if not folder.exists():
    print(f'Saving {layer} of the training images to {folder}', flush=True)
    features.extract(model, dataset, layer, run, folder)
  train = features.load(folder)
  indices = np.array([int(name.rpartition('/')[2]) for name in train.names])
  return TrainingRows(dataset.source, train.features, indices)
