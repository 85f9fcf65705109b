"""Loading of configs from files and from the command line, and the full names of their fields.

main.py imports this module before it parses the command line, so the module imports neither JAX nor TensorFlow.
"""

import importlib.util
import json
import re
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict

from alexnet_jax.runtime.errors import UsageError, first_line

# Version of the files of runs and of exported weights. Increase it with every change that an older version of this
# project would misread, such as a new field, and add the files of the new version by tests/fixtures/make.py.
FORMAT_VERSION = 1

# Fields that configs of older versions lack, with values that preserve the behaviour of those versions.
DEFAULTS_OF_LATER_FIELDS = {'data.classes': (), 'model.dtype': 'float32'}

MISSING_CONFIG_ADVICE = 'run the command in the folder of the clone, or name the file by its whole path'


def load_config(name: str) -> ConfigDict:
  """Loads a config from 'FILE.py' or 'FILE.py:VARIANT,VARIANT', as `--config` of main.py does.

  Raises:
    UsageError: if the file or a variant does not exist, or the file is not valid Python.
  """
  path, _, variants = name.partition(':')
  try:
    spec = importlib.util.spec_from_file_location('config', path)
    if spec is None or spec.loader is None:
      raise ValueError(f'{path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants)
  except FileNotFoundError as error:
    raise UsageError(
      f"--config='{name}' cannot be loaded: {error.filename} does not exist; {MISSING_CONFIG_ADVICE}."
    ) from error
  except (OSError, AttributeError, ValueError, SyntaxError) as error:
    raise UsageError(f"--config='{name}' cannot be loaded: {error}.") from error


def parse_flags(arguments: list[str], config: flags.FlagHolder, mode: flags.FlagHolder) -> list[str]:
  """Parses the flags of main.py and returns the remaining arguments.

  Args:
    arguments: the command line.
    config: the flag of the config, which `--mode=predict` may omit.
    mode: the flag of the mode.

  Raises:
    UsageError: if a flag or a config field does not exist, a value cannot be parsed, or the config is missing.
  """
  try:
    remaining = flags.FLAGS(arguments)
    if config.value is None and mode.value == 'predict':
      return remaining
    if config.value is None:
      raise UsageError('name a config, such as --config=configs/alexnet.py.')
    if isinstance(config.value, dict):
      raise UsageError('get_config in the file of --config returns a dict, not a ConfigDict.')
    config.value.lock()  # a config file that failed to load raises its error on first access
    return remaining
  except UsageError:
    raise
  except SyntaxError as error:
    raise UsageError(
      f'the file of --config is not valid Python: {error}; name one such as configs/alexnet.py.'
    ) from error
  except (AttributeError, KeyError) as error:  # --config.field of an unknown field, or of an unknown part of the config
    if "'get_config'" in str(error):
      raise UsageError(
        'the file of --config has no function get_config; name one such as configs/alexnet.py.'
      ) from error
    sys.argv = [argument for argument in arguments if not argument.startswith('--config.')]  # ml_collections reads it
    flags.FLAGS(sys.argv)
    name = re.search(r"'(\w+)\W", str(error))
    fields = ', '.join(flatten(config.value))
    raise UsageError(f"there is no config field '{name[1] if name else error}'; the fields are {fields}.") from error
  except (flags.Error, ValueError, TypeError, OSError) as error:
    # ml_collections puts the traceback of a config file into its message; the last line has the reason.
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    advice = f'; {MISSING_CONFIG_ADVICE}.' if isinstance(error, OSError) else ''
    raise UsageError(re.sub(r'^(\w+Error: |\[Errno \d+\] )', '', last) + advice) from error
  except Exception as error:  # raised by the config file
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = f'{type(error).__name__}: {first_line(error)}'
    raise UsageError(f'the file of --config raises {reason} ({frame.filename}, line {frame.lineno}).') from error


def add_missing_fields(config: ConfigDict) -> ConfigDict:
  """Adds default values for fields introduced after the config was written, in place, and returns the config.

  Raises:
    KeyError: if the part of such a field is missing as well.
  """
  for field, value in DEFAULTS_OF_LATER_FIELDS.items():
    part, _, name = field.partition('.')
    if name not in config[part]:
      config[part][name] = value
  return config


def flatten(config: ConfigDict) -> dict:
  """Flattens a config to {'model.width': 1.0, ...}; values are as JSON represents them, such as lists for tuples.

  Raises:
    TypeError: if JSON cannot represent a value.
  """

  def flatten_part(prefix, value):
    if not isinstance(value, dict):
      return {prefix: value}
    parts = (flatten_part(f'{prefix}.{name}' if prefix else name, part) for name, part in value.items())
    return {name: part for flattened in parts for name, part in flattened.items()}

  return flatten_part('', json.loads(json.dumps(config.to_dict())))
