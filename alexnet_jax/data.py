"""From a TFDS dataset to batches of crops: sources, decoding, Grain pipelines. Imports no jax.

A training batch depends on (seed, step) alone, whatever the number of processes: every random draw is made from the
seed and the position of the image in the endless shuffled stream.
"""

import difflib
import io
import os
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from alexnet_jax import augment
from alexnet_jax.datasets import digits
from alexnet_jax.errors import RunError, UsageError

Batch = dict[str, np.ndarray]

SUGGESTIONS = 'digits, cifar10, imagenette/full-size-v2, imagenet2012'


class Source:
  """The examples of one split of a TFDS dataset, decoded and brought to the stored size.

  Attributes:
    dataset: name, config and version, such as 'cifar10/3.0.2'.
    split: such as 'train[:90%]'.
    directory: where TFDS keeps the dataset.
    size: side of the images in pixels.
    num_classes: number of classes.
    class_names: their names, in the order of the labels.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str, size: int):
    """Opens a split.

    Args:
      builder: of a dataset that is prepared.
      split: in TFDS's notation.
      size: side of the square images to make.

    Raises:
      UsageError: if there is no such split, or the examples are not images with one label.
    """
    self._image_key, self._label_key = _image_and_label(builder)
    try:
      self._records = builder.as_data_source(split, decoders={self._image_key: tfds.decode.SkipDecoding()})
    except (ValueError, KeyError, AssertionError) as error:
      raise UsageError(
        f"{builder.info.full_name} has no split '{split}', or it is empty; it has "
        f"{', '.join(sorted(builder.info.splits))}, and parts of them such as 'train[:90%]'."
      ) from error
    except NotImplementedError as error:
      raise UsageError(
        f'{builder.info.full_name} was prepared as {builder.info.file_format.value}, which cannot be read at random; '
        'prepare it again in the array_record format.'
      ) from error
    label = builder.info.features[self._label_key]
    self.dataset, self.split, self.directory, self.size = builder.info.full_name, split, builder.data_path, size
    self.num_classes, self.class_names = label.num_classes, tuple(label.names)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns {'image': [size, size, rgb] uint8, 'label': int32 scalar}.

    Raises:
      RunError: if the record cannot be read, the image cannot be decoded, or there is no label.
    """
    name = f"image {index} of split '{self.split}' of {self.dataset}"
    try:
      record = self._records[index]
      image = decode(record[self._image_key])
    except Exception as error:  # the readers raise whatever the broken file leads them to
      raise RunError(f'{name} cannot be read or decoded ({error}); prepare the dataset again.') from error
    label = record[self._label_key]
    if not 0 <= label < self.num_classes:
      raise RunError(f'{name} has the label {label}, which is none; choose a split with labels.')
    return {'image': square(image, self.size), 'label': np.int32(label)}


def open_splits(config: ConfigDict, size: int, splits: Sequence[str]) -> tuple[Source, ...]:
  """Opens splits of the dataset that a config's `data` part names, preparing it at first use.

  With `data.dir` set nothing is downloaded: the dataset must be there (the embedded `digits` is built there).

  Args:
    config: the `data` part of a config.
    size: side of the square images to make.
    splits: in TFDS's notation.

  Raises:
    UsageError: if there is no such dataset, folder or split, or it has no images with labels.
    RunError: if the dataset cannot be prepared.
  """
  directory = os.path.expanduser(config.dir) or None
  if directory and not os.path.isdir(directory) and config.name != 'digits':
    raise UsageError(f"data.dir='{config.dir}' is not a folder; name the one that holds '{config.name}'.")
  try:
    builder = tfds.builder(config.name, data_dir=directory, file_format='array_record')
  except tfds.core.DatasetNotFoundError as error:
    close = difflib.get_close_matches(config.name, tfds.list_builders(), n=5)
    raise UsageError(
      f"there is no dataset '{config.name}'; "
      + (f'near it are {", ".join(close)}; ' if close else '')
      + f'start with one of {SUGGESTIONS}, or any TFDS dataset of labelled images.'
    ) from error
  except (ValueError, AssertionError) as error:  # a config or a version that the dataset does not have
    raise UsageError(f"data.name='{config.name}' cannot be opened: {_first_line(error)}") from error
  if not builder.is_prepared():
    _prepare(builder, config)
  return tuple(Source(builder, split, size) for split in splits)


def _prepare(builder, config):
  is_embedded = isinstance(builder, digits.Digits)
  if config.dir and not is_embedded:
    raise UsageError(
      f"data.dir='{config.dir}' holds no prepared '{config.name}' (looked for {builder.data_path}); name another "
      'folder, or leave data.dir out and let TFDS fetch the dataset to its own.'
    )
  try:
    builder.download_and_prepare()
  except Exception as error:  # the network, the disk, a manual download that is not there: TFDS names each its own way
    raise RunError(
      f"the dataset '{config.name}' could not be prepared in {builder.data_path}: {_first_line(error)}"
    ) from error


