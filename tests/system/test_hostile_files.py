"""Hostile files of every kind in `hostile.KINDS`, and each fault that they have revealed."""

import functools
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import scipy.io
import tensorstore
import torch
from tensorboard.compat.proto import event_pb2

from alexnet_jax.data import sources
from alexnet_jax.data.imagenet import archives
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import caffe_files, huggingface_files, layout, onnx_files, torchvision_files, weight_files
from alexnet_jax.runs import curves, run_folder, saved_predictions
from alexnet_jax.runtime.errors import RunError, UsageError, first_line, printable
from tests import miniature
from tests.conftest import mostly_nightly
from tests.interop import networks
from tests.system import hostile
from tests.system.test_fuzz import EXAMPLES_PER_SEED, ROOT, count_true

NUM_SEEDS = 10  # of each kind of file, in `make soak`: 10,000 files
RESULTS = {'dataset': 'digits/1.0.0', 'split': 'test', 'num_examples': 360, 'step': 7}
ERRORS = {'top1_error': 40.0, 'top5_error': 20.0, 'log_prob': -1.5}


@pytest.mark.parametrize('name', mostly_nightly(list(hostile.KINDS), 'mean_image', 'tar', 'kit', 'zip', 'results'))
def test_altered_files_are_read_or_rejected_with_one_line(name, request, tmp_path):
  (tmp_path / 'corpus').mkdir()
  (tmp_path / 'altered').mkdir()
  inputs = {'checkpoint': ('run', 'trained_run'), 'dataset': ('data_dir', 'prepared_digits')}.get(name)
  inputs = {inputs[0]: request.getfixturevalue(inputs[1])} if inputs else {}
  with hostile.cached_networks(), hostile.one_matlab_reader():
    campaign = hostile.Campaign(hostile.KINDS[name](folder=tmp_path / 'corpus', **inputs), tmp_path / 'altered')
    _, count = count_true(campaign.is_accepted, 10, example=campaign.examples)
  assert count == 10


@pytest.fixture(scope='session')
def prepared_digits(data_dir):
  """The folder of datasets, with the digits."""
  config = networks.small_config().data
  config.dir = str(data_dir)
  sources.open_splits(config, 8, ['test'])
  return data_dir


