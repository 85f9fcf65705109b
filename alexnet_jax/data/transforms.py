"""Data augmentation (section 4.1) and the crops of an evaluation.

The functions draw and compute crops and colour shifts. The pipeline cuts out the crops; mirroring and shifting happen
on the device, where mirroring is free. On the host it costs more than decoding a JPEG.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict


class Crop(NamedTuple):
  """A crop of an image, or the crops of several images if the fields are arrays [image].

  Attributes:
    top: first row.
    left: first column.
    mirrored: whether the crop is mirrored horizontally.
  """

  top: int | np.integer | np.ndarray
  left: int | np.integer | np.ndarray
  mirrored: bool | np.bool_ | np.ndarray


def centre_crop(margin: int) -> Crop:
  """Returns the centre crop.

  Args:
    margin: difference between the sides of image and crop in pixels, 32 in the paper.
  """
  return Crop(margin // 2, margin // 2, False)


def draw_augmentation(
  rng: np.random.Generator, num_images: int, covariance: np.ndarray, colour_std: float, config: ConfigDict
) -> tuple[Crop, dict[str, np.ndarray]]:
  """Draws the augmentation of a batch; the host cuts out the crops, and the device does the rest.

  Args:
    rng: source of all draws.
    num_images: number of images.
    covariance: [rgb, rgb] covariance of the training pixels, 0-255.
    colour_std: standard deviation of the colour shift's random variables; 0 for no shift.
    config: the whole config.

  Returns:
    The crops, with arrays [num_images], and the arrays [num_images, ...] that `step.train_step` takes in addition to
    images and labels.
  """
  crops = random_crops(rng, num_images, config.augment, config.model.border)
  colours = colour_shifts(rng, num_images, covariance, colour_std)
  mean_crops = mean_crop(crops, config.model.centre_mean, config.model.border)
  scale = 1 / (1 + colour_std) if config.augment.colour_rescale else 1
  return crops, {
    'mirrored': np.asarray(crops.mirrored),
    'mean_offset': np.stack(mean_crops[:2], axis=1),
    'mean_mirrored': np.asarray(mean_crops.mirrored),
    'colour': colours,
    'scale': np.full(num_images, scale, np.float32),
  }


def random_crops(rng: np.random.Generator, num_images: int, config: ConfigDict, margin: int) -> Crop:
  """'Extracting random 224 x 224 patches (and their horizontal reflections)'; the config can switch off either.

  Args:
    rng: generator of the draws. The draws do not depend on what is switched off.
    num_images: number of images.
    config: the `augment` part of a config. The paper's 32 `offsets` on each axis, 0 to 31, and reflections make
      32 * 32 * 2 = 2048 crops. The code of 2012 had 33 offsets, 0 to 32, and used the same crop for 32 consecutive
      images, `shared_by` (facts, section 2).
    margin: difference between the sides of image and crop in pixels.

  Returns:
    Crops with fields [image]: int32, int32 and bool.
  """
  num_groups = -(-num_images // config.shared_by)
  top, left = rng.integers(0, config.offsets, (2, num_groups), np.int32)
  mirrored = rng.integers(0, 2, num_groups).astype(bool)
  if not config.crop:
    centre = centre_crop(margin)
    top, left = np.full_like(top, centre.top), np.full_like(left, centre.left)
  if not config.mirror:
    mirrored = np.zeros_like(mirrored)
  return Crop(*(np.repeat(field, config.shared_by)[:num_images] for field in (top, left, mirrored)))


def mean_crop(crop: Crop, centre_mean: bool, margin: int) -> Crop:
  """Returns the crop of the mean image that is subtracted from a crop of an image.

  The paper subtracts the mean from the whole image before it is cropped (section 2), so the mean image is cropped and
  mirrored like the image. The code of 2012 subtracted the centre crop of the mean image from every crop, mirrored or
  not (facts, section 2).

  Args:
    crop: crop of the image, or crops of several.
    centre_mean: whether to subtract the centre crop of the mean image as in 2012.
    margin: difference between the sides of image and crop in pixels.
  """
  if not centre_mean:
    return crop
  return Crop(*(np.full_like(field, centre) for field, centre in zip(crop, centre_crop(margin), strict=True)))


def colour_shifts(rng: np.random.Generator, num_images: int, covariance: np.ndarray, std: float) -> np.ndarray:
  """'Altering the intensities of the RGB channels': draws one shift for all pixels of an image.

  Paper: it multiplies each principal component by its eigenvalue times a random variable of standard deviation 0.1.
  For pixels in 0-255 that would shift by a thousand grey levels. Like the 2012 code we multiply by the standard
  deviation along the component instead, the square root of the eigenvalue (facts, section 2). The covariance of the
  shifts is therefore std ** 2 times that of the pixels.

  Args:
    rng: generator of the three random variables of each image.
    num_images: number of images.
    covariance: [rgb, rgb] float64 covariance of all pixels of the training set, 0-255.
    std: standard deviation of the random variables, 0.1 in the paper.

  Returns:
    [image, rgb] float32, to be added to every pixel.
  """
  eigenvalues, eigenvectors = np.linalg.eigh(covariance)
  alpha = rng.normal(0.0, std, (num_images, 3))
  return ((alpha * np.sqrt(np.maximum(eigenvalues, 0.0))) @ eigenvectors.T).astype(np.float32)


def centre_crop_only(margin: int) -> tuple[Crop, ...]:
  """Returns the centre crop as a crop set."""
  return (centre_crop(margin),)


def nine_crops(margin: int) -> tuple[Crop, ...]:
  """Returns a 3 x 3 grid of crops, none of them mirrored, as cuda-convnet used for CIFAR-10 (facts, section 3)."""
  offsets = (0, margin // 2, margin)
  return tuple(Crop(top, left, False) for top in offsets for left in offsets)


def ten_crops(margin: int) -> tuple[Crop, ...]:
  """'Five patches (the four corner patches and the center patch) as well as their horizontal reflections'."""
  offsets = [(0, 0), (0, margin), (margin, 0), (margin, margin), centre_crop(margin)[:2]]
  return tuple(Crop(top, left, mirrored) for mirrored in (False, True) for top, left in offsets)


# The crop sets of an evaluation: functions of the crop margin, and titles in logs and tables.
TEST_TIME_CROPS = {'centre': centre_crop_only, 'ten_view': ten_crops, 'nine_view': nine_crops}
CROP_SET_TITLES = {'centre': 'centre', 'ten_view': 'ten crops', 'nine_view': 'nine crops'}
