"""Faults during the training of a small network: an interrupted run that resumes ends like an uninterrupted one."""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pytest

from alexnet_jax.data import sources
from alexnet_jax.reproduction import records
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.training import loop, progress
from tests import miniature
from tests.runtime.test_distributed import free_port
from tests.system import disk_record
from tests.system.warm_process import WarmProcess

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 60
SMALL = (
  '--config=configs/alexnet.py',
  '--config.model.image_size=64',
  '--config.model.width=0.0625',
  '--config.batch_size=8',
  f'--config.num_steps={NUM_STEPS}',
  '--config.log_every=1',
  '--config.optimizer.plateau_patience=4',
  '--config.eval_every=4',
  '--config.data.validation_split=train[:5%]',
  '--config.data.test_split=test[:10%]',
  '--config.eval.ten_view=False',
)


class Run:
  """A training in a separate process, which may be a fork of a warm one."""

  def __init__(self, folder, data_dir, *flags, warm=None):
    self.folder = folder
    self._log = folder.parent / f'{folder.name}.log'  # all processes of a run append to it
    self._log.touch()
    self._begin = self._log.stat().st_size
    arguments = ('main.py', *SMALL, f'--config.data.dir={data_dir}', f'--workdir={folder}', *flags)
    self._process = warm.start(arguments, self._log) if warm else self._start(arguments)
    self.pid = self._process.pid

  def _start(self, arguments):
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
    with self._log.open('a') as output:
      return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def output(self):
    return self._log.read_bytes()[self._begin :].decode()

  def steps(self):
    """Returns the steps in the log."""
    steps = re.findall(r'^step ([\d,]+)/', self.output(), re.MULTILINE)
    return [int(step.replace(',', '')) for step in steps]

  def wait_for(self, step):
    """Waits until the log contains a step, or the process has ended."""
    while self._process.poll() is None:
      if self.steps() and self.steps()[-1] >= step:
        return
      time.sleep(0.02)

  def send(self, number):
    """Sends a signal, waits until the process ends, and returns the exit status."""
    if self._process.poll() is None:
      self._process.send_signal(number)
    return self.end()

  def wait(self):
    return self._process.wait(timeout=300)

  def end(self):
    status = self.wait()
    assert 'Traceback' not in self.output(), self.output()
    return status


def final_state(folder, num_steps=NUM_STEPS):
  """Returns the fingerprints of the last state of a run, its schedule, and its results."""
  run = json.loads((folder / 'checkpoints' / str(num_steps) / 'run' / 'metadata').read_text())
  return run, json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def uninterrupted(data_dir, tmp_path_factory):
  """The last state and the results of an uninterrupted run."""
  folder = tmp_path_factory.mktemp('uninterrupted') / 'run'
  assert Run(folder, data_dir, '--config.checkpoint_every=5').end() == 0
  return final_state(folder)


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_like_an_uninterrupted_one(uninterrupted, data_dir, tmp_path):
  folder = tmp_path / 'run'
  flags = (folder, data_dir, '--config.checkpoint_every=5')

  run = Run(*flags)
  run.wait_for(8)
  while not (folder / 'checkpoints' / '5').is_dir():  # checkpoints are written in the background
    time.sleep(0.02)
  assert run.send(signal.SIGKILL) == -signal.SIGKILL

  run = Run(*flags)
  run.wait_for(17)
  assert run.send(signal.SIGTERM) == 75
  stopped_step = step_of_stop(run)
  assert (folder / 'checkpoints' / stopped_step).is_dir()
  assert re.search(r'Resuming from step (5|10|15) ', run.output())

  run = Run(*flags)
  run.wait_for(34)
  assert run.send(signal.SIGINT) == 75
  assert f'Resuming from step {stopped_step} ' in run.output()

  run = Run(*flags)
  run.wait_for(51)
  assert run.send(signal.SIGKILL) == -signal.SIGKILL
  assert Run(*flags).end() == 0
  assert final_state(folder) == uninterrupted


def step_of_stop(run):
  """Returns the step in the message of a run that was stopped."""
  message = (
    rf'Stopped after step (\d+) of {NUM_STEPS}; its checkpoint is saved in .*\. Run the same command to resume\.'
  )
  return re.search(message, run.output())[1]


def test_a_run_that_is_stopped_saves_a_checkpoint_and_exits_with_status_75(data_dir, tmp_path):
  run = Run(tmp_path / 'run', data_dir)
  run.wait_for(3)
  assert run.send(signal.SIGTERM) == 75
  assert [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()] == [step_of_stop(run)]


