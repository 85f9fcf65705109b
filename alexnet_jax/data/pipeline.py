"""Batches of crops."""

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


MAX_THREADS = 16  # a batch of 128 takes 19 MB, and each thread has up to two in the making


def training_batches(
  source: Source,
  covariance: np.ndarray,
  config: ConfigDict,
  *,
  first_step: int,
  colour_steps: int,
  share: tuple[int, int],
) -> Iterator[Batch]:
  """Streams augmented batches without end.

  Args:
    source: examples at the stored size, `model.image_size` + `model.border`.
    covariance: [rgb, rgb] of the training pixels.
    config: the whole config.
    first_step: the step whose batch comes first.
    colour_steps: steps of the run whose images have their colours shifted; later ones keep theirs.
    share: (index, count): which of `count` equal shares of each batch to yield.

  Yields:
    What `step.train_step` takes, [batch / count, ...].
  """
  index, count = share
  size, batch_size = config.model.image_size, config.batch_size
  mine = slice(index * batch_size // count, (index + 1) * batch_size // count)

  def load(step):
    indices = _shown_at(step, len(source), config)[mine]
    rng = _generator(config.seed, 'augmentation', step)
    std = config.augment.colour_std if step < colour_steps else 0.0
    crops = transforms.random_crops(rng, batch_size, config.augment, config.model.border)
    colours = transforms.colour_shifts(rng, batch_size, covariance, std)
    crops = transforms.Crop(*(field[mine] for field in crops))
    mean_crops = transforms.mean_crop(crops, config.model.centre_mean, config.model.border)
    batch = {
      'image': np.empty((len(indices), size, size, 3), np.uint8),
      'mirrored': crops.mirrored,
      'mean_offset': np.stack(mean_crops[:2], axis=1),
      'mean_mirrored': mean_crops.mirrored,
      'colour': colours[mine],
      'scale': np.full(len(indices), 1 / (1 + std) if config.augment.colour_rescale else 1, np.float32),
      'label': np.empty(len(indices), np.int32),
    }
    corners = zip(crops.top.tolist(), crops.left.tolist(), strict=True)
    for row, ((top, left), (image, label)) in enumerate(zip(corners, source.read(indices), strict=True)):
      batch['image'][row] = image[top : top + size, left : left + size]
      batch['label'][row] = label
    return batch

  return iter(_read(grain.MapDataset.range(first_step, sys.maxsize).map(load), config))


def _shown_at(step, num_images, config):
  """Returns which images the batch of a step shows: every epoch all of them, in an order of its own or always one."""
  positions = range(step * config.batch_size, (step + 1) * config.batch_size)
  epochs = (position // num_images if config.data.reshuffle else 0 for position in positions)
  return [
    int(_order(config.seed, epoch, num_images)[position % num_images])
    for epoch, position in zip(epochs, positions, strict=True)
  ]


@functools.lru_cache(maxsize=2)  # the end of one epoch and the beginning of the next; 10 MB each for ImageNet
def _order(seed, epoch, num_images):
  return _generator(seed, 'order', epoch).permutation(num_images)


def _generator(seed, purpose, number):
  """Returns the source of the draws for one purpose in one step or epoch."""
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), number)))


def evaluation_batches(
  source: Source, config: ConfigDict, *, share: tuple[int, int], first: int = 0
) -> Iterator[Batch]:
  """Streams every example once, in order; blanks of weight 0 fill up the last batch and stand for what is skipped.

  Args:
    source: examples at the stored size.
    config: the whole config.
    share: (index, count): which of `count` equal shares of each batch to yield.
    first: batches to leave out at the beginning.

  Yields:
    'image' [batch / count, size, size, rgb] uint8, 'label' [batch / count] int32, 'weight' [batch / count] float32.
  """
  index, count = share
  share_size = config.eval.batch_size // count

  def load(number):
    first = (number * count + index) * share_size
    indices = range(first, min(first + share_size, len(source)))
    batch = {
      'image': np.zeros((share_size, source.size, source.size, 3), np.uint8),
      'label': np.zeros(share_size, np.int32),
      'weight': np.zeros(share_size, np.float32),
    }
    for row, example in enumerate(source.read_or_leave_out(indices)):
      if example is not None:
        (batch['image'][row], batch['label'][row]), batch['weight'][row] = example, 1
    return batch

  num_batches = -(-len(source) // config.eval.batch_size)
  return iter(_read(grain.MapDataset.range(first, num_batches).map(load), config))


def _read(batches, config):
  return batches.to_iter_dataset(grain.ReadOptions(*_threads_and_buffer(config.data)))


def _threads_and_buffer(config):
  num_threads = config.num_threads or min(os.cpu_count(), MAX_THREADS)
  return num_threads, config.num_prefetched or 2 * num_threads


def check_memory(config: ConfigDict, share: tuple[int, int]) -> None:
  """Finds batches that cannot be held.

  Args:
    config: the whole config.
    share: (index, count): which of `count` equal shares of each batch this process reads.

  Raises:
    UsageError: if those made ahead take more memory than there is.
  """
  most = sum(_threads_and_buffer(config.data))
  stored = config.model.image_size + config.model.border
  sizes = (
    ('batch_size', config.batch_size, config.model.image_size),
    ('eval.batch_size', config.eval.batch_size, stored),
  )
  for field, batch_size, side in sizes:
    needed, there = most * batch_size * side**2 * 3 / share[1], host_memory.total_bytes()
    if needed > there:
      raise UsageError(
        f'{field}={batch_size} makes batches that take {needed / 1e9:,.0f} GB, up to {most} at a time, and there are '
        f'{there / 1e9:,.0f}; choose a smaller one, or less of data.num_threads and data.num_prefetched.'
      )
