"""Atomic writes and exclusive locks of files."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from alexnet_jax.runtime.errors import LockedError


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write to, and renames it to `path` on success, so readers never see a partial file.

  If the write fails, the temporary file is removed and an existing file at `path` is unchanged.
  """
  partial = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file by `atomic_write`."""
  with atomic_write(path) as partial:
    partial.write_text(text)


@contextlib.contextmanager
def exclusive_lock(path: pathlib.Path, message: str) -> Iterator[None]:
  """Locks a file, which is created if it does not exist and is not removed afterwards.

  The system releases the lock when the process ends, even if it is killed.

  Raises:
    LockedError: with `message`, if another process holds the lock.
  """
  try:
    lock = FileLock(path, blocking=False).acquire()
  except Timeout as error:
    raise LockedError(message) from error
  with lock:
    yield
