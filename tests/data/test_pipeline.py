import numpy as np
import pytest

from alexnet_jax.data import pipeline, sources
from alexnet_jax.runtime import host_memory
from alexnet_jax.runtime.errors import RunError, UsageError
from tests.data.conftest import encode_example

COVARIANCE = np.diag([100.0, 200.0, 300.0])


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def training_batches(source, config, first_step=0, num_colour_steps=10**6, shard=(0, 1)):
  dataset = pipeline.training_dataset(source, COVARIANCE, config, num_colour_steps=num_colour_steps, shard=shard)
  return pipeline.prefetch(dataset[first_step:], config)


def evaluation_batches(source, config, shard=(0, 1)):
  return pipeline.prefetch(pipeline.evaluation_dataset(source, config, shard=shard), config)


def concatenate(shards):
  return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def assert_same(batch, other):
  assert batch.keys() == other.keys()
  for name in batch:
    np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_a_batch_depends_on_seed_and_step_alone(train_source, config):
  batches = take(training_batches(train_source, config), 5)
  resumed = take(training_batches(train_source, config, first_step=3), 2)
  for batch, other in zip(batches[3:], resumed, strict=True):
    assert_same(batch, other)
  config.data.num_threads, config.data.num_prefetched = 5, 1
  assert_same(batches[4], next(training_batches(train_source, config, first_step=4)))
  config.seed = 1
  assert np.any(next(training_batches(train_source, config))['image'] != batches[0]['image'])


@pytest.mark.parametrize('count', [2, 4])
def test_the_shards_of_a_batch_are_its_consecutive_parts(train_source, config, count):
  for step in (0, 2):
    batch = next(training_batches(train_source, config, first_step=step))
    shards = [
      next(training_batches(train_source, config, first_step=step, shard=(index, count))) for index in range(count)
    ]
    assert_same(batch, concatenate(shards))


class Numbered:
  """Blank images whose labels are their indices."""

  def __init__(self, num_images):
    self._num_images = num_images

  def __len__(self):
    return self._num_images

  def read(self, indices):
    return ((np.zeros((96, 96, 3), np.uint8), np.int32(index)) for index in indices)


