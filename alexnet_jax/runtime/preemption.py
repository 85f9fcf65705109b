"""Graceful shutdown on SIGTERM (preemption) and Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

from alexnet_jax.runtime import distributed, exit_status
from alexnet_jax.runtime.errors import Stopped

T = TypeVar('T')


def exit_on_signals() -> None:
  """Makes SIGTERM and Ctrl-C end the process immediately with exit status 75, for phases without unsaved work.

  The handler does not raise an exception, because Python discards exceptions raised during garbage collection.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
  del number, frame
  with contextlib.suppress(RuntimeError):  # the signal interrupted a print
    sys.stdout.flush()
  os.write(sys.stderr.fileno(), b'Stopped. Run the same command to resume.\n')
  os._exit(exit_status.STOPPED)


class StopRequest:
  """A context that records SIGTERM and Ctrl-C, so work can be saved; the second signal ends the process immediately.

  The previous signal handlers are restored on exit. In a run of several processes, JAX records SIGTERM instead, and
  after the context a signal ends the process immediately.

  Attributes:
    received: whether this process received a signal.
  """

  def __init__(self):
    """Creates a request without a signal."""
    self.received = False
    self._handlers: dict[int, Any] = {}

  def __enter__(self) -> Self:
    is_main_thread = threading.current_thread() is threading.main_thread()  # Python allows signal handlers only there
    if is_main_thread and distributed.is_single_process():
      self._handlers = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    if not distributed.is_single_process():
      exit_on_signals()

  def _record(self, number: int, frame: FrameType | None) -> None:
    if self.received:
      _exit(number, frame)
    self.received = True
    text = f'{signal.Signals(number).name} received; saving before exit. Repeat it to exit immediately.\n'
    os.write(sys.stderr.fileno(), text.encode())  # `print` fails if the signal interrupted another print

  def should_stop(self, step: int) -> bool:
    """Returns whether to stop after a step; all processes return True after the same step.

    Args:
      step: number of steps taken.
    """
    return self.received if distributed.is_single_process() else distributed.should_stop(step)

  def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
    """Yields items until a signal arrives; with several processes it yields all, since each needs the others.

    Raises:
      Stopped: if this process is the only one and received a signal.
    """
    for item in items:
      if self.received and distributed.is_single_process():
        raise Stopped
      yield item
