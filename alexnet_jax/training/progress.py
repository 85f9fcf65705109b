"""Progress reports of a run: lines on the terminal, TensorBoard curves, and warnings if the network does not learn."""

import collections
import contextlib
import datetime
import math
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.runs import curves
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.training.optimizer import describe_learning_rates

CHANCE_WINDOW = 100  # steps that the loss must stay at chance level to cause a warning
STALL_SECONDS = 45  # without a batch, to cause a warning; it appears at most a quarter later, within a minute


class Progress:
  """Reports the progress of a run.

  Reported losses and error rates are means over the batches since the previous report, or since the run started or
  resumed. Each batch is measured before its own update, with dropout. The metrics of a step are read after the next
  step was dispatched, so reading them never makes a device wait. Curves that cannot be written do not end a training.

  Attributes:
    checkpoint_status: describes the newest checkpoint, for the messages of errors that end the run.
  """

  def __init__(self, folder: pathlib.Path, config: ConfigDict, num_classes: int, epoch_size: int, last_step: int):
    """Creates the report of a run, before its first step.

    Args:
      folder: of the run.
      config: the whole config.
      num_classes: number of classes.
      epoch_size: number of training images.
      last_step: length of the run.
    """
    self.checkpoint_status = 'there is no checkpoint yet'
    self._folder, self._writer = folder, None  # a writer of TensorBoard, once there is a point to write
    self._batch_size, self._epoch_size = config.batch_size, epoch_size
    self._last_step, self._log_every = last_step, config.log_every
    self._conditions: str | None = None
    self._unread: tuple[int, dict[str, Any], bool] | None = None  # the last step: the arguments of `step_dispatched`
    self._start: tuple[float, int] | None = None  # (time, step) at the end of the first step, which compiles
    self._window: list[tuple[float, float]] = []  # (loss, error) of the steps since the last report
    self._window_start, self._seconds_waited = 0.0, 0.0
    self._num_timed = 0  # steps since the last report, without the first step
    self._chance_loss, self._has_warned = math.log(num_classes), False
    self._losses: collections.deque[float] = collections.deque(maxlen=CHANCE_WINDOW)
    self._stall_watcher: threading.Thread | None = None
    self._waiting_since: float | None = None
    self._closed = threading.Event()

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Measures the time inside the context as data wait, unless the devices are still busy with the previous step.

    Prints a warning if it exceeds `STALL_SECONDS`.
    """
    start = time.perf_counter()
    if self._stall_watcher is None:  # a thread for every step would take longer than most waits
      self._stall_watcher = threading.Thread(target=self._watch_for_stalls, daemon=True)
      self._stall_watcher.start()
    self._waiting_since = start
    try:
      yield
    finally:
      self._waiting_since = None
    if self._unread is None or self._unread[1]['loss'].is_ready():
      self._seconds_waited += time.perf_counter() - start

  def _watch_for_stalls(self):
    reported = None
    while not self._closed.wait(STALL_SECONDS / 4):
      start = self._waiting_since
      if start not in (None, reported) and time.perf_counter() - start > STALL_SECONDS:
        reported = start
        print(
          f'No batch for {STALL_SECONDS:g} s: reading data has stalled. Check that the disk of the dataset is '
          'available and not overloaded. Training resumes with the next batch.',
          flush=True,
        )

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time inside the context, for evaluating or saving, from the training speed.

    Raises:
      RunError: if the loss of the previous step is not finite.
    """
    self.read()
    start = time.perf_counter()
    yield
    self._window_start += time.perf_counter() - start

  def checkpoint_saved(self, step: int) -> None:
    """Records the step of the newest checkpoint."""
    self.checkpoint_status = f'the checkpoint of step {step:,} is retained'

  def step_dispatched(self, step: int, metrics: dict[str, Any], shifts_colour: bool) -> None:
    """Takes the metrics of a step that may still be running, and reads those of the previous step.

    Args:
      step: number of steps, including this one.
      metrics: of this step, see `step.train_step`.
      shifts_colour: whether the images of this step have a colour shift.

    Raises:
      RunError: if the loss of the previous step is not finite.
    """
    self.read()
    self._unread = (step, metrics, shifts_colour)

  def read(self) -> None:
    """Waits for the metrics of the last dispatched step and reports them when due.

    Raises:
      RunError: if the loss is not finite.
    """
    if self._unread is None:
      return
    step, metrics, shifts_colour = self._unread
    self._unread = None
    metrics = jax.device_get(metrics)
    loss, error, learning_rates = float(metrics['loss']), float(metrics['error']), metrics['learning_rates']
    if not math.isfinite(loss):
      raise RunError(
        f'the loss is {loss} at step {step:,}; {self.checkpoint_status}. Train with a lower optimizer.rate in another '
        '--workdir, or check the images.'
      )
    self._print_conditions(step - 1, learning_rates, shifts_colour)
    self._window.append((loss, error))
    if self._start is None:
      print(f'First step done: loss {loss:.4f} (chance level {self._chance_loss:.4f})', flush=True)
      self._start = (time.perf_counter(), step)
      self._window_start, self._seconds_waited = self._start[0], 0.0
      self._write(step, {})  # opens the file, so that TensorBoard shows the run
    else:
      self._num_timed += 1
    if step % self._log_every == 0:
      self._report(step, learning_rates['kernel'], self._start)
    self._check_learning(step, loss)

  def _print_conditions(self, num_steps, learning_rates, shifts_colour):
    """Prints the training conditions after a number of steps if they have changed."""
    conditions = f'{describe_learning_rates(learning_rates)}; colour shift {"on" if shifts_colour else "off"}'
    if conditions != self._conditions:
      self._conditions = conditions
      print(f'From step {num_steps:,}: {conditions}', flush=True)

  def _write(self, step, values):
    """Writes points of curves."""
    if not distributed.is_main_process():
      return
    with self._write_errors():
      writer = self._writer = self._writer or curves.open_writer(self._folder)
      for name, value in values.items():
        writer.add_scalar(name, value, step)

  @contextlib.contextmanager
  def _write_errors(self):
    """Reports errors of writing curves; the next points are written to a new file."""
    try:
      yield
    except OSError as error:
      self._writer = None
      print(f'The curves cannot be written to {self._folder}/tensorboard ({error.strerror}).', flush=True)

  def _report(self, step, learning_rate, start):
    now = time.perf_counter()
    loss, error = (sum(values) / len(values) for values in zip(*self._window, strict=True))
    values = {'train/loss': loss, 'train/error': error, 'train/rate': learning_rate}
    if self._num_timed:
      seconds = now - self._window_start
      images_per_second = self._num_timed * self._batch_size / seconds
      percent_waited = 100 * self._seconds_waited / seconds
      values |= {'speed/images_per_second': images_per_second, 'speed/waiting_for_data_percent': percent_waited}
      start_time, start_step = start
      seconds_left = (now - start_time) / (step - start_step) * (self._last_step - step)
      print(
        f'step {step:,}/{self._last_step:,}  epoch {step * self._batch_size / self._epoch_size:.1f}  '
        f'loss {loss:.4f}  train error {error:.1f} %  '
        f'lr {np.format_float_scientific(learning_rate, precision=3, trim="-", exp_digits=1)}  '
        f'{images_per_second:.1f} img/s  data wait {percent_waited:.0f} %  ETA {_format_duration(seconds_left)}',
        flush=True,
      )
    self._write(step, values)
    self._window, self._num_timed = [], 0
    self._window_start, self._seconds_waited = now, 0.0

  def _check_learning(self, step, loss):
    """Warns once if the loss stays at chance level. Comparing two halves ignores a loss that only passes through."""
    self._losses.append(loss)
    if self._has_warned or len(self._losses) < CHANCE_WINDOW:
      return
    losses = list(self._losses)
    halves = [sum(half) / len(half) for half in (losses[: CHANCE_WINDOW // 2], losses[CHANCE_WINDOW // 2 :])]
    if all(abs(mean - self._chance_loss) < 0.01 * self._chance_loss for mean in halves):
      self._has_warned = True
      print(
        f'step {step:,}: the loss has been {halves[-1]:.4f}, which is ln(classes), for {CHANCE_WINDOW} steps: the '
        'network predicts all classes with equal probability. On ImageNet this may last for thousands of steps. On '
        'other datasets the usual causes are initial weights too small for the scale of the input (model.init_std; '
        'pixels are 0-255), or a learning rate so high that units died or so low that weights hardly change '
        '(optimizer.rate).',
        flush=True,
      )

  def evaluated(self, step: int, results: dict[str, float]) -> None:
    """Reports an evaluation of the validation split."""
    print(
      f'step {step:,}  validation: top-1 error {results["top1_error"]:.2f} %, '
      f'top-5 error {results["top5_error"]:.2f} %, log-prob {results["log_prob"]:.4f}',
      flush=True,
    )
    self._write(step, {f'validation/{name}': results[name] for name in ('top1_error', 'top5_error', 'log_prob')})

  def close(self) -> None:
    """Flushes the curves and ends the stall warnings."""
    self._closed.set()
    with self._write_errors():
      if self._writer:
        self._writer.close()


def _format_duration(seconds):
  """Formats a duration as minutes:seconds, or as hours:minutes:seconds if it exceeds an hour."""
  return str(datetime.timedelta(seconds=round(seconds))).removeprefix('0:').removeprefix('0')
