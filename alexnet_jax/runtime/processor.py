"""The processor that this process runs on."""

import os
import pathlib
import platform


def name() -> str:
  """Returns the name of the processor, whose vector instructions affect rounding."""
  cpu = pathlib.Path('/proc/cpuinfo')
  lines = cpu.read_text().splitlines() if cpu.exists() else []
  names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
  return next(names, platform.machine())


def num_cores() -> int:
  """Returns the number of cores that this process may use: under `taskset` or SLURM fewer than the machine has."""
  try:
    return len(os.sched_getaffinity(0))
  except AttributeError:  # macOS
    return os.cpu_count() or 1
