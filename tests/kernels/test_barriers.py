import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.kernels import barriers
from alexnet_jax.models import layers, towers
from tests.conftest import mesh


def pooling():
  """Returns pooled maps, two functions of them, and a gradient; and the number of maxima in their program."""

  @jax.jit
  def pool(x):
    y, pull_back = jax.vjp(layers.max_pool, x)
    return y, y[:, :1] + 1, y[:, 1:].reshape(2, -1) * 2, pull_back(jnp.square(y))

  x = jax.device_put(jax.random.normal(jax.random.key(0), (2, 4, 27, 27, 8)), towers.MAPS)
  return pool(x), pool.lower(x).compile().as_text().count(' maximum(')


@pytest.mark.parametrize('num_tower', [1, 2])
def test_pooling_is_computed_once_with_bit_equal_results(num_tower, monkeypatch):
  with jax.set_mesh(mesh(1, num_tower)):
    found, num_maxima = pooling()
    monkeypatch.setattr(barriers, 'written_once_on_cpu', lambda x: x)
    expected, num_maxima_without = pooling()
  assert num_maxima == 2 * 2 < num_maxima_without  # of three pixels, along two axes
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