@pytest.mark.soak
@pytest.mark.parametrize('name', hostile.KINDS)
def test_many_altered_files(name, trained_run, prepared_digits):
  """A separate process reads them; it must not crash, and a file must not add `hostile.MAX_BYTES` of memory."""
  # TensorStore 0.1.86 retains every result of `Spec.to_json`, which Orbax calls for each array: 0.3 MB per checkpoint.
  seeds_per_process = 1 if name == 'checkpoint' else NUM_SEEDS
  reports = []
  for first_seed in range(0, NUM_SEEDS, seeds_per_process):
    command = [sys.executable, '-X', 'faulthandler', '-m', 'tests.system.hostile', name]
    command += [str(argument) for argument in (first_seed, seeds_per_process, trained_run, prepared_digits)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7200, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    reports.append(json.loads(result.stdout.splitlines()[-1]))
    print(f'{name}: {reports[-1]}', flush=True)
    assert reports[-1]['peak'] < 500
  assert sum(report['accepted'] + report['rejected'] for report in reports) >= NUM_SEEDS * EXAMPLES_PER_SEED
  assert sum(report['rejected'] for report in reports) > 0


def rejects(error, message, read, *arguments):
  """Checks that an error has one line, which contains the message."""
  with pytest.raises(error, match=message) as caught:
    read(*arguments)
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < hostile.MAX_MESSAGE


# Messages.


def test_quoted_messages_have_one_short_printable_line():
  assert first_line(ValueError('\n a \nb')) == ' a '
  assert first_line(ValueError()) == 'ValueError'
  assert printable('a\nb\x1b[2J\ud800é') == r'a\nb\x1b[2J\ud800é'
  assert len(printable('\n' * 5000)) == len(printable('x' * 5000)) == 200
  assert printable('x' * 200) == 'x' * 200


@pytest.mark.parametrize(
  ('name', 'read'),
  [
    ('config.json', run_folder.load_config),
    ('results.json', lambda folder: run_folder.load_results(folder, 7)),
    ('probe.json', huggingface_files.read_expected),
  ],
)
def test_deeply_nested_json_is_rejected(name, read, tmp_path):
  (tmp_path / name).write_text(hostile.DEEP)
  rejects((UsageError, RunError), rf'{tmp_path}/{name} is damaged', read, tmp_path)


def test_deeply_nested_metadata_are_rejected():
  metadata = {'format': layout.FORMAT, 'format_version': '1', 'class_names': '["a"]', 'num_steps': '1'}
  rejects(
    UsageError, r'metadata of a.x is damaged', layout.from_metadata, 'a.x', metadata | {'config': hostile.DEEP}, {}
  )


def test_deeply_nested_metadata_of_an_array_are_rejected(trained_run, tmp_path, capsys):
  """TensorStore would quote them in an error, and overflow the stack."""
  run = shutil.copytree(trained_run, tmp_path / 'run')
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': f'file://{run}/checkpoints/7/state/'}).result()
  name = 'params.conv1.bias/.zarray'
  metadata = json.loads(store.read(name).result().value) | {'dtype': 'DEEP'}
  load = functools.partial(trained_model.load, batch_size=1, num_data=1, num_tower=1)
  store.write(name, json.dumps(metadata).replace('"DEEP"', hostile.DEEP).encode()).result()
  rejects(RunError, r'none of the 1 checkpoint\(s\) .* can be read', load, run)
  assert 'step 7 in' in (line := capsys.readouterr().out)
  assert 'maximum recursion depth exceeded' in line


# Weights.


@pytest.mark.parametrize('values', [[np.nan], [-np.inf], np.zeros(1, int), np.array(['1'])])
def test_tensors_that_are_not_finite_floats_are_rejected(values):
  message = r'a.x does not .*: a contains values other than finite floating-point numbers'
  rejects(UsageError, message, layout.check_shapes, 'a.x', {'a': np.array(values)}, {'a': (1,)})


def test_names_of_tensors_do_not_break_the_message():
  tensors = {f'{number}\n\x1b[2J' * 99: np.zeros(1) for number in range(999)}
  rejects(UsageError, r'0\\n\\x1b.* is unexpected; .* and 979 more', layout.check_shapes, 'a.x', tensors, {})


def test_class_names_must_be_names():
  weights = hostile.small_weights()
  metadata = layout.to_metadata(weights)
  for names in ('{"a": 1}', '"abc"', '[1, 2, 3]', '[]'):
    changed = metadata | {'class_names': names}
    rejects(UsageError, 'class_names is not a list of names', layout.from_metadata, 'a.x', changed, {})
  for name in ('a\nb', 'a\rb'):
    changed = metadata | {'class_names': json.dumps([name, 'c'])}
    rejects(UsageError, 'a class name contains a line break', layout.from_metadata, 'a.x', changed, {})
  rejects(UsageError, 'num_steps=-1', layout.from_metadata, 'a.x', metadata | {'num_steps': '-1'}, {})


def test_onnx_does_not_read_other_files(tmp_path):
  (tmp_path / 'other').write_bytes(bytes(64))
  model = onnx.ModelProto()
  array = model.graph.initializer.add(name='a', data_type=1, dims=[16], data_location=onnx.TensorProto.EXTERNAL)
  for location in ('other', '../../outside', ''):
    del array.external_data[:]
    array.external_data.add(key='location', value=location)
    (tmp_path / 'a.onnx').write_bytes(model.SerializeToString())
    rejects(UsageError, rf'{tmp_path}/a.onnx .*\(its tensors are in other files', onnx_files.read, tmp_path / 'a.onnx')


@pytest.mark.parametrize('fields', [{'dims': [2**40], 'raw_data': b'abcd'}, {'data_type': 2**31 - 1}, {'data_type': 0}])
def test_damaged_arrays_of_onnx_are_rejected(fields, tmp_path):
  model = onnx.ModelProto()
  model.graph.initializer.add(**{'name': 'a', 'data_type': 1, 'dims': [1]} | fields)
  (tmp_path / 'a.onnx').write_bytes(model.SerializeToString())
  rejects(UsageError, rf'{tmp_path}/a.onnx is not an ONNX file, or is damaged', onnx_files.read, tmp_path / 'a.onnx')


def test_the_size_of_a_caffe_blob_does_not_overflow(tmp_path):
  model = caffe_files._message_class('NetParameter')(name='AlexNet')
  model.layer.add(name='fc8').blobs.add().shape.dim.extend([2**32, 2**32])
  (tmp_path / 'a.caffemodel').write_bytes(model.SerializeToString())
  rejects(UsageError, 'fc8.weight of .* has 0 values for the shape', caffe_files.read, tmp_path / 'a.caffemodel')


def test_damaged_layers_of_caffe_are_rejected(tmp_path):
  model = caffe_files._message_class('NetParameter')(name='AlexNet')
  blob = model.layer.add(name='conv1').blobs.add(data=[1.0])
  blob.shape.dim.append(1)
  (tmp_path / 'a.caffemodel').write_bytes(model.SerializeToString())
  rejects(UsageError, 'conv1.weight is 1 and should be', caffe_files.read, tmp_path / 'a.caffemodel')
  (tmp_path / 'a.caffemodel').write_bytes(model.SerializeToString().replace(b'conv1', b'con\xff1'))
  rejects(UsageError, 'con\ufffd1.weight is unexpected', caffe_files.read, tmp_path / 'a.caffemodel')


def npy(shape, dtype='<f8'):
  header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
  return b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') + header


@pytest.mark.parametrize('content', [npy(f'(3, {2**40}, 1)'), npy('(3,') + bytes(99), npy('(3,1,1)') + b'\xff' * 24])
def test_damaged_mean_images_are_rejected(content, tmp_path):
  (tmp_path / 'mean.npy').write_bytes(content)
  rejects(UsageError, rf'The mean image {tmp_path}/mean.npy c', caffe_files.read_mean_image, tmp_path / 'mean.npy')


@pytest.mark.parametrize(
  ('tensor', 'message'),
  [
    (torch.ones(1, dtype=torch.float16).expand(2**40), 'expanded'),
    (torch.ones(2).to_sparse(), 'sparse'),
    (torch.ones(2**40, device='meta'), 'on no device'),
  ],
)
def test_tensors_larger_than_their_file_are_rejected(tensor, message, tmp_path):
  torch.save({'features.0.weight': tensor}, tmp_path / 'a.pth')
  rejects(UsageError, rf'of {tmp_path}/a.pth .*{message}', torchvision_files.read, tmp_path / 'a.pth')


def test_damaged_and_compressed_pickles_are_rejected(tmp_path):
  path, buffer = tmp_path / 'a.pth', io.BytesIO()
  torch.save({'a': torch.zeros(9)}, buffer)
  with zipfile.ZipFile(buffer) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  for pickled, compression in ((b'\x80\2.', zipfile.ZIP_STORED), (None, zipfile.ZIP_DEFLATED)):
    with zipfile.ZipFile(path, 'w', compression) as archive:
      for name, content in members.items():
        archive.writestr(name, pickled if pickled and name.endswith('.pkl') else content)
      if pickled is None:
        archive.writestr('archive/data/1', bytes(10**7))
    rejects(UsageError, rf'{path} is truncated or contains objects other than tensors', torchvision_files.read, path)


def test_long_names_do_not_lengthen_the_message_of_safetensors(tmp_path):
  (tmp_path / 'a.safetensors').write_bytes(
    len(header := json.dumps('x' * 9000).encode()).to_bytes(8, 'little') + header
  )
  rejects(UsageError, 'is not a safetensors file', weight_files.read, tmp_path / 'a.safetensors')


@pytest.mark.parametrize('name', ['/dev/zero', '../outside', 'a/b'])
def test_checksums_are_of_files_in_the_folder(name, tmp_path):
  (tmp_path / 'probe.json').write_text(json.dumps({'logits': [1.0], 'tolerance': 1, 'sha256': {name: ''}}))
  rejects(RunError, rf'{tmp_path}/probe.json is damaged', huggingface_files.read_expected, tmp_path)


# Archives.


def test_a_kit_that_unpacks_to_gigabytes_is_rejected(tmp_path, monkeypatch):
  miniature.write_ilsvrc2012(tmp_path, per_class=1)
  kit = tmp_path / 'ILSVRC2012_devkit_t12.tar.gz'
  kit.write_bytes(gzip.compress(bytes(10**6), 1))
  monkeypatch.setattr(archives, 'MAX_KIT_BYTES', 10**6 - 1)
  rejects(RunError, rf'{kit} is damaged or .*it is larger than 999,999 bytes', archives.index_ilsvrc2012, tmp_path)
  kit.write_bytes(b'no tar')
  rejects(RunError, rf'{kit} is damaged or not an archive', archives.index_ilsvrc2012, tmp_path)


def crash(*_, **__):
  os._exit(1)


def test_a_kit_that_crashes_its_reader_is_rejected(tmp_path, monkeypatch):
  miniature.write_ilsvrc2012(tmp_path, per_class=1)
  monkeypatch.setattr(archives.scipy.io, 'loadmat', crash)
  rejects(RunError, rf'meta.mat of {tmp_path}.* is damaged .*terminated', archives.index_ilsvrc2012, tmp_path)


def test_a_member_of_a_kit_with_an_impossible_size_is_rejected(tmp_path):
  miniature.write_ilsvrc2012(tmp_path, per_class=1)
  kit = tmp_path / 'ILSVRC2012_devkit_t12.tar.gz'
  info = tarfile.TarInfo('meta.mat')
  info.size = 2**63
  kit.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
  rejects(RunError, f'{kit} is damaged or not an archive', archives.index_ilsvrc2012, tmp_path)


def test_a_kit_whose_classes_have_no_words_is_rejected(tmp_path):
  kit = tmp_path / 'ILSVRC2012_devkit_t12.tar.gz'
  table = np.array([(0, 'n01', 1)], [('num_children', int), ('WNID', object), ('ILSVRC2012_ID', int)])
  scipy.io.savemat(file := io.BytesIO(), {'synsets': table})
  kit.write_bytes(gzip.compress(miniature.make_tar({'meta.mat': file.getvalue()})))
  rejects(UsageError, f'{kit} is not the development kit of ILSVRC2012', archives.index_ilsvrc2012, tmp_path)


def test_a_sparse_member_of_a_kit_is_not_expanded(tmp_path):
  miniature.write_ilsvrc2012(tmp_path, per_class=1)
  kit = tmp_path / 'ILSVRC2012_devkit_t12.tar.gz'
  info = tarfile.TarInfo('meta.mat')
  info.type = tarfile.GNUTYPE_SPARSE
  header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  header[483:495] = b'%011o ' % 2**32  # the size of the expanded file
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  kit.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
  rejects(UsageError, 'meta.mat is neither in', archives.index_ilsvrc2012, tmp_path)


def test_a_member_of_a_zip_archive_ends_with_the_archive(tmp_path):
  path = tmp_path / 'tiny.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('tiny/words.txt', b'')
  content = bytearray(path.read_bytes())
  directory = content.index(b'PK\1\2')
  content[directory + 20 : directory + 24] = b'\xf0\xff\xff\xff'  # the compressed size
  path.write_bytes(content)
  rejects(RunError, rf'{path} is damaged .*ends in the middle of words.txt', archives.index_tiny_imagenet, path)


def test_a_damaged_list_in_a_zip_archive_is_named(tmp_path):
  path = tmp_path / 'tiny.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('tiny/words.txt', b'a' * 99)
  content = bytearray(path.read_bytes())
  content[30 + len('tiny/words.txt')] = 0xFF  # a block type that does not exist
  path.write_bytes(content)
  rejects(RunError, rf'words.txt in {path} cannot be read', archives.index_tiny_imagenet, path)


# Runs.


@pytest.mark.parametrize(
  'change',
  [
    {'centre': 3},
    {'centre': {'top1_error': 40.0}},
    {'centre': ERRORS | {'top1_error': 'x'}},
    {'centre': ERRORS | {'top5_error': float('nan')}},
    {'dataset': {}},
    {'num_examples': '9'},
  ],
)
def test_results_of_other_types_are_rejected(change, tmp_path):
  (tmp_path / 'results.json').write_text(json.dumps(RESULTS | {'centre': ERRORS}))
  assert run_folder.load_results(tmp_path, 7)['centre'] == ERRORS
  (tmp_path / 'results.json').write_text(json.dumps(RESULTS | {'centre': ERRORS} | change))
  rejects(UsageError, rf'{tmp_path}/results.json is damaged', run_folder.load_results, tmp_path, 7)


def test_an_invalid_config_is_named(tmp_path):
  fields = networks.small_config().to_dict()
  fields['data']['unreadable'] = 'a\nb' * 5000
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  rejects(UsageError, rf'{tmp_path}/config.json is invalid: data.unreadable', run_folder.load_config, tmp_path)


def test_class_names_that_are_no_text_are_rejected(tmp_path):
  (tmp_path / 'classes.txt').write_bytes(b'\xff\xfe')
  rejects(UsageError, rf'{tmp_path}/classes.txt is damaged', run_folder.load_classes, tmp_path)


@pytest.mark.parametrize('labels', [np.full(2, 3, np.int32), np.full(2, -3, np.int32), np.zeros(2, np.float32)])
def test_predictions_with_invalid_labels_are_not_loaded(labels, tmp_path):
  files = saved_predictions.PredictionFiles(tmp_path, dataset='a', split='b', crop_set='centre')
  files.save([(np.zeros((2, 3), np.float32), np.array([-2, 2]))], num_steps=1, shape=(2, 3))
  assert files.load() is not None
  np.save(files.folder / 'labels.npy', labels)
  assert files.load() is None


@pytest.mark.parametrize(('dtype', 'sides'), [(1, [2**40]), (0, []), (1, [2, 3])])
def test_curves_of_other_values_are_rejected(dtype, sides, tmp_path):
  event = event_pb2.Event(step=1)
  value = event.summary.value.add(tag='a')
  value.metadata.plugin_data.plugin_name = 'scalars'
  value.tensor.dtype = dtype
  value.tensor.float_val.append(1.0)
  for side in sides:
    value.tensor.tensor_shape.dim.add(size=side)
  (tmp_path / 'tensorboard').mkdir()
  (tmp_path / 'tensorboard' / 'events.out.tfevents.1').write_bytes(hostile.to_records([event.SerializeToString()]))
  rejects(RunError, rf'the curves in {tmp_path}/tensorboard cannot be read', curves.read_curves, tmp_path)


# Datasets.


@pytest.fixture
def digits(prepared_digits, tmp_path):
  """A config of the digits in a folder of the test, and that folder."""
  folder = tmp_path / 'digits' / '1.0.0'
  hostile.write_files(folder, hostile.files_of(prepared_digits / 'digits' / '1.0.0'))
  config = networks.small_config().data
  config.dir = str(tmp_path)
  return config, folder


@pytest.mark.parametrize('content', [b'', b'\xa8', b'[1]', hostile.DEEP.encode(), b'{"splits": 3}'])
def test_a_damaged_description_of_a_dataset_is_rejected(content, digits):
  config, folder = digits
  (folder / 'dataset_info.json').write_bytes(content)
  rejects(UsageError, rf'cannot be opened in {config.dir}', sources.open_splits, config, 8, ['test'])


def test_a_dataset_of_another_version_is_not_mistaken(digits):
  config, folder = digits
  config.name = 'cifar10'
  (folder.parents[1] / 'cifar10').mkdir()
  folder.rename(folder.parents[1] / 'cifar10' / '9.9.9')
  rejects(UsageError, rf"'{config.dir}' contains no prepared 'cifar10'", sources.open_splits, config, 8, ['test'])


def test_unreadable_records_name_their_folder(digits):
  config, folder = digits
  (folder / 'digits-test.array_record-00000-of-00001').write_bytes(b'short')

  def read():
    (source,) = sources.open_splits(config, 8, ['test'])
    return source[0]

  rejects(RunError, re.escape(str(folder)), read)
