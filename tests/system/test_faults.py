"""Faults during the training of a small network: an interrupted run that resumes ends like an uninterrupted one."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

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
  """A training in a separate process."""

  def __init__(self, folder, data_dir, *flags):
    self.folder = folder
    self._log = folder.parent / f'{folder.name}.log'  # all processes of a run append to it
    self._log.touch()
    self._begin = self._log.stat().st_size
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
    arguments = (*SMALL, f'--config.data.dir={data_dir}', f'--workdir={folder}', *flags)
    with self._log.open('a') as output:
      self._process = subprocess.Popen(
        [sys.executable, 'main.py', *arguments],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    self.pid = self._process.pid

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

  def end(self):
    status = self._process.wait(timeout=300)
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


@pytest.mark.soak
def test_memory_and_file_handles_do_not_grow_over_2000_steps(data_dir, tmp_path):
  flags = ('--config.num_steps=2000', '--config.checkpoint_every=100', '--config.eval_every=50')
  run, samples = Run(tmp_path / 'run', data_dir, *flags, '--config.optimizer.plateau_patience=1000'), []
  proc = pathlib.Path(f'/proc/{run.pid}')
  run.wait_for(400)
  with contextlib.suppress(OSError, TypeError):  # the process ends, and its folder disappears
    while True:
      memory = int(re.search(r'VmRSS:\s+(\d+)', (proc / 'status').read_text())[1]) // 1024
      samples.append((memory, len(list((proc / 'fd').iterdir())), len(list((proc / 'task').iterdir()))))
      time.sleep(0.1)
  assert run.end() == 0
  assert run.steps()[-1] == 2000
  quarter = len(samples) // 4
  early, late = (
    [max(values) for values in zip(*part, strict=True)]
    for part in (samples[:quarter], samples[-2 * quarter : -quarter])
  )
  print(f'maxima of resident MiB, file handles and threads in 2,000 steps, early: {early}; late: {late}')
  assert late[0] < 1.1 * early[0]
  assert late[1] <= early[1] + 5
  assert late[2] <= early[2] + 5


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
