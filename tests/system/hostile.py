"""Hostile files: damaged and malicious forms of all files that the project reads, images aside.

Hypothesis alters real small files: bytes, values of JSON and of protocol buffers, headers of archives. Reading an
altered file must give a valid object or one `UsageError` or `RunError`, whose message is one line that names the file.
Nothing may be written outside the folder of the file, and memory and time are bounded. The long version runs in a
separate process, whose address space is limited and which a crash would end.
"""

import concurrent.futures
import contextlib
import copy
import functools
import gzip
import io
import json
import os
import pathlib
import re
import resource
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np
import onnx
import tensorstore
import torch
from hypothesis import strategies as st
from ml_collections import ConfigDict
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.summary.writer import record_writer

from alexnet_jax.data import image_io, pixel_statistics, sources
from alexnet_jax.data.imagenet import archives, builder, writer
from alexnet_jax.evaluation import evaluate, trained_model
from alexnet_jax.interop import (
  caffe_files,
  huggingface_files,
  import_export,
  layout,
  torchvision_files,
  weight_files,
)
from alexnet_jax.models import registry
from alexnet_jax.runs import curves, run_folder, saved_predictions
from alexnet_jax.runtime import host_memory
from alexnet_jax.runtime.errors import RunError, UsageError
from tests import miniature
from tests.interop import networks
from tests.system.test_fuzz import EXAMPLES_PER_SEED, corrupted, count_true, resident_memory

MAX_SECONDS = 10  # of processor time, per file
MAX_BYTES = 1_000_000_000  # of address space that a file of a few hundred kilobytes may add
MAX_MESSAGE = 5000  # characters
TEXTS = ['', 'x', 'x' * 5000, 'a\nb\x1b[2J', '../../outside', '/dev/zero', '1' * 5000, 'NaN']
NUMBERS = [0, 1, -1, 3, 2**31 - 1, 2**31, 2**40, 2**63 - 1]
VALUES = [*TEXTS, *NUMBERS, None, True, 0.5, 10**30, 1e308, float('nan'), float('inf'), '\ud800']
VALUES += [[], [[]], [-1], [2**40, 2**40], ['a', 'a'], {}, {'a': {}}, 'DEEP']
DEEP = '[' * 100_000 + ']' * 100_000


# Alterations.


@st.composite
def altered_json(draw, text):
  """A strategy of JSON texts in which one value is replaced, removed or duplicated, also inside strings of JSON."""
  root = [json.loads(text)]
  container, key = draw(st.sampled_from(_positions(root)))
  inner = container[key]
  match draw(st.integers(0, 4)):
    case 0 if isinstance(container, dict):
      del container[key]
    case 1 if isinstance(container, dict):
      container[draw(st.sampled_from(TEXTS))] = inner
    case _ if isinstance(inner, str) and _is_json(inner):
      container[key] = draw(altered_json(inner)).decode()
    case _:
      container[key] = draw(st.sampled_from(VALUES))
  return json.dumps(root[0]).replace('"DEEP"', DEEP).encode()


def _is_json(text):
  try:
    return isinstance(json.loads(text), dict | list)
  except ValueError:
    return False


def _positions(value):
  """Returns the positions (container, key) of all values inside a value of JSON."""
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  return [position for key, part in items for position in ((value, key), *_positions(part))]


@st.composite
def altered_message(draw, message):
  """A strategy of serialised protocol buffers in which one field is cleared, replaced or extended."""
  message = copy.deepcopy(message)
  parent = draw(st.sampled_from(_messages(message)))
  field = draw(st.sampled_from(list(parent.DESCRIPTOR.fields)))
  values = {
    field.CPPTYPE_STRING: [b'', b'\xff' * 40, b'1' * 5000] if field.type == field.TYPE_BYTES else TEXTS,
    field.CPPTYPE_FLOAT: [float('nan'), 1e38, -0.0],
    field.CPPTYPE_DOUBLE: [float('nan'), 1e308, -0.0],
  }.get(field.cpp_type, NUMBERS)
  value = draw(st.sampled_from(values))
  if draw(st.integers(0, 3)) == 0:
    parent.ClearField(field.name)
  elif field.cpp_type != field.CPPTYPE_MESSAGE:
    with contextlib.suppress(ValueError):  # the value is not in the range of the field
      current = getattr(parent, field.name)
      if not hasattr(current, 'append'):
        setattr(parent, field.name, value)
      elif len(current) and draw(st.booleans()):
        current[draw(st.integers(0, len(current) - 1))] = value
      else:
        current.append(value)
  return message.SerializeToString()


