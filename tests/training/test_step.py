import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.kernels import onednn
from alexnet_jax.models import device_mesh
from alexnet_jax.models.registry import build
from alexnet_jax.training import optimizer, step
from configs import alexnet
from tests.conftest import mesh, mostly_nightly

CONFIG = alexnet.paper().optimizer
CONFIG.rate = 1e-4
RULE = optimizer.make_optimizer(CONFIG, last_step=100)
MEAN_IMAGE = np.random.default_rng(1).uniform(80, 150, (96, 96, 3)).astype(np.float32)


def small_network(dtype='float32'):
  """Builds a network with 3 + 3 kernels in conv1, for images of 64 pixels."""
  config = alexnet.paper().model
  config.dtype = dtype
  config.image_size, config.width = 64, 1 / 16
  config.init_std = dict.fromkeys(alexnet.LAYERS, 0.05)
  return build(config, 10)


def draw_batch(seed, size=8):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (size, 64, 64, 3), np.uint8),
    'mirrored': rng.integers(0, 2, size).astype(bool),
    'mean_offset': rng.integers(0, 32, (size, 2), np.int32),
    'mean_mirrored': rng.integers(0, 2, size).astype(bool),
    'colour': rng.normal(0, 10, (size, 3)).astype(np.float32),
    'scale': rng.uniform(0.9, 1, size).astype(np.float32),
    'label': rng.integers(0, 10, size, np.int32),
  }


def train(shape, num_steps=4, dtype='float32'):
  """Takes steps with dropout on a mesh, and returns the parameters and the losses."""
  current = mesh(*shape)
  with jax.set_mesh(current):
    network = small_network(dtype)
    state = step.init_state(jax.random.key(0), network=network, optimizer=RULE)
    losses = []
    for seed in range(num_steps):
      batch = device_mesh.put_batch(current, draw_batch(seed))
      state, metrics = step.train_step(
        state, batch, jnp.asarray(MEAN_IMAGE), jax.random.key(7), network=network, optimizer=RULE
      )
      losses.append(float(metrics['loss']))
    return jax.tree.map(np.asarray, state.params), losses


@pytest.fixture(scope='module')
def on_one_device():
  return train((1, 1))


