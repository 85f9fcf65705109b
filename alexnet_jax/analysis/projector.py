"""Features as the files that TensorBoard's embedding projector reads.

TensorBoard projects the activations of images to two or three dimensions and draws each image at its point. The files
are: projector_config.pbtxt, LAYER.tsv with the activations of an image per line, metadata.tsv with the class and the
name of every image, and sprite.png with a thumbnail of every image, row by row.
"""

import argparse
import math
import pathlib
from typing import Any

import matplotlib.image
import numpy as np

from alexnet_jax.analysis import features
from alexnet_jax.data import image_io
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError

CONFIG, METADATA, SPRITE = 'projector_config.pbtxt', 'metadata.tsv', 'sprite.png'
MAX_VALUES = 2**24  # of a layer: 200 MB of text, which a browser still reads
MAX_SPRITE, MAX_THUMBNAIL = 8192, 64  # sides in pixels; browsers draw no larger texture


def project_command(options: argparse.Namespace) -> int:
  """Runs `features project` and returns 0; raises as `write`."""
  layers, num_images = write(
    options.folder, num_images=options.num_images, seed=options.seed, data_dir=options.data_dir
  )
  print(
    f'{options.folder}: {", ".join(layers)} of {num_images:,} images; tensorboard --logdir {options.folder} shows it'
  )
  return 0


def write(
  folder: pathlib.Path, *, num_images: int = 1000, seed: int = 0, data_dir: str | None = None
) -> tuple[list[str], int]:
  """Writes the files of the embedding projector to a folder of features.

  Args:
    folder: folder that `features.extract` wrote, of one layer or several.
    num_images: number of images, chosen at random if there are more.
    seed: seed of the random choice.
    data_dir: folder of the dataset, for the thumbnails; None for the run's.

  Returns:
    The names of the layers, and the number of images.

  Raises:
    UsageError: if there are no such features, they are too many for a browser, or an image cannot be read.
    RunError: if the files cannot be written, or the dataset cannot be read.
  """
  if num_images < 1:
    raise UsageError(f'--num_images={num_images} must be 1 or more.')
  folders = sorted(path.parent for path in folder.glob('*/about.json')) or [folder]
  loaded = [features.load(each) for each in folders]
  first, layers = loaded[0], {each.about['layer']: each for each in loaded}
  if len(layers) < len(loaded) or any(each.names != first.names for each in loaded):
    raise UsageError(
      f'the folders in {folder} contain the same layer twice, or features of different images; name one of them.'
    )
  rows = np.sort(np.random.default_rng(seed).permutation(len(first.names))[:num_images])
  for layer, each in layers.items():
    num_units = math.prod(each.features.shape[1:])
    if len(rows) * num_units > MAX_VALUES:
      raise UsageError(
        f'{layer} has {num_units:,} values an image, and a browser reads {MAX_VALUES:,}; choose at most '
        f'--num_images={MAX_VALUES // num_units}, or extract a smaller layer.'
      )
  names, labels = [first.names[row] for row in rows], first.labels[rows]
  num_columns = math.ceil(math.sqrt(len(rows)))
  side = min(MAX_THUMBNAIL, MAX_SPRITE // num_columns)
  thumbnails, classes = _read_thumbnails(first.about, names, labels, side, data_dir)
  lines = ['class\tname', *('\t'.join(map(_one_cell, pair)) for pair in zip(classes, names, strict=True))]
  try:
    for layer, each in layers.items():
      with atomic_files.atomic_write(folder / f'{layer}.tsv') as partial:
        np.savetxt(partial, each.features[rows].reshape(len(rows), -1), '%.9g', '\t')
    atomic_files.write_text(folder / METADATA, '\n'.join(lines) + '\n')
    with atomic_files.atomic_write(folder / SPRITE) as partial:
      matplotlib.image.imsave(partial, _tile(thumbnails, num_columns))
    shapes = {layer: (len(rows), math.prod(each.features.shape[1:])) for layer, each in layers.items()}
    atomic_files.write_text(folder / CONFIG, ''.join(_embedding(layer, shape, side) for layer, shape in shapes.items()))
  except OSError as error:
    raise RunError(f'{folder} cannot be written ({error.strerror}); free some space, or copy the features.') from error
  return list(layers), len(rows)


def _read_thumbnails(
  about: dict[str, Any], names: list[str], labels: np.ndarray, side: int, data_dir: str | None
) -> tuple[np.ndarray, list[str]]:
  """Reads images [image, side, side, rgb] uint8 and the names of their classes, 'unknown' if there is none."""
  if 'dataset' not in about:
    if data_dir:
      raise UsageError('--data_dir has no effect here, because the features are those of files; omit it.')
    return np.stack([_read_thumbnail(name, side) for name in names]), ['unknown'] * len(names)
  dataset, _, version = about['dataset'].rpartition('/')
  run = pathlib.Path(about['run'])
  source = features.open_dataset(
    run, side, split=about['split'], name=f'{dataset}:{version}', directory=data_dir
  ).source
  images, _ = source.read_batch([int(name.rpartition('/')[2]) for name in names])
  return images, [source.class_names[label] if label >= 0 else 'unknown' for label in labels]


def _read_thumbnail(name: str, side: int) -> np.ndarray:
  try:
    return image_io.read_square(pathlib.Path(name), side)
  except ValueError as error:
    raise UsageError(
      f'{name} cannot be read ({error}); run the command in the folder where its features were extracted.'
    ) from error


def _one_cell(text: str) -> str:
  """Replaces tabs and line breaks, which separate the cells of a table."""
  return ' '.join(text.split())


def _tile(thumbnails: np.ndarray, num_columns: int) -> np.ndarray:
  """Arranges thumbnails [image, side, side, rgb] row by row; missing ones at the end are black."""
  num_images, side = thumbnails.shape[:2]
  num_rows = math.ceil(num_images / num_columns)
  padded = np.pad(thumbnails, [(0, num_rows * num_columns - num_images), (0, 0), (0, 0), (0, 0)])
  grid = padded.reshape(num_rows, num_columns, side, side, 3)
  return grid.swapaxes(1, 2).reshape(num_rows * side, num_columns * side, 3)


def _embedding(layer: str, shape: tuple[int, int], side: int) -> str:
  """Describes a layer as a text of the protocol buffer `ProjectorConfig`."""
  return f"""embeddings {{
  tensor_name: "{layer}"
  tensor_shape: {shape[0]}
  tensor_shape: {shape[1]}
  tensor_path: "{layer}.tsv"
  metadata_path: "{METADATA}"
  sprite {{
    image_path: "{SPRITE}"
    single_image_dim: {side}
    single_image_dim: {side}
  }}
}}
"""
