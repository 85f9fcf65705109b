"""Networks with parts switched off, against the PyTorch network whose outputs are set to zero by hooks."""

import numpy as np
import pytest

from alexnet_jax.data import cropping
from alexnet_jax.explore import ablation
from alexnet_jax.explore.ablation import Ablation
from alexnet_jax.interop import import_export
from tests.interop import networks

torch = pytest.importorskip('torch', reason='PyTorch is the reference')

from tests.interop.test_huggingface_files import torch_network  # noqa: E402

HIDDEN = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7')
ALL = slice(None)
FIRST_HALF, SECOND_HALF = (lambda n: slice(n // 2)), (lambda n: slice(n // 2, n))


def number(channel):
  return lambda n: channel


# What is switched off; {layer: channels whose outputs are zero}; layers without normalisation.
CASES = {
  'tower 0': (Ablation(towers=(0,)), dict.fromkeys(HIDDEN, FIRST_HALF), ()),
  'tower 1': (Ablation(towers=(1,)), dict.fromkeys(HIDDEN, SECOND_HALF), ()),
  'both towers': (Ablation(towers=(0, 1)), dict.fromkeys(HIDDEN, lambda n: ALL), ()),
  'units': (
    Ablation(units=(('conv1', 4), ('conv3', 1), ('fc7', 200), ('fc8', 6))),
    {'conv1': number(4), 'conv3': number(1), 'fc7': number(200), 'fc8': number(6)},
    (),
  ),
  'normalisation': (Ablation(norms=('conv1', 'conv2')), {}, ('conv1', 'conv2')),
  'all kinds': (
    Ablation((1,), (('conv2', 0),), ('conv2',)),
    {name: SECOND_HALF for name in HIDDEN} | {'conv2': lambda n: [0, *range(n // 2, n)]},
    ('conv2',),
  ),
}


@pytest.fixture(scope='module')
def small():
  weights, _, images, _ = networks.small_network('paper')
  return weights, import_export.to_model(weights), images


def logits_with_hooks(weights, images, zeros, without_norm):
  """Computes the logits of the PyTorch network with zeros as outputs of some channels."""
  network = torch_network(weights)
  for name, channels in zeros.items():
    module = 'fc8' if name == 'fc8' else f'relu{name[-1]}'

    def set_to_zero(module, inputs, output, channels=channels):
      output = output.clone()
      output[:, channels(output.shape[1])] = 0
      return output

    network.get_submodule(module).register_forward_hook(set_to_zero)
  for name in without_norm:
    network.set_submodule(f'norm{name[-1]}', torch.nn.Identity())
  with torch.no_grad():
    return network(torch.tensor(images.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize('case', CASES)
def test_predictions_equal_those_of_pytorch_with_outputs_set_to_zero(small, case):
  weights, model, images = small
  switched_off, zeros, without_norm = CASES[case]
  expected = torch.log_softmax(logits_with_hooks(weights, images, zeros, without_norm), 1).numpy()
  crops = cropping.centre_crop_only(model.config.border)
  computed = np.asarray(ablation.apply(model, switched_off).log_probs(images, crops))
  np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)
  assert abs(expected - np.asarray(model.log_probs(images, crops))).max() > 0.01  # the case changes something


def test_only_the_unit_that_is_switched_off_changes_in_its_layer(small):
  _, model, images = small
  before = np.asarray(model.activations(images, 'conv3'))
  after = np.asarray(ablation.apply(model, Ablation(units=(('conv3', 7),))).activations(images, 'conv3'))
  assert before[..., 7].any()
  assert not after[..., 7].any()
  np.testing.assert_array_equal(np.delete(after, 7, axis=-1), np.delete(before, 7, axis=-1))


def test_nothing_switched_off_changes_nothing(small):
  _, model, images = small
  crops = cropping.centre_crop_only(model.config.border)
  unchanged = ablation.apply(model, Ablation())
  np.testing.assert_array_equal(unchanged.log_probs(images, crops), model.log_probs(images, crops))


@pytest.mark.parametrize(
  ('variant', 'layers'), [('paper', ['conv1', 'conv2']), ('no_lrn', []), ('as_run', ['conv1', 'conv2'])]
)
def test_the_normalised_layers_are_those_of_the_config(variant, layers):
  config = networks.small_config('' if variant == 'paper' else variant)
  names = ('conv1', 'pool1', 'conv2', 'pool2', 'conv3')
  model = type('Model', (), {'config': config.model, 'network': type('Network', (), {'layer_names': names})})
  assert ablation.normalised_layers(model) == layers
