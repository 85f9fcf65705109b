"""Exit statuses of all commands, and the translation of exceptions into them."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

from alexnet_jax.runtime import distributed, host_memory
from alexnet_jax.runtime.errors import RunError, Stopped, UsageError

FAILED, WRONG_USAGE, SOME_SKIPPED, STOPPED = 1, 2, 3, 75


def exit_status_of(command: Callable[[], int]) -> int:
  """Runs a command of one process and returns its exit status.

  Args:
    command: returns the number of inputs that it skipped because they cannot be read.

  Returns:
    0, `FAILED`, `WRONG_USAGE`, `SOME_SKIPPED` or `STOPPED`.

  Raises:
    Exception: if the command failed with an exception for which there is no exit status.
  """
  try:
    return SOME_SKIPPED if command() else 0
  except (Exception, KeyboardInterrupt) as error:
    return _report(error)


@contextlib.contextmanager
def exit_on_errors() -> Iterator[None]:
  """Exits with the status of an exception raised inside the context; an error also ends the run's other processes.

  Raises:
    SystemExit: with the exit status.
    Exception: if there is no exit status for the exception.
  """
  try:
    yield
  except SystemExit as end:
    is_help = any(re.fullmatch(r'--?(h|help|helpfull|helpshort)', argument) for argument in sys.argv[1:])
    distributed.exit_process(0 if is_help else end.code)  # absl exits with 1 after --help
  except Exception as error:
    distributed.exit_process(_report(error))


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
  """Raises KeyboardInterrupt on SIGTERM inside the context, as on Ctrl-C."""
  handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, handler)


def _report(error: BaseException) -> int:
  """Prints the message of an exception and returns its exit status, or raises the exception if it has none."""
  if isinstance(error, KeyboardInterrupt | Stopped):
    if distributed.is_main_process():
      print(f'{str(error) or "Stopped"}. Run the same command to resume.', file=sys.stderr)
    return STOPPED
  if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python fails again at its end
    return FAILED
  if isinstance(error, UsageError | RunError):
    message = str(error)
  elif host_memory.is_out_of_memory(error):
    message = 'Out of memory. Choose a smaller batch size (batch_size, eval.batch_size) or fewer images.'
  else:
    raise error
  print(f'error: {message}', file=sys.stderr)
  return WRONG_USAGE if isinstance(error, UsageError) else FAILED
