"""Activations of layers as files of other libraries: a Zarr group, or a file of PyTorch."""

import errno
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.runtime.errors import UsageError, first_line

BLOCK_BYTES = 2**24  # size of a chunk of a Zarr array


class Contents(NamedTuple):
  """What a file contains.

  Attributes:
    features: {layer: [image, height, width, channel] or [image, unit] float32}, in memory or memory-mapped.
    abouts: {layer: description}, dicts of numbers, strings and lists.
    labels: [image] int32; -1 if unknown.
    names: names of the images.
  """

  features: Mapping[str, np.ndarray]
  abouts: Mapping[str, dict[str, Any]]
  labels: np.ndarray
  names: Sequence[str]


def write_zarr(contents: Contents, path: pathlib.Path) -> None:
  """Writes a Zarr group with an array for each layer and `labels`, a block of images at a time."""
  import zarr  # optional

  group = zarr.open_group(path, mode='w')
  for layer, features in contents.features.items():
    axes = ('image', 'height', 'width', 'channel') if features.ndim == 4 else ('image', 'unit')
    rows = min(len(features), max(1, BLOCK_BYTES // features[0].nbytes))
    array = group.create_array(
      layer,
      shape=features.shape,
      chunks=(rows, *features.shape[1:]),
      dtype=features.dtype,
      dimension_names=axes,
      attributes=contents.abouts[layer],
    )
    for start in range(0, len(features), rows):
      array[start : start + rows] = features[start : start + rows]
  group.create_array('labels', data=contents.labels, dimension_names=('image',))
  group.attrs['names'] = contents.names


def write_torch(contents: Contents, path: pathlib.Path) -> None:
  """Writes a dict that `torch.load` reads; maps are [image, channel, height, width], as in PyTorch."""
  import torch  # optional, and heavy

  tensors = {
    layer: torch.from_numpy(np.array(np.moveaxis(features, -1, 1), order='C'))
    for layer, features in contents.features.items()
  }
  labels = torch.from_numpy(contents.labels.astype(np.int64))
  contents_of_file = {'features': tensors, 'labels': labels, 'names': contents.names, 'about': dict(contents.abouts)}
  try:
    torch.save(contents_of_file, path)
  except RuntimeError as error:  # on a full disk
    raise OSError(errno.EIO, first_line(error)) from error


# How features are written, by name of the format and of its library.
WRITERS: dict[str, Callable[[Contents, pathlib.Path], None]] = {'zarr': write_zarr, 'torch': write_torch}


def writer(file_format: str) -> Callable[[Contents, pathlib.Path], None]:
  """Returns the function of `WRITERS` that writes a format.

  Raises:
    UsageError: if the library of the format is not installed.
  """
  if importlib.util.find_spec(file_format) is None:
    raise UsageError(f'--format={file_format} requires {file_format}; install it with pip install {file_format}.')
  return WRITERS[file_format]
