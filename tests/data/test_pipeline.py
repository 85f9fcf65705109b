import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import pipeline, sources
from alexnet_jax.runtime.errors import RunError, UsageError

COVARIANCE = np.diag([100.0, 200.0, 300.0])


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def batches(source, config, first_step=0, colour_steps=10**6, share=(0, 1)):
  return pipeline.training_batches(
    source, COVARIANCE, config, first_step=first_step, colour_steps=colour_steps, share=share
  )


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_digits_are_those_of_scikit_learn(config):
  from sklearn import datasets

  train, test = sources.open_splits(config.data, 96, ['train', 'test'])
  assert (len(train), len(test)) == (1437, 360)
  assert train.class_names == tuple('0123456789')
  records = tfds.data_source('digits', data_dir=config.data.dir)
  images = np.concatenate([[record['image'][:, :, 0] for record in records[split]] for split in ('train', 'test')])
  labels = np.concatenate([[record['label'] for record in records[split]] for split in ('train', 'test')])
  digits = datasets.load_digits()
  ours = sorted((label, image.tobytes()) for label, image in zip(labels, images, strict=True))
  pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
  assert ours == sorted((label, image.tobytes()) for label, image in zip(digits.target, pixels, strict=True))
  assert min(np.bincount([int(test[i]['label']) for i in range(360)])) >= 25  # every class is tested


def test_chosen_classes_are_all_examples_of_these_with_new_labels(config):
  config.data.classes = ('7', '1', '4')
  train, test = sources.open_splits(config.data, 96, ['train', 'test'])
  config.data.classes = ()
  (whole,) = sources.open_splits(config.data, 96, ['test'])
  assert (test.num_classes, test.class_names) == (3, ('7', '1', '4'))
  wanted = [example for example in (whole[index] for index in range(len(whole))) if example['label'] in (7, 1, 4)]
  assert len(test) == len(wanted)
  assert len(train) + len(test) == sum(label in (7, 1, 4) for label in sklearn_labels())
  for index, example in enumerate(wanted):
    np.testing.assert_array_equal(test[index]['image'], example['image'])
    assert (7, 1, 4)[test[index]['label']] == example['label']


def sklearn_labels():
  from sklearn import datasets

  return datasets.load_digits().target


@pytest.mark.parametrize(
  ('classes', 'sentence'),
  [
    (('1', 'one'), 'data.classes names one, and digits/1.0.0 has no such classes; they are 0, 1, 2'),
    (('1',), 'must be two or more different classes'),
    (('1', '2', '1'), 'must be two or more different classes'),
  ],
)
def test_classes_that_cannot_be_chosen_are_named(classes, sentence, config):
  config.data.classes = classes
  with pytest.raises(UsageError, match=sentence):
    sources.open_splits(config.data, 96, ['test'])


def test_a_batch_depends_on_seed_and_step_alone(train_source, config):
  whole = take(batches(train_source, config), 5)
  later = take(batches(train_source, config, first_step=3), 2)
  for one, other in zip(whole[3:], later, strict=True):
    assert_same(one, other)
  config.data.num_threads, config.data.num_prefetched = 5, 1
  assert_same(whole[4], next(batches(train_source, config, first_step=4)))
  config.seed = 1
  assert np.any(next(batches(train_source, config))['image'] != whole[0]['image'])


