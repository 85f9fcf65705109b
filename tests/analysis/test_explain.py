"""Explanations against Captum, on the network that the standalone PyTorch file builds from the same weights."""

import collections
import functools

import jax
import numpy as np
import PIL.Image
import pytest

import alexnet_jax
from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import explain, figures
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import import_export
from alexnet_jax.models import towers
from alexnet_jax.models.registry import build
from alexnet_jax.runtime.errors import UsageError
from configs import cifar10
from tests.conftest import mesh, mostly_nightly, random_params
from tests.interop import networks

torch = pytest.importorskip('torch', reason='PyTorch is the reference')
attr = pytest.importorskip('captum.attr', reason='Captum is the reference')

from tests import reference  # noqa: E402
from tests.interop.test_huggingface_files import torch_network  # noqa: E402

VARIANTS = mostly_nightly(['paper', 'as_run', 'conv6', 'no_communication', 'bvlc_reference_caffenet'], 'paper')
MESHES = mostly_nightly([(1, 1), (1, 2), (2, 2)], (2, 2))
LABELS = [3, 6]  # of the classes that are explained
UNITS = [('conv3', 7), ('fc7', 30)]
PATCHES = [((1, 1), (20, 13)), ((2, 2), (16, 16))]  # mesh, and (side, stride)
# Modules of the PyTorch file whose outputs are those of our layers.
MODULES = {'conv1': 'norm1', 'pool1': 'pool1', 'conv3': 'relu3', 'fc7': 'relu7'}


class Case:
  """A small network in JAX and in PyTorch, without its preprocessing there, and images."""

  def __init__(self, variant):
    self.weights, self.params, images, _ = networks.small_network(variant)
    # Other images than those of `small_network`: in one of them, two pixels of a pooling window differ by rounding.
    self.images = np.random.default_rng(9).integers(0, 256, (len(LABELS), *images.shape[1:]), np.uint8)
    self.model = import_export.to_model(self.weights)
    self.network = torch.nn.Sequential(collections.OrderedDict(torch_network(self.weights).named_children()))
    crops = networks.preprocess(self.weights, self.images)
    self.inputs = torch.tensor(crops.transpose(0, 3, 1, 2))

  def on_mesh(self, shape):
    params = jax.device_put(self.params, jax.NamedSharding(mesh(*shape), towers.PARAMS))
    return self.model._replace(params=params, mesh=mesh(*shape))

  def values(self, method, targets=LABELS, shape=(1, 1), **options):
    """Explains a target for each image on a mesh."""
    model = self.on_mesh(shape)
    rows = zip(self.images[:, None], targets, strict=True)
    return np.stack([explain.explain(model, image, method, target, **options)[0].values for image, target in rows])


@pytest.fixture(scope='module')
def case_of():
  return functools.cache(Case)


@pytest.fixture(scope='module')
def model(trained_run):
  return trained_model.load(trained_run, batch_size=1, num_data=1, num_tower=1)


@pytest.fixture
def photograph(tmp_path):
  rng = np.random.default_rng(0)
  PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((200, 150)).save(tmp_path / 'cat.jpg')
  return tmp_path / 'cat.jpg'


def assert_equal(ours, theirs):
  """Compares [image, height, width, channel] with PyTorch's [image, channel, height, width]."""
  theirs = np.moveaxis(theirs.detach().numpy(), 1, -1)
  assert theirs.any()
  np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_gradients_and_grad_cam_are_those_of_captum(case_of, variant, shape):
  case = case_of(variant)
  saliency = attr.Saliency(lambda inputs: torch.log_softmax(case.network(inputs), dim=1))
  assert_equal(case.values('saliency', shape=shape), saliency.attribute(case.inputs, LABELS, abs=False))
  guided = attr.GuidedBackprop(case.network).attribute(case.inputs, LABELS)
  assert_equal(case.values('guided_backpropagation', shape=shape), guided)
  last = case.network.get_submodule('relu_conv6' if variant == 'conv6' else 'relu5')
  maps = attr.LayerGradCam(case.network, last).attribute(case.inputs, LABELS, relu_attributions=True)
  resized = attr.LayerAttribution.interpolate(maps, case.inputs.shape[2:], 'bilinear')
  assert_equal(case.values('grad_cam', shape=shape)[..., None], resized)


