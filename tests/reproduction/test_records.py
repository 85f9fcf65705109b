"""Records are written and read without loss, and curves are interpolated."""

import numpy as np
import pytest

from alexnet_jax.reproduction import records
from alexnet_jax.runtime.errors import RunError, UsageError


def record(**changes):
  made = records.make_record(
    command='python main.py',
    seed=3,
    batch_size=100,
    num_images=1000,
    results={
      'dataset': 'cifar10/3.0.2',
      'split': 'test',
      'step': 25,
      'skipped': {},
      'centre': {'top1_error': 12.34567, 'top5_error': 1.0, 'log_prob': -0.5, 'confused': [['cat', 'dog', 3]]},
    },
    curves={
      'train/error': (np.array([5, 10, 15, 20]), np.array([80.0, 40.0, 20.0, 30.0])),
      'speed/images_per_second': (np.array([5, 10]), np.array([50.0, 50.0])),
    },
  )
  return made._replace(**changes)


def test_a_record_is_the_same_after_saving_and_loading(tmp_path):
  made = record()
  assert (made.num_epochs, made.steps_per_epoch, made.minutes) == (2.5, 10, pytest.approx(2500 / 50 / 60, abs=0.1))
  assert made.results == {'centre': {'top1_error': 12.3457, 'top5_error': 1.0, 'log_prob': -0.5}}
  assert list(made.curves) == ['train/error']
  path = tmp_path / 'folder' / 'record.json'
  records.save(path, made)
  loaded = records.load(path)
  np.testing.assert_array_equal(loaded.curve('train/error'), made.curve('train/error'))
  assert loaded._replace(curves=None) == made._replace(curves=None)
  assert records.load(tmp_path / 'other.json') is None


def test_the_epoch_at_which_an_error_is_reached_is_interpolated():
  made = record()
  # Halfway between 80 % after half an epoch and 40 % after one.
  assert records.epochs_to_error(60, made.training_curve()) == pytest.approx(0.75)
  assert records.epochs_to_error(25, made.training_curve()) == pytest.approx(1.375)
  assert records.epochs_to_error(90, made.training_curve()) == 0.5
  assert records.epochs_to_error(10, made.training_curve()) is None
  assert records.epochs_to_error(50, made._replace(curves={}).training_curve()) is None


def test_the_curve_of_the_test_error_ends_with_the_final_error():
  made = record(curves={'validation/top1_error': ([10, 20], [50.0, 40.0])})
  np.testing.assert_allclose(made.test_curve(), ([1, 2, 2.5], [50, 40, 12.3457]))


def test_damaged_files_and_unwritable_paths_are_reported(tmp_path):
  path = tmp_path / 'record.json'
  path.write_text('{"seed": 3')
  with pytest.raises(UsageError, match=r'record\.json is damaged; restore it, or delete it'):
    records.load(path)
  with pytest.raises(RunError, match=r'other\.json cannot be written'):
    records.save(path / 'other.json', record())
