"""Two processes of one device each, on this machine: who reads what, a run together, and what follows a death."""

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
from alexnet_jax.runtime.distributed import Group, ProcessInfo
from alexnet_jax.runtime.errors import RunError, UsageError
from alexnet_jax.training import loop, step
from tests.conftest import mesh, small_config

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 3


def work(process_index, port, axis, data_dir, place):
  """What each process does; with no port there is one process."""
  import jax

  jax.config.update('jax_num_cpu_devices', 1)
  if port:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'127.0.0.1:{port}', 2, process_index)
  from alexnet_jax.data import pipeline, sources
  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.evaluation.trained_model import TrainedModel
  from alexnet_jax.models import towers
  from alexnet_jax.models.registry import build
  from configs import alexnet

  config = alexnet.get_config()
  config.data.dir, config.batch_size, config.eval.batch_size = data_dir, 8, 14
  config.model.image_size, config.model.width, config.augment.mirror = 64, 1 / 16, True
  num_data, num_tower = {'none': (1, 1), 'data': (2, 1), 'tower': (1, 2)}[axis]
  mesh = towers.make_mesh(num_data, num_tower, num_towers=2, batches={'batch_size': 8, 'eval.batch_size': 14})
  train, test = sources.open_splits(config.data, 96, ['train', 'test[:101]'])  # 101 = 7 * 14 + 3
  share = towers.data_shard(mesh)
  stream = pipeline.training_batches(train, np.eye(3), config, first_step=5, colour_steps=99, share=share)
  batches = [next(stream) for _ in range(NUM_STEPS)]
  np.savez(
    place / f'batches{process_index}.npz', **{f'{s}-{k}': v for s, b in enumerate(batches) for k, v in b.items()}
  )
  with jax.set_mesh(mesh):
    network = build(config.model, 10)
    params = jax.jit(network.init)(jax.random.key(0))
  mean_image = np.full((96, 96, 3), 60, np.float32)
  untrained = TrainedModel(network, params, mean_image, test.class_names, 0, config.model, mesh)
  tally = evaluate.count_errors(evaluate.predictions(untrained, test, config, 'centre'), test.class_names)
  results = tally.result() | {'num_examples': tally.num_examples}
  (place / f'results{process_index}.json').write_text(json.dumps(results))


def start(axis, data_dir, place):
  """Runs one process, or two with an axis of the mesh across them; returns their batches and results."""
  place.mkdir()
  count, port = (1, 0) if axis == 'none' else (2, free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(index), str(port), axis, str(data_dir), str(place)],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  try:
    for process in processes:
      _, stderr = process.communicate(timeout=300)
      assert process.returncode == 0, stderr
  finally:
    for process in processes:
      process.kill()
  batches = []
  for index in range(count):
    with np.load(place / f'batches{index}.npz') as arrays:
      batches.append(dict(arrays))
  return batches, [json.loads((place / f'results{index}.json').read_text()) for index in range(count)]


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory):
  return start('none', config.data.dir, tmp_path_factory.mktemp('alone') / 'run')


@pytest.fixture(scope='module')
def config(data_dir):
  from configs import alexnet

  config = alexnet.get_config()
  config.data.dir = str(data_dir)
  return config


def assert_same_results(found, alone):
  for results in found:
    assert results['num_examples'] == 101
    expected = alone[1][0]
    assert results == {name: x if name == 'confused' else pytest.approx(x, rel=1e-5) for name, x in expected.items()}


def test_with_the_data_axis_across_them_they_read_parts_of_the_batch(config, alone, tmp_path):
  batches, results = start('data', config.data.dir, tmp_path / 'run')
  ((whole,), _) = alone
  for name, array in whole.items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in batches]), array, err_msg=name)
    assert len(batches[0][name]) == len(batches[1][name]) == 4
  assert_same_results(results, alone)


def test_with_the_tower_axis_across_them_they_read_the_same(config, alone, tmp_path):
  batches, results = start('tower', config.data.dir, tmp_path / 'run')
  ((whole,), _) = alone
  for batch in batches:
    for name, array in whole.items():
      np.testing.assert_array_equal(batch[name], array, err_msg=name)
  assert_same_results(results, alone)


