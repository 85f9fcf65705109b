import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import PIL.Image
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import features, projector
from alexnet_jax.data import image_io
from alexnet_jax.evaluation import trained_model
from tests import miniature


@pytest.fixture(scope='module')
def extracted(trained_run, tmp_path_factory):
  """A folder with two layers of 21 test images and the files of the projector for 10 of them."""
  folder = tmp_path_factory.mktemp('features') / 'out'
  arguments = [str(trained_run), str(folder), '--layer=pool5,fc7', '--split=test[:21]', '--batch_size=8']
  assert cli.main(['features', 'extract', *arguments]) == 0
  assert cli.main(['features', 'project', str(folder), '--num_images=10']) == 0
  return folder


def parsed(folder):
  """Parses the configuration as TensorBoard does."""
  return text_format.Parse((folder / 'projector_config.pbtxt').read_text(), ProjectorConfig())


def read_table(folder):
  header, *lines = (folder / 'metadata.tsv').read_text().splitlines()
  assert header == 'class\tname'
  return [line.split('\t') for line in lines]


def test_tensors_labels_and_thumbnails_are_those_of_the_same_images(trained_run, extracted):
  source = features.open_dataset(trained_run, 64, split='test[:21]').source
  table = read_table(extracted)
  assert len({name for _, name in table}) == 10
  embeddings = {embedding.tensor_name: embedding for embedding in parsed(extracted).embeddings}
  assert sorted(embeddings) == ['fc7', 'pool5']
  for layer, embedding in embeddings.items():
    loaded = features.load(extracted / layer)
    rows = np.loadtxt(extracted / embedding.tensor_path, dtype=np.float32, delimiter='\t')
    assert list(rows.shape) == list(embedding.tensor_shape)
    expected = [loaded.features[loaded.names.index(name)].reshape(-1) for _, name in table]
    np.testing.assert_array_equal(rows, expected)
  sprite = np.asarray(PIL.Image.open(extracted / embedding.sprite.image_path))[..., :3]
  assert sprite.shape == (3 * 64, 4 * 64, 3)  # ten images in three rows of four
  for index, (class_name, name) in enumerate(table):
    example = source[int(name.rpartition('/')[2])]
    assert class_name == source.class_names[example['label']]
    top, left = 64 * (index // 4), 64 * (index % 4)
    np.testing.assert_array_equal(sprite[top : top + 64, left : left + 64], example['image'])


def test_image_files_have_thumbnails_and_no_class(trained_run, tmp_path, capsys):
  path = tmp_path / 'a\tb.jpg'  # a tab would end the cell
  path.write_bytes(miniature.make_image(0))
  network = trained_model.load(trained_run, batch_size=1, num_data=1, num_tower=1)
  features.extract(network, features.FileImages([path], 96, 1), 'fc7', trained_run, tmp_path / 'out')
  assert cli.main(['features', 'project', str(tmp_path / 'out')]) == 0
  assert f'tensorboard --logdir {tmp_path}/out' in capsys.readouterr().out
  assert read_table(tmp_path / 'out') == [['unknown', f'{tmp_path}/a b.jpg']]
  sprite = np.asarray(PIL.Image.open(tmp_path / 'out' / 'sprite.png'))[..., :3]
  np.testing.assert_array_equal(sprite, image_io.read_square(path, 64))
  path.unlink()
  assert cli.main(['features', 'project', str(tmp_path / 'out')]) == 2
  assert 'run the command in the folder where' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['{run}'], 'contains no features'),
    (['{extracted}', '--num_images=0'], '--num_images=0 must be 1 or more'),
    (['{extracted}'], 'choose at most --num_images=1,'),
  ],
)
def test_wrong_usage_prints_one_message(trained_run, extracted, capsys, monkeypatch, arguments, message):
  monkeypatch.setattr(projector, 'MAX_VALUES', 300)  # fc7 has 256 units
  arguments = [argument.format(run=trained_run, extracted=extracted) for argument in arguments]
  assert cli.main(['features', 'project', *arguments]) == 2
  assert message in capsys.readouterr().err


def test_features_of_different_images_are_not_mixed(trained_run, tmp_path, capsys):
  for layer, split in (('fc6', 'test[:3]'), ('fc7', 'test[:5]'), ('fc7', 'test[:3]')):
    arguments = [str(trained_run), str(tmp_path / f'{layer}-{split[6]}'), f'--layer={layer}', f'--split={split}']
    assert cli.main(['features', 'extract', *arguments]) == 0
  assert cli.main(['features', 'project', str(tmp_path)]) == 2
  assert 'the same layer twice, or features of different images' in capsys.readouterr().err
  shutil.rmtree(tmp_path / 'fc7-3')
  assert cli.main(['features', 'project', str(tmp_path)]) == 2
  (tmp_path / 'fc7-5').rename(tmp_path / 'alone')
  assert cli.main(['features', 'project', str(tmp_path / 'alone')]) == 0


def test_a_data_folder_for_files_has_no_effect(trained_run, tmp_path, capsys):
  (tmp_path / 'a.jpg').write_bytes(miniature.make_image(0))
  arguments = [str(trained_run), str(tmp_path / 'out'), '--layer=fc7', '--images', str(tmp_path / 'a.jpg')]
  assert cli.main(['features', 'extract', *arguments]) == 0
  assert cli.main(['features', 'project', str(tmp_path / 'out'), f'--data_dir={tmp_path}']) == 2
  assert '--data_dir has no effect here' in capsys.readouterr().err


@pytest.mark.slow
def test_tensorboard_serves_the_files(extracted, tmp_path):
  log, command = tmp_path / 'log', [sys.executable, '-m', 'tensorboard.main', '--port=0', '--host=127.0.0.1']
  with log.open('w') as file, subprocess.Popen([*command, f'--logdir={extracted}'], stderr=file, stdout=file) as server:
    try:
      deadline = time.monotonic() + 120
      while not (address := re.search(r'http://127\.0\.0\.1:\d+/', log.read_text())):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)

      def get(route, **query):
        url = f'{address[0]}data/plugin/projector/{route}?{urllib.parse.urlencode(query)}'
        return urllib.request.urlopen(url, timeout=60).read()

      assert json.loads(get('runs')) == ['.']
      embeddings = json.loads(get('info', run='.'))['embeddings']
      assert [embedding['tensorName'] for embedding in embeddings] == ['fc7', 'pool5']
      table = read_table(extracted)
      loaded = features.load(extracted / 'fc7')
      expected = np.stack([loaded.features[loaded.names.index(name)] for _, name in table])
      assert embeddings[0]['tensorShape'] == list(expected.shape)
      assert get('tensor', run='.', name='fc7') == expected.tobytes()
      assert get('metadata', run='.', name='fc7') == (extracted / 'metadata.tsv').read_bytes()
      assert get('sprite_image', run='.', name='fc7') == (extracted / 'sprite.png').read_bytes()
    finally:
      server.terminate()
