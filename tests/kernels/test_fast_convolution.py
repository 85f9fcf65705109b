import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.kernels import fast_convolution
from tests.conftest import with_gradients

ONE_IMAGE, ALL_IMAGES = 1, fast_convolution.PIECE_BYTES  # number of bytes of patches that are computed at once


def normal(*shape, seed, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def convolved(conv, x, kernel, stride, padding):
  """Returns the output of a convolution, and the gradients of its input and its kernel."""
  y, _, gradients = with_gradients(lambda x, kernel: conv(x, kernel, stride, padding), x, kernel)
  return y, *gradients


@pytest.mark.parametrize(
  ('size', 'stride', 'padding', 'batch', 'image', 'piece_bytes'),
  [
    (11, 4, ((0, 3), (0, 3)), 3, (33, 39), ONE_IMAGE),  # conv1
    (11, 4, ((0, 3), (0, 3)), 3, (32, 32), ALL_IMAGES),
    (5, 1, ((2, 2), (2, 2)), 2, (32, 32), ONE_IMAGE),  # conv2
    (3, 1, ((1, 1), (1, 1)), 5, (33, 39), ALL_IMAGES),  # conv3 to conv5
    (3, 1, ((0, 0), (0, 0)), 1, (32, 32), ALL_IMAGES),
    (4, 3, ((2, 0), (1, 1)), 4, (33, 39), ONE_IMAGE),
    (4, 3, ((2, 0), (1, 1)), 4, (32, 32), ALL_IMAGES),
  ],
)
def test_gradients_are_those_of_the_plain_convolution(size, stride, padding, batch, image, piece_bytes, monkeypatch):
  monkeypatch.setattr(fast_convolution, 'PIECE_BYTES', piece_bytes)
  monkeypatch.setattr(fast_convolution, 'MANY_KERNELS', 8)
  x = normal(batch, *image, 6, seed=0)
  kernel = normal(size, size, 6, 8, seed=2)

  expected = convolved(fast_convolution.plain_conv, x, kernel, stride, padding)
  for ours, plain in zip(convolved(fast_convolution.conv, x, kernel, stride, padding), expected, strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize(
  ('num_kernels', 'stride', 'expected'),
  [
    (32, 1, {'conv_by_pairs', 'kernel_gradient'}),
    (64, 1, {'kernel_gradient'}),
    (128, 1, {'kernel_gradient', 'input_gradient', 'conv_by_columns'}),
    (96, 2, {'conv_by_columns', 'kernel_gradient'}),
  ],
)
def test_a_cpu_uses_the_forms_of_this_project_where_they_are_faster(num_kernels, stride, expected, monkeypatch):
  """Ensures that the test above does not compare XLA with itself."""
  called = set()

  def watched(name, function):
    return lambda *arguments: called.add(name) or function(*arguments)

  for name in ('conv_by_pairs', 'conv_by_columns', 'kernel_gradient', 'input_gradient'):
    monkeypatch.setattr(fast_convolution, name, watched(name, getattr(fast_convolution, name)))
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, num_kernels))
  jax.make_jaxpr(jax.grad(lambda x, k: fast_convolution.conv(x, k, stride, ((0, 0), (0, 0))).sum(), (0, 1)))(x, kernel)
  assert called == expected


@pytest.mark.parametrize(
  ('size', 'stride', 'padding', 'image'),
  [
    (11, 4, ((0, 3), (0, 3)), (33, 39)),
    (5, 2, ((1, 0), (2, 2)), (32, 32)),
    (4, 3, ((2, 0), (1, 1)), (33, 39)),
    (4, 3, ((2, 0), (1, 1)), (32, 32)),
  ],
)
def test_a_gpu_computes_strided_convolutions_by_blocks(size, stride, padding, image, monkeypatch):
  """The first is conv1. A stride of 1 is XLA's own there."""
  x = normal(3, *image, 3, seed=0)
  kernel = normal(size, size, 3, 8, seed=2)

  expected = convolved(fast_convolution.plain_conv, x, kernel, stride, padding)
  plain, strides = fast_convolution.plain_conv, []
  monkeypatch.setattr(fast_convolution, 'plain_conv', lambda x, k, s, p: strides.append(s) or plain(x, k, s, p))
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  for found, reference in zip(convolved(fast_convolution.conv, x, kernel, stride, padding), expected, strict=True):
    np.testing.assert_allclose(found, reference, rtol=1e-5, atol=1e-5 * np.abs(reference).max())
  assert strides == [1]


def test_a_gpu_pads_48_channels_in_bfloat16_to_64(monkeypatch):
  x = normal(3, 9, 9, 48, seed=0, dtype=jnp.bfloat16)
  kernel = normal(5, 5, 48, 8, seed=2, dtype=jnp.bfloat16)
  padding = ((2, 2), (2, 2))

  expected = convolved(fast_convolution.plain_conv, x, kernel, 1, padding)
  plain, channels = fast_convolution.plain_conv, []
  monkeypatch.setattr(
    fast_convolution, 'plain_conv', lambda x, k, *rest: channels.append(x.shape[-1]) or plain(x, k, *rest)
  )
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  for found, reference in zip(convolved(fast_convolution.conv, x, kernel, 1, padding), expected, strict=True):
    assert found.shape == reference.shape
    np.testing.assert_allclose(
      *(np.asarray(array, np.float32) for array in (found, reference)), atol=np.abs(reference).max() / 128
    )
  assert channels == [64]


def test_pieces_keep_their_patches_in_the_cache():
  assert [
    len(fast_convolution._in_pieces(jnp.ones((32, 1)), size)[0]) for size in (5_227_200, 3_499_200, 1_557_504)
  ] == [
    *(1, 2, 4)  # conv1, conv2 and conv3 of the paper
  ]
  assert fast_convolution._in_pieces(jnp.ones((7, 1)), 2**22).shape == (7, 1, 1)  # nothing but 7 and 1 divides 7


@pytest.mark.parametrize(('width', 'padding'), [(32, (2, 2)), (24, (2, 2)), (17, (2, 2)), (16, (0, 1)), (12, (3, 0))])
def test_two_pixels_at_a_time_compute_the_plain_convolution(width, padding):
  """As in the first layer of the small networks."""
  x = normal(4, 32, width, 3, seed=0)
  kernel = normal(5, 5, 3, 32, seed=2)
  padding = ((2, 1), padding)
  expected = fast_convolution.plain_conv(x, kernel, 1, padding)
  assert fast_convolution.conv_by_pairs(x, kernel, padding).shape == expected.shape
  for found in (fast_convolution.conv_by_pairs(x, kernel, padding), fast_convolution.conv(x, kernel, 1, padding)):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
