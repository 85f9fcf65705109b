"""The input pipelines, as Grain datasets: batches for training and for evaluation.

A position in the dataset of batches is a training step, and a training batch depends on (seed, step) alone, whatever
the number of processes and threads. Each of Grain's threads assembles a whole batch. Threads use all cores because
decoding releases Python's global interpreter lock.
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import cropping, transforms
from alexnet_jax.data.sources import Source
from alexnet_jax.data.transforms import Batch
from alexnet_jax.runtime import host_memory, processor
from alexnet_jax.runtime.errors import UsageError

MAX_THREADS = 16  # each holds up to two batches, and a batch of 128 images takes 19 MB


def training_dataset(
  source: Source, covariance: np.ndarray, config: ConfigDict, *, num_colour_steps: int, shard: tuple[int, int]
) -> grain.MapDataset[Batch]:
  """Returns the infinite dataset of augmented batches; `dataset[step]` is the batch of a step.

  Every epoch contains all images, in a new order or always in the same. A batch can end one epoch and begin the next.

  Args:
    source: examples of the stored size, see `cropping.stored_size`.
    covariance: [rgb, rgb] covariance of the training pixels, 0-255.
    config: the whole config.
    num_colour_steps: number of training steps, counted from step 0, whose images get a colour shift.
    shard: (index, count): shard `index` of the `count` equal shards of each batch.

  Returns:
    Batches as `step.train_step` takes them, [batch / count, ...].
  """
  return (
    grain.MapDataset.range(len(source))
    .seed(config.seed)
    .shuffle()
    .repeat(reseed_each_epoch=config.data.reshuffle)
    .batch(config.batch_size, drop_remainder=True)  # no remainder exists; otherwise Grain rounds the length up to 2**63
    .map(lambda indices: {'index': indices})
    .apply(transforms.augmentation(config, covariance, num_colour_steps))
    .map(transforms.Shard(*shard))
    .map(transforms.ReadAndCrop(source, config.model.image_size))
  )


def evaluation_dataset(source: Source, config: ConfigDict, *, shard: tuple[int, int]) -> grain.MapDataset[Batch]:
  """Returns the dataset of batches of all examples in order.

  The last batch is padded to full size. Padding and skipped examples are blank images of weight 0.

  Args:
    source: examples of the stored size.
    config: the whole config.
    shard: (index, count): shard `index` of the `count` equal shards of each batch.

  Returns:
    Batches of 'image' [batch / count, size, size, rgb] uint8, 'label' [batch / count] int32 and 'weight'
    [batch / count] float32, 0 or 1.
  """
  batch_size = config.eval.batch_size
  pad = functools.partial(grain.experimental.batch_and_pad, batch_size=batch_size, pad_value=transforms.PADDING)
  return (
    grain.MapDataset.range(len(source))
    .batch(batch_size, batch_fn=pad)
    .map(lambda indices: {'index': indices})
    .map(transforms.Shard(*shard))
    .map(transforms.ReadWhole(source))
  )


def prefetch(dataset: grain.MapDataset[Batch], config: ConfigDict) -> Iterator[Batch]:
  """Returns an iterator over a dataset, whose next batches are prepared in threads.

  Args:
    dataset: one of the datasets above, or a slice of it; a run that resumes starts at `dataset[first_step:]`.
    config: the whole config.
  """
  return iter(dataset.to_iter_dataset(grain.ReadOptions(*_num_threads_and_prefetched(config.data))))


def _num_threads_and_prefetched(config):
  num_threads = config.num_threads or min(processor.num_cores(), MAX_THREADS)
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
  sizes = (
    ('batch_size', config.batch_size, config.model.image_size),
    ('eval.batch_size', config.eval.batch_size, cropping.stored_size(config.model)),
  )
  for field, batch_size, side in sizes:
    required, available = num_batches * batch_size * side**2 * 3 / shard[1], host_memory.total_bytes()
    if required > available:
      raise UsageError(
        f'{field}={batch_size} requires {required / 1e9:,.0f} GB for the {num_batches} batches in preparation, but '
        f'this machine has {available / 1e9:,.0f} GB; reduce {field}, data.num_threads or data.num_prefetched.'
      )
