"""Late imports of modules that need packages of an extra, such as `train`, which an installation of the core lacks."""

import pkgutil
from typing import Any

from alexnet_jax.runtime.errors import UsageError

EXTRAS = {'gradio': 'explore'}  # package: extra, where it is not `train`


def resolve(name: str) -> Any:
  """Imports an object when it is needed, such as 'alexnet_jax.training.loop:train_and_evaluate'.

  Raises:
    UsageError: if a package is not installed.
  """
  try:
    return pkgutil.resolve_name(name)
  except ModuleNotFoundError as error:
    extra = EXTRAS.get(error.name or '', 'train')
    raise UsageError(f"{error.name} is not installed; install it with pip install 'alexnet_jax[{extra}]'.") from error
