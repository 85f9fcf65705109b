import numpy as np
import pytest

from alexnet_jax.data import transforms

IMAGENET_COVARIANCE = np.cov(np.random.default_rng(7).normal(size=(3, 50)) * 60)


def draw(transform, num_images):
  return transform.random_map({'index': np.arange(num_images)}, np.random.default_rng(0))


def draw_shifts(num_images, covariance, std):
  return draw(transforms.ColourShift(covariance, std), num_images)['colour']


@pytest.mark.parametrize('num_offsets', [32, 33])
def test_offsets_are_uniform(num_offsets):
  offsets = draw(transforms.RandomCrop(num_offsets), num_offsets * 2000)['offset']
  assert offsets.dtype == np.int32
  for offset in offsets.T:
    counts = np.bincount(offset)
    assert len(counts) == num_offsets  # from 0: with reflections the paper's 32 * 32 * 2 = 2048, or 2178 as in 2012
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000))  # five standard deviations
  assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.02


def test_half_of_the_crops_are_mirrored():
  mirrored = draw(transforms.RandomMirror(), 10_000)['mirrored']
  assert mirrored.dtype == bool
  assert abs(np.mean(mirrored) - 0.5) < 0.02
  assert not draw(transforms.RandomMirror(0.0), 10_000)['mirrored'].any()


@pytest.mark.parametrize('num_images', [1, 4, 32, 2**31 - 1])
def test_consecutive_images_share_a_draw(num_images):
  batch = {'index': np.arange(100), 'colour': np.arange(100)}
  for transform, name in ((transforms.RandomCrop(32), 'offset'), (transforms.RandomMirror(), 'mirrored')):
    shared = transforms.SharedBy(num_images, transform).random_map(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(shared['index'], batch['index'])
    np.testing.assert_array_equal(shared['colour'], batch['colour'])
    values = draw(transform, -(-100 // num_images))[name]  # of every group
    np.testing.assert_array_equal(shared[name], np.stack([values[row // num_images] for row in range(100)]))


@pytest.mark.parametrize('margin', [32, 29])
def test_the_centre_crop_and_its_mean_have_the_same_offset(margin):
  """In images of 256 pixels, crops of 227 pixels have offsets up to 29, and 14 is the centre, rounded as in Caffe."""
  batch = transforms.CentreCrop(margin).map({'index': np.arange(5), 'mirrored': np.ones(5, bool)})
  assert batch['offset'].dtype == np.int32
  assert batch['offset'].tolist() == [[margin // 2] * 2] * 5
  batch |= {'offset': draw(transforms.RandomCrop(margin), 5)['offset']}
  like_image, at_centre = (transforms.MeanCrop(centre_mean, margin).map(batch) for centre_mean in (False, True))
  np.testing.assert_array_equal(like_image['mean_offset'], batch['offset'])
  assert like_image['mean_mirrored'].all()
  assert at_centre['mean_offset'].tolist() == [[margin // 2] * 2] * 5
  assert not at_centre['mean_mirrored'].any()


@pytest.mark.parametrize('std', [0.1, 0.3])
def test_the_covariance_of_colour_shifts_is_std_squared_times_that_of_the_pixels(std):
  shifts = draw_shifts(40_000, IMAGENET_COVARIANCE, std)
  assert shifts.dtype == np.float32
  expected = std**2 * IMAGENET_COVARIANCE
  np.testing.assert_allclose(shifts.mean(0), 0, atol=4 * np.sqrt(expected.diagonal().max() / len(shifts)))
  np.testing.assert_allclose(np.cov(shifts.T), expected, atol=0.03 * expected.max())


def test_colour_shifts_of_the_2012_statistics_are_about_twelve_grey_levels():
  """Facts, section 2: standard deviations 19.7, 37.1 and 121.8; that of the shift along the main axis is 12.2."""
  vectors = np.array([[0.41796, -0.81698, 0.39731], [-0.71258, -0.02354, 0.70120], [-0.56351, -0.57618, -0.59200]])
  covariance = vectors.T @ np.diag(np.square([19.7208, 37.0939, 121.7801])) @ vectors
  shifts = draw_shifts(20_000, covariance, 0.1)
  np.testing.assert_allclose((shifts @ vectors.T).std(0), [1.97208, 3.70939, 12.17801], rtol=0.03)


def test_grey_images_shift_all_channels_equally():
  shifts = draw_shifts(5, np.full((3, 3), 900.0), 0.1)
  np.testing.assert_allclose(shifts, shifts[:, :1].repeat(3, 1), rtol=1e-5)
  assert np.all(draw_shifts(5, np.full((3, 3), 900.0), 0.0) == 0)
