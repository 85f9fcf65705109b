"""Reads and writes .safetensors files of weights.

An exported file contains the tensors of the interchange layout and mean_image [height, width, rgb]; its metadata
contains the config, the class names and the preprocessing.
"""

import pathlib

import safetensors
from safetensors.numpy import save

from alexnet_jax.interop import layout, torchvision_files
from alexnet_jax.runtime.errors import UsageError, first_line


def read(path: pathlib.Path) -> layout.Weights:
  """Reads a .safetensors file that was exported by this project or contains torchvision's AlexNet.

  Raises:
    UsageError: if the file cannot be read, or contains other tensors.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      metadata, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
    raise UsageError(
      f'{path} is not a safetensors file, or is truncated ({first_line(error)}); choose a complete file.'
    ) from error
  if metadata.get('format') != layout.FORMAT and torchvision_files.is_state_dict(arrays):
    return torchvision_files.from_state_dict(path, arrays)
  return layout.from_metadata(path, metadata, arrays)


def write(path: pathlib.Path, weights: layout.Weights) -> None:
  """Writes a .safetensors file that `read` reads; raises `OSError` if that fails."""
  path.write_bytes(save(weights.arrays(), layout.to_metadata(weights)))
