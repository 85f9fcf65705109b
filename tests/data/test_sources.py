import io
import json
import resource
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from alexnet_jax.data import sources
from alexnet_jax.runtime.errors import RunError, UsageError
from configs import alexnet
from tests.conftest import scikit_digits
from tests.data.conftest import encode_example


def test_digits_are_those_of_scikit_learn(config):
  train, test = sources.open_splits(config.data, 96, ['train', 'test'])
  assert (len(train), len(test)) == (1437, 360)
  assert train.class_names == tuple('0123456789')
  records = tfds.data_source('digits', data_dir=config.data.dir)
  images = np.concatenate([[record['image'][:, :, 0] for record in records[split]] for split in ('train', 'test')])
  labels = np.concatenate([[record['label'] for record in records[split]] for split in ('train', 'test')])
  digits = scikit_digits()
  examples = sorted((label, image.tobytes()) for label, image in zip(labels, images, strict=True))
  pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
  assert examples == sorted((label, image.tobytes()) for label, image in zip(digits.target, pixels, strict=True))
  assert min(np.bincount([int(test[i]['label']) for i in range(360)])) >= 25  # every class is tested


def test_fall_2011_trains_on_all_images_but_those_of_validation_and_fall_2009_on_one_half(config):
  for name, num_training_images in (('fall2011', 1797 - 14), ('fall2009', 1437 - 14)):
    data = alexnet.get_config(name).data
    train, validation = sources.open_splits(config.data, 96, [data.train_split, data.validation_split])
    assert (len(train), len(validation)) == (num_training_images, 14), name
    assert data.test_split == (data.validation_split if name == 'fall2011' else 'test')


def test_selected_classes_have_all_their_examples_and_new_labels(config):
  config.data.classes = ('7', '1', '4')
  train, test = sources.open_splits(config.data, 96, ['train', 'test'])
  config.data.classes = ()
  (all_classes,) = sources.open_splits(config.data, 96, ['test'])
  assert (test.num_classes, test.class_names) == (3, ('7', '1', '4'))
  examples = [all_classes[index] for index in range(len(all_classes))]
  expected = [example for example in examples if example['label'] in (7, 1, 4)]
  assert len(test) == len(expected)
  assert len(train) + len(test) == sum(label in (7, 1, 4) for label in scikit_digits().target)
  for index, example in enumerate(expected):
    np.testing.assert_array_equal(test[index]['image'], example['image'])
    assert (7, 1, 4)[test[index]['label']] == example['label']


def test_a_record_that_cannot_be_read_during_the_selection_of_classes_gets_no_new_label(config, monkeypatch):
  failed = set()

  class FailsOnce(list):
    def __getitem__(self, index):
      if index not in failed:
        failed.add(index)
        raise OSError('the disk does not respond')
      return super().__getitem__(index)

  open_records = sources._open_records
  monkeypatch.setattr(sources, '_open_records', lambda *arguments: FailsOnce(open_records(*arguments)))
  config.data.classes, config.data.unreadable = ('7', '1'), 'skip'
  (source,) = sources.open_splits(config.data, 96, ['test'])
  read = [example for example in source.read_or_none(range(len(source))) if example]
  monkeypatch.setattr(sources, '_open_records', open_records)
  (expected,) = sources.open_splits(config.data, 96, ['test'])
  assert [label for _, label in read] == [
    example['label'] for example in map(expected.__getitem__, range(len(expected)))
  ]


def test_arrays_are_images_only_with_three_channels():
  assert sources._is_image(tfds.features.Tensor(shape=(16, 16, 3), dtype=np.uint8))
  assert not sources._is_image(tfds.features.Tensor(shape=(16, 16, 1), dtype=np.uint8))


@pytest.mark.parametrize('unreadable', ['skip', 'fail'])
def test_a_damaged_record_is_reported_when_it_is_read_although_classes_are_selected(config, monkeypatch, unreadable):
  class Damaged(list):
    def __getitem__(self, index):
      if index == 5:
        raise RuntimeError('Corrupted Riegeli/records file')
      return super().__getitem__(index)

  open_records = sources._open_records
  monkeypatch.setattr(sources, '_open_records', lambda *arguments: Damaged(open_records(*arguments)))
  config.data.classes, config.data.unreadable = ('7', '1'), unreadable
  (source,) = sources.open_splits(config.data, 96, ['test'])
  if unreadable == 'skip':
    assert sum(example is None for example in source.read_or_none(range(len(source)))) == 1
  else:
    with pytest.raises(RunError, match=r'cannot be read or decoded \(Corrupted'):
      source.read_batch(range(len(source)))


def test_an_unknown_class_raises_an_error(config):
  config.data.classes = ('1', 'one')
  message = 'data.classes contains one, which digits/1.0.0 does not have; its classes are 0, 1, 2'
  with pytest.raises(UsageError, match=message):
    sources.open_splits(config.data, 96, ['test'])


def test_read_replaces_a_skipped_record_by_the_next_readable_one(damaged_sources, capsys):
  source, _ = damaged_sources
  examples = [(image.copy(), label) for image, label in source.read([4, 5, 6, 7, len(source) - 1, 0, 5])]
  for (image, label), replacement in zip(examples, [4, 7, 7, 7, 0, 0, 7], strict=True):
    np.testing.assert_array_equal(image, source[replacement]['image'])
    assert label == source[replacement]['label']
  assert sorted(source.skipped) == [5, 6, 1436]
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "skipped image 5 of split 'train' of digits/1.0.0: not an image in a known format"
  assert len(lines) == 3  # each record is reported once


