"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax, as published and as it ran.

The names of this module are its public API, which is stable; the other modules serve the commands and may change.

>>> import alexnet_jax
>>> model = alexnet_jax.load('runs/digits')  # a run's folder, .safetensors, .caffemodel or torchvision's .pth
>>> [(name, probability), *others] = model.predict('cat.jpg')  # best first
>>> fc7 = model.features(['cat.jpg', 'dog.jpg'], layer='fc7')  # [image, unit] float32
>>> model.class_names
['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']
>>> model.layer_names[-3:]
('fc6', 'fc7', 'fc8')
>>> model.params['fc8']['bias'].shape  # tower, class of that tower
(2, 5)

The network is a Flax module:

>>> from flax import nnx
>>> net = alexnet_jax.AlexNet(model.config.model, num_classes=1000, rngs=nnx.Rngs(0))
>>> logits = net(images)  # [batch, height, width, rgb], 0-255 minus the mean image -> [batch, class]
"""

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from alexnet_jax.api import Model, load
  from alexnet_jax.models.alexnet import AlexNet
  from alexnet_jax.runtime.errors import RunError, UsageError

__all__ = ['AlexNet', 'Model', 'RunError', 'UsageError', 'load']

_MODULES = {'AlexNet': 'models.alexnet', 'RunError': 'runtime.errors', 'UsageError': 'runtime.errors'}


def __getattr__(name):
  """Imports a public name on first use (PEP 562), because importing JAX takes seconds."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return pkgutil.resolve_name(f'{__name__}.{_MODULES.get(name, "api")}:{name}')


def __dir__():
  return __all__
