import json
import os

import numpy as np
import pytest

from alexnet_jax import workdir
from alexnet_jax.errors import UsageError
from alexnet_jax.statistics import Statistics
from configs import alexnet

STATISTICS = Statistics(np.zeros((96, 96, 3)), np.eye(3))
NAMES = ('tench', 'English springer')


def test_a_run_is_described_by_its_folder(tmp_path):
  config = alexnet.get_config('cifar10')
  workdir.start(tmp_path / 'a' / 'b', config, STATISTICS, NAMES)
  folder = tmp_path / 'a' / 'b'
  assert workdir.flat(workdir.load_config(folder)) == workdir.flat(config)
  assert workdir.load_classes(folder) == list(NAMES)
  assert sorted(os.listdir(folder)) == ['classes.txt', 'config.json', 'statistics.npz']
  workdir.write_results(folder, {'step': 3})
  assert json.loads((folder / 'results.json').read_text()) == {'step': 3}


@pytest.mark.parametrize('field', ['num_steps', 'num_epochs', 'eval_every', 'mesh.tower', 'eval.ten_view', 'data.dir'])
def test_length_mesh_evaluation_and_place_may_change(tmp_path, field):
  config = alexnet.get_config()
  workdir.start(tmp_path, config, STATISTICS, NAMES)
  part, _, name = field.rpartition('.')
  target = config[part] if part else config
  target[name] = 'elsewhere' if field == 'data.dir' else not target[name] if name == 'ten_view' else 7
  workdir.start(tmp_path, config, STATISTICS, NAMES)
  assert workdir.flat(workdir.load_config(tmp_path))[field] == target[name]


def test_anything_else_is_named_and_the_run_is_left_alone(tmp_path):
  config = alexnet.get_config()
  workdir.start(tmp_path, config, STATISTICS, NAMES)
  before = (tmp_path / 'config.json').read_bytes()
  config.optimizer.rate, config.seed = 0.5, 3
  with pytest.raises(UsageError, match=r'optimizer.rate: 0.001 there, 0.5 here; seed: 0 there, 3 here') as error:
    workdir.start(tmp_path, config, STATISTICS, NAMES)
  assert 'num_steps' not in str(error.value)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='cannot be written to'):
    workdir.start(tmp_path / 'file' / 'run', alexnet.get_config(), STATISTICS, NAMES)


def test_no_run_and_a_damaged_config_say_so(tmp_path):
  with pytest.raises(UsageError, match='holds no run'):
    workdir.load_config(tmp_path)
  (tmp_path / 'config.json').write_text('{"half": ')
  with pytest.raises(UsageError, match='damaged'):
    workdir.load_config(tmp_path)


@pytest.mark.parametrize(
  ('name', 'variants', 'expected'),
  [('digits', (), 'runs/digits'), ('imagenette/full-size-v2', ('a', 'b'), 'runs/imagenette_full-size-v2-a-b')],
)
def test_the_default_folder_is_named_by_data_and_variants(name, variants, expected):
  config = alexnet.get_config()
  config.data.name, config.variants = name, variants
  assert str(workdir.default(config)) == expected
