import numpy as np

from alexnet_jax.training import schedules


def test_plateau_decays_three_times_and_then_ends_the_run():
  schedule = schedules.Plateau(max_decays=3, patience=2)
  errors = [60, 50, 55, 40, 41, 40, 39, 39, 39, 38, 38, 38, 38, 38]
  num_decays = []
  for error in errors:
    schedule.observe(error)
    num_decays.append(schedule.num_decays)
  #                    60 50 55 40 41 40 39 39 39 38 38 38 38 38
  assert num_decays == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4]
  assert schedule.finished
  assert schedules.Plateau(3, 2, num_decays=2).num_decays_at(0) == 2
  assert not schedules.Plateau(3, 2, num_decays=3).finished  # the run trains at the lowest learning rate, too


def test_a_restored_plateau_equals_an_uninterrupted_one():
  rng = np.random.default_rng(0)
  errors = rng.uniform(30, 60, size=40)
  uninterrupted, saved, restored = (schedules.Plateau(3, 3) for _ in range(3))
  for error in errors:
    uninterrupted.observe(error)
  for error in errors[:17]:
    saved.observe(error)
  restored.restore(saved.state())
  for error in errors[17:]:
    restored.observe(error)
  assert restored == uninterrupted


def test_the_state_has_the_names_of_existing_checkpoints():
  schedule = schedules.Plateau(3, 2, num_decays=1, best_error=40.0, evaluations_since_best=2)
  assert schedule.state() == {'drops': 1, 'best_error': 40.0, 'evaluations_since_best': 2}
  assert schedules.Steps((1, 2)).state() == {}
