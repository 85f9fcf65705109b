"""What the tools of the command line have in common: how they end."""

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from alexnet_jax import memory
from alexnet_jax.errors import RunError, UsageError
from alexnet_jax.stopping import STOPPED

FAILED, WRONG_USAGE, SOME_SKIPPED = 1, 2, 3  # exit statuses


def run(do: Callable[[], int], when_stopped: str, *, status_when_stopped: int = STOPPED) -> int:
  """Does what a command line asks for and returns the exit status.

  Args:
    do: returns how many inputs were skipped because they cannot be read.
    when_stopped: what is said where it is interrupted.
    status_when_stopped: the exit status then.
  """
  try:
    return SOME_SKIPPED if do() else 0
  except (UsageError, RunError) as error:
    print(f'error: {error}', file=sys.stderr)
    return WRONG_USAGE if isinstance(error, UsageError) else FAILED
  except KeyboardInterrupt:
    print(when_stopped, file=sys.stderr)
    return status_when_stopped
  except Exception as error:
    if not memory.ran_out(error):
      raise
    print('error: there is not enough memory; choose a smaller batch, or fewer images, where you can.', file=sys.stderr)
    return FAILED


@contextlib.contextmanager
def terminable() -> Iterator[None]:
  """Inside, to be told to stop by SIGTERM is to be interrupted."""
  handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, handler)


def load_config(name: str) -> ConfigDict:
  """Loads FILE.py:VARIANT,VARIANT, as main.py does.

  Raises:
    UsageError: if there is no such file or variant.
  """
  path, _, variants = name.partition(':')
  try:
    spec = importlib.util.spec_from_file_location('config', path)
    if spec is None:
      raise ValueError(f'{path} is no Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variants)
  except (OSError, AttributeError, ValueError) as error:
    raise UsageError(f"--config='{name}' cannot be loaded: {error}.") from error
