import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import augment

IMAGENET_COVARIANCE = np.cov(np.random.default_rng(7).normal(size=(3, 50)) * 60)


def draw(count, **settings):
  config = ConfigDict(dict(crop=True, mirror=True, offsets=32) | settings)
  rng = np.random.default_rng(0)
  return [augment.random_view(rng, config) for _ in range(count)]


@pytest.mark.parametrize('num_offsets', [32, 33])
def test_offsets_are_uniform(num_offsets):
  offsets = np.array([view[:2] for view in draw(num_offsets * 2000, offsets=num_offsets)])
  for axis in range(2):
    counts = np.bincount(offsets[:, axis])
    assert len(counts) == num_offsets  # from 0: with reflections the paper's 32 * 32 * 2 = 2048, or 2178 as in 2012
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000))  # five standard deviations
  assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.02


def test_half_of_the_images_are_reflected():
  assert abs(np.mean([view.mirrored for view in draw(10_000)]) - 0.5) < 0.02


def test_what_is_switched_off_is_not_drawn():
  assert {view[:2] for view in draw(100, crop=False)} == {(16, 16)}
  assert not any(view.mirrored for view in draw(100, mirror=False))


def test_the_mean_image_is_cut_like_the_image_or_at_its_centre():
  view = augment.View(3, 30, True)
  assert augment.mean_view(view, centre_mean=False) == view
  assert augment.mean_view(view, centre_mean=True) == (16, 16, False)


@pytest.mark.parametrize('std', [0.1, 0.3])
def test_colour_shift_has_std_squared_times_the_covariance_of_the_pixels(std):
  rng = np.random.default_rng(0)
  shifts = np.stack([augment.colour_shift(rng, IMAGENET_COVARIANCE, std) for _ in range(40_000)])
  assert shifts.dtype == np.float32
  expected = std**2 * IMAGENET_COVARIANCE
  np.testing.assert_allclose(shifts.mean(0), 0, atol=4 * np.sqrt(expected.diagonal().max() / len(shifts)))
  np.testing.assert_allclose(np.cov(shifts.T), expected, atol=0.03 * expected.max())


def test_colour_shift_of_the_2012_statistics_is_about_twelve_grey_levels():
  """Facts, section 2: deviations 19.7, 37.1 and 121.8; the shift along the main axis has deviation 12.2."""
  vectors = np.array([[0.41796, -0.81698, 0.39731], [-0.71258, -0.02354, 0.70120], [-0.56351, -0.57618, -0.59200]])
  covariance = vectors.T @ np.diag(np.square([19.7208, 37.0939, 121.7801])) @ vectors
  rng = np.random.default_rng(0)
  shifts = np.stack([augment.colour_shift(rng, covariance, 0.1) for _ in range(20_000)])
  np.testing.assert_allclose((shifts @ vectors.T).std(0), [1.97208, 3.70939, 12.17801], rtol=0.03)


def test_grey_data_shifts_all_channels_alike():
  shift = augment.colour_shift(np.random.default_rng(0), np.full((3, 3), 900.0), 0.1)
  np.testing.assert_allclose(shift, shift[0], rtol=1e-5)
  assert np.all(augment.colour_shift(np.random.default_rng(0), np.full((3, 3), 900.0), 0.0) == 0)


def test_a_cut_is_the_patch_at_its_offset():
  image = np.arange(256 * 256 * 3).reshape(256, 256, 3)
  patch = augment.cut(image, augment.View(31, 5, False), 224)
  assert patch.shape == (224, 224, 3)
  np.testing.assert_array_equal(patch[0, 0], image[31, 5])
  np.testing.assert_array_equal(patch[-1, -1], image[254, 228])
  np.testing.assert_array_equal(augment.cut(image, augment.View(31, 5, True), 224), patch[:, ::-1])


def test_the_ten_views_are_four_corners_and_the_centre_and_their_reflections():
  views = augment.ten_views()
  assert len(set(views)) == 10
  assert {(v.top, v.left) for v in views} == {(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)}
  assert sum(v.mirrored for v in views) == 5
  assert augment.centre_view() == (augment.View(16, 16, False),)
