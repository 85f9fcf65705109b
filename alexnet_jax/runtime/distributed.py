"""Several processes that run as one: how they find each other, which of them writes, and what follows when one dies.

Every process holds one connection to process 0, opened before jax is. Both ends send a sign of life on it; one that
closes, or is silent for `heartbeat` seconds, has died. Process 0 tells the others, and all end with one sentence and
status 1. Without that the survivors of a dead process would wait in a collective operation for good.

What is said, a line each:

hello PROCESS COUNT   the first word of a process to process 0
welcome PORT          the answer, when all are there: where the service of jax.distributed will be
refused REASON        the other answer
alive                 the sign of life
here N, go N          at the N-th point where all wait for each other, and on from there
stop                  wants to stop training
where, at STEP        how far is each?
stop_at STEP          after these steps all stop
dead PROCESS          has died; everyone ends
failed PROCESS        has ended with an error, which it said itself; everyone ends
bye                   has ended well
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import tqdm

from alexnet_jax.runtime.errors import RunError, Stopped, UsageError

START_SECONDS = 300  # in which all processes must have started
GRACE_SECONDS = 5  # from the error of another process to the end of this one, which may be about to say the same
BEATS = 4  # signs of life in `heartbeat` seconds

_group = None  # the processes, where there are several


class ProcessInfo(NamedTuple):
  """Which of several processes this is.

  Attributes:
    coordinator: HOST:PORT at which process 0 listens.
    count: number of processes.
    index: of this one.
    local_device_ids: of the devices of this machine that are this process's; None for all.
  """

  coordinator: str
  count: int
  index: int
  local_device_ids: Sequence[int] | None = None


def process_info(
  detect: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessInfo | None:
  """Finds out which of several processes this is, from the flags or from what started it; None for a single one.

  Args:
    detect: whether to ask the cluster: what `jax.distributed` knows of SLURM, TPUs, Kubernetes and Open MPI.
    coordinator: HOST:PORT of process 0, or None.
    num_processes: how many there are, or None.
    process_id: which this is, or None.

  Raises:
    UsageError: if the flags do not go together, or no cluster is found.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [f'--{flag}' for flag, value in given.items() if value is None]
  if detect and len(missing) < len(given):
    raise UsageError('--distributed finds out the rest; leave --coordinator, --num_processes and --process_id out.')
  if detect:
    return _ask_the_cluster()
  if len(missing) == len(given):
    return None
  if missing:
    raise UsageError(f'--coordinator, --num_processes and --process_id go together; add {" and ".join(missing)}.')
  if num_processes < 1:
    raise UsageError(f'--num_processes={num_processes} must be 1 or more.')
  if not 0 <= process_id < num_processes:
    raise UsageError(f'--process_id={process_id} must be 0 to {num_processes - 1}, below --num_processes.')
  _split(coordinator)
  return ProcessInfo(coordinator, num_processes, process_id)


def _ask_the_cluster():
  from jax._src.clusters import ClusterEnv  # initialize() asks it, too, but does not say what it found

  try:
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, START_SECONDS)
  except Exception as error:  # each kind of cluster fails in its own way
    reason = str(error).partition('\n')[0] or type(error).__name__
    raise RunError(f'--distributed: the cluster does not say which process this is ({reason}).') from error
  if None in found[:3]:
    raise UsageError(
      '--distributed finds no SLURM, TPU pod, GKE or Open MPI here; start every process with '
      '--coordinator=HOST:PORT --num_processes=N --process_id=I.'
    )
  return ProcessInfo(*found)


def _split(coordinator):
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UsageError(f'--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:12345.')
  return host.strip('[]'), int(port)


