"""A map of the training set: images whose activations are alike are near each other."""

import pathlib
from typing import NamedTuple

import numpy as np

from alexnet_jax.analysis import training_neighbours
from alexnet_jax.data import image_io
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.explore import mosaic
from alexnet_jax.explore.mosaic import Mosaic

MAX_IMAGES = 1500  # of larger training sets, a random sample is drawn


class TrainingMap(NamedTuple):
  """The map, with its images.

  Attributes:
    picture: the images at their positions; a channel of the mosaic is a row of `indices`.
    source: the training split.
    indices: [image] int64, indices in the split.
    explained: fraction of the variance that the two axes explain, 0 to 1.
  """

  picture: Mosaic
  source: Source
  indices: np.ndarray
  explained: float


def draw(model: TrainedModel, run: pathlib.Path, layer: str) -> TrainingMap:
  """Draws training images at the first two principal components of their activations.

  The arguments and errors are those of `training_neighbours.find`.
  """
  source, train = training_neighbours.open_training_set(model, run, layer)
  rows = np.random.default_rng(0).permutation(len(train.features))[:MAX_IMAGES]
  rows.sort()  # the features are on the disk
  positions, explained = principal_components(np.asarray(train.features[rows]).reshape(len(rows), -1))
  indices = training_neighbours.image_indices(train)[rows]
  images = np.stack([image_io.resize_and_crop(image, mosaic.TILE) for image, _ in source.read(indices.tolist())])
  return TrainingMap(mosaic.draw_scatter(images, positions), source, indices, explained)


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, float]:
  """Projects rows to their first two principal components.

  Args:
    rows: [row, feature] float32, two rows or more.

  Returns:
    Projections [row, 2] float64, and the fraction of the variance that they explain; 0 if all rows are equal.
  """
  centred = rows - rows.mean(axis=0, dtype=np.float64)
  variances, vectors = np.linalg.eigh(centred @ centred.T)  # in ascending order
  largest = variances[:-3:-1]
  return vectors[:, :-3:-1] * np.sqrt(np.maximum(largest, 0)), float(largest.sum() / (variances.sum() or 1))