@pytest.mark.parametrize('target', mostly_nightly(UNITS, UNITS[0]), ids=str)
def test_explanations_of_units_are_those_of_captum(case_of, target):
  case, (layer, unit) = case_of('paper'), target
  targets, module = [target] * len(LABELS), case.network.get_submodule(MODULES[layer])

  def select(outputs):
    return outputs[:, unit].reshape(len(outputs), -1).mean(dim=1)

  for method, neuron in (('saliency', attr.NeuronGradient), ('guided_backpropagation', attr.NeuronGuidedBackprop)):
    assert_equal(case.values(method, targets), neuron(case.network, module).attribute(case.inputs, select))


@pytest.mark.slow
@pytest.mark.parametrize('layer', ['conv1', 'pool1', 'conv3'])
def test_grad_cam_reads_any_layer_with_maps(case_of, layer):
  case = case_of('paper')
  maps = attr.LayerGradCam(case.network, case.network.get_submodule(MODULES[layer]))
  maps = maps.attribute(case.inputs, LABELS, relu_attributions=True)
  resized = attr.LayerAttribution.interpolate(maps, case.inputs.shape[2:], 'bilinear')
  assert_equal(case.values('grad_cam', layer=layer)[..., None], resized)


@pytest.mark.parametrize('shape_and_patch', mostly_nightly(PATCHES, PATCHES[0]), ids=str)
def test_occlusion_is_that_of_captum(case_of, shape_and_patch):
  case, (shape, patch) = case_of('paper'), shape_and_patch
  side, stride = patch
  occlusion = attr.Occlusion(lambda inputs: torch.softmax(case.network(inputs), dim=1))
  expected = occlusion.attribute(case.inputs, (3, side, side), strides=(3, stride, stride), target=LABELS)
  assert_equal(case.values('occlusion', patch=patch, shape=shape)[..., None], expected[:, :1])
  unit = UNITS[0]
  layer = case.network[: 1 + list(dict(case.network.named_children())).index(MODULES[unit[0]])]
  occlusion = attr.Occlusion(lambda inputs: layer(inputs)[:, unit[1]].mean(dim=(1, 2)))
  expected = occlusion.attribute(case.inputs, (3, side, side), strides=(3, stride, stride))
  assert_equal(case.values('occlusion', [unit] * len(LABELS), patch=patch)[..., None], expected[:, :1])


@pytest.mark.parametrize('name', mostly_nightly(['18pct', '11pct', 'as_run', 'without_conv4'], '11pct'))
def test_any_output_with_maps_can_be_replaced(name):
  config = cifar10.get_config(name).model if name.endswith('pct') else networks.small_config(name).model
  network = build(config, 10)
  params = random_params(network)
  inputs = np.random.default_rng(0).normal(size=(2, config.image_size, config.image_size, 3)).astype(np.float32)

  @functools.partial(jax.jit, static_argnums=2)
  def logits(params, factor, layer):
    net = network.module(params)
    explain._replace_output(net, layer, factor * dict(net.outputs(inputs))[layer])
    return net(inputs)

  expected = jax.jit(network.apply)(params, inputs)
  names = [layer for layer in network.layer_names if not layer.startswith('fc')]
  for layer in names:
    np.testing.assert_allclose(logits(params, 1, layer), expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits(params, 0, layer), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize('target', [3, ('conv3', 7)], ids=str)
def test_maximisation_follows_the_gradient_of_pytorch(case_of, target):
  case, num_steps, decay, blur, seed = case_of('paper'), 4, 0.02, 0.4, 5
  mean = torch.tensor(networks.centre_crops(case.weights.config, case.weights.mean_image))
  noise = np.random.default_rng(seed).normal(scale=explain.LEARNING_RATE, size=mean.shape)
  x = torch.tensor(noise[None].astype(np.float32))
  tensors = {name: torch.tensor(tensor) for name, tensor in reference.to_interchange(case.params).items()}
  kernel = torch.tensor([blur**2 / 2, 1 - blur**2, blur**2 / 2], dtype=torch.float32)
  kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
  for _ in range(num_steps):
    inputs_of_relus = []

    def relu(x, inputs_of_relus=inputs_of_relus):
      inputs_of_relus.append(x)
      return torch.relu(x)

    logits = reference.forward(tensors, x.requires_grad_(), nonlinearity=relu)
    score = logits[0, target] if isinstance(target, int) else inputs_of_relus[2][0, target[1]].mean()
    (gradient,) = torch.autograd.grad(score, x)
    with torch.no_grad():
      x = (x + explain.LEARNING_RATE * gradient / gradient.square().mean().sqrt()) * (1 - decay)
      x = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, padding=1, groups=3).permute(0, 2, 3, 1)
      x = torch.minimum(torch.maximum(x, -mean), 255 - mean)
  model = case.model if isinstance(target, int) else case.on_mesh((2, 2))
  first, last = (explain.maximise(model, target, steps, decay, blur, seed) for steps in (1, num_steps))
  np.testing.assert_allclose(last.values, x[0].numpy(), rtol=1e-3, atol=1e-3)
  np.testing.assert_array_equal(last.image, np.rint(mean.numpy() + last.values))
  assert last.score > 1.05 * first.score


