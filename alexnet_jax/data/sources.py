"""From a TFDS dataset to batches of crops: sources and Grain pipelines. Imports no jax.

A training batch depends on (seed, step) alone, whatever the number of processes: every random draw is made from the
seed and the step, for the whole batch, and each process takes its share. Whole batches are what Grain's threads make:
decoding lets go of Python's lock, so that threads keep all cores busy, and what is done once a batch costs an image
next to nothing.

A record that cannot be read ends the run or, with `data.unreadable` = 'skip', is named once and left out. In its place
training shows the next that can be read: a batch still hangs on seed and step alone. Nothing else counts it.
"""

import difflib
import os
import pathlib
import sys
import threading
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import digits, image_io
from alexnet_jax.data.imagenet import archives
from alexnet_jax.data.imagenet.builder import Ilsvrc
from alexnet_jax.runtime.errors import RunError, UsageError, first_line

Example = tuple[np.ndarray, np.int32]  # [size, size, rgb] uint8, label

CACHED_BYTES = 2**30  # splits that take no more are kept decoded: CIFAR-10 takes 154 MB, for `small` enlarged 778 MB

SUGGESTIONS = 'digits, cifar10, imagenette/full-size-v2, ilsvrc/2012'


class Source:
  """The examples of one split of a TFDS dataset, decoded and brought to the stored size.

  Attributes:
    dataset: name, config and version, such as 'cifar10/3.0.2'.
    split: such as 'train[:90%]'.
    directory: where TFDS keeps the dataset.
    size: side of the images in pixels.
    num_classes: number of classes.
    class_names: their names, in the order of the labels.
    classes: the same where they were chosen; empty for all that the dataset has.
    ilsvrc_ids: numbers of the classes in submissions to ILSVRC, in the order of the labels; empty for other datasets.
    skipped: {index: why} of the records that could not be read so far, where such are skipped.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    size: int,
    *,
    classes: Sequence[str] = (),
    may_lack_labels: bool = False,
    skips: bool = False,
  ):
    """Opens a split.

    Args:
      builder: of a dataset that is prepared.
      split: in TFDS's notation.
      size: side of the square images to make.
      classes: names of those whose examples count, in the order of the new labels; none: all. To find them every record
        is read once, with a progress bar where there are many.
      may_lack_labels: whether -1, for an image whose class was not released, is a label, too.
      skips: whether records that cannot be read are skipped.

    Raises:
      UsageError: if there is no such split or class, or the examples are not images with one label.
    """
    self._image_key, self._label_key = _image_and_label(builder)
    image = builder.info.features[self._image_key]
    self._raw_shape = None if isinstance(image, tfds.features.Image) else image.shape
    try:
      if builder.info.splits[split].num_examples < 1:
        raise ValueError('no examples')
      self._records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
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
    self.classes = tuple(classes)
    self.num_classes, self.class_names = len(classes) or label.num_classes, self.classes or tuple(label.names)
    metadata = builder.info.metadata
    self.ilsvrc_ids = tuple(metadata.get('ilsvrc_ids', ())) if isinstance(metadata, dict) and not classes else ()
    self._new_labels = {}  # by that in the record, where classes were chosen
    if classes:
      self._new_labels = _numbers(self.dataset, self.classes, label.names)
      self._records = _Some(self._records, self._is_chosen)
      if not len(self):
        raise UsageError(f"split '{split}' of {self.dataset} has no image of {', '.join(classes)}; choose another.")
    self._least_label = -1 if may_lack_labels else 0
    self.skipped, self._skips, self._lock = {}, skips, threading.Lock()
    self._kept = _Kept(len(self), size) if len(self) * size**2 * 3 <= CACHED_BYTES else None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns {'image': [size, size, rgb] uint8, 'label': int32 scalar}; errors are those of `read`."""
    ((image, label),) = self.read([index])
    return {'image': image, 'label': label}

  def read(self, indices: Sequence[int]) -> Iterator[Example]:
    """Yields images and labels. Where records are skipped, the next that can be read stands in for one that cannot.

    Records are read one by one, in the thread that asks: where several threads do, that is three times as fast as
    asking for them together, for which the reader starts threads of its own. After the last record comes the first.

    Args:
      indices: of the examples.

    Yields:
      [size, size, rgb] uint8, good until the next one is asked for, and its label.

    Raises:
      RunError: if a record cannot be read and such are not skipped, none can be, or there is no label.
    """
    buffer = self._buffer()
    for index in indices:
      candidates = ((index + later) % len(self) for later in range(len(self)))
      yield next(filter(None, (self._read(one, buffer) for one in candidates)))

  def read_together(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Does as `read`, but returns the images [image, size, size, rgb] uint8 and the labels [image] int."""
    images, labels = zip(*((image.copy(), label) for image, label in self.read(indices)), strict=True)
    return np.stack(images), np.array(labels)

  def read_or_leave_out(self, indices: Sequence[int]) -> Iterator[Example | None]:
    """Does as `read`, but yields None in place of a record that is skipped."""
    buffer = self._buffer()
    return (self._read(index, buffer) for index in indices)

  def _read(self, index, buffer):
    if self._kept and self._kept.there[index]:
      return self._kept.images[index], self._kept.labels[index]
    if index in self.skipped:
      return self._skip(index, self.skipped[index])
    try:
      features = _features(self._records[index])
      image = self._decode(features[self._image_key].bytes_list.value[0], buffer)
      label = self._label(features)
      label = self._new_labels.get(label, label)
    except Exception as error:  # broken bytes lead the readers to raise whatever they come upon
      if self._skips:
        return self._skip(index, first_line(error))
      raise RunError(
        f'{self._name(index)} cannot be read or decoded ({error}); prepare the dataset again, or leave out what cannot '
        'be read, with --config.data.unreadable=skip.'
      ) from error
    if not self._least_label <= label < self.num_classes:
      raise RunError(f'{self._name(index)} has the label {label}, which is none; choose a split with labels.')
    image = image_io.resize_and_crop(image, self.size)
    if self._kept:
      self._kept.images[index], self._kept.labels[index] = image, label
      self._kept.there[index] = True  # last, since other threads look at it
    return image, np.int32(label)

  def _skip(self, index, reason):
    with self._lock:  # several threads read
      if index not in self.skipped:
        self.skipped[index] = reason
        tqdm.tqdm.write(f'skipped {self._name(index)}: {reason}', file=sys.stderr)
    if len(self.skipped) == len(self):
      raise RunError(
        f"none of the {len(self):,} images of split '{self.split}' of {self.dataset} can be read; prepare the dataset "
        'again.'
      )

  def _is_chosen(self, record):
    try:
      return self._label(_features(record)) in self._new_labels
    except Exception:  # as in `_read`, where it is dealt with
      return True

  def _label(self, features):
    return features[self._label_key].int64_list.value[0]

  def _buffer(self):
    return np.empty((self.size, self.size, 3), np.uint8)

  def _decode(self, encoded, buffer):
    if self._raw_shape:
      return np.frombuffer(encoded, np.uint8).reshape(self._raw_shape)
    return image_io.decode(encoded, buffer)

  def _name(self, index):
    return f"image {index} of split '{self.split}' of {self.dataset}"


class _Some:
  """Records that meet a condition."""

  def __init__(self, records, condition):
    self._records = records
    indices = tqdm.tqdm(range(len(records)), 'Looking for the classes', leave=False, mininterval=1, delay=5)
    self._indices = [index for index in indices if condition(records[index])]

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> bytes:
    return self._records[self._indices[index]]


def _features(record):
  return tf_example_pb2.Example.FromString(record).features.feature


def _numbers(dataset, classes, names):
  """Returns the new label of each chosen class by its old one."""
  if unknown := [name for name in classes if name not in names]:
    known = f'they are {", ".join(names)}' if len(names) <= 30 else f'such as {", ".join(names[:10])}'
    raise UsageError(f'data.classes names {", ".join(unknown)}, and {dataset} has no such classes; {known}.')
  if len(classes) < 2 or len(set(classes)) < len(classes):
    raise UsageError(f'data.classes={classes} must be two or more different classes.')
  return {names.index(name): number for number, name in enumerate(classes)}


class _Kept:
  """Decoded examples of a small split, as far as they have been read."""

  def __init__(self, num_images, size):
    self.images = np.empty((num_images, size, size, 3), np.uint8)  # takes memory as it is filled
    self.labels = np.empty(num_images, np.int32)
    self.there = np.zeros(num_images, bool)


def open_splits(
  config: ConfigDict, size: int, splits: Sequence[str], *, may_lack_labels: Collection[str] = ()
) -> tuple[Source, ...]:
  """Opens splits of the dataset that a config's `data` part names, each once, preparing it at first use.

  With `data.dir` set nothing is downloaded: the dataset must be there (the embedded `digits` is built there).

  Args:
    config: the `data` part of a config.
    size: side of the square images to make.
    splits: in TFDS's notation.
    may_lack_labels: those of the splits in which -1 is a label, too.

  Raises:
    UsageError: if there is no such dataset, folder, split or class, or it has no images with labels.
    RunError: if the dataset cannot be prepared.
  """
  directory = os.path.expanduser(config.dir) or None
  if directory and not os.path.isdir(directory) and config.name != 'digits':
    raise UsageError(f"data.dir='{config.dir}' is not a folder; name the one that holds '{config.name}'.")
  try:
    builder = tfds.builder(config.name, data_dir=directory, file_format='array_record')
  except tfds.core.DatasetNotFoundError as error:
    names = tfds.list_builders(with_community_datasets=False)  # those would be asked of the network
    close = difflib.get_close_matches(config.name, names, n=5)
    raise UsageError(
      f"there is no dataset '{config.name}'; "
      + (f'near it are {", ".join(close)}; ' if close else '')
      + f'start with one of {SUGGESTIONS}, or any TFDS dataset of labelled images.'
    ) from error
  except (ValueError, AssertionError) as error:  # a config or a version that the dataset does not have
    if config.name.startswith(f'{Ilsvrc.name}/'):
      raise UsageError(
        f"there is no '{config.name}' in {directory or tfds.core.constants.DATA_DIR}; {_how_to_prepare(config.name)}."
      ) from error
    raise UsageError(f"data.name='{config.name}' cannot be opened: {first_line(error)}") from error
  if not builder.is_prepared():
    _prepare(builder, config)
  skips = config.unreadable == 'skip'
  sources = {
    split: Source(builder, split, size, classes=config.classes, may_lack_labels=split in may_lack_labels, skips=skips)
    for split in dict.fromkeys(splits)
  }
  return tuple(sources[split] for split in splits)


def _prepare(builder, config):
  if isinstance(builder, Ilsvrc):
    place = pathlib.Path(builder.data_path)
    others = [path.name for path in place.parent.glob('*') if path.is_dir()]
    there = f'; what is there is {", ".join(sorted(others))}' if others else ''
    raise UsageError(f"'{config.name}' is not prepared in {place}{there}; {_how_to_prepare(config.name)}.")
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
      f"the dataset '{config.name}' could not be prepared in {builder.data_path}: {first_line(error)}"
    ) from error


def _how_to_prepare(name):
  name = name.partition('/')[2].partition(':')[0] or '2012'
  layout = name.removesuffix('_raw')
  command = f'python -m alexnet_jax prepare {layout if layout in archives.LAYOUTS else "folder"} SOURCE'
  if layout not in archives.LAYOUTS:
    command += f' --name={layout}'
  if name.endswith('_raw'):
    command += ' --encoding=raw'
  return f'make it, or finish it, with {command}, or name the folder that holds it with --config.data.dir'


def _image_and_label(builder):
  """Finds the keys of an example's image and label."""
  features = builder.info.features
  pictures = [key for key, feature in features.items() if _is_image(feature)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  if (
    isinstance(keys := builder.info.supervised_keys, tuple)
    and len(keys) == 2
    and keys[0] in pictures
    and keys[1] in labels
  ):
    return keys
  if len(pictures) == 1 and len(labels) == 1:
    return pictures[0], labels[0]
  raise UsageError(
    f'{builder.info.full_name} is not a dataset of images with one label (its features: {", ".join(features)}); '
    f'choose another, such as {SUGGESTIONS}.'
  )


def _is_image(feature):
  """An encoded image, or plain pixels [height, width, rgb]."""
  if isinstance(feature, tfds.features.Image):
    return True
  return type(feature) is tfds.features.Tensor and len(feature.shape) == 3 and feature.np_dtype == np.uint8
