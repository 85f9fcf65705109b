"""Every variant of configs/alexnet.py: its parameters, its shapes, and its logits and gradients against PyTorch."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import alexnet, classifier, device_mesh, towers
from alexnet_jax.models.registry import build
from alexnet_jax.runs import config_checks, config_files
from alexnet_jax.training import optimizer, step
from configs import alexnet as recipes
from tests.conftest import mesh, mostly_nightly, random_params, velocities
from tests.models.test_alexnet import image_shape, images

UNCHANGED = 60_965_224  # facts, 1.8
# Parameters at 1000 classes, and all-gathers of a forward pass on two devices; by hand, from facts, 0, 1.8 and 4.
EXPECTED = {
  'paper': (UNCHANGED, 5),
  'as_run': (UNCHANGED, 5),
  # conv1 17,472, conv2 76,928, conv3 221,376, conv4 166,080, conv5 110,720, fc6 264,192, fc7 4,196,352, fc8 2,049,000
  'small': (7_102_120, 5),
  'one_tower': (59_798_312, None),
  'conv6': (61_555_304, 6),
  # 5*5*48*256 + 256, 3*3*128*384 + 384, (6*6*128)*4096 + 4096 and 2048*4096 + 4096 in place of conv3, fc6 and fc7
  'no_communication': (33_259_880, 2),
  # conv2 5*5*48*320 + 320, conv3 3*3*160*384 + 384, fc6 (6*6*128)*8192 + 8192, fc7 4096*4096 + 4096
  'run150': (60_714_408, 2),
  'without_conv3': (UNCHANGED - 663_936, 5),  # conv4 is as large as conv3 was, since it reads both towers
  'without_conv4': (UNCHANGED - 663_936, 5),
  'without_conv5': (UNCHANGED - 442_624 + 6 * 6 * (384 - 256) * 4096, 5),
  # 4096*2048 + 2048 in the bottleneck, and an fc8 of 2048*1000 + 1000
  'bottleneck': (UNCHANGED + 8_390_656 - 2_048_000, 6),
  'finetune': (UNCHANGED, 5),
  'run146_2009': (61_555_304, 6),
  'run146_2011': (61_555_304 + 8_390_656 - 2_048_000, 7),
  'run146_2012': (61_555_304, 6),
  'no_lrn': (UNCHANGED, 5),
  'no_overlap': (UNCHANGED, 5),
  'tanh': (UNCHANGED, 5),
  'no_dropout': (UNCHANGED, 5),
  'no_colour': (UNCHANGED, 5),
  'no_augmentation': (UNCHANGED, 5),
  'no_decay': (UNCHANGED, 5),
  'zero_bias': (UNCHANGED, 5),
  'bvlc_alexnet': (UNCHANGED, 7),  # the two normalisations read both towers, too
  'bvlc_reference_caffenet': (UNCHANGED, 7),
  'torchvision': (61_100_840, None),  # as torchvision's documentation counts
}
# The shapes that differ from those of the paper: kernels, and what comes out for a batch of 4.
PAPER_SHAPES = {
  'conv1': ((2, 11, 11, 3, 48), (2, 4, 55, 55, 48)),
  'conv2': ((2, 5, 5, 48, 128), (2, 4, 27, 27, 128)),
  'conv3': ((2, 3, 3, 256, 192), (2, 4, 13, 13, 192)),
  'conv4': ((2, 3, 3, 192, 192), (2, 4, 13, 13, 192)),
  'conv5': ((2, 3, 3, 192, 128), (2, 4, 13, 13, 128)),
  'fc6': ((2, 9216, 2048), (2, 4, 2048)),
  'fc7': ((2, 4096, 2048), (2, 4, 2048)),
  'fc8': ((2, 4096, 500), (2, 4, 500)),
}
CONV6 = {'conv6': ((2, 3, 3, 256, 128), (2, 4, 6, 6, 128))}
BOTTLENECK = {
  'bottleneck': ((2, 4096, 1024), (2, 4, 1024)),
  'fc8': ((2, 2048, 500), (2, 4, 500)),
}
OTHER_SHAPES = {
  'small': {
    'conv1': ((2, 11, 11, 3, 24), (2, 4, 15, 15, 24)),
    'conv2': ((2, 5, 5, 24, 64), (2, 4, 7, 7, 64)),
    'conv3': ((2, 3, 3, 128, 96), (2, 4, 3, 3, 96)),
    'conv4': ((2, 3, 3, 96, 96), (2, 4, 3, 3, 96)),
    'conv5': ((2, 3, 3, 96, 64), (2, 4, 3, 3, 64)),
    'fc6': ((2, 128, 1024), (2, 4, 1024)),
    'fc7': ((2, 2048, 1024), (2, 4, 1024)),
    'fc8': ((2, 2048, 500), (2, 4, 500)),
  },
  'one_tower': {
    'conv1': ((1, 11, 11, 3, 48), (1, 4, 55, 55, 48)),
    'conv2': ((1, 5, 5, 48, 128), (1, 4, 27, 27, 128)),
    'conv3': ((1, 3, 3, 128, 192), (1, 4, 13, 13, 192)),
    'conv4': ((1, 3, 3, 192, 192), (1, 4, 13, 13, 192)),
    'conv5': ((1, 3, 3, 192, 256), (1, 4, 13, 13, 256)),
    'fc6': ((1, 9216, 4096), (1, 4, 4096)),
    'fc7': ((1, 4096, 4096), (1, 4, 4096)),
    'fc8': ((1, 4096, 1000), (1, 4, 1000)),
  },
  'conv6': CONV6,
  'bottleneck': BOTTLENECK,
  'run146_2009': CONV6,
  'run146_2011': CONV6 | BOTTLENECK,
  'run146_2012': CONV6,
  'no_communication': {
    'conv3': ((2, 3, 3, 128, 192), (2, 4, 13, 13, 192)),
    'fc6': ((2, 4608, 2048), (2, 4, 2048)),
    'fc7': ((2, 2048, 2048), (2, 4, 2048)),
  },
  'run150': {
    'conv2': ((2, 5, 5, 48, 160), (2, 4, 27, 27, 160)),
    'conv3': ((2, 3, 3, 160, 192), (2, 4, 13, 13, 192)),
    'fc6': ((2, 4608, 4096), (2, 4, 4096)),
    'fc7': ((2, 4096, 2048), (2, 4, 2048)),
  },
  'without_conv3': {'conv3': None, 'conv4': ((2, 3, 3, 256, 192), (2, 4, 13, 13, 192))},
  'without_conv4': {'conv4': None},
  'without_conv5': {'conv5': None, 'fc6': ((2, 13_824, 2048), (2, 4, 2048))},
  'torchvision': {
    'conv1': ((1, 11, 11, 3, 64), (1, 4, 55, 55, 64)),
    'conv2': ((1, 5, 5, 64, 192), (1, 4, 27, 27, 192)),
    'conv3': ((1, 3, 3, 192, 384), (1, 4, 13, 13, 384)),
    'conv4': ((1, 3, 3, 384, 256), (1, 4, 13, 13, 256)),
    'conv5': ((1, 3, 3, 256, 256), (1, 4, 13, 13, 256)),
    'fc6': ((1, 9216, 4096), (1, 4, 4096)),
    'fc7': ((1, 4096, 4096), (1, 4, 4096)),
    'fc8': ((1, 4096, 1000), (1, 4, 1000)),
  },
  'no_overlap': {
    'conv2': ((2, 5, 5, 48, 128), (2, 4, 26, 26, 128)),
    'conv5': ((2, 3, 3, 192, 128), (2, 4, 11, 11, 128)),
  },
}


def of(variant):
  config = recipes.get_config('' if variant == 'paper' else variant)
  config.model.image_size, config.model.width = 96, 1 / 16
  return config


def test_every_variant_is_tested():
  assert set(EXPECTED) == {'paper', *recipes.VARIANTS}


@pytest.mark.parametrize('variant', EXPECTED)
def test_parameters_and_shapes_at_full_width(variant, one_device, monkeypatch):
  found = {}
  original = alexnet.AlexNet.layer

  def spy(self, name, x):
    y = original(self, name, x)
    if hasattr(self, name):
      found[name] = (getattr(self, name).kernel.shape, y.shape)
    return y

  monkeypatch.setattr(alexnet.AlexNet, 'layer', spy)
  config = recipes.get_config('' if variant == 'paper' else variant).model
  network = build(config, 1000)
  params = jax.eval_shape(network.init, jax.random.key(0))
  images = image_shape(one_device, 4, config.image_size)
  logits = jax.eval_shape(
    lambda *inputs: network.apply(*inputs), params, images
  )  # a lambda, or JAX reuses the trace of an earlier test
  assert logits.shape == (4, 1000)
  assert sum(x.size for x in jax.tree.leaves(params)) == EXPECTED[variant][0]
  expected = PAPER_SHAPES | OTHER_SHAPES.get(variant, {})
  assert found == {name: shapes for name, shapes in expected.items() if shapes}


@pytest.mark.parametrize(
  ('variant', 'num_classes', 'num_params'), [('run146_2009', 10_184, 99_182_152), ('run146_2011', 21_843, 110_605_267)]
)
def test_the_number_of_parameters_in_pre_training_is_that_of_2012(variant, num_classes, num_params, one_device):
  """Facts, 1.8; an odd number of classes leaves a unit of fc8 that is not counted."""
  network = build(recipes.get_config(variant).model, num_classes)
  params = jax.eval_shape(network.init, jax.random.key(0))
  surplus = (params['fc8']['bias'].size - num_classes) * (params['fc8']['kernel'].shape[1] + 1)
  assert sum(x.size for x in jax.tree.leaves(params)) - surplus == num_params


@pytest.mark.parametrize(
  'variant',
  mostly_nightly(
    [name for name, (_, gathers) in EXPECTED.items() if gathers is not None],
    'no_communication',
    'run146_2011',
    'bvlc_alexnet',
  ),
)
def test_the_number_of_all_gathers_is_that_of_the_variant(variant):
  with jax.set_mesh(mesh(1, 2)):
    network = build(of(variant).model, 10)
    params = jax.eval_shape(network.init, jax.random.key(0))
    program = jax.jit(network.apply).lower(params, images(size=96)).compile().as_text()
  assert program.count(' all-gather(') + program.count(' all-gather-start(') == EXPECTED[variant][1]


@pytest.mark.slow
@pytest.mark.parametrize('variant', EXPECTED)
def test_one_step_gives_every_layer_a_velocity(variant, one_device):
  config = of(variant)
  config.optimizer.weight_decay = 0.0  # or every kernel would decay
  network, rule = build(config.model, 10), optimizer.make_optimizer(config.optimizer, last_step=100)
  state = step.init_state(jax.random.key(0), network=network, optimizer=rule)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (8, 96, 96, 3), np.uint8),
    'mirrored': np.zeros(8, bool),
    'mean_offset': np.zeros((8, 2), np.int32),
    'mean_mirrored': np.zeros(8, bool),
    'colour': np.zeros((8, 3), np.float32),
    'scale': np.ones(8, np.float32),
    'label': rng.integers(0, 10, 8, np.int32),
  }
  state, metrics = step.train_step(
    state,
    device_mesh.put_batch(one_device, batch),
    jnp.full((128, 128, 3), 120.0),
    jax.random.key(1),
    network=network,
    optimizer=rule,
  )
  assert 0 < float(metrics['loss']) < 10
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  arrays = velocities(state.opt_state)
  assert jax.tree.structure(arrays) == jax.tree.structure(state.params)
  for path, velocity in jax.tree.leaves_with_path(arrays):
    assert np.any(np.asarray(velocity)), jax.tree_util.keystr(path)


def logits_and_gradients(network, params, x, label, key):
  def loss(params):
    logits = network.apply(params, x, key)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(label, logits.shape[-1]), -1)), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return logits, gradients


def dropout_masks(params, batch, key):
  """Draws the masks of fc6 and fc7, [batch, unit] each, as the network does."""
  shapes = [(num_towers, batch, units) for num_towers, units in (params[name]['bias'].shape for name in ('fc6', 'fc7'))]
  masks = [jax.random.bernoulli(k, 0.5, shape) for k, shape in zip(jax.random.split(key), shapes, strict=True)]
  return [np.concatenate(list(mask), axis=-1) for mask in masks]


AT_FULL_WIDTH = ('paper', 'as_run', 'one_tower', 'no_overlap', 'no_communication', 'run150', 'conv6')
# These change training only, or have the network of another variant.
SAME_NETWORK = (
  'small',
  'no_colour',
  'no_augmentation',
  'no_decay',
  'zero_bias',
  'finetune',
  'run146_2009',
  'run146_2012',
)


@pytest.mark.parametrize(
  'variant',
  mostly_nightly(
    [name for name in EXPECTED if name not in SAME_NETWORK], 'paper', 'as_run', 'run146_2011', 'torchvision'
  ),
)
def test_logits_and_gradients_are_those_of_a_grouped_network_in_torch(one_device, variant):
  compare_with_torch(variant, image_size=96, width=1 / 8, num_classes=7, dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('variant', AT_FULL_WIDTH)
def test_logits_and_gradients_at_full_width_are_those_of_torch(one_device, variant, monkeypatch):
  """In double precision: of the millions of maxima some are ties to single precision, and go either way."""
  monkeypatch.setitem(classifier.DTYPES, 'float32', jnp.float64)
  with jax.enable_x64(True):
    compare_with_torch(variant, image_size=224, width=1.0, num_classes=1000, dtype=np.float64)


def compare_with_torch(variant, image_size, width, num_classes, dtype):
  torch = pytest.importorskip('torch')
  from tests import reference

  options = reference.VARIANTS[variant]
  fc6_joined = 'fc6' in options.get('cross_tower', ('fc6',))
  config = of(variant)
  config.model.image_size, config.model.width = image_size, width
  network = build(config.model, num_classes)
  params = jax.device_put(random_params(network, dtype), towers.PARAMS)
  if variant == 'tanh':
    params['conv1']['kernel'] /= 60  # pixels deviate by 60; saturated, 1 - tanh ** 2 is all rounding
  x, label = images(4, image_size).astype(dtype), jax.device_put(jnp.arange(4, dtype=jnp.int32), towers.BATCH)
  x_torch = torch.tensor(np.asarray(x))

  def weights():
    tensors = {
      name: torch.tensor(value, requires_grad=True)
      for name, value in reference.to_interchange(params, fc6_joined=fc6_joined).items()
    }
    for part in ('weight', 'bias'):  # an odd number of classes leaves one unit unused
      tensors[f'fc8.{part}'] = tensors[f'fc8.{part}'].detach()[:num_classes].requires_grad_()
    return tensors

  def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours[: len(theirs)], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())

  assert_close(jax.jit(network.apply)(params, x), reference.forward(weights(), x_torch, **options))

  key = jax.random.key(5)
  logits, gradients = logits_and_gradients(network, params, x, label, key)
  keep = [torch.tensor(mask.astype(dtype)) for mask in dropout_masks(params, len(x), key)]
  tensors = weights()
  result = reference.forward(tensors, x_torch, masks=keep, **options)
  assert_close(logits, result)
  torch.nn.functional.cross_entropy(result, torch.tensor(np.asarray(label), dtype=torch.long)).backward()
  for name, gradient in reference.to_interchange(gradients, fc6_joined=fc6_joined).items():
    assert_close(gradient, tensors[name].grad)


@pytest.mark.parametrize(
  'variant', mostly_nightly(['one_tower', 'as_run', 'run150', 'without_conv3,conv6'], 'without_conv3,conv6')
)
def test_variants_compute_the_same_on_every_mesh(variant):
  config = of(variant)
  x = 60 * np.random.default_rng(0).normal(size=(8, 96, 96, 3)).astype(np.float32)
  found = {}
  for shape in [(1, 1), (4, 1)] if variant == 'one_tower' else [(1, 1), (1, 2), (2, 2), (4, 1)]:
    with jax.set_mesh(mesh(*shape)):
      network = build(config.model, 10)
      params = jax.device_put(random_params(network), towers.PARAMS)
      found[shape] = np.asarray(jax.jit(network.apply)(params, jax.device_put(x, towers.BATCH), jax.random.key(1)))
  for logits in found.values():
    np.testing.assert_allclose(logits, found[1, 1], rtol=1e-5, atol=1e-6 * np.abs(logits).max())


@pytest.mark.slow
def test_every_pair_of_variants_is_a_network_or_a_usage_error(one_device):
  models = set()
  for first, second in itertools.combinations_with_replacement(recipes.VARIANTS, 2):
    try:
      config = recipes.get_config(f'ilsvrc2010,{first},{second}')
    except ValueError as error:
      assert 'exclude each other: ' in str(error)  # noqa: PT017
      continue
    if repr(config.model) in models:  # only training differs from a pair before
      continue
    models.add(repr(config.model))
    config_checks.check(config)
    network = build(config.model, 1000)
    params = jax.eval_shape(network.init, jax.random.key(0))
    x = image_shape(one_device, 4, config.model.image_size)
    assert jax.eval_shape(network.apply, params, x).shape == (4, 1000)


@pytest.mark.parametrize('recipe', ['imagenet2012', 'imagenet2012,as_run,conv6,bottleneck'])
def test_the_outputs_of_the_small_network_are_as_large_as_those_of_the_full_one(recipe, one_device):
  """The gain of a layer is its standard deviation times the square root of the number of its inputs."""

  def gains(variants):
    config = recipes.get_config(variants)
    params = jax.eval_shape(build(config.model, 1000).init, jax.random.key(0))
    inputs = {name: math.prod(layer['kernel'].shape[1:-1]) for name, layer in params.items()}
    return {name: config.model.init_std[name] * number**0.5 for name, number in inputs.items()}

  assert gains(f'{recipe},small') == pytest.approx(gains(recipe))
  small = recipes.get_config(f'{recipe},small')
  assert small.augment.offsets == (9 if 'as_run' in recipe else 8)


@pytest.mark.parametrize('variant', ['no_communication', 'run150'])
def test_the_towers_do_not_communicate_before_fc8_whatever_the_other_variants(variant):
  for other in recipes.VARIANTS:
    if not any({variant, other} == set(names) for names in recipes.CONFLICTS):
      config = recipes.get_config(f'{variant},{other}')
      assert (config.model.meet, config.model.norm.joined) == (('fc8',), False), other


@pytest.mark.parametrize(
  ('variant', 'expected'),
  [
    ('no_colour', {'augment.colour_std': 0.0}),
    ('no_augmentation', {'augment.colour_std': 0.0, 'augment.crop': False, 'augment.mirror': False}),
    ('no_decay', {'optimizer.weight_decay': 0.0}),
    ('zero_bias', {f'model.init_bias.{name}': 0.0 for name in ('conv2', 'conv4', 'conv5', 'conv6', 'fc6', 'fc7')}),
    ('no_dropout', {'model.dropout': False}),
    ('tanh', {'model.nonlinearity': 'tanh'}),
    ('no_lrn', {'model.norm.after': []}),
    ('no_overlap', {'model.pool_size': 2, 'model.padding.conv2': 1, 'model.padding.conv5': 0}),
    ('without_conv4', {'model.kernels.conv4': 0}),
    ('no_communication', {'model.meet': ['fc8']}),
  ],
)
@pytest.mark.parametrize('recipe', ['imagenet2012', 'imagenet2012,as_run'])
def test_an_ablation_changes_only_the_expected_fields(recipe, variant, expected):
  without, with_it = (config_files.flatten(recipes.get_config(names)) for names in (recipe, f'{recipe},{variant}'))
  if variant == 'no_lrn' and 'as_run' in recipe:
    expected = expected | {'model.norm.before': [], 'model.norm.within': []}
  changed = {name: value for name, value in with_it.items() if value != without[name] and name != 'variants'}
  assert changed == expected


def test_the_order_of_names_does_not_matter():
  one, other = (recipes.get_config(names) for names in ('digits,as_run,no_lrn,conv6', 'conv6,no_lrn,digits,as_run'))
  assert one == other
  assert one.variants == ('as_run', 'conv6', 'no_lrn')
