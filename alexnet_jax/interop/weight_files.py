"""Reads and writes files of weights, in the format given by the suffix."""

import pathlib
from collections.abc import Iterable

from alexnet_jax.interop.layout import Weights
from alexnet_jax.runtime import extras
from alexnet_jax.runtime.errors import UsageError

# Functions by suffix, imported when they are called, because ONNX is not installed with the core.
READERS = {
  '.safetensors': 'alexnet_jax.interop.safetensors_files:read',
  '.onnx': 'alexnet_jax.interop.onnx_files:read',
  '.caffemodel': 'alexnet_jax.interop.caffe_files:read',
  '.pth': 'alexnet_jax.interop.torchvision_files:read',
  '.pt': 'alexnet_jax.interop.torchvision_files:read',
}
WRITERS = {
  '.safetensors': 'alexnet_jax.interop.safetensors_files:write',
  '.onnx': 'alexnet_jax.interop.onnx_files:write',
}
FILE_IN_FOLDER = 'model.safetensors'  # of a folder in the layout of the Hugging Face Hub


def read(path: pathlib.Path, *, net: str | None = None) -> Weights:
  """Reads a file of weights.

  Args:
    path: a .safetensors or .onnx file exported by this project, a .caffemodel file of one of the networks in
      `caffe_files.NETS`, torchvision's AlexNet as .pth, .pt or .safetensors, or a folder that `find_file` recognises.
    net: network of a .caffemodel file that does not identify it.

  Raises:
    UsageError: if the file type is unknown, the file cannot be read, a package is missing that reads it, or it does not
      contain the tensors of its network.
  """
  path = find_file(path)
  if net is not None and path.suffix != '.caffemodel':
    raise UsageError(f'--net={net} applies to .caffemodel files only; omit it for {path}.')
  check_file_type(path, READERS)
  if not path.is_file():
    raise UsageError(f'{path} does not exist or is not a file; choose a file of weights.')
  options = {} if net is None else {'net': net}
  return extras.resolve(READERS[path.suffix])(path, **options)


def write(path: pathlib.Path, weights: Weights) -> None:
  """Writes a .safetensors or .onnx file that `read` reads.

  Raises:
    UsageError: if a package is missing that writes it.
    OSError: if the file cannot be written.
  """
  extras.resolve(WRITERS[path.suffix])(path, weights)


def find_file(path: pathlib.Path) -> pathlib.Path:
  """Returns the file of weights in a folder in the layout of the Hugging Face Hub, and other paths unchanged."""
  file = path / FILE_IN_FOLDER
  return file if file.is_file() and not (path / 'checkpoints').exists() else path  # a run may contain an exported file


def check_file_type(path: pathlib.Path, supported: Iterable[str]) -> None:
  """Checks that the suffix of a file is supported.

  Args:
    path: the file, which need not exist.
    supported: suffixes, such as `READERS` or `WRITERS`.

  Raises:
    UsageError: if it is not.
  """
  *first, last = supported
  if path.suffix not in (*first, last):
    raise UsageError(f"Unknown file type '{path.suffix}' of {path}; supported types are {', '.join(first)} and {last}.")
