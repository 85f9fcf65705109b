import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import jax
import numpy as np
import PIL
import pytest

from alexnet_jax.kernels import dispatch, onednn
from alexnet_jax.runs import environment
from tests.conftest import mesh, small_config
from tests.training.test_loop import assert_bit_equal, final_state

ROOT = pathlib.Path(__file__).parents[2]


def test_the_environment_has_versions_devices_and_switches(train_source):
  described = environment.describe(mesh(2, 2), train_source)
  assert described['python'] == platform.python_version()
  assert (described['jax'], described['numpy'], described['pillow']) == (
    jax.__version__,
    np.__version__,
    PIL.__version__,
  )
  assert all(described[name] for name in environment.PACKAGES if name != 'alexnet_jax')  # which need not be installed
  assert described['devices'] == '4 x cpu, mesh data 2 x tower 2'
  assert described['fast_kernels'] == dispatch.is_enabled()
  assert described['xla_flags'] == os.environ['XLA_FLAGS']
  assert described['dataset'] == 'digits/1.0.0'
  assert not [value for value in described.values() if isinstance(value, dict | list)]  # flat
  assert json.loads(json.dumps(described)) == described


def test_the_commit_is_that_of_this_checkout_and_of_no_other(train_source, tmp_path, monkeypatch):
  def git(folder, *arguments):
    return subprocess.run(['git', '-C', folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()

  folder = tmp_path / 'alexnet_jax' / 'runs'
  folder.mkdir(parents=True)
  monkeypatch.setattr(environment, '__file__', str(folder / 'environment.py'))
  assert environment.describe(mesh(1, 1), train_source)['commit'] is None
  git(tmp_path, 'init', '--quiet')
  (tmp_path / 'other.py').write_text('')
  git(tmp_path, 'add', 'other.py')
  commit = ('-c', 'user.name=a', '-c', 'user.email=a@example.org', 'commit', '--quiet', '--message=a')
  git(tmp_path, *commit)
  assert (
    environment.describe(mesh(1, 1), train_source)['commit'] is None
  )  # installed in the checkout of another project
  (folder / 'environment.py').write_text('')
  git(tmp_path, 'add', 'alexnet_jax')
  git(tmp_path, *commit)
  expected = git(tmp_path, 'rev-parse', 'HEAD')
  assert environment.describe(mesh(1, 1), train_source)['commit'] == expected
  (folder / 'environment.py').write_text('changed')
  assert environment.describe(mesh(1, 1), train_source)['commit'] == f'{expected}-dirty'
  assert environment.commit(num_digits=10) == f'{expected[:10]}-dirty'
  git(tmp_path, *commit[:-1], '--message=b', '--all')
  (tmp_path / 'RESULTS.md').write_text('measured')
  git(tmp_path, 'add', 'RESULTS.md')
  assert not environment.commit().endswith('-dirty')  # results change no numbers
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'alexnet.py').write_text('')
  git(tmp_path, 'add', 'configs')
  assert environment.commit().endswith('-dirty')


def test_the_fingerprint_of_a_dataset_depends_on_its_images_but_not_on_its_folder(train_source, tmp_path, monkeypatch):
  expected = environment.describe(mesh(1, 1), train_source)['dataset_fingerprint']
  shutil.copy(pathlib.Path(train_source.directory) / 'dataset_info.json', tmp_path)
  monkeypatch.setattr(train_source, 'directory', tmp_path)
  assert environment.describe(mesh(1, 1), train_source)['dataset_fingerprint'] == expected
  info = json.loads((tmp_path / 'dataset_info.json').read_text())
  info['splits'][0]['numBytes'] = str(int(info['splits'][0]['numBytes']) + 1)  # an image with another encoding
  (tmp_path / 'dataset_info.json').write_text(json.dumps(info))
  assert environment.describe(mesh(1, 1), train_source)['dataset_fingerprint'] != expected


def test_training_in_several_environments_is_recorded_by_its_first_steps(train_source, tmp_path):
  def train(first_step, num_data):
    environment.record_training(tmp_path, mesh(num_data, 1), train_source, first_step)
    return [(entry['first_step'], entry['devices'][:1]) for entry in environment.load(tmp_path)['training']]

  assert train(0, 1) == [(0, '1')]
  assert train(4, 1) == [(0, '1')]  # the same environment
  assert train(8, 2) == [(0, '1'), (8, '2')]
  assert train(12, 1) == [(0, '1'), (8, '2'), (12, '1')]
  environment.record_evaluation(tmp_path, mesh(1, 1), train_source, 'results.json')
  assert train(8, 1) == [(0, '1')]  # steps 8 to 12 were lost, and are repeated in the first environment
  environment.record_evaluation(tmp_path, mesh(2, 1), train_source, 'results-other.json')
  evaluations = environment.load(tmp_path)['evaluation']
  assert {name: entry['devices'][:1] for name, entry in evaluations.items()} == {
    'results.json': '1',
    'results-other.json': '2',
  }
  assert train(0, 2) == [(0, '2')]  # another run


@pytest.mark.parametrize(
  'content',
  [
    '',
    '[]',
    '{"training": [{}]}',
    '{"training": [3], "evaluation": {}}',
    '{"training": [{"first_step": 1e999}], "evaluation": {}}',
    '{"training": [], "evaluation": 3}',
    '[' * 100_000,
    '\xff',
  ],
  ids=range(8),
)
def test_a_damaged_file_is_replaced(content, train_source, tmp_path):
  (tmp_path / environment.FILE).write_text(content, 'latin-1')
  environment.record_training(tmp_path, mesh(1, 1), train_source, 4)
  assert [entry['first_step'] for entry in environment.load(tmp_path)['training']] == [4]


@pytest.mark.slow
def test_a_training_is_repeated_bit_for_bit(data_dir, tmp_path):
  """Two processes of main.py one after the other, compiled as for users: with fast kernels, and oneDNN on a CPU."""
  settings = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS', 'JAX_COMPILATION_CACHE_DIR')  # of tests/conftest.py
  variables = {name: value for name, value in os.environ.items() if name not in settings}
  config, checkpoints, recorded = small_config(data_dir), [], []
  config.num_steps = 40
  for name in ('first', 'second'):
    flags = [f'--config.{field}={config[field]}' for field in ('batch_size', 'num_steps')]
    flags += [f'--config.model.{field}={config.model[field]}' for field in ('image_size', 'width')]
    flags += [f'--config.data.dir={data_dir}', '--config.data.test_split=test[:64]', '--config.eval.ten_view=False']
    command = [sys.executable, 'main.py', '--config=configs/alexnet.py', *flags]
    subprocess.run([*command, f'--workdir={tmp_path / name}'], cwd=ROOT, env=variables, check=True, capture_output=True)
    checkpoints.append(final_state(config, tmp_path / name))
    recorded.append(environment.load(tmp_path / name))
  assert_bit_equal(*checkpoints)
  assert (tmp_path / 'first' / 'results.json').read_bytes() == (tmp_path / 'second' / 'results.json').read_bytes()
  assert recorded[0] == recorded[1]
  (entry,) = recorded[0]['training']
  assert (entry['fast_kernels'], entry['onednn']) == (True, onednn.is_available())
