"""Opens splits of TFDS datasets for random access to decoded and resized examples.

A record that cannot be read raises `RunError`. With `data.unreadable='skip'` a damaged record is reported once and
skipped: `Source.read` substitutes the next readable record, which keeps a training batch a function of seed and step
alone; evaluation and statistics omit the record. Errors of the operating system are never skipped, because another
process of the run may not have them.
"""

import difflib
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from filelock import FileLock
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import digits, image_io
from alexnet_jax.data.imagenet import archives
from alexnet_jax.data.imagenet.builder import Ilsvrc
from alexnet_jax.runtime import distributed, host_memory, open_files
from alexnet_jax.runtime.errors import RunError, UsageError, first_line, printable

Example = tuple[np.ndarray, np.int32]  # image [size, size, rgb] uint8, label

# Splits up to this size, and up to an eighth of the memory, are cached decoded. CIFAR-10 takes 154 MB. When enlarged
# for the variant `small`, it takes 778 MB, and Tiny-ImageNet 1.6 GB.
MAX_CACHED_BYTES = 2 * 2**30

SUGGESTED_DATASETS = 'digits, cifar10, imagenette/full-size-v2, ilsvrc/2012'


class Source:
  """A split of a TFDS dataset, whose images are decoded and resized to squares.

  Attributes:
    dataset: name, config and version of the dataset, such as 'cifar10/3.0.2'.
    split: the split in TFDS's notation, such as 'train[:90%]'.
    directory: folder of the prepared dataset.
    size: side of the images in pixels.
    num_classes: number of classes.
    class_names: class names by label.
    classes: class names by label if classes were selected; otherwise empty.
    ilsvrc_ids: class ids in submissions to ILSVRC by label; empty for other datasets and for selected classes.
    skipped: {index: reason} of the records skipped so far.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    size: int,
    *,
    classes: Sequence[str] = (),
    allow_unlabelled: bool = False,
    skip_unreadable: bool = False,
  ):
    """Opens a split.

    Args:
      builder: builder of a prepared dataset.
      split: the split in TFDS's notation.
      size: side of the square images in pixels.
      classes: names of the classes to select, in the order of their new labels; empty selects all. Selecting classes
        reads every record once.
      allow_unlabelled: whether the label -1, of an image whose class was never released, is valid.
      skip_unreadable: whether records that cannot be read are skipped.

    Raises:
      UsageError: if the split or a class does not exist, the split is empty, or the examples are not images with one
        label.
    """
    self._image_key, self._label_key = _image_and_label_keys(builder)
    info = builder.info
    image, label = info.features[self._image_key], info.features[self._label_key]
    self._raw_shape = None if isinstance(image, tfds.features.Image) else image.shape
    self._records = _open_records(builder, split)
    self.dataset, self.split, self.directory, self.size = info.full_name, split, builder.data_path, size
    self.classes = tuple(classes)
    self.num_classes, self.class_names = len(classes) or label.num_classes, self.classes or tuple(label.names)
    self.ilsvrc_ids: tuple[int, ...] = ()
    if isinstance(info.metadata, dict) and not classes:
      self.ilsvrc_ids = tuple(info.metadata.get('ilsvrc_ids', ()))
    self._new_labels: dict[int, int] = {}  # by the dataset's label; empty unless classes are selected
    if classes:
      self._new_labels = _number_classes(self.dataset, self.classes, label.names)
      self._records = _Subset(self._records, functools.partial(self._is_selected, self._records))
      if not len(self):
        raise UsageError(
          f"split '{split}' of {self.dataset} contains no image of {', '.join(classes)}; choose another split."
        )
    self._min_label = -1 if allow_unlabelled else 0
    self.skipped: dict[int, str] = {}
    self._skip_unreadable, self._lock = skip_unreadable, threading.Lock()
    is_small = len(self) * size**2 * 3 <= min(MAX_CACHED_BYTES, host_memory.total_bytes() // 8)
    self._cache = _Cache(len(self), size) if is_small else None

  @functools.cached_property
  def file_names(self) -> list[str]:
    """Names of the original files of all images, for datasets that `prepare` wrote; reads every record once."""
    return [_parse(record)['file_name'].bytes_list.value[0].decode() for record in self._records]

  @property
  def fingerprint(self) -> str:
    """A hash of what TFDS recorded about the dataset: its splits, their sizes and the lengths of their shards."""
    splits = json.loads((pathlib.Path(self.directory) / 'dataset_info.json').read_text())['splits']
    fields = [[split.get(name) for name in ('name', 'numBytes', 'shardLengths')] for split in splits]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns {'image': [size, size, rgb] uint8, 'label': int32 scalar}; raises the errors of `read`."""
    ((image, label),) = self.read([index])
    return {'image': image, 'label': label}

  def read(self, indices: Sequence[int]) -> Iterator[Example]:
    """Yields examples, replacing a skipped one by the next readable one.

    The search for a replacement wraps around at the end of the split. Records are read one by one in the calling
    thread. If several threads read, this is three times as fast as requesting several records in one call, for which
    the record reader starts its own threads.

    Args:
      indices: indices of the examples.

    Yields:
      image [size, size, rgb] uint8, valid until the next example is requested, and label.

    Raises:
      RunError: if a record cannot be read and is not skipped, no record can be read, or an example has no valid label.
    """
    buffer = self._make_buffer()
    for index in indices:
      while (example := self._read(index, buffer)) is None:  # `_skip` raises an error if no record is left
        index = (index + 1) % len(self)
      yield example

  def read_batch(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Reads examples like `read`, but returns arrays: images [image, size, size, rgb] uint8, labels [image] int32."""
    images, labels = zip(*((image.copy(), label) for image, label in self.read(indices)), strict=True)
    return np.stack(images), np.array(labels)

  def read_or_none(self, indices: Sequence[int]) -> Iterator[Example | None]:
    """Yields examples like `read`, but None in place of a skipped one."""
    buffer = self._make_buffer()
    return (self._read(index, buffer) for index in indices)

  def _read(self, index, buffer):
    """Returns an example, whose image may be a view of `buffer`, or None if its record is skipped."""
    if self._cache and self._cache.is_filled[index]:
      return self._cache.images[index], self._cache.labels[index]
    if index in self.skipped:
      return self._skip(index, self.skipped[index])
    try:
      features = _parse(self._records[index])
      image = self._decode(features[self._image_key].bytes_list.value[0], buffer)
      label = self._read_label(features)
      label = self._new_labels[label] if self._new_labels else label
      image = image_io.resize_and_crop(image, self.size)
    except Exception as error:  # on damaged bytes the readers raise errors of many types
      if _is_system_error(error):  # which another process or another attempt may not have
        has_many_files = os.strerror(errno.EMFILE) in str(error)
        advice = (
          f'raise their limit with ulimit -n {open_files.MAX_FILES}' if has_many_files else 'check its file system'
        )
        raise RunError(
          f'{self._describe(index)} cannot be read from {self.directory} ({first_line(error)}); {advice} and run the '
          'same command again.'
        ) from error
      if self._skip_unreadable:
        return self._skip(index, first_line(error))
      raise RunError(
        f'{self._describe(index)} cannot be read or decoded ({first_line(error)}); prepare the dataset in '
        f'{self.directory} again, or skip unreadable images with --config.data.unreadable=skip.'
      ) from error
    if not self._min_label <= label < self.num_classes:
      raise RunError(f'{self._describe(index)} has no valid label ({label}); choose a split with labels.')
    if self._cache:
      self._cache.images[index], self._cache.labels[index] = image, label
      self._cache.is_filled[index] = True  # last, because other threads read it
    return image, np.int32(label)

  def _skip(self, index, reason):
    """Reports a skipped record once and returns None; raises `RunError` if no record is left."""
    with self._lock:  # several threads read
      if index not in self.skipped:
        self.skipped[index] = reason
        tqdm.tqdm.write(f'skipped {self._describe(index)}: {reason}', file=sys.stderr)
    if len(self.skipped) == len(self):
      raise RunError(
        f"none of the {len(self):,} images in split '{self.split}' of {self.dataset} can be read; prepare the dataset "
        'again.'
      )

  def _is_selected(self, records, index):
    try:
      return self._read_label(_parse(records[index])) in self._new_labels
    except Exception:  # `_read` skips the record or reports the error
      return True

  def _read_label(self, features):
    return features[self._label_key].int64_list.value[0]

  def _make_buffer(self):
    return np.empty((self.size, self.size, 3), np.uint8)

  def _decode(self, encoded, buffer):
    if self._raw_shape:
      return np.frombuffer(encoded, np.uint8).reshape(self._raw_shape)
    return image_io.decode(encoded, buffer)

  def _describe(self, index):
    return f"image {index} of split '{self.split}' of {self.dataset}"


class _Subset:
  """The records whose index meets a condition."""

  def __init__(self, records, condition):
    self._records = records
    indices = tqdm.tqdm(
      range(len(records)), 'Selecting classes', leave=False, delay=5, disable=not distributed.is_main_process()
    )
    self._indices = [index for index in indices if condition(index)]

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> bytes:
    return self._records[self._indices[index]]


class _Cache:
  """The decoded examples of a small split, stored when they are first read."""

  def __init__(self, num_images, size):
    self.images = np.empty((num_images, size, size, 3), np.uint8)  # pages are allocated when first written
    self.labels = np.empty(num_images, np.int32)
    self.is_filled = np.zeros(num_images, bool)


def _is_system_error(error):
  """Returns whether the operating system did not read a record, in contrast to a record that is damaged.

  The reader of ArrayRecord raises RuntimeError for both; 'pread() failed: Input/output error', for example.
  """
  return isinstance(error, OSError) or re.search(r'\b\w+\(\) failed: ', str(error)) is not None


def _parse(record):
  return tf_example_pb2.Example.FromString(record).features.feature


def _open_records(builder, split):
  """Opens the serialised records of a split for random access. Each file of the dataset remains open."""
  open_files.raise_limit()
  info = builder.info
  try:
    if info.splits[split].num_examples < 1:
      raise ValueError('no examples')
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  except (ValueError, KeyError, AssertionError) as error:
    raise UsageError(
      f"{builder.data_path} has no split '{split}', or the split is empty; its splits are "
      f"{', '.join(sorted(info.splits))}, and slices of them such as 'train[:90%]'."
    ) from error
  except NotImplementedError as error:
    raise UsageError(
      f'{builder.data_path} was prepared as {info.file_format.value}, which does not support random access; prepare it '
      'again in the array_record format.'
    ) from error


def _number_classes(dataset, classes, names):
  """Returns the new label of each selected class by its label in the dataset."""
  if unknown := [name for name in classes if name not in names]:
    known = f'classes are {", ".join(names)}' if len(names) <= 30 else f'first classes are {", ".join(names[:10])}'
    raise UsageError(f'data.classes contains {", ".join(unknown)}, which {dataset} does not have; its {known}.')
  return {names.index(name): label for label, name in enumerate(classes)}


def open_splits(
  config: ConfigDict, size: int, splits: Sequence[str], *, allow_unlabelled: Collection[str] = ()
) -> tuple[Source, ...]:
  """Opens splits of the dataset that a config names, and prepares the dataset if necessary.

  If `data.dir` is set, nothing is downloaded: the folder must contain the prepared dataset. Only the embedded `digits`
  is prepared in any folder.

  Args:
    config: the `data` part of a config.
    size: side of the square images in pixels.
    splits: splits in TFDS's notation. A split that occurs twice is opened once.
    allow_unlabelled: splits in which the label -1 is valid.

  Returns:
    One source for each element of `splits`.

  Raises:
    UsageError: if the dataset, folder, a split or a class does not exist, or the dataset has no labelled images.
    RunError: if the dataset cannot be prepared.
  """
  builder = _make_builder(config)
  if not builder.is_prepared():
    _prepare(builder, config)
    builder = _make_builder(config)  # another process may have prepared the dataset meanwhile
  _check_name(builder)
  sources = {
    split: Source(
      builder,
      split,
      size,
      classes=config.classes,
      allow_unlabelled=split in allow_unlabelled,
      skip_unreadable=config.unreadable == 'skip',
    )
    for split in dict.fromkeys(splits)
  }
  return tuple(sources[split] for split in splits)


def _make_builder(config):
  directory = os.path.expanduser(config.dir) or None
  if directory and not os.path.isdir(directory) and config.name != 'digits':
    raise UsageError(f"data.dir='{config.dir}' is not a folder; name the folder that contains '{config.name}'.")
  try:
    return tfds.builder(config.name, data_dir=directory, file_format='array_record')
  except tfds.core.DatasetNotFoundError as error:
    names = tfds.list_builders(with_community_datasets=False)  # listing community datasets needs the network
    similar = difflib.get_close_matches(config.name, names, n=5)
    raise UsageError(
      f"there is no dataset '{config.name}'; "
      + (f'similar names are {", ".join(similar)}; ' if similar else '')
      + f'choose {SUGGESTED_DATASETS}, or any other TFDS dataset of labelled images.'
    ) from error
  except Exception as error:  # it has no such config or version, or its folder is damaged: errors of many types
    if config.name.startswith(f'{Ilsvrc.name}/'):
      raise UsageError(
        f"'{config.name}' does not exist in {directory or tfds.core.constants.DATA_DIR}; "
        f'{_preparation_hint(config.name)}.'
      ) from error
    raise UsageError(
      f"data.name='{config.name}' cannot be opened in {directory or tfds.core.constants.DATA_DIR}: {first_line(error)}"
    ) from error


def _check_name(builder):
  """Checks that a dataset is named after its folder: the name occurs in the paths of files that are written."""
  name = builder.info.full_name
  parts = tuple(name.split('/'))
  if pathlib.PurePath(builder.data_path).parts[-len(parts) :] != parts:
    raise UsageError(
      f"{builder.data_path} contains a dataset named '{printable(name)}'; rename the folder to that name, or prepare "
      'the dataset again.'
    )


def _prepare(builder, config):
  """Downloads and prepares a dataset, unless the user has to prepare it or provides its folder."""
  if isinstance(builder, Ilsvrc):
    path = pathlib.Path(builder.data_path)
    siblings = sorted(sibling.name for sibling in path.parent.glob('*') if sibling.is_dir())
    contents = f', which contains only {", ".join(siblings)}' if siblings else ''
    raise UsageError(
      f"'{config.name}' is not prepared: {path.name} is missing in {path.parent}{contents}; "
      f'{_preparation_hint(config.name)}.'
    )
  if config.dir and not isinstance(builder, digits.Digits):
    raise UsageError(
      f"data.dir='{config.dir}' contains no prepared '{config.name}' (expected in {builder.data_path}); name another "
      "folder, or omit data.dir to let TFDS download the dataset to TFDS's default folder."
    )
  folder = pathlib.Path(builder.data_path).parent
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / '.lock'):  # of another process that prepares it: this one then uses the result
      builder.download_and_prepare()
  except Exception as error:  # network, disk, missing manual download: TFDS raises errors of many types
    raise RunError(
      f"the dataset '{config.name}' could not be prepared in {builder.data_path}: {first_line(error)}"
    ) from error


def _preparation_hint(name):
  name = name.partition('/')[2].partition(':')[0] or '2012'
  layout = name.removesuffix('_raw')
  command = f'python -m alexnet_jax prepare {layout if layout in archives.LAYOUTS else "folder"} SOURCE'
  if layout not in archives.LAYOUTS:
    command += f' --name={layout}'
  if name.endswith('_raw'):
    command += ' --encoding=raw'
  return (
    f'prepare it, or resume its preparation, with {command}, or name the folder that contains it with --config.data.dir'
  )


def _image_and_label_keys(builder):
  """Returns the keys of an example's image and label."""
  features = builder.info.features
  image_keys = [key for key, feature in features.items() if _is_image(feature)]
  label_keys = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  supervised_keys = builder.info.supervised_keys
  if isinstance(supervised_keys, tuple) and len(supervised_keys) == 2:
    image_key, label_key = supervised_keys
    if image_key in image_keys and label_key in label_keys:
      return image_key, label_key
  if len(image_keys) == 1 and len(label_keys) == 1:
    return image_keys[0], label_keys[0]
  raise UsageError(
    f'{builder.info.full_name} is not a dataset of images with one label each (its features are '
    f'{", ".join(features)}); choose another, such as {SUGGESTED_DATASETS}.'
  )


def _is_image(feature):
  """Checks whether a feature is an encoded image or an array of pixels [height, width, rgb] uint8."""
  if isinstance(feature, tfds.features.Image):
    return True
  is_array = type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8
  return is_array and len(feature.shape) == 3 and feature.shape[-1] == 3
