import numpy as np
import pytest

from alexnet_jax.reproduction import records
from alexnet_jax.runtime.errors import RunError, UsageError


def record(**changes):
  made = records.make_record(
    command='python main.py',
    seed=3,
    versions='jax 1',
    devices='',
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


def test_what_is_kept_is_read_again(tmp_path):
  made = record()
  assert (made.num_epochs, made.steps_per_epoch, made.minutes) == (2.5, 10, pytest.approx(2500 / 50 / 60, abs=0.1))
  assert made.results == {'centre': {'top1_error': 12.3457, 'top5_error': 1.0, 'log_prob': -0.5}}
  assert list(made.curves) == ['train/error']
  path = tmp_path / 'some' / 'one.json'
  records.save(path, made)
  again = records.load(path)
  np.testing.assert_array_equal(again.curve('train/error'), made.curve('train/error'))
  assert again._replace(curves=None) == made._replace(curves=None)
  assert records.load(tmp_path / 'other.json') is None


def test_when_an_error_is_reached_is_interpolated():
  made = record()
  assert records.epochs_to(60, made.training_curve()) == pytest.approx(
    0.75
  )  # halfway between 80 % at half an epoch and 40 % at one
  assert records.epochs_to(25, made.training_curve()) == pytest.approx(1.375)
  assert records.epochs_to(90, made.training_curve()) == 0.5
  assert records.epochs_to(10, made.training_curve()) is None
  assert records.epochs_to(50, made._replace(curves={}).training_curve()) is None


def test_the_curve_of_the_test_error_ends_with_the_final_one():
  made = record(curves={'validation/top1_error': ([10, 20], [50.0, 40.0])})
  np.testing.assert_allclose(made.test_curve(), ([1, 2, 2.5], [50, 40, 12.3457]))


def test_damage_is_named(tmp_path):
  path = tmp_path / 'one.json'
  path.write_text('{"seed": 3')
  with pytest.raises(UsageError, match=r'one\.json is damaged; put it back, or delete it'):
    records.load(path)
  with pytest.raises(RunError, match=r'two\.json cannot be written'):
    records.save(path / 'two.json', record())
