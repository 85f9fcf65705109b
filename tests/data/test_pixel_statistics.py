import os
import pathlib

import numpy as np
import pytest

from alexnet_jax.data import pixel_statistics, sources


def test_statistics_match_numpy(train_source):
  images = np.stack([train_source[i]['image'] for i in range(len(train_source))]).astype(np.float64)
  statistics = pixel_statistics.compute(train_source, num_threads=3)
  np.testing.assert_allclose(statistics.mean_image, images.mean(0), rtol=1e-12)
  np.testing.assert_allclose(statistics.covariance, np.cov(images.reshape(-1, 3).T, bias=True), rtol=1e-9)


def test_skipped_images_are_not_in_the_statistics(train_source):
  expected = np.stack([train_source[i]['image'] for i in range(len(train_source)) if i not in (3, 1436)])
  train_source._records = list(train_source._records)
  train_source._records[3] = train_source._records[-1] = b''
  train_source._skip_unreadable = True
  statistics = pixel_statistics.compute(train_source)
  np.testing.assert_allclose(statistics.mean_image, expected.mean(0), rtol=1e-12)
  assert statistics.num_images == len(train_source)
  assert sorted(train_source.skipped) == [3, 1436]


def test_the_number_of_threads_does_not_change_the_statistics(train_source):
  single, several = pixel_statistics.compute(train_source, 1), pixel_statistics.compute(train_source, 4)
  np.testing.assert_array_equal(single.mean_image, several.mean_image)
  np.testing.assert_array_equal(single.covariance, several.covariance)


def fail_to_compute(*_):
  raise AssertionError('computed again')


def test_statistics_are_cached_next_to_the_dataset_by_split_and_size(config, monkeypatch):
  settings = [(80, 'train'), (81, 'train'), (80, 'train[:50%]'), (80, 'train[50%:]')]
  opened = [sources.open_splits(config.data, size, [split])[0] for size, split in settings]
  computed = [pixel_statistics.load_or_compute(source, 1) for source in opened]
  monkeypatch.setattr(pixel_statistics, 'compute', fail_to_compute)
  cached = [pixel_statistics.load_or_compute(source, 1) for source in opened]
  for statistics, other in zip(computed, cached, strict=True):
    np.testing.assert_array_equal(statistics.mean_image, other.mean_image)
  assert len({statistics.mean_image.tobytes() for statistics in cached}) == len(settings)
  assert len(list(pathlib.Path(opened[0].directory).glob('alexnet_jax-*'))) >= len(settings)


def test_a_folder_without_write_bits_is_not_changed(config, monkeypatch, tmp_path):
  (source,) = sources.open_splits(config.data, 82, ['train'])
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  before = os.listdir(source.directory)
  os.chmod(source.directory, 0o555)
  try:
    computed = pixel_statistics.load_or_compute(source, 1)
    assert os.listdir(source.directory) == before
    monkeypatch.setattr(pixel_statistics, 'compute', fail_to_compute)
    np.testing.assert_array_equal(pixel_statistics.load_or_compute(source, 1).covariance, computed.covariance)
  finally:
    os.chmod(source.directory, 0o755)
  assert list(tmp_path.glob('alexnet_jax/digits/1.0.0/*/*train-82.npz'))


@pytest.mark.parametrize(('size', 'split', 'num_images'), [(84, 'train[:50%]', 718), (85, 'train', '1,437')])
def test_statistics_of_another_training_set_are_not_used(config, capsys, size, split, num_images):
  (whole,) = sources.open_splits(config.data, 84, ['train'])
  (other,) = sources.open_splits(config.data, size, [split])
  path = pathlib.Path(whole.directory) / pixel_statistics.file_name('train', 84)
  pixel_statistics.load_or_compute(other).save(path)
  statistics = pixel_statistics.load_or_compute(whole)
  assert statistics.num_images == 1437
  assert f'{path} belongs to another training set ({num_images} images)' in capsys.readouterr().out
  np.testing.assert_array_equal(statistics.mean_image, pixel_statistics.compute(whole).mean_image)
  assert pixel_statistics.load(path).num_images == 1437


def test_selected_classes_have_separate_statistics(config):
  means = []
  for classes in ((), ('0', '1'), ('3', '7')):
    config.data.classes = classes
    (source,) = sources.open_splits(config.data, 81, ['train'])
    means.append(pixel_statistics.load_or_compute(source).mean_image)
    np.testing.assert_array_equal(
      pixel_statistics.load_or_compute(source).mean_image, pixel_statistics.compute(source).mean_image
    )
  assert len({mean.tobytes() for mean in means}) == 3


def test_sums_of_more_images_than_fit_in_32_bits_are_merged(monkeypatch, train_source):
  expected = pixel_statistics.compute(train_source)
  monkeypatch.setattr(pixel_statistics, 'MAX_ADDED_IMAGES', 100)
  for field, other in zip(pixel_statistics.compute(train_source), expected, strict=True):
    np.testing.assert_array_equal(field, other)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 half a file'])
def test_damaged_statistics_are_computed_again(config, content):
  (source,) = sources.open_splits(config.data, 83, ['train'])
  path = pathlib.Path(source.directory) / 'alexnet_jax-statistics-train-83.npz'
  path.write_bytes(content)
  assert pixel_statistics.load_or_compute(source, 1).mean_image.shape == (83, 83, 3)
  assert pixel_statistics.load(path) is not None