def _messages(message):
  """Returns a protocol buffer and all that it contains."""
  messages = [message]
  for field, value in message.ListFields():
    if field.cpp_type == field.CPPTYPE_MESSAGE:
      parts = [value] if hasattr(value, 'ListFields') else value
      messages += [inner for part in parts for inner in _messages(part)]
  return messages


@st.composite
def altered_safetensors(draw, file):
  """A strategy of .safetensors files with an altered header."""
  length = int.from_bytes(file[:8], 'little')
  header = draw(altered_json(file[8 : 8 + length]))
  return len(header).to_bytes(8, 'little') + header + file[8 + length :]


TAR_FIELDS = [  # position, size, values
  (0, 100, [b'../../outside', b'/etc/passwd', b'a\nb', b'', b'\xff\xfe', b'n09999999.tar', b'././@LongLink']),
  (124, 12, [b'7' * 11, b'\x80' + b'\xff' * 11, b'\xff' * 12, b'1', b'x' * 12, b'\x80' + bytes(5) + b'\1', b'-1', b'']),
  (156, 1, [bytes([kind]) for kind in b'1234567xgLKSDMNXV\0\xff']),
  (157, 100, [b'../../outside', b'/etc/passwd']),
  (345, 155, [b'../..', b'/', b'a\nb']),
  (386, 97, [b'00000000000\00077777777777\0' * 4, b'\xff' * 97]),
]


@st.composite
def altered_tar(draw, file):
  """A strategy of tars in which one field of a header is altered and the checksum is valid."""
  file = bytearray(file)
  headers = [start for start in range(0, len(file), 512) if file[start + 257 : start + 262] == b'ustar']
  start = draw(st.sampled_from(headers))
  position, size, values = draw(st.sampled_from(TAR_FIELDS))
  file[start + position : start + position + size] = draw(st.sampled_from(values)).ljust(size, b'\0')
  file[start + 148 : start + 156] = b' ' * 8
  file[start + 148 : start + 156] = b'%06o\0 ' % sum(file[start : start + 512])
  return bytes(file)


@st.composite
def altered_kit(draw, file):
  """A strategy of development kits, compressed tars, in which a header or the table of classes is altered."""
  tar = gzip.decompress(file)
  if draw(st.booleans()):
    return gzip.compress(draw(altered_tar(tar)), 1)
  with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
    members = {member.name: archive.extractfile(member).read() for member in archive}
  name = draw(st.sampled_from(sorted(members)))
  members[name] = draw(corrupted([members[name]]))
  return gzip.compress(miniature.make_tar(members), 1)


@st.composite
def altered_zip(draw, file, important=''):
  """A strategy of zip archives with an altered, missing, renamed or huge member; `important` is part of its name."""
  with zipfile.ZipFile(io.BytesIO(file)) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  names = sorted(members)
  if draw(st.booleans()):
    names = [name for name in names if important in name]
  name = draw(st.sampled_from(names))
  match draw(st.integers(0, 9)):
    case 0:
      del members[name]
    case 1:
      members[draw(st.sampled_from(TEXTS[1:]))] = members.pop(name)
    case 2:
      members[name] += bytes(draw(st.sampled_from([1, 10**6])))
    case _ if members[name]:
      members[name] = draw(corrupted([members[name]]))
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return buffer.getvalue()


@st.composite
def altered_events(draw, events):
  """A strategy of TensorBoard's files in which one event is altered."""
  index = draw(st.integers(0, len(events) - 1))
  altered = draw(altered_message(events[index]))
  return to_records([event.SerializeToString() if event is not events[index] else altered for event in events])


def to_records(contents):
  buffer = io.BytesIO()
  writer = record_writer.RecordWriter(buffer)
  for content in contents:
    writer.write(content)
  return buffer.getvalue()


# Kinds of files.


class Kind(NamedTuple):
  """A kind of files.

  Attributes:
    files: the valid files by their paths relative to a folder.
    read: reads them from the folder, and returns a valid object.
    altered: strategies of the files that are altered, by path.
  """

  files: dict[str, bytes]
  read: Callable[[pathlib.Path], object]
  altered: dict[str, st.SearchStrategy]