@contextlib.contextmanager
def distributed_run(
  place: ProcessInfo | None,
  heartbeat: float,
  newest_checkpoint: Callable[[], str],
) -> Iterator[None]:
  """Does what is inside as one of several processes; call it before jax computes anything.

  Only process 0 prints and draws progress bars: the standard output of the others leads nowhere.

  Args:
    place: which process this is; None where it is the only one.
    heartbeat: seconds of silence after which a process counts as dead.
    newest_checkpoint: describes the newest checkpoint of the run, for the message of a failure.

  Raises:
    RunError: if the processes do not find each other.
  """
  global _group
  if place is None or place.count == 1:
    yield
    return
  if place.index == 0:
    sys.stdout.reconfigure(line_buffering=True)  # nothing is lost where this process must end at once
  else:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, disable=True)
  _group = Group(place, heartbeat, newest_checkpoint)
  try:
    _group.start_jax()
    yield
  except (Stopped, SystemExit):
    _group.finish()
    raise
  except Exception as error:
    if isinstance(error, UsageError | RunError) and not _is_broken(error):
      raise
    _group.explain(error)
  _group.finish()


def exit_process(status: int) -> None:
  """Ends this process with an error that it has said, and tells the others."""
  if _group is None:
    sys.exit(status)
  _group.leave(status)


def is_single_process() -> bool:
  """Says whether there is no other process."""
  return _group is None


def is_main_process() -> bool:
  """Says whether this is the process that writes."""
  return _group is None or _group.index == 0


@contextlib.contextmanager
def main_process_first() -> Iterator[bool]:
  """Lets process 0 do what is inside, and then the others; yields whether this is process 0."""
  if not is_main_process():
    _group.wait()
  yield is_main_process()
  if _group is not None and is_main_process():
    _group.wait()


def agree_to_stop(step: int, wanted: bool) -> bool:
  """Says whether to stop training here: where any process wants to stop, all do, after the same step.

  Args:
    step: steps taken. To be called after every step; it waits only while the processes agree where to stop.
    wanted: whether this process wants to stop.
  """
  return wanted if _group is None else _group.stop_together(step, wanted)