@pytest.mark.parametrize(('num_images', 'batch_size'), [(50, 8), (50, 1), (3, 8), (1, 2)])
def test_every_epoch_contains_every_image_once_in_a_new_order(config, num_images, batch_size):
  config.batch_size = batch_size
  batches = take(training_batches(Numbered(num_images), config), 6 * num_images // batch_size)
  labels = np.concatenate([batch['label'] for batch in batches])
  epochs = labels[: len(labels) // num_images * num_images].reshape(-1, num_images)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(num_images), (len(epochs), 1)))
  if num_images == 50:
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) >= 5


@pytest.mark.parametrize(
  ('changes', 'changed_fields'),
  [
    ({'crop': False}, {'mean_offset'}),
    ({'mirror': False}, {'mirrored'}),
    ({'colour_std': 0.0}, {'colour'}),
    ({'shared_by': 4}, {'mean_offset', 'mirrored'}),
  ],
)
def test_an_augmentation_does_not_change_the_draws_of_the_others(train_source, config, changes, changed_fields):
  config.augment.mirror = True
  batch = next(training_batches(train_source, config))
  config.augment.update(changes)
  changed = next(training_batches(train_source, config))
  names = ('label', 'mean_offset', 'mirrored', 'colour')
  assert {name for name in names if np.any(batch[name] != changed[name])} == changed_fields


def test_augmentations_that_are_switched_off_leave_centre_crops(train_source, config):
  config.augment.update(crop=False, mirror=False, colour_std=0.0)
  batch = next(training_batches(train_source, config))
  assert np.all(batch['mean_offset'] == 16)
  assert not batch['mirrored'].any()
  assert not batch['colour'].any()
  stored = [train_source[i]['image'] for i in range(len(train_source))]
  for crop in batch['image']:
    assert any(np.array_equal(image[16:80, 16:80], crop) for image in stored)


def test_a_batch_describes_the_augmentation_of_its_images(train_source, config):
  config.augment.mirror = True
  batch = next(training_batches(train_source, config))
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


def test_as_in_2012_consecutive_images_share_crop_and_reflection(config):
  """Facts, section 2: groups of 32 images in 2012, of four here; the mean image is always cropped at its centre."""
  config.augment.update(mirror=True, shared_by=4, offsets=33)
  config.model.centre_mean = True
  # The value of every pixel is its position.
  positions = np.stack([*np.indices((96, 96), np.uint8), np.zeros((96, 96), np.uint8)], axis=-1)

  class Positions:
    def __len__(self):
      return 50

    def read(self, indices):
      return ((positions, np.int32(0)) for _ in indices)

  batches = take(training_batches(Positions(), config), 6)
  for batch in batches:
    corners = [(*image[0, 0, :2], mirrored) for image, mirrored in zip(batch['image'], batch['mirrored'], strict=True)]
    assert len(set(corners[:4])) == len(set(corners[4:])) == 1
    assert np.all(batch['mean_offset'] == 16)
    assert not batch['mean_mirrored'].any()
    assert len(np.unique(batch['colour'], axis=0)) == 8  # every image has a different colour shift
  assert len({tuple(batch['image'][row, 0, 0]) for batch in batches for row in (0, 4)}) > 8
  assert {bool(batch['mirrored'][row]) for batch in batches for row in (0, 4)} == {False, True}
  assert_same(batches[3], next(training_batches(Positions(), config, first_step=3)))


def test_as_in_2012_the_order_can_be_fixed_while_the_crops_differ(train_source, config):
  config.data.reshuffle = False
  config.batch_size = 479  # a third of an epoch
  batches = take(training_batches(train_source, config), 6)
  for first, second in zip(batches[:3], batches[3:], strict=True):
    np.testing.assert_array_equal(first['label'], second['label'])
    assert np.any(first['mean_offset'] != second['mean_offset'])


def test_as_in_2012_colour_shifts_end_together_with_their_scale(train_source, config):
  config.augment.colour_rescale = True
  batches = take(training_batches(train_source, config, num_colour_steps=2), 3)
  for batch in batches[:2]:
    assert np.all(np.abs(batch['colour']).max(1) > 0)
    np.testing.assert_array_equal(batch['scale'], np.float32(1 / 1.1))
  assert np.all(batches[2]['colour'] == 0)
  assert np.all(batches[2]['scale'] == 1)
  assert_same(batches[2], next(training_batches(train_source, config, first_step=2, num_colour_steps=2)))


@pytest.mark.parametrize(('batch_size', 'count'), [(32, 1), (7, 1), (360, 1), (500, 1), (32, 2)])
def test_evaluation_batches_contain_every_example_once(config, batch_size, count):
  (test,) = sources.open_splits(config.data, 96, ['test'])
  config.eval.batch_size = batch_size
  streams = [list(evaluation_batches(test, config, (index, count))) for index in range(count)]
  labels = []
  for shards in zip(*streams, strict=True):
    batch = concatenate(shards)
    assert len(batch['label']) == batch_size
    labels += list(batch['label'][batch['weight'] > 0])
  assert labels == [int(test[i]['label']) for i in range(360)]


def test_the_error_for_a_damaged_image_passes_through_the_pipeline(train_source, config):
  train_source._records = [encode_example(b'\x89PNG nothing', 0)] * 2000
  message = r"image \d+ of split 'train' of digits/1.0.0 cannot be read or decoded \(not an image in a known format\)"
  for stream in (
    training_batches(train_source, config),
    evaluation_batches(train_source, config),
  ):
    with pytest.raises(RunError, match=message):
      next(stream)


def test_batches_with_skipped_images_do_not_depend_on_the_number_of_shards(damaged_sources, config, capsys):
  source, _ = damaged_sources
  config.batch_size = 500
  batches = take(training_batches(source, config), 3)
  assert sorted(source.skipped) == [5, 6, 1436]
  assert len(capsys.readouterr().err.splitlines()) == 3
  for count in (2, 4):
    streams = [training_batches(source, config, shard=(index, count)) for index in range(count)]
    for batch in batches:
      assert_same(batch, concatenate([next(stream) for stream in streams]))
  assert capsys.readouterr().err == ''  # each record is reported once


@pytest.mark.parametrize(('batch_size', 'count'), [(7, 1), (500, 1), (32, 2)])
def test_evaluation_batches_give_skipped_images_no_weight(damaged_sources, config, batch_size, count):
  _, source = damaged_sources
  config.eval.batch_size = batch_size
  streams = [list(evaluation_batches(source, config, (index, count))) for index in range(count)]
  weight = np.concatenate([shard['weight'] for shards in zip(*streams, strict=True) for shard in shards])[:360]
  assert np.flatnonzero(weight == 0).tolist() == [5, 6, 359]


def test_a_split_without_readable_images_raises_an_error(damaged_sources, config):
  source, _ = damaged_sources
  source._records = [encode_example(b'no image', 0)] * 40
  for stream in (training_batches(source, config), evaluation_batches(source, config)):
    with pytest.raises(RunError, match=r"none of the 40 images in split 'train' of digits/1\.0\.0 can be read"):
      list(stream)


@pytest.mark.parametrize(('field', 'gigabytes'), [('batch_size', 37), ('eval.batch_size', 83)])
def test_batches_that_exceed_the_memory_of_the_host_are_a_usage_error(config, monkeypatch, field, gigabytes):
  config.data.num_threads, config.data.num_prefetched = 2, 4
  config.update_from_flattened_dict({field: 1_000_000})  # crops of 64 pixels in training, stored images of 96 here
  monkeypatch.setattr(host_memory, 'total_bytes', lambda: 36_800_000_000)
  pipeline.check_memory(config, (0, 5))
  sentence = f'^{field}=1000000 requires {gigabytes} GB for the 6 batches in preparation, but this machine has 37 GB; '
  with pytest.raises(UsageError, match=sentence):
    pipeline.check_memory(config, (0, 2))
