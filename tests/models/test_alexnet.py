import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from alexnet_jax.models import alexnet, checks, towers
from alexnet_jax.models.registry import build
from alexnet_jax.runtime.errors import UsageError
from configs import alexnet as recipes
from tests.conftest import mesh, mostly_nightly

PUBLISHED = {  # facts, 1.8
  'conv1': 34_944,
  'conv2': 307_456,
  'conv3': 885_120,
  'conv4': 663_936,
  'conv5': 442_624,
  'fc6': 37_752_832,
  'fc7': 16_781_312,
  'fc8': 4_097_000,
}


def small(image_size=64, width=1 / 16, num_classes=10):
  config = recipes.paper().model
  config.image_size, config.width = image_size, width
  return build(config, num_classes)


def images(batch=8, size=64):
  return jax.device_put(60 * jax.random.normal(jax.random.key(9), (batch, size, size, 3)), towers.BATCH)


def image_shape(mesh, batch, size):
  return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32, sharding=NamedSharding(mesh, towers.BATCH))


def test_the_published_network_has_60965224_parameters(one_device):
  network = build(recipes.paper().model, 1000)
  params = jax.eval_shape(network.init, jax.random.key(0))
  assert {name: sum(x.size for x in layer.values()) for name, layer in params.items()} == PUBLISHED
  assert sum(PUBLISHED.values()) == 60_965_224


def test_initial_values_are_those_of_section_5(one_device):
  network = small(width=0.25)
  params = jax.jit(network.init)(jax.random.key(0))
  for name, layer in params.items():
    one = 1.0 if name in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7') else 0.0
    assert np.all(layer['bias'] == one), name
    count = layer['kernel'].size
    assert abs(float(layer['kernel'].std()) - 0.01) < 0.01 * 4 / np.sqrt(2 * count), name
  assert not np.array_equal(params['conv4']['kernel'][0], params['conv4']['kernel'][1])


@pytest.mark.parametrize(('shape', 'expected'), [((2, 2), 5), ((4, 1), 0)])
def test_towers_exchange_maps_where_arrows_cross_in_figure_2(shape, expected):
  """conv3, fc6, fc7, fc8 read both towers, and the softmax reads both halves of fc8: five all-gathers."""
  with jax.set_mesh(mesh(*shape)):
    network = small()
    params = jax.jit(network.init)(jax.random.key(0))
    program = jax.jit(network.apply).lower(params, images()).compile().as_text()
  assert program.count(' all-gather(') + program.count(' all-gather-start(') == expected


def test_conv4_and_conv5_read_their_own_tower_only(one_device, monkeypatch):
  """A change to tower 1's conv4 kernels reaches tower 1's conv5 and not tower 0's."""
  network = small()
  params = jax.jit(network.init)(jax.random.key(0))
  recorded, original = {}, alexnet.AlexNet.layer

  def spy(self, name, x):
    recorded[name] = original(self, name, x)
    return recorded[name]

  @jax.jit
  def conv5(params):
    network.apply(params, images())
    return recorded['conv5']

  monkeypatch.setattr(alexnet.AlexNet, 'layer', spy)
  before = np.asarray(conv5(params))
  change = np.array([0, 0.1], np.float32).reshape(2, 1, 1, 1, 1)
  params['conv4']['kernel'] += jax.device_put(change, towers.PARAMS)
  after = np.asarray(conv5(params))
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(before[1] - after[1]).max() > 0


