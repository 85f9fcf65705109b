"""What a run tells its reader: lines on the terminal, TensorBoard curves, and warnings when it does not learn."""

import collections
import contextlib
import datetime
import math
import pathlib
import threading
import time

import jax
from ml_collections import ConfigDict

from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import RunError

CHANCE_WINDOW = 100  # steps over which the loss is watched for standing still at chance
STALLED_AFTER = 60  # seconds without a batch


class Progress:
  """Follows a run step by step.

  Loss and error are means over the batches since the last line, before each batch's own update and with dropout.
  The metrics of a step are read only after the next one was dispatched, so that reading never makes a device wait.

  Attributes:
    kept: says which checkpoint there is, for the sentence in which a run fails.
  """

  def __init__(self, folder: pathlib.Path, config: ConfigDict, num_classes: int, epoch_size: int, last_step: int):
    """Begins at the step to come.

    Args:
      folder: of the run.
      config: the whole config.
      num_classes: classes to tell apart.
      epoch_size: images in the training set.
      last_step: steps of the whole run.
    """
    self._folder, self._writer = folder, None
    self._chance = math.log(num_classes)
    self._losses = collections.deque(maxlen=CHANCE_WINDOW)
    self._warned = False
    self.kept = 'there is no checkpoint yet'
    self._stall_watch, self._waiting_since, self._closed = None, None, threading.Event()
    self._conditions = None
    self._batch_size, self._epoch_size = config.batch_size, epoch_size
    self._last_step, self._log_every = last_step, config.log_every
    self._unread = None  # (step, rate, metrics) of the step dispatched last
    self._began = None  # (time, step) when the first step had been compiled and done
    self._window = []  # (loss, error) of the steps since the last line
    self._window_began, self._waited = 0.0, 0.0

  @contextlib.contextmanager
  def waiting_for_data(self):
    """Counts the time inside as waiting for data, unless the devices were still at the step before.

    Where it takes longer than `STALLED_AFTER` seconds, that is said.
    """
    start = time.perf_counter()
    if self._stall_watch is None:  # one for the whole run: a thread for each step would take longer than many a wait
      self._stall_watch = threading.Thread(target=self._watch_for_stalls, daemon=True)
      self._stall_watch.start()
    self._waiting_since = start
    try:
      yield
    finally:
      self._waiting_since = None
    if self._unread is None or self._unread[2]['loss'].is_ready():
      self._waited += time.perf_counter() - start

  def _watch_for_stalls(self):
    said = None
    while not self._closed.wait(STALLED_AFTER / 4):
      since = self._waiting_since
      if since not in (None, said) and time.perf_counter() - since > STALLED_AFTER:
        said = since
        print(
          f'no batch has come for {STALLED_AFTER:g} s: reading data has stalled; is the disk that holds it there, and '
          'not too busy? Training goes on when it comes.',
          flush=True,
        )

  @contextlib.contextmanager
  def paused(self):
    """Leaves the time inside, for evaluating or saving, out of the speed of training.

    Raises:
      RunError: if the loss of the step before is not finite.
    """
    self.read()
    start = time.perf_counter()
    yield
    self._window_began += time.perf_counter() - start

  def saved(self, step: int) -> None:
    """Takes note of the newest checkpoint."""
    self.kept = f'the checkpoint of step {step:,} is kept'

  def conditions(self, step: int, description: str) -> None:
    """Says under which conditions training goes on, whenever they change.

    Args:
      step: steps taken so far.
      description: of the rates and the augmentation for the steps to come.
    """
    if description != self._conditions:
      self._conditions = description
      print(f'from step {step:,}: {description}', flush=True)

  def step_dispatched(self, step: int, rate: float, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that may still be running, and reads those of the step before.

    Args:
      step: steps taken with this one.
      rate: its learning rate.
      metrics: 'loss' in nats and 'error' in percent.

    Raises:
      RunError: if the loss of the step before is not finite.
    """
    self.read()
    self._unread = (step, rate, metrics)

  def read(self) -> None:
    """Waits for the step dispatched last and reports it.

    Raises:
      RunError: if its loss is not finite.
    """
    if self._unread is None:
      return
    step, rate, metrics = self._unread
    self._unread = None
    loss, error = float(metrics['loss']), float(metrics['error'])
    if not math.isfinite(loss):
      raise RunError(
        f'the loss is {loss} at step {step:,}; {self.kept}. Start again with a lower optimizer.rate (in another '
        '--workdir, since that is another run), or look at the images.'
      )
    if self._began is None:
      print(f'first step done, loss {loss:.4f} ({self._chance:.4f} is chance)', flush=True)
      self._open_curves()
      self._began = (time.perf_counter(), step)
      self._window_began, self._waited = self._began[0], 0.0
    else:
      self._window.append((loss, error))
      if step % self._log_every == 0:
        self._report(step, rate, time.perf_counter())
    self._watch(step, loss)

  def _open_curves(self):
    if self._writer is not None or not distributed.is_main_process():
      return
    from clu import metric_writers  # imports TensorFlow, some seconds that nobody should wait for the first step

    self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(self._folder / 'tensorboard')))

  def _write(self, step, values):
    if self._writer:
      self._writer.write_scalars(step, values)

  def _report(self, step, rate, now):
    seconds = now - self._window_began
    loss, error = (sum(values) / len(values) for values in zip(*self._window, strict=True))
    images_per_second = len(self._window) * self._batch_size / seconds
    share_waited = 100 * self._waited / seconds
    began, began_step = self._began
    left = (now - began) / (step - began_step) * (self._last_step - step)
    print(
      f'step {step:,}/{self._last_step:,}  epoch {step * self._batch_size / self._epoch_size:.1f}  '
      f'loss {loss:.4f}  error {error:.1f} %  rate {rate:g}  {images_per_second:.1f} images/s  '
      f'waiting for data {share_waited:.1f} %  {datetime.timedelta(seconds=round(left))} left',
      flush=True,
    )
    self._write(
      step,
      {
        'train/loss': loss,
        'train/error': error,
        'train/rate': rate,
        'speed/images_per_second': images_per_second,
        'speed/waiting_for_data_percent': share_waited,
      },
    )
    self._window, self._window_began, self._waited = [], now, 0.0

  def _watch(self, step, loss):
    self._losses.append(loss)
    if self._warned or len(self._losses) < CHANCE_WINDOW:
      return
    losses = list(self._losses)
    halves = [sum(half) / len(half) for half in (losses[: CHANCE_WINDOW // 2], losses[CHANCE_WINDOW // 2 :])]
    if all(abs(mean - self._chance) < 0.01 * self._chance for mean in halves):  # a run that learns passes through
      self._warned = True
      print(
        f'step {step:,}: the loss has stood at {halves[-1]:.4f} for {CHANCE_WINDOW} steps, which is ln(classes): every '
        'class is predicted alike. On ImageNet that lasts for some thousand steps. Elsewhere the usual reasons are '
        'initial weights too small for the scale of the input (model.init_std; pixels are 0-255), or a rate so high '
        'that the units died or so low that nothing moves (optimizer.rate).',
        flush=True,
      )

  def evaluated(self, step: int, results: dict[str, float]) -> None:
    """Reports an evaluation on the validation split."""
    print(
      f'step {step:,}  validation: top-1 error {results["top1_error"]:.2f} %, '
      f'top-5 error {results["top5_error"]:.2f} %, log-prob {results["log_prob"]:.4f}',
      flush=True,
    )
    self._open_curves()
    self._write(step, {f'validation/{name}': results[name] for name in ('top1_error', 'top5_error', 'log_prob')})

  def close(self) -> None:
    """Writes out the curves."""
    self._closed.set()
    if self._writer:
      self._writer.close()
