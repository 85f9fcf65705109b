import math
import time

import numpy as np
import pytest

from alexnet_jax.runtime.errors import RunError
from alexnet_jax.training.progress import CHANCE_WINDOW, Progress


@pytest.fixture
def progress(config, tmp_path):
  config.log_every = 5
  return Progress(tmp_path, config, num_classes=10, epoch_size=80, last_step=1000)


class Metric(float):
  """A number that a device may still be computing."""

  ready = True

  def is_ready(self):
    return self.ready


def feed_one(progress, step, loss=2.0, ready=True):
  loss = Metric(loss)
  loss.ready = ready
  progress.step_dispatched(step, 0.001, {'loss': loss, 'error': Metric(50)})


def feed(progress, losses):
  for step, loss in enumerate(losses, start=1):
    feed_one(progress, step, loss)


def test_a_line_tells_all_that_matters(progress, capsys):
  feed(progress, [9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 2.0, 2.0, 9.0, 9.0])
  progress.close()
  line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('step 10/'))
  for part in ('step 10/1,000', 'epoch 1.0', 'loss 2.0000', 'error 50.0 %', 'rate 0.001', 'images/s', 'data', 'left'):
    assert part in line


@pytest.fixture
def clock(monkeypatch):
  """A clock that only the test moves: clock.sleep(seconds)."""

  class Clock:
    now = 0.0

    def perf_counter(self):
      return self.now

    def sleep(self, seconds):
      self.now += seconds

  clock = Clock()
  monkeypatch.setattr('alexnet_jax.training.progress.time', clock)
  return clock


@pytest.mark.parametrize(('ready', 'percent'), [(True, '25.0'), (False, '0.0')])
def test_speed_waiting_and_time_left(progress, capsys, clock, ready, percent):
  """While the devices are still at the step before, nobody waits for data."""
  for step in range(1, 12):
    with progress.waiting_for_data():
      clock.sleep(0.5)
    clock.sleep(1.5)
    feed_one(progress, step, ready=ready)
  line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('step 10/'))
  assert '4.0 images/s' in line  # 8 images in 2 seconds
  assert f'waiting for data {percent} %' in line
  assert '0:33:00 left' in line  # 990 steps of 2 seconds


def test_a_pause_is_not_counted(progress, capsys, clock):
  for step in range(1, 12):
    if step == 8:
      with progress.paused():
        clock.sleep(100)
    clock.sleep(2)
    feed_one(progress, step)
  line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('step 10/'))
  assert '4.0 images/s' in line


def test_metrics_are_read_one_step_late(progress):
  class Running:
    def __float__(self):
      raise AssertionError('waited for a step that is still running')

  feed(progress, [2.0, 2.0])
  progress.step_dispatched(3, 0.001, {'loss': Running(), 'error': Running()})


@pytest.mark.parametrize('loss', [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step(progress, loss):
  progress.saved(1)
  feed(progress, [2.0, 2.0, loss])
  with pytest.raises(RunError, match=r'at step 3;.*the checkpoint of step 1 is kept'):
    progress.read()


def test_standing_at_chance_is_said_once_and_explained(progress, capsys):
  feed(progress, [math.log(10) + 0.01 * (-1) ** i for i in range(3 * CHANCE_WINDOW)])
  output = capsys.readouterr().out
  assert output.count('ln(classes)') == 1
  for reason in ('init_std', '0-255', 'optimizer.rate'):
    assert reason in output


@pytest.mark.parametrize('start', [2.4, 3.5])
def test_learning_is_not_taken_for_standing_still(progress, capsys, start):
  feed(progress, np.linspace(start, 1.0, 3 * CHANCE_WINDOW))
  assert 'ln(classes)' not in capsys.readouterr().out


def test_a_stalled_pipeline_is_said_while_it_stalls(progress, monkeypatch, capsys):
  monkeypatch.setattr('alexnet_jax.training.progress.STALLED_AFTER', 0.05)
  with progress.waiting_for_data():
    pass
  time.sleep(0.1)
  assert 'stalled' not in capsys.readouterr().out
  with progress.waiting_for_data():
    time.sleep(0.5)
  assert capsys.readouterr().out.count('no batch has come for 0.05 s') == 1
