"""What comes from outside and is wrong: image files, fields of a config, files in the folder of a run.

The seeds are fixed. The long versions run in a process of their own, which a crash would end.
"""

import contextlib
import functools
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
from unittest import mock

import jax
import numpy as np
import PIL.Image
import pytest
from absl import flags

import main
from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import features
from alexnet_jax.data import image_io, pipeline, pixel_statistics
from alexnet_jax.models import alexnet, towers
from alexnet_jax.models.registry import build
from alexnet_jax.runs import config_checks, run_folder, saved_predictions
from alexnet_jax.runtime.errors import RunError, UsageError
from alexnet_jax.training import init_from, loop, optimizer, schedules
from configs import alexnet as recipes

ROOT = pathlib.Path(__file__).parents[2]
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
        pixels = image_io.decode(file)
      except ValueError as error:
        assert str(error)  # noqa: PT017
      else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        small = image_io.resize_and_crop(pixels, 32)
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


# Image files.


def test_originals_decode():
  files = originals(image_io.FORMATS)
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


def chunk(name, content):
  return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png(width, height, *chunks):
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
  return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


def gif(screen, frame, left=0):
  colours = b'\0\0\0\xff\xff\xff'
  screen = struct.pack('<HHBBB', screen, screen, 0x80, 0, 0)
  return b'GIF89a' + screen + colours + b',' + struct.pack('<HHHHB', left, 0, frame, frame, 0) + b'\2\2\x4c\1\0;'


def webp(*chunks):
  body = b'WEBP' + b''.join(name + struct.pack('<I', len(content)) + content for name, content in chunks)
  return b'RIFF' + struct.pack('<I', len(body)) + body


def webp_canvas(side, *chunks, flags=0):
  def three_bytes(number):
    return struct.pack('<I', number)[:3]

  return webp((b'VP8X', bytes([flags, 0, 0, 0]) + 2 * three_bytes(side - 1)), *chunks)


def resized(file, place, layout, side):
  """Writes another width and height into the header of a file."""
  size = struct.pack(layout, side, side)
  return file[:place] + size + file[place + len(size) :]


@functools.cache
def bombs():
  """Small files that say they are large, {name: (file, what is said of it)}."""
  files, zeros, large = originals(image_io.FORMATS), zlib.compress(bytes(10**7), 9), 'pixels'
  jpeg, progressive, tiff = files['JPEG 0'], files['JPEG 1'], bytearray(files['TIFF 0'])
  (directory,) = struct.unpack('<I', tiff[4:8])
  for entry in range(directory + 2, directory + 26, 12):  # the first two: width and height
    tiff[entry : entry + 12] = tiff[entry : entry + 2] + struct.pack('<HII', 4, 1, 60_000)
  still = files['WEBP 0'][20:]
  frame = bytes(6) + struct.pack('<I', 49)[:3] + struct.pack('<I', 39)[:3] + bytes(4) + b'VP8 '
  animation = [(b'ANIM', bytes(6)), (b'ANMF', frame + struct.pack('<I', len(still)) + still)]
  scans = resized(progressive, progressive.index(b'\xff\xc2') + 5, '>HH', 9000)
  last_scan = progressive[progressive.rindex(b'\xff\xda') : -2]
  return {
    'PNG': (png(60_000, 60_000), large),
    'PNG, a little too large': (png(9_500, 9_500), 'more than 89,000,000'),
    'PNG, compressed text': (png(5, 5, chunk(b'zTXt', b'a\0\0' + zeros)), 'too large'),
    'PNG, international text': (png(5, 5, chunk(b'iTXt', b'a\0\1\0\0\0' + zeros)), 'too large'),
    'PNG, profile': (png(5, 5, chunk(b'iCCP', b'a\0\0' + zeros)), 'too large'),
    'GIF, screen': (gif(65_000, 5), large),
    'GIF, frame': (gif(5, 65_000), large),
    'GIF, frame far out': (gif(60_000, 5, left=60_000), large),
    'WEBP, lossy': (webp((b'VP8 ', resized(still, 6, '<HH', 16_383))), 'more than 89,000,000'),
    'WEBP, lossless': (webp((b'VP8L', b'/' + struct.pack('<I', 2**28 - 1) + bytes(50))), 'more than 89,000,000'),
    'WEBP, canvas': (webp_canvas(60_000, (b'VP8 ', still)), 'more than 89,000,000'),
    'WEBP, animation': (webp_canvas(60_000, *animation, flags=2), 'more than 89,000,000'),
    'TIFF': (bytes(tiff), large),
    'JPEG': (resized(jpeg, jpeg.index(b'\xff\xc0') + 5, '>HH', 65_000), large),
    'JPEG, scans': (scans[:-2] + 100 * last_scan + b'\xff\xd9', 'scans'),
    'BMP': (resized(files['BMP 0'], 18, '<ii', 60_000), large),
    'PPM': (b'P6 60000 60000 255\n', large),
    'JPEG2000': (resized(files['JPEG2000 0'], files['JPEG2000 0'].index(b'ihdr') + 4, '>II', 60_000), large),
    'PostScript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n', 'known format'),
  }