def bytes_or(file, *strategies):
  """A strategy of corrupted bytes of a file, and of other alterations, which are drawn more often."""
  return st.one_of(corrupted([file]), *strategies, *strategies)


def files_of(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()
  }


@functools.cache
def small_weights():
  """The weights of a network so small that its mean image is most of the file."""
  config = networks.small_config()
  config.model.width = 1 / 64
  params = networks.exportable_params(config.model, 3)
  size = config.model.image_size + config.model.border
  mean_image = np.full((size, size, 3), 100, np.float32)
  return layout.Weights(config, layout.to_tensors(params, config.model, 3), mean_image, ('a', 'b', 'c'), 123)


def read_weights(name, folder):
  weights = weight_files.read(folder / name)
  assert all(np.isfinite(x).all() for x in weights.tensors.values())
  params = weights.params()
  assert {x.dtype for layer in params.values() for x in layer.values()} == {np.dtype(np.float32)}
  assert isinstance(weights.num_steps, int)
  assert all(isinstance(class_name, str) for class_name in weights.class_names)
  return params


def _weights_kind(name, file, *strategies):
  return Kind({name: file}, functools.partial(read_weights, name), {name: bytes_or(file, *strategies)})


def safetensors_kind(folder, **_):
  weight_files.write(folder / 'a.safetensors', small_weights())
  file = (folder / 'a.safetensors').read_bytes()
  return _weights_kind('a.safetensors', file, altered_safetensors(file))


def onnx_kind(folder, **_):
  weight_files.write(folder / 'a.onnx', small_weights())
  file = (folder / 'a.onnx').read_bytes()
  return _weights_kind('a.onnx', file, altered_message(onnx.load_model_from_string(file)))


