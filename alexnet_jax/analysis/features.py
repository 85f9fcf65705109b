"""Activations of a layer for a dataset or for image files, saved to a folder (section 6.1).

The folder contains features.npy [image, ...] float32, labels.npy [image] int32, names.json, and about.json, which
records the run, the step, the layer and the images.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.analysis.neighbours import find_nearest
from alexnet_jax.data import image_io, pipeline, sources
from alexnet_jax.data.pipeline import Batch
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import trained_model
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.runs import run_folder
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError


class Features(NamedTuple):
  """Features that `extract` wrote.

  Attributes:
    features: [image, ...] float32, memory-mapped.
    labels: [image] int32; -1 if unknown.
    names: names of the images, such as 'train/123' or a path.
    about: 'run', 'step', 'layer' and 'shape', and 'dataset' and 'split' or 'images' and 'crc32'.
  """

  features: np.ndarray
  labels: np.ndarray
  names: list[str]
  about: dict[str, Any]


def load(folder: pathlib.Path) -> Features:
  """Opens features.

  Args:
    folder: folder that `extract` wrote.

  Raises:
    UsageError: if the folder contains no features, or damaged ones.
  """
  try:
    features = np.load(folder / 'features.npy', mmap_mode='r', allow_pickle=False)
    labels = np.load(folder / 'labels.npy', allow_pickle=False)
    names, about = (json.loads((folder / name).read_text()) for name in ('names.json', 'about.json'))
    if not len(features) == len(labels) == len(names):
      raise ValueError('the lengths of its files differ')
  except FileNotFoundError as error:
    raise UsageError(
      f'{folder} contains no features; make them with python -m alexnet_jax features extract WORKDIR {folder}.'
    ) from error
  except (OSError, ValueError, EOFError) as error:
    raise UsageError(f'the features in {folder} are damaged ({error}); remove them and extract them again.') from error
  return Features(features, labels, names, about)


# Images.


class DatasetImages:
  """The images of a split, in order.

  Attributes:
    source: the split.
    batch_size: number of images per batch.
    about: 'dataset' and 'split', for about.json.
  """

  def __init__(self, source: Source, config: ConfigDict):
    """Takes the arguments of `pipeline.evaluation_dataset`."""
    self.source, self._config = source, config
    self.batch_size: int = config.eval.batch_size
    self.about = {'dataset': source.dataset, 'split': source.split}

  def __len__(self) -> int:
    return len(self.source)

  def name(self, index: int) -> str:
    """Returns the name of an image, such as 'train/123'."""
    return f'{self.source.split}/{index}'

  def batches(self, first: int) -> Iterator[tuple[Batch, dict[int, str]]]:
    """Yields batches from the given index, each with {index: reason} of its unreadable images, which have weight 0."""
    dataset = pipeline.evaluation_dataset(self.source, self._config, shard=(0, 1))
    for batch_index, batch in enumerate(pipeline.prefetch(dataset[first:], self._config), first):
      indices = range(batch_index * self.batch_size, (batch_index + 1) * self.batch_size)
      yield batch, {index: reason for index in indices if (reason := self.source.skipped.get(index))}


class FileImages:
  """Image files of a user.

  Attributes:
    batch_size: number of images per batch.
    about: 'images' and 'crc32', for about.json.
  """

  def __init__(self, paths: Sequence[pathlib.Path], size: int, batch_size: int):
    """Describes the files, which are read later.

    Args:
      paths: paths of the files, one or more.
      size: side of the stored images in pixels.
      batch_size: number of images per batch.
    """
    self._paths, self._size, self.batch_size = paths, size, batch_size
    names = '\n'.join(map(str, paths))
    self.about = {'images': f'{len(paths):,} files from {paths[0]} to {paths[-1]}', 'crc32': zlib.crc32(names.encode())}

  def __len__(self) -> int:
    return len(self._paths)

  def name(self, index: int) -> str:
    """Returns the name of an image, its path."""
    return str(self._paths[index])

  def batches(self, first: int) -> Iterator[tuple[Batch, dict[int, str]]]:
    """Yields batches from the given index, each with {index: reason} of its unreadable images, which have weight 0."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(first * self.batch_size, len(self), self.batch_size):
        batch: Batch = {
          'image': np.zeros((self.batch_size, self._size, self._size, 3), np.uint8),
          'label': np.full(self.batch_size, -1, np.int32),
          'weight': np.zeros(self.batch_size, np.float32),
        }
        skipped = {}
        for row, image in enumerate(pool.map(self._read, self._paths[start : start + self.batch_size])):
          if isinstance(image, str):
            skipped[start + row] = image
            tqdm.tqdm.write(f'skipped {self.name(start + row)}: {image}', sys.stderr)
          else:
            batch['image'][row], batch['weight'][row] = image, 1
        yield batch, skipped

  def _read(self, path: pathlib.Path) -> np.ndarray | str:
    """Returns an image, or the reason why it cannot be read."""
    try:
      return image_io.read_square(path, self._size)
    except ValueError as error:
      return str(error)


