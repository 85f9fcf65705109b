"""Reads Caffe's files: the parameters of a network (.caffemodel) and a mean image (.binaryproto or .npy)."""

import math
import pathlib
import re

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet_jax.interop import layout
from alexnet_jax.runtime.errors import UsageError, first_line, printable

# The part of caffe.proto that is needed, with its field numbers; the parser skips all other fields. `layers` is the
# older form of `layer`, and num, channels, height and width are the older form of `shape`.
MESSAGES = {
  'BlobShape': 'repeated int64 dim = 1',
  'BlobProto': """optional BlobShape shape = 7; repeated float data = 5; repeated double double_data = 8;
    optional int64 num = 1; optional int64 channels = 2; optional int64 height = 3; optional int64 width = 4""",
  'LayerParameter': 'optional string name = 1; repeated BlobProto blobs = 7',
  'V1LayerParameter': 'optional string name = 4; repeated BlobProto blobs = 6',
  'NetParameter': 'optional string name = 1; repeated V1LayerParameter layers = 2; repeated LayerParameter layer = 100',
}
# RGB mean over the pixels of the mean image of ILSVRC-2012, which Caffe's example of classification subtracts.
MEAN = np.array([122.6789143406786, 116.66876761696767, 104.0069879317889])
NETS = {'AlexNet': 'bvlc_alexnet', 'CaffeNet': 'bvlc_reference_caffenet'}  # variant by the name in a .caffemodel


def read(path: pathlib.Path, net: str | None = None) -> layout.Weights:
  """Reads a .caffemodel file of `bvlc_alexnet` or `bvlc_reference_caffenet`; the mean image is in another file.

  Args:
    path: the file.
    net: the network, for a file that does not identify it.

  Raises:
    UsageError: if the file cannot be read, contains other tensors, does not identify its network, or identifies a
      network other than `net`.
  """
  identified, tensors = read_tensors(path)
  if net is not None and identified is not None and net != identified:
    raise UsageError(f'{path} contains {identified}, not {net}; omit --net={net}.')
  variant = net or identified
  if variant is None:
    raise UsageError(f'{path} does not identify its network; name it with --net={" or --net=".join(NETS.values())}.')
  config, num_classes = layout.infer_config(variant, tensors, _num_towers(tensors))
  layout.check_shapes(path, tensors, layout.tensor_shapes(config.model, num_classes))
  return layout.Weights(config, tensors, None, layout.number_classes(num_classes), 0)


def read_tensors(path: pathlib.Path) -> tuple[str | None, dict[str, np.ndarray]]:
  """Reads the tensors of a .caffemodel file.

  Returns:
    The variant, one of the values of `NETS`, or None if the file does not identify its network; and the tensors,
    {'conv1.weight': [out, in / groups, height, width], 'conv1.bias': [out], ..., 'fc6.weight': [out, in], ...} float32.
    The inputs of conv1 are in RGB order, which is BGR in the file.

  Raises:
    UsageError: if the file is not a .caffemodel, or is truncated.
  """
  model = _parse('NetParameter', path)
  layers = [*model.layer, *model.layers]
  if not layers:
    raise UsageError(f'{path} is not a Caffe model: it contains no layers; choose a .caffemodel file.')
  tensors = {}
  names = [_to_text(layer.name) for layer in layers]
  for name, layer in zip(names, layers, strict=True):
    for part, blob in zip(('weight', 'bias'), layer.blobs, strict=False):
      x = _to_array(blob, f'{printable(name)}.{part} of {path}')
      num_axes = 1 if part == 'bias' else 2 if name.startswith('fc') else 4
      if set(x.shape[:-num_axes]) == {1}:  # older files have 1 x 1 x out x in
        x = x.reshape(x.shape[-num_axes:])
      tensors[f'{name}.{part}'] = x
  if (weight := tensors.get('conv1.weight')) is not None and weight.ndim == 4:
    tensors['conv1.weight'] = np.ascontiguousarray(weight[:, ::-1])
  return _identify(_to_text(model.name), names), tensors


