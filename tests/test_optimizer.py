import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from alexnet_jax import optimizer
from alexnet_jax.errors import UsageError
from configs import alexnet


def run(rates, gradients, w):
  params = {'kernel': jnp.asarray(w)}
  state = optimizer.momentum_sgd(0.0, 0.9, 0.0005).init(params)
  for rate, gradient in zip(rates, gradients, strict=True):
    rule = optimizer.momentum_sgd(jnp.float32(rate), 0.9, 0.0005)
    updates, state = rule.update({'kernel': jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
  return params['kernel'], state


def test_the_update_is_the_two_equations_of_section_5_through_two_drops():
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(30, 7)).astype(np.float32)
  w = start = rng.normal(size=7).astype(np.float32)
  rates = [0.01] * 10 + [0.001] * 10 + [0.0001] * 10
  v = np.zeros(7)
  for epsilon, gradient in zip(rates, gradients, strict=True):
    v = 0.9 * v - 0.0005 * epsilon * w - epsilon * gradient
    w = w + v
  np.testing.assert_allclose(run(rates, gradients, start)[0], w, rtol=1e-5)


def test_optax_sgd_is_another_rule_once_the_rate_drops():
  """Why the rule is put together from its parts: the plain one rescales the old velocity at a drop."""
  gradients = np.ones((4, 1), np.float32)
  rates = [0.01, 0.01, 0.001, 0.001]
  schedule = optax.piecewise_constant_schedule(0.01, {2: 0.1})
  rule = optax.chain(optax.add_decayed_weights(0.0005), optax.sgd(schedule, momentum=0.9))
  params = jnp.ones(1)
  state = rule.init(params)
  for gradient in gradients:
    updates, state = rule.update(jnp.asarray(gradient), state, params)
    params = optax.apply_updates(params, updates)
  assert abs(float(params[0]) - float(run(rates, gradients, np.ones(1, np.float32))[0][0])) > 0.005


def test_rate_0_changes_nothing_by_a_bit():
  gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  w = np.ones(5, np.float32)
  moved, state = run([0.01] * 3, gradients[:3], w)
  still, frozen_state = run([0.01] * 3 + [0.0] * 3, gradients, w)
  np.testing.assert_array_equal(moved, still)
  np.testing.assert_array_equal(np.asarray(state[-1].trace['kernel']), np.asarray(frozen_state[-1].trace['kernel']))
  assert np.any(moved != w)


def test_plateau_divides_three_times_and_then_stops():
  schedule = optimizer.Plateau(base_rate=0.01, factor=10, max_drops=3, patience=2)
  errors = [60, 50, 55, 40, 41, 40, 39, 39, 39, 38, 38, 38, 38, 38]
  seen = []
  for error in errors:
    schedule.observe(error)
    seen.append(schedule.drops)
  #        60 50 55 40 41 40 39 39 39 38 38 38 38 38
  assert seen == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4]
  assert schedule.finished
  np.testing.assert_allclose(optimizer.Plateau(0.01, 10, 3, 2, drops=2).rate(0), 1e-4)
  assert not optimizer.Plateau(0.01, 10, 3, 2, drops=3).finished  # the lowest rate is used, too


def test_plateau_goes_on_from_its_state():
  rng = np.random.default_rng(0)
  errors = rng.uniform(30, 60, size=40)
  whole, first, second = (optimizer.Plateau(0.01, 10, 3, 3) for _ in range(3))
  for error in errors:
    whole.observe(error)
  for error in errors[:17]:
    first.observe(error)
  second.restore(first.state())
  for error in errors[17:]:
    second.observe(error)
  assert second == whole


def test_steps_divide_at_the_epochs_of_the_config():
  config = alexnet.paper().optimizer
  config.schedule = 'steps'
  schedule = optimizer.make_schedule(config, steps_per_epoch=10.5)
  drops = {step: schedule.rate(step) for step in (0, 261, 262, 535, 536, 829, 830)}
  expected = {0: 1e-2, 261: 1e-2, 262: 1e-3, 535: 1e-3, 536: 1e-4, 829: 1e-4, 830: 1e-5}
  assert drops == pytest.approx(expected)
  assert not schedule.finished


def test_unknown_schedule_says_what_there_is():
  with pytest.raises(UsageError, match="'plateau' or 'steps'"):
    optimizer.make_schedule(ConfigDict({'schedule': 'cosine'}), 10)
