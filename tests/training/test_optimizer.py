import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training import optimizer, schedules
from configs import alexnet


def run(learning_rates, gradients, w, part='kernel', **settings):
  """Updates the kernel or the bias of a layer once for each learning rate and gradient."""
  params = {'conv1': {part: jnp.asarray(w)}}
  state = optimizer.momentum_sgd({}, 0.9, 0.0005, **settings).init(params)
  for learning_rate, gradient in zip(learning_rates, gradients, strict=True):
    rule = optimizer.momentum_sgd({'conv1': {part: jnp.float32(learning_rate)}}, 0.9, 0.0005, **settings)
    updates, state = rule.update({'conv1': {part: jnp.asarray(gradient)}}, state, params)
    params = optax.apply_updates(params, updates)
  return params['conv1'][part], state


def test_the_update_is_the_two_equations_of_section_5_through_two_decays():
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(30, 7)).astype(np.float32)
  w = start = rng.normal(size=7).astype(np.float32)
  learning_rates = [0.01] * 10 + [0.001] * 10 + [0.0001] * 10
  v = np.zeros(7)
  for epsilon, gradient in zip(learning_rates, gradients, strict=True):
    v = 0.9 * v - 0.0005 * epsilon * w - epsilon * gradient
    w = w + v
  np.testing.assert_allclose(run(learning_rates, gradients, start)[0], w, rtol=1e-5)


def test_optax_sgd_is_another_rule_once_the_learning_rate_decays():
  """The reason for composing the rule from its parts: optax.sgd rescales the old velocity when the rate decays."""
  gradients = np.ones((4, 1), np.float32)
  learning_rates = [0.01, 0.01, 0.001, 0.001]
  schedule = optax.piecewise_constant_schedule(0.01, {2: 0.1})
  rule = optax.chain(optax.add_decayed_weights(0.0005), optax.sgd(schedule, momentum=0.9))
  params = jnp.ones(1)
  state = rule.init(params)
  for gradient in gradients:
    updates, state = rule.update(jnp.asarray(gradient), state, params)
    params = optax.apply_updates(params, updates)
  assert abs(float(params[0]) - float(run(learning_rates, gradients, np.ones(1, np.float32))[0][0])) > 0.005


def test_learning_rate_0_changes_no_bit():
  gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  w = np.ones(5, np.float32)
  moving, state = run([0.01] * 3, gradients[:3], w)
  frozen, frozen_state = run([0.01] * 3 + [0.0] * 3, gradients, w)
  np.testing.assert_array_equal(moving, frozen)
  np.testing.assert_array_equal(*(np.asarray(s[-1].trace['conv1']['kernel']) for s in (state, frozen_state)))
  assert np.any(moving != w)


@pytest.mark.parametrize('bias_decay', [True, False])
def test_biases_decay_as_in_the_paper_or_not_as_in_2012(bias_decay):
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(20, 7)).astype(np.float32)
  start = 100 * rng.normal(size=7).astype(np.float32)
  for part in ('kernel', 'bias'):
    decay = 0.0005 if bias_decay or part == 'kernel' else 0.0
    w, v = start, np.zeros(7)
    for gradient in gradients:
      v = 0.9 * v - decay * 0.01 * w - 0.01 * gradient
      w = w + v
    np.testing.assert_allclose(run([0.01] * 20, gradients, start, part, bias_decay=bias_decay)[0], w, rtol=1e-5)


def test_every_array_has_its_own_learning_rate():
  params = {name: {'kernel': jnp.ones(3), 'bias': jnp.ones(3)} for name in ('conv1', 'fc8')}
  learning_rates = {'conv1': {'kernel': 0.0, 'bias': 0.1}, 'fc8': {'kernel': 0.01, 'bias': 0.02}}
  rule = optimizer.momentum_sgd(jax.tree.map(np.float32, learning_rates), 0.9, 0.0)
  updates, state = rule.update(params, rule.init(params), params)
  for layer, parts in learning_rates.items():
    for part, learning_rate in parts.items():
      np.testing.assert_allclose(updates[layer][part], -learning_rate, rtol=1e-6)
      np.testing.assert_allclose(state[-1].trace[layer][part], -learning_rate, rtol=1e-6)


