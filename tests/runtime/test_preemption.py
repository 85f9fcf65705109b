"""Tests of signals during a training."""

import signal
import subprocess
import sys
import time

# Writes more to stderr than its pipe holds, so that a signal interrupts the write.
PROGRAM = """
import sys
from alexnet_jax.runtime import preemption

with preemption.StopRequest() as stop:
  print('ready', flush=True)
  for _ in stop.until_stopped(range(100)):
    print('x' * 10_000, file=sys.stderr)
"""


def test_a_signal_during_a_write_to_stderr_is_recorded():
  environment = {'PATH': '/usr/bin', 'PYTHONPATH': ':'.join(sys.path)}
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  time.sleep(0.5)  # the pipe is full
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=60)
  assert 'SIGTERM received; saving before exit. Repeat it to exit immediately.' in errors
  assert errors.rstrip().endswith('Stopped')  # the exception of `until_stopped`
