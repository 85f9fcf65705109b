import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import transforms
from alexnet_jax.evaluation import inference, metrics
from alexnet_jax.kernels import onednn
from alexnet_jax.models import towers
from alexnet_jax.models.registry import build
from alexnet_jax.training import step
from configs import alexnet
from tests.conftest import mesh

HYPER = step.hyperparameters(alexnet.paper().optimizer)
NAMES = [name for name in alexnet.LAYERS if name not in ('conv6', 'bottleneck')]
RATES = {name: {'kernel': np.float32(1e-4), 'bias': np.float32(1e-4)} for name in NAMES}
MEAN = np.random.default_rng(1).uniform(80, 150, (96, 96, 3)).astype(np.float32)


def small(dtype='float32'):
  config = alexnet.paper().model
  config.dtype = dtype
  config.image_size, config.width = 64, 1 / 16
  config.init_std = dict.fromkeys(alexnet.LAYERS, 0.05)
  return build(config, 10)


def batch_of(seed, size=8):
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
  """Takes steps with dropout on a mesh; returns parameters and losses."""
  current = mesh(*shape)
  with jax.set_mesh(current):
    network = small(dtype)
    state = step.init_state(jax.random.key(0), network=network, hyper=HYPER)
    losses = []
    for number in range(num_steps):
      batch = towers.put_batch(current, batch_of(number))
      state, metrics = step.train_step(
        state, batch, jnp.asarray(MEAN), RATES, jax.random.key(7), network=network, hyper=HYPER
      )
      losses.append(float(metrics['loss']))
    return jax.tree.map(np.asarray, state.params), losses


@pytest.fixture(scope='module')
def on_one_device():
  return train((1, 1))


