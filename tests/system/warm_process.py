"""Starts commands as forks of a process that has imported their modules, so that a start takes little of its time."""

import importlib
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from alexnet_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]
MODULES = (
  'alexnet_jax.__main__',
  'alexnet_jax.modes',
  'alexnet_jax.analysis.features',
  'alexnet_jax.data.digits',
  'alexnet_jax.data.imagenet.prepare',
  'alexnet_jax.reproduction.runner',
  'alexnet_jax.training.loop',
)


class WarmProcess:
  """A process that forks; close it at the end."""

  def __init__(self):
    environment = os.environ | {
      'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',  # otherwise main.py executes itself again to set it
      'JAX_NUM_CPU_DEVICES': '1',
      'TF_ENABLE_ONEDNN_OPTS': '0',
      'TF_CPP_MIN_LOG_LEVEL': '3',
    }
    self._process = subprocess.Popen(
      [sys.executable, '-W', 'ignore:os.fork', '-m', 'tests.system.warm_process'],
      cwd=ROOT,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def request(self, *words):
    print(json.dumps(words), file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def start(self, arguments, log):
    """Starts `python main.py ARGUMENTS` or `python -m MODULE ARGUMENTS`, whose output is appended to a file."""
    return Child(self.request('start', [str(argument) for argument in arguments], str(log)), self)

  def close(self):
    self._process.communicate()


class Child(NamedTuple):
  """A forked process, with the methods of `subprocess.Popen`."""

  pid: int
  parent: WarmProcess

  def poll(self):
    return self.parent.request('poll', self.pid)

  def send_signal(self, number):
    os.kill(self.pid, number)

  def wait(self, timeout):
    deadline = time.monotonic() + timeout
    while (status := self.poll()) is None:
      if time.monotonic() > deadline:
        self.send_signal(signal.SIGKILL)
        raise TimeoutError(f'process {self.pid} has not ended after {timeout} s')
      time.sleep(0.01)
    return status


def serve():
  """Answers requests until the input ends; returns the arguments of a command in the process that has to run it."""
  ended, links = {}, []
  for line in sys.stdin:
    request, *words = json.loads(line)
    if request == 'start':
      arguments, log = words
      links.append(socket.socketpair())
      if not (answer := os.fork()):
        os.setsid()
        os.dup2(links[-1][1].fileno(), 0)
        if any(argument.startswith('--process_id=') for argument in arguments):
          os.environ[distributed.VARIABLE] = '1'  # main.py would start this child, which ends with its parent
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        return arguments
      ended.pop(answer, None)  # of an earlier process with the same number: 32,768 numbers are soon used again
    else:
      (pid,) = words
      if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
          ended[pid] = os.waitstatus_to_exitcode(status)
      answer = ended.get(pid)
    print(json.dumps(answer), flush=True)
  return None


if __name__ == '__main__':
  for name in MODULES:
    importlib.import_module(name)
  if arguments := serve():
    if arguments[0] == '-m':
      sys.argv = arguments[1:]
      runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    else:
      sys.argv = arguments
      runpy.run_path(arguments[0], run_name='__main__')
