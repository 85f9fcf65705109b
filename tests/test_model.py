import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from alexnet_jax import model, towers
from alexnet_jax.errors import UsageError
from configs import alexnet
from tests.conftest import mesh

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
  config = alexnet.paper().model
  config.image_size, config.width = image_size, width
  return model.build(config, num_classes)


def images(batch=8, size=64):
  return jax.device_put(60 * jax.random.normal(jax.random.key(9), (batch, size, size, 3)), towers.BATCH)


def image_shape(mesh, batch, size):
  return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32, sharding=NamedSharding(mesh, towers.BATCH))


def test_the_published_network_has_60965224_parameters(one_device):
  network = model.build(alexnet.paper().model, 1000)
  params = jax.eval_shape(network.init, jax.random.key(0))
  assert {name: sum(x.size for x in layer.values()) for name, layer in params.items()} == PUBLISHED
  assert sum(PUBLISHED.values()) == 60_965_224


def test_every_layer_has_the_published_shape(one_device, monkeypatch):
  shapes = {}
  for layer in (model.Conv, model.Linear):

    def spy(self, x, call=layer.__call__):
      shapes[self.kernel.shape] = call(self, x).shape
      return call(self, x)

    monkeypatch.setattr(layer, '__call__', spy)
  network = model.build(alexnet.paper().model, 1000)
  params = jax.eval_shape(network.init, jax.random.key(0))
  logits = jax.eval_shape(network.apply, params, image_shape(one_device, 4, 224))
  assert logits.shape == (4, 1000)
  assert shapes == {
    (2, 11, 11, 3, 48): (2, 4, 55, 55, 48),
    (2, 5, 5, 48, 128): (2, 4, 27, 27, 128),
    (2, 3, 3, 256, 192): (2, 4, 13, 13, 192),
    (2, 3, 3, 192, 192): (2, 4, 13, 13, 192),
    (2, 3, 3, 192, 128): (2, 4, 13, 13, 128),
    (2, 9216, 2048): (2, 4, 2048),
    (2, 4096, 2048): (2, 4, 2048),
    (2, 4096, 500): (2, 4, 500),
  }


def test_initial_values_are_those_of_section_5(one_device):
  network = small(width=0.25)
  params = jax.jit(network.init)(jax.random.key(0))
  for name, layer in params.items():
    one = 1.0 if name in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7') else 0.0
    assert np.all(layer['bias'] == one), name
    count = layer['kernel'].size
    assert abs(float(layer['kernel'].std()) - 0.01) < 0.01 * 4 / np.sqrt(2 * count), name
  assert not np.array_equal(params['conv4']['kernel'][0], params['conv4']['kernel'][1])


def logits_and_gradients(network, params, x, label, key):
  def loss(params):
    logits = network.apply(params, x, key)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(label, logits.shape[-1]), -1)), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return logits, gradients


def dropout_masks(monkeypatch):
  """Records the masks that `dropout` draws, so that the reference can use them too."""
  masks, bernoulli = [], jax.random.bernoulli

  def recording(key, p, shape, **kwargs):
    keep = bernoulli(key, p, shape, **kwargs)
    jax.debug.callback(lambda keep: masks.append(np.concatenate(list(keep), axis=-1)), keep)
    return keep

  monkeypatch.setattr(jax.random, 'bernoulli', recording)
  return masks


@pytest.mark.parametrize(
  ('image_size', 'width', 'num_classes'),
  [(96, 1 / 8, 7), pytest.param(224, 1.0, 1000, marks=pytest.mark.slow)],
)
def test_logits_and_gradients_are_those_of_a_grouped_network_in_torch(
  one_device, monkeypatch, image_size, width, num_classes
):
  torch = pytest.importorskip('torch')
  from tests import reference

  network = small(image_size, width, num_classes)
  # Weights larger than published, so that all layers matter to the logits.
  params = jax.tree.map(lambda x: x * (3 if x.ndim > 2 else 0.1), jax.jit(network.init)(jax.random.key(0)))
  x, label = images(4, image_size), jax.device_put(jnp.arange(4, dtype=jnp.int32), towers.BATCH)
  x_torch = torch.tensor(np.asarray(x))

  def weights():
    tensors = {
      name: torch.tensor(value, requires_grad=True) for name, value in reference.to_interchange(params).items()
    }
    for part in ('weight', 'bias'):  # an odd number of classes leaves one unit unused
      tensors[f'fc8.{part}'] = tensors[f'fc8.{part}'].detach()[:num_classes].requires_grad_()
    return tensors

  def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours[: len(theirs)], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())

  assert_close(jax.jit(network.apply)(params, x), reference.forward(weights(), x_torch))

  masks = dropout_masks(monkeypatch)
  logits, gradients = logits_and_gradients(network, params, x, label, jax.random.key(5))
  jax.effects_barrier()
  masks.sort(key=lambda mask: mask.shape)  # fc6 and fc7 are of one width
  assert len(masks) == 2
  best = None
  for order in (masks, masks[::-1]):  # callbacks may come in either order
    tensors = weights()
    result = reference.forward(tensors, x_torch, keep=[torch.tensor(mask, dtype=torch.float32) for mask in order])
    distance = np.abs(result.detach().numpy() - logits).max()
    if best is None or distance < best[0]:
      best = (distance, tensors, result)
  _, tensors, result = best
  assert_close(logits, result)
  torch.nn.functional.cross_entropy(result, torch.tensor(np.asarray(label), dtype=torch.long)).backward()
  for name, gradient in reference.to_interchange(gradients).items():
    assert_close(gradient, tensors[name].grad)


