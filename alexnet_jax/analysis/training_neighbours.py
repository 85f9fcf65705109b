"""The training images of a run that are nearest to other images in the activations of a layer (figure 4, right)."""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from alexnet_jax.analysis import features
from alexnet_jax.analysis.features import Features
from alexnet_jax.analysis.neighbours import find_nearest
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation.trained_model import IMAGES_PER_DEVICE, TrainedModel
from alexnet_jax.runtime.errors import UsageError


class TrainingNeighbours(NamedTuple):
  """The nearest training images of each query, nearest first.

  Attributes:
    images: [query, k, size, size, rgb] uint8.
    labels: [query, k] int32.
    distances: [query, k] float64, Euclidean distances of the activations.
  """

  images: np.ndarray
  labels: np.ndarray
  distances: np.ndarray


def find(
  model: TrainedModel, run: pathlib.Path, images: np.ndarray, layer: str, k: int, data_dir: str | None = None
) -> TrainingNeighbours:
  """Finds the k nearest training images of each image.

  The activations of the training images are computed once and saved to RUN/features/.

  Args:
    model: the network.
    run: folder of its run.
    images: stored images [query, size, size, rgb] uint8.
    layer: layer whose activations are compared.
    k: number of neighbours.
    data_dir: folder of the datasets; None for the run's.

  Raises:
    UsageError: if there is no such layer or dataset, or `k` is not 1 to the number of training images.
    RunError: as `features.extract` or `find_nearest`.
  """
  source, train = open_training_set(model, run, layer, data_dir)
  if not 1 <= k <= len(train.features):
    raise UsageError(f'--k={k} must be 1 to {len(train.features):,}, the number of training images.')
  queries = model.in_batches(lambda batch: model.activations(batch, layer), images)
  rows, distances = find_nearest(queries, train.features, k)
  indices = image_indices(train)
  examples = [source.read_batch(indices[query_rows].tolist()) for query_rows in rows]
  near_images, near_labels = map(np.stack, zip(*examples, strict=True))
  return TrainingNeighbours(near_images, near_labels, distances)


def image_indices(train: Features) -> np.ndarray:
  """Returns the index of each row's image in its split, [row] int64; skipped images have no row."""
  return np.array([int(name.rpartition('/')[2]) for name in train.names])


def open_training_set(
  model: TrainedModel, run: pathlib.Path, layer: str, data_dir: str | None = None
) -> tuple[Source, Features]:
  """Opens the training split of a run with its features, which are extracted and saved first if necessary.

  The arguments and errors are those of `find`.
  """
  model.check_layer(layer)
  batch_size = IMAGES_PER_DEVICE * model.mesh.shape['data']
  dataset = features.open_dataset(run, model.stored_size, directory=data_dir, batch_size=batch_size)
  name = f'{layer}-step{model.num_steps}-{dataset.about["dataset"]}-{dataset.about["split"]}'
  folder = run / 'features' / re.sub(r'[^A-Za-z0-9._-]+', '_', name)
  if not folder.exists():
    print(f'Saving {layer} of the training images to {folder}', flush=True)
    features.extract(model, dataset, layer, run, folder)
  return dataset.source, features.load(folder)
