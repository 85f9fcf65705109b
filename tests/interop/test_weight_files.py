"""Files of weights of all types."""

import json

import numpy as np
import pytest
import torch

from alexnet_jax.interop import weight_files
from tests.interop.networks import assert_same, caffe_tensors, caffemodel, error_of


@pytest.mark.parametrize('suffix', ['.safetensors', '.onnx'])
@pytest.mark.parametrize('variant', ['paper', 'one_tower', 'run150', 'bvlc_alexnet'])
def test_weights_are_unchanged_by_writing_and_reading(network_of, variant, suffix, tmp_path):
  written, params, _, _ = network_of(variant)
  weight_files.write(tmp_path / f'a{suffix}', written)
  weights = weight_files.read(tmp_path / f'a{suffix}')
  assert weights.config == type(written.config)(json.loads(json.dumps(written.config.to_dict())))
  assert_same(weights.tensors, written.tensors)
  np.testing.assert_array_equal(weights.mean_image, written.mean_image)
  assert (weights.class_names, weights.num_steps) == (written.class_names, 123)
  assert_same(weights.params(), params)


@pytest.mark.parametrize('name', ['a.safetensors', 'a.onnx', 'a.caffemodel', 'a.pth'])
@pytest.mark.parametrize('damage', ['truncated', 'text', 'empty'])
def test_damaged_files_are_rejected(network_of, torchvision_network, name, damage, unused, tmp_path, capsys):
  path = tmp_path / name
  if name == 'a.pth':
    torch.save(torchvision_network.state_dict(), path)
  elif name == 'a.caffemodel':
    path.write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  else:
    weight_files.write(path, network_of('paper')[0])
  complete = path.read_bytes()
  path.write_bytes({'truncated': complete[: len(complete) // 2], 'text': b'not weights at all', 'empty': b''}[damage])
  assert str(path) in error_of(capsys, 'import', path, unused)