def open_dataset(
  run: pathlib.Path,
  size: int,
  *,
  split: str | None = None,
  name: str | None = None,
  directory: str | None = None,
  batch_size: int = 128,
) -> DatasetImages:
  """Opens a split of a run's dataset or of another dataset.

  Args:
    run: folder of the run.
    size: side of the stored images in pixels.
    split: split in TFDS's notation; None for the training split of the run.
    name: TFDS name of the dataset; None for the run's.
    directory: folder of the datasets; None for the run's.
    batch_size: number of images per batch.

  Raises:
    UsageError: if there is no such run, dataset or split.
  """
  config = run_folder.load_config(run)
  config.data.name, config.data.dir = name or config.data.name, directory or config.data.dir
  config.eval.batch_size = batch_size
  split = split or config.data.train_split
  (source,) = sources.open_splits(config.data, size, [split], allow_unlabelled=[split])
  return DatasetImages(source, config)


# Extraction.


def extract(
  model: TrainedModel, images: DatasetImages | FileImages, layer: str, run: pathlib.Path, output: pathlib.Path
) -> dict[str, str]:
  """Saves a layer's activations for the centre crop of every image.

  The output folder appears only once it is complete. Until then the activations are in OUTPUT.partial, from which the
  same call resumes after an interruption.

  Args:
    model: the network.
    images: the images.
    layer: name of the layer.
    run: folder of the network's run, to be recorded in about.json.
    output: folder to create.

  Returns:
    {name: reason} of the images that could not be read and were skipped.

  Raises:
    UsageError: if the network has no such layer, or another process is writing to the same folder.
    RunError: if the disk is full, the data cannot be read, or no image can be read.
  """
  shape = model.layer_shape(layer)
  about = {'run': str(run.absolute()), 'step': model.num_steps, 'layer': layer, 'shape': list(shape), **images.about}
  working = output.with_name(f'{output.name}.partial')
  message = f'{working} is being written by another process; wait until it has finished.'
  try:
    working.mkdir(parents=True, exist_ok=True)
    with atomic_files.exclusive_lock(working / '.lock', message):
      skipped = _extract_arrays(model, images, working, about)
      if len(skipped) == len(images):
        shutil.rmtree(working)
        raise RunError(f'none of the {len(images):,} images can be read.')
      names = [images.name(index) for index in range(len(images)) if str(index) not in skipped]
      _write_json(working / 'names.json', names)
      _write_json(working / 'about.json', about)
      os.replace(working, output)
      for name in ('done.json', '.lock'):
        (output / name).unlink()
  except OSError as error:
    raise RunError(
      f'{working} cannot be written ({error.strerror}); free some space and run the same command to resume.'
    ) from error
  return {images.name(int(index)): reason for index, reason in skipped.items()}


def _extract_arrays(
  model: TrainedModel, images: DatasetImages | FileImages, folder: pathlib.Path, about: dict[str, Any]
) -> dict[str, str]:
  """Writes features.npy and labels.npy, and the progress to done.json; returns {index: reason} of skipped images."""
  layer, shape = about['layer'], tuple(about['shape'])
  job = {'about': about, 'batch_size': images.batch_size}
  with (
    contextlib.closing(_GrowingArray(folder / 'features.npy', shape, np.float32)) as rows,
    contextlib.closing(_GrowingArray(folder / 'labels.npy', (), np.int32)) as labels,
  ):
    done = _load_progress(folder, job, min(rows.num_rows, labels.num_rows))
    rows.truncate(done['rows'])
    labels.truncate(done['rows'])
    num_bytes, free = (len(images) - rows.num_rows) * 4 * math.prod(shape), shutil.disk_usage(folder).free
    if num_bytes > free:
      raise RunError(
        f'the features need {num_bytes / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left; free some space.'
      )
    bar = tqdm.tqdm(total=len(images), initial=done['seen'], unit=' images', desc=layer, mininterval=1)
    for batch, skipped in images.batches(done['batches']):
      is_image = batch['weight'] > 0
      rows.append(np.asarray(model.activations(batch['image'], layer))[is_image])
      labels.append(batch['label'][is_image])
      done['skipped'] |= {str(index): reason for index, reason in skipped.items()}
      num_seen = min(done['seen'] + images.batch_size, len(images))
      bar.update(num_seen - done['seen'])
      done |= {'batches': done['batches'] + 1, 'seen': num_seen, 'rows': rows.num_rows}
      _write_json(folder / 'done.json', done)
    bar.close()
  return done['skipped']


def _load_progress(folder: pathlib.Path, job: dict[str, Any], num_rows: int) -> dict[str, Any]:
  """Returns the progress of an interrupted extraction of the same job and as many rows, or that of a new extraction."""
  new = {'job': job, 'batches': 0, 'seen': 0, 'rows': 0, 'skipped': {}}
  try:
    done = json.loads((folder / 'done.json').read_text())
  except (OSError, ValueError):
    return new
  if done['job'] != job or num_rows < done['rows']:
    if done['seen']:
      print(f'Discarding {done["seen"]:,} images of another extraction in {folder}', flush=True)
    return new
  print(f'Resuming after {done["seen"]:,} images', flush=True)
  return done