# Which process this is.


@pytest.mark.parametrize(
  ('flags', 'sentence'),
  [
    ((False, 'a:1', None, None), r'go together; add --num_processes and --process_id\.'),
    ((False, None, 2, 1), r'go together; add --coordinator\.'),
    ((False, 'a:1', 0, 0), r'--num_processes=0 must be 1 or more'),
    ((False, 'a:1', 2, 2), r'--process_id=2 must be 0 to 1'),
    ((False, 'a:1', 2, -1), r'--process_id=-1 must be 0 to 1'),
    ((False, 'a', 2, 1), r'--coordinator=a must be HOST:PORT'),
    ((False, 'a:70000', 2, 1), r'must be HOST:PORT'),
    ((True, None, 2, None), r'leave --coordinator, .* out'),
    ((True, None, None, None), r'finds no SLURM, .*; start every process with --coordinator'),
  ],
)
def test_flags_that_do_not_go_together_say_so(flags, sentence):
  with pytest.raises(UsageError, match=sentence):
    distributed.process_info(*flags)


def test_the_place_comes_from_the_flags_or_from_the_cluster(monkeypatch):
  assert distributed.process_info(False, None, None, None) is None
  assert distributed.process_info(False, '[::1]:99', 2, 1) == ProcessInfo('[::1]:99', 2, 1)
  slurm = {'JOB_ID': 5, 'STEP_NODELIST': 'node[07-09]', 'NTASKS': 6, 'PROCID': 3, 'LOCALID': 1, 'STEP_NUM_NODES': 3}
  for name, value in slurm.items():
    monkeypatch.setenv(f'SLURM_{name}', str(value))
  place = distributed.process_info(True, None, None, None)
  assert place == ProcessInfo(f'node07:{65535 - 2**12 + 1 + 5}', 6, 3, [1])


# How they talk, three of them in one process, without jax.


def meet(count, folder, heartbeat=60):
  """Returns the groups that processes see which have met."""
  address = f'127.0.0.1:{free_port()}'
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    return list(pool.map(lambda index: Group(ProcessInfo(address, count, index), heartbeat, folder), range(count)))


def say_goodbye(groups):
  for group in groups:
    group._tell('bye')


def test_they_wait_for_each_other(tmp_path):
  groups = meet(3, tmp_path)
  passed = []

  def walk(group):
    for point in range(20):
      group.wait()
      passed.append(point)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(walk, groups))
  assert len(passed) == 60
  for point in range(20):  # all are past a point before one is past the next but one
    assert max(i for i, p in enumerate(passed) if p == point) < min(
      [i for i, p in enumerate(passed) if p == point + 2], default=60
    )
  say_goodbye(groups)


@pytest.mark.parametrize('who', [{0}, {2}, {0, 1, 2}])
def test_they_stop_after_the_same_step_whoever_wants_to(who, tmp_path):
  """Each may be up to two steps ahead of the slowest, as in training, where a step needs all."""
  groups = meet(3, tmp_path)
  steps = [0, 0, 0]

  def walk(index):
    for number in range(1, 1000):
      while number > min(steps) + 2:
        time.sleep(0.0001)
      steps[index] = number
      time.sleep(0.0003 * index)
      if groups[index].stop_together(number, index in who and number >= 20 + index):
        return number
    raise AssertionError('nobody stopped')

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    ends = list(pool.map(walk, range(3)))
  assert len(set(ends)) == 1
  assert ends[0] > 20
  say_goodbye(groups)


def test_who_does_not_belong_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(distributed, 'START_SECONDS', 2)
  address = f'127.0.0.1:{free_port()}'
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(Group, ProcessInfo(address, 3, 0), 60, tmp_path)
    with pytest.raises(UsageError, match=r'process 0 counts 3 processes and process 1 counts 2; .* --num_processes'):
      Group(ProcessInfo(address, 2, 1), 60, tmp_path)
    second = pool.submit(Group, ProcessInfo(address, 3, 1), 60, tmp_path)
    time.sleep(0.5)
    with pytest.raises(UsageError, match=r'there is a process 1 already; .* --process_id of its own'):
      Group(ProcessInfo(address, 3, 1), 60, tmp_path)
    with pytest.raises(RunError, match=r'of 3 processes some have not come to port \d+ within 2 s: 2; start'):
      first.result()
    with pytest.raises(RunError, match=r'left before all processes had come; start all again'):
      second.result()


