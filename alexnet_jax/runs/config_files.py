"""Configs from files and from the command line."""

import importlib.util
import re
import sys

from absl import flags
from ml_collections import ConfigDict

from alexnet_jax.runs import config_checks
from alexnet_jax.runtime.errors import UsageError


def load_config(name: str) -> ConfigDict:
  """Loads FILE.py:VARIANT,VARIANT, as main.py does.

  Raises:
    UsageError: if there is no such file or variant.
  """
  path, _, variants = name.partition(':')
  try:
    spec = importlib.util.spec_from_file_location('config', path)
    if spec is None or spec.loader is None:
      raise ValueError(f'{path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants)
  except (OSError, AttributeError, ValueError) as error:
    raise UsageError(f"--config='{name}' cannot be loaded: {error}.") from error


def parse_flags(arguments: list[str], config: flags.FlagHolder, mode: flags.FlagHolder) -> list[str]:
  """Parses the flags of main.py and returns the remaining arguments.

  Args:
    arguments: the command line.
    config: the flag of the config, which `--mode=predict` may omit.
    mode: the flag of the mode.

  Raises:
    UsageError: if a flag or a config field does not exist, or its value cannot be parsed.
  """
  try:
    remaining = flags.FLAGS(arguments)
    if config.value is None and mode.value == 'predict':
      return remaining
    if config.value is None:
      raise UsageError('name a config, such as --config=configs/alexnet.py.')
    config.value.lock()  # a config file that failed to load raises its error on first access
    return remaining
  except AttributeError as error:  # --config.field of an unknown field
    sys.argv = [argument for argument in arguments if not argument.startswith('--config.')]  # ml_collections reads it
    flags.FLAGS(sys.argv)
    name = re.search(r"'(\w+)\W", str(error))
    fields = ', '.join(config_checks.flatten(config.value))
    raise UsageError(f"there is no config field '{name[1] if name else error}'; the fields are {fields}.") from error
  except (flags.Error, ValueError, TypeError, KeyError, OSError) as error:
    # ml_collections puts the traceback of a config file into its message; the last line has the reason.
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    raise UsageError(re.sub(r'^\w+Error: ', '', last)) from error
