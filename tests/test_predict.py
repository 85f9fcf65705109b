import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from alexnet_jax import augment, images, predict, trained
from alexnet_jax.errors import RunError, UsageError

NAMES = list('0123456789')


@pytest.fixture
def pictures(tmp_path):
  """Thirty-five pictures of different sizes, more than a batch, and one that is none."""
  folder = tmp_path / 'pictures'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(35):
    pixels = rng.integers(0, 256, (3 + i, 5, 3), np.uint8)
    PIL.Image.fromarray(pixels).resize((100 + i, 150)).save(folder / f'{i:02}.png')
  (folder / '17-broken.jpg').write_bytes(b'\xff\xd8 no more')
  return folder


@pytest.mark.parametrize(('mirror', 'views'), [(True, augment.ten_views), (False, augment.centre_view)])
def test_pictures_get_the_classes_that_the_network_gives_them(
  run_folder, pictures, config, tmp_path, capsys, mirror, views
):
  """Half of ten views are mirrored; a network that never saw such in training looks at the centre."""
  config.augment.mirror = mirror
  output = tmp_path / 'found.json'
  assert predict.predict_files([str(pictures)], run_folder, config, str(output)) == 1
  found = json.loads(output.read_text())
  assert [picture['file'] for picture in found['pictures']] == [str(pictures / f'{i:02}.png') for i in range(35)]
  assert len(found['skipped']) == 1
  assert '17-broken.jpg' in found['skipped'][0]
  assert '17-broken.jpg' in capsys.readouterr().err

  network = trained.load(run_folder, batch_size=1, num_data=1)
  for i in (0, 20, 34):
    image = images.read_square(pictures / f'{i:02}.png', 96)[None]
    probs = np.exp(np.asarray(network.log_probs(image, views(32)))[0])
    best = np.argsort(-probs)[:5]
    assert [row['class'] for row in found['pictures'][i]['classes']] == [NAMES[label] for label in best]
    np.testing.assert_allclose([row['probability'] for row in found['pictures'][i]['classes']], probs[best], rtol=1e-4)
  assert len({json.dumps(picture['classes']) for picture in found['pictures']}) == 35


@pytest.mark.parametrize(
  ('paths', 'output', 'sentence'),
  [
    ([], None, 'name pictures: files, folders, or patterns in quotes'),
    (['nowhere.png'], None, r'nowhere\.png does not exist'),
    (['{}'], 'found.txt', r'--output=found\.txt must end in \.json, \.png, \.svg or \.pdf'),
  ],
)
def test_wrong_usage_is_one_sentence(run_folder, pictures, config, paths, output, sentence):
  with pytest.raises(UsageError, match=sentence):
    predict.predict_files([path.format(pictures) for path in paths], run_folder, config, output)


def test_a_drawing_of_too_many_pictures_is_refused(run_folder, pictures, config):
  for i in range(10):
    shutil.copy(pictures / '00.png', pictures / f'more{i}.png')
  with pytest.raises(UsageError, match=r'would show 46 pictures; draw 40 or fewer'):
    predict.predict_files([str(pictures)], run_folder, config, 'found.png')


def test_no_picture_at_all_is_an_error(run_folder, pictures, config):
  with pytest.raises(RunError, match='none of the 1 pictures can be read'):
    predict.predict_files([str(pictures / '17-broken.jpg')], run_folder, config)


def test_what_a_stage_says(run_folder, config):
  network = trained.load(run_folder, batch_size=4, num_data=2, num_tower=2)
  image = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
  assert network.stages()['pool1'] == (7, 7, 6)
  for stage, shape in network.stages().items():
    assert network.activations(image, stage).shape == (4, *shape)
  log_probs = jax.nn.log_softmax(np.asarray(network.activations(image, 'fc8')))
  np.testing.assert_allclose(log_probs, network.log_probs(image, (augment.centre(32),)), rtol=1e-5)
  with pytest.raises(UsageError, match="this network has no 'conv7'; it has conv1, "):
    network.activations(image, 'conv7')


@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_pictures_are_drawn_with_their_classes(run_folder, pictures, config, tmp_path, suffix):
  output = tmp_path / f'found.{suffix}'
  assert predict.predict_files([str(pictures / '0*.png')], run_folder, config, str(output)) == 0
  assert output.stat().st_size > 10_000
  with pytest.raises(RunError, match='cannot be written'):
    predict.predict_files([str(pictures / '00.png')], run_folder, config, str(tmp_path / 'nowhere' / output.name))
