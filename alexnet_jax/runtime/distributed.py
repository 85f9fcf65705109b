"""Runs of several processes: how they connect, which of them writes, and how all end when one fails.

Every process opens one connection to process 0 before jax starts. Both ends send heartbeats. A connection that closes,
or is silent for `heartbeat` seconds, means that its process is lost. Process 0 informs the others, and every process
ends with one error message and status 1. Without this, the surviving processes would wait forever in a collective
operation.

The messages of the protocol are lines of text:

hello PROCESS COUNT   the first message of a process to process 0: its index, and its number of processes
welcome PORT          the reply once all processes are connected: the port of the jax.distributed service
refused REASON        the reply to a process that does not belong to the run
alive                 a heartbeat
here N                the process has reached the N-th barrier
go N                  all processes have reached the N-th barrier
stop                  the process requests that training stop
where                 requests the current step of every process
at STEP               the current step of the process
stop_at STEP          all processes stop after this step
dead PROCESS          the process is lost; all others end
failed PROCESS        the process ended with an error, which it has printed; all others end
bye                   the process ended normally
"""

import collections
import concurrent.futures
import contextlib
import functools
import io
import itertools
import os
import pkgutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, NoReturn, cast

import tqdm

from alexnet_jax.runtime.errors import RunError, Stopped, UsageError, first_line

START_SECONDS = 300  # within which all processes must start
GRACE_SECONDS = 5  # between an error of another process and the end of this one, which may print the same error itself
HEARTBEATS_PER_TIMEOUT = 4

_group: 'Group | None' = None  # None in a run of one process


