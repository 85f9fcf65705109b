"""Files that are whole or not there, and folders that one process works in at a time."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from alexnet_jax.runtime.errors import LockedError


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields another name to write a file under, and gives it its own in the end: a reader never sees half of it.

  Where the writing fails nothing is left behind, and what was there before stays.
  """
  partial = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_lock(path: pathlib.Path, sentence: str) -> Iterator[None]:
  """Holds a file, which is made, so that no other process can hold it at the same time.

  Raises:
    HeldError: with the sentence, if another one does.
  """
  with open(path, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise LockedError(sentence) from error
    yield
