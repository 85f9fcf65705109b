"""Any layer's activations for a dataset or for image files, and exact nearest neighbours among them (section 6.1).

    python -m alexnet_jax features extract runs/digits train-fc7                    # its own training images
    python -m alexnet_jax features extract runs/digits test-fc7 --split=test
    python -m alexnet_jax features extract runs/digits mine --images PHOTOGRAPHS
    python -m alexnet_jax features neighbours test-fc7 train-fc7 --k=6

extract makes a folder: features.npy [image, ...] float32, labels.npy [image] int32 (-1 if not known), names.json, and
about.json, which says whose features they are. Stopped and started again, it goes on where it was. neighbours writes
indices [query, k] and distances [query, k] to an .npz file. Exit status: 0 done, 1 failed, 2 wrong usage, 3 done but
for images that cannot be read (they are named), 75 stopped.
"""

import argparse
import concurrent.futures
import fcntl
import itertools
import json
import math
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tqdm
from absl import logging

from alexnet_jax.analysis import neighbours
from alexnet_jax.data import image_io, pipeline, sources
from alexnet_jax.evaluation import trained_model
from alexnet_jax.runs import run_folder
from alexnet_jax.runtime.errors import RunError, UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from alexnet_jax.data.pipeline import Batch
  from alexnet_jax.data.sources import Source
  from alexnet_jax.evaluation.trained_model import TrainedModel


# Activations to disk.


class Features(NamedTuple):
  """What `extract` wrote.

  Attributes:
    features: [image, ...] float32, on disk.
    labels: [image] int32; -1 where there is none.
    names: of the images, such as 'train/123' or a file name.
    about: 'run', 'step', 'layer', 'shape', and 'dataset' and 'split' or 'images'.
  """

  features: np.ndarray
  labels: np.ndarray
  names: list[str]
  about: dict


def load(folder: pathlib.Path) -> Features:
  """Opens features; they stay on disk.

  Raises:
    UsageError: if there are none, or they are not whole.
  """
  try:
    features = np.load(folder / 'features.npy', mmap_mode='r', allow_pickle=False)
    labels = np.load(folder / 'labels.npy', allow_pickle=False)
    names, about = (json.loads((folder / name).read_text()) for name in ('names.json', 'about.json'))
    if not len(features) == len(labels) == len(names):
      raise ValueError('its files are of different lengths')
  except FileNotFoundError as error:
    raise UsageError(
      f'{folder} holds no features; make them with python -m alexnet_jax features extract WORKDIR {folder}.'
    ) from error
  except (OSError, ValueError, EOFError) as error:
    raise UsageError(f'the features in {folder} are damaged ({error}); remove them and extract them again.') from error
  return Features(features, labels, names, about)


class Dataset:
  """The images of a split, in order."""

  def __init__(self, source: 'Source', config: 'ConfigDict'):
    """Takes what `data.evaluation_batches` takes."""
    self.source, self._config = source, config
    self.batch_size = config.eval.batch_size
    self.about = {'dataset': source.dataset, 'split': source.split}

  def __len__(self) -> int:
    return len(self.source)

  def name(self, index: int) -> str:
    """Names an image: 'train/123'."""
    return f'{self.source.split}/{index}'

  def batches(self, first: int) -> Iterator[tuple['Batch', dict[int, str]]]:
    """Yields batches from the given one on, and {index: why it cannot be read}; such images have weight 0."""
    batches = pipeline.evaluation_batches(self.source, self._config, share=(0, 1), first=first)
    for number, batch in enumerate(batches, first):
      indices = range(number * self.batch_size, (number + 1) * self.batch_size)
      yield batch, {index: reason for index in indices if (reason := self.source.skipped.get(index))}


class Files:
  """Image files of a user."""

  def __init__(self, paths: Sequence[pathlib.Path], size: int, batch_size: int):
    """Reads files, `batch_size` at a time, to squares of the stored `size`."""
    self._paths, self._size, self.batch_size = paths, size, batch_size
    names = '\n'.join(map(str, paths))
    self.about = {'images': f'{len(paths):,} files from {paths[0]} to {paths[-1]}', 'crc32': zlib.crc32(names.encode())}

  def __len__(self) -> int:
    return len(self._paths)

  def name(self, index: int) -> str:
    """Names an image: its path."""
    return str(self._paths[index])

  def batches(self, first: int) -> Iterator[tuple['Batch', dict[int, str]]]:
    """Yields batches from the given one on, and {index: why it cannot be read}; such images have weight 0."""

    def read(path):
      try:
        return image_io.read_square(path, self._size)
      except ValueError as error:
        return str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(first * self.batch_size, len(self), self.batch_size):
        batch = {
          'image': np.zeros((self.batch_size, self._size, self._size, 3), np.uint8),
          'label': np.full(self.batch_size, -1, np.int32),
          'weight': np.zeros(self.batch_size, np.float32),
        }
        skipped = {}
        for row, found in enumerate(pool.map(read, self._paths[start : start + self.batch_size])):
          if isinstance(found, str):
            skipped[start + row] = found
            tqdm.tqdm.write(f'left out: {self.name(start + row)}: {found}', sys.stderr)
          else:
            batch['image'][row], batch['weight'][row] = found, 1
        yield batch, skipped


