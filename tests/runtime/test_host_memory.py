import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax.runtime import exit_status, host_memory

ROOT = pathlib.Path(__file__).parents[2]
# Prints the process before and after, and what it was started with.
PROGRAM = """
import os, sys
print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], flush=True)
from alexnet_jax.runtime import host_memory
host_memory.use_huge_pages()
print('done')
"""
# Leaves 128 MB in pieces that are free, below one that is not, and prints how much of that the process still has after
# a program was compiled quickly, and after one that took long.
FRAGMENTS = """
import ctypes, pathlib
import jax
from alexnet_jax.runtime import host_memory

def megabytes():
  return next(int(line.split()[1]) for line in pathlib.Path('/proc/self/status').open() if 'RssAnon' in line) / 1e3

host_memory.trim_after_compiling()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = megabytes()
pieces = [libc.malloc(64_000) for _ in range(2_000)]
for piece in pieces:
  ctypes.memset(piece, 1, 64_000)
for piece in pieces[:-1]:
  libc.free(piece)
for seconds in (0.1, 2.0):
  jax.monitoring.record_event_duration_secs(host_memory.COMPILED, seconds)
  print(megabytes() - before)
"""


@pytest.fixture
def system(tmp_path, monkeypatch):
  """A system that gives huge pages on request, and a process that says how it would be started again."""
  setting = tmp_path / 'enabled'
  setting.write_text('always [madvise] never\n')
  monkeypatch.setattr(host_memory, 'SETTING', setting)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  starts = []
  monkeypatch.setattr(os, 'execv', lambda *command: starts.append((*command, os.environ['GLIBC_TUNABLES'])))
  return setting, starts


def test_asks_for_huge_pages_where_they_are_given_on_request(system, monkeypatch):
  _, starts = system
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  host_memory.use_huge_pages()
  assert starts == [(sys.executable, sys.orig_argv, 'glibc.malloc.check=1:glibc.malloc.hugetlb=1')]
  host_memory.use_huge_pages()  # as the process that was started
  assert len(starts) == 1


@pytest.mark.parametrize('content', ['[always] madvise never', 'always madvise [never]', None])
def test_leaves_the_process_alone_where_nothing_is_gained(system, content):
  setting, starts = system
  setting.unlink() if content is None else setting.write_text(content)
  host_memory.use_huge_pages()
  assert not starts
  assert 'GLIBC_TUNABLES' not in os.environ


def test_the_user_decides(system, monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
  host_memory.use_huge_pages()
  assert not system[1]


def test_the_process_stays_the_same_and_starts_once_more():
  if not (host_memory.SETTING.exists() and '[madvise]' in host_memory.SETTING.read_text()):
    pytest.skip('this system does not give huge pages on request')
  environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  result = subprocess.run(
    [sys.executable, '-u', '-c', PROGRAM, 'a b', '--flag'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  first, second, done = result.stdout.splitlines()
  assert first.split(maxsplit=2) == [first.split()[0], 'None', "['a b', '--flag']"]
  assert second.split(maxsplit=2) == [first.split()[0], 'glibc.malloc.hugetlb=1', "['a b', '--flag']"]
  assert done == 'done'


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can give back what lies between')
def test_what_a_long_compiling_leaves_goes_back_to_the_system():
  result = subprocess.run([sys.executable, '-c', FRAGMENTS], cwd=ROOT, capture_output=True, text=True, check=True)
  kept, after = map(float, result.stdout.split())
  assert kept > 110
  assert after < 30


def test_jax_reports_what_it_compiles():
  heard = []

  def listener(event, seconds, **_):
    heard.append((event, seconds))

  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    jax.jit(lambda x: x * 17 + 4).lower(1.0).compile()
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert [seconds > 0 for event, seconds in heard if event == host_memory.COMPILED] == [True]


def test_tools_say_in_a_sentence_that_memory_ran_out(capsys):
  def too_much():
    np.empty(2**60, np.uint8)

  assert exit_status.exit_status_of(too_much) == 1
  assert capsys.readouterr().err.startswith('error: out of memory')
  with pytest.raises(ValueError, match='another'):
    exit_status.exit_status_of(lambda: int('another'))
