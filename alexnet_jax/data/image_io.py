"""Decodes and encodes image files, and resizes images to squares (section 2); numpy, Pillow and simplejpeg only."""

import glob
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageOps
import simplejpeg

from alexnet_jax.runtime.errors import UsageError, first_line

# The formats of photographs. Pillow opens others too, some with external programs such as Ghostscript.
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM', 'JPEG2000', 'AVIF')
MAX_PIXELS = 89_000_000  # a larger image is rejected as a decompression bomb; Pillow warns a little above this
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS  # pixels times scans: each scan of a progressive JPEG visits the whole image
START_OF_SCAN = b'\xff\xda'
JPEG_COLOURSPACES = ('YCbCr', 'Gray', 'RGB')  # those that libjpeg-turbo converts to RGB; Pillow converts CMYK


def find_images(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
  """Finds the image files that paths, folders and patterns denote.

  Args:
    paths: files with any name; folders, which are searched recursively for files that are named like images and not
      hidden; and patterns such as 'photos/*.jpg' or '**/*.png'.

  Returns:
    Each file once, in the order of `paths`; files of the same folder or pattern are sorted.

  Raises:
    UsageError: if a path does not exist or contains no image.
  """
  images = []
  for path in map(pathlib.Path, paths):
    if os.path.isdir(path):  # False for a name that is too long, unlike pathlib's is_dir
      files = sorted(
        file for file in path.rglob('*') if _is_named_like_an_image(file.relative_to(path)) and file.is_file()
      )
    elif os.path.exists(path):
      files = [path]
    else:
      matches = map(pathlib.Path, sorted(glob.glob(str(path), recursive=True)))
      files = [match for match in matches if match.is_file()]
    if not files:
      reason = 'contains no image' if os.path.isdir(path) else 'does not exist'
      raise UsageError(f"{path} {reason}; name image files, folders of images, or patterns such as 'photos/*.jpg'.")
    images += files
  return list(dict.fromkeys(images))


def _is_named_like_an_image(path):
  PIL.Image.init()  # registers the file name extensions of all formats
  image_format = PIL.Image.EXTENSION.get(path.suffix.lower())
  return image_format in FORMATS and not any(part.startswith('.') for part in path.parts)


Image: TypeAlias = str | os.PathLike | np.ndarray | PIL.Image.Image  # as a user passes it


def is_one_image(images: Image | Iterable[Image]) -> bool:
  """Returns whether an argument is a single image, and not several."""
  return isinstance(images, str | os.PathLike | PIL.Image.Image) or getattr(images, 'ndim', 4) != 4


class StoredImages:
  """Images of a user, resized like stored images when they are indexed by a slice: [image, size, size, rgb] uint8."""

  def __init__(self, images: Sequence[Image], size: int):
    """Takes the images, which are read later.

    Args:
      images: paths of image files, arrays [height, width, rgb] uint8, or images of Pillow, of any size.
      size: side of the stored images in pixels.
    """
    self._images, self._size = images, size

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads and resizes images.

    Raises:
      UsageError: if a file or an image of Pillow cannot be read, or an array is no image.
    """
    return np.stack([self._read(image) for image in self._images[rows]])

  def _read(self, image):
    if isinstance(image, str | os.PathLike):
      try:
        return read_square(pathlib.Path(image), self._size)
      except ValueError as error:
        raise UsageError(f'{os.fspath(image)} cannot be read: {error}; choose another image.') from error
    pixels = _decode_pillow(image) if isinstance(image, PIL.Image.Image) else np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
      raise UsageError(
        f'an image is a {pixels.dtype} array of the shape {pixels.shape} and should be [height, width, rgb] uint8, '
        '0-255.'
      )
    return resize_and_crop(pixels, self._size)


def read_square(path: pathlib.Path, size: int, exif: bool = False) -> np.ndarray:
  """Reads an image file and resizes it like a stored image.

  Args:
    path: image file of any common format.
    size: side of the square image in pixels.
    exif: whether to apply the EXIF rotation, see `decode`.

  Returns:
    [size, size, rgb] uint8.

  Raises:
    ValueError: if the file cannot be read or decoded; the message is the reason.
  """
  try:
    encoded = path.read_bytes()
  except OSError as error:
    raise ValueError(error.strerror or str(error)) from error
  return resize_and_crop(decode(encoded, exif=exif), size)


def decode(encoded: bytes, buffer: np.ndarray | None = None, exif: bool = False) -> np.ndarray:
  """Decodes an image file of any common format to RGB.

  Grey is repeated in three channels, as in the 2012 code (facts, section 2), and Pillow converts CMYK and palettes. Of
  16 bits the upper eight remain. Transparency is dropped, and an animation becomes its first frame. Datasets ignore the
  EXIF rotation. libjpeg-turbo decodes an intact JPEG directly, to the same pixels as Pillow in 0.4 of the time.
  Decoding only the crop would save a sixth, but no library that offers it decodes the whole image as fast.

  Args:
    encoded: contents of the file.
    buffer: uint8 array. If it is at least as large as the image, a JPEG is decoded into it and the result is a view.
    exif: whether to rotate and mirror the image as its EXIF data specifies, for photographs of phones.

  Returns:
    [height, width, rgb] uint8.

  Raises:
    ValueError: if the file cannot be decoded; the message is the reason.
  """
  if encoded[:2] == b'\xff\xd8' and not exif:
    try:
      height, width, colourspace, _ = simplejpeg.decode_jpeg_header(encoded)
      _check_size(width, height, encoded)
      if colourspace in JPEG_COLOURSPACES:
        if buffer is not None and buffer.size < height * width * 3:
          buffer = None
        return simplejpeg.decode_jpeg(encoded, 'RGB', buffer=buffer)
    except ValueError:  # Pillow, below, tolerates more damage; the size is checked there too
      pass
  try:
    if encoded[:4] == b'RIFF' and encoded[8:12] == b'WEBP':
      _check_size(*_webp_size(encoded))  # before Pillow allocates memory
    with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      _check_size(image.width, image.height, encoded if image.format in ('JPEG', 'MPO') else b'')
      return _to_rgb(PIL.ImageOps.exif_transpose(image) if exif else image)
  except Exception as error:  # on damaged files Pillow raises errors of many types
    is_unknown = isinstance(error, PIL.UnidentifiedImageError)
    raise ValueError('not an image in a known format' if is_unknown else first_line(error)) from error


def _decode_pillow(image):
  """Decodes an image of Pillow, which reads the pixels of a file only now."""
  try:
    return _to_rgb(image)
  except Exception as error:  # on damaged files Pillow raises errors of many types
    raise UsageError(f'{image} cannot be decoded: {first_line(error)}; choose another image.') from error


def _check_size(width, height, jpeg=b''):
  num_pixels = width * height
  if num_pixels > MAX_PIXELS:
    raise ValueError(f'{width} x {height} pixels are more than the maximum of {MAX_PIXELS:,}')
  # Most files are too short for so many scans; counting them takes a twentieth of the time of decoding.
  if num_pixels * (len(jpeg) // len(START_OF_SCAN)) <= MAX_SCANNED_PIXELS:
    return
  num_scans = jpeg.count(START_OF_SCAN)
  if num_pixels * num_scans > MAX_SCANNED_PIXELS:
    raise ValueError(f'{num_scans:,} scans of {width} x {height} pixels are more than a genuine image requires')


def _webp_size(encoded):
  """Returns width and height from the header of the first chunk of a WebP file."""

  def read_integer(start, stop):
    return int.from_bytes(encoded[start:stop], 'little')

  kind = encoded[12:16]
  if kind == b'VP8X':
    return read_integer(24, 27) + 1, read_integer(27, 30) + 1
  if kind == b'VP8L':
    bits = read_integer(21, 25)
    return bits % 2**14 + 1, (bits >> 14) % 2**14 + 1
  return read_integer(26, 28) % 2**14, read_integer(28, 30) % 2**14


def _to_rgb(image):
  if image.mode.startswith(('I', 'F')):  # Pillow would clip at 255
    grey = np.nan_to_num(np.asarray(image, np.float32))
    is_deep = image.mode.startswith('I;16') or grey.max() > 255
    grey = np.clip(grey / 256 if is_deep else grey, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
  if image.mode == 'P' and 'transparency' in image.info:
    image = image.convert('RGBA')
  return np.asarray(image.convert('RGB'))


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes the short side to `size` and crops the centre (section 2).

  Shrinks by averaging areas and enlarges by cubic interpolation (facts, section 2). Only the central square is resized.

  Args:
    image: [height, width, rgb] uint8.
    size: side of the square image in pixels.

  Returns:
    [size, size, rgb] uint8; a view if the short side is `size` already.
  """
  height, width = image.shape[:2]
  short = min(height, width)
  if short == size:
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
  top, left = (height - short) / 2, (width - short) / 2
  resample = PIL.Image.Resampling.BOX if short > size else PIL.Image.Resampling.BICUBIC
  box = (left, top, left + short, top + short)
  return np.asarray(PIL.Image.fromarray(image).resize((size, size), resample, box))


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
  """Encodes an image as a JPEG file, with colours at half the resolution as is usual.

  Args:
    image: [height, width, rgb] uint8.
    quality: 1 to 100 on libjpeg's scale; the names of the 2012 folders suggest 85 (facts, section 2).

  Returns:
    Contents of the file.
  """
  return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, 'RGB', '420')


def encode_png(image: np.ndarray) -> bytes:
  """Encodes an image [height, width, rgb] uint8 as a PNG file, without loss."""
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()
