"""The switch between the definition of a layer and its fast form.

A layer is defined in `models/layers.py` in plain JAX. Its fast form in this folder computes the same values, up to
rounding, faster on some platform. The environment variable ALEXNET_JAX_FAST_KERNELS=0 turns all fast forms off.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

VARIABLE = 'ALEXNET_JAX_FAST_KERNELS'

_is_enabled = os.environ.get(VARIABLE, '1') != '0'


def is_enabled() -> bool:
  """Returns whether layers use their fast forms."""
  return _is_enabled


def enable(is_enabled: bool) -> None:
  """Turns the fast forms of all layers on or off, and discards the programs that were compiled before."""
  global _is_enabled
  if is_enabled != _is_enabled:
    _is_enabled = is_enabled
    jax.clear_caches()


def fast_form(fast: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Decorates the definition of a layer with its fast form.

  Args:
    fast: takes the arguments of the definition and returns its result, or NotImplemented where it does not apply to
      this platform, dtype or shape. The definition is used then.

  Returns:
    A decorator. The definition remains available as `__wrapped__` of the decorated function.
  """

  def decorate(definition):
    @functools.wraps(definition)
    def layer(*args, **kwargs):
      result = fast(*args, **kwargs) if _is_enabled else NotImplemented
      return definition(*args, **kwargs) if result is NotImplemented else result

    return layer

  return decorate