class Group:
  """The processes, as one of them sees them.

  Attributes:
    index: of this process.
    count: how many there are.
  """

  def __init__(self, place: ProcessInfo, heartbeat: float, newest_checkpoint: Callable[[], str]):
    """Meets the other processes; see `together`."""
    self.index, self.count = place.index, place.count
    self._place, self._heartbeat, self._newest_checkpoint = place, heartbeat, newest_checkpoint
    self._links = {}  # to every other process in process 0, to process 0 in the others
    self._changed = threading.Condition()
    self._ending = threading.Lock()
    self._points, self._arrived, self._gone = itertools.count(), collections.Counter(), set()
    self._step, self._steps, self._last_step = -1, None, None  # of this process; of all, by process; the one to stop at
    host, port = _split(place.coordinator)
    self._service = host, self._welcome(port) if self.index == 0 else self._join(host, port)
    for other, link in self._links.items():
      link.connection.settimeout(heartbeat)
      threading.Thread(target=self._listen, args=(other, link), daemon=True).start()
    threading.Thread(target=self._beat, args=(heartbeat / BEATS,), daemon=True).start()

  def start_jax(self) -> None:
    """Lets the devices of all processes work together."""
    import jax

    os.environ.setdefault('no_grpc_proxy', '127.0.0.1')  # a proxy for the Internet would not find the way back here
    jax.config.update('jax_check_proxy_envs', False)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.config.update('jax_enable_preemption_service', False)  # would take SIGTERM, which is for `stop_together`
    port = self._service[1]
    jax.distributed.initialize(
      f'127.0.0.1:{port if self.index == 0 else _relay(*self._service)}',
      self.count,
      self.index,
      self._place.local_device_ids,
      cluster_detection_method='deactivate',
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=round(
        100 + 10 * self._heartbeat
      ),  # ours comes first: jax ends with a dump of its stack
      coordinator_bind_address=f'[::]:{port}',
    )

  def wait(self) -> None:
    """Waits until every process is here."""
    point = next(self._points)
    with self._changed:
      if self.index == 0:
        self._changed.wait_for(lambda: self._arrived[point] == self.count - 1)
      self._tell(f'go {point}' if self.index == 0 else f'here {point}')
      if self.index:
        self._changed.wait_for(lambda: point in self._gone)

  def stop_together(self, step: int, wanted: bool) -> bool:
    """See the function of this name."""
    with self._changed:
      self._step = step
      if wanted and self._steps is None:
        self._ask_where() if self.index == 0 else self._tell('stop')
      # From its answer on, no process goes beyond its next step; so the last of their steps, and one more, is ahead of
      # all. The answers are given by threads, since a process may be waiting for what others have yet to compute.
      self._changed.wait_for(lambda: self._steps is None or self._last_step is not None)
      return self._last_step is not None and step >= self._last_step

  def _ask_where(self):
    if self._steps is None:
      self._steps = {0: self._step}
      self._tell('where')

  def explain(self, error: Exception) -> None:
    """Ends this process after an unforeseen error, which may come from the death of another."""
    time.sleep(GRACE_SECONDS)  # then its death is known, and this process has ended
    if _is_broken(error):
      self._end('dead', None)
    traceback.print_exception(error)
    self.leave(1)

  def leave(self, status: int) -> None:
    """Ends this process with an error that it has said."""
    with self._ending:
      self._tell(f'failed {self.index}')
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)  # at an ordinary end jax would wait for the others

  def finish(self) -> None:
    """Ends well, with the others."""
    import jax

    jax.distributed.shutdown()  # waits for all
    self._tell('bye')

  def _welcome(self, port):
    """Waits until all others have come; returns the port for the service of jax.distributed."""
    try:
      if socket.has_dualstack_ipv6():
        server = socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
      else:
        server = socket.create_server(('', port))
    except OSError as error:
      raise RunError(f'process 0 cannot listen at port {port} ({os.strerror(error.errno)}); choose another.') from error
    end = time.monotonic() + START_SECONDS
    with server:
      while len(self._links) < self.count - 1:
        server.settimeout(max(end - time.monotonic(), 0.001))
        try:
          self._receive(Link(server.accept()[0]))
        except TimeoutError as error:
          missing = ', '.join(str(index) for index in range(1, self.count) if index not in self._links)
          raise RunError(
            f'of {self.count} processes some have not come to port {port} within {START_SECONDS} s: {missing}; '
            'start them all at once.'
          ) from error
    with socket.create_server(('', 0)) as probe:
      service_port = probe.getsockname()[1]
    self._tell(f'welcome {service_port}')
    return service_port

  def _receive(self, link):
    with contextlib.suppress(OSError, ValueError):  # strangers may call, too
      link.connection.settimeout(5)
      hello, index, count = link.lines.readline(80).split()
      if hello != 'hello':
        return
      if int(count) != self.count:
        link.tell(f'refused process 0 counts {self.count} processes and process {index} counts {count}')
      elif int(index) in self._links:
        link.tell(f'refused there is a process {index} already')
      else:
        self._links[int(index)] = link

  def _join(self, host, port):
    """Introduces this process to process 0; returns the port for the service of jax.distributed."""
    end = time.monotonic() + START_SECONDS
    link = None
    while link is None:
      try:
        link = Link(socket.create_connection((host, port), timeout=5))
        if link.connection.getsockname() == link.connection.getpeername():
          raise ConnectionRefusedError(0, 'nobody listens')  # TCP let it call itself
      except OSError as error:
        link = None
        if time.monotonic() > end:
          raise RunError(
            f'process 0 cannot be reached at {host}:{port} within {START_SECONDS} s ({error.strerror or error}); '
            'start all processes at once, and name the machine of process 0.'
          ) from error
        time.sleep(0.2)
    link.connection.settimeout(START_SECONDS)
    link.tell(f'hello {self.index} {self.count}')
    try:
      answer, _, rest = link.lines.readline().strip().partition(' ')
    except (OSError, ValueError):
      answer = ''
    if answer == 'refused':
      raise UsageError(f'{rest}; start every process with the same --num_processes and a --process_id of its own.')
    if answer != 'welcome':
      raise RunError(f'process 0 at {host}:{port} left before all processes had come; start all again.')
    self._links[0] = link
    return int(rest)

  def _tell(self, line):
    for link in self._links.values():
      link.tell(line)

  def _beat(self, seconds):
    while True:
      self._tell('alive')
      time.sleep(seconds)

  def _listen(self, other, link):
    with contextlib.suppress(OSError, ValueError):  # a timeout is an OSError
      for line in link.lines:
        if line == 'bye\n':
          return
        self._hear(other, *line.split())
    self._end('dead', other)

  def _hear(self, other, word, number=None):
    number = number and int(number)
    if word == 'failed':
      self._tell(f'failed {number}')
      time.sleep(GRACE_SECONDS)
    if word in ('dead', 'failed'):
      self._end(word, number)
    with self._changed:
      if word == 'here':
        self._arrived[number] += 1
      elif word == 'go':
        self._gone.add(number)
      elif word == 'stop':
        self._ask_where()
      elif word == 'where':
        self._steps = {}
        self._tell(f'at {self._step}')
      elif word == 'at':
        self._steps[other] = number
      elif word == 'stop_at':
        self._last_step = number
      if self.index == 0 and self._last_step is None and self._steps and len(self._steps) == self.count:
        self._last_step = max(self._steps.values()) + 1
        self._tell(f'stop_at {self._last_step}')
      self._changed.notify_all()

  def _end(self, word, index):
    """Ends this process for what befell another (None: it is not known which)."""
    with self._ending:
      if index is not None:
        self._tell(f'{word} {index}')
      name = 'another process' if index is None else f'process {index} of {self.count}'
      what = 'has died or cannot be reached' if word == 'dead' else 'has ended with an error, which it says itself'
      # Not through sys.stderr, which the main thread may be holding; a progress bar may stand on the line.
      os.write(2, f'\nerror: {name} {what}; {self._describe_checkpoint()}: start all again to go on.\n'.encode())
      os._exit(1)

  def _describe_checkpoint(self):
    try:  # the machine that failed may have been the one that holds the files
      return concurrent.futures.ThreadPoolExecutor().submit(self._newest_checkpoint).result(timeout=10)
    except Exception:
      return 'the newest checkpoint cannot be determined'


