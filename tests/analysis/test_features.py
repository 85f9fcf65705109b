import json
import shutil

import numpy as np
import pytest

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import features, neighbours
from alexnet_jax.data import image_io
from alexnet_jax.evaluation import trained_model
from alexnet_jax.runtime.errors import RunError, UsageError
from tests import miniature
from tests.analysis.test_neighbours import search


@pytest.fixture(scope='module')
def network(trained_run):
  return trained_model.load(trained_run, batch_size=8, num_data=1, num_tower=1)


def of_split(trained_run, split, batch_size=8):
  return features.dataset(trained_run, 96, split=split, batch_size=batch_size)


def one_by_one(network, pictures, layer):
  return np.concatenate([np.asarray(network.activations(picture[None], layer)) for picture in pictures])


@pytest.mark.parametrize('layer', ['fc7', 'conv3'])
def test_every_image_of_a_split_once_whatever_the_batch(trained_run, network, tmp_path, layer):
  split = of_split(trained_run, 'test[:21]')
  assert features.extract(network, split, layer, trained_run, tmp_path / 'out') == {}
  found = features.load(tmp_path / 'out')
  expected = one_by_one(network, (split.source[i]['image'] for i in range(21)), layer)
  assert found.features.dtype == np.float32
  np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(found.labels, [split.source[i]['label'] for i in range(21)])
  assert found.names[:2] + found.names[20:] == ['test[:21]/0', 'test[:21]/1', 'test[:21]/20']
  assert found.about == {
    'run': str(trained_run),
    'step': 7,
    'layer': layer,
    'shape': list(network.layer_shape(layer)),
    'dataset': 'digits/1.0.0',
    'split': 'test[:21]',
  }


def test_records_that_are_skipped_have_no_row(trained_run, network, tmp_path):
  split = of_split(trained_run, 'test[:21]')
  split.source._skips, split.source._records, split.source._kept = True, list(split.source._records), None
  split.source._records[3] = split.source._records[20] = b'no record'
  skipped = features.extract(network, split, 'fc7', trained_run, tmp_path / 'out')
  assert list(skipped) == ['test[:21]/3', 'test[:21]/20']
  found = features.load(tmp_path / 'out')
  rest = [i for i in range(21) if i not in (3, 20)]
  assert found.names == [f'test[:21]/{i}' for i in rest]
  expected = one_by_one(network, (split.source[i]['image'] for i in rest), 'fc7')
  np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-4)


class Interrupted(features.Dataset):
  """Ends after some batches, as if the user had pressed ^C."""

  def batches(self, first):
    for number, batch in enumerate(super().batches(first)):
      if number == 2:
        raise KeyboardInterrupt
      yield batch


def test_an_interrupted_extraction_never_looks_finished_and_goes_on(trained_run, network, tmp_path, capsys):
  split, out = of_split(trained_run, 'test[:37]'), tmp_path / 'out'
  for seen in (16, 32):
    with pytest.raises(KeyboardInterrupt):
      features.extract(network, Interrupted(split.source, split._config), 'fc7', trained_run, out)
    with pytest.raises(UsageError, match='holds no features'):
      features.load(out)
    assert json.loads((tmp_path / 'out.partial' / 'done.json').read_text())['seen'] == seen
    with open(tmp_path / 'out.partial' / 'features.npy', 'ab') as file:  # half a batch, of which nothing is said
      file.write(b'x' * 1000)
  features.extract(network, split, 'fc7', trained_run, out)
  assert 'going on: 32 images are done' in capsys.readouterr().out
  assert not (tmp_path / 'out.partial').exists()
  features.extract(network, split, 'fc7', trained_run, tmp_path / 'through')
  for name in ('features.npy', 'labels.npy', 'names.json', 'about.json'):
    assert (out / name).read_bytes() == (tmp_path / 'through' / name).read_bytes()


@pytest.mark.parametrize(('layer', 'batch_size'), [('fc6', 8), ('fc7', 4)])
def test_another_extraction_of_that_name_begins_anew(trained_run, network, tmp_path, layer, batch_size, capsys):
  other = of_split(trained_run, 'test[:21]', batch_size)
  with pytest.raises(KeyboardInterrupt):
    features.extract(network, Interrupted(other.source, other._config), layer, trained_run, tmp_path / 'out')
  features.extract(network, of_split(trained_run, 'test[:21]'), 'fc7', trained_run, tmp_path / 'out')
  assert 'images of another call; beginning anew' in capsys.readouterr().out
  features.extract(network, of_split(trained_run, 'test[:21]'), 'fc7', trained_run, tmp_path / 'through')
  assert (tmp_path / 'out' / 'features.npy').read_bytes() == (tmp_path / 'through' / 'features.npy').read_bytes()


def test_two_at_once_do_not_mix(trained_run, network, tmp_path):
  (tmp_path / 'out.partial').mkdir()
  with (
    features._Growing(tmp_path / 'out.partial' / 'features.npy', (256,), np.float32),
    pytest.raises(UsageError, match='being written by another process'),
  ):
    features.extract(network, of_split(trained_run, 'test[:8]'), 'fc7', trained_run, tmp_path / 'out')


