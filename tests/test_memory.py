import os
import pathlib
import subprocess
import sys

import pytest

from alexnet_jax import memory

ROOT = pathlib.Path(__file__).parents[1]
# Prints the process before and after, and what it was started with.
PROGRAM = """
import os, sys
print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], flush=True)
from alexnet_jax import memory
memory.use_huge_pages()
print('done')
"""


@pytest.fixture
def system(tmp_path, monkeypatch):
  """A system that gives huge pages on request, and a process that says how it would be started again."""
  setting = tmp_path / 'enabled'
  setting.write_text('always [madvise] never\n')
  monkeypatch.setattr(memory, 'SETTING', setting)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  starts = []
  monkeypatch.setattr(os, 'execv', lambda *command: starts.append((*command, os.environ['GLIBC_TUNABLES'])))
  return setting, starts


def test_asks_for_huge_pages_where_they_are_given_on_request(system, monkeypatch):
  _, starts = system
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  memory.use_huge_pages()
  assert starts == [(sys.executable, sys.orig_argv, 'glibc.malloc.check=1:glibc.malloc.hugetlb=1')]
  memory.use_huge_pages()  # as the process that was started
  assert len(starts) == 1


@pytest.mark.parametrize('content', ['[always] madvise never', 'always madvise [never]', None])
def test_leaves_the_process_alone_where_nothing_is_gained(system, content):
  setting, starts = system
  setting.unlink() if content is None else setting.write_text(content)
  memory.use_huge_pages()
  assert not starts
  assert 'GLIBC_TUNABLES' not in os.environ


def test_the_user_decides(system, monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
  memory.use_huge_pages()
  assert not system[1]


def test_the_process_stays_the_same_and_starts_once_more():
  if not (memory.SETTING.exists() and '[madvise]' in memory.SETTING.read_text()):
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
