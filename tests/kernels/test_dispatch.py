"""Every fast form against the definition of its layer, and whole networks with fast kernels on and off."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.configs import alexnet, cifar10
from alexnet_jax.kernels import dispatch, onednn
from alexnet_jax.models import layers, towers
from alexnet_jax.models.registry import build
from tests.conftest import mesh, random_params, with_gradients

PLATFORMS = ['cpu', 'onednn', 'gpu']


@pytest.fixture(params=PLATFORMS)
def platform(request, monkeypatch):
  """Selects the fast forms of a platform; XLA compiles them for the CPU."""
  if request.param == 'onednn':
    request.getfixturevalue('with_onednn')
  elif request.param == 'gpu':
    request.getfixturevalue('as_on_gpu')
  return request.param


@pytest.fixture
def definitions():
  """Turns all fast forms off."""

  def disable():
    dispatch.enable(False)
    assert not dispatch.is_enabled()

  yield disable
  dispatch.enable(True)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def narrow_network(config):
  """Returns a network of a config, an eighth as wide and for small images, and its parameters."""
  if config.model.name == 'alexnet':
    config.model.image_size = 64
  config.model.width = 1 / 8
  network = build(config.model, 10)
  return network, jax.device_put(random_params(network), towers.PARAMS)


def draw_images(num_images, config):
  return jax.device_put(60 * draw(num_images, config.model.image_size, config.model.image_size, 3), towers.BATCH)


def conv1(x, kernel, bias):
  return layers.conv(x, kernel, bias, 4, ((0, 3), (0, 3)))


def conv2(x, kernel, bias):
  return layers.conv(x, kernel, bias, 1, ((2, 2), (2, 2)))


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
  ('layer', 'shapes'),
  [
    (conv1, [(3, 32, 32, 3), (2, 11, 11, 3, 8), (2, 8)]),  # read by both towers
    (conv2, [(2, 3, 9, 9, 4), (2, 5, 5, 4, 8), (2, 8)]),
    (conv2, [(3, 9, 9, 4), (2, 5, 5, 4, 8), (2, 8)]),  # read by both towers, with kernels larger than the maps
    (layers.linear, [(2, 3, 20), (2, 20, 8)]),
    (layers.linear, [(2, 4, 20), (2, 20, 8)]),
    (layers.max_pool, [(2, 3, 13, 15, 4)]),
    (layers.local_response_norm, [(2, 3, 4, 4, 16)]),
    (layers.within_map_norm, [(2, 3, 7, 9, 4)]),
  ],
)
def test_a_fast_form_computes_the_definition_and_its_gradient(layer, shapes, platform, definitions):
  inputs = [(30 if i == 0 else 1) * draw(*shape, seed=i) for i, shape in enumerate(shapes)]
  layouts = [towers.BATCH if len(inputs[0].shape) == 4 else towers.MAPS, towers.PARAMS, towers.PARAMS]
  inputs = [jax.device_put(x, layout) for x, layout in zip(inputs, layouts, strict=False)]
  y, _, gradients = with_gradients(layer, *inputs)
  definitions()
  expected, _, expected_gradients = with_gradients(layer, *inputs)
  for fast, reference in zip((y, *gradients), (expected, *expected_gradients), strict=True):
    np.testing.assert_allclose(fast, reference, rtol=1e-4, atol=1e-5 * float(jnp.abs(reference).max()))


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('config', [alexnet.get_config(), alexnet.get_config('as_run'), cifar10.get_config('11pct')])
def test_a_network_computes_the_same_logits_with_fast_kernels_off(config, definitions):
  network, params = narrow_network(config)
  images = draw_images(4, config)
  logits = jax.jit(network.apply)(params, images)
  definitions()
  reference = jax.jit(network.apply)(params, images)
  np.testing.assert_allclose(logits, reference, rtol=1e-4, atol=1e-5 * float(jnp.abs(reference).max()))


@pytest.mark.usefixtures('one_device', 'with_onednn')
@pytest.mark.parametrize('config', [alexnet.get_config(), cifar10.get_config('11pct')])
def test_parameters_arranged_for_inference_give_the_same_logits(config, definitions):
  network, params = narrow_network(config)
  arranged = jax.jit(network.arrange_for_inference)(params)
  assert [len(kernel) for kernel in arranged['conv2']['kernel']] == [5] * network.num_towers  # separate arrays
  last = network.layer_names[-1]
  if onednn.multiplies_stacks():
    assert arranged[last]['kernel'].stored.shape == params[last]['kernel'].swapaxes(1, 2).shape
  for num_images in (1, 4):  # products of few rows are computed otherwise
    images = draw_images(num_images, config)
    expected = jax.jit(network.apply)(params, images)
    logits = [jax.jit(network.apply)(arranged, images)]
    definitions()
    logits.append(jax.jit(network.apply)(arranged, images))
    dispatch.enable(True)
    for found in logits:
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.usefixtures('with_onednn')
def test_parameters_of_several_devices_are_not_arranged():
  network = build(alexnet.get_config().model, 10)
  with jax.set_mesh(mesh(1, 2)):
    params = jax.eval_shape(network.init, jax.random.key(0))
    arranged = jax.eval_shape(network.arrange_for_inference, params)
  assert jax.tree.map(lambda x: x.shape, arranged) == jax.tree.map(lambda x: x.shape, params)


@pytest.mark.parametrize(('value', 'is_enabled'), [('1', True), ('0', False)])
def test_the_environment_variable_turns_the_fast_forms_off(value, is_enabled, monkeypatch):
  monkeypatch.setenv('ALEXNET_JAX_FAST_KERNELS', value)
  assert runpy.run_path(dispatch.__file__)['is_enabled']() == is_enabled


def test_the_definition_is_used_where_the_fast_form_does_not_apply():
  @dispatch.fast_form(lambda x: NotImplemented if x > 1 else 'fast')
  def layer(x):
    return 'definition'

  assert [layer(1), layer(2), layer.__wrapped__(1)] == ['fast', 'definition', 'definition']
