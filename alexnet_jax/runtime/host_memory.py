"""Memory of the host: its size, huge pages, and the memory that a long run retains.

XLA allocates new memory for the results of every step, and Linux provides it in pages of 4 KiB, with one page fault
each. On a CPU the page faults took a fifth of the time of a train step; with pages of 2 MiB they take none.
"""

import contextlib
import ctypes
import functools
import gc
import os
import pathlib
import sys
from collections.abc import Iterator

HUGE_PAGES_TUNABLE = 'glibc.malloc.hugetlb'  # since glibc 2.35; older versions ignore it
HUGE_PAGES_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
CGROUPS, PROCESS_CGROUPS = pathlib.Path('/sys/fs/cgroup'), pathlib.Path('/proc/self/cgroup')
COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'  # JAX records it after XLA compiled a program
MIN_COMPILE_SECONDS = 1  # shorter compilations leave little free memory
MALLOC_OPTIONS = {  # of glibc: the parameter of `mallopt`, and its value; the default thresholds change with the blocks
  'arena_max': (-8, 2),  # arenas from which threads allocate; the default is eight for each core
  'mmap_threshold': (-3, 2**20),  # larger blocks have their own mapping, and return to the system when they are freed
  'trim_threshold': (-1, 2**26),  # free bytes at the end of the heap from which they return to the system
}


def total_bytes() -> int:
  """Returns the bytes of memory available to this process: of the machine, or the limit of its container or job."""
  return min([os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'), *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
  """Yields the limits of this process's control groups, of version 1 or 2, and of the groups that contain them."""
  lines = PROCESS_CGROUPS.read_text().splitlines() if PROCESS_CGROUPS.exists() else []
  for _, controllers, group in (line.split(':', 2) for line in lines):
    if controllers not in ('', 'memory'):
      continue
    root = CGROUPS / controllers
    folder, name = root / group.strip('/'), 'memory.limit_in_bytes' if controllers else 'memory.max'
    for path in (folder, *folder.parents):
      with contextlib.suppress(OSError, ValueError):  # no such group in a container; 'max' if there is no limit
        yield int((path / name).read_text())
      if path == root:
        break


def configure_malloc() -> None:
  """Configures the C library: see `MALLOC_OPTIONS`, and huge pages. Call this first, before threads and heavy imports.

  By default the memory of a long training varied by several percent (docs/reliability.md). Each arena retains freed
  blocks, and a large block enlarges the heap whenever no free part of it is large enough. With a C library other than
  glibc there is no effect.

  For huge pages, the running command restarts once, in the same process, because the C library reads this setting only
  at program start. It does not restart if the kernel does not provide huge pages on request. Settings in GLIBC_TUNABLES
  take precedence.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  for name, option in MALLOC_OPTIONS.items():
    if f'glibc.malloc.{name}' not in tunables:
      _call_c_library('mallopt', *option)
  if HUGE_PAGES_TUNABLE in tunables:
    return
  if not HUGE_PAGES_SETTING.exists() or '[madvise]' not in HUGE_PAGES_SETTING.read_text():
    return
  os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, (tunables, f'{HUGE_PAGES_TUNABLE}=1')))
  os.execv(sys.executable, sys.orig_argv)


def is_out_of_memory(error: BaseException) -> bool:
  """Returns whether an exception reports that the host or a device ran out of memory."""
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)  # XLA's status code


@functools.cache  # registers one listener per process
def trim_after_compiling() -> None:
  """Registers a listener that returns freed memory to the system after each long compilation.

  Otherwise the C library retains it, in blocks too small for the kernel maps of a batch. In training on a CPU this
  enlarged the process by 0.1 to 0.3 GiB (docs/performance.md). With a C library other than glibc there is no effect.
  """
  import jax  # configure_malloc must run before heavy imports

  def trim_if_long(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILE_EVENT and duration_secs > MIN_COMPILE_SECONDS:
      _call_c_library('malloc_trim', 0)

  jax.monitoring.register_event_duration_secs_listener(trim_if_long)


def release_unused() -> None:
  """Frees the Python objects of unreachable reference cycles, and returns freed memory to the system.

  Otherwise Python and the C library retain it for an unknown time, and the size of a long run varies by several
  percent. With a C library other than glibc, only the objects are freed.
  """
  gc.collect()
  _call_c_library('malloc_trim', 0)


def _call_c_library(name, *arguments):
  """Calls a function of the C library; does nothing if it has no such function or the system is not Linux."""
  function = getattr(ctypes.CDLL(None), name, None) if sys.platform == 'linux' else None
  if function is not None:
    function(*arguments)


@contextlib.contextmanager
def frozen_objects() -> Iterator[None]:
  """Excludes the existing Python objects from garbage collection inside the context, so that a collection is fast.

  Imports leave 200,000 objects, with which a full collection takes 0.1 s. Python therefore runs one rarely, while every
  checkpoint leaves reference cycles.
  """
  gc.freeze()
  try:
    yield
  finally:
    gc.unfreeze()
