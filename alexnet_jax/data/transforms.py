"""Data augmentation, one function for each sentence of section 4.1; numpy only.

Mirroring itself is done on the device, which does it for nothing; on a host it costs more than decoding a JPEG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ml_collections import ConfigDict

if TYPE_CHECKING:
  from ml_collections import ConfigDict


class Crop(NamedTuple):
  """A patch of an image, or, with arrays [image] for fields, one of each of several images.

  Attributes:
    top: first row.
    left: first column.
    mirrored: whether it is mirrored left to right.
  """

  top: int | np.ndarray
  left: int | np.ndarray
  mirrored: bool | np.ndarray


def centre_crop(border: int) -> Crop:
  """The centre patch of images that are so many pixels larger than it, 32 in the paper."""
  return Crop(border // 2, border // 2, False)


def random_crops(rng: np.random.Generator, count: int, config: ConfigDict, border: int) -> Crop:
  """'Extracting random 224 x 224 patches (and their horizontal reflections)', each as far as the config wants it.

  Args:
    rng: source of the draws, which are the same whatever is switched off.
    count: images.
    config: the `augment` part of a config. With 32 `offsets` on each axis, 0 to 31, and reflections there are
      32 * 32 * 2 = 2048 views, the paper's factor; the code of 2012 had 33, 0 to 32, and one view for every 32
      consecutive images, `shared_by` (facts, section 2).
    border: pixels by which the images are larger than the patches.

  Returns:
    A view [count] with int32, int32 and bool.
  """
  num_groups = -(-count // config.shared_by)
  top, left = rng.integers(0, config.offsets, (2, num_groups), np.int32)
  mirrored = rng.integers(0, 2, num_groups).astype(bool)
  if not config.crop:
    top, left = np.full_like(top, centre_crop(border).top), np.full_like(left, centre_crop(border).left)
  if not config.mirror:
    mirrored = np.zeros_like(mirrored)
  return Crop(*(np.repeat(draw, config.shared_by)[:count] for draw in (top, left, mirrored)))


def mean_crop(crop: Crop, centre_mean: bool, border: int) -> Crop:
  """Says which part of the mean image is subtracted from a view.

  The paper subtracts the mean from the whole image before patches are cut out (section 2): so the part that lies under
  the view, mirrored like it. The code of 2012 subtracted the centre of the mean image from every patch, mirrored or not
  (facts, section 2).
  """
  if not centre_mean:
    return crop
  return Crop(*(np.full_like(own, place) for own, place in zip(crop, centre_crop(border), strict=True)))


def colour_shifts(rng: np.random.Generator, count: int, covariance: np.ndarray, std: float) -> np.ndarray:
  """'Altering the intensities of the RGB channels': one shift for all pixels of an image.

  Paper: it multiplies each principal component by its eigenvalue times a random variable of standard deviation 0.1.
  In 0-255 that would shift by a thousand grey levels; like the 2012 code we take the standard deviation along the
  component, the root of the eigenvalue (facts, section 2). So the shifts have std ** 2 times the pixels' covariance.

  Args:
    rng: source of the three random variables of each image.
    count: images.
    covariance: [rgb, rgb] float64 of all pixels of the training set, 0-255.
    std: standard deviation of the random variables, 0.1 in the paper.

  Returns:
    [count, rgb] float32, to be added to every pixel.
  """
  eigenvalues, eigenvectors = np.linalg.eigh(covariance)
  alpha = rng.normal(0.0, std, (count, 3))
  return ((alpha * np.sqrt(np.maximum(eigenvalues, 0.0))) @ eigenvectors.T).astype(np.float32)


def centre_crop_only(border: int) -> tuple[Crop, ...]:
  """The centre patch alone."""
  return (centre_crop(border),)


def nine_crops(border: int) -> tuple[Crop, ...]:
  """Nine patches at three heights and three breadths, none mirrored, as cuda-convnet did for CIFAR-10 (facts, 3)."""
  places = (0, border // 2, border)
  return tuple(Crop(top, left, False) for top in places for left in places)


def ten_crops(border: int) -> tuple[Crop, ...]:
  """'Five patches (the four corner patches and the center patch) as well as their horizontal reflections'."""
  positions = [(0, 0), (0, border), (border, 0), (border, border), centre_crop(border)[:2]]
  return tuple(Crop(top, left, mirrored) for mirrored in (False, True) for top, left in positions)


TEST_TIME_CROPS = {
  'centre': centre_crop_only,
  'ten_view': ten_crops,
  'nine_view': nine_crops,
}


CROP_SET_TITLES = {'centre': 'centre', 'ten_view': 'ten views', 'nine_view': 'nine views'}