class _GrowingArray:
  """An .npy file to which rows are appended.

  If the disk is full, `append` raises OSError. Writing to `np.lib.format.open_memmap` would end the process by SIGBUS,
  and needs the number of rows in advance, which skipped images reduce.

  Attributes:
    num_rows: number of rows.
  """

  def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: type[np.generic]):
    self._shape, self._dtype = shape, np.dtype(dtype)
    self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b')
    self._write_header(0)
    self._row_bytes = self._dtype.itemsize * math.prod(shape)
    self._start = self._file.tell()
    self.num_rows = (self._file.seek(0, os.SEEK_END) - self._start) // self._row_bytes

  def _write_header(self, num_rows):
    """Writes the header, which NumPy pads to a length that does not depend on the number of rows."""
    self._file.seek(0)
    np.lib.format.write_array_header_1_0(
      self._file, {'descr': self._dtype.str, 'fortran_order': False, 'shape': (num_rows, *self._shape)}
    )

  def truncate(self, num_rows: int) -> None:
    self.num_rows = num_rows
    self._file.truncate(self._start + num_rows * self._row_bytes)
    self._file.seek(0, os.SEEK_END)

  def append(self, rows: np.ndarray) -> None:
    self._file.write(np.ascontiguousarray(rows, self._dtype).data)
    self._file.flush()
    self.num_rows += len(rows)

  def close(self) -> None:
    """Writes the header of the rows so far, and the file to the disk."""
    with self._file:
      self._write_header(self.num_rows)
      self._file.flush()
      os.fsync(self._file.fileno())


def _write_json(path: pathlib.Path, value: Any) -> None:
  atomic_files.write_text(path, json.dumps(value, indent=0))


# Commands.


def extract_command(options: argparse.Namespace) -> int:
  """Runs `features extract` and returns the number of skipped images.

  Raises:
    UsageError, RunError: as `extract`, or if the options are contradictory or out of range.
  """
  if options.output.exists():
    raise UsageError(f'{options.output} already exists; name another OUTPUT, or remove it.')
  if options.images and (options.split or options.data or options.data_dir):
    raise UsageError('--images replaces the dataset; omit --split, --data and --data_dir.')
  if options.batch_size < 1:
    raise UsageError(f'--batch_size={options.batch_size} must be 1 or more.')
  paths = image_io.find_images(options.images) if options.images else []
  model = trained_model.load(options.workdir, batch_size=0)
  num_data = model.mesh.shape['data']
  batch_size = math.ceil(options.batch_size / num_data) * num_data
  shape = model.layer_shape(options.layer)  # raises for an unknown layer before the dataset is opened
  images: DatasetImages | FileImages
  if paths:
    images = FileImages(paths, model.stored_size, batch_size)
  else:
    images = open_dataset(
      options.workdir,
      model.stored_size,
      split=options.split,
      name=options.data,
      directory=options.data_dir,
      batch_size=batch_size,
    )
  skipped = extract(model, images, options.layer, options.workdir, options.output)
  print(f'{options.output}: {options.layer} of {len(images) - len(skipped):,} images, {shape} float32 each')
  if skipped:
    print(f'{len(skipped):,} image(s) cannot be read and were skipped, such as')
    for name, reason in itertools.islice(skipped.items(), 5):
      print(f'  {name}: {reason}')
  return len(skipped)


def neighbours_command(options: argparse.Namespace) -> int:
  """Runs `features neighbours` and returns 0.

  Raises:
    UsageError: if the output exists, there are no such features, they cannot be compared, or `--k` is out of range.
    RunError: if the output cannot be written, or as `find_nearest`.
  """
  if options.output.exists():
    raise UsageError(f'{options.output} already exists; name another --output, or remove it.')
  queries, train = load(options.queries), load(options.train)
  for field in ('run', 'step', 'layer'):
    if queries.about[field] != train.about[field]:
      raise UsageError(
        f'{options.queries} and {options.train} differ in {field} ({queries.about[field]} and {train.about[field]}); '
        'extract both from the same run, step and layer.'
      )
  if not 1 <= options.k <= len(train.features):
    raise UsageError(f'--k={options.k} must be 1 to {len(train.features):,}, the number of images in {options.train}.')
  indices, distances = find_nearest(queries.features, train.features, options.k)
  try:
    with open(options.output, 'wb') as file:
      np.savez(file, indices=indices, distances=distances)
  except OSError as error:
    raise RunError(f'{options.output} cannot be written ({error.strerror}); name another --output.') from error
  print(f'{options.output}: the {options.k} nearest of {len(train.features):,} images to each of {len(indices):,}')
  for query in range(min(5, len(indices))):
    nearest = zip(indices[query], distances[query], strict=True)
    listed = ', '.join(f'{train.names[index]} ({distance:.4g})' for index, distance in nearest)
    print(f'  {queries.names[query]}: {listed}')
  return 0
