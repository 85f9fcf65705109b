import numpy as np

from alexnet_jax.data import cropping


def test_the_mean_image_is_cropped_like_the_image_or_at_its_centre():
  crop = cropping.Crop(3, 30, True)
  assert cropping.mean_crop(crop, False, 32) == crop
  assert cropping.mean_crop(crop, True, 32) == (16, 16, False)
  crops = cropping.Crop(np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32), np.ones(5, bool))
  mean_crops = cropping.mean_crop(crops, True, 32)
  assert [field.dtype for field in mean_crops] == [np.int32, np.int32, bool]
  assert np.stack(mean_crops, 1).tolist() == [[16, 16, 0]] * 5


def test_the_ten_crops_are_the_four_corners_the_centre_and_their_reflections():
  crops = cropping.ten_crops(32)
  assert len(set(crops)) == 10
  assert {(crop.top, crop.left) for crop in crops} == {(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)}
  assert sum(crop.mirrored for crop in crops) == 5
  assert cropping.centre_crop_only(32) == (cropping.Crop(16, 16, False),)


def test_the_nine_crops_are_a_grid_without_reflections():
  assert cropping.nine_crops(8) == tuple(cropping.Crop(top, left, False) for top in (0, 4, 8) for left in (0, 4, 8))


def test_crops_of_227_pixels_have_other_offsets():
  """In images of 256 pixels the offsets are 0 to 29 (facts, 1.3), and 14 is the centre, rounded as in Caffe."""
  offsets = {(crop.top, crop.left) for crop in cropping.ten_crops(29)}
  assert offsets == {(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)}
  assert cropping.centre_crop_only(29) == (cropping.Crop(14, 14, False),)
  assert cropping.mean_crop(cropping.Crop(3, 29, True), True, 29) == (14, 14, False)
