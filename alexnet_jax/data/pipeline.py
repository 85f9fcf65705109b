"""Grain pipelines that assemble batches of crops.

A training batch depends on (seed, step) alone, whatever the number of processes: every process makes the random draws
of the whole batch and uses those of its shard. Each of Grain's threads assembles a whole batch. Threads keep all cores
busy because decoding releases Python's global interpreter lock, and work that is done once per batch costs next to
nothing per image.
"""

import functools
import os
import sys
import zlib
from collections.abc import Iterator

import grain
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import transforms
from alexnet_jax.data.sources import Source
from alexnet_jax.runtime import host_memory
from alexnet_jax.runtime.errors import UsageError

Batch = dict[str, np.ndarray]

MAX_THREADS = 16  # each holds up to two batches, and a batch of 128 images takes 19 MB


def training_batches(
  source: Source,
  covariance: np.ndarray,
  config: ConfigDict,
  *,
  first_step: int,
  num_colour_steps: int,
  shard: tuple[int, int],
) -> Iterator[Batch]:
  """Returns an infinite iterator over augmented batches.

  Args:
    source: examples of the stored size, `model.image_size` + `model.border`.
    covariance: [rgb, rgb] covariance of the training pixels, 0-255.
    config: the whole config.
    first_step: training step of the first batch.
    num_colour_steps: number of training steps, counted from step 0, whose images get a colour shift.
    shard: (index, count): yields shard `index` of the `count` equal shards of each batch.

  Returns:
    Batches as `step.train_step` takes them, [batch / count, ...].
  """
  index, count = shard
  size, batch_size = config.model.image_size, config.batch_size
  rows = slice(index * batch_size // count, (index + 1) * batch_size // count)

  def assemble(step):
    indices = _image_indices(step, len(source), config)[rows]
    rng = _random_generator(config.seed, 'augmentation', step)
    std = config.augment.colour_std if step < num_colour_steps else 0.0
    crops, augmentation = transforms.draw_augmentation(rng, batch_size, covariance, std, config)
    batch: Batch = {
      'image': np.empty((len(indices), size, size, 3), np.uint8),
      'label': np.empty(len(indices), np.int32),
      **{name: values[rows] for name, values in augmentation.items()},
    }
    corners = np.stack([crops.top, crops.left], axis=1)[rows].tolist()
    for row, ((y, x), (image, label)) in enumerate(zip(corners, source.read(indices), strict=True)):
      batch['image'][row] = image[y : y + size, x : x + size]
      batch['label'][row] = label
    return batch

  return _prefetch(grain.MapDataset.range(first_step, sys.maxsize).map(assemble), config)


def _image_indices(step, num_images, config):
  """Returns the indices of a step's images; every epoch visits all images, in a new or always in the same order."""
  positions = range(step * config.batch_size, (step + 1) * config.batch_size)
  epochs = (position // num_images if config.data.reshuffle else 0 for position in positions)
  return [
    int(_permutation(config.seed, epoch, num_images)[position % num_images])
    for epoch, position in zip(epochs, positions, strict=True)
  ]


@functools.lru_cache(maxsize=2)  # a batch may end one epoch and begin the next; 10 MB each for ImageNet
def _permutation(seed, epoch, num_images):
  return _random_generator(seed, 'order', epoch).permutation(num_images)


def _random_generator(seed, purpose, index):
  """Returns the generator of the draws for a purpose in the step or epoch with this index."""
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), index)))


def evaluation_batches(
  source: Source, config: ConfigDict, *, shard: tuple[int, int], first_batch: int = 0
) -> Iterator[Batch]:
  """Returns an iterator over all examples in order.

  The last batch is padded to full size. Padding and skipped examples are blank images of weight 0.

  Args:
    source: examples of the stored size.
    config: the whole config.
    shard: (index, count): yields shard `index` of the `count` equal shards of each batch.
    first_batch: number of batches to omit at the beginning.

  Returns:
    Batches of 'image' [batch / count, size, size, rgb] uint8, 'label' [batch / count] int32 and 'weight'
    [batch / count] float32, 0 or 1.
  """
  index, count = shard
  shard_size = config.eval.batch_size // count

  def assemble(batch_index):
    first = (batch_index * count + index) * shard_size
    indices = range(first, min(first + shard_size, len(source)))
    batch: Batch = {
      'image': np.zeros((shard_size, source.size, source.size, 3), np.uint8),
      'label': np.zeros(shard_size, np.int32),
      'weight': np.zeros(shard_size, np.float32),
    }
    for row, example in enumerate(source.read_or_none(indices)):
      if example is not None:
        batch['image'][row], batch['label'][row] = example
        batch['weight'][row] = 1
    return batch

  num_batches = -(-len(source) // config.eval.batch_size)
  return _prefetch(grain.MapDataset.range(first_batch, num_batches).map(assemble), config)


def _prefetch(dataset, config):
  return iter(dataset.to_iter_dataset(grain.ReadOptions(*_num_threads_and_prefetched(config.data))))


def _num_threads_and_prefetched(config):
  num_threads = config.num_threads or min(os.cpu_count() or 1, MAX_THREADS)
  return num_threads, config.num_prefetched or 2 * num_threads


def check_memory(config: ConfigDict, shard: tuple[int, int]) -> None:
  """Checks that the batches in preparation fit into the host's memory.

  Args:
    config: the whole config.
    shard: (index, count): this process reads shard `index` of the `count` equal shards of each batch.

  Raises:
    UsageError: if they do not fit.
  """
  num_batches = sum(_num_threads_and_prefetched(config.data))
  stored_size = config.model.image_size + config.model.border
  sizes = (
    ('batch_size', config.batch_size, config.model.image_size),
    ('eval.batch_size', config.eval.batch_size, stored_size),
  )
  for field, batch_size, side in sizes:
    required, available = num_batches * batch_size * side**2 * 3 / shard[1], host_memory.total_bytes()
    if required > available:
      raise UsageError(
        f'{field}={batch_size} requires {required / 1e9:,.0f} GB for the {num_batches} batches in preparation, but '
        f'this machine has {available / 1e9:,.0f} GB; reduce {field}, data.num_threads or data.num_prefetched.'
      )
