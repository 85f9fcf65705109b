import pathlib
import subprocess
import sys

import pytest

from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import LockedError

ROOT = pathlib.Path(__file__).parents[2]
# Locks a file, and forks a process that outlives it.
PROGRAM = """
import os, pathlib, sys, time
from alexnet_jax.runtime import atomic_files
with atomic_files.exclusive_lock(pathlib.Path(sys.argv[1]), 'unused'):
  if os.fork() == 0:
    print('locked', flush=True)  # the forked process runs, and has let go of the lock
    time.sleep(10)
    os._exit(0)
  time.sleep(60)
"""


def test_a_lock_excludes_other_processes_and_ends_with_its_process(tmp_path):
  path = tmp_path / 'lock'
  process = subprocess.Popen([sys.executable, '-c', PROGRAM, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == 'locked\n'
    with pytest.raises(LockedError, match=r'^in use$'), atomic_files.exclusive_lock(path, 'in use'):
      pass
  finally:
    process.kill()
    process.wait()
  with atomic_files.exclusive_lock(path, 'in use'):
    assert path.exists()
  assert path.exists()


def test_a_lock_is_exclusive_within_a_process(tmp_path):
  path = tmp_path / 'lock'
  path.write_text('content')
  lock = atomic_files.exclusive_lock(path, 'in use')
  with lock, pytest.raises(LockedError, match=r'^in use$'), atomic_files.exclusive_lock(path, 'in use'):
    pass
  with atomic_files.exclusive_lock(path, 'in use'):
    assert path.read_text() == 'content'


def test_a_failed_write_leaves_the_previous_file(tmp_path):
  path = tmp_path / 'file.txt'
  path.write_text('previous')

  def write(text):
    with atomic_files.atomic_write(path) as partial:
      partial.write_text(text)
      assert path.read_text() == 'previous'
      if not text:
        raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    write('')
  assert path.read_text() == 'previous'
  write('new')
  assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [('file.txt', 'new')]