def test_a_run_stopped_before_training_exits_with_a_message(data_dir, tmp_path):
  run = Run(tmp_path / 'run', data_dir)
  while 'jax 0.' not in run.output():
    time.sleep(0.05)
  assert run.send(signal.SIGTERM) == 75
  assert 'Stopped. Run the same command to resume.' in run.output()


@pytest.mark.soak
def test_twenty_kills_at_random_moments(data_dir, tmp_path):
  """Saves a checkpoint after every step, so many kills interrupt a save."""
  num_steps = 500
  flags = (
    data_dir,
    f'--config.num_steps={num_steps}',
    '--config.checkpoint_every=1',
    '--config.optimizer.plateau_patience=1000',
  )
  assert Run(tmp_path / 'uninterrupted', *flags).end() == 0
  rng, folder, num_lost_steps, num_during_save = random.Random(0), tmp_path / 'killed', [], 0
  for _ in range(20):
    run = Run(folder, *flags)
    run.wait_for(1)
    time.sleep(rng.uniform(0, 1))
    steps = run.steps()
    assert run.send(signal.SIGKILL) == -signal.SIGKILL
    names = [path.name for path in (folder / 'checkpoints').iterdir()]
    num_during_save += any('tmp' in name for name in names)
    num_lost_steps.append(max(steps, default=0) - max((int(name) for name in names if name.isdigit()), default=0))
  print(f'20 kills, {num_during_save} of them during a save; steps lost: {num_lost_steps}')
  assert max(num_lost_steps) <= 2  # the step that was being saved, and the step computed at the same time
  assert Run(folder, *flags).end() == 0
  assert final_state(folder, num_steps) == final_state(tmp_path / 'uninterrupted', num_steps)


@pytest.fixture(scope='module')
def warm():
  process = WarmProcess()
  yield process
  process.close()


def phase(run):
  """Returns what a run was doing when it was killed."""
  output = run.output()
  if any('tmp' in path.name for path in run.folder.glob('checkpoints/*')):
    return 'save'
  if output.rfind('], centre:') > output.rfind('log-prob'):
    return 'evaluation'
  return 'training' if run.steps() else 'start and resume'


def newest_checkpoint(folder):
  return max((int(path.name) for path in folder.glob('checkpoints/*') if path.name.isdigit()), default=0)


@pytest.mark.soak
@pytest.mark.parametrize('seed', range(3))
def test_a_hundred_kills_at_random_moments(seed, warm, data_dir, tmp_path):
  """Every run is killed up to fifteen times and then ends; three intervals of checkpoints alternate."""
  flags = (data_dir, '--config.num_steps=40', '--config.optimizer.plateau_patience=1000')
  reference = tmp_path / 'uninterrupted'
  assert Run(reference, *flags, '--config.checkpoint_every=5', warm=warm).end() == 0
  expected = final_state(reference, 40)
  start_time = time.monotonic()
  assert Run(reference, *flags, warm=warm).end() == 0  # a resumed run may compile other programs
  seconds = time.monotonic() - start_time
  rng, phases, lost_steps, num_runs = random.Random(seed), collections.Counter(), collections.Counter(), 0
  while phases.total() < 100:
    folder, checkpoint_every = tmp_path / f'killed{num_runs}', (1, 2, 5)[num_runs % 3]
    flags_of_run = (folder, *flags, f'--config.checkpoint_every={checkpoint_every}')
    num_runs += 1
    for _ in range(min(15, 100 - phases.total())):
      saved = newest_checkpoint(folder)
      run = Run(*flags_of_run, warm=warm)
      time.sleep(rng.uniform(0, 2 * seconds))  # later runs may be slower
      os.kill(run.pid, signal.SIGSTOP)
      killed_phase, steps = phase(run), run.steps()
      if run.send(signal.SIGKILL) == 0:  # it has ended
        break
      phases[killed_phase] += 1
      assert newest_checkpoint(folder) >= saved
      num_lost = max(0, max(steps, default=0) - newest_checkpoint(folder))
      assert num_lost <= 2 * checkpoint_every  # the steps since the last save, and those during it
      lost_steps[num_lost] += 1
    assert Run(*flags_of_run, warm=warm).end() == 0
    assert final_state(folder, 40) == expected
    print(
      f'{phases.total()} kills in {num_runs} runs: {dict(phases)}; steps lost: {sorted(lost_steps.items())}', flush=True
    )
  assert len(phases) == 4


