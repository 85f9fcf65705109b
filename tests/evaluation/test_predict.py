import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import image_io, transforms
from alexnet_jax.evaluation import predict, trained_model
from alexnet_jax.runtime.errors import RunError, UsageError

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


@pytest.mark.parametrize(('mirror', 'crops'), [(True, transforms.ten_crops), (False, transforms.centre_crop_only)])
def test_pictures_get_the_classes_that_the_network_gives_them(
  trained_run, pictures, config, tmp_path, capsys, mirror, crops
):
  """Half of ten views are mirrored; a network that never saw such in training looks at the centre."""
  config.augment.mirror = mirror
  output = tmp_path / 'found.json'
  assert predict.predict_files([str(pictures)], trained_run, config, str(output)) == 1
  found = json.loads(output.read_text())
  assert [picture['file'] for picture in found['pictures']] == [str(pictures / f'{i:02}.png') for i in range(35)]
  assert len(found['skipped']) == 1
  assert '17-broken.jpg' in found['skipped'][0]
  assert '17-broken.jpg' in capsys.readouterr().err

  network = trained_model.load(trained_run, batch_size=1, num_data=1)
  for i in (0, 20, 34):
    image = image_io.read_square(pictures / f'{i:02}.png', 96)[None]
    probs = np.exp(np.asarray(network.log_probs(image, crops(32)))[0])
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
def test_wrong_usage_is_one_sentence(trained_run, pictures, config, paths, output, sentence):
  with pytest.raises(UsageError, match=sentence):
    predict.predict_files([path.format(pictures) for path in paths], trained_run, config, output)


def test_a_drawing_of_too_many_pictures_is_refused(trained_run, pictures, config):
  for i in range(10):
    shutil.copy(pictures / '00.png', pictures / f'more{i}.png')
  with pytest.raises(UsageError, match=r'would show 46 pictures; draw 40 or fewer'):
    predict.predict_files([str(pictures)], trained_run, config, 'found.png')


def test_no_picture_at_all_is_an_error(trained_run, pictures, config):
  with pytest.raises(RunError, match='none of the 1 pictures can be read'):
    predict.predict_files([str(pictures / '17-broken.jpg')], trained_run, config)


def test_what_a_stage_says(trained_run, config):
  network = trained_model.load(trained_run, batch_size=4, num_data=2, num_tower=2)
  image = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
  assert network.layer_shapes()['pool1'] == (7, 7, 6)
  for stage, shape in network.layer_shapes().items():
    assert network.activations(image, stage).shape == (4, *shape)
  log_probs = jax.nn.log_softmax(np.asarray(network.activations(image, 'fc8')))
  np.testing.assert_allclose(log_probs, network.log_probs(image, (transforms.centre_crop(32),)), rtol=1e-5)
  with pytest.raises(UsageError, match="this network has no 'conv7'; it has conv1, "):
    network.activations(image, 'conv7')


@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_pictures_are_drawn_with_their_classes(trained_run, pictures, config, tmp_path, suffix):
  output = tmp_path / f'found.{suffix}'
  assert predict.predict_files([str(pictures / '0*.png')], trained_run, config, str(output)) == 0
  assert output.stat().st_size > 10_000
  with pytest.raises(RunError, match='cannot be written'):
    predict.predict_files([str(pictures / '00.png')], trained_run, config, str(tmp_path / 'nowhere' / output.name))
