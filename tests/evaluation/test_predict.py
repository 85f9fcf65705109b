import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from alexnet_jax.analysis import figures
from alexnet_jax.data import cropping, image_io
from alexnet_jax.evaluation import predict, trained_model
from alexnet_jax.runtime.errors import RunError, UsageError

NAMES = list('0123456789')


@pytest.fixture
def images(tmp_path):
  """A folder of 35 images of different sizes, more than a batch, and of a damaged file."""
  folder = tmp_path / 'images'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(35):
    pixels = rng.integers(0, 256, (3 + i, 5, 3), np.uint8)
    PIL.Image.fromarray(pixels).resize((100 + i, 150)).save(folder / f'{i:02}.png')
  (folder / '17-broken.jpg').write_bytes(b'\xff\xd8 no more')
  return folder


@pytest.mark.parametrize(('mirror', 'crops'), [(True, cropping.ten_crops), (False, cropping.centre_crop_only)])
def test_image_files_get_the_most_probable_classes(trained_run, images, config, tmp_path, capsys, mirror, crops):
  """Half of the ten crops are mirrored; a network trained without mirroring predicts the centre crop."""
  config.augment.mirror = mirror
  output = tmp_path / 'predictions.json'
  assert predict.predict_files([str(images)], trained_run, config, str(output)) == 1
  written = json.loads(output.read_text())
  assert [row['file'] for row in written['pictures']] == [str(images / f'{i:02}.png') for i in range(35)]
  assert len(written['skipped']) == 1
  assert '17-broken.jpg' in written['skipped'][0]
  assert '17-broken.jpg' in capsys.readouterr().err

  network = trained_model.load(trained_run, batch_size=1, num_data=1)
  for i in (0, 20, 34):
    image = image_io.read_square(images / f'{i:02}.png', 96)[None]
    probs = np.exp(np.asarray(network.log_probs(image, crops(32)))[0])
    best = np.argsort(-probs)[:5]
    assert [row['class'] for row in written['pictures'][i]['classes']] == [NAMES[label] for label in best]
    np.testing.assert_allclose(
      [row['probability'] for row in written['pictures'][i]['classes']], probs[best], rtol=1e-4
    )
  assert len({json.dumps(row['classes']) for row in written['pictures']}) == 35


STORED = {  # functions of an upright image: the pixels that a camera stores, by the EXIF orientation
  1: lambda upright: upright,
  2: lambda upright: upright[:, ::-1],
  3: lambda upright: np.rot90(upright, 2),
  4: lambda upright: upright[::-1],
  5: lambda upright: upright.swapaxes(0, 1),
  6: lambda upright: np.rot90(upright),  # a quarter turn to the left; it is displayed turned to the right
  7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
  8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tiff'])
def test_exif_rotates_photographs_only_if_selected(tmp_path, suffix):
  upright = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
  for orientation, stored in STORED.items():
    exif, path = PIL.Image.Exif(), tmp_path / f'{orientation}.{suffix}'
    exif[0x0112] = orientation
    image = PIL.Image.fromarray(np.ascontiguousarray(stored(upright)))
    image.save(path, exif=exif, quality=100, subsampling=0, lossless=True)
    difference = np.abs(image_io.read_square(path, 32, exif=True).astype(int) - image_io.resize_and_crop(upright, 32))
    assert difference.max() <= 3, orientation  # a JPEG is lossy
    if suffix != 'tiff':
      pixels = np.abs(image_io.decode(path.read_bytes()).astype(int) - stored(upright))
      assert pixels.max() <= 3, orientation


def test_predictions_of_rotated_photographs(trained_run, images, config, tmp_path):
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  with PIL.Image.open(images / '20.png') as image:
    image.transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / 'rotated.png', exif=exif)
  for paths, output, options in (
    ([str(images / '20.png')], 'upright', {}),
    ([str(tmp_path / 'rotated.png')], 'exif', {'exif': True}),
    ([str(tmp_path / 'rotated.png')], 'default', {}),
  ):
    predict.predict_files(paths, trained_run, config, str(tmp_path / f'{output}.json'), **options)
  upright, exif, default = (
    json.loads((tmp_path / f'{name}.json').read_text())['pictures'][0]['classes']
    for name in ('upright', 'exif', 'default')
  )
  assert exif == upright != default


@pytest.mark.parametrize(
  ('paths', 'output', 'message'),
  [
    ([], None, 'name images: files, folders, or quoted patterns'),
    (['missing.png'], None, r'missing\.png does not exist'),
    (['{}'], 'predictions.txt', r'--output=predictions\.txt must end in \.json, \.png, \.svg or \.pdf'),
  ],
)
def test_wrong_arguments_are_usage_errors(trained_run, images, config, paths, output, message):
  with pytest.raises(UsageError, match=message):
    predict.predict_files([path.format(images) for path in paths], trained_run, config, output)


def test_any_number_of_images_is_predicted_on_several_devices(trained_run, images, config, tmp_path):
  config.mesh.data, config.mesh.tower = 4, 1
  paths = sorted(images.iterdir())[:3]
  assert predict.predict_files([str(path) for path in paths], trained_run, config, str(tmp_path / 'p.json')) == 0
  assert len(json.loads((tmp_path / 'p.json').read_text())['pictures']) == 3


@pytest.mark.parametrize('path', ['x' * 300, 'x' * 5000, '[' * 300])
def test_a_path_that_is_too_long_does_not_exist(trained_run, config, path):
  with pytest.raises(UsageError, match='does not exist'):
    predict.predict_files([path], trained_run, config)


def test_too_many_images_for_a_figure_are_a_usage_error(trained_run, images, config):
  for i in range(10):
    shutil.copy(images / '00.png', images / f'more{i}.png')
  with pytest.raises(UsageError, match=r'would show 46 images; name 40 or fewer'):
    predict.predict_files([str(images)], trained_run, config, 'predictions.png')


def test_no_readable_image_is_an_error(trained_run, images, config):
  with pytest.raises(RunError, match='none of the 1 images can be read'):
    predict.predict_files([str(images / '17-broken.jpg')], trained_run, config)


@pytest.mark.slow
def test_activations_of_every_layer(trained_run, config):
  network = trained_model.load(trained_run, batch_size=4, num_data=2, num_tower=2)
  image = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
  assert network.layer_shapes()['pool1'] == (7, 7, 6)
  for layer, shape in network.layer_shapes().items():
    assert network.activations(image, layer).shape == (4, *shape)
  log_probs = jax.nn.log_softmax(np.asarray(network.activations(image, 'fc8')))
  np.testing.assert_allclose(log_probs, network.log_probs(image, (cropping.centre_crop(32),)), rtol=1e-5)
  with pytest.raises(UsageError, match="this network has no layer 'conv7'; its layers are conv1, "):
    network.activations(image, 'conv7')


@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_images_are_drawn_with_their_classes(trained_run, images, config, tmp_path, suffix):
  output, draw = tmp_path / f'predictions.{suffix}', figures.draw_file_predictions
  assert predict.predict_files([str(images / '0*.png')], trained_run, config, str(output), draw) == 0
  assert output.stat().st_size > 10_000
  with pytest.raises(UsageError, match='cannot be written, because its folder does not exist'):
    predict.predict_files([str(images / '00.png')], trained_run, config, str(tmp_path / 'missing' / output.name), draw)