@pytest.mark.parametrize('shape', mostly_nightly([(1, 2), (2, 2), (4, 1)], (2, 2)))
def test_four_steps_with_dropout_give_the_same_parameters_on_every_mesh(shape, on_one_device):
  params, losses = train(shape)
  expected, expected_losses = on_one_device
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for (path, x), y in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('shape', mostly_nightly([(1, 1), (2, 2)], (2, 2)))
def test_with_onednn_the_parameters_are_the_same(shape, on_one_device, with_onednn):
  assert onednn.is_enabled()
  for x, y in zip(*map(jax.tree.leaves, (train(shape), on_one_device)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', mostly_nightly([(1, 1), (2, 2)], (2, 2)))
@pytest.mark.usefixtures('as_on_gpu')
def test_with_the_code_for_gpus_the_parameters_are_the_same(shape, on_one_device):
  for x, y in zip(*map(jax.tree.leaves, (train(shape), on_one_device)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_the_loss_has_the_same_three_digits_and_the_update_a_similar_direction(on_one_device):
  """Updates agree to a quarter of their norm: in bfloat16 many pixels of a window tie and share the gradient."""
  (params, losses), (initial, _) = (train((1, 1), num_steps, 'bfloat16') for num_steps in (4, 0))
  expected, expected_losses = on_one_device
  assert losses != expected_losses
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
  for x, y, initial_x in zip(*map(jax.tree.leaves, (params, expected, initial)), strict=True):
    assert x.dtype == np.float32
    if y.ndim > 2:  # kernels
      assert np.linalg.norm(x - y) < 0.25 * np.linalg.norm(y - initial_x)


def test_training_changes_every_layer_and_lowers_the_loss_of_one_batch(one_device):
  network, config = small_network(), copy.deepcopy(CONFIG)
  config.weight_decay = 0.0  # which would change a layer that has no gradient
  rule = optimizer.make_optimizer(config, last_step=100)
  state = step.init_state(jax.random.key(0), network=network, optimizer=rule)
  before = jax.tree.map(np.asarray, state.params)
  batch = device_mesh.put_batch(one_device, draw_batch(0))
  losses = []
  for _ in range(20):
    state, metrics = step.train_step(
      state, batch, jnp.asarray(MEAN_IMAGE), jax.random.key(7), network=network, optimizer=rule
    )
    losses.append(float(metrics['loss']))
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  assert int(state.step) == 20
  for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(state.params), strict=True):
    assert np.any(old != new), jax.tree_util.keystr(path)


def test_every_step_drops_other_units(one_device):
  network, batch = small_network(), device_mesh.put_batch(one_device, draw_batch(0))
  losses = []
  for num_steps in (0, 1):
    state = step.init_state(jax.random.key(0), network=network, optimizer=RULE)
    state = state._replace(step=state.step + num_steps)
    _, metrics = step.train_step(
      state, batch, jnp.asarray(MEAN_IMAGE), jax.random.key(7), network=network, optimizer=RULE
    )
    losses.append(float(metrics['loss']))
  assert losses[0] != losses[1]


def test_the_mean_image_is_cropped_and_mirrored_like_the_image(one_device):
  batch = draw_batch(3)
  batch['mean_mirrored'] = batch['mirrored']
  device = device_mesh.put_batch(one_device, batch)
  images = step.subtract_mean(
    device['image'], device['mirrored'], jnp.asarray(MEAN_IMAGE), device['mean_offset'], device['mean_mirrored']
  )
  for i in range(8):
    top, left = batch['mean_offset'][i]
    stored = np.zeros((96, 96, 3), np.float32)  # the stored image of this crop
    stored[top : top + 64, left : left + 64] = batch['image'][i]
    expected = (stored - MEAN_IMAGE)[top : top + 64, left : left + 64]  # the paper's order: subtract, then crop
    expected = expected[:, ::-1] if batch['mirrored'][i] else expected
    np.testing.assert_array_equal(images[i], expected)


def test_as_in_2012_the_centre_of_the_mean_image_is_subtracted_from_mirrored_crops(one_device):
  batch = draw_batch(3)
  offset, mirrored = np.full((8, 2), 16, np.int32), np.zeros(8, bool)
  arrays = device_mesh.put_batch(one_device, (batch['image'], batch['mirrored'], offset, mirrored))
  images = step.subtract_mean(*arrays[:2], jnp.asarray(MEAN_IMAGE), *arrays[2:])
  for i in range(8):
    crop = batch['image'][i][:, ::-1] if batch['mirrored'][i] else batch['image'][i]
    np.testing.assert_array_equal(images[i], crop - MEAN_IMAGE[16:80, 16:80])


def test_the_shifted_image_is_scaled(one_device):
  """The images of a batch are (image - mean + colour) * scale."""
  network = small_network()
  state = step.init_state(jax.random.key(0), network=network, optimizer=RULE)
  batch = draw_batch(2) | {'mean_offset': np.full((8, 2), 16, np.int32), 'mean_mirrored': np.zeros(8, bool)}
  batch['colour'] *= 10  # large enough for the order of the two to matter
  batch['scale'] = np.linspace(0.2, 0.9, 8, dtype=np.float32)
  crops = np.where(batch['mirrored'][:, None, None, None], batch['image'][:, :, ::-1], batch['image'])
  x = (crops - MEAN_IMAGE[16:80, 16:80] + batch['colour'][:, None, None]) * batch['scale'][:, None, None, None]
  key = jax.random.fold_in(jax.random.key(7), 0)
  logits = jax.jit(network.apply)(state.params, device_mesh.put_batch(one_device, x), key)
  expected = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(8), batch['label']])
  _, metrics = step.train_step(
    state,
    device_mesh.put_batch(one_device, batch),
    jnp.asarray(MEAN_IMAGE),
    jax.random.key(7),
    network=network,
    optimizer=RULE,
  )
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  assert metrics['error'] == 100 * np.mean(np.argmax(logits, 1) != batch['label'])
