"""Image files to RGB pixels and back, and the square that is stored (section 2). numpy, Pillow and simplejpeg only."""

import glob
import io
import pathlib
from collections.abc import Iterable

import numpy as np
import PIL.Image
import simplejpeg

from alexnet_jax.runtime.errors import UsageError

# Those in which photographs come. Pillow knows others, some of which it hands to other programs, such as Ghostscript.
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM', 'JPEG2000', 'AVIF')
MAX_PIXELS = 89_000_000  # larger ones are taken for decompression bombs; Pillow warns a little above this
MAX_SCANNED = 20 * MAX_PIXELS  # pixels times scans of a progressive JPEG: each goes over the whole picture again
START_OF_SCAN = b'\xff\xda'
PLAIN_JPEG = ('YCbCr', 'Gray', 'RGB')  # what libjpeg-turbo itself turns into RGB; Pillow knows about inks


def find_images(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
  """Finds the image files that a user means.

  Args:
    paths: files, whatever their names; folders, of which all files count that are named like images, at any depth and
      unless hidden; and patterns such as 'photos/*.jpg' or '**/*.png'.

  Returns:
    Each file once, those of a folder or pattern in the order of their names.

  Raises:
    UsageError: if a path is not there, or there is no image in it.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      inside = sorted(
        one for one in path.rglob('*') if _is_named_like_an_image(one.relative_to(path)) and one.is_file()
      )
    elif path.exists():
      inside = [path]
    else:
      inside = [pathlib.Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
      inside = [one for one in inside if one.is_file()]
    if not inside:
      reason = 'has no image in it' if path.is_dir() else 'does not exist'
      raise UsageError(f"{path} {reason}; name image files, folders of them, or patterns such as 'photos/*.jpg'.")
    found += inside
  return list(dict.fromkeys(found))


def _is_named_like_an_image(path):
  PIL.Image.init()  # Pillow then knows all its formats
  form = PIL.Image.EXTENSION.get(path.suffix.lower())
  return form in FORMATS and not any(part.startswith('.') for part in path.parts)


def read_square(path: pathlib.Path, size: int) -> np.ndarray:
  """Reads an image file as it would be stored in a dataset, [size, size, rgb] uint8.

  Raises:
    ValueError: saying why the file cannot be read or decoded.
  """
  try:
    encoded = path.read_bytes()
  except OSError as error:
    raise ValueError(error.strerror or str(error)) from error
  return resize_and_crop(decode(encoded), size)


def decode(encoded: bytes, buffer: np.ndarray | None = None) -> np.ndarray:
  """Decodes an image file of any common format to [height, width, rgb] uint8.

  Everything becomes RGB: grey by repetition, as in the 2012 code (facts, section 2), inks and palettes by Pillow's
  rules, 16 bits by their upper eight; transparency is dropped, an animation shows its first picture, and a rotation
  noted in EXIF is not applied. A JPEG in good order is decoded by libjpeg-turbo itself, in 0.4 of the time that Pillow
  takes, to the same pixels. (To decode the crop only would save a sixth; no library that offers it is as fast as this
  one is with the whole.)

  Args:
    encoded: the file.
    buffer: uint8, as large as the picture or larger; if given, a JPEG is decoded into it, and the result lies there.

  Raises:
    ValueError: saying why the file cannot be decoded.
  """
  if encoded[:2] == b'\xff\xd8':
    try:
      height, width, colourspace, _ = simplejpeg.decode_jpeg_header(encoded)
      _check_size(width, height, encoded.count(START_OF_SCAN))
      if colourspace in PLAIN_JPEG:
        if buffer is not None and buffer.size < height * width * 3:
          buffer = None
        return simplejpeg.decode_jpeg(encoded, 'RGB', buffer=buffer)
    except ValueError:  # not in good order; Pillow is more forgiving and knows what is too much
      pass
  try:
    if encoded[:4] == b'RIFF' and encoded[8:12] == b'WEBP':
      _check_size(*_webp_size(encoded))  # before Pillow takes memory for it
    with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      _check_size(image.width, image.height, encoded.count(START_OF_SCAN) if image.format in ('JPEG', 'MPO') else 1)
      return _to_rgb(image)
  except Exception as error:  # Pillow raises whatever the broken file leads it to
    raise ValueError(_reason(error)) from error


def _check_size(width, height, num_scans=1):
  if width * height > MAX_PIXELS:
    raise ValueError(f'{width} x {height} pixels are more than {MAX_PIXELS:,}')
  if width * height * num_scans > MAX_SCANNED:
    raise ValueError(f'{num_scans:,} scans of {width} x {height} pixels are more than any picture needs')


def _webp_size(encoded):
  """Reads width and height from the header of a WebP's first chunk."""

  def number(first, last):
    return int.from_bytes(encoded[first:last], 'little')

  kind = encoded[12:16]
  if kind == b'VP8X':
    return number(24, 27) + 1, number(27, 30) + 1
  if kind == b'VP8L':
    return number(21, 25) % 2**14 + 1, (number(21, 25) >> 14) % 2**14 + 1
  return number(26, 28) % 2**14, number(28, 30) % 2**14


def _to_rgb(image):
  if image.mode.startswith(('I', 'F')):  # Pillow would cut at 255
    grey = np.nan_to_num(np.asarray(image, np.float32))
    is_deep = image.mode.startswith('I;16') or grey.max() > 255
    grey = np.clip(grey / 256 if is_deep else grey, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
  if image.mode == 'P' and 'transparency' in image.info:
    image = image.convert('RGBA')
  return np.asarray(image.convert('RGB'))


def _reason(error):
  if isinstance(error, PIL.UnidentifiedImageError):
    return 'it is no image in a known format'
  return str(error).strip() or type(error).__name__


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
  """Brings the short side to `size` and cuts out the centre [size, size, rgb] (section 2).

  Shrinks by averaging over areas and enlarges by cubic interpolation (facts, section 2). The square is cut out first,
  so that what is cut off is not resized.
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
  """Encodes [height, width, rgb] uint8 as a JPEG file, colours at half the resolution as is usual.

  Args:
    image: the pixels.
    quality: 1 to 100 in libjpeg's scale; 85 is what the names of the 2012 folders point to (facts, section 2).
  """
  return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, 'RGB', '420')
