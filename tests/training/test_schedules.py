import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training import schedules
from alexnet_jax.training.schedules import Plateau, Steps


def observe_all(state, errors, patience):
  """Returns the state after the evaluations, and the number of decays after each of them."""
  num_decays = []
  for error in errors:
    state = schedules.observe(state, error, patience)
    num_decays.append(int(state['schedule'].num_decays))
  return state, num_decays


def test_plateau_decays_three_times_and_then_ends_the_run():
  errors = [60, 50, 55, 40, 41, 40, 39, 39, 39, 38, 38, 38, 38, 38]
  state, num_decays = observe_all({'schedule': Plateau(0.01, 10, 3).init()}, errors, patience=2)
  #                    60 50 55 40 41 40 39 39 39 38 38 38 38 38
  assert num_decays == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4]
  assert schedules.has_ended(state, max_decays=3)
  state, num_decays = observe_all({'schedule': Plateau(0.01, 10, 3).init()}, errors[:-1], patience=2)
  assert num_decays[-1] == 3
  assert not schedules.has_ended(state, max_decays=3)  # the run trains at the lowest learning rate, too


@pytest.mark.parametrize(('max_decays', 'lowest'), [(3, 1e-5), (1, 1e-3), (0, 1e-2)])
def test_each_decay_divides_the_learning_rate_until_the_last(max_decays, lowest):
  schedule = Plateau(0.01, 10, max_decays)
  values = [float(schedule(schedule.init()._replace(num_decays=jnp.int32(num)))) for num in range(5)]
  np.testing.assert_allclose(values, [max(0.01 / 10**num, lowest) for num in range(5)], rtol=1e-6)


def test_a_state_without_a_plateau_is_not_changed():
  rule = optax.inject_hyperparams(optax.sgd)(Steps(0.01, 10, (2, 4)))
  state = rule.init(jnp.ones(3))
  assert jax.tree.all(jax.tree.map(np.array_equal, state, schedules.observe(state, 50.0, 1)))
  assert not schedules.has_ended(state, 0)


def test_steps_decay_at_their_boundaries():
  schedule = Steps(0.5, 10, (2, 4, 4))  # in a short run two decays may have the same step
  values = [float(schedule(jnp.int32(step))) for step in range(6)]
  np.testing.assert_allclose(values, [0.5, 0.5, 0.05, 0.05, 0.0005, 0.0005], rtol=1e-6)


@pytest.mark.parametrize('schedule', [Steps(0.5, 10), Plateau(0.5, 10, 3)])
def test_factors_apply_from_their_step_on(schedule):
  """On top of the schedule: a factor of 0 freezes a layer, a later one trains it again."""
  schedule = dataclasses.replace(schedule, factors=((0, 2.0), (2, 0.0), (2, 0.1), (4, 0.0), (5, 1.0)))
  counts = map(jnp.int32, range(7))
  if isinstance(schedule, Plateau):
    values = [float(schedule(schedule.init()._replace(num_steps=count))) for count in counts]
  else:
    values = [float(schedule(count)) for count in counts]
  np.testing.assert_allclose(values, [1, 1, 0.05, 0.05, 0, 0.5, 0.5], rtol=1e-6)


def test_each_step_is_counted():
  schedule = Plateau(0.5, 10, 3)
  state = schedule.update(schedule.update(schedule.init()))
  assert int(state.num_steps) == 2
  assert isinstance(schedule, optax.schedules.StatefulSchedule)
