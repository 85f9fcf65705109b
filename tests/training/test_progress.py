import errno
import math
import os
import time

import numpy as np
import pytest

from alexnet_jax.runs import curves
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.training.progress import CHANCE_WINDOW, Progress


@pytest.fixture
def progress(config, tmp_path):
  config.log_every = 5
  return Progress(tmp_path, config, num_classes=10, epoch_size=80, last_step=1000)


LEARNING_RATES = {'kernel': 0.001, 'bias': 0.001}


class Metric(float):
  """A metric that a device may still be computing."""

  was_computed = True

  def is_ready(self):
    return self.was_computed


def take_step(progress, step, loss=2.0, was_computed=True):
  loss = Metric(loss)
  loss.was_computed = was_computed
  progress.step_dispatched(step, {'loss': loss, 'error': Metric(50), 'learning_rates': LEARNING_RATES}, True)


def take_steps(progress, losses):
  for step, loss in enumerate(losses, start=1):
    take_step(progress, step, loss)


def reported_line(capsys):
  """Returns the report of step 10."""
  return next(line for line in capsys.readouterr().out.splitlines() if line.startswith('step 10/'))


def test_a_report_has_every_metric(progress, capsys):
  take_steps(progress, [9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 2.0, 2.0, 9.0, 9.0])
  progress.close()
  line = reported_line(capsys)
  for part in (
    'step 10/1,000',
    'epoch 1.0',
    'loss 2.0000',
    'train error 50.0 %',
    'lr 1e-3',
    'img/s',
    'data wait',
    'ETA',
  ):
    assert part in line


@pytest.fixture
def clock(monkeypatch):
  """A clock that advances only when the test calls clock.sleep(seconds)."""

  class Clock:
    now = 0.0

    def perf_counter(self):
      return self.now

    def sleep(self, seconds):
      self.now += seconds

  clock = Clock()
  monkeypatch.setattr('alexnet_jax.training.progress.time', clock)
  return clock


def test_curves_are_means_of_all_steps_since_the_run_started(progress, tmp_path):
  take_steps(progress, [9.0, 1.0, 2.0, 3.0, 5.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0])
  progress.close()
  steps, losses = curves.read_curves(tmp_path)['train/loss']
  np.testing.assert_allclose([steps, losses], [[5, 10], [4.0, 1.2]])


def test_with_a_report_after_every_step_the_first_step_has_a_point_but_no_speed(config, tmp_path):
  config.log_every = 1
  progress = Progress(tmp_path, config, num_classes=10, epoch_size=80, last_step=1000)
  take_steps(progress, [9.0, 1.0, 2.0, 3.0])
  progress.close()
  read = curves.read_curves(tmp_path)
  assert [read[name][0].tolist() for name in ('train/loss', 'speed/images_per_second')] == [[1, 2, 3], [2, 3]]


def test_curves_that_cannot_be_written_do_not_end_the_run(progress, capsys, monkeypatch):
  class FullDisk:
    def add_scalar(self, *_):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(curves, 'open_writer', lambda _: FullDisk())
  take_steps(progress, [2.0] * 12)
  progress.close()
  output = capsys.readouterr().out
  assert output.count('/tensorboard (No space left on device).') == 2
  assert 'step 10/1,000' in output


@pytest.mark.parametrize(('was_computed', 'percent'), [(True, '25'), (False, '0')])
def test_a_report_has_speed_data_wait_and_remaining_time(progress, capsys, clock, was_computed, percent):
  """While the devices are busy with the previous step, no time counts as data wait."""
  for step in range(1, 12):
    with progress.waiting_for_data():
      clock.sleep(0.5)
    clock.sleep(1.5)
    take_step(progress, step, was_computed=was_computed)
  line = reported_line(capsys)
  assert '4.0 img/s' in line  # 8 images in 2 seconds
  assert f'data wait {percent} %' in line
  assert line.endswith('ETA 33:00')  # 990 steps of 2 seconds


@pytest.mark.parametrize(
  ('seconds_per_step', 'expected'), [(0.001, '0:01'), (0.216, '3:34'), (4, '1:06:00'), (100, '1 day, 3:30:00')]
)
def test_the_remaining_time_is_in_minutes_or_hours(progress, capsys, clock, seconds_per_step, expected):
  for step in range(1, 12):
    clock.sleep(seconds_per_step)
    take_step(progress, step)
  assert reported_line(capsys).endswith(f'ETA {expected}')


def test_a_pause_does_not_count(progress, capsys, clock):
  for step in range(1, 12):
    if step == 8:
      with progress.paused():
        clock.sleep(100)
    clock.sleep(2)
    take_step(progress, step)
  assert '4.0 img/s' in reported_line(capsys)


def test_metrics_are_read_one_step_later(progress):
  class Running:
    def __float__(self):
      raise AssertionError('read a step that is still running')

  take_steps(progress, [2.0, 2.0])
  progress.step_dispatched(3, {'loss': Running(), 'error': Running(), 'learning_rates': {}}, True)


@pytest.mark.parametrize('loss', [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_reported_with_its_step(progress, loss):
  progress.checkpoint_saved(1)
  take_steps(progress, [2.0, 2.0, loss])
  with pytest.raises(RunError, match=r'at step 3;.*the checkpoint of step 1 is retained'):
    progress.read()


def test_a_loss_at_chance_level_is_reported_once_with_causes(progress, capsys):
  take_steps(progress, [math.log(10) + 0.01 * (-1) ** i for i in range(3 * CHANCE_WINDOW)])
  output = capsys.readouterr().out
  assert output.count('ln(classes)') == 1
  for cause in ('init_std', '0-255', 'optimizer.rate'):
    assert cause in output


@pytest.mark.parametrize('start', [2.4, 3.5])
def test_a_loss_that_passes_through_chance_level_is_not_reported(progress, capsys, start):
  take_steps(progress, np.linspace(start, 1.0, 3 * CHANCE_WINDOW))
  assert 'ln(classes)' not in capsys.readouterr().out


def test_a_stalled_pipeline_is_reported_while_it_stalls(progress, monkeypatch, capsys):
  monkeypatch.setattr('alexnet_jax.training.progress.STALL_SECONDS', 0.05)
  with progress.waiting_for_data():
    pass
  time.sleep(0.1)
  assert 'stalled' not in capsys.readouterr().out
  with progress.waiting_for_data():
    time.sleep(0.5)
  assert capsys.readouterr().out.count('No batch for 0.05 s') == 1