def narrow_tensors(num_towers):
  """Random tensors of the network of Caffe (two towers) or torchvision (one), as narrow as possible."""
  windows = {'conv1': (3, 11), 'conv2': (4 // num_towers, 5), 'conv3': (4, 3)}
  windows |= dict.fromkeys(('conv4', 'conv5'), (4 // num_towers, 3))
  shapes = {name: (4, num_in, side, side) for name, (num_in, side) in windows.items()}
  shapes |= {'fc6': (4, 144), 'fc7': (4, 4), 'fc8': (3, 4)}
  draw = np.random.default_rng(0).normal
  return {name: [draw(size=size).astype(np.float32) for size in (shape, shape[:1])] for name, shape in shapes.items()}


def caffemodel_kind(**_):
  file = networks.caffemodel(narrow_tensors(2), order=networks.caffe_order('bvlc_alexnet'))
  message = caffe_files._message_class('NetParameter').FromString(file)
  return _weights_kind('a.caffemodel', file, altered_message(message))


def pth_kind(**_):
  state_dict = {
    torchvision_files.torchvision_name(f'{name}.{part}'): torch.tensor(x)
    for name, layer in narrow_tensors(1).items()
    for part, x in zip(('weight', 'bias'), layer, strict=True)
  }
  buffer = io.BytesIO()
  torch.save(state_dict, buffer)
  return _weights_kind('a.pth', buffer.getvalue(), altered_zip(buffer.getvalue(), 'data.pkl'))


def mean_image_kind(folder, **_):
  mean = np.random.default_rng(4).uniform(60, 180, (3, 20, 20))
  np.save(folder / 'mean.npy', mean)
  blob = caffe_files._message_class('BlobProto')(num=1, channels=3, height=20, width=20, data=mean.reshape(-1))
  files = {'mean.npy': (folder / 'mean.npy').read_bytes(), 'mean.binaryproto': blob.SerializeToString()}

  def read(folder):
    means = [caffe_files.read_mean_image(folder / name) for name in files]
    assert all(np.isfinite(mean).all() for mean in means)
    return means

  altered = {name: bytes_or(file) for name, file in files.items()}
  altered['mean.binaryproto'] = bytes_or(files['mean.binaryproto'], altered_message(blob))
  return Kind(files, read, altered)


def read_contents(contents):
  """Decodes the images of an index, and plans the records, as `prepare` does."""
  for split, images in contents.splits.items():
    for image in images:
      assert -1 <= image.label < len(contents.class_names)
      builder.make_example(image, size=32, encoding='jpeg', quality=85)
    writer.plan_shards(split, images, pathlib.Path('nowhere'), 32, 'jpeg', 85)
  return contents


def tiny_image(seed):
  return image_io.encode_png(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8))


def synset_tars():
  """Makes a tar of tars, each with one image."""
  wnids = [wnid for _, wnid, _ in miniature.SYNSETS]
  return miniature.make_tar({f'{wnid}.tar': miniature.make_tar({f'{wnid}_1.png': tiny_image(1)}) for wnid in wnids})


def tar_kind(**_):
  file = synset_tars()
  return Kind(
    {'fall.tar': file},
    lambda folder: read_contents(archives.index_synsets(folder / 'fall.tar')),
    {'fall.tar': bytes_or(file, altered_tar(file))},
  )


def kit_kind(**_):
  """The archives of ILSVRC-2012, of which the development kit and the validation archive are altered."""
  kit, validation = 'ILSVRC2012_devkit_t12.tar.gz', 'ILSVRC2012_img_val.tar'
  images = {f'ILSVRC2012_val_{i:08d}.JPEG': tiny_image(i) for i in range(1, 5)}
  files = {
    kit: miniature.make_development_kit('ILSVRC2012', {'validation': [3, 1, 2, 1]}),
    validation: miniature.make_tar(images),
    'ILSVRC2012_img_train.tar': synset_tars(),
  }
  altered = {
    kit: bytes_or(files[kit], altered_kit(files[kit])),
    validation: bytes_or(files[validation], altered_tar(files[validation])),
  }
  return Kind(files, lambda folder: read_contents(archives.index_ilsvrc2012(folder)), altered)


def zip_kind(folder, **_):
  files = files_of(miniature.write_tiny_imagenet(folder, per_class=1))
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(f'tiny-imagenet-200/{name}', tiny_image(0) if 'JPEG' in name else content)
  file = buffer.getvalue()
  return Kind(
    {'tiny.zip': file},
    lambda folder: read_contents(archives.index_tiny_imagenet(folder / 'tiny.zip')),
    {'tiny.zip': bytes_or(file, altered_zip(file, '.txt'))},
  )


def config_kind(**_):
  file = json.dumps(networks.small_config().to_dict()).encode()
  return Kind({'config.json': file}, run_folder.load_config, {'config.json': bytes_or(file, altered_json(file))})


def results_kind(**_):
  errors = {'top1_error': 40.0, 'top5_error': 20.0, 'log_prob': -1.5, 'confused': [['a', 'b', 3]]}
  results = {'dataset': 'digits/1.0.0', 'split': 'test', 'num_examples': 360, 'step': 7, 'skipped': {}}
  file = json.dumps(results | {'centre': errors, 'ten_view': errors}).encode()

  def read(folder):
    results = run_folder.load_results(folder, 7)
    return huggingface_files._model_card('a', small_weights(), results, 'mit')

  return Kind({'results.json': file}, read, {'results.json': bytes_or(file, altered_json(file))})


def statistics_kind(folder, **_):
  rng = np.random.default_rng(0)
  pixel_statistics.PixelStatistics(rng.uniform(0, 255, (8, 8, 3)), np.eye(3), 5).save(folder / 'statistics.npz')
  files = files_of(folder)
  altered = {name: bytes_or(file, altered_zip(file)) for name, file in files.items()}
  return Kind(files, run_folder.load_statistics, altered)


def predictions_kind(folder, **_):
  predictions = saved_predictions.PredictionFiles(folder, dataset='a', split='b', crop_set='centre')
  predictions.save([(np.full((20, 3), -1, np.float32), np.zeros(20, np.int32))], num_steps=1, shape=(20, 3))
  files = files_of(folder)

  def read(folder):
    saved = predictions._replace(run_folder=folder).load()
    if saved is None:
      raise RunError(f'{folder} has no predictions')  # the network is evaluated again
    errors = evaluate.count_errors(saved.blocks(), ['a', 'b', 'c'])
    assert errors.num_examples + errors.num_skipped == 20
    return saved

  altered = {name: bytes_or(file, *([altered_json(file)] if '.json' in name else [])) for name, file in files.items()}
  return Kind(files, read, altered)


def curves_kind(folder, **_):
  with contextlib.closing(curves.open_writer(folder)) as events:
    for step in range(3):
      events.add_scalar('train/loss', 2.5 - step, step)
  ((name, file),) = files_of(folder).items()

  def read(folder):
    points = curves.read_curves(folder)
    assert all(len(steps) == len(values) for steps, values in points.values())
    return points

  messages = list(event_file_loader.LegacyEventFileLoader(str(folder / name)).Load())
  return Kind({name: file}, read, {name: bytes_or(file, altered_events(messages))})


@st.composite
def altered_arrays(draw, files):
  """A strategy of the files of a checkpoint in which the metadata of one array, shape or chunks, is altered."""
  with tempfile.TemporaryDirectory() as folder:
    state = pathlib.Path(folder)
    write_files(state, files)
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': f'file://{state}/'}).result()
    key = draw(st.sampled_from([key for key in store.list().result() if key.endswith(b'.zarray')]))
    store.write(key, draw(altered_json(store.read(key).result().value))).result()
    return {name: file for name, file in files_of(state).items() if file != files.get(name)}  # Hypothesis retains them


def checkpoint_kind(run, **_):
  files = files_of(run)
  altered = {
    name: bytes_or(file, altered_json(file)) if file[:1] == b'{' else corrupted([file])
    for name, file in files.items()
    if name.startswith('checkpoints/') and not name.endswith('commit_success.txt')
  }
  prefix = 'checkpoints/7/state/'
  state = {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}
  arrays = altered_arrays(state).map(lambda changed: {prefix + name: file for name, file in changed.items()})
  altered[f'{prefix}manifest.ocdbt'] = st.one_of(corrupted([state['manifest.ocdbt']]), arrays)

  def read(folder):
    model = trained_model.load(folder, batch_size=1, num_data=1, num_tower=1)
    assert model.num_steps == 7
    return model

  return Kind(files, read, altered)


def dataset_kind(data_dir, **_):
  """A prepared dataset of TFDS."""
  files = files_of(data_dir / 'digits' / '1.0.0')
  files = {f'digits/1.0.0/{name}': file for name, file in files.items() if 'train.array' not in name}
  config = networks.small_config().data

  def read(folder):
    config.dir = str(folder)
    (source,) = sources.open_splits(config, 8, ['test'])
    images, labels = source.read_batch([0, len(source) // 2, len(source) - 1])
    assert (images.shape, images.dtype) == ((3, 8, 8, 3), np.uint8)
    assert set(labels) <= set(range(10))
    return source

  altered = {
    name: bytes_or(file, altered_json(file)) if file[:1] == b'{' else corrupted([file]) for name, file in files.items()
  }
  return Kind(files, read, altered)


def hub_kind(folder, **_):
  """A folder in the layout of the Hugging Face Hub, of which the file with the checksums is altered."""
  model = import_export.to_model(small_weights())
  huggingface_files.write(folder / 'hub', small_weights(), model, {}, 'mit')
  files = files_of(folder)

  def read(folder):
    logits, tolerance = huggingface_files.read_expected(folder / 'hub')
    assert logits.ndim == 1
    return tolerance

  name = 'hub/probe.json'
  return Kind(files, read, {name: bytes_or(files[name], altered_json(files[name]))})


KINDS = {
  name.removesuffix('_kind'): kind
  for name, kind in list(globals().items())
  if name.endswith('_kind') and name[0] != '_'
}


# What is checked.


def write_files(folder, files):
  for name, content in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@contextlib.contextmanager
def cached_networks():
  """Traces equal networks once, which takes most of the time that a file of weights takes."""
  trace, compute = registry.Network._abstract.func, layout.tensor_shapes
  cached = functools.lru_cache(64)(lambda config, num_classes: compute(ConfigDict(json.loads(config)), num_classes))

  def tensor_shapes(config, num_classes):
    return cached(json.dumps(config.to_dict()), num_classes)

  with (
    mock.patch.object(registry.Network, '_abstract', property(functools.lru_cache(64)(trace))),
    mock.patch.object(layout, 'tensor_shapes', tensor_shapes),
  ):
    yield


@contextlib.contextmanager
def one_matlab_reader():
  """Reads files of MATLAB in one process until it crashes; to start one takes seconds."""
  start, executor = archives._matlab_reader, None

  @contextlib.contextmanager
  def lasting():
    nonlocal executor
    executor = executor or start()
    try:
      yield executor
    except concurrent.futures.process.BrokenProcessPool:
      executor = None
      raise

  with mock.patch.object(archives, '_matlab_reader', lasting):
    yield
  if executor:
    executor.shutdown()


class Campaign:
  """Reads altered files of a kind, one after another, in a folder."""

  def __init__(self, kind, folder):
    self.kind, self.folder = kind, folder
    write_files(folder, kind.files)
    assert kind.read(folder) is not None
    self.examples = st.one_of([st.tuples(st.just(name), altered) for name, altered in kind.altered.items()])
    self.slowest = 0.0

  def is_accepted(self, example):
    """Reads the files of a kind with one alteration; returns whether they are accepted."""
    name, content = example
    changed = content if isinstance(content, dict) else {name: content}
    write_files(self.folder, changed)
    start = time.process_time()
    try:
      with warnings.catch_warnings(), writes_allowed_in(self.folder):
        warnings.simplefilter('ignore')
        assert self.kind.read(self.folder) is not None
      return True
    except (UsageError, RunError) as error:
      message = str(error)
      assert message.isprintable(), message
      assert len(message) <= MAX_MESSAGE, message
      assert str(self.folder) in message, message
      return False
    finally:
      self.slowest = max(self.slowest, seconds := time.process_time() - start)
      assert seconds < MAX_SECONDS
      for extra in changed.keys() - self.kind.files.keys():
        (self.folder / extra).unlink(missing_ok=True)
      write_files(self.folder, {name: self.kind.files[name] for name in changed if name in self.kind.files})


WRITES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate', 'os.chmod')
PROCESSES = ('os.system', 'os.exec', 'os.posix_spawn', 'subprocess.Popen', 'socket.connect')
_allowed: list[pathlib.Path] = []  # folders that may be written to; empty where writes are not watched
_forbidden: list[str] = []


def _watch(event, arguments):
  """Records writes outside the allowed folders, processes and connections; a hook of `sys.addaudithook`."""
  if not _allowed:
    return
  is_write = event in WRITES or (event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
  if event in PROCESSES or (is_write and not isinstance(arguments[0], int) and not _is_allowed(arguments)):
    _forbidden.append(f'{event} {arguments}')


def _is_allowed(arguments):
  paths = [os.path.realpath(os.fsdecode(path)) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
  return all(pathlib.Path(path).is_relative_to(_allowed[0]) or path == os.devnull for path in paths)


@contextlib.contextmanager
def writes_allowed_in(folder):
  """Checks that the code inside the context writes to this folder only, and starts no process and no connection."""
  _forbidden.clear()
  _allowed.append(folder.resolve())
  try:
    yield
  finally:
    _allowed.clear()
  assert not _forbidden


sys.addaudithook(_watch)


@cached_networks()
@one_matlab_reader()
def run_campaign(name, seeds, folder, **inputs):
  """Reads altered files of a kind within a limited address space; returns numbers of files, seconds and memory, MB."""
  (folder / 'corpus').mkdir()
  (folder / 'altered').mkdir()
  campaign = Campaign(KINDS[name](folder=folder / 'corpus', **inputs), folder / 'altered')
  campaign.kind.read(campaign.folder)  # allocates what the first reads allocate
  count_true(campaign.is_accepted, 50, example=campaign.examples)
  address_space = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (address_space + MAX_BYTES,) * 2)
  before, start = resident_memory(), time.perf_counter()
  num_accepted = num_read = 0
  for number in seeds:
    host_memory.release_unused()  # Hypothesis and the C library retain the examples of a seed, 140 MB
    accepted, read = count_true(campaign.is_accepted, EXAMPLES_PER_SEED, number, example=campaign.examples)
    num_accepted, num_read = num_accepted + accepted, num_read + read
  # Unlike this line, `ru_maxrss` of a process that was started by another includes the memory of the other.
  peak = int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) * 1024 / 1e6
  return {
    'accepted': num_accepted,
    'rejected': num_read - num_accepted,
    'seconds': round(time.perf_counter() - start),
    'slowest': round(campaign.slowest, 2),
    'peak': round(peak - before),
  }


if __name__ == '__main__':
  name, first_seed, num_seeds, run, data_dir = sys.argv[1:]
  seeds = range(int(first_seed), int(first_seed) + int(num_seeds))
  with tempfile.TemporaryDirectory() as temporary:
    inputs = {'run': pathlib.Path(run), 'data_dir': pathlib.Path(data_dir)}
    print(json.dumps(run_campaign(name, seeds, pathlib.Path(temporary), **inputs)))