@pytest.mark.parametrize('name', bombs())
def test_bombs_are_refused_before_memory_is_taken(name):
  file, reason = bombs()[name]
  size, limits = pathlib.Path('/proc/self/statm'), resource.getrlimit(resource.RLIMIT_AS)
  if not size.exists():
    pytest.skip('this system does not limit the memory of a process')
  now = int(size.read_text().split()[0]) * resource.getpagesize()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    resource.setrlimit(resource.RLIMIT_AS, (now + 100_000_000, limits[1]))
    try:
      with pytest.raises(ValueError, match=reason):
        image_io.decode(file)
    finally:
      resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.slow
def test_many_broken_files_of_all_formats():
  """In a process of its own: no crash, no hang, and memory does not grow."""
  result = subprocess.run(
    [sys.executable, '-X', 'faulthandler', '-m', 'tests.system.test_fuzz', '40000'],
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
  assert report['grown'] < 150, report


# Fields of a config.

SILLY = ['0', '-1', '1', '9', '3000', '1000000', '2147483648', '99999999999999999999', 'nan', 'inf', '-inf', '1e308']
SILLY += ['', 'x', 'x' * 5000, 'True', 'None', '()', '(1,)', '(1,2,3)', "('a','b')", '(0.5,-1.0)', '((1,2),)', '([1],)']
SILLY += ['(1j,)', "(b'a',)", '({1},)', '{}', '((0.5,1.0,1e308),)', '../..']
CONFIG = '--config=configs/alexnet.py'


def parsed(*arguments):
  """The config as main.py understands it."""
  for name in [name for name in flags.FLAGS if name.startswith('config.')]:
    delattr(flags.FLAGS, name)  # those of the call before
  command = ['main.py', f'--config={ROOT}/configs/alexnet.py', *arguments]
  with mock.patch.object(sys, 'argv', command):  # ml_collections looks there
    main.parse(command)
  return main.CONFIG.value


def check_all(config, is_thorough):
  """All that a run looks at before it takes memory."""
  config_checks.check(config)
  init_from.check(config)
  batches = {'batch_size': config.batch_size, 'eval.batch_size': config.eval.batch_size}
  mesh = towers.make_mesh(config.mesh.data, config.mesh.tower, num_towers=config.model.num_towers, batches=batches)
  pipeline.check_memory(config, towers.data_shard(mesh))
  run_folder.default_folder(config)
  schedule = schedules.make_schedule(config.optimizer, 100)
  alexnet.check_config(config.model)
  if is_thorough:
    with jax.set_mesh(mesh):
      loop.check_memory(build(config.model, 10), config, mesh)
  rates = optimizer.make_learning_rates(config.optimizer, ('conv1', 'fc8'), 100)
  for num_drops in (0, config.optimizer.plateau_drops, schedule.num_drops(99)):
    rates.at(99, num_drops)


def silly_values():
  return [(field, value) for field in config_checks.flatten(recipes.get_config()) for value in SILLY]


def try_all(pairs, is_thorough=False):
  """Each must be accepted or be answered by one sentence. Returns how many were refused."""
  num_refused = 0
  for field, value in pairs:
    try:
      check_all(parsed(f'--config.{field}={value}'), is_thorough)
    except (UsageError, RunError) as error:
      assert str(error)  # noqa: PT017
      assert '\n' not in str(error)  # noqa: PT017
      num_refused += 1
    except Exception as error:
      raise AssertionError(f'--config.{field}={value}') from error
  return num_refused


def test_silly_values_are_refused_in_a_sentence():
  pairs = silly_values()
  some = np.random.default_rng(0).permutation(len(pairs))[:500]
  assert 300 < try_all([pairs[i] for i in some]) < 500


@pytest.mark.slow
def test_every_field_with_every_silly_value():
  pairs = silly_values()
  before = memory()
  assert try_all(pairs, is_thorough=True) > 0.7 * len(pairs)
  assert memory() - before < 2000  # MB: nothing was allocated that a value names


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('batch_size', 10**6, 'batch_size=1000000 makes batches that take .* GB'),
    ('batch_size', 2**30, 'batch_size=1073741824 must be 1,048,576 or less'),
    ('eval.batch_size', 10**6, 'eval.batch_size=1000000 makes batches that take .* GB'),
    ('data.num_prefetched', 4096, 'less of data.num_threads and data.num_prefetched'),
    ('data.num_threads', 10**6, 'must be 1,024 or less'),
    ('model.image_size', 10**6, 'must be 2,048 or less'),
    ('model.kernels.fc6', 10**6, 'parameters take .* GB or more on each device'),
    ('model.kernels.conv1', -3, 'must be 0 or more'),
    ('model.width', 1e308, r'times model.width=1e\+308 must be'),
    ('model.num_towers', 10**9, 'must be 1 to 16'),
    ('model.padding.conv1', '(1,2,3)', r'must be 0 to 10, or two such numbers'),
    ('model.meet', '(1,)', r'model.meet=\[1\] must be of names'),
    ('optimizer.rate', 'nan', 'must be 0 or more, and finite'),
    ('optimizer.rate_factor', 1e308, '0.001 to 1,000,000'),
    ('optimizer.layer_changes.conv1', '((1j,),)', 'has a value that cannot be kept'),
    ('num_steps', 2**31, 'must be 2,147,483,647 or less'),
    ('checkpoint_every', -5, 'must be 0 or more'),
    ('mesh.data', 10**9, 'needs 1000000000 devices'),
    ('mesh.tower', -1, 'must not be negative'),
    ('init_from', 'x' * 5000, 'does not exist'),
  ],
)
def test_what_is_wrong_is_named(field, value, sentence):
  with pytest.raises(UsageError, match=sentence):
    check_all(parsed('--config.batch_size=8', f'--config.{field}={value}'), is_thorough='fc6' in field)