def extract(
  trained: 'TrainedModel', images: Dataset | Files, layer: str, run: pathlib.Path, output: pathlib.Path
) -> dict[str, str]:
  """Writes what a layer says of the centre patch of every image to a folder, which is there when it is whole.

  What is done so far lies in OUTPUT.partial; the same call after an interruption goes on from there.

  Args:
    trained: the network.
    images: to look at.
    layer: a stage of the network.
    run: the folder of its run, for the record.
    output: the folder to make.

  Returns:
    {name: reason} of the images that could not be read and were left out.

  Raises:
    UsageError: if the network has no such layer, or another process is at it.
    RunError: if the disk is full or the data cannot be read, or none of the images can be.
  """
  shape = trained.layer_shape(layer)
  about = {'run': str(run.absolute()), 'step': trained.num_steps, 'layer': layer, 'shape': list(shape), **images.about}
  working = output.with_name(f'{output.name}.partial')
  try:
    working.mkdir(parents=True, exist_ok=True)
    with (
      _Growing(working / 'features.npy', shape, np.float32) as rows,
      _Growing(working / 'labels.npy', (), np.int32) as labels,
    ):
      done = _continue(working, {'about': about, 'batch_size': images.batch_size}, rows, labels)
      _check_space(working, (len(images) - rows.length) * 4 * math.prod(shape))
      bar = tqdm.tqdm(total=len(images), initial=done['seen'], unit=' images', desc=layer, mininterval=1)
      for batch, skipped in images.batches(done['batches']):
        is_image = batch['weight'] > 0
        rows.append(np.asarray(trained.activations(batch['image'], layer))[is_image])
        labels.append(batch['label'][is_image])
        for index, reason in skipped.items():
          done['skipped'][str(index)] = reason
        seen = min(done['seen'] + images.batch_size, len(images))
        bar.update(seen - done['seen'])
        done |= {'batches': done['batches'] + 1, 'seen': seen, 'rows': rows.length}
        _write_json(working / 'done.json', done)
      bar.close()
      if not rows.length:
        shutil.rmtree(working)
        raise RunError(f'none of the {len(images):,} images can be read.')
      rows.finish()
      labels.finish()
      names = [images.name(index) for index in range(len(images)) if str(index) not in done['skipped']]
      _write_json(working / 'names.json', names)
      _write_json(working / 'about.json', about)
      os.replace(working, output)
      (output / 'done.json').unlink()
  except OSError as error:
    raise RunError(
      f'{working} cannot be written ({error.strerror}); what is done is kept: make room and start again.'
    ) from error
  return {images.name(int(index)): reason for index, reason in done['skipped'].items()}


def _continue(working, job, rows, labels):
  """Says what an interrupted call of the same job has done, and takes back what it did not finish; or begins."""
  nothing = {'job': job, 'batches': 0, 'seen': 0, 'rows': 0, 'skipped': {}}
  try:
    done = json.loads((working / 'done.json').read_text())
  except (OSError, ValueError):
    done = nothing
  if done['job'] != job or min(rows.length, labels.length) < done['rows']:
    if done['seen']:
      print(f'{working} holds {done["seen"]:,} images of another call; beginning anew', flush=True)
    done = nothing
  elif done['seen']:
    print(f'going on: {done["seen"]:,} images are done', flush=True)
  rows.cut(done['rows'])
  labels.cut(done['rows'])
  return done


class _Growing:
  """An .npy file that grows by rows: unlike a mapped file of the final size, a full disk is an error and no crash."""

  def __init__(self, path, shape, dtype):
    self._shape, self._dtype = shape, np.dtype(dtype)
    self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b')
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._file.close()
      raise UsageError(f'{path.parent} is being written by another process; wait for its end.') from error
    self._write_header(0)
    self._row_bytes = self._dtype.itemsize * math.prod(shape)
    self._start = self._file.tell()
    self.length = (self._file.seek(0, os.SEEK_END) - self._start) // self._row_bytes

  def _write_header(self, length):
    """Writes the header, which numpy makes equally long for any number of rows."""
    self._file.seek(0)
    np.lib.format.write_array_header_1_0(
      self._file, {'descr': self._dtype.str, 'fortran_order': False, 'shape': (length, *self._shape)}
    )

  def cut(self, length):
    self.length = length
    self._file.truncate(self._start + length * self._row_bytes)
    self._file.seek(0, os.SEEK_END)

  def append(self, rows):
    self._file.write(np.ascontiguousarray(rows, self._dtype).data)
    self._file.flush()
    self.length += len(rows)

  def finish(self):
    self._write_header(self.length)
    self._file.flush()
    os.fsync(self._file.fileno())

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()