@pytest.mark.parametrize('shape', [(1, 2), (2, 2), (4, 1)])
def test_four_steps_with_dropout_give_the_same_parameters_on_every_mesh(shape, on_one_device):
  params, losses = train(shape)
  expected, expected_losses = on_one_device
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for (path, ours), theirs in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
def test_with_onednn_they_are_the_same_too(shape, on_one_device, with_onednn):
  assert onednn.is_enabled()
  for ours, theirs in zip(*map(jax.tree.leaves, (train(shape), on_one_device)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
@pytest.mark.usefixtures('as_on_gpu')
def test_in_the_ways_that_a_gpu_takes_they_are_the_same_too(shape, on_one_device):
  for ours, theirs in zip(*map(jax.tree.leaves, (train(shape), on_one_device)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_the_loss_is_the_same_to_three_digits_and_weights_move_alike(on_one_device):
  """Within a quarter of their way: in so few digits many pixels of a window tie, and share the gradient."""
  (params, losses), (start, _) = (train((1, 1), num_steps, 'bfloat16') for num_steps in (4, 0))
  expected, expected_losses = on_one_device
  assert losses != expected_losses
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
  for ours, theirs, old in zip(*map(jax.tree.leaves, (params, expected, start)), strict=True):
    assert ours.dtype == np.float32
    if theirs.ndim > 2:  # kernels
      assert np.linalg.norm(ours - theirs) < 0.25 * np.linalg.norm(theirs - old)


def test_training_moves_every_layer_and_lowers_the_loss_of_one_batch(one_device):
  network = small()
  state = step.init_state(jax.random.key(0), network=network, hyper=HYPER)
  before = jax.tree.map(np.asarray, state.params)
  batch = towers.put_batch(one_device, batch_of(0))
  losses = []
  for _ in range(20):
    state, metrics = step.train_step(
      state, batch, jnp.asarray(MEAN), RATES, jax.random.key(7), network=network, hyper=HYPER
    )
    losses.append(float(metrics['loss']))
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  assert int(state.step) == 20
  for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(state.params), strict=True):
    assert np.any(old != new), jax.tree_util.keystr(path)


def test_the_mean_is_cropped_and_mirrored_like_the_image(one_device):
  batch = batch_of(3)
  batch['mean_mirrored'] = batch['mirrored']
  device = towers.put_batch(one_device, batch)
  ours = step.subtract_mean(
    device['image'], device['mirrored'], jnp.asarray(MEAN), device['mean_offset'], device['mean_mirrored']
  )
  for i in range(8):
    top, left = batch['mean_offset'][i]
    whole = np.zeros((96, 96, 3), np.float32)  # the stored image this crop came from
    whole[top : top + 64, left : left + 64] = batch['image'][i]
    expected = (whole - MEAN)[top : top + 64, left : left + 64]  # the paper's order: subtract, then crop
    expected = expected[:, ::-1] if batch['mirrored'][i] else expected
    np.testing.assert_array_equal(ours[i], expected)


def test_as_in_2012_the_mean_need_not_be_mirrored_with_the_image(one_device):
  batch = batch_of(3)
  offset, mirrored = np.full((8, 2), 16, np.int32), np.zeros(8, bool)
  arrays = towers.put_batch(one_device, (batch['image'], batch['mirrored'], offset, mirrored))
  ours = step.subtract_mean(*arrays[:2], jnp.asarray(MEAN), *arrays[2:])
  for i in range(8):
    crop = batch['image'][i][:, ::-1] if batch['mirrored'][i] else batch['image'][i]
    np.testing.assert_array_equal(ours[i], crop - MEAN[16:80, 16:80])


def test_a_view_is_cropped_and_mirrored_after_the_mean_is_subtracted(one_device):
  network = small()
  params = jax.jit(network.init)(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
  crop = transforms.Crop(np.int32(32), np.int32(5), np.bool_(True))
  constants = dict(network=network, image_size=64)

  def expected(x):
    return jax.nn.log_softmax(jax.jit(network.apply)(params, towers.put_batch(one_device, x)))

  ours = inference.log_probs(params, towers.put_batch(one_device, images), jnp.asarray(MEAN), crop, crop, **constants)
  np.testing.assert_allclose(ours, expected((images - MEAN)[:, 32:96, 5:69][:, :, ::-1]), rtol=1e-5, atol=1e-5)

  as_run = inference.log_probs(
    params, towers.put_batch(one_device, images), jnp.asarray(MEAN), crop, transforms.centre_crop(32), **constants
  )
  x = images[:, 32:96, 5:69][:, :, ::-1] - MEAN[16:80, 16:80]
  np.testing.assert_allclose(as_run, expected(x), rtol=1e-5, atol=1e-5)


def test_saliency_is_the_gradient_that_pytorch_finds(one_device):
  torch = pytest.importorskip('torch')
  from tests import reference

  network = small()
  params = jax.jit(network.init)(jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
  crop = transforms.Crop(np.int32(3), np.int32(20), np.bool_(True))
  ours = inference.saliency(
    params, towers.put_batch(one_device, images), jnp.asarray(MEAN), crop, crop, network=network, image_size=64
  )
  x = torch.tensor((images - MEAN)[:, 3:67, 20:84][:, :, ::-1].copy(), requires_grad=True)
  tensors = {name: torch.tensor(tensor) for name, tensor in reference.to_interchange(params).items()}
  torch.log_softmax(reference.forward(tensors, x), dim=1).max(dim=1).values.sum().backward()
  assert ours.shape == (3, 64, 64, 3)
  expected = x.grad.numpy()
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_shifted_image_is_scaled(one_device):
  """The loss of a batch is that of (image - mean + colour) * scale, computed by hand."""
  network = small()
  state = step.init_state(jax.random.key(0), network=network, hyper=HYPER)
  batch = batch_of(2) | {'mean_offset': np.full((8, 2), 16, np.int32), 'mean_mirrored': np.zeros(8, bool)}
  crops = np.where(batch['mirrored'][:, None, None, None], batch['image'][:, :, ::-1], batch['image'])
  x = (crops - MEAN[16:80, 16:80] + batch['colour'][:, None, None]) * batch['scale'][:, None, None, None]
  key = jax.random.fold_in(jax.random.key(7), 0)
  logits = jax.jit(network.apply)(state.params, towers.put_batch(one_device, x), key)
  expected = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(8), batch['label']])
  _, metrics = step.train_step(
    state,
    towers.put_batch(one_device, batch),
    jnp.asarray(MEAN),
    RATES,
    jax.random.key(7),
    network=network,
    hyper=HYPER,
  )
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def test_loss_is_the_mean_log_probability_in_nats(one_device):
  scores = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
  np.testing.assert_allclose(metrics.label_log_prob(scores, jnp.array([1, 0])), np.log([0.5, 0.1]), rtol=1e-6)


def test_label_log_prob_ignores_other_classes_of_probability_0():
  scores = jnp.array([[0.0, -jnp.inf]])
  assert float(metrics.label_log_prob(scores, jnp.array([0]))[0]) == 0.0


@pytest.mark.parametrize('k', [1, 5])
def test_credit_is_the_share_of_random_orders_of_ties(k):
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (50, 8)).astype(np.float32)  # many ties
  label = rng.integers(0, 8, 50)
  expected = np.zeros(50)
  for _ in range(4000):
    order = np.argsort(-(scores + 1e-3 * rng.random(scores.shape)), axis=1)
    expected += (order[:, :k] == label[:, None]).any(1) / 4000
  np.testing.assert_allclose(
    metrics.top_k_credit_on_device(jnp.asarray(scores), jnp.asarray(label), k), expected, atol=0.04
  )


@pytest.mark.parametrize(('score', 'label'), [(np.nan, 0), (1.0, -1), (1.0, 3)])
def test_no_number_or_no_label_is_no_credit(score, label):
  assert float(metrics.top_k_credit_on_device(jnp.full((1, 3), score), jnp.array([label]), 1)[0]) == 0.0


def test_a_network_that_says_the_same_of_every_class_is_right_by_chance():
  credit = metrics.top_k_credit_on_device(jnp.zeros((3, 1000)), jnp.array([0, 500, 999]), 5)
  np.testing.assert_allclose(credit, 0.005)
  np.testing.assert_array_equal(metrics.top_k_credit_on_device(jnp.zeros((1, 3)), jnp.array([0]), 5), 1.0)