@pytest.mark.parametrize('count', [2, 4])
def test_shares_of_a_batch_are_its_consecutive_parts(train_source, config, count):
  for step in (0, 2):
    whole = next(batches(train_source, config, first_step=step))
    parts = [next(batches(train_source, config, first_step=step, share=(index, count))) for index in range(count)]
    assert_same(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(train_source, config):
  config.augment.crop = config.augment.mirror = False
  labels = np.concatenate([batch['label'] for batch in take(batches(train_source, config), 2 * 1440 // 8)])
  first, second = np.split(labels[: 2 * len(train_source)], 2)
  expected = np.bincount([int(train_source[i]['label']) for i in range(len(train_source))])
  np.testing.assert_array_equal(np.bincount(first), expected)
  np.testing.assert_array_equal(np.bincount(second), expected)
  assert np.any(first != second)


def test_what_augmentation_says_is_what_it_did(train_source, config):
  config.augment.mirror = True
  batch = next(batches(train_source, config))
  assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
    'image': (np.uint8, (8, 64, 64, 3)),
    'mirrored': (np.bool_, (8,)),
    'mean_offset': (np.int32, (8, 2)),
    'mean_mirrored': (np.bool_, (8,)),
    'colour': (np.float32, (8, 3)),
    'scale': (np.float32, (8,)),
    'label': (np.int32, (8,)),
  }
  stored = [train_source[i]['image'] for i in range(len(train_source))]
  for crop, (top, left) in zip(batch['image'], batch['mean_offset'], strict=True):
    assert any(np.array_equal(image[top : top + 64, left : left + 64], crop) for image in stored)
  np.testing.assert_array_equal(batch['mirrored'], batch['mean_mirrored'])
  assert batch['mean_mirrored'].any()
  assert not batch['mean_mirrored'].all()
  assert np.all(batch['scale'] == 1)


def test_as_in_2012_consecutive_images_share_patch_and_reflection(train_source, config):
  """Facts, section 2: 32 images a group in 2012, four here; and the mean image's centre for all."""
  config.augment.update(mirror=True, shared_by=4, offsets=33)
  config.model.centre_mean = True
  # An image that says of each pixel where it is.
  places = np.stack([*np.indices((96, 96), np.uint8), np.zeros((96, 96), np.uint8)], axis=-1)

  class Places:
    def __len__(self):
      return 50

    def read(self, indices):
      return ((places, np.int32(0)) for _ in indices)

  found = take(batches(Places(), config), 6)
  for batch in found:
    corners = [(*image[0, 0, :2], mirrored) for image, mirrored in zip(batch['image'], batch['mirrored'], strict=True)]
    assert len(set(corners[:4])) == len(set(corners[4:])) == 1
    assert np.all(batch['mean_offset'] == 16)
    assert not batch['mean_mirrored'].any()
    assert len(np.unique(batch['colour'], axis=0)) == 8  # colours are every image's own
  assert len({tuple(batch['image'][row, 0, 0]) for batch in found for row in (0, 4)}) > 8
  assert {bool(batch['mirrored'][row]) for batch in found for row in (0, 4)} == {False, True}
  assert_same(found[3], next(batches(Places(), config, first_step=3)))


def test_as_in_2012_the_order_can_be_fixed_while_views_differ(train_source, config):
  config.data.reshuffle = False
  config.batch_size = 479  # a third of an epoch
  shown = take(batches(train_source, config), 6)
  for first, second in zip(shown[:3], shown[3:], strict=True):
    np.testing.assert_array_equal(first['label'], second['label'])
    assert np.any(first['mean_offset'] != second['mean_offset'])


def test_as_in_2012_colours_end_and_their_scale_with_them(train_source, config):
  config.augment.colour_rescale = True
  shown = take(batches(train_source, config, colour_steps=2), 3)
  for batch in shown[:2]:
    assert np.all(np.abs(batch['colour']).max(1) > 0)
    np.testing.assert_array_equal(batch['scale'], np.float32(1 / 1.1))
  assert np.all(shown[2]['colour'] == 0)
  assert np.all(shown[2]['scale'] == 1)
  assert_same(shown[2], next(batches(train_source, config, first_step=2, colour_steps=2)))


@pytest.mark.parametrize(('batch_size', 'count'), [(32, 1), (7, 1), (360, 1), (500, 1), (32, 2)])
def test_evaluation_shows_every_example_once(config, batch_size, count):
  (test,) = sources.open_splits(config.data, 96, ['test'])
  config.eval.batch_size = batch_size
  shares = [list(pipeline.evaluation_batches(test, config, share=(index, count))) for index in range(count)]
  seen = []
  for parts in zip(*shares, strict=True):
    batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert len(batch['label']) == batch_size
    seen += list(batch['label'][batch['weight'] > 0])
  assert seen == [int(test[i]['label']) for i in range(360)]


def example(image, label):
  proto = tf_example_pb2.Example()
  proto.features.feature['image'].bytes_list.value.append(image)
  proto.features.feature['label'].int64_list.value.append(label)
  return proto.SerializeToString()


def test_a_broken_image_names_itself_from_inside_the_pipeline(train_source, config):
  train_source._records = [example(b'\x89PNG nothing', 0)] * 2000
  sentence = (
    r"image \d+ of split 'train' of digits/1.0.0 cannot be read or decoded \(it is no image in a known format\)"
  )
  for stream in (batches(train_source, config), pipeline.evaluation_batches(train_source, config, share=(0, 1))):
    with pytest.raises(RunError, match=sentence):
      next(stream)


@pytest.fixture
def damaged(config):
  """Sources of the training and the test split that skip what cannot be read: images 5, 6 and the last."""
  config.data.unreadable = 'skip'
  train, test = sources.open_splits(config.data, 96, ['train', 'test'])
  for source in (train, test):
    source._records = list(source._records)
    source._records[5], source._records[6], source._records[-1] = example(b'no image', 3), b'\xff' * 20, b''
  return train, test


def test_training_shows_the_next_that_can_be_read(damaged, config, capsys):
  source, _ = damaged
  found = [(image.copy(), label) for image, label in source.read([4, 5, 6, 7, len(source) - 1, 0, 5])]
  for row, stand_in in enumerate([4, 7, 7, 7, 0, 0, 7]):
    np.testing.assert_array_equal(found[row][0], source[stand_in]['image'])
    assert found[row][1] == source[stand_in]['label']
  assert sorted(source.skipped) == [5, 6, 1436]
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "skipped image 5 of split 'train' of digits/1.0.0: it is no image in a known format"
  assert len(lines) == 3  # each once

  config.batch_size = 500
  whole = take(batches(source, config), 3)
  for count in (2, 4):
    streams = [batches(source, config, share=(index, count)) for index in range(count)]
    for batch in whole:
      parts = [next(stream) for stream in streams]
      assert_same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(('batch_size', 'count'), [(7, 1), (500, 1), (32, 2)])
def test_evaluation_leaves_out_what_cannot_be_read(damaged, config, batch_size, count):
  _, source = damaged
  config.eval.batch_size = batch_size
  shares = [list(pipeline.evaluation_batches(source, config, share=(index, count))) for index in range(count)]
  weight = np.concatenate([part['weight'] for parts in zip(*shares, strict=True) for part in parts])[:360]
  assert np.flatnonzero(weight == 0).tolist() == [5, 6, 359]


def test_where_nothing_can_be_read_it_says_so(damaged, config):
  source, _ = damaged
  source._records = [example(b'no image', 0)] * 40
  streams = (batches(source, config), pipeline.evaluation_batches(source, config, share=(0, 1)))
  for stream in streams:
    with pytest.raises(RunError, match=r"none of the 40 images of split 'train' of digits/1\.0\.0 can be read"):
      list(stream)


def test_a_split_named_twice_is_opened_once(config):
  one, other, third = sources.open_splits(config.data, 96, ['test', 'test', 'train'])
  assert one is other
  assert third is not one


@pytest.mark.parametrize('garbage', [b'', b'\xff' * 20, example(b'', 0)[:5]], ids=['empty', 'noise', 'cut'])
def test_a_broken_record_names_itself(train_source, garbage):
  train_source._records = [garbage]
  with pytest.raises(RunError, match=r"image 0 of split 'train' of digits/1.0.0 cannot be read or decoded"):
    train_source[0]


def test_an_image_without_a_label_says_so(train_source):
  image = io.BytesIO()
  PIL.Image.new('RGB', (8, 8)).save(image, 'PNG')
  train_source._records = [example(image.getvalue(), -1)]
  with pytest.raises(RunError, match='has the label -1, which is none; choose a split with labels'):
    train_source[0]


def test_cifar10_as_tfds_prepared_it(shared_data, config):
  config.data.name, config.data.dir = 'cifar10', str(shared_data / 'tfds')
  train, test = sources.open_splits(config.data, 256, ['train[:90%]', 'test'])
  assert (len(train), len(test), train.num_classes) == (45_000, 10_000, 10)
  assert train.class_names[0] == 'airplane'
  example = train[0]
  assert (example['image'].shape, example['image'].dtype) == ((256, 256, 3), np.uint8)


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('name', 'digit', r"no dataset 'digit'; near it are .*digits"),
    ('name', 'cifar10', r"holds no prepared 'cifar10'"),
    ('name', 'cifar10/nonsense', 'cannot be opened'),
    ('train_split', 'trian', r"no split 'trian', .* it has test, train"),
    ('train_split', 'train[:0]', 'no split .*:0.*, or it is empty'),
    ('train_split', 'train[5:3]', 'no split .*5:3.*, or it is empty'),
  ],
)
def test_what_cannot_be_opened_says_why(config, field, value, sentence):
  config.data[field] = value
  with pytest.raises(UsageError, match=sentence):
    sources.open_splits(config.data, 96, [config.data.train_split])


def test_a_missing_folder_says_so(config, tmp_path):
  config.data.name, config.data.dir = 'cifar10', str(tmp_path / 'nowhere')
  with pytest.raises(UsageError, match='is not a folder'):
    sources.open_splits(config.data, 96, ['train'])


class NoImages(tfds.core.GeneratorBasedBuilder):
  """Numbers without an image."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'number': np.int64}))

  def _split_generators(self, dl_manager):
    return {'train': ((i, {'number': i}) for i in range(3))}

  def _generate_examples(self):
    raise AssertionError('not called')


def test_a_dataset_without_images_and_labels_says_so(config):
  NoImages(data_dir=config.data.dir, file_format='array_record').download_and_prepare()
  config.data.name = 'no_images'
  with pytest.raises(UsageError, match='not a dataset of images with one label'):
    sources.open_splits(config.data, 96, ['train'])
