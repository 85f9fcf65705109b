"""Data augmentation, one function for each sentence of section 4.1; numpy only."""

from typing import NamedTuple

import numpy as np

BORDER = 32  # pixels between the stored image and the crop, 256 - 224 in the paper


def random_offset(rng: np.random.Generator, border: int = BORDER) -> np.ndarray:
  """'Extracting random 224 x 224 patches': draws a patch's first row and column.

  Returns:
    [2] int32, each 0 to border - 1: 32 x 32 x 2 reflections is the paper's factor of 2048.
  """
  return rng.integers(0, border, size=2, dtype=np.int32)


def centre_offset(border: int = BORDER) -> np.ndarray:
  """The centre patch: [2] int32."""
  return np.full(2, border // 2, np.int32)


def crop(image: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
  """Cuts a patch [size, size, rgb] out of an image [height, width, rgb]."""
  top, left = offset
  return image[top : top + size, left : left + size]


def random_reflection(rng: np.random.Generator) -> bool:
  """'And their horizontal reflections': true for one image in two."""
  return bool(rng.integers(2))


def colour_shift(rng: np.random.Generator, covariance: np.ndarray, std: float) -> np.ndarray:
  """'Altering the intensities of the RGB channels': one shift for all pixels of an image.

  Paper: it multiplies each principal component by its eigenvalue times a random variable of standard deviation 0.1.
  In 0-255 that would shift by a thousand grey levels; like the 2012 code we take the standard deviation along the
  component, the root of the eigenvalue (facts, section 2). So the shifts have std ** 2 times the pixels' covariance.

  Args:
    rng: source of the three random variables.
    covariance: [rgb, rgb] float64 of all pixels of the training set, 0-255.
    std: standard deviation of the random variables, 0.1 in the paper.

  Returns:
    [rgb] float32, to be added to every pixel.
  """
  eigenvalues, eigenvectors = np.linalg.eigh(covariance)
  alpha = rng.normal(0.0, std, size=3)
  return (eigenvectors @ (alpha * np.sqrt(np.maximum(eigenvalues, 0.0)))).astype(np.float32)


class View(NamedTuple):
  """Where a test patch lies: first row, first column, and whether it is mirrored."""

  top: int
  left: int
  mirrored: bool


def centre_view(border: int = BORDER) -> tuple[View, ...]:
  """The centre patch alone."""
  return (View(*centre_offset(border), False),)


def ten_views(border: int = BORDER) -> tuple[View, ...]:
  """'Five patches (the four corner patches and the center patch) as well as their horizontal reflections'."""
  positions = [(0, 0), (0, border), (border, 0), (border, border), tuple(centre_offset(border))]
  return tuple(View(top, left, mirrored) for mirrored in (False, True) for top, left in positions)
