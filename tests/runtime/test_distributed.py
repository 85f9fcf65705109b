"""Two processes of one device each, on this machine: their batches, a common run, and the loss of one of them."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from alexnet_jax.models.registry import build
from alexnet_jax.runs import checkpoints
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.distributed import ProcessInfo
from alexnet_jax.runtime.errors import RunError, UsageError
from alexnet_jax.training import loop, optimizer, step
from tests.conftest import mesh, small_config

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 3


def work(process_id, port, axis, data_dir, folder):
  """Writes the batches and the results of one process; port 0 means that it is the only process."""
  import jax

  jax.config.update('jax_num_cpu_devices', 1)
  if port:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'127.0.0.1:{port}', 2, process_id)
  from alexnet_jax.data import pipeline, sources
  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.evaluation.trained_model import TrainedModel
  from alexnet_jax.models import device_mesh
  from alexnet_jax.models.registry import build
  from configs import alexnet

  config = alexnet.get_config()
  config.data.dir, config.batch_size, config.eval.batch_size = data_dir, 8, 14
  config.model.image_size, config.model.width, config.augment.mirror = 64, 1 / 16, True
  num_data, num_tower = {'none': (1, 1), 'data': (2, 1), 'tower': (1, 2)}[axis]
  mesh = device_mesh.make_mesh(num_data, num_tower, num_towers=2, batches={'batch_size': 8, 'eval.batch_size': 14})
  train, test = sources.open_splits(config.data, 96, ['train', 'test[:101]'])  # 101 = 7 * 14 + 3
  shard = device_mesh.data_shard(mesh)
  dataset = pipeline.training_dataset(train, np.eye(3), config, num_colour_steps=99, shard=shard)
  batches = [dataset[5 + step] for step in range(NUM_STEPS)]
  np.savez(folder / f'batches{process_id}.npz', **{f'{s}-{k}': v for s, b in enumerate(batches) for k, v in b.items()})
  with jax.set_mesh(mesh):
    network = build(config.model, 10)
    params = jax.jit(network.init)(jax.random.key(0))
  mean_image = np.full((96, 96, 3), 60, np.float32)
  untrained = TrainedModel(network, params, mean_image, test.class_names, 0, config.model, mesh)
  tally = evaluate.count_errors(evaluate.predict_split(untrained, test, config, 'centre'), test.class_names)
  results = tally.result() | {'num_examples': tally.num_examples}
  (folder / f'results{process_id}.json').write_text(json.dumps(results))


def start(axis, data_dir, folder):
  """Runs one process, or two along an axis of the mesh, and returns the batches and results of each."""
  folder.mkdir()
  num_processes, port = (1, 0) if axis == 'none' else (2, free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(index), str(port), axis, str(data_dir), str(folder)],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(num_processes)
  ]
  try:
    for process in processes:
      _, stderr = process.communicate(timeout=300)
      assert process.returncode == 0, stderr
  finally:
    for process in processes:
      process.kill()
  batches = []
  for index in range(num_processes):
    with np.load(folder / f'batches{index}.npz') as arrays:
      batches.append(dict(arrays))
  return batches, [json.loads((folder / f'results{index}.json').read_text()) for index in range(num_processes)]


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@pytest.fixture(scope='module')
def one_process(config, tmp_path_factory):
  """The batches and results of a single process."""
  return start('none', config.data.dir, tmp_path_factory.mktemp('one') / 'run')


@pytest.fixture(scope='module')
def config(data_dir):
  from configs import alexnet

  config = alexnet.get_config()
  config.data.dir = str(data_dir)
  return config


def assert_same_results(all_results, one_process):
  _, (expected,) = one_process
  for results in all_results:
    assert results['num_examples'] == 101
    assert results == {name: x if name == 'confused' else pytest.approx(x, rel=1e-5) for name, x in expected.items()}


@pytest.mark.slow
def test_processes_along_the_data_axis_read_parts_of_the_batch(config, one_process, tmp_path):
  batches, results = start('data', config.data.dir, tmp_path / 'run')
  ((whole,), _) = one_process
  for name, array in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in batches]), array, err_msg=name)
    assert len(batches[0][name]) == len(batches[1][name]) == 4
  assert_same_results(results, one_process)


@pytest.mark.slow
def test_processes_along_the_tower_axis_read_the_same_batch(config, one_process, tmp_path):
  batches, results = start('tower', config.data.dir, tmp_path / 'run')
  ((whole,), _) = one_process
  for batch in batches:
    for name, array in whole.items():
      np.testing.assert_array_equal(batch[name], array, err_msg=name)
  assert_same_results(results, one_process)


# Identity of a process.


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ((False, 'a:1', None, None), r'required together; add --num_processes and --process_id\.'),
    ((False, None, 2, 1), r'required together; add --coordinator\.'),
    ((False, 'a:1', 0, 0), r'--num_processes=0 must be 1 or more'),
    ((False, 'a:1', 2, 2), r'--process_id=2 must be 0 to 1'),
    ((False, 'a:1', 2, -1), r'--process_id=-1 must be 0 to 1'),
    ((False, 'a', 2, 1), r'--coordinator=a must be HOST:PORT'),
    ((False, 'a:70000', 2, 1), r'must be HOST:PORT'),
    ((True, None, 2, None), r'omit --coordinator, '),
  ],
)
def test_inconsistent_flags_are_usage_errors(flags, message):
  with pytest.raises(UsageError, match=message):
    distributed.process_info(*flags)


def test_the_identity_comes_from_the_flags_or_from_jax():
  assert distributed.process_info(False, None, None, None) is None
  assert distributed.process_info(False, 'a:1', 1, 0) is None  # the only process needs no connection
  assert distributed.process_info(False, '[::1]:99', 2, 1) == ProcessInfo('[::1]:99', 2, 1)
  assert distributed.process_info(True, None, None, None) == ProcessInfo()


@pytest.mark.parametrize(
  ('message', 'is_loss'),
  [
    ('UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:34177', True),
    ('Timed out while waiting for async_write_complete barrier.', True),
    ('a checkpoint cannot be written to runs/a/checkpoints (INTERNAL: Barrier failed because', True),
    ('a checkpoint cannot be written to runs/a/checkpoints (No space left on device)', False),
  ],
)
def test_the_loss_of_a_process_is_recognised_by_the_message_of_an_error(message, is_loss):
  """These are messages of JAX and Orbax after other processes were killed, at different moments."""
  assert distributed._is_loss(RuntimeError(message)) == is_loss
  converted = RunError('a checkpoint cannot be written to runs/igloo')
  converted.__cause__ = RuntimeError(message)
  assert distributed._is_loss(converted) == is_loss


def test_an_error_of_the_user_is_no_loss_of_a_process_whatever_it_names():
  for error in (UsageError('data.classes contains igloo'), RunError('runs/nccl/environment.json cannot be written')):
    assert not distributed._is_loss(error)


# The parent process, with children that do not compute.


def run_parent(folder, child, send=lambda parent: None):
  """Runs a program in a child process; returns its exit status and the lines that both print to standard error.

  Args:
    folder: an empty folder.
    child: the program.
    send: called with the parent once the child has printed a line.
  """
  program = (
    'import os, signal, sys, time\n'
    'from alexnet_jax.runtime import distributed, exit_status\n'
    'if distributed.is_child():\n'
    f'  {child}\n'
    'with exit_status.exit_on_errors():\n'
    '  sys.exit(distributed.run_in_child())\n'
  )
  (folder / 'program.py').write_text(program)
  parent = subprocess.Popen(
    [sys.executable, '-u', folder / 'program.py'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  parent.stdout.readline()
  send(parent)
  _, errors = parent.communicate(timeout=60)
  return parent.returncode, errors.splitlines()


@pytest.mark.parametrize(
  ('child', 'status', 'message'),
  [
    ('sys.exit(0)', 0, None),
    ('sys.exit(3)', 3, None),
    ('os.abort()', 1, r'error: The processes did not connect within 300 s\. Start all of them .* --process_id\.'),
    ('os.write(0, distributed.CONNECTED), os.abort()', 1, r'error: Lost another process of the run, .* checkpoint\.'),
    (
      'os.write(0, distributed.CONNECTED), sys.exit(distributed.LOST)',
      1,
      r'error: Lost another process of the run, .*',
    ),
    ('os.kill(os.getpid(), signal.SIGKILL)', 1, r'error: The process was ended by SIGKILL\. Start all processes .*'),
  ],
)
def test_the_parent_reports_how_its_child_ended(child, status, message, tmp_path):
  found, lines = run_parent(tmp_path, child)
  assert found == status
  assert len(lines) == (message is not None)
  assert message is None or re.fullmatch(message, lines[0])


WAIT_FOR_PARENT = "print('ready'), distributed._end_with_parent()"


def test_the_parent_forwards_a_signal(tmp_path):
  child = "signal.signal(signal.SIGTERM, lambda *_: os._exit(75)), print('ready'), time.sleep(60)"
  status, lines = run_parent(tmp_path, child, lambda parent: parent.send_signal(signal.SIGINT))
  assert (status, lines) == (75, ['SIGINT received; saving before exit. Repeat it to exit immediately.'])


def test_the_second_signal_ends_a_child_that_does_not_react(tmp_path):
  def send_twice(parent):
    parent.send_signal(signal.SIGTERM)
    assert parent.stderr.readline().startswith('SIGTERM received')
    parent.send_signal(signal.SIGTERM)

  child = "signal.signal(signal.SIGTERM, signal.SIG_IGN), print('ready'), time.sleep(60)"
  assert run_parent(tmp_path, child, send_twice) == (75, ['Stopped. Run the same command to resume.'])


def test_a_child_ends_with_its_parent(tmp_path):
  """Standard output is closed once both have ended."""
  assert run_parent(tmp_path, WAIT_FOR_PARENT, lambda parent: parent.kill())[0] == -signal.SIGKILL


# A run of two processes from the command line, and the loss of one of them.


def start_command(folder, data_dir, *arguments):
  """Starts main.py in two processes of one device each."""
  address = f'127.0.0.1:{free_port()}'
  environment = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONUNBUFFERED': '1'}
  return [
    subprocess.Popen(
      [
        *(sys.executable, 'main.py', '--config=configs/alexnet.py', f'--config.data.dir={data_dir}'),
        *(f'--workdir={folder}', '--config.model.image_size=64', '--config.model.width=0.0625'),
        *('--config.batch_size=8', '--config.eval.batch_size=32', '--config.log_every=1'),
        *('--config.eval.ten_view=False', *arguments),
        *(f'--coordinator={address}', '--num_processes=2', f'--process_id={index}'),
      ],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      pipesize=2**20,  # XLA may log more than the default size while a test reads only the output
    )
    for index in range(2)
  ]


def run_command(*arguments, status=0):
  """Runs main.py in two processes until it finishes, and returns (output, errors) of each process."""
  processes = start_command(*arguments)
  try:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      outputs = list(pool.map(lambda process: process.communicate(timeout=300), processes))
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [status, status], outputs
  return outputs


class Survivor(NamedTuple):
  """The process that remains after the other one received a signal after step 12."""

  printed_losses: dict[int, float]  # of the run until then, by step
  status: int
  errors: str
  seconds: float  # from the signal to the end of this process


def lose_process(index, signal_number, folder, data_dir, *arguments):
  processes = start_command(
    folder, data_dir, '--config.num_steps=1000000', '--config.checkpoint_every=5', '--config.mesh.tower=2', *arguments
  )
  survivor, printed_losses = processes[1 - index], {}
  try:
    for line in processes[0].stdout:
      if match := re.match(r'step (\d+)/.* loss ([\d.]+) ', line):
        printed_losses[int(match[1])] = float(match[2])
      if 12 in printed_losses:
        break
    else:
      raise AssertionError(processes[0].stderr.read())
    pid, start_time = processes[index].pid, time.monotonic()
    if signal_number == signal.SIGSTOP:  # of the child, which computes
      pid = int(pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text())
    os.kill(pid, signal_number)
    _, errors = survivor.communicate(timeout=120)
    seconds = time.monotonic() - start_time
    if signal_number == signal.SIGSTOP:
      os.kill(pid, signal.SIGKILL)
    return Survivor(printed_losses, survivor.returncode, errors, seconds)
  finally:
    for process in processes:
      process.kill()


def assert_error_message(survivor, heartbeat):
  """JAX may print more before the message."""
  assert survivor.status == 1
  last_line = survivor.errors.rstrip().splitlines()[-1]
  assert re.fullmatch(r'error: Lost another process of the run, .* to resume from the newest checkpoint\.', last_line)
  assert survivor.seconds < heartbeat + 10


def train_in_one_process(data_dir, folder, num_steps):
  config = small_config(data_dir)
  config.num_steps, config.checkpoint_every, config.log_every, config.eval.ten_view = num_steps, 5, 1, False
  return loop.train_and_evaluate(config, folder)


def losses(folder):
  """Reads the training curve of a run, {step: loss}."""
  events = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'tensors': 0})
  events.Reload()
  return {event.step: tensor_util.make_ndarray(event.tensor_proto).item() for event in events.Tensors('train/loss')}


def parameters(folder, data_dir):
  current, config = mesh(1, 1), small_config(data_dir)
  with jax.set_mesh(current):
    abstract = step.abstract_state(build(config.model, 10), optimizer.make_optimizer(config.optimizer, last_step=1))
    state, _ = Checkpoints(folder).restore(lambda _: abstract, current)
  return jax.tree.map(np.asarray, (state.params, state.opt_state))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder of the runs."""
  return tmp_path_factory.mktemp('distributed')


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize(('signal_number', 'heartbeat'), [(signal.SIGKILL, 60), (signal.SIGSTOP, 4)])
def test_the_loss_of_any_process_ends_the_others_with_a_message(index, signal_number, heartbeat, tmp_path):
  """The processes also prepare the digits."""
  data_dir = tmp_path / 'tfds'
  data_dir.mkdir()
  survivor = lose_process(index, signal_number, tmp_path / 'run', data_dir, f'--config.heartbeat={heartbeat}')
  assert_error_message(survivor, heartbeat)