def test_a_split_that_is_listed_twice_is_opened_once(config):
  first, second, train = sources.open_splits(config.data, 96, ['test', 'test', 'train'])
  assert first is second
  assert train is not first


@pytest.mark.parametrize(('spare_bytes', 'is_cached'), [(0, True), (-1, False)])
def test_a_split_of_up_to_an_eighth_of_the_memory_is_decoded_once(config, monkeypatch, spare_bytes, is_cached):
  monkeypatch.setattr(sources.host_memory, 'total_bytes', lambda: 8 * (360 * 96 * 96 * 3 + spare_bytes))
  (source,) = sources.open_splits(config.data, 96, ['test'])  # 360 images
  resized = []
  resize_and_crop = sources.image_io.resize_and_crop
  monkeypatch.setattr(
    sources.image_io, 'resize_and_crop', lambda image, size: resized.append(size) or resize_and_crop(image, size)
  )
  first, second = source[3], source[3]
  np.testing.assert_array_equal(first['image'], second['image'])
  assert len(resized) == (1 if is_cached else 2)


@pytest.mark.parametrize('record', [b'', b'\xff' * 20, encode_example(b'', 0)[:5]], ids=['empty', 'noise', 'truncated'])
def test_the_error_for_a_damaged_record_contains_its_index(train_source, record):
  train_source._records = [record]
  with pytest.raises(RunError, match=r"image 0 of split 'train' of digits/1.0.0 cannot be read or decoded"):
    train_source[0]


@pytest.mark.parametrize('unreadable', ['skip', 'fail'])
def test_too_many_open_files_are_an_error_and_no_unreadable_image(config, unreadable):
  config.data.unreadable = unreadable
  (source,) = sources.open_splits(config.data, 96, ['test'])  # its file is opened by the first read
  limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (0, highest))
  try:
    with pytest.raises(RunError, match=r'cannot be read .*Too many open files.*; raise their limit with ulimit'):
      source.read_batch([0])
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, highest))
  assert not source.skipped


def test_an_image_without_a_label_raises_an_error(train_source):
  image = io.BytesIO()
  PIL.Image.new('RGB', (8, 8)).save(image, 'PNG')
  train_source._records = [encode_example(image.getvalue(), -1)]
  with pytest.raises(RunError, match=r'has no valid label \(-1\); choose a split with labels'):
    train_source[0]


def test_cifar10_prepared_by_tfds_is_read(shared_data, config):
  config.data.name, config.data.dir = 'cifar10', str(shared_data / 'tfds')
  train, test = sources.open_splits(config.data, 256, ['train[:90%]', 'test'])
  assert (len(train), len(test), train.num_classes) == (45_000, 10_000, 10)
  assert train.class_names[0] == 'airplane'
  example = train[0]
  assert (example['image'].shape, example['image'].dtype) == ((256, 256, 3), np.uint8)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('name', 'digit', r"no dataset 'digit'; similar names are .*digits"),
    ('name', 'cifar10', r"contains no prepared 'cifar10'"),
    ('name', 'cifar10/nonsense', 'cannot be opened'),
    ('train_split', 'trian', r"no split 'trian', .* its splits are test, train"),
    ('train_split', 'train[:0]', 'no split .*:0.*, or the split is empty'),
    ('train_split', 'train[5:3]', 'no split .*5:3.*, or the split is empty'),
  ],
)
def test_the_error_for_a_dataset_or_split_that_cannot_be_opened_contains_the_reason(config, field, value, message):
  config.data[field] = value
  with pytest.raises(UsageError, match=message):
    sources.open_splits(config.data, 96, [config.data.train_split])


def test_a_missing_folder_raises_an_error(config, tmp_path):
  config.data.name, config.data.dir = 'cifar10', str(tmp_path / 'nowhere')
  with pytest.raises(UsageError, match='is not a folder'):
    sources.open_splits(config.data, 96, ['train'])


def test_a_dataset_has_the_name_of_its_folder(config, train_source, tmp_path):
  """The name is a part of the paths of statistics and saved predictions."""
  shutil.copytree(train_source.directory, tmp_path / 'digits' / '1.0.0')
  path = tmp_path / 'digits' / '1.0.0' / 'dataset_info.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'name': '../../elsewhere'}))
  config.data.dir = str(tmp_path)
  with pytest.raises(UsageError, match=r"contains a dataset named '\.\./\.\./elsewhere/1.0.0'; rename the folder"):
    sources.open_splits(config.data, 96, ['train'])


class NoImages(tfds.core.GeneratorBasedBuilder):
  """A dataset of numbers without images."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'number': np.int64}))

  def _split_generators(self, dl_manager):
    return {'train': ((i, {'number': i}) for i in range(3))}

  def _generate_examples(self):
    raise AssertionError('not called')


def test_a_dataset_without_images_and_labels_raises_an_error(config):
  NoImages(data_dir=config.data.dir, file_format='array_record').download_and_prepare()
  config.data.name = 'no_images'
  with pytest.raises(UsageError, match='not a dataset of images with one label'):
    sources.open_splits(config.data, 96, ['train'])
