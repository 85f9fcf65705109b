"""The interchange layout of weights, and conversion between it and the parameters of our networks.

The layout is that of Caffe and PyTorch:

conv1.weight ... [out, in / groups, height, width]; tower 0 holds the first half of every layer's outputs
fc6.weight ...   [out, in]; the inputs of fc6 are in channel, row, column order; fc8 has one row per class
conv1.bias ...   [out]

Dropout: our networks halve the outputs of fc6 and fc7 at test time, as published (section 4.2); those of Caffe and
PyTorch do not. The weights of the layers that read fc6 and fc7 therefore include the factor of 0.5, and a network
without the halving computes the same logits.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet
from alexnet_jax.data import cropping
from alexnet_jax.models import device_mesh
from alexnet_jax.models.alexnet import require_alexnet
from alexnet_jax.models.registry import build
from alexnet_jax.runs import config_checks, config_files
from alexnet_jax.runtime.errors import UsageError, first_line, printable

FORMAT = 'alexnet_jax'
MAX_ERRORS = 20  # of tensors, that a message lists


class Weights(NamedTuple):
  """The contents of a file of weights.

  Attributes:
    config: config of the run; its `model` part describes the network.
    tensors: {'conv1.weight': array, 'conv1.bias': array, ...} float32, in the interchange layout.
    mean_image: [height, width, rgb] float32, 0-255; None if the file does not contain it.
    class_names: class names by label.
    num_steps: number of training steps.
  """

  config: ConfigDict
  tensors: dict[str, np.ndarray]
  mean_image: np.ndarray | None
  class_names: Sequence[str]
  num_steps: int

  def params(self, num_towers: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Returns the parameters of the network, {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.

    Args:
      num_towers: length of the tower axis; 0 for that of the config. A layer that reads both towers can be split into
        any number of towers; the kernels of the other layers retain their number of input channels.
    """
    return to_params(self.tensors, self.config.model, num_towers or self.config.model.num_towers)

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the arrays of an exported file: the tensors and `mean_image`, which must not be None."""
    assert self.mean_image is not None
    return self.tensors | {'mean_image': self.mean_image}


def to_tensors(params: dict, config: ConfigDict, num_classes: int) -> dict[str, np.ndarray]:
  """Converts parameters to the interchange layout.

  Args:
    params: {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    config: the `model` part of a config.
    num_classes: number of classes; if it is odd, the unused last unit of fc8 is dropped.

  Raises:
    UsageError: if the network is not an AlexNet.
  """
  require_alexnet(config, 'the exchange of weights')
  tensors = {}
  for name, layer in params.items():
    kernel, bias = np.asarray(layer['kernel']), np.asarray(layer['bias'])
    num_towers, num_out = kernel.shape[0], kernel.shape[-1]
    if name == 'fc6':  # row, column, channel -> channel, row, column
      num_channels = _num_fc6_channels({layer: params[layer]['bias'].size for layer in params}, config)
      side = math.isqrt(kernel.shape[1] // num_channels)
      by_pixel = kernel.reshape(num_towers, side, side, num_channels, num_out)
      kernel = by_pixel.transpose(0, 3, 1, 2, 4).reshape(kernel.shape)
    weight = np.moveaxis(kernel, (-1, -2), (1, 2))  # [tower, out, in, ...]
    weight = weight.reshape(num_towers * num_out, *weight.shape[2:]) * np.float32(_input_factor(name, params, config))
    num_out = num_classes if name == 'fc8' else len(weight)
    tensors[f'{name}.weight'] = np.ascontiguousarray(weight[:num_out])
    tensors[f'{name}.bias'] = np.ascontiguousarray(bias.reshape(-1)[:num_out])
  return tensors


def to_params(tensors: Mapping[str, np.ndarray], config: ConfigDict, num_towers: int) -> dict:
  """Converts tensors in the interchange layout to parameters, the inverse of `to_tensors`; unused units are zero.

  Args:
    tensors: {'conv1.weight': array, 'conv1.bias': array, ...}.
    config: the `model` part of a config.
    num_towers: length of the tower axis of the parameters.

  Returns:
    {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...} float32.
  """
  names = [name.removesuffix('.weight') for name in tensors if name.endswith('.weight')]
  params = {}
  for name in names:
    weight, bias = (np.asarray(tensors[f'{name}.{part}'], np.float32) for part in ('weight', 'bias'))
    num_out = math.ceil(len(bias) / num_towers)
    num_unused = num_out * num_towers - len(bias)
    weight = np.pad(weight, [(0, num_unused)] + [(0, 0)] * (weight.ndim - 1))
    weight = weight / np.float32(_input_factor(name, names, config))
    weight = weight.reshape(num_towers, num_out, *weight.shape[1:])
    kernel = np.moveaxis(weight, (1, 2), (-1, -2))  # [tower, ..., in, out]
    if name == 'fc6':  # channel, row, column -> row, column, channel
      num_channels = _num_fc6_channels({layer: len(tensors[f'{layer}.bias']) for layer in names}, config)
      side = math.isqrt(kernel.shape[1] // num_channels)
      by_channel = kernel.reshape(num_towers, num_channels, side, side, num_out)
      kernel = by_channel.transpose(0, 2, 3, 1, 4).reshape(kernel.shape)
    bias = np.pad(bias, (0, num_unused)).reshape(num_towers, num_out)
    params[name] = {'kernel': np.ascontiguousarray(kernel), 'bias': bias}
  return params


def _num_fc6_channels(num_out, config):
  """Returns the number of maps that a unit of fc6 reads, given each layer's number of outputs over all towers."""
  last = max(name for name in num_out if name.startswith('conv'))
  return num_out[last] if 'fc6' in config.meet else num_out[last] // config.num_towers


def _input_factor(name, names, config):
  """Returns the factor by which dropout scales a layer's inputs at test time."""
  reads_dropout = name == 'fc7' or name == ('bottleneck' if 'bottleneck' in names else 'fc8')
  return 0.5 if config.dropout and reads_dropout else 1.0


def tensor_shapes(config: ConfigDict, num_classes: int) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a network's tensors in the interchange layout.

  Args:
    config: the `model` part of a config.
    num_classes: number of classes.

  Raises:
    UsageError: if the config does not describe an AlexNet.
  """
  require_alexnet(config, 'the exchange of weights')
  with jax.set_mesh(device_mesh.make_mesh(1, 1, num_towers=config.num_towers, batches={})):
    params = jax.eval_shape(build(config, num_classes).init, jax.random.key(0))
  shapes: dict[str, tuple[int, ...]] = {}
  for name, layer in params.items():
    num_towers, *window, num_in, num_out = layer['kernel'].shape
    num_out = num_classes if name == 'fc8' else num_towers * num_out
    shapes |= {f'{name}.weight': (num_out, num_in, *window), f'{name}.bias': (num_out,)}
  return shapes


def check_shapes(path: object, tensors: Mapping[str, np.ndarray], expected: Mapping[str, Sequence[int]]) -> None:
  """Checks that a file contains exactly the tensors of its network, with finite numbers.

  Args:
    path: the file, for the message.
    tensors: the tensors in the file.
    expected: the shapes of the network's tensors.

  Raises:
    UsageError: naming the tensors, up to `MAX_ERRORS`, that are missing, unexpected, of a wrong shape or not finite.
  """
  errors = [f'{name} is missing' for name in expected if name not in tensors]
  errors += [f'{printable(name)} is unexpected' for name in tensors if name not in expected]
  errors += [
    f'{name} is {format_shape(tensors[name].shape)} and should be {format_shape(shape)}'
    for name, shape in expected.items()
    if name in tensors and tensors[name].shape != tuple(shape)
  ]
  errors += [
    f'{name} contains values other than finite floating-point numbers'
    for name, x in tensors.items()
    if name in expected and not (jnp.issubdtype(x.dtype, jnp.floating) and np.isfinite(x).all())
  ]
  if len(errors) > MAX_ERRORS:
    errors[MAX_ERRORS:] = [f'and {len(errors) - MAX_ERRORS:,} more']
  if errors:
    raise UsageError(
      f'{path} does not contain the tensors of its network: {"; ".join(errors)}; choose a complete file.'
    )


def format_shape(shape: Iterable[int]) -> str:
  """Formats a shape: (96, 3, 11, 11) -> '96 x 3 x 11 x 11'."""
  return ' x '.join(map(str, shape))


def to_metadata(weights: Weights) -> dict[str, str]:
  """Returns the metadata of an exported file, all of `weights` but its arrays."""
  config = weights.config.model
  dropout = (
    'the outputs of fc6 and fc7 are halved at test time; the weights of the layers that read them include this factor'
    if config.dropout
    else 'none'
  )
  return {
    'format': FORMAT,
    'format_version': str(config_files.FORMAT_VERSION),
    'config': json.dumps(weights.config.to_dict()),
    'class_names': json.dumps(list(weights.class_names)),
    'num_steps': str(weights.num_steps),
    'preprocessing': json.dumps(describe_preprocessing(config)),
    'dropout': dropout,
  }


def describe_preprocessing(config: ConfigDict) -> dict[str, Any]:
  """Describes how images become the input of a network, in numbers and in words; `config` is `config.model`."""
  stored, crop = cropping.stored_size(config), config.image_size
  first = config.border // 2
  return {
    'colours': 'RGB',
    'range': [0, 255],
    'stored_size': stored,
    'patch_size': crop,
    'first_row_and_column': first,
    'words': f'RGB pixels, 0 to 255, not rescaled; resize the shorter side to {stored} pixels, crop the central '
    f'{stored} x {stored}, subtract mean_image [{stored}, {stored}, RGB], and crop the central {crop} x {crop} (rows '
    f'and columns {first} to {first + crop - 1}), the input of the network',
  }


def from_metadata(path: object, metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> Weights:
  """Returns the weights in an exported file, the inverse of `to_metadata` and `Weights.arrays`.

  Args:
    path: the file, for the messages.
    metadata: the metadata of the file.
    arrays: the tensors in the interchange layout and `mean_image`.

  Raises:
    UsageError: if the file was not exported by this project, its metadata is damaged, or its tensors do not fit its
      config.
  """
  if metadata.get('format') != FORMAT:
    raise UsageError(
      f'{path} was not exported by this project; export a run with `python -m alexnet_jax weights export`.'
    )
  readable = [str(version + 1) for version in range(config_files.FORMAT_VERSION)]
  if (version := metadata.get('format_version')) not in readable:
    raise UsageError(
      f'{path} has format version {printable(version)}, and this program reads version {", ".join(readable)}; use the '
      'version of the project that wrote it.'
    )
  try:
    config = config_files.add_missing_fields(ConfigDict(json.loads(metadata['config'])))
    class_names, num_steps = json.loads(metadata['class_names']), int(metadata['num_steps'])
    config_checks.check(config)
    if not (isinstance(class_names, list) and class_names and all(isinstance(name, str) for name in class_names)):
      raise ValueError('class_names is not a list of names')
    if any('\n' in name or '\r' in name for name in class_names):  # classes.txt has one name per line
      raise ValueError('a class name contains a line break')
    if not 0 <= num_steps <= config_checks.MAX_STEPS:
      raise ValueError(f'num_steps={num_steps}')
    expected = tensor_shapes(config.model, len(class_names))
  except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
    raise UsageError(
      f'The metadata of {path} is damaged ({first_line(error).rstrip(".")}); export it again.'
    ) from error
  size = cropping.stored_size(config.model)
  check_shapes(path, arrays, expected | {'mean_image': (size, size, 3)})
  tensors = {name: x for name, x in arrays.items() if name != 'mean_image'}
  return Weights(config, tensors, arrays['mean_image'], class_names, num_steps)


def infer_config(variant: str, tensors: Mapping[str, np.ndarray], num_towers: int) -> tuple[ConfigDict, int]:
  """Returns a config for the tensors of another program.

  The recipe is that of `imagenet2012` with a variant; the widths of the layers are those of the tensors.

  Args:
    variant: variant of configs/alexnet.py that describes the network.
    tensors: {'conv1.weight': array, ...}; they may be incomplete or of wrong shapes.
    num_towers: number of towers.

  Returns:
    The config and the number of classes.
  """
  config = alexnet.get_config(f'imagenet2012,{variant}')
  config.model.num_towers = num_towers
  num_out: dict[str, int] = {}
  for name, x in tensors.items():
    num_out.setdefault(name.partition('.')[0], x.shape[0] if x.shape else 1)
  for layer in config.model.kernels.keys() & num_out.keys():
    config.model.kernels[layer] = max(1, num_out[layer] // num_towers)
  return config, num_out.get('fc8', 1000)


def number_classes(num_classes: int) -> list[str]:
  """Returns class names for a file that contains none: 'class 0', 'class 1', ..."""
  return [f'class {label}' for label in range(num_classes)]
