"""The networks of configs/cifar10.py: their sizes, against PyTorch, and their recipes."""

import jax
import numpy as np
import pytest

from alexnet_jax.data import cropping
from alexnet_jax.models import cifar, device_mesh
from alexnet_jax.models.registry import build
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import optimizer
from configs import cifar10
from tests.conftest import mostly_nightly

NUM_PARAMETERS = {  # facts, 3
  '26pct': 145_578,
  '19pct': 89_578,
  '18pct': 89_578,
  '13pct': 1_116_490,
  '11pct': 2_112_970,
  'figure1': 89_578,
}
torch = pytest.importorskip('torch', reason='PyTorch is the reference')
F = torch.nn.functional
VARIANTS = mostly_nightly(
  [*NUM_PARAMETERS, 'figure1,tanh', '11pct,no_lrn', '13pct,lrn'], '18pct', '11pct', 'figure1,tanh'
)


pytestmark = pytest.mark.usefixtures('one_device')


def drawn(config):
  """Returns a network, and parameters so large that every layer changes the logits."""
  config.model.init_std = dict.fromkeys(config.model.init_std, 0.05)
  config.model.init_bias = dict.fromkeys(config.model.init_bias, 0.1)
  network = build(config.model, 10)
  return network, jax.jit(network.init)(jax.random.key(0))


def images(size, count=4):
  return np.random.default_rng(0).normal(0, 60, (count, size, size, 3)).astype(np.float32)


def local(x, kernel, bias):
  """A locally connected layer by PyTorch's own patches, whose inputs are in the order channel, row, column."""
  height, width, num_window, _ = kernel.shape
  channels = x.shape[1]
  patches = F.unfold(x, 3, padding=1).reshape(len(x), channels, num_window // channels, height, width)
  kernel = kernel.reshape(height, width, num_window // channels, channels, -1)
  return torch.einsum('ncphw,hwpco->nohw', patches, kernel) + bias.permute(2, 0, 1)


def within(x):
  """Facts, 3: same-map normalisation over 3 x 3, scale 5e-5 over 9."""
  return x / (1 + 5e-5 / 9 * F.avg_pool2d(x * x, 3, stride=1, padding=1, divisor_override=1)) ** 0.75


def across(x):
  """Facts, 3: over nine maps, scale 0.001, which PyTorch divides by 9 as cuda-convnet did."""
  return F.local_response_norm(x, 9, alpha=0.001, beta=0.75, k=1.0)


def reference(params, x, variants):
  """Computes each network in PyTorch."""
  hidden = torch.tanh if 'tanh' in variants else F.relu
  name = variants.split(',')[0]
  norm = across if (name == '11pct' and 'no_lrn' not in variants) or ',lrn' in variants else lambda x: x

  def conv(x, layer):
    kernel = params[layer]['kernel'][0].permute(3, 2, 0, 1)
    return hidden(F.conv2d(x, kernel, params[layer]['bias'][0], padding=2))

  def largest(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)

  def mean(x):
    return F.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)

  x = x.permute(0, 3, 1, 2)
  if name in ('13pct', '11pct'):
    x = norm(largest(conv(x, 'conv1')))
    x = largest(norm(conv(x, 'conv2')))
    for layer in ('local3', 'local4'):
      x = hidden(local(x, params[layer]['kernel'][0], params[layer]['bias'][0]))
  else:
    after = within if name == '18pct' else lambda x: x
    x = after(largest(conv(x, 'conv1')))
    x = after(mean(conv(x, 'conv2')))
    x = mean(conv(x, 'conv3'))
  x = x.permute(0, 2, 3, 1).flatten(1)
  if 'fc64' in params:
    x = hidden(x @ params['fc64']['kernel'][0] + params['fc64']['bias'][0])
  return x @ params['fc10']['kernel'][0] + params['fc10']['bias'][0]


@pytest.mark.parametrize('variants', VARIANTS)
def test_logits_and_gradients_are_those_of_pytorch(variants, one_device):
  config = cifar10.get_config(variants)
  config.model.width = 1 / 4
  network, params = drawn(config)
  x, weights = images(config.model.image_size), np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)

  @jax.jit
  def both(params, x, weights):
    logits, pull = jax.vjp(lambda params: network.apply(params, x), params)
    return logits, pull(weights)[0]

  logits, gradients = both(params, *device_mesh.put_batch(one_device, (x, weights)))

  # In double precision: in single precision, PyTorch's sums were once rounded differently than in all other runs.
  tensors = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), params)
  expected = reference(tensors, torch.tensor(x, dtype=torch.float64), variants)
  expected.backward(torch.tensor(weights, dtype=torch.float64))
  np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
  for name, layer in gradients.items():
    for part, found in layer.items():
      wanted = tensors[name][part].grad.numpy()
      np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=f'{name} {part}')