def test_nobody_at_the_coordinator_is_one_sentence(monkeypatch, tmp_path):
  monkeypatch.setattr(distributed, 'START_SECONDS', 0.5)
  address = f'127.0.0.1:{free_port()}'
  with pytest.raises(RunError, match=rf'process 0 cannot be reached at {address} within 0.5 s \(Connection refused\)'):
    Group(ProcessInfo(address, 2, 1), 60, tmp_path)
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(RunError, match=rf'cannot listen at port {port} \(Address already in use\); choose another'):
      Group(ProcessInfo(f'127.0.0.1:{port}', 2, 0), 60, tmp_path)


def test_the_error_of_one_ends_the_others(tmp_path):
  script = (
    'import pathlib, sys, time\n'
    'from alexnet_jax import processes\n'
    'from alexnet_jax.processes import Group, Place\n'
    'processes.GRACE_SECONDS = 0.5\n'
    f"group = Group(Place('127.0.0.1:{free_port()}', 3, int(sys.argv[1])), 60, pathlib.Path('nowhere'))\n"
    "if sys.argv[1] == '1': sys.stderr.write('error: mine.\\n'), group.leave(2)\n"
    'time.sleep(60)'
  )
  started = [
    subprocess.Popen([sys.executable, '-c', script, str(index)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for index in range(3)
  ]
  errors = [process.communicate(timeout=60)[1] for process in started]
  assert [process.returncode for process in started] == [1, 2, 1]
  assert errors[1] == 'error: mine.\n'
  for error in (errors[0], errors[2]):
    assert error == (
      '\nerror: process 1 of 3 has ended with an error, which it says itself; there is no checkpoint yet: '
      'start all again to go on.\n'
    )


# A run together, from the command line, and what follows a death.


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
    )
    for index in range(2)
  ]


def run_command(*arguments):
  """Runs it to its end; returns (output, errors) of each process."""
  started = start_command(*arguments)
  try:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      said = list(pool.map(lambda process: process.communicate(timeout=300), started))
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  return said


class Death(NamedTuple):
  """What came of a run, one of whose processes got a signal after step 12."""

  printed: dict[int, float]  # losses, by step
  status: int  # of the survivor
  errors: str
  seconds: float  # from the signal to the end of the survivor


def run_to_death(victim, by, folder, data_dir, *arguments):
  started = start_command(
    folder, data_dir, '--config.num_steps=1000000', '--config.checkpoint_every=5', '--config.mesh.tower=2', *arguments
  )
  survivor, printed = started[1 - victim], {}
  try:
    for line in started[0].stdout:
      if found := re.match(r'step (\d+)/.* loss ([\d.]+) ', line):
        printed[int(found[1])] = float(found[2])
      if 12 in printed:
        break
    else:
      raise AssertionError(started[0].stderr.read())
    began = time.monotonic()
    os.kill(started[victim].pid, by)
    _, errors = survivor.communicate(timeout=120)
    return Death(printed, survivor.returncode, errors, time.monotonic() - began)
  finally:
    for process in started:
      process.kill()


def assert_one_sentence(death, victim, folder, seconds):
  assert death.status == 1
  assert re.findall(r'^error: (.*)$', death.errors, re.MULTILINE) == [
    f'process {victim} of 2 has died or cannot be reached; the newest checkpoint is that of step '
    f'{checkpoints.newest_step(folder)}: start all again to go on.'
  ]
  assert not any(trace in death.errors for trace in ('***', 'Fatal', 'Traceback'))
  assert death.seconds < seconds


def train_alone(data_dir, folder, num_steps):
  config = small_config(data_dir)
  config.num_steps, config.checkpoint_every, config.log_every, config.eval.ten_view = num_steps, 5, 1, False
  return loop.train_and_evaluate(config, folder)


