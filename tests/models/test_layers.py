import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import layers
from tests.conftest import with_gradients

pytestmark = pytest.mark.usefixtures('one_device')


def lrn_by_the_formula(a, k, n, alpha, beta):
  """Section 3.3 as it is printed, one map after the other; a: [..., channel]."""
  num_kernels = a.shape[-1]
  b = np.empty_like(a)
  for i in range(num_kernels):
    window = a[..., max(0, i - n // 2) : min(num_kernels - 1, i + n // 2) + 1]
    b[..., i] = a[..., i] / (k + alpha * np.square(window).sum(-1)) ** beta
  return b


@pytest.mark.parametrize(('k', 'n', 'alpha', 'beta'), [(2.0, 5, 1e-4, 0.75), (1.0, 3, 0.3, 0.75), (1.0, 9, 1e-2, 0.5)])
@pytest.mark.parametrize('channels', [3, 48])
def test_local_response_norm_is_the_formula(k, n, alpha, beta, channels):
  x = 50 * np.random.default_rng(0).normal(size=(2, 2, 3, 3, channels))
  ours = layers.local_response_norm(jnp.float32(x), k, n, alpha, beta)
  np.testing.assert_allclose(ours, lrn_by_the_formula(x, k, n, alpha, beta), rtol=1e-5)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])  # with saved and with recomputed denominators
def test_local_response_norm_and_its_gradient_are_those_of_torch(platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  torch = pytest.importorskip('torch')
  x = 100 * np.random.default_rng(0).normal(size=(2, 3, 4, 4, 16)).astype(np.float32)
  y, dy, (gradient,) = with_gradients(layers.local_response_norm, x)

  theirs = torch.tensor(x.reshape(6, 4, 4, 16).transpose(0, 3, 1, 2), requires_grad=True)
  result = torch.nn.functional.local_response_norm(theirs, 5, alpha=5 * 1e-4, beta=0.75, k=2.0)
  result.backward(torch.tensor(dy.reshape(6, 4, 4, 16).transpose(0, 3, 1, 2)))

  def like_ours(t):
    return t.detach().numpy().transpose(0, 2, 3, 1).reshape(x.shape)

  np.testing.assert_allclose(y, like_ours(result), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, like_ours(theirs.grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_in_bfloat16_normalisation_and_its_gradient_are_those_of_float32_rounded_once(platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  x = jnp.asarray(100 * np.random.default_rng(0).normal(size=(2, 3, 4, 4, 16)), jnp.bfloat16)
  dy = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.bfloat16)
  y, pull_back = jax.vjp(layers.local_response_norm, x)
  wide_y, wide_pull_back = jax.vjp(layers.local_response_norm, x.astype(jnp.float32))
  for ours, reference in ((y, wide_y), (pull_back(dy)[0], wide_pull_back(dy.astype(jnp.float32))[0])):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, reference.astype(jnp.bfloat16))


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_the_normalisation_within_a_map_and_its_gradient_are_those_of_torch(platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  torch = pytest.importorskip('torch')
  x = 100 * np.random.default_rng(0).normal(size=(2, 3, 7, 9, 4)).astype(np.float32)
  y, dy, (gradient,) = with_gradients(layers.within_map_norm, x)

  theirs = torch.tensor(x.reshape(6, 7, 9, 4).transpose(0, 3, 1, 2), requires_grad=True)
  # Zero padding does not change a sum of squares.
  sums = torch.nn.functional.avg_pool2d(theirs**2, 5, stride=1, padding=2, divisor_override=1)
  result = theirs / (1 + 0.001 / 25 * sums) ** 0.75
  result.backward(torch.tensor(dy.reshape(6, 7, 9, 4).transpose(0, 3, 1, 2)))

  def like_ours(t):
    return t.detach().numpy().transpose(0, 2, 3, 1).reshape(x.shape)

  np.testing.assert_allclose(y, like_ours(result), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, like_ours(theirs.grad), rtol=1e-4, atol=1e-5)


# 55, 27 and 13 with windows of 3 and 2 are those of the network; with 2 the last window extends past the edge.
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])  # one axis at a time; both at once, except for 5 pixels
@pytest.mark.parametrize(
  ('size', 'stride', 'sides'),
  [(3, 2, (13, 15)), (3, 2, (26, 28)), (2, 2, (11, 55)), (3, 3, (26, 28)), (4, 2, (13, 15)), (5, 2, (26, 28))],
)
def test_max_pool_and_its_gradient_are_those_of_torch(size, stride, sides, platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(0).normal(size=(2, 3, *sides, 4)).astype(np.float32)
  y, dy, (gradient,) = with_gradients(lambda x: layers.max_pool(x, size, stride), x)

  theirs = torch.tensor(x.reshape(6, *sides, 4).transpose(0, 3, 1, 2), requires_grad=True)
  result = torch.nn.functional.max_pool2d(theirs, size, stride, ceil_mode=True)
  result.backward(torch.tensor(dy.reshape(6, *dy.shape[2:]).transpose(0, 3, 1, 2)))
  np.testing.assert_array_equal(y, result.detach().numpy().transpose(0, 2, 3, 1).reshape(y.shape))
  np.testing.assert_allclose(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1).reshape(x.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('side', 'size', 'expected'), [(55, 3, 27), (27, 3, 13), (13, 3, 6), (55, 2, 28), (26, 2, 13)])
def test_the_number_of_windows_is_that_of_2012(side, size, expected):
  """Facts, 1.3 and 4."""
  assert layers.num_windows(side, size) == expected
  assert layers.num_windows(11, 2) == 6  # the last one extends past the edge


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_tied_pixels_divide_the_gradient(platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x).sum()))(np.ones((1, 1, 3, 3, 1), np.float32))
  np.testing.assert_allclose(gradient, np.full((1, 1, 3, 3, 1), 1 / 9), rtol=1e-6)


