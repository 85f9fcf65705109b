"""A map of the training set: images whose activations are alike are near each other."""

import importlib.util
import pathlib
from typing import NamedTuple

import numpy as np

from alexnet_jax.analysis import training_neighbours
from alexnet_jax.data import image_io
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.explore import mosaic
from alexnet_jax.explore.mosaic import Mosaic
from alexnet_jax.runtime import extras

MAX_IMAGES = 1500  # of larger training sets, a random sample is drawn
MAX_VALUES = 2**22  # of the block of activations that is in memory in double precision
PRINCIPAL_COMPONENTS, UMAP = 'principal components', 'UMAP'
NUM_COMPONENTS = 50  # that UMAP reads


class TrainingMap(NamedTuple):
  """The map, with its images.

  Attributes:
    picture: the images at their positions; a channel of the mosaic is a row of `indices`.
    source: the training split.
    indices: [image] int64, indices in the split.
    explained: fraction of the variance that the two axes explain, or that UMAP reads, 0 to 1.
  """

  picture: Mosaic
  source: Source
  indices: np.ndarray
  explained: float


def draw(model: TrainedModel, run: pathlib.Path, layer: str, projection: str = PRINCIPAL_COMPONENTS) -> TrainingMap:
  """Draws training images where a projection maps their activations, or their pixels.

  The other arguments and the errors are those of `training_neighbours.find`. `projection` is one of `projections()`.
  """
  dataset = training_neighbours.open_training_set(model, run)
  source, train_rows, indices = training_neighbours.open_training_rows(model, run, layer, dataset)
  rows = np.random.default_rng(0).permutation(len(train_rows))[:MAX_IMAGES]
  rows.sort()  # activations are on the disk
  positions, explained = project(train_rows[rows].reshape(len(rows), -1), projection)
  indices = indices[rows]
  images = np.stack([image_io.resize_and_crop(image, mosaic.TILE) for image, _ in source.read(indices.tolist())])
  return TrainingMap(mosaic.draw_scatter(images, positions), source, indices, explained)


def projections() -> list[str]:
  """Returns the names of the projections: principal components and, if the package umap-learn is installed, UMAP."""
  return [PRINCIPAL_COMPONENTS, *([UMAP] if importlib.util.find_spec('umap') else [])]


def project(rows: np.ndarray, projection: str) -> tuple[np.ndarray, float]:
  """Projects rows to two dimensions.

  Args:
    rows: [row, feature] float32, two rows or more.
    projection: one of `projections()`. UMAP reads the first 50 principal components.

  Returns:
    Positions [row, 2], and the fraction of the variance that the principal components explain.
  """
  if projection == PRINCIPAL_COMPONENTS:
    return principal_components(rows)
  components, explained = principal_components(rows, NUM_COMPONENTS)
  umap = extras.resolve('umap:UMAP')  # imported in seconds
  return umap(random_state=0, n_jobs=1).fit_transform(components), explained


def principal_components(rows: np.ndarray, num_components: int = 2) -> tuple[np.ndarray, float]:
  """Projects rows to their first principal components.

  Args:
    rows: [row, feature] float32, two rows or more.
    num_components: number of components, at most the number of rows.

  Returns:
    Projections [row, component] float64, and the fraction of the variance that they explain; 0 if all rows are equal.
  """
  products = np.zeros((len(rows), len(rows)))
  num_columns = max(MAX_VALUES // len(rows), 1)
  for first in range(0, rows.shape[1], num_columns):
    block = rows[:, first : first + num_columns].astype(np.float64)
    block -= block.mean(axis=0)
    products += block @ block.T
  variances, vectors = (array[..., ::-1][..., :num_components] for array in np.linalg.eigh(products))
  total = np.trace(products) or 1
  return vectors * np.sqrt(np.maximum(variances, 0)), float(variances.sum() / total)