class ProcessInfo(NamedTuple):
  """The identity of this process among the processes of a run.

  Attributes:
    coordinator: HOST:PORT on which process 0 listens.
    num_processes: number of processes.
    process_id: index of this process, 0 to num_processes - 1.
    local_device_ids: indices of the devices of this machine that belong to this process; None for all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: Sequence[int] | None = None


def process_info(
  detect: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessInfo | None:
  """Returns the identity of this process, from the flags or from the cluster, or None in a run of one process.

  Args:
    detect: whether to query the cluster: SLURM, TPU pod, Kubernetes or Open MPI, as `jax.distributed` does.
    coordinator: HOST:PORT of process 0, or None.
    num_processes: number of processes, or None.
    process_id: index of this process, or None.

  Raises:
    UsageError: if the flags are inconsistent, or no cluster is detected.
    RunError: if the query of the cluster fails.
  """
  flags = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [f'--{flag}' for flag, value in flags.items() if value is None]
  if detect:
    if len(missing) < len(flags):
      raise UsageError('--distributed detects the processes; omit --coordinator, --num_processes and --process_id.')
    return _detect_process()
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
  _parse_address(coordinator)
  return ProcessInfo(coordinator, num_processes, process_id)


def _detect_process() -> ProcessInfo:
  # jax.distributed.initialize makes the same query, but does not return its result.
  cluster_env = pkgutil.resolve_name('jax._src.clusters:ClusterEnv')
  try:
    detected = cluster_env.auto_detect_unset_distributed_params(None, None, None, None, None, START_SECONDS)
  except Exception as error:  # the type of the exception depends on the kind of cluster
    raise RunError(f'--distributed: the cluster does not identify this process ({first_line(error)}).') from error
  if None in detected[:3]:
    raise UsageError(
      '--distributed detects no SLURM, TPU pod, GKE or Open MPI; start every process with '
      '--coordinator=HOST:PORT --num_processes=N --process_id=I.'
    )
  return ProcessInfo(*detected)


def _parse_address(coordinator: str) -> tuple[str, int]:
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UsageError(f'--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:12345.')
  return host.strip('[]'), int(port)


@contextlib.contextmanager
def distributed_run(
  process: ProcessInfo | None, heartbeat: float, newest_step: Callable[[], int | None]
) -> Iterator[None]:
  """Connects this process to the others for the duration of the context. Enter it before jax computes anything.

  Only process 0 prints and draws progress bars; the standard output of the others is discarded.

  Args:
    process: the identity of this process, or None in a run of one process.
    heartbeat: seconds of silence after which a process counts as lost.
    newest_step: returns the step of the newest checkpoint of the run, or None, for the message of a failure.

  Raises:
    UsageError: if process 0 refuses this process.
    RunError: if the processes cannot connect.
  """
  global _group
  if process is None or process.num_processes == 1:
    yield
    return
  if process.process_id == 0:
    # The process may end without flushing its buffers.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
  else:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, disable=True)
  _group = Group(process, heartbeat, newest_step)
  try:
    _group.start_jax()
    yield
  except (Stopped, SystemExit):
    _group.finish()
    raise
  except Exception as error:
    if isinstance(error, UsageError | RunError) and not _is_collective_failure(error):
      raise
    _group.exit_after(error)
  _group.finish()


def exit_process(status: int) -> None:
  """Ends this process after it has printed an error, and informs the others."""
  if _group is None:
    sys.exit(status)
  _group.exit_process(status)


def is_single_process() -> bool:
  """Returns whether this is the only process of the run."""
  return _group is None


def is_main_process() -> bool:
  """Returns whether this is process 0, which alone writes files and prints."""
  return _group is None or _group.process_id == 0


@contextlib.contextmanager
def main_process_first() -> Iterator[bool]:
  """Runs the context in process 0 first, then in the others; yields whether this is process 0."""
  if _group is not None and not is_main_process():
    _group.wait()
  yield is_main_process()
  if _group is not None and is_main_process():
    _group.wait()


def agree_to_stop(step: int, requested: bool) -> bool:
  """Returns whether to stop training after a step. If any process requests it, all stop after the same step.

  Call it after every step. It waits only while the processes agree on the last step.

  Args:
    step: number of steps taken.
    requested: whether this process requests to stop.
  """
  return requested if _group is None else _group.agree_to_stop(step, requested)


class Group:
  """This process's connection to the other processes of the run.

  Attributes:
    process_id: index of this process.
    num_processes: number of processes.
  """

  def __init__(self, process: ProcessInfo, heartbeat: float, newest_step: Callable[[], int | None]):
    """Connects to the other processes; `distributed_run` describes the arguments and exceptions."""
    self.process_id, self.num_processes = process.process_id, process.num_processes
    self._process, self._heartbeat, self._newest_step = process, heartbeat, newest_step
    self._links: dict[int, Link] = {}  # in process 0: to every other process; in the others: to process 0
    self._changed = threading.Condition()
    self._ending = threading.Lock()
    self._barriers = itertools.count()
    self._num_arrived: collections.Counter[int] = collections.Counter()  # processes by barrier, in process 0
    self._passed: set[int] = set()  # barriers that all processes have reached, in the others
    self._step = -1  # of this process
    self._steps: dict[int, int] | None = None  # of all processes, while they agree on the last step
    self._last_step: int | None = None
    host, port = _parse_address(process.coordinator)
    self._service = host, self._accept(port) if self.process_id == 0 else self._connect(host, port)
    for other, link in self._links.items():
      link.connection.settimeout(heartbeat)
      threading.Thread(target=self._listen, args=(other, link), daemon=True).start()
    threading.Thread(target=self._send_heartbeats, args=(heartbeat / HEARTBEATS_PER_TIMEOUT,), daemon=True).start()

  def start_jax(self) -> None:
    """Initialises `jax.distributed`, which connects the devices of all processes."""
    import jax  # not needed for --help

    os.environ.setdefault('no_grpc_proxy', '127.0.0.1')  # an Internet proxy cannot connect to this machine's loopback
    jax.config.update('jax_check_proxy_envs', False)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.config.update('jax_enable_preemption_service', False)  # it would handle SIGTERM instead of `agree_to_stop`
    port = self._service[1]
    jax.distributed.initialize(
      f'127.0.0.1:{port if self.process_id == 0 else _relay(*self._service)}',
      self.num_processes,
      self.process_id,
      self._process.local_device_ids,
      cluster_detection_method='deactivate',
      initialization_timeout=START_SECONDS,
      # Longer than ours, because jax ends with a dump of its stack.
      heartbeat_timeout_seconds=round(100 + 10 * self._heartbeat),
      coordinator_bind_address=f'[::]:{port}',
    )

  def wait(self) -> None:
    """Waits until all processes have reached this barrier."""
    barrier = next(self._barriers)
    with self._changed:
      if self.process_id == 0:
        self._changed.wait_for(lambda: self._num_arrived[barrier] == self.num_processes - 1)
      self._send(f'go {barrier}' if self.process_id == 0 else f'here {barrier}')
      if self.process_id:
        self._changed.wait_for(lambda: barrier in self._passed)

  def agree_to_stop(self, step: int, requested: bool) -> bool:
    """Implements the function of the same name."""
    with self._changed:
      self._step = step
      if requested and self._steps is None:
        self._query_steps() if self.process_id == 0 else self._send('stop')
      # After its reply, no process goes beyond its next step, so the largest step plus one is still ahead of all.
      # Threads send the replies, because a process may be waiting for results that other processes have yet to compute.
      self._changed.wait_for(lambda: self._steps is None or self._last_step is not None)
      return self._last_step is not None and step >= self._last_step

  def _query_steps(self) -> None:
    if self._steps is None:
      self._steps = {0: self._step}
      self._send('where')

  def exit_after(self, error: Exception) -> NoReturn:
    """Ends this process after an unexpected error, which may be caused by the loss of another process."""
    time.sleep(GRACE_SECONDS)  # if another process is lost, this process ends during the wait
    if _is_collective_failure(error):
      self._exit_with_others('dead', None)
    traceback.print_exception(error)
    self.exit_process(1)

  def exit_process(self, status: int) -> NoReturn:
    """Implements the function of the same name."""
    with self._ending:
      self._send(f'failed {self.process_id}')
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)  # a normal exit would make jax wait for the other processes

  def finish(self) -> None:
    """Disconnects this process after all processes have finished."""
    import jax  # start_jax has imported it

    jax.distributed.shutdown()  # waits for all processes
    self._send('bye')

  def _accept(self, port: int) -> int:
    """Waits until all other processes are connected, and returns the port for the service of jax.distributed."""
    try:
      if socket.has_dualstack_ipv6():
        server = socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
      else:
        server = socket.create_server(('', port))
    except OSError as error:
      reason = os.strerror(error.errno or 0)  # the error's own message repeats the address
      raise RunError(f'process 0 cannot listen on port {port} ({reason}); choose another port.') from error
    deadline = time.monotonic() + START_SECONDS
    with server:
      while len(self._links) < self.num_processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
          self._admit(Link(server.accept()[0]))
        except TimeoutError as error:
          missing = ', '.join(str(index) for index in range(1, self.num_processes) if index not in self._links)
          raise RunError(
            f'Of {self.num_processes} processes, these did not connect to port {port} within {START_SECONDS} s: '
            f'{missing}. Start all processes at the same time.'
          ) from error
    with socket.create_server(('', 0)) as probe:
      service_port = probe.getsockname()[1]
    self._send(f'welcome {service_port}')
    return service_port

  def _admit(self, link: 'Link') -> None:
    with contextlib.suppress(OSError, ValueError):  # unrelated programs may connect, too
      link.connection.settimeout(5)
      hello, index, count = link.lines.readline(80).split()
      if hello != 'hello':
        return
      if int(count) != self.num_processes:
        link.send(f'refused Process 0 expects {self.num_processes} processes and process {index} expects {count}')
      elif int(index) in self._links:
        link.send(f'refused Process {index} is already connected')
      else:
        self._links[int(index)] = link

  def _connect(self, host: str, port: int) -> int:
    """Connects to process 0, and returns the port of the service of jax.distributed."""
    deadline = time.monotonic() + START_SECONDS
    link = None
    while link is None:
      try:
        link = Link(socket.create_connection((host, port), timeout=5))
        if link.connection.getsockname() == link.connection.getpeername():
          raise ConnectionRefusedError(0, 'nobody listens')  # TCP connected the socket to itself
      except OSError as error:
        link = None
        if time.monotonic() > deadline:
          raise RunError(
            f'Process 0 cannot be reached at {host}:{port} within {START_SECONDS} s ({error.strerror or error}). '
            'Start all processes at the same time, with the host of process 0 as --coordinator.'
          ) from error
        time.sleep(0.2)
    link.connection.settimeout(START_SECONDS)
    link.send(f'hello {self.process_id} {self.num_processes}')
    try:
      reply, _, argument = link.lines.readline().strip().partition(' ')
    except (OSError, ValueError):
      reply = ''
    if reply == 'refused':
      raise UsageError(f'{argument}. Start every process with the same --num_processes and a different --process_id.')
    if reply != 'welcome':
      raise RunError(f'Process 0 at {host}:{port} ended before all processes connected. Restart all processes.')
    self._links[0] = link
    return int(argument)

  def _send(self, line: str) -> None:
    for link in self._links.values():
      link.send(line)

  def _send_heartbeats(self, interval: float) -> None:
    while True:
      self._send('alive')
      time.sleep(interval)

  def _listen(self, other: int, link: 'Link') -> None:
    with contextlib.suppress(OSError, ValueError):  # a timeout is an OSError
      for line in link.lines:
        if line == 'bye\n':
          return
        self._handle(other, *line.split())
    self._exit_with_others('dead', other)

  def _handle(self, other: int, word: str, argument: str = '-1') -> None:
    number = int(argument)
    if word == 'failed':
      self._send(f'failed {number}')
      time.sleep(GRACE_SECONDS)
    if word in ('dead', 'failed'):
      self._exit_with_others(word, number)
    with self._changed:
      if word == 'here':
        self._num_arrived[number] += 1
      elif word == 'go':
        self._passed.add(number)
      elif word == 'stop':
        self._query_steps()
      elif word == 'where':
        self._steps = {}
        self._send(f'at {self._step}')
      elif word == 'at':
        assert self._steps is not None  # a reply to `where`
        self._steps[other] = number
      elif word == 'stop_at':
        self._last_step = number
      if self.process_id == 0 and self._last_step is None and self._steps and len(self._steps) == self.num_processes:
        self._last_step = max(self._steps.values()) + 1
        self._send(f'stop_at {self._last_step}')
      self._changed.notify_all()

  def _exit_with_others(self, word: str, index: int | None) -> NoReturn:
    """Ends this process after another one is `dead` or `failed`; index None means that its index is unknown."""
    with self._ending:
      if index is not None:
        self._send(f'{word} {index}')
      name = 'another process' if index is None else f'process {index} of {self.num_processes}'
      message = f'Lost {name}' if word == 'dead' else f'An error ended {name}, which printed it'
      # Not through sys.stderr, which the main thread may have locked. The line may begin with a progress bar.
      with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, f'\nerror: {message}. {self._advise()}\n'.encode())
      os._exit(1)

  def _advise(self) -> str:
    try:  # the lost machine may be the file server
      step = concurrent.futures.ThreadPoolExecutor().submit(self._newest_step).result(timeout=10)
    except Exception:  # the file system may fail in any way, and the message about the lost process matters more
      return 'The newest checkpoint cannot be determined. Restart all processes to resume.'
    if step is None:
      return 'There is no checkpoint yet. Restart all processes.'
    return f'Restart all processes to resume from step {step:,}.'


def _is_collective_failure(error: Exception) -> bool:
  """Returns whether an exception comes from a collective operation, from the library's name in its message."""
  return any(name in str(error) for name in ('Gloo', 'NCCL'))


