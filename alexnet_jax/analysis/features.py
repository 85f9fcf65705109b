"""Activations of layers for a dataset or for image files, saved to a folder (section 6.1).

The folder of a layer contains features.npy [image, ...] float32, labels.npy [image] int32, names.json, and about.json,
which records the run, the step, the layer and the images.
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
from alexnet_jax.interop import feature_files, torchvision_files
from alexnet_jax.models.registry import Network
from alexnet_jax.runs import checkpoints, run_folder
from alexnet_jax.runtime import atomic_files, processor
from alexnet_jax.runtime.errors import RunError, UsageError, printable
from alexnet_jax.runtime.growing_array import GrowingArray

# Names of our layers' outputs in other programs. An output has the name of the last step that it includes: 'conv1' is
# the input of pool1, after the nonlinearity and, in networks that normalise conv1, after the normalisation. The names
# in the third column are those of Caffe's layers and of the exported alexnet_torch.py, the fourth are torchvision's.
# Outputs of convolutions and fully-connected layers before the nonlinearity ('features.0') are not extracted, and
# 'conv1' is always our own name; in Caffe, relu1 overwrites the blob conv1, which precedes the normalisation.
OTHER_NAMES = (
  # layer, last step, Caffe, torchvision
  ('conv1', 'relu', 'relu1', 'features.1'),
  ('conv1', 'norm', 'norm1', None),
  ('pool1', 'pool', 'pool1', 'features.2'),
  ('pool1', 'norm', 'norm1', None),  # networks that normalise after pooling: CaffeNet
  ('conv2', 'relu', 'relu2', 'features.4'),
  ('conv2', 'norm', 'norm2', None),
  ('pool2', 'pool', 'pool2', 'features.5'),
  ('pool2', 'norm', 'norm2', None),
  ('conv3', 'relu', 'relu3', 'features.7'),
  ('conv4', 'relu', 'relu4', 'features.9'),
  ('conv5', 'relu', 'relu5', 'features.11'),
  ('pool5', 'pool', 'pool5', 'features.12'),
  ('fc6', 'relu', 'relu6', 'classifier.2'),  # before dropout, which does not halve it
  ('fc7', 'relu', 'relu7', 'classifier.5'),
  ('fc8', 'linear', 'fc8', 'classifier.6'),  # logits
)


class Features(NamedTuple):
  """Features that `extract` wrote.

  Attributes:
    features: [image, ...] float32, memory-mapped.
    labels: [image] int32; -1 if unknown.
    names: names of the images, such as 'train/123' or a path.
    about: 'run', 'step', 'parameters' (a hash), 'layer' and 'shape', and 'dataset', 'fingerprint' and 'split' or
      'images' and 'crc32'.
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
    if not {'run', 'step', 'layer'} <= about.keys():
      raise ValueError('about.json lacks a field')
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UsageError(
      f'{folder} contains no features; make them with python -m alexnet_jax features extract WORKDIR {folder}.'
    ) from error
  except (OSError, ValueError, TypeError, AttributeError, EOFError) as error:
    raise UsageError(f'the features in {folder} are damaged ({error}); remove them and extract them again.') from error
  return Features(features, labels, names, about)


# Layers.


def other_names(network: Network) -> dict[str, str]:
  """Returns the names of a network's layers in Caffe and torchvision, {'relu6': 'fc6', 'classifier.2': 'fc6', ...}.

  A name is contained if both denote the same activation in this network, see `OTHER_NAMES`.
  """
  if network.config.name != 'alexnet':
    return {}
  return {
    name: layer
    for layer, step, *names in OTHER_NAMES
    if layer in network.layer_names and step == _last_step(layer, network.config)
    for name in names
    if name
  }


def _last_step(layer, config) -> str:
  """Returns the last step of a layer's output, such as 'relu', 'norm' or 'pool'."""
  if layer == 'fc8':
    return 'linear'
  conv, norm = layer.replace('pool', 'conv'), config.norm
  if layer != conv:
    return 'norm' if conv in norm.pooled else 'pool'
  if layer in norm.within:
    return 'norm within maps'
  return 'norm' if layer in norm.after else config.nonlinearity


