"""Caffe's files: a network's parameters (.caffemodel) and a mean image (.binaryproto, .npy)."""

import pathlib
import re

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_jax.runtime.errors import UsageError

# What is needed of caffe.proto, with its field numbers; everything else in a file is skipped. `layers` is how networks
# were written before `layer` came, and num, channels, height and width are the shapes of that time.
MESSAGES = {
  'BlobShape': 'repeated int64 dim = 1',
  'BlobProto': """optional BlobShape shape = 7; repeated float data = 5; repeated double double_data = 8;
    optional int64 num = 1; optional int64 channels = 2; optional int64 height = 3; optional int64 width = 4""",
  'LayerParameter': 'optional string name = 1; repeated BlobProto blobs = 7',
  'V1LayerParameter': 'optional string name = 4; repeated BlobProto blobs = 6',
  'NetParameter': 'optional string name = 1; repeated V1LayerParameter layers = 2; repeated LayerParameter layer = 100',
}
NETS = {'AlexNet': 'bvlc_alexnet', 'CaffeNet': 'bvlc_reference_caffenet'}  # what the files call them


def read_model(file: pathlib.Path) -> tuple[str | None, dict[str, np.ndarray]]:
  """Reads a .caffemodel.

  Returns:
    Which of `NETS` it is, None if the file does not tell; and {'conv1.weight': [out, in / groups, height, width],
    'conv1.bias': [out], ..., 'fc6.weight': [out, in], ...} float32, with conv1 reading RGB and not BGR.

  Raises:
    UsageError: if it is no such file, or holds another network.
  """
  net = _parse('NetParameter', file)
  layers = [*net.layer, *net.layers]
  if not layers:
    raise UsageError(f'{file} is no Caffe model: no layer is in it; choose a .caffemodel.')
  tensors = {}
  for layer in layers:
    for part, blob in zip(('weight', 'bias'), layer.blobs, strict=False):
      x = _array(blob, f'{layer.name}.{part} of {file}')
      num_axes = 1 if part == 'bias' else 2 if layer.name.startswith('fc') else 4
      if set(x.shape[:-num_axes]) == {1}:  # older files write 1 x 1 x out x in
        x = x.reshape(x.shape[-num_axes:])
      tensors[f'{layer.name}.{part}'] = x
  if (first := tensors.get('conv1.weight')) is not None:
    tensors['conv1.weight'] = np.ascontiguousarray(first[:, ::-1])
  return _name(net.name, [layer.name for layer in layers]), tensors


def read_mean(file: pathlib.Path) -> np.ndarray:
  """Reads a mean image [height, width, rgb] float64, 0-255, from a .binaryproto, or from a .npy [bgr, height, width].

  Raises:
    UsageError: if it is neither.
  """
  if file.suffix == '.npy':
    try:
      mean = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
      raise UsageError(f'the mean image {file} cannot be read ({error}); choose a .npy or a .binaryproto.') from error
  else:
    mean = _array(_parse('BlobProto', file), f'the mean image {file}')
  mean = mean[0] if mean.ndim == 4 and len(mean) == 1 else mean
  if mean.ndim != 3 or len(mean) != 3 or not np.issubdtype(mean.dtype, np.floating):
    raise UsageError(
      f'the mean image {file} is {mean.dtype} {" x ".join(map(str, mean.shape))} and should be 3 x height x width, '
      'floating point, BGR; choose another file.'
    )
  return mean[::-1].transpose(1, 2, 0).astype(np.float64)


def _parse(message, file):
  try:
    return _message_class(message).FromString(file.read_bytes())
  except OSError as error:
    raise UsageError(f'{file} cannot be read ({error.strerror}); name another file.') from error
  except DecodeError as error:
    raise UsageError(f"{file} is none of Caffe's files, or is cut short ({error}); choose a whole one.") from error


def _message_class(name):
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name='caffe.proto', package='caffe', syntax='proto2')
  for message, declarations in MESSAGES.items():
    described = file.message_type.add(name=message)
    for label, kind, name_, number in re.findall(r'(\w+) (\w+) (\w+) = (\d+)', declarations):
      one = described.field.add(name=name_, number=int(number), label=getattr(field, f'LABEL_{label.upper()}'))
      if kind in MESSAGES:
        one.type, one.type_name = field.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        one.type = getattr(field, f'TYPE_{kind.upper()}')
        one.options.packed = label == 'repeated'
  pool = descriptor_pool.DescriptorPool()  # of its own: Caffe itself may be loaded beside it
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'caffe.{name}'))


def _array(blob, what):
  if blob.HasField('shape'):
    shape = tuple(blob.shape.dim)
  else:
    shape = (blob.num, blob.channels, blob.height, blob.width)
  x = np.array(blob.data, np.float32) if len(blob.data) else np.array(blob.double_data, np.float32)
  if not shape or min(shape) < 1 or x.size != np.prod(shape):
    raise UsageError(f'{what} has {x.size:,} numbers for the shape {" x ".join(map(str, shape))}; choose a whole file.')
  return x.reshape(shape)


def _name(name, order):
  """Says which network it is: from the order of its layers, or, where they are not all there, from its own name."""
  if {'pool1', 'norm1'} <= set(order):
    pools_first = order.index('pool1') < order.index('norm1')
    return 'bvlc_reference_caffenet' if pools_first else 'bvlc_alexnet'
  return NETS.get(name)