def make_lookup(config, last_step, layers=('conv1', 'conv2')):
  """Returns a function from a step to the learning rates of conv1 and conv2, each (kernel, bias)."""
  schedule = schedules.make_schedule(config, last_step)
  learning_rates = optimizer.make_learning_rates(config, layers, last_step)

  def at_step(step):
    by_layer = learning_rates.at_step(step, schedule.num_decays_at(step))
    return [pytest.approx((layer['kernel'], layer['bias'])) for layer in by_layer.values()]

  return at_step


def test_in_the_paper_all_arrays_have_the_same_learning_rate():
  config = alexnet.paper().optimizer
  config.schedule = 'steps'
  at_step = make_lookup(config, 9100)
  for step, learning_rate in {0: 1e-2, 2499: 1e-2, 2500: 1e-3, 5100: 1e-4, 7900: 1e-5, 9099: 1e-5}.items():
    assert at_step(step) == [(learning_rate, learning_rate)] * 2


# Facts, 1.6: learning rates of the kernel and bias of conv1 and of conv2, by step in hundredths of an epoch.
RUN_145 = {
  0: (1e-2, 2e-2, 1e-2, 2e-2),
  2499: (1e-2, 2e-2, 1e-2, 2e-2),
  2500: (1e-3, 2e-2, 1e-3, 2e-2),
  5100: (1e-4, 2e-2, 1e-4, 2e-2),
  6700: (1e-5, 2e-2, 1e-4, 2e-2),
  7200: (0, 0, 1e-4, 2e-2),
  7900: (0, 0, 1e-5, 2e-2),
}
RUN_145_2010 = {
  0: (1e-2, 2e-2, 1e-2, 2e-2),
  2300: (1e-3, 2e-3, 1e-3, 2e-3),
  5100: (1e-4, 2e-3, 1e-4, 2e-3),
  6800: (1e-5, 2e-3, 1e-4, 2e-3),
  7200: (0, 0, 1e-4, 2e-3),
  7800: (0, 0, 1e-5, 2e-3),
}


@pytest.mark.parametrize(
  ('data', 'num_epochs', 'expected'), [('imagenet2012', 91, RUN_145), ('ilsvrc2010', 93, RUN_145_2010)]
)
def test_as_run_has_the_learning_rates_of_2012(data, num_epochs, expected):
  config = alexnet.get_config(f'{data},as_run')
  assert config.num_epochs == num_epochs
  at_step = make_lookup(config.optimizer, 100 * num_epochs)
  for step, (kernel1, bias1, kernel2, bias2) in expected.items():
    assert at_step(step) == [(kernel1, bias1), (kernel2, bias2)], step
  assert schedules.step_at(config.augment.colour_until, 100 * num_epochs) == {91: 6700, 93: 6800}[num_epochs]


def test_as_run_is_relative_to_the_learning_rate_of_the_dataset():
  config = alexnet.get_config('digits,as_run').optimizer
  at_step = make_lookup(config, 91)
  assert at_step(0) == [(1e-3, 2e-3)] * 2
  assert at_step(25) == [(1e-4, 2e-3)] * 2


def test_a_frozen_layer_stays_frozen():
  config = alexnet.get_config('digits,as_run').optimizer
  config.layer_factor.conv1 = 0.0
  at_step = make_lookup(config, 91)
  assert all(at_step(step)[0] == (0, 0) for step in range(91))
  assert at_step(0)[1] == (1e-3, 2e-3)


def test_the_summary_lists_layers_that_differ():
  config = alexnet.get_config('imagenet2012,as_run').optimizer
  learning_rates = optimizer.make_learning_rates(config, ('conv1', 'conv2'), 91)
  assert learning_rates.summary(0, 0) == 'learning rate 0.01 (biases 0.02)'
  assert learning_rates.summary(67, 2) == 'learning rate 0.0001 (biases 0.02), conv1 1e-05 (biases 0.02)'
  assert learning_rates.summary(72, 2) == 'learning rate 0.0001 (biases 0.02), conv1 0'
