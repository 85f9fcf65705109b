import errno
import json
import os

import numpy as np
import pytest

from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.runs import config_files, run_folder
from alexnet_jax.runtime.errors import RunError, UsageError
from configs import alexnet

STATISTICS = PixelStatistics(np.zeros((96, 96, 3)), np.eye(3), num_images=1437)
NAMES = ('tench', 'English springer')


def test_the_metadata_of_a_run_is_loaded_as_it_was_written(tmp_path):
  config = alexnet.get_config('cifar10')
  folder = tmp_path / 'a' / 'b'
  run_folder.prepare(folder, config)
  run_folder.write_metadata(folder, config, STATISTICS, NAMES)
  assert config_files.flatten(run_folder.load_config(folder)) == config_files.flatten(config)
  assert run_folder.load_classes(folder) == list(NAMES)
  assert sorted(os.listdir(folder)) == ['classes.txt', 'config.json', 'statistics.npz']
  run_folder.write_results(folder, {'step': 3})
  assert json.loads((folder / 'results.json').read_text()) == {'step': 3}


@pytest.fixture
def started(tmp_path):
  """The folder of a run with a checkpoint, and its config."""
  config = alexnet.get_config()
  run_folder.prepare(tmp_path, config)
  run_folder.write_metadata(tmp_path, config, STATISTICS, NAMES)
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
def test_a_run_resumes_with_another_length_mesh_precision_evaluation_or_data_folder(started, field, value):
  folder, config = started
  config.update_from_flattened_dict({field: value})
  run_folder.prepare(folder, config)
  run_folder.write_metadata(folder, config, STATISTICS, NAMES)
  assert config_files.flatten(run_folder.load_config(folder))[field] == value


def test_only_the_listed_fields_may_change():
  fields = [field for field in config_files.flatten(alexnet.get_config()) if run_folder._may_change(field)]
  others = {'data.dir', 'data.test_split', 'data.unreadable', 'data.num_threads', 'data.num_prefetched', 'model.dtype'}
  assert {field for field in fields if field.startswith(('data', 'model', 'augment', 'optimizer'))} == others
  assert [field for field in fields if '.' not in field] == [
    'checkpoint_every',
    'eval_every',
    'heartbeat',
    'log_every',
    'num_epochs',
    'num_steps',
  ]


def test_a_run_does_not_resume_if_other_fields_differ(started):
  folder, config = started
  before = (folder / 'config.json').read_bytes()
  config.optimizer.rate, config.seed = 0.5, 3
  with pytest.raises(
    UsageError, match=r'optimizer.rate: 0.001 in the run, 0.5 given; seed: 0 in the run, 3 given'
  ) as error:
    run_folder.prepare(folder, config)
  assert 'num_steps' not in str(error.value)
  assert (folder / 'config.json').read_bytes() == before


def test_a_folder_without_checkpoints_can_be_used_again(started):
  folder, config = started
  (folder / 'checkpoints' / '40').rmdir()
  config.seed = 3
  run_folder.prepare(folder, config)
  run_folder.write_metadata(folder, config, STATISTICS, ('cat', 'dog'))
  assert run_folder.load_config(folder).seed == 3


def test_predictions_and_results_of_an_older_network_prevent_a_run_and_other_files_are_deleted(started):
  folder, config = started
  (folder / 'checkpoints' / '40').rmdir()
  for name in ('features', 'predictions', 'tensorboard'):
    (folder / name).mkdir()
  for name in ('results.json', 'results-digits_1.0.0-train.json', 'submission.txt'):
    (folder / name).write_text('{}')
    with pytest.raises(UsageError, match=f'contains .*{name}.* of a network whose checkpoints were removed'):
      run_folder.prepare(folder, config)
    (folder / name).unlink()
  with pytest.raises(UsageError, match='contains predictions of a network whose checkpoints were removed'):
    run_folder.prepare(folder, config)
  (folder / 'predictions').rmdir()
  run_folder.prepare(folder, config)
  run_folder.write_metadata(folder, config, STATISTICS, NAMES)
  assert not (folder / 'features').exists()
  assert not (folder / 'tensorboard').exists()


