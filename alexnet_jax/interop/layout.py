"""The parameters of a network as users of Caffe and PyTorch expect them, with all that others need to use them.

conv1.weight ... [out, in / groups, height, width]; tower 0 holds the first half of the outputs of every layer
fc6.weight ...   [out, in], the inputs of fc6 in channel, row, column order; fc8 has a row for each class and no more
conv1.bias ...   [out]

Dropout: our networks halve the outputs of fc6 and fc7 at test time, as published; those of Caffe and PyTorch do not. So
the half is part of the weights here, those of the layers which read fc6 and fc7: a plain network has the same logits.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.models import towers
from alexnet_jax.models.alexnet import require_alexnet
from alexnet_jax.models.registry import build
from alexnet_jax.runs import config_checks
from alexnet_jax.runtime.errors import UsageError

FORMAT, FORMAT_VERSION = 'alexnet_jax', 1


class Weights(NamedTuple):
  """A network as it travels in a file.

  Attributes:
    config: the whole config of its run; the `model` part describes the network.
    tensors: {'conv1.weight': array, 'conv1.bias': array, ...} float32, in the layout above.
    mean_image: [size, size, rgb] float32, 0-255; None where the file does not hold it.
    class_names: in the order of the labels.
    num_steps: steps it was trained for.
  """

  config: ConfigDict
  tensors: dict[str, np.ndarray]
  mean_image: np.ndarray | None
  class_names: Sequence[str]
  num_steps: int

  def params(self, num_towers: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Returns the parameters as the network wants them.

    Args:
      num_towers: length of their tower axis; 0 for that of the config. Layers that read both towers fit any number of
        towers that divides their outputs; of the others, each kernel goes on reading what it read.
    """
    return to_params(self.tensors, self.config.model, num_towers or self.config.model.num_towers)


