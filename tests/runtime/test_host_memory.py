import gc
import os
import pathlib
import platform
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest

from alexnet_jax.runtime import exit_status, host_memory

ROOT = pathlib.Path(__file__).parents[2]
# Prints the process, its tunables and its arguments before and after the restart.
PROGRAM = """
import os, sys
print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], flush=True)
from alexnet_jax.runtime import host_memory
host_memory.configure_malloc()
print('done')
"""
# Loads the C library for the programs below, and counts the memory of the process.
LIBC = """
import ctypes, pathlib, sys
from alexnet_jax.runtime import host_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def megabytes():
  return next(int(line.split()[1]) for line in pathlib.Path('/proc/self/status').open() if 'RssAnon' in line) / 1e3
"""
# Frees 128 MB in blocks below one that is not free, twice. Prints how many of them the process still has after a short
# compilation, after a long one, and after `release_unused`.
FRAGMENTS = f"""{LIBC}
import jax

def free_blocks():
  blocks = [libc.malloc(64_000) for _ in range(2_000)]
  for block in blocks:
    ctypes.memset(block, 1, 64_000)
  for block in blocks[:-1]:
    libc.free(block)

def compile(seconds):
  jax.monitoring.record_event_duration_secs(host_memory.COMPILE_EVENT, seconds)

host_memory.trim_after_compiling()
before = megabytes()
free_blocks()
compile(0.1)
print(megabytes() - before)
compile(2.0)
print(megabytes() - before)
free_blocks()
host_memory.release_unused()
print(megabytes() - before)
"""
# Prints the number of arenas after 20 threads have allocated memory at the same time.
ARENAS = f"""{LIBC}
import concurrent.futures, re, tempfile, threading

if sys.argv[1] == 'limited':
  host_memory.configure_malloc()
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
barrier = threading.Barrier(20)

def allocate(_):
  barrier.wait()
  libc.free(libc.malloc(5000))

with concurrent.futures.ThreadPoolExecutor(20) as pool:
  list(pool.map(allocate, range(20)))
with tempfile.NamedTemporaryFile('r') as report:
  file = libc.fopen(report.name.encode(), b'w')
  libc.malloc_info(0, file)
  libc.fclose(file)
  print(len(re.findall('<heap nr=', report.read())))
"""
# Prints how many of 40 MB the process still has after they are freed, in blocks of 4 MB below one that is not free.
LARGE_BLOCKS = f"""{LIBC}
if sys.argv[1] == 'limited':
  host_memory.configure_malloc()
libc.free(libc.malloc(5_000_000))  # by default, smaller blocks come from the heap from here
before = megabytes()
blocks = [libc.malloc(4_000_000) for _ in range(10)]
for block in blocks:
  ctypes.memset(block, 1, 4_000_000)
libc.malloc(900_000)
for block in blocks:
  libc.free(block)
print(megabytes() - before)
"""


@pytest.fixture
def system(tmp_path, monkeypatch):
  """A system that provides huge pages on request, and the commands with which the process would be restarted."""
  setting = tmp_path / 'enabled'
  setting.write_text('always [madvise] never\n')
  monkeypatch.setattr(host_memory, 'HUGE_PAGES_SETTING', setting)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  starts = []
  monkeypatch.setattr(os, 'execv', lambda *command: starts.append((*command, os.environ['GLIBC_TUNABLES'])))
  return setting, starts


def test_huge_pages_are_requested_if_the_system_provides_them_on_request(system, monkeypatch):
  _, starts = system
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  host_memory.configure_malloc()
  assert starts == [(sys.executable, sys.orig_argv, 'glibc.malloc.check=1:glibc.malloc.hugetlb=1')]
  host_memory.configure_malloc()  # in the restarted process
  assert len(starts) == 1


@pytest.mark.parametrize('content', ['[always] madvise never', 'always madvise [never]', None])
def test_the_process_is_not_restarted_without_huge_pages_on_request(system, content):
  setting, starts = system
  setting.unlink() if content is None else setting.write_text(content)
  host_memory.configure_malloc()
  assert not starts
  assert 'GLIBC_TUNABLES' not in os.environ