def run_alone(*flags):
  """Runs main.py in one process that expects others, and returns its exit status and last line."""
  command = [sys.executable, 'main.py', '--config=configs/alexnet.py', *flags]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  return done.returncode, done.stderr.splitlines()[-1]


def test_without_a_cluster_the_processes_cannot_be_detected():
  status, last_line = run_alone('--distributed')
  assert status == 2
  assert re.match(r'error: --distributed detects no SLURM, .*; start every process with --coordinator', last_line)


def test_a_port_in_use_is_a_run_error():
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
    status, last_line = run_alone(f'--coordinator={address}', '--num_processes=2', '--process_id=0')
  assert status == 1
  assert re.fullmatch(r'error: The processes cannot be connected \(.*\); choose another port\.', last_line)


@pytest.mark.slow
@pytest.mark.parametrize('signalled', [0, 1])
def test_both_processes_stop_if_one_is_signalled(signalled, data_dir, tmp_path):
  processes = start_command(tmp_path, data_dir, '--config.num_steps=1000000', '--config.mesh.tower=2')
  try:
    next(line for line in processes[0].stdout if line.startswith('step 12/'))
    processes[signalled].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [75, 75], outputs
  assert f'Stopped after step {checkpoints.newest_step(tmp_path):,} of 1,000,000' in outputs[0][1]
  assert checkpoints.newest_step(tmp_path) > 12


