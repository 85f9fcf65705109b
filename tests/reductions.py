"""Compares compiled reductions with numpy in double precision. Run it as a program, with the compiler flags of main.py.

The first reduction is that of jax issue 39103, which jaxlib 0.10.2 computes incorrectly. The others are the reductions
of a training step of the published network with 32 images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.evaluation import metrics
from alexnet_jax.models import device_mesh, layers, towers

BATCH = 32
RNG = np.random.default_rng(0)


def draw(*shape):
  """Draws a float32 array whose mean is not zero, so a missing element changes its sum."""
  return RNG.normal(0.5, 1.0, shape).astype(np.float32)


def assert_close(name, compiled, expected, rtol=1e-5):
  """Compares a compiled result with the result in double precision."""
  np.testing.assert_allclose(
    np.asarray(compiled), expected, rtol=rtol, atol=rtol * np.abs(expected).max(), err_msg=name
  )


def product_and_reduction():
  """Tests the reproducer of jax issue 39103."""
  rows = np.zeros((32_769, 3), np.float32)
  rows[:, 0] = np.arange(32_769)
  squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
  assert_close('issue 39103', squares, rows[:, 0].astype(np.float64) ** 2)


def bias_gradients():
  """Tests gradients of biases, which are sums over images, rows and columns."""
  for height, channel in ((55, 48), (27, 128), (13, 192)):
    dy = draw(2, BATCH, height, height, channel)
    shape = (2, 1, 1, 1, channel)
    _, pull_back = jax.vjp(lambda bias, shape=dy.shape: jnp.broadcast_to(bias, shape), jnp.zeros(shape))
    assert_close(
      f'bias of {height} x {height}', jax.jit(pull_back)(dy)[0], dy.sum((1, 2, 3), np.float64).reshape(shape)
    )


def response_norm():
  """Tests local response normalisation, whose denominators are sums over neighbouring maps."""
  x = 50 * draw(2, BATCH, 55, 55, 48)
  padded = np.pad(np.square(x, dtype=np.float64), [(0, 0)] * 4 + [(2, 2)])
  sums = sum(padded[..., i : i + 48] for i in range(5))
  assert_close('response norm', jax.jit(layers.local_response_norm)(x), x / (2 + 1e-4 * sums) ** 0.75)


def fully_connected():
  """Tests the matrix product of fc6, a sum of 9,216 terms for each unit."""
  x, kernel = draw(2, BATCH, 9216), 0.01 * draw(2, 9216, 2048)
  expected = np.einsum('tni,tio->tno', x.astype(np.float64), kernel.astype(np.float64), optimize=True)
  arguments = jax.device_put(x, towers.MAPS), jax.device_put(kernel, towers.PARAMS)
  assert_close('fc6', jax.jit(layers.linear)(*arguments), expected)


def loss():
  """Tests the mean log-probability of the labels and their top-5 credit."""
  logits, labels = 3 * draw(BATCH, 1000), RNG.integers(0, 1000, BATCH).astype(np.int32)
  double = logits.astype(np.float64)
  largest = double.max(1, keepdims=True)
  log_probs = double - largest - np.log(np.exp(double - largest).sum(1, keepdims=True))

  @jax.jit
  def compiled(logits, labels):
    log_prob = metrics.label_log_prob(jax.nn.log_softmax(logits), labels)
    return jnp.mean(log_prob), jnp.mean(metrics.top_k_credit_on_device(logits, labels, 5))

  mean, credit = compiled(logits, labels)
  assert_close('log-probability', mean, log_probs[np.arange(BATCH), labels].mean())
  ranks = (double > double[np.arange(BATCH), labels][:, None]).sum(1)
  assert_close('top-5', credit, (ranks < 5).mean())


if __name__ == '__main__':
  with jax.set_mesh(device_mesh.make_mesh(1, 1, num_towers=2, batches={})):
    for test in (product_and_reduction, bias_gradients, response_norm, fully_connected, loss):
      test()
