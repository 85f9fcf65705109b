"""Stored images and their crops: that of a training image and of its mean, and the crop sets of an evaluation."""

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


def stored_size(config: ConfigDict) -> int:
  """Returns the side of stored images and of the mean image in pixels, 256 in the paper; `config` is `config.model`."""
  return config.image_size + config.border


def centre_crop(margin: int) -> Crop:
  """Returns the centre crop.

  Args:
    margin: difference between the sides of image and crop in pixels, 32 in the paper.
  """
  return Crop(margin // 2, margin // 2, False)


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


def list_crop_sets(config: ConfigDict) -> list[str]:
  """Returns the crop sets that the `eval` part of a config selects. Submissions use the last one."""
  return ['centre', *(name for name in ('ten_view', 'nine_view') if config.eval[name])]


def prediction_crop_set(config: ConfigDict) -> str:
  """Returns the crop set with which images of a user are classified, the last one that the config selects.

  A network trained without mirroring (`augment.mirror`) reads the centre crop, because half of the ten crops are
  mirrored.
  """
  return list_crop_sets(config)[-1] if config.augment.mirror else 'centre'