@pytest.mark.parametrize('name', NUM_PARAMETERS)
def test_the_number_of_parameters_is_that_of_2012(name):
  network = build(cifar10.get_config(name).model, 10)
  params = jax.eval_shape(network.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == NUM_PARAMETERS[name]
  assert set(NUM_PARAMETERS) == set(cifar10.NETWORKS)


def test_layers_are_in_the_order_of_the_network(one_device):
  network, params = drawn(cifar10.get_config('11pct'))
  found = jax.jit(network.activations)(params, device_mesh.put_batch(one_device, images(24)))
  names = list(network.layer_names)
  assert set(found) == set(names)
  assert names == ['conv1', 'pool1', 'conv2', 'pool2', 'local3', 'local4', 'fc10']
  assert [found[name].shape[1:] for name in names[:-1]] == [
    (24, 24, 64),
    (12, 12, 64),
    (12, 12, 64),
    (6, 6, 64),
    (6, 6, 64),
    (6, 6, 32),
  ]


def test_a_locally_connected_layer_computes_the_same_on_every_mesh(one_device):
  config = cifar10.get_config('13pct')
  network, params = drawn(config)
  x = images(24, 8)
  expected = np.asarray(jax.jit(network.apply)(params, device_mesh.put_batch(one_device, x)))
  four = device_mesh.make_mesh(4, 1, num_towers=1, batches={'batch_size': 8})
  with jax.set_mesh(four):
    network, params = drawn(config)
    found = jax.jit(network.apply)(params, device_mesh.put_batch(four, x))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_each_layer_decays_as_in_the_files_of_2012():
  """The paper's two equations in numpy, with cuda-convnet's decay for each layer (facts, 3)."""
  config = cifar10.get_config('13pct')
  config.model.width, config.optimizer.rate = 1 / 16, 0.5
  _, params = drawn(config)
  decays = dict(conv1=0.0, conv2=0.0, local3=0.004, local4=0.004, fc10=0.004)
  rule = optimizer.make_optimizer(config.optimizer, last_step=100).transformation()
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = rule.update(zeros, rule.init(params), params)
  for name, decay in decays.items():
    wanted = -decay * 0.5 * np.asarray(params[name]['kernel'])
    np.testing.assert_allclose(updates[name]['kernel'], wanted, rtol=1e-6)
    assert not np.any(updates[name]['bias'])


def test_the_recipes_are_those_of_2012():
  """Facts, section 3."""
  for name, decay in {'26pct': 0.03, '19pct': 3.0, '18pct': 1.0, '13pct': 0.004, '11pct': 0.01}.items():
    of = cifar10.get_config(name).optimizer
    assert of.weight_decay * of.layer_decay.fc10 == pytest.approx(decay)
    assert (of.rate, of.rate * of.bias_factor, of.momentum, of.bias_decay) == (0.001, 0.002, 0.9, False)
  for name, changes in {'18pct': (120, 130, 140), '13pct': (140, 150, 160), '11pct': (500, 510, 520)}.items():
    config = cifar10.get_config(name)
    assert (*(fraction * config.num_epochs for fraction in config.optimizer.steps), config.num_epochs) == pytest.approx(
      changes
    )
  for name in ('13pct', '11pct'):
    config = cifar10.get_config(name)
    assert (config.model.image_size, config.model.border, config.augment.offsets) == (24, 8, 9)
    assert config.augment.crop
    assert config.augment.mirror
    assert config.eval.nine_view
  assert cifar10.get_config('figure1').optimizer.weight_decay == 0
  assert not cifar10.get_config('figure1').augment.mirror


def test_nine_crops_form_a_grid_and_are_not_mirrored():
  crops = cropping.nine_crops(8)
  assert sorted((crop.top, crop.left) for crop in crops) == [(a, b) for a in (0, 4, 8) for b in (0, 4, 8)]
  assert not any(crop.mirrored for crop in crops)


@pytest.mark.parametrize(
  ('variants', 'sentence'),
  [
    ('nonsense', 'there are lrn, .*, and the networks 13pct, '),
    ('13pct,11pct', 'are 2 networks; name one'),
    ('lrn,no_lrn', 'exclude each other'),
  ],
)
def test_unknown_or_conflicting_variants_are_errors(variants, sentence):
  with pytest.raises(ValueError, match=sentence):
    cifar10.get_config(variants)


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('num_towers', 2, 'must be 1'),
    ('pool.conv1', 'middle', "choose 'max' or 'average'"),
    ('norm.after', ('fc10',), 'may contain conv1, conv2, conv3'),
    ('norm.size', 4, 'must be odd'),
    ('kernels.conv1', 0, 'removes a required layer'),
    ('kernels.local3', 2**30, 'must be'),
    ('nonlinearity', 'step', 'is unknown'),
    ('width', 0.0, 'must be above 0'),
  ],
)
def test_an_invalid_model_config_is_a_usage_error(field, value, sentence):
  config = cifar10.get_config('13pct')
  config.update_from_flattened_dict({f'model.{field}': value})
  with pytest.raises(UsageError, match=f'model.{field}.*{sentence}'):
    cifar.check_config(config.model)
