"""Power losses during the training of a small network, simulated from a record of its file operations."""

import collections
import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.runs import curves, run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime import atomic_files
from alexnet_jax.training import run_setup
from alexnet_jax.training.progress import Progress
from tests.system import disk_record
from tests.system.disk_record import Disk
from tests.system.test_faults import SMALL

ROOT = pathlib.Path(__file__).parents[2]
NUM_CUTS = 100


def record(log, *arguments):
  """Trains under strace, and returns the calls of `disk_record.read_calls`."""
  command = [*disk_record.command(log), sys.executable, 'main.py', *SMALL, '--config.checkpoint_every=2', *arguments]
  subprocess.run(command, cwd=ROOT, env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'}, check=True)
  return list(disk_record.read_calls(log))


def resume(config, folder):
  """Starts a run like `loop.train`, and returns the number of steps in the checkpoint that it resumes from."""
  setup = run_setup.prepare(config, folder)
  with (
    jax.set_mesh(setup.mesh),
    run_folder.exclusive_lock(folder),
    contextlib.closing(Checkpoints(folder)) as checkpoints,
    contextlib.closing(Progress(folder, config, 10, len(setup.train), setup.last_step)) as progress,
  ):
    run_setup.write_metadata(setup)
    _, first_step, _ = run_setup.restore_or_initialise(setup, checkpoints, progress)
  curves.read_curves(folder)
  run_folder.load_results(folder, first_step)
  return first_step


@pytest.mark.soak
@pytest.mark.skipif(not disk_record.is_available(), reason='strace is missing, or must not trace processes here')
def test_a_run_resumes_after_a_power_loss_at_any_moment(data_dir, tmp_path):
  """The record contains a run of 9 steps, which then resumes until step 18."""
  folder, flags = tmp_path / 'run', (f'--config.data.dir={data_dir}', f'--workdir={tmp_path / "run"}')
  calls = [
    call
    for num_steps in (9, 18)
    for call in record(tmp_path / f'{num_steps}.log', f'--config.num_steps={num_steps}', *flags)
  ]
  config = run_folder.load_config(folder)
  config.mesh.data = config.mesh.tower = 1
  complete = Disk(folder)
  changes = [index for index, call in enumerate(calls) if complete.apply(*call)]
  complete.write(tmp_path / 'simulated')
  assert disk_record.contents(tmp_path / 'simulated') == disk_record.contents(folder)

  rng, disk, saved, num_behind = random.Random(0), Disk(folder), [0], collections.Counter()
  cuts = set(rng.sample(changes, NUM_CUTS))
  for index, call in enumerate(calls):
    disk.apply(*call)
    saved += [step for step in disk.checkpoints() if step > saved[-1]]
    for is_ordered in (True, False) if index in cuts else ():
      after = tmp_path / f'after-{index}-{is_ordered}'
      disk.write(after, rng, is_ordered)
      step = resume(config, after)
      assert step in saved[-2:], (after, saved)
      num_behind[step != saved[-1]] += 1
      shutil.rmtree(after)
  print(
    f'{len(changes)} changes and syncs; {num_behind.total()} states after a power loss: {num_behind[False]} resume '
    f'from the newest checkpoint, {num_behind[True]} from the one before it'
  )


def test_a_file_is_on_the_disk_before_it_replaces_another_one(tmp_path, monkeypatch):
  path, synced = tmp_path / 'file.txt', []
  path.write_text('previous')
  monkeypatch.setattr(atomic_files, 'sync', lambda file: synced.append((file.name, path.read_text())))
  with atomic_files.atomic_write(path) as partial:
    partial.write_text('new')
  assert synced == [(partial.name, 'previous'), (tmp_path.name, 'new')]


def test_all_files_of_a_checkpoint_are_on_the_disk_before_it_is_complete(tmp_path, one_device, monkeypatch):
  synced, folder = [], tmp_path / 'checkpoints'
  monkeypatch.setattr(atomic_files, 'sync', lambda path: synced.append((path, (folder / '3').exists())))
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(3, {'x': jnp.arange(4)}, {})
  before = {path.relative_to(folder).parts[1:] for path, is_complete in synced if not is_complete and path != tmp_path}
  added_on_completion = ('commit_success.txt',)
  written = {path.relative_to(folder / '3').parts for path in (folder / '3').rglob('*')}
  assert len(written) > 5
  assert written <= before | {added_on_completion}
  assert (folder, True) in synced  # the name of the checkpoint