def test_on_a_gpu_tied_pixels_divide_the_gradient_equally(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  x = np.random.default_rng(0).integers(0, 3, (2, 3, 11, 12, 4)).astype(np.float32)
  y, dy, (gradient,) = with_gradients(layers.max_pool, x)
  expected = np.zeros_like(x)
  for row in range(y.shape[2]):
    for column in range(y.shape[3]):
      window = np.s_[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
      tied = x[window] == y[:, :, row, column, None, None]
      expected[window] += tied * dy[:, :, row, column, None, None] / tied.sum((2, 3), keepdims=True)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_the_maximum_over_a_nan_is_nan(platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  y = layers.max_pool(jnp.zeros((1, 1, 5, 5, 1)).at[0, 0, 1, 1, 0].set(jnp.nan))
  np.testing.assert_array_equal(np.isnan(y[0, 0, :, :, 0]), [[True, False], [False, False]])


def test_dropout_does_not_rescale_in_training_and_halves_all_units_at_test_time():
  x = jnp.ones((2, 4, 5000))
  dropped = layers.dropout(x, jax.random.key(0))
  assert set(np.unique(dropped)) == {0.0, 1.0}
  assert abs(float(dropped.mean()) - 0.5) < 4 * 0.5 / np.sqrt(x.size)  # four standard deviations
  np.testing.assert_array_equal(layers.dropout(x, None), 0.5 * x)


def test_every_image_and_tower_has_a_different_mask():
  mask = np.asarray(layers.dropout(jnp.ones((2, 4, 1000)), jax.random.key(0))).reshape(8, -1)
  assert len(np.unique(mask, axis=0)) == 8


def test_initial_weights_have_the_given_standard_deviation():
  weights = np.asarray(layers.gaussian(jax.random.key(0), (2, 100, 500), 0.01))
  assert weights.dtype == np.float32
  assert abs(weights.mean()) < 4 * 0.01 / np.sqrt(weights.size)
  np.testing.assert_allclose(weights.std(), 0.01, rtol=0.01)


def test_initial_weights_are_the_numbers_that_jax_draws_for_their_shape():
  key, shape = jax.random.key(3), (2, 11, 11, 3, 48)
  weights = jax.jit(lambda key: layers.gaussian(key, shape, 0.25))(key)  # a power of two, so that nothing is rounded
  np.testing.assert_array_equal(weights, 0.25 * jax.random.normal(key, shape))


@pytest.mark.parametrize('side', [8, 9, 24])
def test_average_pool_takes_the_mean_of_the_pixels_inside(side):
  torch = pytest.importorskip('torch', reason='PyTorch is the reference')
  x = np.random.default_rng(0).normal(size=(2, 3, side, side, 4)).astype(np.float32)
  found, dy, (gradient,) = with_gradients(layers.average_pool, x)
  tensor = torch.tensor(x.reshape(6, side, side, 4).transpose(0, 3, 1, 2), requires_grad=True)
  expected = torch.nn.functional.avg_pool2d(tensor, 3, 2, ceil_mode=True, count_include_pad=False)
  np.testing.assert_allclose(found, expected.detach().numpy().transpose(0, 2, 3, 1).reshape(found.shape), atol=1e-6)
  expected.backward(torch.tensor(dy.reshape(6, *found.shape[2:]).transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(gradient, tensor.grad.numpy().transpose(0, 2, 3, 1).reshape(x.shape), atol=1e-6)
