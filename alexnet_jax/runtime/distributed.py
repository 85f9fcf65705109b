"""Runs of several processes: JAX connects and supervises them, and a parent process reports how a run ended.

`jax.distributed` sends heartbeats between the processes, and aborts all of them with a dump of the stack when one is
lost. The command line therefore runs itself in a child process, which computes; its parent waits for it, forwards
signals, and replaces the abort by an error message and exit status 1.

Only JAX listens for connections, without authentication or encryption, so the network between the machines must be
trusted.
"""

import contextlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from alexnet_jax.runtime.errors import RunError, Stopped, UsageError, first_line

START_SECONDS = 300  # within which all processes must connect
LOST = 70  # exit status of a child whose connection to another process failed
VARIABLE = 'ALEXNET_JAX_CHILD'  # set in the environment of a child
RESUME = 'Start all processes again with the same command to resume from the newest checkpoint.'
CONNECTED = b'connected'  # what a child writes to its standard input, a socket, once all processes are connected

_index, _count = 0, 1  # of this process among those of the run


class ProcessInfo(NamedTuple):
  """The identity of this process among the processes of a run; without values JAX detects it.

  Attributes:
    coordinator_address: HOST:PORT on which process 0 listens.
    num_processes: number of processes.
    process_id: index of this process, 0 to num_processes - 1.
  """

  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def process_info(
  detect: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessInfo | None:
  """Returns the identity of this process that the flags give, or None in a run of one process.

  Args:
    detect: whether JAX detects it: from SLURM, a TPU pod, Kubernetes or Open MPI.
    coordinator: HOST:PORT of process 0, or None.
    num_processes: number of processes, or None.
    process_id: index of this process, or None.

  Raises:
    UsageError: if the flags are inconsistent.
  """
  flags = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [f'--{flag}' for flag, value in flags.items() if value is None]
  if detect:
    if len(missing) < len(flags):
      raise UsageError('--distributed detects the processes; omit --coordinator, --num_processes and --process_id.')
    return ProcessInfo()
  if len(missing) == len(flags):
    return None
  if coordinator is None or num_processes is None or process_id is None:
    raise UsageError(
      f'--coordinator, --num_processes and --process_id are required together; add {" and ".join(missing)}.'
    )
  if num_processes < 1:
    raise UsageError(f'--num_processes={num_processes} must be 1 or more.')
  if not 0 <= process_id < num_processes:
    raise UsageError(f'--process_id={process_id} must be 0 to {num_processes - 1}, less than --num_processes.')
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UsageError(f'--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:12345.')
  return None if num_processes == 1 else ProcessInfo(coordinator, num_processes, process_id)


def is_child() -> bool:
  """Returns whether this is the child process, which computes."""
  return VARIABLE in os.environ


def run_in_child() -> int:
  """Runs this command in a child process, and returns its exit status.

  SIGTERM and Ctrl-C are forwarded as SIGTERM, with which JAX makes all processes stop after the same step; the second
  signal ends the child immediately. The child also ends if this process is killed.

  Raises:
    RunError: if the processes do not connect, or one of them is lost.
    Stopped: if a second signal ended the child.
  """
  link, child_link = socket.socketpair()
  child = subprocess.Popen(
    [sys.executable, *sys.orig_argv[1:]],
    env=os.environ | {VARIABLE: '1'},
    stdin=child_link.fileno(),
    start_new_session=True,  # without the terminal, whose Ctrl-C would reach the child, too
  )
  child_link.close()
  num_signals = 0

  def forward(number: int, frame: FrameType | None) -> None:
    del frame
    nonlocal num_signals
    num_signals += 1
    if num_signals > 1:
      child.kill()
    else:
      child.terminate()
      name = signal.Signals(number).name
      os.write(2, f'{name} received; saving before exit. Repeat it to exit immediately.\n'.encode())

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, forward)
  status = child.wait()
  if num_signals > 1 and status == -signal.SIGKILL:
    raise Stopped
  if status in (LOST, -signal.SIGABRT):
    raise RunError(_describe_loss(is_connected=_has_data(link)))
  if status < 0:
    raise RunError(f'The process was ended by {signal.Signals(-status).name}. {RESUME}')
  return status


def _describe_loss(is_connected: bool) -> str:
  if is_connected:
    return f'Lost another process of the run, whose own output may show why. {RESUME}'
  return (
    f'The processes did not connect within {START_SECONDS} s. Start all of them at the same time, each with the same '
    '--coordinator and --num_processes and a different --process_id.'
  )