def test_training_does_not_resume_from_imported_weights(started):
  folder, config = started
  STATISTICS._replace(num_images=0).save(folder / 'statistics.npz')
  with pytest.raises(
    UsageError, match=f'contains imported weights.*another --workdir, with --config.init_from={folder}'
  ):
    run_folder.write_metadata(folder, config, STATISTICS, NAMES)


@pytest.mark.parametrize(
  ('statistics', 'names'),
  [(STATISTICS._replace(mean_image=np.ones((96, 96, 3))), NAMES), (STATISTICS, ('English springer', 'tench'))],
)
def test_a_run_does_not_resume_with_other_images_or_classes(started, statistics, names):
  folder, config = started
  with pytest.raises(UsageError, match='a run with other training images or classes'):
    run_folder.write_metadata(folder, config, statistics, names)


def test_a_folder_that_is_not_writable_is_a_usage_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='cannot be written to'):
    run_folder.prepare(tmp_path / 'file' / 'run', alexnet.get_config())


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
  def fail(path, text):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(run_folder.atomic_files, 'write_text', fail)
  with pytest.raises(RunError, match=f'cannot be written to {tmp_path} .No space left on device'):
    run_folder.write_metadata(tmp_path, alexnet.get_config(), STATISTICS, NAMES)


@pytest.mark.parametrize('name', ['3.orbax-checkpoint-tmp', '3.broken', '3.broken-2'])
def test_an_interrupted_save_is_no_checkpoint(started, name):
  folder, config = started
  (folder / 'checkpoints' / '40').rename(folder / 'checkpoints' / name)
  config.seed += 1
  run_folder.prepare(folder, config)
  run_folder.check_has_no_run(folder)


def test_a_missing_or_damaged_config_is_a_usage_error(tmp_path):
  with pytest.raises(UsageError, match='contains no run'):
    run_folder.load_config(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='contains no run'):
    run_folder.load_config(tmp_path / 'file')
  for content in ('{"half": ', '[]', '{}', ''):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UsageError, match='damaged'):
      run_folder.load_config(tmp_path)


def test_a_config_of_an_older_version_gets_default_values_for_later_fields(started):
  folder, config = started
  saved = json.loads((folder / 'config.json').read_text())
  del saved['data']['classes'], saved['model']['dtype']
  (folder / 'config.json').write_text(json.dumps(saved))
  run_folder.prepare(folder, config)
  assert config_files.flatten(run_folder.load_config(folder)) == config_files.flatten(config)
  del saved['optimizer']['rate']
  (folder / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(UsageError, match=r'lacks the field .*optimizer.rate.*by another version'):
    run_folder.load_config(folder)


def test_missing_classes_and_statistics_are_usage_errors(tmp_path):
  with pytest.raises(UsageError, match=r'classes.txt is missing'):
    run_folder.load_classes(tmp_path)
  with pytest.raises(UsageError, match=r'statistics.npz is missing'):
    run_folder.load_statistics(tmp_path)


@pytest.mark.parametrize(
  ('name', 'variants', 'expected'),
  [('digits', (), 'runs/digits'), ('imagenette/full-size-v2', ('a', 'b'), 'runs/imagenette_full-size-v2-a-b')],
)
def test_the_default_folder_is_named_after_dataset_and_variants(name, variants, expected):
  config = alexnet.get_config()
  config.data.name, config.variants = name, variants
  assert str(run_folder.default_folder(config)) == expected


def test_only_one_process_trains_in_a_folder(tmp_path):
  with (
    run_folder.exclusive_lock(tmp_path),
    pytest.raises(UsageError, match='another process is training in'),
    run_folder.exclusive_lock(tmp_path),
  ):
    pass
  with run_folder.exclusive_lock(tmp_path):  # the lock was released
    pass