def test_more_steps_than_32_bits_hold(config, tmp_path):
  config.num_steps, config.num_epochs = 0, 10**6
  config.batch_size, config.data.train_split = 1, 'train+test[:50%]+train+train'
  with pytest.raises(UsageError, match='takes 4,491,000,000 steps; 2,147,483,647 are the most'):
    loop.train_and_evaluate(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  'field',
  [
    'augment.colour_std',
    'model.init_bias.conv2',
    'model.init_std.conv1',
    'model.norm.alpha',
    'model.norm.beta',
    'model.norm.k',
    'optimizer.bias_factor',
    'optimizer.layer_factor.fc8',
    'optimizer.momentum',
    'optimizer.rate',
  ],
)
def test_numbers_beyond_reason_end_in_a_sentence(config, tmp_path, field):
  part, _, name = field.rpartition('.')
  section = config
  for key in part.split('.'):
    section = section[key]
  section[name] = 3e38
  config.eval.ten_view, config.num_steps = False, 3
  with contextlib.suppress(RunError):  # the loss is not finite
    loop.train_and_evaluate(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('batch_size', '1000000'),
    ('model.image_size', '1000000'),
    ('data.num_threads', '1000000'),
    ('optimizer.steps', '(1j,)'),
    ('model.padding.conv1', "('a','b')"),
    ('data.train_split', 'train[:' + '9' * 50 + ']['),
    ('seed', 'x' * 5000),
  ],
)
def test_silly_values_on_a_real_command_line(data_dir, tmp_path, field, value):
  arguments = [CONFIG, f'--config.data.dir={data_dir}', f'--workdir={tmp_path}', f'--config.{field}={value}']
  result = subprocess.run(
    [sys.executable, 'main.py', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.splitlines()[-1].startswith('error: ')
  assert 'Traceback' not in result.stderr


# Files in the folder of a run.


class Bomb:
  """Leaves a trace where it is unpickled."""

  def __init__(self, trace):
    self.trace = trace

  def __reduce__(self):
    return (pathlib.Path.touch, (self.trace,))


def test_nothing_is_unpickled(tmp_path):
  trace = tmp_path / 'it was unpickled'
  hostile = np.array([Bomb(trace)], object)
  np.savez(tmp_path / 'statistics.npz', mean_image=hostile, covariance=hostile, num_images=hostile)
  with pytest.raises(UsageError, match=r'statistics.npz is missing or damaged; put it back'):
    run_folder.load_statistics(tmp_path)
  np.save(tmp_path / 'features.npy', np.zeros((1, 2), np.float32))
  np.save(tmp_path / 'labels.npy', hostile)
  with pytest.raises(UsageError, match=r'are damaged .* remove them'):
    features.load(tmp_path)
  log_probs, labels = np.zeros((1, 10), np.float32), np.zeros(1, np.int32)
  arguments = dict(dataset='a', split='b', crop_set='centre')
  saved_predictions.save([(log_probs, labels)], tmp_path, **arguments, num_steps=1, shape=(1, 10))
  assert saved_predictions.load(tmp_path, **arguments) is not None
  for name in ('labels', 'log_probs'):
    saved_predictions.save([(log_probs, labels)], tmp_path, **arguments, num_steps=1, shape=(1, 10))
    np.save(tmp_path / 'predictions' / 'a-b' / 'centre' / f'{name}.npy', hostile)
    assert saved_predictions.load(tmp_path, **arguments) is None  # and the network is asked again
  (tmp_path / 'weights.npz').write_bytes((tmp_path / 'statistics.npz').read_bytes())
  assert cli.main(['figures', 'kernels', str(tmp_path / 'weights.npz')]) == 2
  assert not trace.exists()


def test_broken_statistics_are_no_statistics(tmp_path):
  place, rng = tmp_path / 'statistics.npz', np.random.default_rng(0)
  whole = pixel_statistics.PixelStatistics(rng.uniform(0, 255, (8, 8, 3)), np.eye(3), 5)
  whole.save(place)
  file, num_whole = place.read_bytes(), 0
  for _ in range(500):
    place.write_bytes(mutated(rng, file))
    found = pixel_statistics.load(place)
    assert found is None or found.mean_image.shape[2:] == found.covariance.shape[:1] == (3,)
    num_whole += found is not None
  assert 0 < num_whole < 250


def test_broken_predictions_are_no_predictions(tmp_path):
  arguments = dict(dataset='a', split='b', crop_set='centre')
  rng, blocks = np.random.default_rng(0), [(np.zeros((20, 10), np.float32), np.zeros(20, np.int32))]
  saved_predictions.save(blocks, tmp_path, **arguments, num_steps=1, shape=(20, 10))
  for name in ('about.json', 'labels.npy', 'log_probs.npy'):
    place = tmp_path / 'predictions' / 'a-b' / 'centre' / name
    file = place.read_bytes()
    for _ in range(200):
      place.write_bytes(mutated(rng, file))
      found = saved_predictions.load(tmp_path, **arguments)
      assert found is None or len(found.log_probs) == len(found.labels)
    place.write_bytes(file)


if __name__ == '__main__':
  count = int(sys.argv[1])
  look_at(mutations(image_io.FORMATS, count // 4, seed=1))  # allocators keep some of what they once had
  before = memory()
  num_decoded, longest = look_at(mutations(image_io.FORMATS, count, seed=2))
  print(json.dumps({'decoded': num_decoded, 'longest': longest, 'grown': memory() - before}))