class Link:
  """One end of a connection between two processes.

  Attributes:
    connection: the socket.
    lines: the messages from the other end, as a text file.
  """

  def __init__(self, connection: socket.socket):
    """Wraps a connected socket."""
    self.connection, self.lines = connection, connection.makefile('r', encoding='ascii')
    self._lock = threading.Lock()

  def send(self, line: str) -> None:
    """Sends a line. Errors are ignored, because the listening thread detects a closed connection."""
    with self._lock, contextlib.suppress(OSError):
      self.connection.sendall(f'{line}\n'.encode())


def _relay(host: str, port: int) -> int:
  """Forwards a local port, which is returned, to the service of jax.distributed in process 0.

  When its connection to that service closes, jax ends the process immediately with a dump of its stack. The relay does
  not close the connection to jax, which leaves time for an error message.
  """
  server = socket.create_server(('127.0.0.1', 0))
  open_connections = []  # the reference prevents closing

  def forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while data := source.recv(2**16):
        sink.sendall(data)

  def accept() -> None:
    while True:
      local, _ = server.accept()
      try:
        remote = socket.create_connection((host, port))
      except OSError:  # the service has not started yet; jax retries
        local.close()
        continue
      open_connections.append((local, remote))
      for pair in ((local, remote), (remote, local)):
        threading.Thread(target=forward, args=pair, daemon=True).start()

  threading.Thread(target=accept, daemon=True).start()
  return server.getsockname()[1]