def test_the_default_is_the_saliency_of_the_most_probable_class(trained_run, model, photograph):
  api_model = alexnet_jax.load(trained_run)
  explanation = api_model.explain(photograph)
  stored = np.asarray(PIL.Image.open(photograph))
  (features,) = api_model.features(stored, layer='fc8')
  probabilities = np.exp(features) / np.exp(features).sum()
  assert explanation.name == model.class_names[probabilities.argmax()]
  assert explanation.score == pytest.approx(probabilities.max(), rel=1e-4)
  crops = alexnet_jax.api.StoredImages([photograph], model.stored_size)[:]
  np.testing.assert_array_equal(explanation.image, model.centre_crops(crops)[0])
  (by_function,) = explain.explain(model, crops, 'saliency', int(probabilities.argmax()))
  np.testing.assert_array_equal(explanation.values, by_function.values)
  label = (int(probabilities.argmax()) + 1) % 10
  by_name, by_label = (api_model.explain(photograph, target=target) for target in (model.class_names[label], label))
  np.testing.assert_array_equal(by_name.values, by_label.values)
  assert by_name.score == pytest.approx(probabilities[label], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('method', explain.METHODS)
def test_several_images_are_explained_like_one(model, method):
  images = np.random.default_rng(1).integers(0, 256, (3, 96, 96, 3), np.uint8)
  options = {'patch': (32, 32)} if method == 'occlusion' else {}
  for image, found in zip(images, explain.explain(model, images, method, **options), strict=True):
    (expected,) = explain.explain(model, image[None], method, **options)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-3, atol=1e-4 * np.abs(expected.values).max())
    assert (found.name, found.score) == (expected.name, pytest.approx(expected.score, rel=1e-4))


@pytest.mark.slow
def test_the_api_optimises_an_image(trained_run, model):
  found = alexnet_jax.load(trained_run).maximise(('conv2', 1), num_steps=2, seed=3)
  np.testing.assert_array_equal(found.image, explain.maximise(model, ('conv2', 1), num_steps=2, seed=3).image)
  assert (found.image.shape, found.name) == ((64, 64, 3), 'conv2, unit 1')


FLAGS = [
  '{photograph} --target 3 8',
  '--method=activation_maximisation --target 3 8 --num_steps=2',
  '--method=saliency --num_images=2',
  '{photograph} --method=guided_backpropagation --unit conv3 1',
  '{photograph} --method=occlusion --patch 32 32',
]


@pytest.mark.parametrize('flags', mostly_nightly(FLAGS, FLAGS[1]))
def test_each_method_is_drawn(trained_run, photograph, tmp_path, flags):
  flags = flags.format(photograph=photograph).split()
  assert cli.main(['figures', 'explain', str(trained_run), *flags, f'--output={tmp_path / "why.svg"}']) == 0
  assert (tmp_path / 'why.svg').stat().st_size > 10_000


