"""Checks of the `model` part of a config that all networks share."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from alexnet_jax.runtime.errors import UsageError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

MAX_KERNELS, MAX_NORM_SIZE = 2**20, 99  # larger numbers are typing errors
MAX_FLOAT32 = 3.4e38


def require(condition: bool, field: str, message: str) -> None:
  """Raises UsageError with a message about a field of the `model` part unless a condition holds."""
  if not condition:
    raise UsageError(f'model.{field} {message}.')


def require_one_of(config: ConfigDict, field: str, choices: Collection[str]) -> None:
  """Raises UsageError unless the value of a field, such as 'pool.conv1', is among the choices."""
  value = config[field]
  require(value in choices, f"{field}='{value}'", f'is unknown; choose {" or ".join(map(repr, choices))}')


def check_width(config: ConfigDict) -> None:
  """Checks the factor of the numbers of kernels."""
  require(0 < config.width < math.inf, f'width={config.width}', 'must be above 0; 1.0 is the published network')


def check_norm(norm: ConfigDict) -> None:
  """Checks the constants of response normalisation."""
  is_valid = 0 < norm.size <= MAX_NORM_SIZE and norm.size % 2 == 1
  require(is_valid, f'norm.size={norm.size}', f'must be odd, 1 to {MAX_NORM_SIZE}; the paper has 5')
  require(0 < norm.k <= MAX_FLOAT32, f'norm.k={norm.k}', 'must be above 0; the paper has 2, the code of 2012 also 1')
  for field in ('alpha', 'beta'):
    is_valid = 0 <= norm[field] <= MAX_FLOAT32
    require(is_valid, f'norm.{field}={norm[field]}', 'must be 0 or more, and finite in 32 bits')


def check_names(config: ConfigDict, field: str, allowed: Collection[str]) -> None:
  """Checks that a field with names of layers, such as 'norm.after', names some of the allowed ones only."""
  names = tuple(config[field])
  is_valid = all(name in allowed for name in names)
  require(is_valid, f'{field}={names}', f'may contain {", ".join(allowed)}')


def check_biases(config: ConfigDict) -> None:
  """Checks the initial biases."""
  for name, bias in config.init_bias.items():
    require(abs(bias) <= MAX_FLOAT32, f'init_bias.{name}={bias}', 'must be a finite number')


def check_kernels(config: ConfigDict, optional: Collection[str], message: str) -> None:
  """Checks the numbers of kernels.

  Args:
    config: the `model` part of a config.
    optional: layers that may have none.
    message: the error if another layer has none.
  """
  for name, num in config.kernels.items():
    require(num >= 0, f'kernels.{name}={num}', 'must be 0 or more')
    limit = f'times model.width={config.width} must be {MAX_KERNELS:,} or less'
    require(num * config.width <= MAX_KERNELS, f'kernels.{name}={num}', limit)
    require(num > 0 or name in optional, f'kernels.{name}=0', message)