def read_mean_image(path: pathlib.Path) -> np.ndarray:
  """Reads a mean image from a .binaryproto file, or from a .npy file [bgr, height, width].

  Returns:
    [height, width, rgb] float64, 0-255.

  Raises:
    UsageError: if the file cannot be read, or is not a mean image.
  """
  if path.suffix == '.npy':
    try:
      mean = np.load(path, mmap_mode='r', allow_pickle=False)  # the size in a damaged file may exceed the memory
    except Exception as error:  # on damaged files numpy raises errors of many types
      raise UsageError(
        f'The mean image {path} cannot be read ({first_line(error)}); choose a .npy or .binaryproto file.'
      ) from error
  else:
    mean = _to_array(_parse('BlobProto', path), f'The mean image {path}')
  if not isinstance(mean, np.ndarray):
    raise UsageError(f'The mean image {path} is an archive of arrays; choose a .npy or .binaryproto file.')
  mean = mean[0] if mean.ndim == 4 and len(mean) == 1 else mean
  if mean.ndim != 3 or len(mean) != 3 or not np.issubdtype(mean.dtype, np.floating):
    raise UsageError(
      f'The mean image {path} is {mean.dtype} {layout.format_shape(mean.shape)} and should be 3 x height x width, '
      'floating point, BGR; choose another file.'
    )
  if not np.isfinite(mean).all():
    raise UsageError(f'The mean image {path} contains values that are not finite; choose another file.')
  return mean[::-1].transpose(1, 2, 0).astype(np.float64)


def _parse(message, path):
  try:
    return _message_class(message).FromString(path.read_bytes())
  except OSError as error:
    raise UsageError(f'{path} cannot be read ({error.strerror}); choose another file.') from error
  except DecodeError as error:
    raise UsageError(f'{path} is not a Caffe file, or is truncated ({error}); choose a complete file.') from error


def _message_class(name):
  """Builds the protobuf class of one of `MESSAGES`."""
  field_type = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name='caffe.proto', package='caffe', syntax='proto2')
  for message, declarations in MESSAGES.items():
    descriptor = file.message_type.add(name=message)
    for label, kind, field_name, number in re.findall(r'(\w+) (\w+) (\w+) = (\d+)', declarations):
      label_number = getattr(field_type, f'LABEL_{label.upper()}')
      field = descriptor.field.add(name=field_name, number=int(number), label=label_number)
      if kind in MESSAGES:
        field.type, field.type_name = field_type.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        field.type = getattr(field_type, f'TYPE_{kind.upper()}')
        field.options.packed = label == 'repeated'
  pool = descriptor_pool.DescriptorPool()  # the default pool may already contain Caffe's own messages
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'caffe.{name}'))


def _to_text(value):
  """Converts a string field, which protobuf returns as bytes if it is not valid UTF-8."""
  return value.decode(errors='replace') if isinstance(value, bytes) else value


def _to_array(blob, name):
  """Converts a BlobProto to a float32 array; `name` is for the message."""
  if blob.HasField('shape'):
    shape = tuple(blob.shape.dim)
  else:
    shape = (blob.num, blob.channels, blob.height, blob.width)
  x = np.array(blob.data, np.float32) if len(blob.data) else np.array(blob.double_data, np.float32)
  if not shape or min(shape) < 1 or x.size != math.prod(shape):
    raise UsageError(
      f'{name} has {x.size:,} values for the shape {layout.format_shape(shape)}; choose a complete file.'
    )
  return x.reshape(shape)


def _identify(name, layers):
  """Identifies the network by the order of its layers or, if the file lists too few of them, by its name."""
  if {'pool1', 'norm1'} <= set(layers):
    pools_first = layers.index('pool1') < layers.index('norm1')
    return 'bvlc_reference_caffenet' if pools_first else 'bvlc_alexnet'
  return NETS.get(name)


def _num_towers(tensors):
  """Returns 1 if conv2 reads all maps of conv1, else 2, as in Caffe's networks."""
  bias, weight = tensors.get('conv1.bias'), tensors.get('conv2.weight')
  reads_all = bias is not None and weight is not None and weight.ndim == 4 and weight.shape[1] == len(bias)
  return 1 if reads_all else 2