def _image_and_label(builder):
  """Finds the keys of an example's image and label."""
  features = builder.info.features
  images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  if (
    isinstance(keys := builder.info.supervised_keys, tuple)
    and len(keys) == 2
    and keys[0] in images
    and keys[1] in labels
  ):
    return keys
  if len(images) == 1 and len(labels) == 1:
    return images[0], labels[0]
  raise UsageError(
    f'{builder.info.full_name} is not a dataset of images with one label (its features: {", ".join(features)}); '
    f'choose another, such as {SUGGESTIONS}.'
  )


def decode(encoded: bytes) -> np.ndarray:
  """Decodes an image file to [height, width, rgb] uint8.

  Grey becomes RGB by repetition, as in the 2012 code (facts, section 2).

  Raises:
    Exception: whatever Pillow makes of a file it cannot read.
  """
  with PIL.Image.open(io.BytesIO(encoded)) as image:
    return np.asarray(image.convert('RGB'))


def square(image: np.ndarray, size: int) -> np.ndarray:
  """Brings the short side to `size` and cuts out the centre [size, size, rgb] (section 2).

  Shrinks by averaging over areas and enlarges by cubic interpolation (facts, section 2). The square is cut out first,
  so that what is cut off is not resized.
  """
  height, width = image.shape[:2]
  short = min(height, width)
  if short == size:
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
  top, left = (height - short) / 2, (width - short) / 2
  resample = PIL.Image.Resampling.BOX if short > size else PIL.Image.Resampling.BICUBIC
  box = (left, top, left + short, top + short)
  return np.asarray(PIL.Image.fromarray(image).resize((size, size), resample, box))


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
    source: examples at the stored size, `model.image_size` + 32.
    covariance: [rgb, rgb] of the training pixels.
    config: the whole config.
    first_step: the step whose batch comes first.
    colour_steps: steps of the run whose images have their colours shifted; later ones keep theirs.
    share: (index, count): which of `count` equal shares of each batch to yield.

  Yields:
    What `step.train_step` takes, [batch / count, ...].
  """
  index, count = share
  size = config.model.image_size

  def generator(position):
    return np.random.default_rng((config.seed, position))

  def augmented(position, example):
    rng = generator(position)
    view = augment.random_view(rng, config.augment)
    if leader := position % config.augment.shared_by:  # this image follows the one whose view its group shares
      view = augment.random_view(generator(position - leader), config.augment)
    std = config.augment.colour_std if position // config.batch_size < colour_steps else 0.0
    mean_view = augment.mean_view(view, config.model.centre_mean)
    return {
      'image': augment.cut(example['image'], view, size),
      'mean_offset': np.array([mean_view.top, mean_view.left], np.int32),
      'mean_mirrored': np.bool_(mean_view.mirrored),
      'colour': augment.colour_shift(rng, covariance, std),
      'scale': np.float32(1 / (1 + std) if config.augment.colour_rescale else 1),
      'label': example['label'],
    }

  stream = grain.MapDataset.source(source).seed(config.seed).shuffle()
  stream = stream.repeat(reseed_each_epoch=config.data.reshuffle).map_with_index(augmented)
  # Batches of one share each; those of step s are numbers s * count to s * count + count - 1.
  shares = stream.batch(config.batch_size // count)
  return iter(_read(shares[first_step * count + index :: count], config))


def evaluation_batches(source: Source, config: ConfigDict, *, share: tuple[int, int]) -> Iterator[Batch]:
  """Streams every example once, in order; the last batch is filled up with blanks of weight 0.

  Args:
    source: examples at the stored size.
    config: the whole config.
    share: (index, count): which of `count` equal shares of each batch to yield.

  Yields:
    'image' [batch / count, size, size, rgb] uint8, 'label' [batch / count] int32, 'weight' [batch / count] float32.
  """
  index, count = share
  batch_size = config.eval.batch_size
  num_batches = -(-len(source) // batch_size)

  def example(position):
    if position < len(source):
      return source[int(position)] | {'weight': np.float32(1)}
    return {'image': np.zeros((source.size, source.size, 3), np.uint8), 'label': np.int32(0), 'weight': np.float32(0)}

  stream = grain.MapDataset.range(num_batches * batch_size).map(example)
  return iter(_read(stream.batch(batch_size // count)[index::count], config))


def _read(batches, config):
  options = grain.ReadOptions(num_threads=config.data.num_threads, prefetch_buffer_size=config.data.num_prefetched)
  return batches.to_iter_dataset(options)


def _first_line(error: BaseException) -> str:
  return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
