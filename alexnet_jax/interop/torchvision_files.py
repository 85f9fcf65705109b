"""Reads the AlexNet of torchvision, without torchvision."""

import pathlib
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from alexnet_jax.data import cropping
from alexnet_jax.interop import layout
from alexnet_jax.runtime.errors import UsageError, printable

MODULES = {  # torchvision's name of each layer
  'conv1': 'features.0',
  'conv2': 'features.3',
  'conv3': 'features.6',
  'conv4': 'features.8',
  'conv5': 'features.10',
  'fc6': 'classifier.1',
  'fc7': 'classifier.4',
  'fc8': 'classifier.6',
}
# torchvision normalises RGB images to (pixel / 255 - MEAN) / STD.
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def read(path: pathlib.Path) -> layout.Weights:
  """Reads the state dict of torchvision's AlexNet from a file that `torch.save` wrote.

  Raises:
    UsageError: if torch is not installed, the file cannot be read, or it contains anything but the tensors of an
      AlexNet.
  """
  return from_state_dict(path, _load_state_dict(path))


def from_state_dict(path: pathlib.Path, state_dict: Mapping[str, np.ndarray]) -> layout.Weights:
  """Converts the state dict of torchvision's AlexNet.

  The converted network takes pixels of 0-255 minus a mean image, because the division by 255 and by `STD` becomes part
  of conv1.

  Args:
    path: the file, for the message.
    state_dict: {'features.0.weight': array, ...}.

  Raises:
    UsageError: naming the tensors that do not fit.
  """
  names = {f'{module}.{part}': f'{layer}.{part}' for layer, module in MODULES.items() for part in ('weight', 'bias')}
  tensors = {names.get(name, name): x for name, x in state_dict.items()}
  config, num_classes = layout.infer_config('torchvision', tensors, num_towers=1)
  shapes = layout.tensor_shapes(config.model, num_classes)
  layout.check_shapes(path, state_dict, {torchvision_name(name): shape for name, shape in shapes.items()})

  tensors = {name: np.asarray(x, np.float32) for name, x in tensors.items()}
  tensors['conv1.weight'] = (tensors['conv1.weight'] / (255 * STD)[:, None, None]).astype(np.float32)
  size = cropping.stored_size(config.model)
  mean_image = np.broadcast_to(255 * MEAN, (size, size, 3)).astype(np.float32)
  return layout.Weights(config, tensors, mean_image, layout.number_classes(num_classes), 0)


def is_state_dict(names: Iterable[str]) -> bool:
  """Returns whether names of tensors are torchvision's."""
  return any(name.startswith(('features.', 'classifier.')) for name in names)


def torchvision_name(name: str) -> str:
  """Returns torchvision's name of a tensor: 'conv1.weight' -> 'features.0.weight'."""
  layer, _, part = name.partition('.')
  return f'{MODULES[layer]}.{part}'


def _load_state_dict(path):
  """Loads a state dict as float32 arrays; objects other than tensors are not unpickled."""
  try:
    import torch  # optional, and heavy
  except ImportError as error:
    raise UsageError(
      f'Reading {path} requires PyTorch; install torch, or convert the file to .safetensors on a machine that has it.'
    ) from error
  try:
    _check_is_not_compressed(path)
    state_dict = torch.load(path, map_location='cpu', weights_only=True)
  except OSError as error:
    raise UsageError(f'{path} cannot be read ({error.strerror}); choose another file.') from error
  except Exception as error:  # on damaged files torch raises errors of many types
    raise UsageError(
      f'{path} is truncated or contains objects other than tensors, which torch does not load with weights_only=True; '
      'save the state dict of the network alone.'
    ) from error
  if not isinstance(state_dict, dict) or not all(isinstance(x, torch.Tensor) for x in state_dict.values()):
    raise UsageError(f'{path} does not contain a state dict (tensors by name); save network.state_dict() alone.')
  for name, x in state_dict.items():
    is_dense = isinstance(name, str) and (x.layout, x.device.type) == (torch.strided, 'cpu')
    if not is_dense or x.is_quantized or x.numel() * x.element_size() > x.untyped_storage().nbytes():
      raise UsageError(
        f'{printable(name)} of {path} is sparse, quantized, expanded or on no device; save the state dict of '
        "torchvision's network as it is."
      )
  return {name: x.detach().to(torch.float32).resolve_conj().resolve_neg().numpy() for name, x in state_dict.items()}


def _check_is_not_compressed(path):
  """Raises `ValueError` if a file of `torch.save` is compressed, and would take much more memory than its size."""
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
        raise ValueError('it is compressed')
