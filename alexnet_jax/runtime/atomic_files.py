"""Atomic and durable writes of files, and exclusive locks."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from alexnet_jax.runtime.errors import LockedError


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write to, and renames it to `path` on success, so readers never see a partial file.

  If the write fails, the temporary file is removed and an existing file at `path` is unchanged. After the context, the
  file is on the disk. If the machine stops earlier, the existing file or the new one is complete.
  """
  partial = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
  try:
    yield partial
    sync(partial)
    partial.replace(path)
    sync(path.parent)
  finally:
    partial.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
  """Waits until the disk contains a file, or the names of the files in a folder.

  Raises:
    OSError: if it cannot be written.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


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
