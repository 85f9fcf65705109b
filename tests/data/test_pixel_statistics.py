import os
import pathlib

import numpy as np
import pytest

from alexnet_jax.data import pixel_statistics, sources


def test_statistics_are_those_of_a_plain_computation(train_source):
  images = np.stack([train_source[i]['image'] for i in range(len(train_source))]).astype(np.float64)
  found = pixel_statistics.compute(train_source, num_threads=3)
  np.testing.assert_allclose(found.mean_image, images.mean(0), rtol=1e-12)
  np.testing.assert_allclose(found.covariance, np.cov(images.reshape(-1, 3).T, bias=True), rtol=1e-9)


def test_what_cannot_be_read_is_not_in_the_statistics(train_source):
  expected = np.stack([train_source[i]['image'] for i in range(len(train_source)) if i not in (3, 1436)])
  train_source._records = list(train_source._records)
  train_source._records[3] = train_source._records[-1] = b''
  train_source._skips = True
  found = pixel_statistics.compute(train_source)
  np.testing.assert_allclose(found.mean_image, expected.mean(0), rtol=1e-12)
  assert found.num_images == len(train_source)
  assert sorted(train_source.skipped) == [3, 1436]


def test_threads_do_not_change_a_bit(train_source):
  one, many = pixel_statistics.compute(train_source, 1), pixel_statistics.compute(train_source, 4)
  np.testing.assert_array_equal(one.mean_image, many.mean_image)
  np.testing.assert_array_equal(one.covariance, many.covariance)


def refuse(*_):
  raise AssertionError('computed again')


def test_statistics_are_kept_beside_the_dataset_by_split_and_size(config, monkeypatch):
  kinds = [(80, 'train'), (81, 'train'), (80, 'train[:50%]'), (80, 'train[50%:]')]
  splits = [sources.open_splits(config.data, size, [split])[0] for size, split in kinds]
  first = [pixel_statistics.load_or_compute(source, 1) for source in splits]
  monkeypatch.setattr(pixel_statistics, 'compute', refuse)
  again = [pixel_statistics.load_or_compute(source, 1) for source in splits]
  for one, other in zip(first, again, strict=True):
    np.testing.assert_array_equal(one.mean_image, other.mean_image)
  assert len({kept.mean_image.tobytes() for kept in again}) == len(kinds)
  assert len(list(pathlib.Path(sources[0].directory).glob('alexnet_jax-*'))) >= len(kinds)


def test_a_folder_without_write_bits_stays_as_it_is(config, monkeypatch, tmp_path):
  (source,) = sources.open_splits(config.data, 82, ['train'])
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  before = os.listdir(source.directory)
  os.chmod(source.directory, 0o555)
  try:
    first = pixel_statistics.load_or_compute(source, 1)
    assert os.listdir(source.directory) == before
    monkeypatch.setattr(pixel_statistics, 'compute', refuse)
    np.testing.assert_array_equal(pixel_statistics.load_or_compute(source, 1).covariance, first.covariance)
  finally:
    os.chmod(source.directory, 0o755)
  assert list(tmp_path.glob('alexnet_jax/digits/1.0.0/*/*train-82.npz'))


def test_statistics_of_another_training_set_are_not_taken(config, capsys):
  whole, half = sources.open_splits(config.data, 84, ['train', 'train[:50%]'])
  stranger = pixel_statistics.load_or_compute(half)
  place = pathlib.Path(whole.directory) / pixel_statistics.file_name('train', 84)
  stranger.save(place)
  found = pixel_statistics.load_or_compute(whole)
  assert found.num_images == 1437
  assert f'{place} is of another training set (718 images)' in capsys.readouterr().out
  np.testing.assert_array_equal(found.mean_image, pixel_statistics.compute(whole).mean_image)
  assert pixel_statistics.load(place).num_images == 1437


def test_some_classes_have_statistics_of_their_own(config):
  means = []
  for classes in ((), ('0', '1'), ('3', '7')):
    config.data.classes = classes
    (source,) = sources.open_splits(config.data, 81, ['train'])
    means.append(pixel_statistics.load_or_compute(source).mean_image)
    np.testing.assert_array_equal(
      pixel_statistics.load_or_compute(source).mean_image, pixel_statistics.compute(source).mean_image
    )
  assert len({mean.tobytes() for mean in means}) == 3


def test_more_images_than_32_bits_hold(monkeypatch, train_source):
  expected = pixel_statistics.compute(train_source)
  monkeypatch.setattr(pixel_statistics, 'MOST_ADDED', 100)
  for one, other in zip(pixel_statistics.compute(train_source), expected, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 half a file'])
def test_damaged_statistics_are_computed_again(config, content):
  (source,) = sources.open_splits(config.data, 83, ['train'])
  place = pathlib.Path(source.directory) / 'alexnet_jax-statistics-train-83.npz'
  place.write_bytes(content)
  assert pixel_statistics.load_or_compute(source, 1).mean_image.shape == (83, 83, 3)
  assert pixel_statistics.load(place) is not None
