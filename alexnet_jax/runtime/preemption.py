"""Being told to stop: SIGTERM (preemption) and Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import Stopped

T = TypeVar('T')
STOPPED = 75  # exit status


def exit_on_signals() -> None:
  """From now on, SIGTERM and Ctrl-C end the process with exit status 75, where nothing is to be saved.

  At once, and not by an exception: one that is raised while Python collects garbage is lost.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _leave)


def _leave(number, frame):
  del number, frame
  with contextlib.suppress(RuntimeError):  # interrupted while it was printing
    sys.stdout.flush()
  os.write(sys.stderr.fileno(), b'stopped; start again to go on.\n')
  os._exit(STOPPED)


class StopRequest:
  """Takes note of SIGTERM and Ctrl-C, so that work can come to a good end; told twice, it ends at once.

  A context: before and after it, the signals do what they did.

  Attributes:
    received: whether the process was told to stop.
  """

  def __init__(self):
    """Waits for nothing yet."""
    self.received = False
    self._handlers = {}

  def __enter__(self) -> 'StopRequest':
    if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
      self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    if self.received:
      _leave(number, frame)
    self.received = True
    print(f'{signal.Signals(number).name}: saving, then stopping', file=sys.stderr, flush=True)

  def agreed(self, step: int) -> bool:
    """Says whether to stop after a step; of several processes, all say the same."""
    return distributed.agree_to_stop(step, self.received)

  def watch(self, items: Iterable[T]) -> Iterator[T]:
    """Yields items until the process is told to stop; all of them where there are others, who need it to the end.

    Raises:
      Stopped: when it is.
    """
    for item in items:
      if self.received and distributed.is_single_process():
        raise Stopped
      yield item
