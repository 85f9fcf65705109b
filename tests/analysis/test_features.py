import json
import os
import pathlib
import pkgutil
import shutil
import sys

import jax
import numpy as np
import PIL.Image
import pytest
import torch

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import features, neighbours
from alexnet_jax.data import image_io
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import feature_files, import_export
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError
from tests import miniature
from tests.analysis.test_neighbours import search
from tests.interop.conftest import torchvision_network  # noqa: F401 (a fixture)
from tests.interop.networks import assert_close, small_network
from tests.interop.test_huggingface_files import torch_network


@pytest.fixture(scope='module')
def network(trained_run):
  return trained_model.load(trained_run, batch_size=8, num_data=1, num_tower=1)


def open_split(trained_run, split, batch_size=8):
  return features.open_dataset(trained_run, 96, split=split, batch_size=batch_size)


def activations_one_by_one(network, images, layer):
  return np.concatenate([np.asarray(network.activations(image[None], layer)) for image in images])


@pytest.mark.parametrize('layer', ['fc7', 'conv3'])
def test_every_image_of_a_split_is_extracted_once(trained_run, network, tmp_path, layer):
  split = open_split(trained_run, 'test[:21]')
  assert features.extract(network, split, layer, trained_run, tmp_path / 'out') == {}
  extracted = features.load(tmp_path / 'out')
  expected = activations_one_by_one(network, (split.source[i]['image'] for i in range(21)), layer)
  assert extracted.features.dtype == np.float32
  np.testing.assert_allclose(extracted.features, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(extracted.labels, [split.source[i]['label'] for i in range(21)])
  assert extracted.names[:2] + extracted.names[20:] == ['test[:21]/0', 'test[:21]/1', 'test[:21]/20']
  assert extracted.about == {
    'run': str(trained_run),
    'step': 7,
    'layer': layer,
    'shape': list(network.layer_shape(layer)),
    'dataset': 'digits/1.0.0',
    'split': 'test[:21]',
    'fingerprint': split.source.fingerprint,
    'parameters': features._hash(network.params),
  }
  files = sorted(path.name for path in (tmp_path / 'out').iterdir())
  assert files == ['about.json', 'features.npy', 'labels.npy', 'names.json']


def test_selected_classes_are_those_of_the_dataset_of_the_run(trained_run, data_dir, tmp_path):
  run = shutil.copytree(trained_run, tmp_path / 'run', ignore=shutil.ignore_patterns('checkpoints'))
  fields = json.loads((run / 'config.json').read_text())
  fields['data'] |= {'classes': ['3', '5', '7']}
  (run / 'config.json').write_text(json.dumps(fields))
  other = tmp_path / 'tfds' / 'ilsvrc' / 'letters' / '1.0.0'
  shutil.copytree(next(pathlib.Path(data_dir).glob('digits/*')), other)
  about = json.loads((other / 'dataset_info.json').read_text()) | {'name': 'letters'}
  (other / 'dataset_info.json').write_text(json.dumps(about))
  (other / 'label.labels.txt').write_text('\n'.join('abcdefghij'))
  for name, directory, class_names in (
    (None, str(data_dir), ['3', '5', '7']),
    ('digits:1.0.0', str(data_dir), ['3', '5', '7']),
    ('ilsvrc/letters', str(tmp_path / 'tfds'), list('abcdefghij')),
  ):
    source = features.open_dataset(run, 96, split='test', name=name, directory=directory).source
    assert list(source.class_names) == class_names, name


def test_skipped_records_have_no_row(trained_run, network, tmp_path):
  split = open_split(trained_run, 'test[:21]')
  split.source._skip_unreadable, split.source._records, split.source._cache = True, list(split.source._records), None
  split.source._records[3] = split.source._records[20] = b'no record'
  skipped = features.extract(network, split, 'fc7', trained_run, tmp_path / 'out')
  assert list(skipped) == ['test[:21]/3', 'test[:21]/20']
  extracted = features.load(tmp_path / 'out')
  readable = [i for i in range(21) if i not in (3, 20)]
  assert extracted.names == [f'test[:21]/{i}' for i in readable]
  expected = activations_one_by_one(network, (split.source[i]['image'] for i in readable), 'fc7')
  np.testing.assert_allclose(extracted.features, expected, rtol=1e-4, atol=1e-4)


class InterruptedImages(features.DatasetImages):
  """Raises KeyboardInterrupt after two batches, like Ctrl-C."""

  def batches(self, first):
    for index, batch in enumerate(super().batches(first)):
      if index == 2:
        raise KeyboardInterrupt
      yield batch


def test_an_interrupted_extraction_never_looks_finished_and_resumes(trained_run, network, tmp_path, capsys):
  split, out = open_split(trained_run, 'test[:37]'), tmp_path / 'out'
  for num_seen in (16, 32):
    with pytest.raises(KeyboardInterrupt):
      features.extract(network, InterruptedImages(split.source, split._config), 'fc7', trained_run, out)
    with pytest.raises(UsageError, match='contains no features'):
      features.load(out)
    assert json.loads((tmp_path / 'out.partial' / 'done.json').read_text())['seen'] == num_seen
    with open(tmp_path / 'out.partial' / 'features.npy', 'ab') as file:  # part of a batch that done.json does not count
      file.write(b'x' * 1000)
  features.extract(network, split, 'fc7', trained_run, out)
  assert 'Resuming after 32 images' in capsys.readouterr().out
  assert not (tmp_path / 'out.partial').exists()
  features.extract(network, split, 'fc7', trained_run, tmp_path / 'uninterrupted')
  for name in ('features.npy', 'labels.npy', 'names.json', 'about.json'):
    assert (out / name).read_bytes() == (tmp_path / 'uninterrupted' / name).read_bytes()


@pytest.mark.parametrize(('layer', 'batch_size'), [('fc6', 8), ('fc7', 4)])
def test_another_extraction_to_the_same_folder_starts_anew(trained_run, network, tmp_path, layer, batch_size, capsys):
  other = open_split(trained_run, 'test[:21]', batch_size)
  with pytest.raises(KeyboardInterrupt):
    features.extract(network, InterruptedImages(other.source, other._config), layer, trained_run, tmp_path / 'out')
  features.extract(network, open_split(trained_run, 'test[:21]'), 'fc7', trained_run, tmp_path / 'out')
  assert 'images of another extraction' in capsys.readouterr().out
  features.extract(network, open_split(trained_run, 'test[:21]'), 'fc7', trained_run, tmp_path / 'new')
  assert (tmp_path / 'out' / 'features.npy').read_bytes() == (tmp_path / 'new' / 'features.npy').read_bytes()


def test_an_extraction_does_not_resume_with_another_network(trained_run, network, tmp_path, capsys):
  split = open_split(trained_run, 'test[:21]')
  with pytest.raises(KeyboardInterrupt):
    features.extract(network, InterruptedImages(split.source, split._config), 'fc7', trained_run, tmp_path / 'out')
  retrained = network._replace(params=jax.tree.map(lambda x: 2 * x, network.params))
  features.extract(retrained, split, 'fc7', trained_run, tmp_path / 'out')
  assert 'Discarding 16 images' in capsys.readouterr().out
  features.extract(network, split, 'fc7', trained_run, tmp_path / 'train')
  arguments = [str(tmp_path / 'out'), str(tmp_path / 'train'), f'--output={tmp_path / "nearest.npz"}']
  assert cli.main(['features', 'neighbours', *arguments]) == 2
  assert 'differ in parameters' in capsys.readouterr().err


def test_files_of_another_program_are_not_removed(trained_run, network, tmp_path):
  (tmp_path / 'out.partial' / 'thesis').mkdir(parents=True)
  (tmp_path / 'out.partial' / 'thesis' / 'a.tex').write_text('text')
  with pytest.raises(UsageError, match='contains files of another program; remove or rename it'):
    features.extract(network, open_split(trained_run, 'test[:8]'), 'fc7', trained_run, tmp_path / 'out')
  assert (tmp_path / 'out.partial' / 'thesis' / 'a.tex').read_text() == 'text'


def test_names_of_files_may_have_any_bytes(network, trained_run, tmp_path):
  path = tmp_path / os.fsdecode(b'caf\xe9.png')
  PIL.Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(path)
  features.extract(network, features.FileImages([path], 96, 8), 'fc7', trained_run, tmp_path / 'out')
  assert features.load(tmp_path / 'out').names == [str(path)]


def test_only_one_process_writes_to_a_folder(trained_run, network, tmp_path):
  (tmp_path / 'out.partial').mkdir()
  with (
    atomic_files.exclusive_lock(tmp_path / 'out.partial' / '.lock', 'this test failed to lock the folder'),
    pytest.raises(UsageError, match='being written by another process'),
  ):
    features.extract(network, open_split(trained_run, 'test[:8]'), 'fc7', trained_run, tmp_path / 'out')


def test_a_full_disk_is_reported_in_advance_and_when_it_happens(trained_run, network, tmp_path, monkeypatch):
  split = open_split(trained_run, 'test[:8]')
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(10, 10, 0))
  with pytest.raises(RunError, match=r'need 0.0 GB and .* has 0.0 GB left'):
    features.extract(network, split, 'fc7', trained_run, tmp_path / 'out')
  monkeypatch.undo()

  def raise_disk_full(self, rows):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(features.GrowingArray, 'append', raise_disk_full)
  with pytest.raises(RunError, match='No space left on device'):
    features.extract(network, split, 'fc7', trained_run, tmp_path / 'out')


