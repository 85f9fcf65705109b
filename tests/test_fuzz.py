"""What comes from outside and is wrong: image files, fields of a config, files in the folder of a run.

The seeds are fixed. The long versions run in a process of their own, which a crash would end.
"""

import io
import json
import pathlib
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from alexnet_jax import images

ROOT = pathlib.Path(__file__).parents[1]
HOSTILE = ROOT.parent / 'shared' / 'data' / 'hostile_images'
LONGEST = 20  # seconds for one image; the largest that are allowed take some


def encoded(image, form, **options):
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def originals(forms):
  """Small pictures in every mode that a format has, {name: file}."""
  rng = np.random.default_rng(0)
  picture = PIL.Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((50, 40))
  grey = np.asarray(picture.convert('L'))
  deep = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
  real = PIL.Image.fromarray(grey.astype(np.float32))
  kinds = {
    'JPEG': [(picture, {}), (picture, {'progressive': True}), (picture, {'subsampling': 0, 'restart_marker_rows': 1})]
    + [(picture.convert(mode), {}) for mode in ('L', 'CMYK')],
    'PNG': [(picture.convert(mode), {}) for mode in ('RGB', 'L', 'LA', 'RGBA', 'P', '1')]
    + [(deep, {}), (picture.convert('P'), {'transparency': 3})],
    'GIF': [(picture, {}), (picture, {'save_all': True, 'append_images': [picture.rotate(9)]})],
    'WEBP': [(picture, {}), (picture, {'lossless': True}), (picture, {'save_all': True, 'append_images': [deep]})],
    'TIFF': [(image, {'compression': how}) for image in (picture, real) for how in (None, 'tiff_lzw')] + [(deep, {})],
    'BMP': [(picture, {}), (picture.convert('P'), {})],
    'PPM': [(picture, {}), (deep, {})],
    'JPEG2000': [(picture, {})],
    'AVIF': [(picture, {})],
  }
  return {f'{form} {i}': encoded(one, form, **o) for form in forms for i, (one, o) in enumerate(kinds[form])}


def mutated(rng, file):
  """Changes a file in one of the ways in which files go wrong."""
  file = bytearray(file)
  place = int(rng.integers(len(file)))
  match rng.integers(6):
    case 0:  # flipped bits
      for place in rng.integers(0, len(file), rng.integers(1, 8)):
        file[place] ^= 1 << int(rng.integers(8))
    case 1:  # cut
      del file[place:]
    case 2:  # another header
      for place in rng.integers(0, min(len(file), 64), rng.integers(1, 5)):
        file[place] = rng.integers(256)
    case 3:  # extreme numbers
      file[place : place + 4] = (b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x7f\xff\xff\xff')[rng.integers(3)]
    case 4:  # bytes too many
      file[place:place] = rng.bytes(rng.integers(1, 40))
    case 5:  # a part that is missing, or there twice
      part = file[place : place + int(rng.integers(1, 200))]
      file[place : place + len(part)] = part * 2 * int(rng.integers(2))
  if file[:8] == b'\x89PNG\r\n\x1a\n' and rng.random() < 0.7:
    return with_checksums(bytes(file))  # else most go no further than these
  return bytes(file)


def with_checksums(png):
  parts, place = [png[:8]], 8
  while place + 12 <= len(png):
    (length,) = struct.unpack('>I', png[place : place + 4])
    chunk = png[place + 4 : place + 8 + length]
    parts.append(png[place : place + 4] + chunk + struct.pack('>I', zlib.crc32(chunk)))
    place += 12 + length
  return b''.join(parts)


def look_at(files):
  """Decodes files; each must become an image or a sentence. Returns how many did, and the longest time, seconds."""
  num_decoded, longest = 0, 0
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow's, about what it mends
    warnings.filterwarnings('error', 'invalid value')  # numpy's
    for file in files:
      start = time.perf_counter()
      try:
        pixels = images.decode(file)
      except ValueError as error:
        assert str(error)  # noqa: PT017
      else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        small = images.square(pixels, 32)
        assert (small.shape, small.dtype) == ((32, 32, 3), np.uint8)
        num_decoded += 1
      longest = max(longest, time.perf_counter() - start)
  return num_decoded, longest


def mutations(forms, count, seed):
  rng, whole = np.random.default_rng(seed), list(originals(forms).values())
  return (mutated(rng, whole[number % len(whole)]) for number in range(count))


def memory():
  """Memory that this process holds, MB."""
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 1e6


def test_originals_decode():
  files = originals(images.FORMATS)
  assert look_at(files.values())[0] == len(files)


def test_a_thousand_broken_jpegs_and_pngs():
  num_decoded, longest = look_at(mutations(('JPEG', 'PNG'), 1000, seed=0))
  assert 100 < num_decoded < 900
  assert longest < LONGEST


def test_hostile_files():
  if not HOSTILE.is_dir():
    pytest.skip('hostile_images are not there: they are not part of the project')
  files = [path.read_bytes() for path in sorted(HOSTILE.iterdir())]
  num_decoded, longest = look_at(files)
  assert 0 < num_decoded < len(files)
  assert longest < LONGEST
  look_at(mutated(np.random.default_rng(1), file) for file in files if len(file) < 100_000)


@pytest.mark.slow
def test_many_broken_files_of_all_formats():
  """In a process of its own: no crash, no hang, and memory does not grow."""
  result = subprocess.run(
    [sys.executable, '-X', 'faulthandler', '-m', 'tests.test_fuzz', '40000'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout.splitlines()[-1])
  assert report['decoded'] > 4000
  assert report['longest'] < LONGEST
  assert report['grown'] < 50, report


if __name__ == '__main__':
  count = int(sys.argv[1])
  look_at(mutations(images.FORMATS, count // 4, seed=1))  # allocators keep some of what they once had
  before = memory()
  num_decoded, longest = look_at(mutations(images.FORMATS, count, seed=2))
  print(json.dumps({'decoded': num_decoded, 'longest': longest, 'grown': memory() - before}))
