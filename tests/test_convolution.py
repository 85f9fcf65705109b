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
@pytest.mark.parametrize('piece_bytes', [1, convolution.PIECE_BYTES])  # one image at a time, and all of them
def test_gradients_are_those_of_the_plain_convolution(size, stride, padding, batch, image, piece_bytes, monkeypatch):
  monkeypatch.setattr(convolution, 'PIECE_BYTES', piece_bytes)
  x = jax.random.normal(jax.random.key(0), (batch, *image, 6))
  kernel = jax.random.normal(jax.random.key(1), (size, size, 6, 8))

  def gradients(conv):
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, stride, padding), x, kernel)
    return y, *pull_back(jax.random.normal(jax.random.key(2), y.shape))

  for ours, plain in zip(gradients(convolution.conv), gradients(convolution.plain_conv), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize('argument', [0, 1])
def test_on_a_cpu_the_gradients_are_our_own(argument):
  """Otherwise the test above compares XLA with itself."""
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  gradient = jax.grad(lambda x, k: convolution.conv(x, k, 1, ((0, 0), (0, 0))).sum(), argument)
  assert 'scan' in str(jax.make_jaxpr(gradient)(x, kernel))


def test_pieces_keep_their_patches_in_the_cache():
  assert [len(convolution._in_pieces(jnp.ones((32, 1)), size)[0]) for size in (5_227_200, 3_499_200, 1_557_504)] == [
    *(1, 2, 4)  # conv1, conv2 and conv3 of the paper
  ]
  assert convolution._in_pieces(jnp.ones((7, 1)), 2**22).shape == (7, 1, 1)  # nothing but 7 and 1 divides 7


@pytest.mark.parametrize(('side', 'num_kernels'), [(32, 32), (24, 64)])
def test_the_first_layer_of_the_small_networks(side, num_kernels):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, side, side, 3)).astype(np.float32)
  kernel = rng.normal(size=(5, 5, 3, num_kernels)).astype(np.float32)
  padding = ((2, 2), (2, 2))
  expected = convolution.plain_conv(x, kernel, 1, padding)
  found = jax.jit(lambda x, kernel: convolution.conv_by_patches(x, kernel, padding))(x, kernel)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(convolution.conv(x, kernel, 1, padding), expected, rtol=1e-4, atol=1e-4)
