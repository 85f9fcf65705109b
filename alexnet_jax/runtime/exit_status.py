"""Exit statuses of all commands, and the translation of exceptions into them."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator

from alexnet_jax.runtime import distributed, host_memory
from alexnet_jax.runtime.errors import RunError, Stopped, UsageError
from alexnet_jax.runtime.preemption import STOPPED

FAILED, WRONG_USAGE, SOME_SKIPPED = 1, 2, 3


def exit_status_of(command: Callable[[], int]) -> int:
  """Runs a command and returns its exit status; errors that a user can cause are printed as one sentence.

  Args:
    command: returns how many inputs were skipped because they cannot be read.

  Returns:
    0, or `FAILED`, `WRONG_USAGE`, `SOME_SKIPPED` or `STOPPED`.
  """
  try:
    return SOME_SKIPPED if command() else 0
  except (UsageError, RunError) as error:
    print(f'error: {error}', file=sys.stderr)
    return WRONG_USAGE if isinstance(error, UsageError) else FAILED
  except (KeyboardInterrupt, Stopped) as stopped:
    print(f'{stopped or "Stopped"}. Run the same command to resume.', file=sys.stderr)
    return STOPPED
  except Exception as error:
    if not host_memory.is_out_of_memory(error):
      raise
    print('error: out of memory; choose a smaller batch, or fewer images.', file=sys.stderr)
    return FAILED


@contextlib.contextmanager
def exit_on_errors() -> Iterator[None]:
  """Exits as `exit_status_of` where main.py raises; with several processes, the others are signalled.

  Raises:
    SystemExit: with the exit status.
  """
  try:
    yield
  except SystemExit as end:
    is_help = any(re.fullmatch(r'--?(h|help|helpfull|helpshort)', argument) for argument in sys.argv[1:])
    sys.exit(0 if is_help else end.code)  # absl exits with 1 after --help
  except (UsageError, RunError) as error:
    print(f'error: {error}', file=sys.stderr)
    distributed.exit_process(WRONG_USAGE if isinstance(error, UsageError) else FAILED)
  except Stopped as stopped:
    if distributed.is_main_process():
      print(f'{stopped}. Run the same command to resume.', file=sys.stderr)
    sys.exit(STOPPED)
  except Exception as error:
    if not host_memory.is_out_of_memory(error):
      raise
    print('error: out of memory; choose a smaller batch_size or eval.batch_size.', file=sys.stderr)
    sys.exit(FAILED)


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
  """Raises KeyboardInterrupt on SIGTERM inside the context, as on Ctrl-C."""
  handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, handler)
