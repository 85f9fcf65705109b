import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.data import transforms

IMAGENET_COVARIANCE = np.cov(np.random.default_rng(7).normal(size=(3, 50)) * 60)


def draw_crops(num_images, **settings):
  config = ConfigDict(dict(crop=True, mirror=True, offsets=32, shared_by=1) | settings)
  return transforms.random_crops(np.random.default_rng(0), num_images, config, 32)


@pytest.mark.parametrize('num_offsets', [32, 33])
def test_offsets_are_uniform(num_offsets):
  crops = draw_crops(num_offsets * 2000, offsets=num_offsets)
  for offsets in crops[:2]:
    assert offsets.dtype == np.int32
    counts = np.bincount(offsets)
    assert len(counts) == num_offsets  # from 0: with reflections the paper's 32 * 32 * 2 = 2048, or 2178 as in 2012
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000))  # five standard deviations
  assert abs(np.corrcoef(crops.top, crops.left)[0, 1]) < 0.02


def test_half_of_the_crops_are_mirrored():
  assert abs(np.mean(draw_crops(10_000).mirrored) - 0.5) < 0.02


def test_switching_off_an_augmentation_does_not_change_the_other_draws():
  crops = draw_crops(100)
  centred, unmirrored = draw_crops(100, crop=False), draw_crops(100, mirror=False)
  assert np.all(centred.top == 16)
  assert np.all(centred.left == 16)
  np.testing.assert_array_equal(centred.mirrored, crops.mirrored)
  assert not unmirrored.mirrored.any()
  np.testing.assert_array_equal(unmirrored.top, crops.top)


@pytest.mark.parametrize('shared_by', [1, 4, 32])
def test_consecutive_images_share_a_crop(shared_by):
  crops = np.stack(draw_crops(100, shared_by=shared_by))
  assert crops.shape == (3, 100)
  groups = [crops[:, i : i + shared_by] for i in range(0, 100, shared_by)]
  assert all(np.all(group == group[:, :1]) for group in groups)
  assert len({tuple(group[:, 0]) for group in groups}) > 0.9 * len(groups)


def test_the_mean_image_is_cropped_like_the_image_or_at_its_centre():
  crop = transforms.Crop(3, 30, True)
  assert transforms.mean_crop(crop, False, 32) == crop
  assert transforms.mean_crop(crop, True, 32) == (16, 16, False)
  mean_crops = transforms.mean_crop(draw_crops(5), True, 32)
  assert [field.dtype for field in mean_crops] == [np.int32, np.int32, bool]
  assert np.stack(mean_crops, 1).tolist() == [[16, 16, 0]] * 5


@pytest.mark.parametrize('std', [0.1, 0.3])
def test_the_covariance_of_colour_shifts_is_std_squared_times_that_of_the_pixels(std):
  rng = np.random.default_rng(0)
  shifts = transforms.colour_shifts(rng, 40_000, IMAGENET_COVARIANCE, std)
  assert shifts.dtype == np.float32
  expected = std**2 * IMAGENET_COVARIANCE
  np.testing.assert_allclose(shifts.mean(0), 0, atol=4 * np.sqrt(expected.diagonal().max() / len(shifts)))
  np.testing.assert_allclose(np.cov(shifts.T), expected, atol=0.03 * expected.max())


def test_colour_shifts_of_the_2012_statistics_are_about_twelve_grey_levels():
  """Facts, section 2: standard deviations 19.7, 37.1 and 121.8; that of the shift along the main axis is 12.2."""
  vectors = np.array([[0.41796, -0.81698, 0.39731], [-0.71258, -0.02354, 0.70120], [-0.56351, -0.57618, -0.59200]])
  covariance = vectors.T @ np.diag(np.square([19.7208, 37.0939, 121.7801])) @ vectors
  rng = np.random.default_rng(0)
  shifts = transforms.colour_shifts(rng, 20_000, covariance, 0.1)
  np.testing.assert_allclose((shifts @ vectors.T).std(0), [1.97208, 3.70939, 12.17801], rtol=0.03)


def test_grey_images_shift_all_channels_equally():
  shifts = transforms.colour_shifts(np.random.default_rng(0), 5, np.full((3, 3), 900.0), 0.1)
  np.testing.assert_allclose(shifts, shifts[:, :1].repeat(3, 1), rtol=1e-5)
  assert np.all(transforms.colour_shifts(np.random.default_rng(0), 5, np.full((3, 3), 900.0), 0.0) == 0)


def test_the_ten_crops_are_the_four_corners_the_centre_and_their_reflections():
  crops = transforms.ten_crops(32)
  assert len(set(crops)) == 10
  assert {(crop.top, crop.left) for crop in crops} == {(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)}
  assert sum(crop.mirrored for crop in crops) == 5
  assert transforms.centre_crop_only(32) == (transforms.Crop(16, 16, False),)


def test_crops_of_227_pixels_have_other_offsets():
  """In images of 256 pixels the offsets are 0 to 29 (facts, 1.3), and 14 is the centre, rounded as in Caffe."""
  offsets = {(crop.top, crop.left) for crop in transforms.ten_crops(29)}
  assert offsets == {(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)}
  assert transforms.centre_crop_only(29) == (transforms.Crop(14, 14, False),)
  assert transforms.mean_crop(transforms.Crop(3, 29, True), True, 29) == (14, 14, False)
  config = ConfigDict(dict(crop=False, mirror=True, offsets=30, shared_by=1))
  assert np.all(transforms.random_crops(np.random.default_rng(0), 5, config, 29).top == 14)
