"""Exported .safetensors files, against networks written in PyTorch."""

import numpy as np
import pytest
import safetensors.numpy
import torch

from alexnet_jax.interop import safetensors_files
from tests import reference
from tests.interop.networks import NUM_CLASSES, VARIANTS, assert_close, preprocess


def export(weights, path):
  """Writes a file and returns its tensors, without the mean image, for PyTorch."""
  safetensors_files.write(path, weights)
  tensors = {name: torch.tensor(x) for name, x in safetensors.numpy.load_file(path).items()}
  np.testing.assert_array_equal(tensors.pop('mean_image').numpy(), weights.mean_image)
  return tensors


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_plain_network_in_pytorch_computes_the_same_logits(network_of, variant, tmp_path):
  weights, _, images, logits = network_of(variant)
  tensors = export(weights, tmp_path / 'a.safetensors')
  x = torch.tensor(preprocess(weights, images))
  assert_close(logits, reference.forward(tensors, x, **(reference.VARIANTS[variant] | {'dropout': False})).numpy())


def test_a_sequence_of_pytorchs_layers_loads_the_file(network_of, tmp_path):
  weights, _, images, logits = network_of('bvlc_alexnet')
  tensors = export(weights, tmp_path / 'a.safetensors')
  nn, norm, pool = torch.nn, torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), torch.nn.MaxPool2d(3, 2, ceil_mode=True)
  layers = {'conv1': nn.Conv2d(3, 6, 11, 4), 'r1': nn.ReLU(), 'n1': norm, 'p1': pool}
  layers |= {'conv2': nn.Conv2d(6, 16, 5, padding=2, groups=2), 'r2': nn.ReLU(), 'n2': norm, 'p2': pool}
  layers |= {'conv3': nn.Conv2d(16, 24, 3, padding=1), 'r3': nn.ReLU()}
  layers |= {'conv4': nn.Conv2d(24, 24, 3, padding=1, groups=2), 'r4': nn.ReLU()}
  layers |= {'conv5': nn.Conv2d(24, 16, 3, padding=1, groups=2), 'r5': nn.ReLU(), 'p5': pool, 'flat': nn.Flatten()}
  layers |= {'fc6': nn.Linear(tensors['fc6.weight'].shape[1], 256), 'r6': nn.ReLU(), 'd6': nn.Dropout()}
  layers |= {'fc7': nn.Linear(256, 256), 'r7': nn.ReLU(), 'd7': nn.Dropout(), 'fc8': nn.Linear(256, NUM_CLASSES)}
  network = nn.Sequential()
  for name, layer in layers.items():
    network.add_module(name, layer)
  network.load_state_dict(tensors)
  x = torch.tensor(preprocess(weights, images).transpose(0, 3, 1, 2))
  with torch.no_grad():
    assert_close(logits, network.eval()(x).numpy())