def test_unreadable_files_are_named_and_skipped(trained_run, network, tmp_path, capsys):
  """Runs the command on all four devices with a last batch that is not full."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  for number in range(9):
    (folder / f'{number}.jpg').write_bytes(miniature.make_image(number))
  (folder / '4.jpg').write_bytes(miniature.make_image(4)[:200])
  (folder / '7.jpg').write_text('no image')
  out = tmp_path / 'out'
  assert cli.main(['features', 'extract', str(trained_run), str(out), '--images', str(folder), '--batch_size=4']) == 3
  printed = capsys.readouterr()
  assert '2 image(s) cannot be read' in printed.out
  assert f'{folder}/7.jpg: not an image in a known format' in printed.out
  assert f'skipped {folder}/4.jpg' in printed.err
  extracted = features.load(out)
  readable = [folder / f'{number}.jpg' for number in (0, 1, 2, 3, 5, 6, 8)]
  assert extracted.names == [str(path) for path in readable]
  assert list(extracted.labels) == [-1] * 7
  expected = activations_one_by_one(network, [image_io.read_square(path, 96) for path in readable], 'fc7')
  np.testing.assert_allclose(extracted.features, expected, rtol=1e-4, atol=1e-4)
  (folder / '7.jpg').rename(tmp_path / '7.jpg')
  arguments = [str(trained_run), str(tmp_path / 'none'), '--images', str(tmp_path / '7.jpg'), '--batch_size=4']
  assert cli.main(['features', 'extract', *arguments]) == 1
  assert not (tmp_path / 'none').exists()


def test_neighbours_on_the_command_line(trained_run, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)  # an existing file at the default of --output would change the messages
  queries, train, other = (str(tmp_path / name) for name in ('queries', 'train', 'other'))
  assert cli.main(['features', 'extract', str(trained_run), queries, '--split=test[:5]', '--batch_size=7']) == 0
  assert cli.main(['features', 'extract', str(trained_run), train, '--split=train[:50]', '--batch_size=8']) == 0
  output = tmp_path / 'near.npz'
  assert cli.main(['features', 'neighbours', queries, train, '--k=3', f'--output={output}']) == 0
  arrays, rows = np.load(output), features.load(tmp_path / 'train').features
  expected, distances = search(np.asarray(features.load(tmp_path / 'queries').features), np.asarray(rows), 3)
  np.testing.assert_array_equal(arrays['indices'], expected)
  np.testing.assert_array_equal(arrays['distances'], distances)
  assert f'test[:5]/0: train[:50]/{expected[0, 0]} (' in capsys.readouterr().out

  assert (
    cli.main(['features', 'extract', str(trained_run), other, '--split=test[:5]', '--batch_size=8', '--layer=fc6']) == 0
  )
  capsys.readouterr()
  for arguments, message in (
    ([queries, train, '--k=3', f'--output={output}'], 'already exists'),
    ([queries, train, '--k=51'], '--k=51 must be 1 to 50'),
    ([other, train], 'differ in layer (fc6 and fc7)'),
    ([str(trained_run), train], 'contains no features'),
  ):
    assert cli.main(['features', 'neighbours', *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert message in error


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ['{run}', '{new}', '--layer=fc9'],
      "this network has no layer 'fc9'; its layers are conv1, pool1, conv2, pool2, conv3",
    ),
    (['{run}', '{new}', '--images', '{empty}'], 'contains no image'),
    (['{empty}', '{new}'], 'contains no run'),
    (['{run}', '{empty}'], 'already exists'),
    (['{run}', '{new}', '--split=nowhere'], "has no split 'nowhere'"),
    (['{run}', '{new}', '--images', '{empty}', '--split=test'], '--images replaces the dataset'),
    (['{run}', '{new}', '--batch_size=0'], '--batch_size=0 must be 1 or more'),
  ],
)
def test_wrong_usage_prints_one_message(trained_run, tmp_path, capsys, arguments, message):
  (tmp_path / 'empty').mkdir()
  paths = {'run': trained_run, 'new': tmp_path / 'new', 'empty': tmp_path / 'empty'}
  assert cli.main(['features', 'extract', *(argument.format(**paths) for argument in arguments)]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ')
  assert message in error
  assert not (tmp_path / 'new').exists()


def test_damaged_features_are_reported(trained_run, network, tmp_path):
  features.extract(network, open_split(trained_run, 'test[:8]'), 'fc7', trained_run, tmp_path / 'out')
  (tmp_path / 'out' / 'labels.npy').write_bytes(b'no numbers')
  with pytest.raises(UsageError, match='are damaged'):
    features.load(tmp_path / 'out')
  with pytest.raises(UsageError, match='contains no features'):
    features.load(tmp_path / 'out' / 'labels.npy')


@pytest.mark.parametrize(
  'damage',
  [
    lambda folder: np.save(folder / 'features.npy', np.float32(1)),
    lambda folder: (folder / 'about.json').write_text('{}'),
    lambda folder: (folder / 'about.json').write_text('[]'),
    lambda folder: (folder / 'names.json').write_text('3'),
  ],
)
def test_each_damaged_file_of_features_is_reported(tmp_path, damage):
  for name in ('features', 'labels'):
    np.save(tmp_path / f'{name}.npy', np.zeros(2, np.float32))
  (tmp_path / 'names.json').write_text('["a", "b"]')
  (tmp_path / 'about.json').write_text('{"run": "a", "step": 1, "layer": "fc7"}')
  assert features.load(tmp_path).names == ['a', 'b']
  damage(tmp_path)
  with pytest.raises(UsageError, match='are damaged'):
    features.load(tmp_path)


def test_the_nearest_neighbours_of_an_image_are_its_copies(trained_run, network, tmp_path):
  features.extract(network, open_split(trained_run, 'train[:60]'), 'fc7', trained_run, tmp_path / 'out')
  rows = np.asarray(features.load(tmp_path / 'out').features)
  indices, distances = neighbours.find_nearest(rows, np.concatenate([rows, rows]), 2)
  np.testing.assert_array_equal(indices, np.stack([np.arange(60), 60 + np.arange(60)], axis=1))
  np.testing.assert_array_equal(distances, 0)


def test_layers_are_extracted_together_as_they_are_alone(trained_run, network, tmp_path, capsys):
  split, layers = open_split(trained_run, 'test[:21]'), ['conv1', 'pool5', 'fc8']
  images = InterruptedImages(split.source, split._config)
  with pytest.raises(KeyboardInterrupt):
    features.extract(network, images, ['fc6', 'fc7'], trained_run, tmp_path / 'out')
  with pytest.raises(KeyboardInterrupt):
    features.extract(network, images, layers, trained_run, tmp_path / 'out')
  assert 'Discarding 16 images' in capsys.readouterr().out
  features.extract(network, split, layers, trained_run, tmp_path / 'out')
  assert 'Resuming after 16 images' in capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(layers)
  features.extract(network, split, 'pool5', trained_run, tmp_path / 'pool5')
  together, alone = (features.load(folder / 'pool5') for folder in (tmp_path / 'out', tmp_path))
  np.testing.assert_allclose(together.features, alone.features, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(together.labels, alone.labels)
  assert together[2:] == alone[2:]
  assert features.load(tmp_path / 'out' / 'fc8').features.shape == (21, 10)


def extract_as(file_format, trained_run, output):
  arguments = [str(trained_run), str(output), '--layer=conv3,relu6', '--split=test[:9]', f'--format={file_format}']
  assert cli.main(['features', 'extract', *arguments, '--batch_size=8']) == 0
  assert cli.main(['features', 'extract', *arguments[:1], f'{output}.npy', *arguments[2:-1], '--batch_size=8']) == 0
  assert not output.with_name(f'{output.name}.partial').exists()
  return [features.load(output.with_name(f'{output.name}.npy') / layer) for layer in ('conv3', 'fc6')]


def test_torch_loads_features_in_its_order_of_axes(trained_run, tmp_path):
  conv3, fc6 = extract_as('torch', trained_run, tmp_path / 'features.pt')
  loaded = torch.load(tmp_path / 'features.pt', weights_only=True)
  np.testing.assert_array_equal(loaded['features']['conv3'].permute(0, 2, 3, 1), conv3.features)
  assert loaded['features']['conv3'].is_contiguous()
  np.testing.assert_array_equal(loaded['features']['fc6'], fc6.features)
  assert loaded['labels'].dtype == torch.int64  # as cross_entropy requires
  np.testing.assert_array_equal(loaded['labels'], fc6.labels)
  assert (loaded['names'], loaded['about']) == (fc6.names, {'conv3': conv3.about, 'fc6': fc6.about})


def test_zarr_opens_features_with_named_axes(trained_run, tmp_path, monkeypatch):
  zarr = pytest.importorskip('zarr')
  monkeypatch.setattr(feature_files, 'BLOCK_BYTES', 4 * 3 * 3 * 24 * 4)  # several chunks, the last of which is not full
  conv3, fc6 = extract_as('zarr', trained_run, tmp_path / 'features.zarr')
  group = zarr.open_group(tmp_path / 'features.zarr', mode='r')
  assert sorted(group.array_keys()) == ['conv3', 'fc6', 'labels']
  np.testing.assert_array_equal(group['conv3'][:], conv3.features)
  np.testing.assert_array_equal(group['fc6'][:], fc6.features)
  np.testing.assert_array_equal(group['labels'][:], fc6.labels)
  assert group['conv3'].chunks == (4, 3, 3, 24)
  assert group['conv3'].metadata.dimension_names == ('image', 'height', 'width', 'channel')
  assert (group.attrs['names'], dict(group['fc6'].attrs)) == (fc6.names, fc6.about)


@pytest.mark.parametrize(
  ('library', 'function', 'num_completed'), [('torch', 'torch.save', 0), ('zarr', 'zarr.Group.create_array', 1)]
)
def test_an_interrupted_export_never_looks_finished(
  trained_run, network, tmp_path, monkeypatch, library, function, num_completed
):
  """The first `num_completed` calls of the library complete; the next is interrupted."""
  pytest.importorskip(library)
  write, calls, output = pkgutil.resolve_name(function), [], tmp_path / 'features'

  def interrupt(*arguments, **options):
    calls.append(arguments)
    if len(calls) > num_completed:
      raise KeyboardInterrupt
    return write(*arguments, **options)

  def extract():
    split = open_split(trained_run, 'test[:9]')
    features.extract(network, split, ['conv3', 'fc6'], trained_run, output, file_format=library)

  with monkeypatch.context() as patch:
    patch.setattr(function, interrupt)
    with pytest.raises(KeyboardInterrupt):
      extract()
  assert [path.name for path in tmp_path.iterdir()] == ['features.partial']
  extract()
  assert [path.name for path in tmp_path.iterdir()] == ['features']


@pytest.mark.parametrize('library', ['torch', 'zarr'])
def test_a_missing_library_is_reported_before_anything_is_computed(trained_run, tmp_path, capsys, monkeypatch, library):
  monkeypatch.setitem(sys.modules, library, None)
  arguments = [str(trained_run), str(tmp_path / 'out'), '--split=test[:8]', f'--format={library}']
  assert cli.main(['features', 'extract', *arguments]) == 2
  assert f'install it with pip install {library}' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


# Names of other programs.


def outputs_of(network, images):
  """Returns the outputs of all modules of a PyTorch network by name, as arrays [image, ..., channel]."""
  outputs = {}
  for name, module in network.named_modules():
    module.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output.clone()}))
  with torch.no_grad():
    network(images)
  return {name: np.moveaxis(output.numpy(), 1, -1) for name, output in outputs.items()}


@pytest.mark.parametrize(
  ('variant', 'expected'),
  [
    ('paper', {'norm1': 'conv1', 'pool1': 'pool1', 'norm2': 'conv2', 'relu5': 'conv5', 'relu7': 'fc7'}),
    pytest.param('as_run', {'relu1': 'conv1', 'pool1': 'pool1'}, marks=pytest.mark.slow),
    ('bvlc_reference_caffenet', {'relu1': 'conv1', 'norm1': 'pool1', 'relu2': 'conv2', 'norm2': 'pool2'}),
  ],
)
def test_names_denote_the_same_activations_in_the_exported_pytorch_network(variant, expected):
  weights, _, images, _ = small_network(variant)
  model = import_export.to_model(weights)
  theirs = outputs_of(torch_network(weights), torch.tensor(images.transpose(0, 3, 1, 2)))
  if variant == 'bvlc_reference_caffenet':  # alexnet_torch.py has the suffix, Caffe does not
    theirs |= {name: theirs[f'{name}_pooled'] for name in ('norm1', 'norm2')}
  names = features.other_names(model.network)
  assert names.items() >= (expected | {'relu6': 'fc6', 'fc8': 'fc8'}).items()
  checked = [name for name in names if not name.startswith(('features.', 'classifier.'))]
  layers = model.network.layer_names
  ours = dict(zip(layers, model.activations(images, layers), strict=True))
  for name in checked:
    assert_close(ours[names[name]], theirs[name])


def test_names_denote_the_same_activations_in_torchvision(torchvision_network, tmp_path):  # noqa: F811
  torch.save(torchvision_network.state_dict(), tmp_path / 'a.pth')
  model = import_export.to_model(import_export.read_weights(tmp_path / 'a.pth', mean=None, classes=None, net=None))
  images = np.random.default_rng(5).integers(0, 256, (2, 256, 256, 3), np.uint8)
  x = (images[:, 16:240, 16:240] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  theirs = outputs_of(torchvision_network, torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32))
  names = {name: layer for name, layer in features.other_names(model.network).items() if name in theirs}
  layers = model.network.layer_names
  ours = dict(zip(layers, model.activations(images, layers), strict=True))
  assert sorted(names.values()) == sorted(ours)  # every layer has a name in torchvision
  for name, layer in names.items():
    assert_close(ours[layer], theirs[name])
  assert features.layers_named(model.network, ['classifier.5', 'relu7', 'conv1', 'fc7']) == ['fc7', 'conv1']
  with pytest.raises(UsageError, match=r"no layer 'features\.0'; in torchvision it is conv1 before its nonlinearity"):
    features.layers_named(model.network, ['features.0'])
  with pytest.raises(UsageError, match=r"no layer 'norm1'; its layers are conv1, .* other names relu1, features.1"):
    features.layers_named(model.network, ['norm1'])
