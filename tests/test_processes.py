"""Two processes of one device each, on this machine: who reads what, and evaluation together."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 3


def work(process_index, port, axis, data_dir, place):
  """What each process does; with no port there is one process."""
  import jax

  jax.config.update('jax_num_cpu_devices', 1)
  if port:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'127.0.0.1:{port}', 2, process_index)
  from alexnet_jax import data, evaluate, model, towers
  from alexnet_jax.trained import Trained
  from configs import alexnet

  config = alexnet.get_config()
  config.data.dir, config.batch_size, config.eval.batch_size = data_dir, 8, 14
  config.model.image_size, config.model.width, config.augment.mirror = 64, 1 / 16, True
  num_data, num_tower = {'none': (1, 1), 'data': (2, 1), 'tower': (1, 2)}[axis]
  mesh = towers.make_mesh(num_data, num_tower, num_towers=2, batches={'batch_size': 8, 'eval.batch_size': 14})
  train, test = data.open_splits(config.data, 96, ['train', 'test[:101]'])  # 101 = 7 * 14 + 3
  share = towers.data_share(mesh)
  stream = data.training_batches(train, np.eye(3), config, first_step=5, colour_steps=99, share=share)
  batches = [next(stream) for _ in range(NUM_STEPS)]
  np.savez(
    place / f'batches{process_index}.npz', **{f'{s}-{k}': v for s, b in enumerate(batches) for k, v in b.items()}
  )
  with jax.set_mesh(mesh):
    network = model.build(config.model, 10)
    params = jax.jit(network.init)(jax.random.key(0))
  mean_image = np.full((96, 96, 3), 60, np.float32)
  untrained = Trained(network, params, mean_image, test.class_names, 0, config.model, mesh)
  tally = evaluate.score(evaluate.predict(untrained, test, config, 'centre'), test.class_names)
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


if __name__ == '__main__':
  index, port, axis, data_dir, place = sys.argv[1:]
  work(int(index), int(port), axis, data_dir, pathlib.Path(place))