def test_logits_are_the_same_on_every_mesh():
  x = 60 * np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype(np.float32)
  found = {}
  for shape in [(1, 1), (1, 2), (2, 2), (4, 1)]:
    with jax.set_mesh(mesh(*shape)):
      network = small()
      params = jax.jit(network.init)(jax.random.key(0))
      found[shape] = np.asarray(jax.jit(network.apply)(params, jax.device_put(x, towers.BATCH), jax.random.key(1)))
  for logits in found.values():
    np.testing.assert_allclose(logits, found[1, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('shape', 'expected'), [((1, 2), 5), ((2, 2), 5), ((1, 1), 0), ((4, 1), 0)])
def test_towers_meet_where_figure_2_says(shape, expected):
  """conv3, fc6, fc7, fc8 read both towers, and the softmax reads both halves of fc8: five all-gathers."""
  with jax.set_mesh(mesh(*shape)):
    network = small()
    params = jax.jit(network.init)(jax.random.key(0))
    program = jax.jit(network.apply).lower(params, images()).compile().as_text()
  assert program.count(' all-gather(') + program.count(' all-gather-start(') == expected


def test_conv4_and_conv5_see_their_own_tower_only(one_device):
  """A change to tower 1's conv4 kernels reaches tower 1's conv5 and not tower 0's."""
  network = small()
  params = jax.jit(network.init)(jax.random.key(0))
  seen = []

  def conv5_of(params):
    seen.clear()
    network.apply(params, images())
    return seen[0]

  original = model.max_pool

  def spy(x):
    y = original(x)
    if y.shape[2] == 1:  # the last pooling
      seen.append(y)
    return y

  model.max_pool = spy
  try:
    before = conv5_of(params)
    change = np.array([0, 0.1], np.float32).reshape(2, 1, 1, 1, 1)
    params['conv4']['kernel'] += jax.device_put(change, towers.PARAMS)
    after = conv5_of(params)
  finally:
    model.max_pool = original
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(before[1] - after[1]).max() > 0


@pytest.mark.parametrize('num_classes', [2, 3, 7, 21_843])
def test_any_number_of_classes(num_classes):
  with jax.set_mesh(mesh(1, 2)):
    network = small(num_classes=num_classes)
    params = jax.jit(network.init)(jax.random.key(0))
    logits = jax.jit(network.apply)(params, images())
    assert logits.shape == (8, num_classes)
    gradient = jax.jit(jax.grad(lambda params: network.apply(params, images()).sum()))(params)['fc8']['bias']
  used = np.asarray(gradient).reshape(-1)
  assert np.all(used[:num_classes] == 8)
  assert np.all(used[num_classes:] == 0)  # the surplus unit learns nothing


@pytest.mark.parametrize('size', range(64, 260, 13))
def test_any_size_of_image_from_64(one_device, size):
  network = small(image_size=size)
  params = jax.eval_shape(network.init, jax.random.key(0))
  assert jax.eval_shape(network.apply, params, image_shape(one_device, 2, size)).shape == (2, 10)


@pytest.mark.parametrize(('size', 'width', 'sentence'), [(63, 1.0, 'choose 64 or more'), (224, 0.0, 'above 0')])
def test_what_makes_no_network_says_why(one_device, size, width, sentence):
  with pytest.raises(UsageError, match=sentence):
    small(size, width)