def losses(folder):
  """Reads the curve of a run, {step: loss}."""
  events = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'tensors': 0})
  events.Reload()
  return {event.step: tensor_util.make_ndarray(event.tensor_proto).item() for event in events.Tensors('train/loss')}


def parameters(folder, data_dir):
  current, config = mesh(1, 1), small_config(data_dir)
  with jax.set_mesh(current):
    abstract = step.abstract_state(build(config.model, 10), step.hyperparameters(config.optimizer))
    state, _ = Checkpoints(folder).restore(abstract, current)
  return jax.tree.map(np.asarray, (state.params, state.opt_state))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Where the runs are, and the digits, which the two processes build."""
  folder = tmp_path_factory.mktemp('together')
  (folder / 'tfds').mkdir()
  return folder


@pytest.fixture(scope='module')
def death(place):
  return run_to_death(1, signal.SIGKILL, place / 'two', place / 'tfds')


def test_the_death_of_one_is_one_sentence_of_the_other(death, place):
  assert_one_sentence(death, 1, place / 'two', seconds=20)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize(('by', 'heartbeat'), [(signal.SIGKILL, 60), (signal.SIGSTOP, 4)])
def test_so_is_every_death(victim, by, heartbeat, data_dir, tmp_path):
  death = run_to_death(victim, by, tmp_path, data_dir, f'--config.heartbeat={heartbeat}')
  assert_one_sentence(death, victim, tmp_path, seconds=20)


@pytest.mark.slow
@pytest.mark.parametrize('told', [0, 1])
def test_where_one_is_told_to_stop_all_do(told, data_dir, tmp_path):
  started = start_command(tmp_path, data_dir, '--config.num_steps=1000000', '--config.mesh.tower=2')
  try:
    next(line for line in started[0].stdout if line.startswith('step 12/'))
    started[told].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120) for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [75, 75], said
  assert f'stopped after step {checkpoints.newest_step(tmp_path):,} of 1,000,000' in said[0][1]
  assert checkpoints.newest_step(tmp_path) > 12


@pytest.fixture(scope='module')
def continued(death, place):
  """Goes on for five steps: alone from what two have saved, and together from what one has saved."""
  last_step = checkpoints.newest_step(place / 'two') + 5
  results = train_alone(place / 'tfds', place / 'one', last_step)
  for first in ('two', 'one'):
    folder = place / f'{first} then {"one" if first == "two" else "two"}'
    shutil.copytree(place / first, folder, ignore=shutil.ignore_patterns(str(last_step), 'tensorboard'))
  train_alone(place / 'tfds', place / 'two then one', last_step)
  said = run_command(place / 'one then two', place / 'tfds', f'--config.num_steps={last_step}', '--config.mesh.data=2')
  return last_step, results, said


def test_two_processes_agree_with_one_and_go_on_for_each_other(death, continued, place):
  last_step, expected, _ = continued
  alone = losses(place / 'one')
  assert {number: loss for number, loss in death.printed.items() if number <= last_step - 5} == {
    number: pytest.approx(loss, abs=6e-5) for number, loss in alone.items() if number <= last_step - 5
  }
  for folder in ('two then one', 'one then two'):
    assert losses(place / folder) == {  # the first step of each start has no point
      number: pytest.approx(alone[number], rel=1e-5) for number in range(last_step - 3, last_step + 1)
    }
    trees = (jax.tree.leaves(parameters(place / of, place / 'tfds')) for of in (folder, 'one'))
    for x, y in zip(*trees, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
    results = json.loads((place / folder / 'results.json').read_text())
    assert results['num_examples'] == 360
    log_prob = pytest.approx(expected['centre']['log_prob'], rel=1e-5)
    assert results['centre'] == expected['centre'] | {'log_prob': log_prob}


def test_only_process_0_prints(continued):
  last_step, _, ((output, _), other) = continued
  assert f'step {last_step}/{last_step}' in output
  assert other == ('', '')


if __name__ == '__main__':
  index, port, axis, data_dir, place = sys.argv[1:]
  work(int(index), int(port), axis, data_dir, pathlib.Path(place))
