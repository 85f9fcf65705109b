"""Reads and writes files of weights, in the format given by the suffix."""

import pathlib
from collections.abc import Callable, Iterable

from alexnet_jax.interop import caffe_files, onnx_files, safetensors_files, torchvision_files
from alexnet_jax.interop.layout import Weights
from alexnet_jax.runtime.errors import UsageError

READERS: dict[str, Callable[..., Weights]] = {
  '.safetensors': safetensors_files.read,
  '.onnx': onnx_files.read,
  '.caffemodel': caffe_files.read,
  '.pth': torchvision_files.read,
  '.pt': torchvision_files.read,
}
WRITERS: dict[str, Callable[[pathlib.Path, Weights], None]] = {
  '.safetensors': safetensors_files.write,
  '.onnx': onnx_files.write,
}


def read(path: pathlib.Path, *, net: str | None = None) -> Weights:
  """Reads a file of weights.

  Args:
    path: a .safetensors or .onnx file exported by this project, a .caffemodel file of one of the networks in
      `caffe_files.NETS`, or torchvision's AlexNet as .pth, .pt or .safetensors.
    net: network of a .caffemodel file that does not identify it.

  Raises:
    UsageError: if the file type is unknown, the file cannot be read, or it does not contain the tensors of its network.
  """
  if net is not None and path.suffix != '.caffemodel':
    raise UsageError(f'--net={net} applies to .caffemodel files only; omit it for {path}.')
  check_file_type(path, READERS)
  if not path.is_file():
    raise UsageError(f'{path} does not exist or is not a file; choose a file of weights.')
  options = {} if net is None else {'net': net}
  return READERS[path.suffix](path, **options)


def write(path: pathlib.Path, weights: Weights) -> None:
  """Writes a .safetensors or .onnx file that `read` reads.

  Raises:
    OSError: if the file cannot be written.
  """
  WRITERS[path.suffix](path, weights)


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