@pytest.mark.parametrize('shape', [(1, 1), (1, 2)])
@pytest.mark.parametrize('meet', [('conv3', 'fc6', 'fc7', 'fc8'), ('fc8',)])
def test_a_single_image_has_the_logits_that_it_has_in_a_batch(shape, meet):
  """After pool5, crops of 64 pixels have a single position, so that several axes have length 1."""
  config = recipes.paper().model
  config.image_size, config.width, config.meet = 64, 1 / 16, meet
  x = np.random.default_rng(0).uniform(-100, 100, (2, 64, 64, 3)).astype(np.float32)
  with jax.set_mesh(mesh(*shape)):
    network = build(config, 10)
    params = jax.jit(network.init)(jax.random.key(0))
    on_devices = (jax.device_put(rows, towers.BATCH) for rows in (x[:1], x))
    single, both = (np.asarray(jax.jit(network.apply)(params, rows)) for rows in on_devices)
  np.testing.assert_allclose(single, both[:1], rtol=1e-4, atol=1e-5)


def test_networks_of_equal_configs_share_compiled_programs(one_device):
  compute = jax.jit(lambda params, x, network: network.apply(params, x), static_argnums=2)
  network = small()
  params = jax.jit(network.init)(jax.random.key(0))
  np.testing.assert_array_equal(compute(params, images(), network), compute(params, images(), small()))
  assert compute._cache_size() == 1
  assert network == small()
  assert hash(network) == hash(small())
  assert network not in [small(num_classes=11), small(width=1 / 8), small(image_size=65)]


def test_a_module_is_called_without_a_mesh():
  """The module and its pure form agree, on one device without a mesh and on four."""
  config = recipes.paper().model
  config.image_size, config.width = 64, 1 / 16
  x = 60 * np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
  net = alexnet.AlexNet(config, num_classes=7, rngs=nnx.Rngs(0))
  logits, activations = net(x), net.activations(x)
  params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
  assert logits.shape == (4, 7)
  assert tuple(activations) == net.layer_names
  np.testing.assert_array_equal(activations['fc8'], logits)
  dropped = net(x, jax.random.key(1))
  np.testing.assert_array_equal(dropped, net(x, jax.random.key(1)))
  assert np.abs(dropped - logits).max() > 0.01 * np.abs(logits).max()
  with jax.set_mesh(mesh(2, 2)):
    network = build(config, 7)
    params = jax.tree.map(lambda array: jax.device_put(np.asarray(array), towers.PARAMS), params)
    inputs = jax.device_put(x, towers.BATCH)
    in_mesh, outputs = jax.jit(network.apply)(params, inputs), jax.jit(network.activations)(params, inputs)
  np.testing.assert_allclose(in_mesh, logits, rtol=1e-5, atol=1e-6)
  for name, array in activations.items():
    np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-6 * np.abs(array).max(), err_msg=name)


def test_images_of_another_size_are_a_usage_error():
  config = recipes.paper().model
  config.image_size, config.width = 64, 1 / 16
  net = alexnet.AlexNet(config, num_classes=7, rngs=nnx.Rngs(0))
  for shape in ((64, 64, 3), (2, 64, 65, 3), (2, 64, 64, 1)):
    with pytest.raises(UsageError, match=r'images have the shape .*; the network reads \[batch, 64, 64, 3\]'):
      net(np.zeros(shape, np.float32))


@pytest.mark.parametrize('num_classes', mostly_nightly([3, 21_843], 3))
def test_any_number_of_classes_is_supported(num_classes):
  with jax.set_mesh(mesh(1, 2)):
    network = small(num_classes=num_classes)
    params = jax.jit(network.init)(jax.random.key(0))
    logits = jax.jit(network.apply)(params, images())
    assert logits.shape == (8, num_classes)
    gradient = jax.jit(jax.grad(lambda params: network.apply(params, images()).sum()))(params)['fc8']['bias']
  used = np.asarray(gradient).reshape(-1)
  assert np.all(used[:num_classes] == 8)
  assert np.all(used[num_classes:] == 0)  # the surplus unit learns nothing


@pytest.mark.parametrize('size', [64, 65, 66, 67, 103, 259])
def test_any_image_size_from_64_is_supported(one_device, size):
  network = small(image_size=size)
  params = jax.eval_shape(network.init, jax.random.key(0))
  assert jax.eval_shape(network.apply, params, image_shape(one_device, 2, size)).shape == (2, 10)