@pytest.mark.slow
def test_every_image_has_a_column_for_each_class(trained_run):
  arguments = ['figures', 'explain', str(trained_run), '--num_images=2', '--target', '3', '8']
  figure, num_skipped = figures.make_figure(cli.parser().parse_args(arguments))
  assert num_skipped == 0
  titles = [axes.get_title().partition(',')[0] for axes in figure.axes if axes.get_title()]
  assert titles == ['3', '8', '3', '8']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('gradient',), "there is no method 'gradient'; the methods are saliency, guided_backpropagation, "),
    (('saliency', 'cat'), "there is no class 'cat'; name a class such as '0', or a label, 0 to 9."),
    (('saliency', 10), "there is no class '10'; "),
    (('saliency', -1), "there is no class '-1'; "),
    (('saliency', ('conv9', 1)), "this network has no layer 'conv9'"),
    (('saliency', ('conv1', 6)), 'conv1 has no unit 6; choose 0 to 5'),
    (('saliency', ('conv1', 1.5)), "('conv1', 1.5) is not a unit, (layer, index), such as ('conv3', 7)"),
    (('saliency', ('conv1',)), 'is not a unit, (layer, index)'),
    (('saliency', 1, 'conv5'), "layer applies to the method 'grad_cam' only, not to 'saliency'; omit it"),
    (('grad_cam', 1, None, (8, 8)), "patch applies to the method 'occlusion' only"),
    (('grad_cam', 1, 'fc6'), 'fc6 is no layer with maps before fc8; choose one of conv1, pool1'),
    (('grad_cam', ('conv3', 1), 'conv3'), 'conv3 is no layer with maps before conv3; choose one of conv1, '),
    (('grad_cam', ('conv1', 1)), 'grad_cam requires a layer with maps before conv1'),
    (('occlusion', 1, None, (65, 1)), 'patches of 65 pixels with a stride of 1 do not cover the image of 64 pixels'),
    (('occlusion', 1, None, (8, 9)), 'patches of 8 pixels with a stride of 9 do not cover'),
  ],
)
def test_wrong_usage_of_explain_is_an_error(model, arguments, message):
  with pytest.raises(UsageError, match=message.replace('(', r'\(').replace(')', r'\)')):
    explain.explain(model, np.zeros((1, 96, 96, 3), np.uint8), *arguments)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(target=None), 'there is no class or unit to optimise an image for; name one'),
    (dict(target=1, num_steps=0), 'num_steps=0, decay=0.01 and blur=0.5 must be 1 or more'),
    (dict(target=1, decay=1), 'decay=1 and blur=0.5 must be'),
    (dict(target=1, blur=0.8), 'blur=0.8 must be'),
    (dict(target=1, seed=-1), 'seed=-1 must be below 2,147,483,648, and 0 or more'),
    (dict(target=1, num_steps=2**31), 'num_steps=2147483648 and seed=0 must be below'),
  ],
)
def test_wrong_usage_of_maximise_is_an_error(model, options, message):
  with pytest.raises(UsageError, match=message):
    explain.maximise(model, **options)


def test_a_class_whose_name_is_not_unique_is_named_by_its_label(model):
  model = model._replace(class_names=['crane', '1', 'crane', *'3456789'])
  images = np.zeros((1, 96, 96, 3), np.uint8)
  with pytest.raises(UsageError, match="several classes are called 'crane'; name the label of one of them: 0, 2"):
    explain.explain(model, images, 'saliency', 'crane')
  assert explain.explain(model, images, 'saliency', 2)[0].name == 'crane'
  model = model._replace(class_names=['3', '1', '3', *'abcdefg'])
  assert explain.explain(model, images, 'saliency', 3)[0].name == 'a'  # an integer is a label


def test_guided_backpropagation_requires_relus(case_of):
  with pytest.raises(UsageError, match=r"model\.nonlinearity='tanh'; choose another method, such as 'saliency'"):
    case_of('tanh').values('guided_backpropagation')


def test_wrong_flags_print_one_message(trained_run, photograph, capsys):
  for flags, message in (
    (['--unit', 'conv3', 'x'], "--unit=conv3 'x' is not a unit; name a layer and a number"),
    ([str(photograph), '--method=activation_maximisation', '--target', '1'], 'begins with noise'),
    (['--method=activation_maximisation'], 'there is no class or unit to optimise an image for'),
  ):
    assert cli.main(['figures', 'explain', str(trained_run), *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_command_offers_every_method():
  assert (*explain.METHODS, 'activation_maximisation') == cli.EXPLANATIONS


@pytest.mark.parametrize(
  ('variant', 'layer', 'expected'),
  [('without_conv5', 'pool5', 'conv4'), ('paper', 'pool5', 'conv5'), ('paper', 'fc6', 'fc6')],
)
def test_a_unit_is_optimised_before_the_nonlinearity_of_its_layer(case_of, monkeypatch, variant, layer, expected):
  linear = []
  monkeypatch.setattr(explain, '_remove_nonlinearity', lambda net, layer: linear.append(layer))
  explain.maximise(case_of(variant).model, (layer, 0), num_steps=1)
  assert set(linear) == {expected}
