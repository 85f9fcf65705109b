import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.models import device_mesh, layers, towers
from alexnet_jax.runtime.errors import RunError, UsageError
from tests.conftest import mesh

MESHES = [(1, 1), (2, 2), (4, 1)]


def grouped_conv(x, kernel, stride, padding):
  """Computes one convolution with two groups: x [batch, ..., tower * in], kernel [tower, ..., in, out]."""
  kernel = jnp.concatenate(list(kernel), axis=-1)
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=2
  )


@pytest.mark.parametrize('shape', MESHES)
def test_conv_is_a_convolution_in_two_groups(shape):
  x = jax.random.normal(jax.random.key(0), (8, 9, 9, 2 * 4))
  kernel, bias = jax.random.normal(jax.random.key(1), (2, 3, 3, 4, 6)), jax.random.normal(jax.random.key(2), (2, 6))
  padding = ((1, 1), (1, 1))

  def in_towers(x, kernel, bias):
    x = jax.device_put(jnp.stack(jnp.split(x, 2, axis=-1)), towers.MAPS)
    kernel, bias = jax.device_put((kernel, bias), towers.PARAMS)
    return towers.gather(layers.conv(x, kernel, bias, padding=padding))

  def grouped(x, kernel, bias):
    return grouped_conv(x, kernel, 1, padding) + bias.reshape(-1)

  compare_with_gradients(in_towers, grouped, (x, kernel, bias), shape)


@pytest.mark.parametrize('shape', MESHES)
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_a_conv_of_shared_maps_is_one_convolution(shape, platform, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)  # computed by columns and by blocks
  x = jax.random.normal(jax.random.key(0), (8, 19, 19, 3))
  kernel, bias = jax.random.normal(jax.random.key(1), (2, 11, 11, 3, 6)), jax.random.normal(jax.random.key(2), (2, 6))

  def in_towers(x, kernel, bias):
    x = jax.device_put(x, towers.BATCH)
    kernel, bias = jax.device_put((kernel, bias), towers.PARAMS)
    return towers.gather(layers.conv(x, kernel, bias, stride=4))

  def whole(x, kernel, bias):
    y = lax.conv_general_dilated(
      x, jnp.concatenate(list(kernel), -1), (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return y + bias.reshape(-1)

  compare_with_gradients(in_towers, whole, (x, kernel, bias), shape)


def compare_with_gradients(ours, reference, arguments, shape):
  """Compares two functions, and their gradients with respect to all arguments; ours on a mesh."""

  def gradients(function):
    return jax.value_and_grad(lambda *arguments: jnp.sum(jnp.sin(function(*arguments))), range(len(arguments)))

  expected = gradients(reference)(*arguments)
  with jax.set_mesh(mesh(*shape)):
    np.testing.assert_allclose(jax.jit(ours)(*arguments), reference(*arguments), rtol=1e-5, atol=1e-5)
    found = jax.jit(gradients(ours))(*arguments)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_each_device_holds_its_own_tower():
  with jax.set_mesh(mesh(1, 2)):
    kernel = jax.device_put(jnp.zeros((2, 3, 3, 4, 6)), towers.PARAMS)
  assert kernel.sharding.shard_shape(kernel.shape) == (1, 3, 3, 4, 6)


@pytest.mark.parametrize(
  ('fields', 'shape'), [((0, 0), (2, 2)), ((0, 1), (4, 1)), ((1, 0), (1, 2)), ((2, 0), (2, 2)), ((4, 0), (4, 1))]
)
def test_the_mesh_is_chosen_for_four_devices(fields, shape):
  found = device_mesh.make_mesh(*fields, num_towers=2, batches={'batch_size': 8})
  assert (found.shape['data'], found.shape['tower']) == shape


def test_a_network_of_one_tower_is_never_split():
  assert device_mesh.make_mesh(0, 0, num_towers=1, batches={'batch_size': 8}).shape['tower'] == 1


@pytest.mark.parametrize(
  ('fields', 'num_towers', 'batch_size', 'sentence'),
  [
    ((4, 2), 2, 8, r'JAX_NUM_CPU_DEVICES=8 .*--config.mesh.tower=2'),
    ((1, 4), 2, 8, r'does not divide the 2 tower\(s\) of the network; choose 1 or 2\.'),
    ((1, 2), 1, 8, r'does not divide the 1 tower\(s\) of the network; choose 1\.'),
    ((4, 1), 2, 6, 'does not divide eval.batch_size=6'),
  ],
)
def test_an_impossible_mesh_is_a_usage_error(fields, num_towers, batch_size, sentence):
  with pytest.raises(UsageError, match=sentence):
    device_mesh.make_mesh(*fields, num_towers=num_towers, batches={'eval.batch_size': batch_size})


@pytest.mark.parametrize('shape', [(1, 1), (2, 2)])
def test_batches_are_prefetched_in_order(shape):
  read = []

  def batches():
    for number in range(7):
      read.append(number)
      yield {'image': np.full((4, 3), number, np.uint8), 'label': np.arange(4) + number}

  current = mesh(*shape)
  ahead = device_mesh.prefetch_to_devices(current, batches())
  found = [next(ahead)]
  assert len(read) == 1 + device_mesh.NUM_COPIES
  found += ahead
  for number, batch in enumerate(found):
    assert batch['image'].sharding.spec == towers.BATCH
    assert batch['image'].sharding.mesh == current
    np.testing.assert_array_equal(batch['image'], np.full((4, 3), number))
    np.testing.assert_array_equal(batch['label'], np.arange(4) + number)
  assert len(found) == 7


def test_a_read_error_ends_prefetching(one_device):
  def batches():
    yield np.zeros(4)
    raise RunError('record 3 cannot be read.')

  with pytest.raises(RunError, match='record 3'):
    next(device_mesh.prefetch_to_devices(one_device, batches()))


@pytest.mark.parametrize('shape', MESHES)
def test_one_process_reads_whole_batches(shape):
  assert device_mesh.data_shard(mesh(*shape)) == (0, 1)