def test_in_bfloat16_only_products_have_16_bits(one_device):
  config = recipes.paper().model
  config.image_size, config.width, config.dtype = 64, 1 / 16, 'bfloat16'
  network = build(config, 10)
  params = jax.jit(network.init)(jax.random.key(0))
  dtypes = {}

  def record(jaxpr):
    for equation in jaxpr.eqns:
      dtypes.setdefault(equation.primitive.name, set()).update(x.aval.dtype.name for x in equation.outvars)
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        record(inner)

  record(jax.make_jaxpr(lambda params, x: jax.nn.log_softmax(network.apply(params, x)))(params, images()).jaxpr)
  assert dtypes['conv_general_dilated'] == dtypes['dot_general'] == {'bfloat16'}
  assert dtypes['rsqrt'] == dtypes['exp'] == {'float32'}  # of normalisation and of the log-probabilities
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
  outputs, exact = (jax.jit(n.activations)(params, images()) for n in (network, small()))
  for name, ours in outputs.items():
    assert ours.dtype == jnp.float32
    assert 0 < np.abs(ours - exact[name]).max() < 0.02 * np.abs(exact[name]).max(), name


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('image_size', 32, 'leaves no pixel after conv5; choose 64 or more'),
    ('width', 0.0, 'width=0.0 must be above 0'),
    ('num_towers', 0, 'num_towers=0 must be 1 to 16'),
    ('pool_size', 1, 'pool_size=1 must be at least the stride of 2'),
    ('nonlinearity', 'sigmoid', "nonlinearity='sigmoid' is unknown; choose 'relu' or 'tanh'"),
    ('dtype', 'float16', "dtype='float16' is unknown; choose 'float32' or 'bfloat16'"),
    ('meet', ('conv1',), 'may contain conv2, .*fc8'),
    ('meet', ('fc9',), 'may contain conv2, .*fc8'),
    ('meet', ('conv3', 'conv6', 'fc6', 'fc7', 'fc8'), 'names conv6 without kernels; only conv3'),
    ('meet', ('conv3', 'fc6', 'fc7', 'bottleneck', 'fc8'), 'names bottleneck without kernels; only conv3'),
    ('padding.conv5', 3, 'padding.conv5=3 must be 0 to 2'),
    ('padding.conv1', (0, 11), r'padding.conv1=\(0, 11\) must be 0 to 10'),
    ('norm.pooled', ('conv3',), 'norm.pooled=.* may contain conv1, conv2, conv5'),
    ('norm.size', 4, 'norm.size=4 must be odd'),
    ('norm.size', -1, 'norm.size=-1 must be odd'),
    ('norm.k', -1.0, 'norm.k=-1.0 must be above 0'),
    ('norm.alpha', float('nan'), 'norm.alpha=nan must be 0 or more'),
    ('init_bias.conv1', float('nan'), 'init_bias.conv1=nan must be a finite number'),
    ('width', float('inf'), 'width=inf must be above 0'),
    ('norm.after', ('fc6',), 'norm.after=.* may contain conv1'),
    ('kernels.fc6', 0, 'kernels.fc6=0 removes a required layer'),
    ('kernels.conv2', -1, 'kernels.conv2=-1 must be 0 or more'),
    ('kernels', dict(conv3=0, conv4=0, conv5=0), 'one of them is required'),
  ],
)
def test_an_invalid_model_config_is_a_usage_error(one_device, field, value, sentence):
  config = recipes.paper().model
  if isinstance(value, dict):
    config[field].update(value)
  else:
    config.update_from_flattened_dict({field: value})
  with pytest.raises(UsageError, match=rf'^model\..*{sentence}'):
    build(config, 10)


def test_the_smallest_window_and_the_largest_bias_are_valid(one_device):
  config = recipes.paper().model
  config.norm.size, config.init_bias.conv1 = 1, checks.MAX_FLOAT32
  assert build(config, 10).layer_names[-1] == 'fc8'