def layers_named(network: Network, names: Sequence[str]) -> list[str]:
  """Returns the layers with the given names, each once.

  Args:
    network: the network.
    names: names of ours, or of Caffe or torchvision, see `other_names`.

  Raises:
    UsageError: if the network has no such layer, or the name denotes an activation that is not extracted.
  """
  others = other_names(network)
  layers = [name if name in network.layer_names else others.get(name, name) for name in names]
  for layer in layers:
    if layer not in network.layer_names:
      raise UsageError(f"this network has no layer '{layer}'; {_advice(layer, network)}.")
  return list(dict.fromkeys(layers))


def _advice(name, network) -> str:
  before = {module: layer for layer, module in torchvision_files.MODULES.items() if layer != 'fc8'}
  if name in before:
    return f'in torchvision it is {before[name]} before its nonlinearity, so name {before[name]}, which is after it'
  others = ', '.join(other_names(network))
  return f'its layers are {", ".join(network.layer_names)}' + (f', with the other names {others}' if others else '')


# Images.


class DatasetImages:
  """The images of a split, in order.

  Attributes:
    source: the split.
    batch_size: number of images per batch.
    about: 'dataset', 'fingerprint' and 'split', for about.json.
  """

  def __init__(self, source: Source, config: ConfigDict):
    """Takes the arguments of `pipeline.evaluation_dataset`."""
    self.source, self._config = source, config
    self.batch_size: int = config.eval.batch_size
    self.about = {'dataset': source.dataset, 'fingerprint': source.fingerprint, 'split': source.split}

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
    self.about = {
      'images': f'{len(paths):,} files from {paths[0]} to {paths[-1]}',
      'crc32': zlib.crc32(os.fsencode(names)),
    }

  def __len__(self) -> int:
    return len(self._paths)

  def name(self, index: int) -> str:
    """Returns the name of an image, its path."""
    return str(self._paths[index])

  def batches(self, first: int) -> Iterator[tuple[Batch, dict[int, str]]]:
    """Yields batches from the given index, each with {index: reason} of its unreadable images, which have weight 0."""
    with concurrent.futures.ThreadPoolExecutor(processor.num_cores()) as pool:
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
    name: TFDS name of the dataset; None for the run's. Of another dataset than the run's, all classes are used.
    directory: folder of the datasets; None for the run's.
    batch_size: number of images per batch.

  Raises:
    UsageError: if there is no such run, dataset or split.
  """
  config = run_folder.load_config(run)
  if name and name.partition(':')[0] != config.data.name.partition(':')[0]:  # the version is after the colon
    config.data.classes = ()
  config.data.name, config.data.dir = name or config.data.name, directory or config.data.dir
  config.eval.batch_size = batch_size
  split = split or config.data.train_split
  (source,) = sources.open_splits(config.data, size, [split], allow_unlabelled=[split])
  return DatasetImages(source, config)


# Extraction.


def extract(
  model: TrainedModel,
  images: DatasetImages | FileImages,
  layers: str | Sequence[str],
  run: pathlib.Path,
  output: pathlib.Path,
  file_format: str = 'npy',
) -> dict[str, str]:
  """Saves the activations of layers for the centre crop of every image, in one pass over the images.

  The output appears only once it is complete. Until then the activations are in OUTPUT.partial, from which the same
  call resumes after an interruption.

  Args:
    model: the network.
    images: the images.
    layers: name of a layer, or names of several.
    run: folder of the network's run, to be recorded in about.json.
    output: what to create. 'npy': the folder of the layer or, of several layers, a folder with a folder for each.
      'zarr': a Zarr group. 'torch': a file.
    file_format: 'npy', or a name in `feature_files.WRITERS`.

  Returns:
    {name: reason} of the images that could not be read and were skipped.

  Raises:
    UsageError: if the network has no such layer, the library of the format is not installed, another process is writing
      to the same folder, or it contains other files.
    RunError: if the disk is full, the data cannot be read, or no image can be read.
  """
  write = None if file_format == 'npy' else feature_files.writer(file_format)
  shapes = {layer: model.layer_shape(layer) for layer in ([layers] if isinstance(layers, str) else layers)}
  origin = {'run': str(run.absolute()), 'step': model.num_steps, 'parameters': _hash(model.params)}
  abouts = [origin | images.about | {'layer': layer, 'shape': list(shape)} for layer, shape in shapes.items()]
  working = output.with_name(f'{output.name}.partial')
  message = f'{working} is being written by another process; wait until it has finished.'
  try:
    working.mkdir(parents=True, exist_ok=True)
    with atomic_files.exclusive_lock(working / '.lock', message):
      folders, skipped = _extract_arrays(model, images, working, abouts, num_copies=2 if write else 1)
      if len(skipped) == len(images):
        shutil.rmtree(working)
        raise RunError(f'none of the {len(images):,} images can be read.')
      names = [images.name(index) for index in range(len(images)) if str(index) not in skipped]
      for folder, layer_about in zip(folders, abouts, strict=True):
        _write_json(folder / 'names.json', names)
        _write_json(folder / 'about.json', layer_about)
      if write:
        write(_contents(folders), working / 'output')
        os.replace(working / 'output', output)
        shutil.rmtree(working)
      else:
        os.replace(working, output)
        (output / 'done.json').unlink()
        (output / '.lock').unlink()
  except OSError as error:
    raise RunError(
      f'{working} cannot be written ({error.strerror}); free some space and run the same command to resume.'
    ) from error
  return {images.name(int(index)): reason for index, reason in skipped.items()}


def _hash(params):
  return zlib.crc32(json.dumps(checkpoints.fingerprints(params), sort_keys=True).encode())


def _contents(folders: Sequence[pathlib.Path]) -> feature_files.Contents:
  """Returns the features in the folders of layers, whose images are the same."""
  loaded = {of_layer.about['layer']: of_layer for of_layer in map(load, folders)}
  _, labels, names, _ = next(iter(loaded.values()))
  arrays = {layer: of_layer.features for layer, of_layer in loaded.items()}
  abouts = {layer: of_layer.about for layer, of_layer in loaded.items()}
  return feature_files.Contents(arrays, abouts, labels, names)


def _extract_arrays(
  model: TrainedModel,
  images: DatasetImages | FileImages,
  working: pathlib.Path,
  abouts: Sequence[dict[str, Any]],
  num_copies: int,
) -> tuple[list[pathlib.Path], dict[str, str]]:
  """Writes features.npy and labels.npy of every layer, and the progress to done.json.

  Returns:
    The folders of the layers, and {index: reason} of skipped images.
  """
  layers = [about['layer'] for about in abouts]
  folders = [working / layer for layer in layers] if len(layers) > 1 else [working]
  job = {'abouts': list(abouts), 'batch_size': images.batch_size}
  images_per_device = images.batch_size // model.mesh.shape['data']
  done = _load_progress(working, job)
  with contextlib.ExitStack() as stack:
    arrays: list[tuple[GrowingArray, GrowingArray]] = []
    for folder, about in zip(folders, abouts, strict=True):
      folder.mkdir(exist_ok=True)
      rows = GrowingArray(folder / 'features.npy', tuple(about['shape']), np.float32)
      labels = GrowingArray(folder / 'labels.npy', (), np.int32)
      arrays.append((rows, labels))
      stack.callback(rows.close)
      stack.callback(labels.close)
    if min(array.num_rows for pair in arrays for array in pair) < done['rows']:
      done = _new_progress(job)
    elif done['seen']:
      print(f'Resuming after {done["seen"]:,} images', flush=True)
    for array in itertools.chain(*arrays):
      array.truncate(done['rows'])
    num_values = num_copies * sum(math.prod(about['shape']) for about in abouts)  # of an image
    needed, free = (len(images) - done['rows']) * 4 * num_values, shutil.disk_usage(working).free
    if needed > free:
      raise RunError(
        f'the features need {needed / 1e9:.1f} GB and {working.parent} has {free / 1e9:.1f} GB left; free some space.'
      )
    bar = tqdm.tqdm(total=len(images), initial=done['seen'], unit=' images', desc=', '.join(layers), mininterval=1)
    for batch, skipped in images.batches(done['batches']):
      is_image = batch['weight'] > 0
      outputs = model.in_batches(lambda images: model.activations(images, layers), batch['image'], images_per_device)
      for (rows, labels), x in zip(arrays, outputs, strict=True):
        rows.append(x[is_image])
        labels.append(batch['label'][is_image])
      done['skipped'] |= {str(index): reason for index, reason in skipped.items()}
      num_seen = min(done['seen'] + images.batch_size, len(images))
      bar.update(num_seen - done['seen'])
      done |= {'batches': done['batches'] + 1, 'seen': num_seen, 'rows': rows.num_rows}
      _write_json(working / 'done.json', done)
    bar.close()
  return folders, done['skipped']


def _load_progress(folder: pathlib.Path, job: dict[str, Any]) -> dict[str, Any]:
  """Returns the progress of an interrupted extraction of the same job; removes the files of any other extraction."""
  others = [path for path in folder.iterdir() if path.name != '.lock']
  if others and not (folder / 'done.json').exists():
    raise UsageError(f'{folder} contains files of another program; remove or rename it, or name another OUTPUT.')
  _remove(folder / 'output')  # of an interrupted write in a format of another library
  try:
    done = json.loads((folder / 'done.json').read_text())
    if done['job'] == job:
      return done
    print(f'Discarding {done["seen"]:,} images of another extraction in {folder}', flush=True)
  except (OSError, ValueError, KeyError, TypeError):
    pass
  progress = _new_progress(job)
  _write_json(folder / 'done.json', progress)  # marks the folder as ours
  for path in others:
    if path.name != 'done.json':
      _remove(path)
  return progress


def _remove(path):
  """Removes a file or folder, if it exists."""
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _new_progress(job):
  return {'job': job, 'batches': 0, 'seen': 0, 'rows': 0, 'skipped': {}}


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
  layers = layers_named(model.network, options.layer.split(','))
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
  skipped = extract(model, images, layers, options.workdir, options.output, options.format)
  for layer in layers:
    num_values = math.prod(model.layer_shape(layer))
    print(f'{options.output}: {layer} of {len(images) - len(skipped):,} images, {num_values:,} float32 each')
  if skipped:
    print(f'{len(skipped):,} image(s) cannot be read and were skipped, such as')
    for name, reason in itertools.islice(skipped.items(), 5):
      print(f'  {printable(name)}: {reason}')
  return len(skipped)


def neighbours_command(options: argparse.Namespace) -> int:
  """Runs `features neighbours` and returns 0.

  Raises:
    UsageError: if the output exists, there are no such features, they cannot be compared, or `--k` is out of range.
    RunError: if the output cannot be written, or as `find_nearest`.
  """
  if options.output.exists():
    raise UsageError(f'{options.output} already exists; name another --output, or remove it.')
  if not options.output.absolute().parent.is_dir():
    raise UsageError(f'{options.output.parent} is not a folder; create it, or name another --output.')
  queries, train = load(options.queries), load(options.train)
  for field in ('run', 'step', 'layer', 'parameters'):
    values = [of_layer.about.get(field) for of_layer in (queries, train)]  # version 1 has no 'parameters'
    if values[0] != values[1]:
      raise UsageError(
        f'{options.queries} and {options.train} differ in {field} ({values[0]} and {values[1]}); extract both from the '
        'same run, step and layer.'
      )
  if not 1 <= options.k <= len(train.features):
    raise UsageError(f'--k={options.k} must be 1 to {len(train.features):,}, the number of images in {options.train}.')
  indices, distances = find_nearest(queries.features, train.features, options.k)
  try:
    with atomic_files.atomic_write(options.output) as partial, open(partial, 'wb') as file:
      np.savez(file, indices=indices, distances=distances)
  except OSError as error:
    raise RunError(f'{options.output} cannot be written ({error.strerror}); name another --output.') from error
  print(f'{options.output}: the {options.k} nearest of {len(train.features):,} images to each of {len(indices):,}')
  for query in range(min(5, len(indices))):
    nearest = zip(indices[query], distances[query], strict=True)
    listed = ', '.join(f'{train.names[index]} ({distance:.4g})' for index, distance in nearest)
    print(f'  {queries.names[query]}: {listed}')
  return 0
