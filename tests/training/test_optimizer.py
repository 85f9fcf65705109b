import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training import optimizer, schedules
from alexnet_jax.training.schedules import PlateauState
from configs import alexnet
from tests.conftest import velocities


def run(learning_rates, gradients, w, can_freeze=False):
  """Updates an array once for each learning rate and gradient; returns it and the state of the rule."""
  params = jnp.asarray(w)
  state = optimizer.momentum_sgd(0.01, 0.9, 0.0005, can_freeze).init(params)
  for learning_rate, gradient in zip(learning_rates, gradients, strict=True):
    rule = optimizer.momentum_sgd(jnp.float32(learning_rate), 0.9, 0.0005, can_freeze)
    updates, state = rule.update(jnp.asarray(gradient), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def two_equations(learning_rates, gradients, w, decay=0.0005):
  """The two equations of section 5 in numpy."""
  v = np.zeros_like(w, np.float64)
  for epsilon, gradient in zip(learning_rates, gradients, strict=True):
    v = 0.9 * v - decay * epsilon * w - epsilon * gradient
    w = w + v
  return w


def draw(num_steps, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(num_steps, 7)).astype(np.float32), rng.normal(size=7).astype(np.float32)


def test_the_update_is_the_two_equations_of_section_5_through_two_decays():
  gradients, start = draw(30)
  learning_rates = [0.01] * 10 + [0.001] * 10 + [0.0001] * 10
  expected = two_equations(learning_rates, gradients, start)
  np.testing.assert_allclose(run(learning_rates, gradients, start)[0], expected, rtol=1e-5)


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
  gradients, w = draw(6)
  moving, state = run([0.01] * 3, gradients[:3], w, can_freeze=True)
  frozen, frozen_state = run([0.01] * 3 + [0.0] * 3, gradients, w, can_freeze=True)
  np.testing.assert_array_equal(moving, frozen)
  for x, y in zip(jax.tree.leaves(state.inner_state), jax.tree.leaves(frozen_state.inner_state), strict=True):
    np.testing.assert_array_equal(x, y)
  assert np.any(moving != w)


def make_params(*layers):
  rng = np.random.default_rng(1)
  return {
    name: {part: jnp.asarray(100 * rng.normal(size=5), jnp.float32) for part in ('kernel', 'bias')} for name in layers
  }


@pytest.mark.parametrize('bias_decay', [True, False])
def test_biases_decay_as_in_the_paper_or_not_as_in_2012(bias_decay):
  config = alexnet.paper().optimizer
  config.bias_decay = bias_decay
  rule = optimizer.make_optimizer(config, last_step=100).transformation()
  params = start = make_params('conv1')
  state, gradients = rule.init(params), np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
  for gradient in gradients:
    updates, state = rule.update(jax.tree.map(lambda _, g=gradient: jnp.asarray(g), params), state, params)
    params = optax.apply_updates(params, updates)
  for part in ('kernel', 'bias'):
    decay = 0.0005 if bias_decay or part == 'kernel' else 0.0
    expected = two_equations([0.01] * 20, gradients, np.asarray(start['conv1'][part]), decay)
    np.testing.assert_allclose(params['conv1'][part], expected, rtol=1e-5)


def test_layers_have_learning_rates_and_decays_of_their_own():
  config = alexnet.paper().optimizer
  config.rate, config.bias_factor = 0.1, 2.0
  config.layer_factor.conv1, config.layer_factor.fc8 = 0.0, 0.5
  config.layer_decay.conv2 = 3.0
  rule = optimizer.make_optimizer(config, last_step=100).transformation()
  params = make_params('conv1', 'conv2', 'fc7', 'fc8')
  gradients = jax.tree.map(jnp.ones_like, params)
  updates, state = rule.update(gradients, rule.init(params), params)
  for layer, factor, decay in (('conv1', 0, 1), ('conv2', 1, 3), ('fc7', 1, 1), ('fc8', 0.5, 1)):
    for part, learning_rate in (('kernel', 0.1), ('bias', 0.2)):
      expected = -factor * learning_rate * (1 + 0.0005 * decay * np.asarray(params[layer][part]))
      np.testing.assert_allclose(updates[layer][part], expected, rtol=1e-5, err_msg=f'{layer} {part}')
      np.testing.assert_array_equal(updates[layer][part], velocities(state)[layer][part])


def make_lookup(config, last_step):
  """Returns a function from a step to the learning rates of conv1 and conv2, each (kernel, bias)."""
  config.schedule = 'steps'
  groups = dict(optimizer.make_optimizer(config, last_step).groups)

  def learning_rate(layer, part, step):
    return groups.get(f'{layer}.{part}', groups[part]).schedule(jnp.int32(step))

  def at_step(step):
    pairs = ([float(learning_rate(layer, part, step)) for part in ('kernel', 'bias')] for layer in ('conv1', 'conv2'))
    return [pytest.approx(tuple(pair)) for pair in pairs]

  return at_step


def test_in_the_paper_all_arrays_have_the_same_learning_rate():
  config = alexnet.paper().optimizer
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
  assert all(at_step(step)[0] == (0, 0) for step in (0, 24, 25, 66, 67, 71, 72, 90))
  assert at_step(0)[1] == (1e-3, 2e-3)


def test_the_optimizer_state_has_the_learning_rates_that_are_logged():
  config = alexnet.get_config('imagenet2012,as_run').optimizer
  rule = optimizer.make_optimizer(config, last_step=91).transformation()
  params = make_params('conv1', 'conv2')
  state, gradients, logged = rule.init(params), jax.tree.map(jnp.ones_like, params), {}
  update = jax.jit(rule.update)
  for step in range(80):
    _, state = update(gradients, state, params)
    text = optimizer.describe_learning_rates(jax.device_get(optimizer.learning_rates(state)))
    if text not in logged.values():
      logged[step] = text
  assert logged == {
    0: 'learning rate 0.01 (biases 0.02)',
    25: 'learning rate 0.001 (biases 0.02)',
    51: 'learning rate 0.0001 (biases 0.02)',
    67: 'learning rate 0.0001 (biases 0.02), conv1 1e-05 (biases 0.02)',
    72: 'learning rate 0.0001 (biases 0.02), conv1 0',
    79: 'learning rate 1e-05 (biases 0.02), conv1 0',
  }


@pytest.mark.parametrize('bias_drops', [-1, 0, 1])
def test_an_evaluation_decays_the_learning_rates_of_all_groups(bias_drops):
  """The next update has the decayed learning rate, and past gradients retain theirs."""
  config = alexnet.paper().optimizer
  config.bias_drops, config.weight_decay = bias_drops, 0.0
  rule = optimizer.make_optimizer(config, last_step=100).transformation()
  params = make_params('conv1')
  gradients, state = jax.tree.map(jnp.ones_like, params), rule.init(params)
  expected = {'kernel': np.zeros(5), 'bias': np.zeros(5)}
  for num_decays in (0, 1, 2):
    updates, state = rule.update(gradients, state, params)
    for part, limit in (('kernel', 3), ('bias', 3 if bias_drops < 0 else bias_drops)):
      expected[part] = 0.9 * expected[part] - 0.01 / 10 ** min(num_decays, limit)
      np.testing.assert_allclose(updates['conv1'][part], expected[part], rtol=1e-6)
    for error in (50.0, 50.0):
      state = schedules.observe(state, error - num_decays, patience=1)
  plateaus = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, PlateauState))
  assert [plateau for plateau in plateaus if isinstance(plateau, PlateauState)] == [PlateauState(3, 3, 48.0, 0)] * 2


def test_the_step_at_a_fraction_is_the_nearest():
  assert [schedules.step_at(fraction, 100) for fraction in (0, 0.29, 0.999, 1)] == [0, 29, 100, 100]
