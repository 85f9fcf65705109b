"""Malformed input: image files, config fields, and files in the folder of a run.

Hypothesis corrupts the files, always in the same ways. The long version for image files runs in a separate process,
which a crash would end.
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
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import main
from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import features
from alexnet_jax.data import image_io, pipeline, pixel_statistics
from alexnet_jax.models import device_mesh
from alexnet_jax.models.registry import build
from alexnet_jax.runs import config_checks, config_files, run_folder, saved_predictions
from alexnet_jax.runtime.errors import RunError, UsageError
from alexnet_jax.training import loop, optimizer, run_setup
from configs import alexnet as recipes

ROOT = pathlib.Path(__file__).parents[2]
HOSTILE = ROOT.parent / 'shared' / 'data' / 'hostile_images'
MAX_SECONDS = 20  # per image; the largest valid images take several seconds
EXAMPLES_PER_SEED = 1000

settings.register_profile('tests', deadline=None, database=None)
settings.load_profile('tests')


def encode(image, file_format, **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def valid_files(formats):
  """Encodes a small image in every mode of each format: {name: file}."""
  rng = np.random.default_rng(0)
  rgb = PIL.Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((50, 40))
  grey = np.asarray(rgb.convert('L'))
  uint16 = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
  float32 = PIL.Image.fromarray(grey.astype(np.float32))
  images = {
    'JPEG': [(rgb, {}), (rgb, {'progressive': True}), (rgb, {'subsampling': 0, 'restart_marker_rows': 1})]
    + [(rgb.convert(mode), {}) for mode in ('L', 'CMYK')],
    'PNG': [(rgb.convert(mode), {}) for mode in ('RGB', 'L', 'LA', 'RGBA', 'P', '1')]
    + [(uint16, {}), (rgb.convert('P'), {'transparency': 3})],
    'GIF': [(rgb, {}), (rgb, {'save_all': True, 'append_images': [rgb.rotate(9)]})],
    'WEBP': [(rgb, {}), (rgb, {'lossless': True}), (rgb, {'save_all': True, 'append_images': [uint16]})],
    'TIFF': [(image, {'compression': name}) for image in (rgb, float32) for name in (None, 'tiff_lzw')]
    + [(uint16, {})],
    'BMP': [(rgb, {}), (rgb.convert('P'), {})],
    'PPM': [(rgb, {}), (uint16, {})],
    'JPEG2000': [(rgb, {})],
    'AVIF': [(rgb, {})],
  }
  return {
    f'{file_format} {index}': encode(image, file_format, **options)
    for file_format in formats
    for index, (image, options) in enumerate(images[file_format])
  }


@st.composite
def corrupted(draw, files):
  """A strategy of files that are corrupted in one of six ways."""
  file = bytearray(draw(st.sampled_from(files)))
  positions = st.integers(0, len(file) - 1)
  position = draw(positions)
  match draw(st.integers(0, 5)):
    case 0:  # flipped bits
      for flipped in draw(st.lists(positions, min_size=1, max_size=7)):
        file[flipped] ^= 1 << draw(st.integers(0, 7))
    case 1:  # truncated
      del file[position:]
    case 2:  # random bytes in the header
      for overwritten in draw(st.lists(st.integers(0, min(len(file), 64) - 1), min_size=1, max_size=4)):
        file[overwritten] = draw(st.integers(0, 255))
    case 3:  # extreme numbers
      file[position : position + 4] = draw(st.sampled_from([b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x7f\xff\xff\xff']))
    case 4:  # inserted bytes
      file[position:position] = draw(st.binary(min_size=1, max_size=40))
    case 5:  # a missing or duplicated part
      part = file[position : position + draw(st.integers(1, 200))]
      file[position : position + len(part)] = part * draw(st.sampled_from([0, 2]))
  if file[:8] == b'\x89PNG\r\n\x1a\n' and draw(st.booleans()):
    return fix_checksums(bytes(file))  # without valid checksums, decoders reject most files at once
  return bytes(file)


def fix_checksums(png):
  parts, position = [png[:8]], 8
  while position + 12 <= len(png):
    (length,) = struct.unpack('>I', png[position : position + 4])
    chunk = png[position + 4 : position + 8 + length]
    parts.append(png[position : position + 4] + chunk + struct.pack('>I', zlib.crc32(chunk)))
    position += 12 + length
  return b''.join(parts)


def decode(file):
  """Decodes a file to an image, or rejects it with a message; returns whether it is an image."""
  start = time.perf_counter()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow warns about defects that it repairs
    warnings.filterwarnings('error', 'invalid value')  # numpy's
    try:
      pixels = image_io.decode(file)
    except ValueError as error:
      assert str(error)  # noqa: PT017
      assert time.perf_counter() - start < MAX_SECONDS
      return False
  assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
  small = image_io.resize_and_crop(pixels, 32)
  assert (small.shape, small.dtype) == ((32, 32, 3), np.uint8)
  assert time.perf_counter() - start < MAX_SECONDS
  return True


def count_true(check, count, number=0, **strategies):
  """Calls a check with the examples of a seed, and returns for how many it was true, and their number."""
  results = []
  test = given(**strategies)(lambda **example: results.append(check(**example)))
  settings(max_examples=count)(seed(number)(test))()
  return sum(results), len(results)


def resident_memory():
  """Returns the resident memory of this process, MB."""
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 1e6


# Image files.


def test_valid_files_are_decoded():
  assert all(map(decode, valid_files(image_io.FORMATS).values()))


def test_corrupt_jpegs_and_pngs_are_decoded_or_rejected():
  files = list(valid_files(('JPEG', 'PNG')).values())
  num_decoded, count = count_true(decode, 300, file=corrupted(files))
  assert 0.1 * count < num_decoded < 0.9 * count


def test_hostile_files_are_decoded_or_rejected():
  if not HOSTILE.is_dir():
    pytest.skip('hostile_images is missing; it is not part of the project')
  files = [path.read_bytes() for path in sorted(HOSTILE.iterdir())]
  assert 0 < sum(map(decode, files)) < len(files)
  count_true(decode, 100, file=corrupted([file for file in files if len(file) < 100_000]))


def png_chunk(name, content):
  return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png(width, height, *chunks):
  header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
  return (
    b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + png_chunk(b'IDAT', zlib.compress(b'')) + png_chunk(b'IEND', b'')
  )


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


def set_size(file, position, layout, side):
  """Overwrites width and height in the header of a file."""
  size = struct.pack(layout, side, side)
  return file[:position] + size + file[position + len(size) :]


@functools.cache
def bombs():
  """Makes small files that declare a large image: {name: (file, pattern of the error message)}."""
  files, zeros, large = valid_files(image_io.FORMATS), zlib.compress(bytes(10**7), 9), 'pixels'
  too_large = 'more than the maximum of 89,000,000'
  jpeg, progressive, tiff = files['JPEG 0'], files['JPEG 1'], bytearray(files['TIFF 0'])
  (directory,) = struct.unpack('<I', tiff[4:8])
  for entry in range(directory + 2, directory + 26, 12):  # the first two entries: width and height
    tiff[entry : entry + 12] = tiff[entry : entry + 2] + struct.pack('<HII', 4, 1, 60_000)
  still = files['WEBP 0'][20:]
  frame = bytes(6) + struct.pack('<I', 49)[:3] + struct.pack('<I', 39)[:3] + bytes(4) + b'VP8 '
  animation = [(b'ANIM', bytes(6)), (b'ANMF', frame + struct.pack('<I', len(still)) + still)]
  scans = set_size(progressive, progressive.index(b'\xff\xc2') + 5, '>HH', 9000)
  last_scan = progressive[progressive.rindex(b'\xff\xda') : -2]
  return {
    'PNG': (png(60_000, 60_000), large),
    'PNG, a little too large': (png(9_500, 9_500), too_large),
    'PNG, compressed text': (png(5, 5, png_chunk(b'zTXt', b'a\0\0' + zeros)), 'too large'),
    'PNG, international text': (png(5, 5, png_chunk(b'iTXt', b'a\0\1\0\0\0' + zeros)), 'too large'),
    'PNG, profile': (png(5, 5, png_chunk(b'iCCP', b'a\0\0' + zeros)), 'too large'),
    'GIF, screen': (gif(65_000, 5), large),
    'GIF, frame': (gif(5, 65_000), large),
    'GIF, frame far out': (gif(60_000, 5, left=60_000), large),
    'WEBP, lossy': (webp((b'VP8 ', set_size(still, 6, '<HH', 16_383))), too_large),
    'WEBP, lossless': (webp((b'VP8L', b'/' + struct.pack('<I', 2**28 - 1) + bytes(50))), too_large),
    'WEBP, canvas': (webp_canvas(60_000, (b'VP8 ', still)), too_large),
    'WEBP, animation': (webp_canvas(60_000, *animation, flags=2), too_large),
    'TIFF': (bytes(tiff), large),
    'JPEG': (set_size(jpeg, jpeg.index(b'\xff\xc0') + 5, '>HH', 65_000), large),
    'JPEG, scans': (scans[:-2] + 100 * last_scan + b'\xff\xd9', 'scans'),
    'BMP': (set_size(files['BMP 0'], 18, '<ii', 60_000), large),
    'PPM': (b'P6 60000 60000 255\n', large),
    'JPEG2000': (set_size(files['JPEG2000 0'], files['JPEG2000 0'].index(b'ihdr') + 4, '>II', 60_000), large),
    'PostScript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n', 'known format'),
  }


@pytest.mark.parametrize('name', bombs())
def test_bombs_are_rejected_before_memory_is_allocated(name):
  file, reason = bombs()[name]
  statm, limits = pathlib.Path('/proc/self/statm'), resource.getrlimit(resource.RLIMIT_AS)
  if not statm.exists():
    pytest.skip('this system cannot limit the memory of a process')
  address_space = int(statm.read_text().split()[0]) * resource.getpagesize()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    resource.setrlimit(resource.RLIMIT_AS, (address_space + 100_000_000, limits[1]))
    try:
      with pytest.raises(ValueError, match=reason):
        image_io.decode(file)
    finally:
      resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.slow
def test_many_corrupt_files_of_all_formats():
  """A separate process decodes them; it must not crash or hang, and its memory must not grow."""
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
  assert report['growth'] < 150, report


# Fields of a config.

MALFORMED = [
  '0',
  '-1',
  '1',
  '9',
  '3000',
  '1000000',
  '2147483648',
  '99999999999999999999',
  'nan',
  'inf',
  '-inf',
  '1e308',
]
MALFORMED += [
  '',
  'x',
  'x' * 5000,
  'True',
  'None',
  '()',
  '(1,)',
  '(1,2,3)',
  "('a','b')",
  '(0.5,-1.0)',
  '((1,2),)',
  '([1],)',
]
MALFORMED += ['(1j,)', "(b'a',)", '({1},)', '{}', '((0.5,1.0,1e308),)', '../..']
CONFIG = '--config=configs/alexnet.py'


def parse(*arguments):
  """Parses a command line as main.py does, and returns the config."""
  for name in [name for name in flags.FLAGS if name.startswith('config.')]:
    delattr(flags.FLAGS, name)  # defined by the previous call
  command = ['main.py', f'--config={ROOT}/configs/alexnet.py', *arguments]
  with mock.patch.object(sys, 'argv', command):  # ml_collections reads it
    config_files.parse_flags(command, main.CONFIG, main.MODE)
  return main.CONFIG.value


def check_all(config, is_thorough):
  """Makes all checks that a run makes before it allocates memory."""
  config_checks.check(config)
  config_checks.check_initialisation(config)
  batches = {'batch_size': config.batch_size, 'eval.batch_size': config.eval.batch_size}
  mesh = device_mesh.make_mesh(config.mesh.data, config.mesh.tower, num_towers=config.model.num_towers, batches=batches)
  pipeline.check_memory(config, device_mesh.data_shard(mesh))
  run_folder.default_folder(config)
  if is_thorough:
    with jax.set_mesh(mesh):
      run_setup.check_memory(build(config.model, 10), config, mesh)
  optimizer.make_optimizer(config.optimizer, last_step=100).transformation()


def is_rejected(field, value, is_thorough=False):
  """Checks that a value is accepted or rejected with a one-line error, and returns whether it is rejected."""
  try:
    check_all(parse(f'--config.{field}={value}'), is_thorough)
  except (UsageError, RunError) as error:
    assert str(error)  # noqa: PT017
    assert '\n' not in str(error)  # noqa: PT017
    return True
  return False


FIELDS = list(config_files.flatten(recipes.get_config()))


def test_malformed_values_are_rejected_with_one_line():
  strategies = {'field': st.sampled_from(FIELDS), 'value': st.sampled_from(MALFORMED)}
  num_rejected, count = count_true(is_rejected, 100, **strategies)
  assert 0.6 * count < num_rejected < count


@pytest.mark.slow
def test_every_field_with_every_malformed_value():
  before = resident_memory()
  are_rejected = [is_rejected(field, value, is_thorough=True) for field in FIELDS for value in MALFORMED]
  assert sum(are_rejected) > 0.7 * len(are_rejected)
  assert resident_memory() - before < 2000  # MB: no value led to an allocation of its size


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('batch_size', 10**6, 'batch_size=1000000 requires .* GB'),
    ('batch_size', 2**30, 'batch_size=1073741824 must be 1,048,576 or less'),
    ('eval.batch_size', 10**6, 'eval.batch_size=1000000 requires .* GB'),
    ('data.num_prefetched', 4096, 'reduce eval.batch_size, data.num_threads or data.num_prefetched'),
    ('data.num_threads', 10**6, 'must be 1,024 or less'),
    ('model.image_size', 10**6, 'must be 2,048 or less'),
    ('model.kernels.fc6', 10**6, 'parameters require at least .* GB on each device'),
    ('model.kernels.conv1', -3, 'must be 0 or more'),
    ('model.width', 1e308, r'times model.width=1e\+308 must be'),
    ('model.num_towers', 10**9, 'must be 1 to 16'),
    ('model.padding.conv1', '(1,2,3)', r'must be 0 to 10, or two such numbers'),
    ('model.meet', '(1,)', r'model.meet=\(1,\) may contain conv2'),
    ('optimizer.rate', 'nan', 'must be 0 or more, and finite'),
    ('optimizer.rate_factor', 1e308, '0.001 to 1,000,000'),
    ('optimizer.layer_changes.conv1', '((1j,),)', 'contains a value that JSON cannot represent'),
    ('num_steps', 2**31, 'must be 2,147,483,647 or less'),
    ('checkpoint_every', -5, 'must be 0 or more'),
    ('mesh.data', 10**9, 'needs 1000000000 devices'),
    ('mesh.tower', -1, 'must be 0 or more'),
    ('init_from', 'x' * 5000, 'does not exist'),
  ],
)
def test_the_error_names_the_field(field, value, message):
  with pytest.raises(UsageError, match=message):
    check_all(parse('--config.batch_size=8', f'--config.{field}={value}'), is_thorough='fc6' in field)


def test_more_steps_than_fit_into_32_bits_are_rejected(config, tmp_path):
  config.num_steps, config.num_epochs = 0, 10**6
  config.batch_size, config.data.train_split = 1, 'train+test[:50%]+train+train'
  with pytest.raises(UsageError, match='takes 4,491,000,000 steps; the maximum is 2,147,483,647'):
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
    'optimizer.rate',
  ],
)
def test_huge_numbers_do_not_crash_a_run(config, tmp_path, field):
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
def test_malformed_values_on_a_real_command_line(data_dir, tmp_path, field, value):
  arguments = [CONFIG, f'--config.data.dir={data_dir}', f'--workdir={tmp_path}', f'--config.{field}={value}']
  result = subprocess.run(
    [sys.executable, 'main.py', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
  )
  assert result.returncode == 2, result.stderr
  assert result.stderr.splitlines()[-1].startswith('error: ')
  assert 'Traceback' not in result.stderr


# Files in the folder of a run.


class Bomb:
  """Creates a file when it is unpickled."""

  def __init__(self, trace):
    self.trace = trace

  def __reduce__(self):
    return (pathlib.Path.touch, (self.trace,))


def test_nothing_is_unpickled(tmp_path):
  trace = tmp_path / 'unpickled'
  hostile = np.array([Bomb(trace)], object)
  np.savez(tmp_path / 'statistics.npz', mean_image=hostile, covariance=hostile, num_images=hostile)
  with pytest.raises(UsageError, match=r'statistics.npz is missing or damaged; restore it'):
    run_folder.load_statistics(tmp_path)
  np.save(tmp_path / 'features.npy', np.zeros((1, 2), np.float32))
  np.save(tmp_path / 'labels.npy', hostile)
  with pytest.raises(UsageError, match=r'are damaged .* remove them'):
    features.load(tmp_path)
  log_probs, labels = np.zeros((1, 10), np.float32), np.zeros(1, np.int32)
  files = saved_predictions.PredictionFiles(tmp_path, dataset='a', split='b', crop_set='centre')
  files.save([(log_probs, labels)], num_steps=1, shape=(1, 10))
  assert files.load() is not None
  for name in ('labels', 'log_probs'):
    files.save([(log_probs, labels)], num_steps=1, shape=(1, 10))
    np.save(tmp_path / 'predictions' / 'a-b' / 'centre' / f'{name}.npy', hostile)
    assert files.load() is None  # the network is evaluated again
  (tmp_path / 'weights.npz').write_bytes((tmp_path / 'statistics.npz').read_bytes())
  assert cli.main(['figures', 'kernels', str(tmp_path / 'weights.npz')]) == 2
  assert not trace.exists()


def test_corrupt_statistics_are_not_loaded(tmp_path):
  path = tmp_path / 'statistics.npz'
  pixel_statistics.PixelStatistics(np.random.default_rng(0).uniform(0, 255, (8, 8, 3)), np.eye(3), 5).save(path)

  def load(file):
    path.write_bytes(file)
    stats = pixel_statistics.load(path)
    assert stats is None or stats.mean_image.shape[2:] == stats.covariance.shape[:1] == (3,)
    return stats is not None

  num_loaded, count = count_true(load, 500, file=corrupted([path.read_bytes()]))
  assert 0 < num_loaded < 0.5 * count


@pytest.mark.parametrize('name', ['about.json', 'labels.npy', 'log_probs.npy'])
def test_corrupt_predictions_are_not_loaded(name, tmp_path):
  files = saved_predictions.PredictionFiles(tmp_path, dataset='a', split='b', crop_set='centre')
  files.save([(np.zeros((20, 10), np.float32), np.zeros(20, np.int32))], num_steps=1, shape=(20, 10))
  path = tmp_path / 'predictions' / 'a-b' / 'centre' / name

  def load(file):
    path.write_bytes(file)
    predictions = files.load()
    assert predictions is None or len(predictions.log_probs) == len(predictions.labels)
    return predictions is not None

  num_loaded, count = count_true(load, 200, file=corrupted([path.read_bytes()]))
  assert 0 < num_loaded < 0.5 * count


def decode_many(count):
  """Decodes corrupt files of all formats; returns the number of images."""
  files = list(valid_files(image_io.FORMATS).values())
  seeds = range(count // EXAMPLES_PER_SEED)  # Hypothesis retains the examples of a seed
  return sum(count_true(decode, EXAMPLES_PER_SEED, number, file=corrupted(files))[0] for number in seeds)


if __name__ == '__main__':
  count = int(sys.argv[1])
  decode_many(count // 4)  # allocators retain some memory after first use
  before = resident_memory()
  print(json.dumps({'decoded': decode_many(count), 'growth': resident_memory() - before}))