def _check_space(folder, needed):
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise RunError(
      f'the features need {needed / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left; make room.'
    )


def _write_json(path, value):
  partial = path.with_name(f'.{path.name}')
  partial.write_text(json.dumps(value, indent=0))
  partial.replace(path)


# What the command line asks for.


def extract_command(options: argparse.Namespace) -> int:
  """Runs `features extract` and returns how many images were left out."""
  logging.set_verbosity(logging.ERROR)  # Orbax's own chatter
  if options.output.exists():
    raise UsageError(f'{options.output} is there already; name another OUTPUT, or remove it.')
  if options.images and (options.split or options.data or options.data_dir):
    raise UsageError('--images are no dataset; leave out --split, --data and --data_dir.')
  if options.batch_size < 1:
    raise UsageError(f'--batch_size={options.batch_size} must be 1 or more.')
  paths = image_io.find_images(options.images) if options.images else []
  network = trained_model.load(options.workdir, batch_size=0)  # the devices say which are possible
  num_data = network.mesh.shape['data']
  batch_size = math.ceil(options.batch_size / num_data) * num_data
  network.layer_shape(options.layer)  # an unknown one is said before the data is opened
  if paths:
    looked_at = Files(paths, network.stored_size, batch_size)
  else:
    looked_at = dataset(
      options.workdir,
      network.stored_size,
      split=options.split,
      name=options.data,
      directory=options.data_dir,
      batch_size=batch_size,
    )
  skipped = extract(network, looked_at, options.layer, options.workdir, options.output)
  num_images = len(looked_at) - len(skipped)
  print(
    f'{options.output}: {options.layer} of {num_images:,} images, {network.layer_shape(options.layer)} float32 each'
  )
  if skipped:
    print(f'{len(skipped):,} image(s) cannot be read and were left out, such as')
    for name, reason in itertools.islice(skipped.items(), 5):
      print(f'  {name}: {reason}')
  return len(skipped)


def dataset(
  run: pathlib.Path,
  size: int,
  *,
  split: str | None = None,
  name: str | None = None,
  directory: str | None = None,
  batch_size: int = 128,
) -> Dataset:
  """Opens a split of the data of a run, or of other data.

  Args:
    run: folder of the run.
    size: side of the stored images.
    split: in TFDS's notation; by default the one that the run trains on.
    name: of another dataset.
    directory: that holds it; by default the run's.
    batch_size: images at a time.

  Raises:
    UsageError: if there is no such run, dataset or split.
  """
  config = run_folder.load_config(run)
  config.data.name, config.data.dir = name or config.data.name, directory or config.data.dir
  config.eval.batch_size = batch_size
  split = split or config.data.train_split
  (source,) = sources.open_splits(config.data, size, [split], may_lack_labels=[split])
  return Dataset(source, config)


def neighbours_command(options: argparse.Namespace) -> int:
  """Runs `features neighbours` and returns 0."""
  if options.output.exists():
    raise UsageError(f'{options.output} is there already; name another --output, or remove it.')
  queries, train = load(options.queries), load(options.train)
  for field in ('run', 'step', 'layer'):
    ours, theirs = queries.about[field], train.about[field]
    if ours != theirs:
      raise UsageError(
        f'{options.queries} and {options.train} are of another {field} ({ours} and {theirs}) and cannot be compared; '
        'extract them alike.'
      )
  if not 1 <= options.k <= len(train.features):
    raise UsageError(f'--k={options.k} must be 1 to {len(train.features):,}, the number of images in {options.train}.')
  indices, distances = neighbours.nearest(queries.features, train.features, options.k)
  try:
    with open(options.output, 'wb') as file:
      np.savez(file, indices=indices, distances=distances)
  except OSError as error:
    raise RunError(f'{options.output} cannot be written ({error.strerror}); name another --output.') from error
  print(f'{options.output}: the {options.k} nearest of {len(train.features):,} images to each of {len(indices):,}')
  for query in range(min(5, len(indices))):
    near = ', '.join(
      f'{train.names[index]} ({distance:.4g})' for index, distance in zip(indices[query], distances[query], strict=True)
    )
    print(f'  {queries.names[query]}: {near}')
  return 0