def _is_broken(error):
  """Says whether a collective operation failed, as its libraries say it."""
  return any(name in str(error) for name in ('Gloo', 'NCCL'))


class Link:
  """One end of a connection between two processes.

  Attributes:
    connection: the socket.
    lines: what the other end says, text.
  """

  def __init__(self, connection: socket.socket):
    """Takes a connected socket."""
    self.connection, self.lines = connection, connection.makefile('r', encoding='ascii')
    self._lock = threading.Lock()

  def tell(self, line: str) -> None:
    """Says a line; that nobody hears it any more is for the one who listens to find out."""
    with self._lock, contextlib.suppress(OSError):
      self.connection.sendall(f'{line}\n'.encode())


def _relay(host, port):
  """Leads from a port of this process, which is returned, to the service of jax.distributed in process 0.

  When its connection to that service closes, jax ends the process at once with a dump of its stack. The relay keeps
  the connection to jax open, so that there is time for one sentence.
  """
  server = socket.create_server(('127.0.0.1', 0))
  kept = []

  def carry(source, sink):
    with contextlib.suppress(OSError):
      while data := source.recv(2**16):
        sink.sendall(data)

  def lead():
    while True:
      near, _ = server.accept()
      try:
        far = socket.create_connection((host, port))
      except OSError:  # the service is not there yet; jax tries again
        near.close()
        continue
      kept.append((near, far))
      for pair in ((near, far), (far, near)):
        threading.Thread(target=carry, args=pair, daemon=True).start()

  threading.Thread(target=lead, daemon=True).start()
  return server.getsockname()[1]
