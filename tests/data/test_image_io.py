import io
import warnings

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import image_io
from alexnet_jax.runtime.errors import UsageError


@pytest.mark.parametrize(
  ('height', 'width', 'size'), [(300, 500, 256), (500, 300, 256), (256, 256, 256), (256, 400, 256)]
)
def test_the_short_side_is_resized_and_the_centre_is_cropped(height, width, size):
  """For a linear gradient the resized and cropped image is known exactly."""
  rows, columns = np.mgrid[:height, :width]
  image = np.stack([rows, columns, rows + columns], -1) / (height + width) * 255
  result = image_io.resize_and_crop(image.astype(np.uint8), size)
  assert result.shape == (size, size, 3)
  short, scale = min(height, width), min(height, width) / size
  y, x = (
    (np.arange(size) + 0.5) * scale - 0.5 + (height - short) / 2,
    (np.arange(size) + 0.5) * scale - 0.5 + (width - short) / 2,
  )
  expected = np.stack(np.broadcast_arrays(y[:, None], x, y[:, None] + x), -1) / (height + width) * 255
  assert np.abs(result[4:-4, 4:-4] - expected[4:-4, 4:-4]).max() < 1.5


def test_small_images_are_interpolated_and_large_images_are_averaged():
  checkerboard = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
  averaged = image_io.resize_and_crop(np.repeat(checkerboard[:, :, None], 3, 2), 256)
  assert set(np.unique(averaged)) <= {127, 128}
  step = np.zeros((8, 8, 3), np.uint8)
  step[:, 4:] = 200
  enlarged = image_io.resize_and_crop(step, 256)
  assert enlarged.max() > 200  # cubic interpolation overshoots at an edge; linear does not


def encode(image, image_format, **options):
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK', 'P', 'RGBA', '1'])
def test_images_of_every_mode_become_rgb(mode):
  image = PIL.Image.new('RGB', (5, 4), (200, 40, 90)).convert(mode)
  pixels = image_io.decode(encode(image, 'JPEG' if mode == 'CMYK' else 'PNG'))
  assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)
  expected = np.asarray(image.convert('RGB'))
  assert np.abs(pixels.astype(int) - expected).max() <= 3


def photograph(size=(60, 50)):
  return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)).resize(size[::-1])


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'subsampling': 0, 'quality': 95}])
def test_a_jpeg_is_decoded_to_the_same_pixels_as_by_pillow(mode, options):
  file = encode(photograph().convert(mode), 'JPEG', **options)
  expected = np.asarray(PIL.Image.open(io.BytesIO(file)).convert('RGB'))
  np.testing.assert_array_equal(image_io.decode(file), expected)


@pytest.mark.parametrize(('size', 'is_used'), [((60, 50), True), ((60, 51), True), ((59, 50), False)])
def test_a_jpeg_is_decoded_into_a_buffer_that_is_large_enough(size, is_used):
  file, buffer = encode(photograph(), 'JPEG'), np.zeros((*size, 3), np.uint8)
  pixels = image_io.decode(file, buffer)
  np.testing.assert_array_equal(pixels, image_io.decode(file))
  assert np.shares_memory(pixels, buffer) == is_used


def test_sixteen_bits_become_the_upper_eight():
  grey = np.linspace(0, 65535, 256 * 256).reshape(256, 256).astype(np.uint16)
  for brightness in (1, 300):  # a dark image stays dark
    pixels = image_io.decode(encode(PIL.Image.fromarray(grey // brightness), 'PNG'))
    np.testing.assert_array_equal(pixels, np.repeat((grey // brightness >> 8)[:, :, None], 3, 2))


UNDECODABLE = {
  'broken.png': 'not an image in a known format',
  'broken_data_stream.png': 'unrecognized data stream',
  'decompression_bomb.gif': 'bomb',
  'truncated_end_chunk.png': 'Truncated',
  'truncated_jpeg.jpg': 'truncated',
  'zero_width.gif': 'not an image in a known format',
}


def test_hostile_files_become_rgb_or_raise_the_expected_error(shared_data):
  paths = sorted((shared_data / 'hostile_images').iterdir())
  assert len(paths) == 28
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for path in paths:
      if path.name in UNDECODABLE:
        with pytest.raises(ValueError, match=UNDECODABLE[path.name]):
          image_io.decode(path.read_bytes())
      else:
        pixels = image_io.decode(path.read_bytes())
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert image_io.resize_and_crop(pixels, 32).shape == (32, 32, 3)


def test_images_with_too_many_pixels_are_rejected(monkeypatch):
  monkeypatch.setattr(image_io, 'MAX_PIXELS', 60 * 50 - 1)
  for image_format in ('JPEG', 'PNG'):
    with pytest.raises(ValueError, match='50 x 60 pixels are more than the maximum of 2,999'):
      image_io.decode(encode(photograph(), image_format))


def test_an_encoded_image_is_decoded_to_almost_the_same_pixels():
  smooth = np.stack(np.broadcast_arrays(np.arange(64)[:, None] * 3, np.arange(64) * 3, 100), -1).astype(np.uint8)
  files = {quality: image_io.encode_jpeg(smooth, quality) for quality in (50, 85, 100)}
  assert len(files[50]) < len(files[85]) < len(files[100])
  assert np.abs(image_io.decode(files[85]).astype(int) - smooth).mean() < 2


def test_photographs_are_decoded(shared_data):
  photographs = sorted((shared_data / 'imagenette_subset').glob('val/*/*.JPEG'))[::10]
  assert len(photographs) == 70
  for path in photographs:
    assert image_io.resize_and_crop(image_io.decode(path.read_bytes()), 256).shape == (256, 256, 3)


def test_files_folders_and_patterns_yield_each_image_once(tmp_path):
  for name in ('b.JPEG', 'a.png', 'deep/er/c.webp', 'notes.txt', '.hidden/d.jpg', '._a.png', 'video.mp4', 'odd[1].jpg'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  images = [tmp_path / name for name in ('a.png', 'b.JPEG', 'deep/er/c.webp', 'odd[1].jpg')]
  assert image_io.find_images([tmp_path]) == images
  assert image_io.find_images([str(tmp_path / 'b.JPEG'), tmp_path]) == [images[1], images[0], *images[2:]]
  assert image_io.find_images([tmp_path / '*.p*', tmp_path / '**/*.webp']) == [images[0], images[2]]
  assert image_io.find_images([tmp_path / 'notes.txt', tmp_path / 'odd[1].jpg']) == [tmp_path / 'notes.txt', images[3]]
  (tmp_path / 'empty').mkdir()
  for wrong, reason in (('empty', 'contains no image'), ('nowhere', 'does not exist'), ('*.bmp', 'does not exist')):
    with pytest.raises(UsageError, match=reason):
      image_io.find_images([tmp_path / 'a.png', tmp_path / wrong])


def test_a_file_is_read_like_a_stored_image(tmp_path):
  path = tmp_path / 'photograph'
  path.write_bytes(encode(photograph(), 'JPEG'))
  np.testing.assert_array_equal(
    image_io.read_square(path, 32), image_io.resize_and_crop(image_io.decode(path.read_bytes()), 32)
  )
  path.write_bytes(b'no image')
  with pytest.raises(ValueError, match='not an image'):
    image_io.read_square(path, 32)
  with pytest.raises(ValueError, match='No such file'):
    image_io.read_square(tmp_path / 'nowhere', 32)
