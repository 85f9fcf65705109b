import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import convolution


@pytest.mark.parametrize(
  ('size', 'stride', 'padding', 'batch'),
  [
    (11, 4, ((0, 3), (0, 3)), 3),  # conv1
    (5, 1, ((2, 2), (2, 2)), 2),  # conv2
    (3, 1, ((1, 1), (1, 1)), 5),  # conv3 to conv5
    (3, 1, ((0, 0), (0, 0)), 1),
    (4, 3, ((2, 0), (1, 1)), 4),
  ],
)
@pytest.mark.parametrize('image', [(32, 32), (33, 39)])
def test_gradients_are_those_of_the_plain_convolution(size, stride, padding, batch, image):
  x = jax.random.normal(jax.random.key(0), (batch, *image, 6))
  kernel = jax.random.normal(jax.random.key(1), (size, size, 6, 8))

  def gradients(conv):
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, stride, padding), x, kernel)
    return y, *pull_back(jax.random.normal(jax.random.key(2), y.shape))

  for ours, plain in zip(gradients(convolution.conv), gradients(convolution.plain_conv), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * float(jnp.abs(plain).max()))


def test_on_a_cpu_the_kernel_gradient_is_our_own():
  """Otherwise the test above compares XLA with itself."""
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  program = str(jax.make_jaxpr(jax.grad(lambda k: convolution.conv(x, k, 1, ((0, 0), (0, 0))).sum()))(kernel))
  assert 'scan' in program
