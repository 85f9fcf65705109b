import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.kernels import fast_convolution, onednn
from alexnet_jax.models import layers, towers
from tests.conftest import with_gradients
from tests.kernels.test_fast_convolution import convolved


@pytest.mark.usefixtures('with_onednn')
@pytest.mark.parametrize('max_bytes', [onednn.MAX_BYTES, 20_000])  # or by rows: one to all of them at a time
@pytest.mark.parametrize(
  ('size', 'stride', 'padding', 'batch', 'num_in', 'num_out', 'image'),
  [
    (11, 4, ((0, 3), (0, 3)), 3, 3, 96, (33, 39)),  # conv1
    (5, 1, ((2, 2), (2, 2)), 2, 48, 128, (32, 32)),  # conv2
    (3, 1, ((1, 1), (1, 1)), 5, 24, 384, (33, 39)),  # conv3 to conv5
    (3, 1, ((0, 0), (0, 0)), 1, 7, 1, (32, 32)),
    (3, 1, ((3, 0), (4, 1)), 2, 1, 5, (33, 39)),  # padded by more than a kernel reaches
    (4, 3, ((2, 0), (1, 1)), 35, 6, 17, (33, 39)),  # maps that reach farther than the windows, images not divided by 16
    (4, 3, ((2, 0), (1, 1)), 35, 6, 17, (32, 32)),
    (1, 2, ((0, 0), (0, 0)), 131, 2, 3, (33, 39)),  # more images than eight times 16
  ],
)
def test_convolution_and_its_gradients_are_those_of_xla(
  size, stride, padding, batch, num_in, num_out, image, max_bytes, monkeypatch
):
  monkeypatch.setattr(onednn, 'MAX_BYTES', max_bytes)
  x = jax.random.normal(jax.random.key(0), (batch, *image, num_in))
  kernel = jax.random.normal(jax.random.key(1), (size, size + 1, num_in, num_out))  # wider than high
  ours, plain = (convolved(conv, x, kernel, stride, padding) for conv in (onednn.conv, fast_convolution.plain_conv))
  for found, expected in zip(ours, plain, strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.usefixtures('with_onednn')
@pytest.mark.parametrize('shape', [(2, 32, 96, 50), (1, 1, 7, 3), (3, 5, 1, 1)])
def test_product_and_its_gradients_are_those_of_numpy(shape):
  stack, rows, inner, columns = shape
  a, b = np.random.default_rng(0).normal(size=(2, stack, 100, 100)).astype(np.float32)
  a, b = a[:, :rows, :inner], b[:, :inner, :columns]
  y, dy, (da, db) = with_gradients(onednn.matmul, a, b)
  for found, expected in ((y, a @ b), (da, dy @ b.swapaxes(1, 2)), (db, a.swapaxes(1, 2) @ dy)):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures('with_onednn')
def test_weights_are_updated_in_place():
  @functools.partial(jax.jit, donate_argnums=1)
  def update(x, weights):
    _, _, (dx, gradient) = with_gradients(onednn.matmul, x, weights)
    return dx, weights - gradient

  weights = jnp.ones((2, 96, 50))
  program = update.lower(jnp.ones((2, 32, 96)), weights).compile()
  assert program.memory_analysis().alias_size_in_bytes == weights.nbytes
  assert not re.search(r'f32\[2,96,50\]\S* copy', program.as_text())


@pytest.mark.usefixtures('with_onednn')
def test_convolutions_do_not_wait_for_each_other():
  """Each convolution schedules tasks on the threads of all others."""
  x, kernels = jnp.ones((4, 13, 13, 16)), jnp.ones((16, 3, 3, 16, 64))

  @jax.jit
  def many(x):
    return sum(onednn.conv(x, kernel, 1, ((1, 1), (1, 1))).mean() for kernel in kernels)

  results = {float(many(x)) for _ in range(50)}
  assert len(results) == 1


@pytest.mark.usefixtures('with_onednn')
def test_products_of_a_stack_do_not_wait_for_each_other():
  a, b = jnp.ones((2, 32, 512)), jnp.ones((2, 512, 256))
  product = jax.jit(onednn.matmul)
  assert all((product(a, b) == 512).all() for _ in range(300))


def calls(num_images=4):
  """Returns whether the convolution and the product of a tower call oneDNN."""

  def is_called(function, x, *parameters):
    arguments = jax.device_put(x, towers.MAPS), *jax.device_put(parameters, towers.PARAMS)
    return '__onednn$' in str(jax.make_jaxpr(function)(*arguments))

  return [
    is_called(layers.conv, jnp.ones((2, 2, 8, 8, 3)), jnp.ones((2, 3, 3, 3, 4)), jnp.ones((2, 4))),
    is_called(layers.linear, jnp.ones((2, num_images, 3)), jnp.ones((2, 3, 4))),
  ]


@pytest.mark.usefixtures('one_device')
def test_onednn_is_not_called_with_the_compilation_cache():
  assert jax.config.jax_enable_compilation_cache
  assert calls() == [False, False]


@pytest.mark.usefixtures('one_device', 'with_onednn')
@pytest.mark.parametrize('has_avx512', [True, False])
def test_onednn_is_called_without_the_cache_except_for_stacks_without_avx512(has_avx512, monkeypatch):
  monkeypatch.setattr(onednn, 'multiplies_stacks', lambda: has_avx512)
  assert calls() == [True, has_avx512]


@pytest.mark.usefixtures('one_device', 'with_onednn')
def test_xla_multiplies_few_images_by_a_matrix():
  assert calls(num_images=3) == [True, False]


def test_the_required_versions_of_jaxlib_were_tested():
  required = (pathlib.Path(__file__).parents[2] / 'requirements.txt').read_text()
  assert tuple(re.findall('^jax==([0-9.]+)', required, re.MULTILINE)) == onednn.TESTED_VERSIONS


def test_onednn_is_not_called_in_untested_versions(monkeypatch):
  monkeypatch.setattr(jax.lib, '__version__', '99.0.0')
  onednn.is_available.cache_clear()
  try:
    assert not onednn.is_available()
  finally:
    onednn.is_available.cache_clear()