def test_tunables_of_the_user_take_precedence(system, monkeypatch):
  options = []
  monkeypatch.setattr(host_memory, '_call_c_library', lambda *call: options.append(call))
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
  host_memory.configure_malloc()
  assert not system[1]
  assert options == [('mallopt', -8, 2), ('mallopt', -3, 2**20), ('mallopt', -1, 2**26)]
  options.clear()
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0:glibc.malloc.arena_max=4')
  host_memory.configure_malloc()
  assert options == [('mallopt', -3, 2**20), ('mallopt', -1, 2**26)]


def test_the_process_restarts_once_with_the_same_id_and_arguments():
  if not (host_memory.HUGE_PAGES_SETTING.exists() and '[madvise]' in host_memory.HUGE_PAGES_SETTING.read_text()):
    pytest.skip('this system does not provide huge pages on request')
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


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc can release blocks below a used one')
def test_freed_memory_returns_to_the_system_after_a_long_compilation_and_on_request():
  result = subprocess.run([sys.executable, '-c', FRAGMENTS], cwd=ROOT, capture_output=True, text=True, check=True)
  retained, after_compiling, released = map(float, result.stdout.split())
  assert retained > 110
  assert after_compiling < 30
  assert released < 30


def test_unreachable_cycles_are_freed_on_request():
  class Node:
    pass

  node = Node()
  node.itself = node
  reference = weakref.ref(node)
  gc.disable()
  try:
    del node
    assert reference() is not None
    host_memory.release_unused()
  finally:
    gc.enable()
  assert reference() is None


def run_with(malloc, program):
  """Returns the number that a program prints with the default settings of the C library, or with ours ('limited')."""
  return float(
    subprocess.run([sys.executable, '-c', program, malloc], cwd=ROOT, capture_output=True, check=True).stdout
  )


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has arenas')
def test_threads_share_two_arenas():
  assert run_with('default', ARENAS) > 2
  assert run_with('limited', ARENAS) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc has a threshold for large blocks')
def test_freed_large_blocks_return_to_the_system():
  assert run_with('default', LARGE_BLOCKS) > 30
  assert run_with('limited', LARGE_BLOCKS) < 10


def test_objects_are_frozen_in_the_context_alone():
  with host_memory.frozen_objects():
    assert gc.get_freeze_count() > 10_000
  assert gc.get_freeze_count() == 0


def test_jax_records_the_duration_of_a_compilation():
  events = []

  def listener(event, seconds, **_):
    events.append((event, seconds))

  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    jax.jit(lambda x: x * 17 + 4).lower(1.0).compile()
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert [seconds > 0 for event, seconds in events if event == host_memory.COMPILE_EVENT] == [True]


def test_running_out_of_memory_is_an_error_message_and_status_1(capsys):
  def allocate_too_much():
    np.empty(2**60, np.uint8)

  assert exit_status.exit_status_of(allocate_too_much) == 1
  assert capsys.readouterr().err.startswith('error: Out of memory.')
  with pytest.raises(ValueError, match='another'):
    exit_status.exit_status_of(lambda: int('another'))


@pytest.mark.parametrize(
  ('lines', 'limits', 'expected'),
  [
    (['0::/'], {'memory.max': '1000'}, 1000),
    (['0::/'], {'memory.max': 'max'}, None),
    (['0::/job/step'], {'job/memory.max': '3000', 'job/step/memory.max': 'max', 'memory.max': '4000'}, 3000),
    (['0::/unseen/outside'], {'memory.max': '2000'}, 2000),  # a container sees its own groups only
    (['4:memory:/job', '2:cpu:/job', '0::/'], {'memory/job/memory.limit_in_bytes': '5000'}, 5000),
    ([], {'memory.max': '1000'}, None),
  ],
)
def test_the_memory_is_limited_by_the_control_groups_of_the_process(lines, limits, expected, tmp_path, monkeypatch):
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  for name, limit in limits.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f'{limit}\n')
  (tmp_path / 'cgroup').write_text(''.join(f'{line}\n' for line in lines))
  monkeypatch.setattr(host_memory, 'CGROUPS', tmp_path)
  monkeypatch.setattr(host_memory, 'PROCESS_CGROUPS', tmp_path / 'cgroup')
  assert host_memory.total_bytes() == (expected or whole)
