import json
import os

import numpy as np
import pytest

from alexnet_jax.runs import config_checks, run_folder
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.data.pixel_statistics import PixelStatistics
from configs import alexnet

STATISTICS = PixelStatistics(np.zeros((96, 96, 3)), np.eye(3), num_images=1437)
NAMES = ('tench', 'English springer')


def test_a_run_is_described_by_its_folder(tmp_path):
  config = alexnet.get_config('cifar10')
  folder = tmp_path / 'a' / 'b'
  run_folder.check_can_hold(folder, config)
  run_folder.write_description(folder, config, STATISTICS, NAMES)
  assert config_checks.flatten(run_folder.load_config(folder)) == config_checks.flatten(config)
  assert run_folder.load_classes(folder) == list(NAMES)
  assert sorted(os.listdir(folder)) == ['classes.txt', 'config.json', 'statistics.npz']
  run_folder.write_results(folder, {'step': 3})
  assert json.loads((folder / 'results.json').read_text()) == {'step': 3}


@pytest.fixture
def begun(tmp_path):
  """The folder of a run that has a checkpoint, and its config."""
  config = alexnet.get_config()
  run_folder.check_can_hold(tmp_path, config)
  run_folder.write_description(tmp_path, config, STATISTICS, NAMES)
  (tmp_path / 'checkpoints' / '40').mkdir(parents=True)
  return tmp_path, config


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('num_steps', 7),
    ('num_epochs', 7),
    ('heartbeat', 7),
    ('eval_every', 7),
    ('mesh.tower', 7),
    ('model.dtype', 'bfloat16'),
    ('eval.ten_view', False),
    ('data.dir', 'elsewhere'),
    ('data.unreadable', 'skip'),
  ],
)
def test_length_devices_precision_evaluation_and_place_may_change(begun, field, value):
  folder, config = begun
  config.update_from_flattened_dict({field: value})
  run_folder.check_can_hold(folder, config)
  run_folder.write_description(folder, config, STATISTICS, NAMES)
  assert config_checks.flatten(run_folder.load_config(folder))[field] == value


def test_anything_else_is_named_and_the_run_is_left_alone(begun):
  folder, config = begun
  before = (folder / 'config.json').read_bytes()
  config.optimizer.rate, config.seed = 0.5, 3
  with pytest.raises(UsageError, match=r'optimizer.rate: 0.001 there, 0.5 here; seed: 0 there, 3 here') as error:
    run_folder.check_can_hold(folder, config)
  assert 'num_steps' not in str(error.value)
  assert (folder / 'config.json').read_bytes() == before


def test_a_run_that_never_reached_a_checkpoint_is_in_nobodys_way(begun):
  folder, config = begun
  (folder / 'checkpoints' / '40').rmdir()
  config.seed = 3
  run_folder.check_can_hold(folder, config)
  run_folder.write_description(folder, config, STATISTICS, ('other', 'names'))
  assert run_folder.load_config(folder).seed == 3


def test_what_an_older_network_said_is_not_taken_for_that_of_a_new_one(begun):
  folder, config = begun
  (folder / 'checkpoints' / '40').rmdir()
  for name in ('features', 'predictions'):
    (folder / name).mkdir()
  with pytest.raises(UsageError, match='predictions holds what a network predicted whose checkpoints are gone'):
    run_folder.check_can_hold(folder, config)
  (folder / 'predictions').rmdir()
  run_folder.check_can_hold(folder, config)
  run_folder.write_description(folder, config, STATISTICS, NAMES)
  assert not (folder / 'features').exists()


def test_from_imported_weights_no_training_goes_on(begun):
  folder, config = begun
  STATISTICS._replace(num_images=0).save(folder / 'statistics.npz')
  with pytest.raises(UsageError, match=f'holds imported weights.*another --workdir, with --config.init_from={folder}'):
    run_folder.write_description(folder, config, STATISTICS, NAMES)


@pytest.mark.parametrize(
  ('statistics', 'names'),
  [(STATISTICS._replace(mean_image=np.ones((96, 96, 3))), NAMES), (STATISTICS, ('English springer', 'tench'))],
)
def test_other_images_or_classes_are_not_trained_on_unnoticed(begun, statistics, names):
  folder, config = begun
  with pytest.raises(UsageError, match='began with other training images or classes'):
    run_folder.write_description(folder, config, statistics, names)


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='cannot be written to'):
    run_folder.check_can_hold(tmp_path / 'file' / 'run', alexnet.get_config())


def test_no_run_and_a_damaged_config_say_so(tmp_path):
  with pytest.raises(UsageError, match='holds no run'):
    run_folder.load_config(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='holds no run'):
    run_folder.load_config(tmp_path / 'file')
  for content in ('{"half": ', '[]', '{}', ''):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UsageError, match='damaged'):
      run_folder.load_config(tmp_path)


def test_a_run_of_an_older_version_has_the_fields_that_came_later(begun):
  folder, config = begun
  kept = json.loads((folder / 'config.json').read_text())
  del kept['data']['classes'], kept['model']['dtype']
  (folder / 'config.json').write_text(json.dumps(kept))
  run_folder.check_can_hold(folder, config)
  assert config_checks.flatten(run_folder.load_config(folder)) == config_checks.flatten(config)
  del kept['optimizer']['rate']
  (folder / 'config.json').write_text(json.dumps(kept))
  with pytest.raises(UsageError, match=r'lacks the field .*optimizer.rate.*of another version'):
    run_folder.load_config(folder)


def test_what_is_missing_beside_the_config_is_named(tmp_path):
  with pytest.raises(UsageError, match=r'classes.txt is missing'):
    run_folder.load_classes(tmp_path)
  with pytest.raises(UsageError, match=r'statistics.npz is missing'):
    run_folder.load_statistics(tmp_path)


@pytest.mark.parametrize(
  ('name', 'variants', 'expected'),
  [('digits', (), 'runs/digits'), ('imagenette/full-size-v2', ('a', 'b'), 'runs/imagenette_full-size-v2-a-b')],
)
def test_the_default_folder_is_named_by_data_and_variants(name, variants, expected):
  config = alexnet.get_config()
  config.data.name, config.variants = name, variants
  assert str(run_folder.default_folder(config)) == expected


def test_one_run_at_a_time_in_a_folder(tmp_path):
  with (
    run_folder.exclusive_lock(tmp_path),
    pytest.raises(UsageError, match='another process is training in'),
    run_folder.exclusive_lock(tmp_path),
  ):
    pass
  with run_folder.exclusive_lock(tmp_path):  # free again
    pass