@pytest.fixture(scope='module')
def together(folder, data_dir):
  """A run of ten steps in two processes."""
  run_command(folder / 'two', data_dir, '--config.num_steps=10', '--config.mesh.tower=2')


@pytest.fixture(scope='module')
def alone(folder, data_dir):
  """The results of a run of 15 steps in one process."""
  return train_in_one_process(data_dir, folder / 'one', 15)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(together, alone, folder):
  expected = losses(folder / 'one')
  assert losses(folder / 'two') == {number: pytest.approx(expected[number], rel=1e-5) for number in range(1, 11)}


@pytest.fixture(scope='module')
def resumed(together, alone, folder, data_dir):
  """Resumes for five steps: in one process from a checkpoint of two processes, and in two from one of one process.

  Returns what the two processes print.
  """
  for first, second in (('two', 'one'), ('one', 'two')):
    ignored = shutil.ignore_patterns('15', 'tensorboard')
    shutil.copytree(folder / first, folder / f'{first} then {second}', ignore=ignored)
  train_in_one_process(data_dir, folder / 'two then one', 15)
  return run_command(folder / 'one then two', data_dir, '--config.num_steps=15', '--config.mesh.data=2')


@pytest.mark.slow
def test_one_process_resumes_from_checkpoints_of_two_and_two_from_those_of_one(resumed, alone, folder, data_dir):
  expected_losses = losses(folder / 'one')
  for run in ('two then one', 'one then two'):
    assert losses(folder / run) == {
      number: pytest.approx(expected_losses[number], rel=1e-5) for number in range(11, 16)
    }
    trees = (jax.tree.leaves(parameters(folder / name, data_dir)) for name in (run, 'one'))
    for x, y in zip(*trees, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
    results = json.loads((folder / run / 'results.json').read_text())
    assert results['num_examples'] == 360
    log_prob = pytest.approx(alone['centre']['log_prob'], rel=1e-5)
    assert results['centre'] == alone['centre'] | {'log_prob': log_prob}


@pytest.mark.slow
def test_images_that_one_process_skips_are_counted(damaged_digits, tmp_path):
  """Of each batch of 32 test images, process 0 reads the first half, which includes the damaged one."""
  flags = ('--config.num_steps=3', '--config.mesh.data=2', '--config.data.unreadable=skip')
  outputs = run_command(tmp_path / 'run', damaged_digits, *flags, status=3)
  assert ["skipped image 8 of split 'test'" in errors for _, errors in outputs] == [True, False]
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert (results['num_examples'], results['skipped']) == (359, {'train[:90%]': 1, 'test': 1})


@pytest.mark.slow
def test_only_process_0_prints(resumed):
  (output, _), other = resumed
  assert 'step 15/15' in output
  assert other == ('', '')


if __name__ == '__main__':
  process_id, port, axis, data_dir, folder = sys.argv[1:]
  work(int(process_id), int(port), axis, data_dir, pathlib.Path(folder))
