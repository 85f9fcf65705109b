"""Takes trained networks to other programs and brings theirs here.

    python -m alexnet_jax weights export WORKDIR alexnet.safetensors      # or alexnet.onnx
    python -m alexnet_jax weights import alexnet.safetensors WORKDIR      # or an .onnx that was exported here
    python -m alexnet_jax weights import bvlc_alexnet.caffemodel WORKDIR --mean=imagenet_mean.binaryproto
    python -m alexnet_jax weights import alexnet-owt-7be5be79.pth WORKDIR    # torchvision's; or .safetensors

An exported .safetensors holds conv1.weight [out, in / groups, height, width] ... fc8.bias as Caffe and PyTorch have
them (tower 0 is the first half of the outputs; fc6 reads channel, row, column) and mean_image [size, size, RGB]; its
metadata the config, the class names and the preprocessing. Our dropout halves the outputs of fc6 and fc7 at test time;
in the file the half is part of fc7.weight and fc8.weight, so that a plain network has the same logits. An .onnx takes
images [batch, 224, 224, RGB], 0-255, subtracts the mean itself, and returns logits and probabilities.

Use what was imported with main.py --mode=eval --workdir=WORKDIR. Exit status: 0 done, 1 failed, 2 wrong usage.
"""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import safetensors
from google.protobuf.message import DecodeError
from safetensors.numpy import save

from alexnet_jax.configs import alexnet
from alexnet_jax.interop import caffe_files, layout, onnx_files, torchvision_files
from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from alexnet_jax.interop.layout import Weights

NETS = ('bvlc_alexnet', 'bvlc_reference_caffenet')


def read(file: pathlib.Path, *, net: str | None = None) -> 'Weights':
  """Reads a file of weights.

  Args:
    file: a .safetensors or .onnx that was exported here, a .caffemodel of one of `NETS`, or torchvision's AlexNet as
      .pth, .pt or .safetensors.
    net: which of `NETS` a .caffemodel is, where the file does not tell.

  Returns:
    The network; `.config.model` describes it, `.params(num_towers)` gives its parameters,
    {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.

  Raises:
    UsageError: if it is no such file, is damaged, or does not hold the tensors of its network.
  """
  if net is not None and file.suffix != '.caffemodel':
    raise UsageError(f'--net={net} says which .caffemodel a file is; {file} is none, so leave --net out.')
  readers = {
    '.safetensors': _read_safetensors,
    '.onnx': _read_onnx,
    '.caffemodel': lambda file: _read_caffe(file, net),
    '.pth': _read_torch,
    '.pt': _read_torch,
  }
  if file.suffix not in readers:
    raise UsageError(f'{file} has no suffix that says what it is; known are {", ".join(readers)}.')
  if not file.is_file():
    raise UsageError(f'{file} does not exist, or is no file; name a file of weights.')
  return readers[file.suffix](file)


def write(file: pathlib.Path, weights: 'Weights') -> None:
  """Writes a file that `read` reads, by its suffix .safetensors or .onnx.

  Raises:
    OSError: if it cannot be written.
  """
  if file.suffix == '.onnx':
    onnx.save(onnx_files.make(weights), file)
    return

  file.write_bytes(save(weights.tensors | {'mean_image': weights.mean_image}, layout.metadata(weights)))


def _read_safetensors(file):

  try:
    with safetensors.safe_open(file, framework='numpy') as opened:
      texts, tensors = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
    raise UsageError(f'{file} is no safetensors file, or is cut short ({error}); choose a whole one.') from error
  if texts.get('format') != layout.FORMAT and torchvision_files.is_state_dict(tensors):
    return _from_torchvision(file, tensors)
  return layout.from_metadata(file, texts, tensors)


def _read_onnx(file):

  try:
    model = onnx.load(file)
  except (DecodeError, OSError) as error:
    raise UsageError(f'{file} is no ONNX file, or is cut short ({error}); choose a whole one.') from error
  return layout.from_metadata(file, *onnx_files.contents(model))


def _read_torch(file):

  return _from_torchvision(file, torchvision_files.read_state_dict(file))


def _from_torchvision(file, found):

  ours = {
    torchvision_files.torchvision_name(f'{layer}.{part}'): f'{layer}.{part}'
    for layer in torchvision_files.NAMES
    for part in ('weight', 'bias')
  }
  tensors = {ours.get(name, name): x for name, x in found.items()}
  config, num_classes = _recipe('torchvision', tensors, num_towers=1)
  expected = layout.shapes(config.model, num_classes)
  expected = {torchvision_files.torchvision_name(name): shape for name, shape in expected.items()}
  layout.check_shapes(file, {name: x.shape for name, x in found.items()}, expected)
  mean_image = torchvision_files.mean_image(config.model.image_size + config.model.border)
  tensors = _float32(torchvision_files.fold_preprocessing(tensors))
  return layout.Weights(config, tensors, mean_image, _numbered(num_classes), 0)


def _read_caffe(file, net):

  found, tensors = caffe_files.read_model(file)
  if net is not None and found is not None and net != found:
    raise UsageError(f'{file} is {found} and not --net={net}; leave --net out.')
  if net is None and found is None:
    raise UsageError(f'{file} does not tell which network it is; say so with --net={" or --net=".join(NETS)}.')
  if {'conv1.bias', 'conv2.weight'} <= tensors.keys() and tensors['conv2.weight'].ndim == 4:
    num_towers = 1 if tensors['conv2.weight'].shape[1] == len(tensors['conv1.bias']) else 2
  else:
    num_towers = 2
  config, num_classes = _recipe(net or found, tensors, num_towers)
  layout.check_shapes(file, {name: x.shape for name, x in tensors.items()}, layout.shapes(config.model, num_classes))
  return layout.Weights(config, tensors, None, _numbered(num_classes), 0)


def _recipe(variant, tensors, num_towers):
  """Returns the config of a network of others, as wide as its tensors are, and the number of its classes."""
  config = alexnet.get_config(f'imagenet2012,{variant}')
  config.model.num_towers = num_towers
  num_out = {}
  for name, x in tensors.items():
    num_out.setdefault(name.partition('.')[0], x.shape[0] if x.shape else 1)
  for layer in config.model.kernels.keys() & num_out.keys():
    config.model.kernels[layer] = max(1, num_out[layer] // num_towers)
  return config, num_out.get('fc8', 1000)


def _float32(tensors):

  return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def _numbered(num_classes):
  return [f'class {number}' for number in range(num_classes)]