@pytest.mark.soak
def test_a_hundred_kills_of_two_processes(warm, data_dir, tmp_path):
  """One of the processes is killed at a random moment, and the other at most a second later."""
  flags = (data_dir, '--config.num_steps=40', '--config.optimizer.plateau_patience=1000', '--config.mesh.tower=2')

  def start(folder):
    address = f'--coordinator=127.0.0.1:{free_port()}'
    return [
      Run(folder, *flags, '--config.checkpoint_every=2', address, '--num_processes=2', f'--process_id={i}', warm=warm)
      for i in range(2)
    ]

  reference = tmp_path / 'uninterrupted'
  assert [run.end() for run in start(reference)] == [0, 0]
  expected = final_state(reference, 40)
  start_time = time.monotonic()
  assert [run.end() for run in start(reference)] == [0, 0]
  seconds = time.monotonic() - start_time
  rng, phases, lost_steps, num_runs = random.Random(0), collections.Counter(), collections.Counter(), 0
  while phases.total() < 100:
    folder = tmp_path / f'killed{num_runs}'
    num_runs += 1
    for _ in range(min(10, 100 - phases.total())):
      saved = newest_checkpoint(folder)
      runs = start(folder)
      time.sleep(rng.uniform(0, 2 * seconds))
      rng.shuffle(runs)
      killed_phase, steps = phase(runs[0]), runs[0].steps()
      os.kill(runs[0].pid, signal.SIGKILL)
      time.sleep(rng.uniform(0, 1))
      os.kill(runs[1].pid, signal.SIGKILL)
      if [run.wait() for run in runs] == [0, 0]:  # the second may also have ended with an error of JAX
        break
      phases[killed_phase] += 1
      assert newest_checkpoint(folder) >= saved
      lost_steps[max(0, max(steps, default=0) - newest_checkpoint(folder))] += 1
    assert [run.end() for run in start(folder)] == [0, 0]
    assert final_state(folder, 40) == expected
    print(
      f'{phases.total()} pairs killed in {num_runs} runs: {dict(phases)}; lost: {sorted(lost_steps.items())}',
      flush=True,
    )
  assert max(lost_steps) <= 4


@pytest.mark.soak
@pytest.mark.parametrize('command', ['prepare', 'features', 'reproduce'])
def test_twenty_kills_of_other_commands(command, warm, trained_run, data_dir, tmp_path):
  miniature.write_class_folders(tmp_path / 'in', per_class=300)

  def start(name):
    arguments = {
      'prepare': ('alexnet_jax', command, 'folder', tmp_path / 'in', '--workers=1', f'--data_dir={tmp_path / name}'),
      'features': ('alexnet_jax', command, 'extract', trained_run, tmp_path / name, '--layer=fc7', '--split=train'),
      'reproduce': ('tests.system.short_experiment', tmp_path / name, data_dir),
    }
    return warm.start(('-m', *arguments[command]), tmp_path / 'log')

  def output(name):
    if command == 'reproduce':
      loaded = {path.name: records.load(path) for path in tmp_path.glob(f'{name}/results/*/*.json')}
      return {path: (record.num_epochs, record.results, record.curves) for path, record in loaded.items()}
    contents = disk_record.contents(tmp_path / name)
    return {path: content for path, content in contents.items() if '.array_record-' in path or path.endswith('.npy')}

  start_time = time.monotonic()
  assert start('complete').wait(300) == 0, (tmp_path / 'log').read_text()
  seconds, rng, num_kills, num_finished = time.monotonic() - start_time, random.Random(0), 0, 0
  while num_kills < 20:
    process = start(f'killed{num_finished}')
    time.sleep(rng.uniform(0, seconds))
    os.kill(process.pid, signal.SIGKILL)
    # Features get their name when they are complete; a process may be killed after that and before it exits.
    if process.wait(300) == 0 or (command == 'features' and (tmp_path / f'killed{num_finished}').exists()):
      assert output(f'killed{num_finished}') == output('complete')
      num_finished += 1
    else:
      num_kills += 1
      time.sleep(1)  # until its workers notice and exit
  assert start(f'killed{num_finished}').wait(300) == 0, (tmp_path / 'log').read_text()
  assert output(f'killed{num_finished}') == output('complete') != {}
  print(f'{command}: {num_kills} kills, {num_finished + 1} complete outputs')