def to_tensors(params: dict, config: ConfigDict, num_classes: int) -> dict[str, np.ndarray]:
  """Rearranges parameters to the layout above.

  Args:
    params: {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    config: the `model` part of a config.
    num_classes: without the unit that is surplus where their number is odd.

  Raises:
    UsageError: if the network is no AlexNet.
  """
  require_alexnet(config, 'the exchange of weights')
  tensors = {}
  for name, layer in params.items():
    kernel, bias = np.asarray(layer['kernel']), np.asarray(layer['bias'])
    num_towers, num_out = kernel.shape[0], kernel.shape[-1]
    if name == 'fc6':  # rows, columns, channels -> channels, rows, columns
      channels = _channels_seen_by_fc6({layer: params[layer]['bias'].size for layer in params}, config)
      side = math.isqrt(kernel.shape[1] // channels)
      by_pixel = kernel.reshape(num_towers, side, side, channels, num_out)
      kernel = by_pixel.transpose(0, 3, 1, 2, 4).reshape(kernel.shape)
    weight = np.moveaxis(kernel, (-1, -2), (1, 2))  # [tower, out, in, ...]
    weight = weight.reshape(num_towers * num_out, *weight.shape[2:]) * np.float32(_halving(name, params, config))
    num_out = num_classes if name == 'fc8' else len(weight)
    tensors[f'{name}.weight'] = np.ascontiguousarray(weight[:num_out])
    tensors[f'{name}.bias'] = np.ascontiguousarray(bias.reshape(-1)[:num_out])
  return tensors


def to_params(tensors: Mapping[str, np.ndarray], config: ConfigDict, num_towers: int) -> dict:
  """Rearranges tensors in the layout above to parameters, the inverse of `to_tensors`; surplus units are zero."""
  names = [name.removesuffix('.weight') for name in tensors if name.endswith('.weight')]
  params = {}
  for name in names:
    weight, bias = (np.asarray(tensors[f'{name}.{part}'], np.float32) for part in ('weight', 'bias'))
    num_out = math.ceil(len(bias) / num_towers)
    surplus = num_out * num_towers - len(bias)
    weight = np.pad(weight, [(0, surplus)] + [(0, 0)] * (weight.ndim - 1)) / np.float32(_halving(name, names, config))
    weight = weight.reshape(num_towers, num_out, *weight.shape[1:])
    kernel = np.moveaxis(weight, (1, 2), (-1, -2))  # [tower, ..., in, out]
    if name == 'fc6':  # channels, rows, columns -> rows, columns, channels
      channels = _channels_seen_by_fc6({layer: len(tensors[f'{layer}.bias']) for layer in names}, config)
      side = math.isqrt(kernel.shape[1] // channels)
      by_channel = kernel.reshape(num_towers, channels, side, side, num_out)
      kernel = by_channel.transpose(0, 2, 3, 1, 4).reshape(kernel.shape)
    bias = np.pad(bias, (0, surplus)).reshape(num_towers, num_out)
    params[name] = {'kernel': np.ascontiguousarray(kernel), 'bias': bias}
  return params


def _channels_seen_by_fc6(num_out, config):
  last = max(name for name in num_out if name.startswith('conv'))
  return num_out[last] if 'fc6' in config.meet else num_out[last] // config.num_towers


def _halving(name, names, config):
  """The factor of the outputs that a layer reads, at test time."""
  reads_dropout = name == 'fc7' or name == ('bottleneck' if 'bottleneck' in names else 'fc8')
  return 0.5 if config.dropout and reads_dropout else 1.0


def shapes(config: ConfigDict, num_classes: int) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the tensors of a network.

  Raises:
    UsageError: if the fields of the config's `model` part do not make a network.
  """
  require_alexnet(config, 'the exchange of weights')
  with jax.set_mesh(towers.make_mesh(1, 1, num_towers=config.num_towers, batches={})):
    params = jax.eval_shape(build(config, num_classes).init, jax.random.key(0))
  found = {}
  for name, layer in params.items():
    num_towers, *window, num_in, num_out = layer['kernel'].shape
    num_out = num_classes if name == 'fc8' else num_towers * num_out
    found |= {f'{name}.weight': (num_out, num_in, *window), f'{name}.bias': (num_out,)}
  return found


def check_shapes(file: object, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
  """Compares the shapes of the tensors in a file with those of the network that it should hold.

  Raises:
    UsageError: naming every tensor that is missing, surplus, or of another shape.
  """
  wrong = [f'{name} is missing' for name in expected if name not in found]
  wrong += [f'{name} is surplus' for name in found if name not in expected]
  wrong += [
    f'{name} is {_by(found[name])} and should be {_by(shape)}'
    for name, shape in expected.items()
    if name in found and tuple(found[name]) != tuple(shape)
  ]
  if wrong:
    raise UsageError(f'{file} does not hold the tensors of its network: {"; ".join(wrong)}; choose a whole file.')


def _by(shape):
  return ' x '.join(map(str, shape))


def metadata(weights: Weights) -> dict[str, str]:
  """Writes down all of a network but its arrays, as JSON by name."""
  config = weights.config.model
  stored, patch = config.image_size + config.border, config.image_size
  first = config.border // 2
  preprocessing = {
    'colours': 'RGB',
    'range': [0, 255],
    'stored_size': stored,
    'patch_size': patch,
    'first_row_and_column': first,
    'words': f'RGB pixels, 0 to 255, neither divided nor scaled; the short side is brought to {stored} pixels and the '
    f'centre {stored} x {stored} cut out; mean_image [{stored}, {stored}, RGB] is subtracted; of the difference the '
    f'network sees the centre {patch} x {patch}, rows and columns {first} to {first + patch - 1}',
  }
  dropout = (
    'the outputs of fc6 and fc7 count half at test time; the half is part of the weights of the layers that read them'
    if config.dropout
    else 'none'
  )
  return {
    'format': FORMAT,
    'format_version': str(FORMAT_VERSION),
    'config': json.dumps(weights.config.to_dict()),
    'class_names': json.dumps(list(weights.class_names)),
    'num_steps': str(weights.num_steps),
    'preprocessing': json.dumps(preprocessing),
    'dropout': dropout,
  }


def from_metadata(file: object, texts: Mapping[str, str], tensors: dict[str, np.ndarray]) -> Weights:
  """Puts a network together from what `metadata` wrote and the tensors, among them the mean image.

  Raises:
    UsageError: if the file is not ours, its metadata is damaged, or its tensors are not those of its network.
  """
  if texts.get('format') != FORMAT:
    raise UsageError(f'{file} was not exported by this project: its metadata does not say so; export it with weights.')
  if texts.get('format_version') != str(FORMAT_VERSION):
    raise UsageError(
      f'{file} has format version {texts.get("format_version")} and this program reads {FORMAT_VERSION}; '
      'use the version of the project that wrote it.'
    )
  try:
    config = config_checks.add_missing_fields(ConfigDict(json.loads(texts['config'])))
    class_names, num_steps = json.loads(texts['class_names']), int(texts['num_steps'])
    config_checks.check(config)
    expected = shapes(config.model, len(class_names))
  except (KeyError, ValueError, TypeError, AttributeError, UsageError) as error:
    raise UsageError(f'the metadata of {file} is damaged ({str(error).rstrip(".")}); export it again.') from error
  size = config.model.image_size + config.model.border
  check_shapes(file, {name: x.shape for name, x in tensors.items()}, expected | {'mean_image': (size, size, 3)})
  layers = {name: x for name, x in tensors.items() if name != 'mean_image'}
  return Weights(config, layers, tensors['mean_image'], class_names, num_steps)
