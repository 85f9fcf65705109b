"""The AlexNet of torchvision: its names of tensors, its preprocessing, and how to read its files without it."""

import pathlib
import pickle
from collections.abc import Mapping

import numpy as np

from alexnet_jax.runtime.errors import UsageError

NAMES = {
  'conv1': 'features.0',
  'conv2': 'features.3',
  'conv3': 'features.6',
  'conv4': 'features.8',
  'conv5': 'features.10',
  'fc6': 'classifier.1',
  'fc7': 'classifier.4',
  'fc8': 'classifier.6',
}
# It sees (pixel / 255 - mean) / std, in RGB.
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def is_state_dict(names: Mapping) -> bool:
  """Says whether names of tensors are torchvision's."""
  return any(name.startswith(('features.', 'classifier.')) for name in names)


def torchvision_name(name: str) -> str:
  """Translates the name of a tensor: 'conv1.weight' -> 'features.0.weight'."""
  layer, _, part = name.partition('.')
  return f'{NAMES[layer]}.{part}'


def fold_preprocessing(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Makes the network one for pixels of 0 to 255 less a mean: conv1 takes over the division by 255 and by std.

  Args:
    tensors: {'conv1.weight': array, ...}.
  """
  weight = tensors['conv1.weight'] / (255 * STD)[:, None, None]
  return tensors | {'conv1.weight': weight.astype(np.float32)}


def mean_image(size: int) -> np.ndarray:
  """Returns its mean as an image [size, size, rgb] float32, 0-255."""
  return np.broadcast_to(255 * MEAN, (size, size, 3)).astype(np.float32)


def read_state_dict(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a state dict that `torch.save` wrote; nothing but tensors is ever unpickled.

  Raises:
    UsageError: if torch is not installed, or the file holds anything else.
  """
  try:
    import torch
  except ImportError as error:
    raise UsageError(
      f'{file} can be read by PyTorch alone; install torch, or save the tensors as .safetensors where it is.'
    ) from error
  try:
    found = torch.load(file, map_location='cpu', weights_only=True)
  except OSError as error:
    raise UsageError(f'{file} cannot be read ({error.strerror}); name another file.') from error
  except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
    raise UsageError(
      f'{file} is no file of tensors alone, or is cut short, and torch refuses to load it with weights_only=True; '
      'save the state dict of the network by itself.'
    ) from error
  if not isinstance(found, dict) or not all(isinstance(x, torch.Tensor) for x in found.values()):
    raise UsageError(f'{file} holds no state dict, tensors by name; save network.state_dict() by itself.')
  return {name: x.to(torch.float32).numpy() for name, x in found.items()}