@pytest.mark.soak
def test_memory_and_file_handles_do_not_grow_over_20000_steps(data_dir, tmp_path):
  """Compares the second quarter with the last one; in the first, the C library still caches memory for its threads."""
  flags = ('--config.num_steps=20000', '--config.checkpoint_every=100', '--config.eval_every=50')
  flags += ('--config.log_every=100', '--config.optimizer.plateau_patience=1000')
  run, samples = Run(tmp_path / 'run', data_dir, *flags), []
  proc = pathlib.Path(f'/proc/{run.pid}')
  run.wait_for(400)
  with contextlib.suppress(OSError, TypeError):  # the process ends, and its folder disappears
    while run.steps()[-1] < 20000:
      memory = int(re.search(r'VmRSS:\s+(\d+)', (proc / 'status').read_text())[1]) / 1024
      counts = [len(list((proc / name).iterdir())) for name in ('fd', 'task')]
      samples.append((run.steps()[-1], memory, *counts))
      time.sleep(0.2)
  assert run.end() == 0
  assert run.steps()[-1] == 20000
  parts = [[values for step, *values in samples if first < step <= first + 5000] for first in (5000, 15000)]
  early, late = ([max(values) for values in zip(*part, strict=True)] for part in parts)
  idle = [min(count for _, count, _ in part) for part in parts]  # file handles while nothing is saved
  medians = [statistics.median(memory for memory, *_ in part) for part in parts]
  print(f'maxima of resident MiB, file handles and threads in 20,000 steps, early: {early}; late: {late}; idle: {idle}')
  print(f'medians of resident MiB: {medians}')
  assert late[0] < 1.01 * early[0]
  assert medians[1] < 1.01 * medians[0]
  assert late[1] <= early[1] + 5
  assert late[2] <= early[2] + 5
  assert idle[1] <= idle[0]


@pytest.mark.soak
def test_a_stalled_input_pipeline_is_reported_within_a_minute(config, tmp_path, monkeypatch):
  released, calls, stalled, reported = threading.Event(), itertools.count(), [], []

  def read(source, indices):
    if next(calls) == 40:
      stalled.append(time.monotonic())
      released.wait(timeout=120)
    return read_at_once(source, indices)

  def report(line, **_):
    if line.startswith('No batch for'):
      reported.append(time.monotonic())
      released.set()

  read_at_once = sources.Source.read
  monkeypatch.setattr(sources.Source, 'read', read)
  monkeypatch.setattr(progress, 'print', report, raising=False)
  config.num_steps, config.eval.ten_view = 60, False
  assert loop.train_and_evaluate(config, tmp_path)['step'] == 60
  print(f'reported after {reported[0] - stalled[0]:.1f} s')
  assert len(reported) == 1
  assert reported[0] - stalled[0] < 60


def check_until(checkpoints, end):
  while time.monotonic() < end:
    checkpoints.check()
    time.sleep(0.05)


def test_a_failed_save_is_reported_before_the_next_one(tmp_path, one_device):
  """A limit on the size of files has the same effect as a full disk."""
  checkpoints, start = Checkpoints(tmp_path), time.monotonic()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    checkpoints.save(3, {'x': jnp.zeros(1000)}, {})
    with pytest.raises(RunError, match=r'cannot be written to .*; there is no older checkpoint\. Free'):
      check_until(checkpoints, start + 60)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_two_runs_that_prepare_the_same_dataset_at_once_both_finish(tmp_path):
  (tmp_path / 'tfds').mkdir()
  runs = [Run(tmp_path / name, tmp_path / 'tfds', '--config.num_steps=2') for name in ('first', 'second')]
  assert [run.end() for run in runs] == [0, 0]
  assert final_state(tmp_path / 'first', 2) == final_state(tmp_path / 'second', 2)


@pytest.mark.soak
def test_runs_with_the_same_seed_have_the_same_log(uninterrupted, data_dir, tmp_path):
  logs = []
  for name in ('first', 'second'):
    run = Run(tmp_path / name, data_dir, '--config.checkpoint_every=5')
    assert run.end() == 0
    logs.append(re.findall(r'^step .*? lr \S+|^step .*validation.*|^centre.*', run.output(), re.MULTILINE))
  assert len(logs[0]) >= NUM_STEPS
  assert logs[0] == logs[1]
  assert final_state(tmp_path / 'first') == uninterrupted
