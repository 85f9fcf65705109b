"""Memory: how much there is, in large pages, and given back.

XLA takes fresh memory for the results of every step, and Linux hands it out in pages of 4 KiB, each with a page fault.
On a CPU that took a fifth of the time of a train step. In pages of 2 MiB it takes none.
"""

import ctypes
import functools
import os
import pathlib
import sys

TUNABLE = 'glibc.malloc.hugetlb'  # of glibc 2.35 and newer; an older one ignores it
LIMIT = pathlib.Path('/sys/fs/cgroup/memory.max')  # of a container; 'max' where there is none
SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
COMPILED = '/jax/core/compile/backend_compile_duration'  # what JAX reports when XLA has compiled a program
LONG = 1  # seconds; what compiles faster leaves little


def total_bytes() -> int:
  """Returns the bytes of memory that there are for this process: the machine's, or fewer in a container."""
  amounts = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  if LIMIT.exists() and (limit := LIMIT.read_text().strip()).isdigit():
    amounts.append(int(limit))
  return min(amounts)


def use_huge_pages() -> None:
  """Starts this command again, as the same process, with the C library set to ask for huge pages.

  The C library reads its settings only when a program starts: call it first. It returns at once where nothing is to be
  gained: huge pages are in use already, this system does not give them on request, or GLIBC_TUNABLES says otherwise.
  """
  chosen = os.environ.get('GLIBC_TUNABLES', '')
  if TUNABLE in chosen or not SETTING.exists() or '[madvise]' not in SETTING.read_text():
    return
  os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, (chosen, f'{TUNABLE}=1')))
  os.execv(sys.executable, sys.orig_argv)


def is_out_of_memory(error: Exception) -> bool:
  """Says whether an error is that there was not enough memory, the host's or a device's."""
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)  # what XLA says


@functools.cache  # once is enough
def trim_after_compiling() -> None:
  """Gives the memory that compiling took back to the system from now on, before the compiled program runs.

  The C library keeps it otherwise, in pieces too small for the maps of a batch: in training on a CPU the process was
  0.1 to 0.3 GiB larger (benchmarks/README.md). Does nothing where the C library is not glibc.
  """
  import jax  # not needed to ask for huge pages, which comes first

  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if sys.platform == 'linux' else None

  def listen(event, seconds, **_):
    if event == COMPILED and seconds > LONG:
      trim(0)

  if trim:
    jax.monitoring.register_event_duration_secs_listener(listen)