def _has_data(link: socket.socket) -> bool:
  link.setblocking(False)
  with contextlib.suppress(OSError):  # nothing was sent
    return bool(link.recv(len(CONNECTED)))
  return False


@contextlib.contextmanager
def connection(process: ProcessInfo | None, heartbeat: float) -> Iterator[None]:
  """Connects this child process to the other processes for the duration of the context.

  Enter it before JAX computes anything. The standard output of all processes but process 0 is discarded.

  Args:
    process: the identity of this process, or None in a run of one process.
    heartbeat: seconds without a heartbeat after which a process counts as lost.

  Raises:
    UsageError: if JAX cannot detect the processes.
    RunError: if process 0 cannot listen on its port.
  """
  if process is None:
    yield
    return
  jax = pkgutil.resolve_name('jax')  # --help must not load it
  threading.Thread(target=_end_with_parent, daemon=True).start()
  _initialise(jax, process, heartbeat)
  try:
    yield
  except (Stopped, SystemExit):
    jax.distributed.shutdown()
    raise
  except Exception as error:
    if _is_loss(error):
      exit_process(LOST)
    if isinstance(error, UsageError | RunError):
      raise  # `exit_status` reports it and calls `exit_process`
    traceback.print_exception(error)
    exit_process(1)
  jax.distributed.shutdown()  # waits for all processes


def _end_with_parent() -> None:
  with contextlib.suppress(OSError):
    os.read(0, 1)  # returns when the parent ends, which sends nothing
  os._exit(1)


def _initialise(jax: Any, process: ProcessInfo, heartbeat: float) -> None:
  global _index, _count
  if process.process_id == 0 and process.coordinator_address:
    _check_port(process.coordinator_address)
  try:
    jax.distributed.initialize(
      *process, initialization_timeout=START_SECONDS, heartbeat_timeout_seconds=max(1, round(heartbeat))
    )
  except ValueError as error:  # a value is missing
    raise UsageError(
      '--distributed detects no SLURM, TPU pod, GKE or Open MPI; start every process with '
      '--coordinator=HOST:PORT --num_processes=N --process_id=I.'
    ) from error
  except RuntimeError as error:
    raise RunError(f'The processes cannot be connected ({first_line(error)}); choose another port.') from error
  os.write(0, CONNECTED)
  _index, _count = jax.process_index(), jax.process_count()
  if _index > 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_port(address: str) -> None:
  """Checks that a port is free: if not, jaxlib 0.12 sometimes ends the process with a segmentation fault."""
  port = int(address.rpartition(':')[2])
  try:
    if socket.has_dualstack_ipv6():  # all addresses, like JAX
      socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    else:
      socket.create_server(('', port)).close()
  except OSError as error:
    reason = os.strerror(error.errno or 0)
    raise RunError(f'The processes cannot be connected (port {port}: {reason}); choose another port.') from error


def exit_process(status: int | str | None) -> NoReturn:
  """Ends this process like `sys.exit`, but a child at once.

  After an error, a normal exit of a child would wait for the other processes. After success, Python ends the threads of
  its libraries by an exception, which aborts the process in C++ that does not rethrow it ('exception not rethrown').
  """
  if is_child() and isinstance(status, int):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def is_single_process() -> bool:
  """Returns whether this is the only process of the run."""
  return _count == 1


def is_main_process() -> bool:
  """Returns whether this is process 0, which alone writes files and prints."""
  return _index == 0


@contextlib.contextmanager
def main_process_first() -> Iterator[bool]:
  """Runs the context in process 0 first, then in the others; yields whether this is process 0."""
  _wait_for_all()  # connects the devices: NCCL waits for process 0 for at most ten minutes in the first operation alone
  if not is_main_process():
    _wait_for_all()
  yield is_main_process()
  if is_main_process():
    _wait_for_all()


def _wait_for_all() -> None:
  if not is_single_process():
    pkgutil.resolve_name('jax.experimental.multihost_utils:sync_global_devices')('main process first')


def should_stop(step: int) -> bool:
  """Returns whether to stop after a step because a process received SIGTERM; it is the same step in all processes.

  Args:
    step: number of steps taken; call this function after each of them.
  """
  return pkgutil.resolve_name('jax.experimental.multihost_utils:reached_preemption_sync_point')(step)


def _is_loss(error: Exception) -> bool:
  """Returns whether an exception comes from a collective operation that another process did not complete."""
  source = error.__cause__ if isinstance(error, RunError) else error
  message = '' if source is None or isinstance(source, UsageError) else str(source).lower()
  return any(word in message for word in ('gloo', 'nccl', 'barrier', 'coordination service'))