def test_a_full_disk_is_said_before_and_when_it_happens(trained_run, network, tmp_path, monkeypatch):
  split = of_split(trained_run, 'test[:8]')
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(10, 10, 0))
  with pytest.raises(RunError, match=r'need 0.0 GB and .* has 0.0 GB left'):
    features.extract(network, split, 'fc7', trained_run, tmp_path / 'out')
  monkeypatch.undo()

  def full(self, rows):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(features._Growing, 'append', full)
  with pytest.raises(RunError, match='No space left on device'):
    features.extract(network, split, 'fc7', trained_run, tmp_path / 'out')


def test_files_that_cannot_be_read_are_named_and_left_out(trained_run, network, tmp_path, capsys):
  """On the command line, on all four devices, the last batch not full."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  for number in range(9):
    (folder / f'{number}.jpg').write_bytes(miniature.picture(number))
  (folder / '4.jpg').write_bytes(miniature.picture(4)[:200])
  (folder / '7.jpg').write_text('no image')
  out = tmp_path / 'out'
  assert cli.main(['features', 'extract', str(trained_run), str(out), '--images', str(folder), '--batch_size=4']) == 3
  printed = capsys.readouterr()
  assert '2 image(s) cannot be read' in printed.out
  assert f'{folder}/7.jpg: it is no image in a known format' in printed.out
  assert f'left out: {folder}/4.jpg' in printed.err
  found = features.load(out)
  kept = [folder / f'{number}.jpg' for number in (0, 1, 2, 3, 5, 6, 8)]
  assert found.names == [str(path) for path in kept]
  assert list(found.labels) == [-1] * 7
  expected = one_by_one(network, [image_io.read_square(path, 96) for path in kept], 'fc7')
  np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-4)
  (folder / '7.jpg').rename(tmp_path / '7.jpg')
  arguments = [
    'extract',
    str(trained_run),
    str(tmp_path / 'none'),
    '--images',
    str(tmp_path / '7.jpg'),
    '--batch_size=4',
  ]
  assert cli.main(['features', *arguments]) == 1
  assert not (tmp_path / 'none').exists()


def test_neighbours_on_the_command_line(trained_run, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)  # away from what a user left where --output points by itself
  queries, train, other = (str(tmp_path / name) for name in ('queries', 'train', 'other'))
  assert cli.main(['features', 'extract', str(trained_run), queries, '--split=test[:5]', '--batch_size=7']) == 0
  assert cli.main(['features', 'extract', str(trained_run), train, '--split=train[:50]', '--batch_size=8']) == 0
  output = tmp_path / 'near.npz'
  assert cli.main(['features', 'neighbours', queries, train, '--k=3', f'--output={output}']) == 0
  found, rows = np.load(output), features.load(tmp_path / 'train').features
  expected, distances = search(np.asarray(features.load(tmp_path / 'queries').features), np.asarray(rows), 3)
  np.testing.assert_array_equal(found['indices'], expected)
  np.testing.assert_array_equal(found['distances'], distances)
  assert f'test[:5]/0: train[:50]/{expected[0, 0]} (' in capsys.readouterr().out

  assert (
    cli.main(['features', 'extract', str(trained_run), other, '--split=test[:5]', '--batch_size=8', '--layer=fc6']) == 0
  )
  capsys.readouterr()
  for arguments, sentence in (
    ([queries, train, '--k=3', f'--output={output}'], 'is there already'),
    ([queries, train, '--k=51'], '--k=51 must be 1 to 50'),
    ([other, train], 'are of another layer (fc6 and fc7)'),
    ([str(trained_run), train], 'holds no features'),
  ):
    assert cli.main(['features', 'neighbours', *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert sentence in error


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (['{run}', '{new}', '--layer=fc9'], "this network has no layer 'fc9'; it has conv1, pool1, conv2, pool2, conv3"),
    (['{run}', '{new}', '--images', '{empty}'], 'has no image in it'),
    (['{empty}', '{new}'], 'holds no run'),
    (['{run}', '{empty}'], 'is there already'),
    (['{run}', '{new}', '--split=nowhere'], "has no split 'nowhere'"),
    (['{run}', '{new}', '--images', '{empty}', '--split=test'], '--images are no dataset'),
    (['{run}', '{new}', '--batch_size=0'], '--batch_size=0 must be 1 or more'),
  ],
)
def test_wrong_usage_is_one_sentence(trained_run, tmp_path, capsys, arguments, sentence):
  (tmp_path / 'empty').mkdir()
  places = {'run': trained_run, 'new': tmp_path / 'new', 'empty': tmp_path / 'empty'}
  assert cli.main(['features', 'extract', *(argument.format(**places) for argument in arguments)]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ')
  assert sentence in error
  assert not (tmp_path / 'new').exists()


def test_damaged_features_are_said(trained_run, network, tmp_path):
  features.extract(network, of_split(trained_run, 'test[:8]'), 'fc7', trained_run, tmp_path / 'out')
  (tmp_path / 'out' / 'labels.npy').write_bytes(b'no numbers')
  with pytest.raises(UsageError, match='are damaged'):
    features.load(tmp_path / 'out')


def test_copies_of_an_image_are_found_in_real_features(trained_run, network, tmp_path):
  """The same images twice: each is its own nearest neighbour, and the copy is the next."""
  features.extract(network, of_split(trained_run, 'train[:60]'), 'fc7', trained_run, tmp_path / 'out')
  rows = np.asarray(features.load(tmp_path / 'out').features)
  indices, distances = neighbours.nearest(rows, np.concatenate([rows, rows]), 2)
  np.testing.assert_array_equal(indices, np.stack([np.arange(60), 60 + np.arange(60)], axis=1))
  np.testing.assert_array_equal(distances, 0)
