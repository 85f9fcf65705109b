"""The interchange layout, against an independent implementation of it, and the metadata of exported files."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax.interop import layout, weight_files
from tests import reference
from tests.interop.networks import NUM_CLASSES, assert_same, error_of, exportable_params, small_config


@pytest.mark.parametrize('variant', ['paper', 'one_tower', 'conv6', 'run150', 'without_conv5'])
def test_the_layout_is_that_of_the_reference(network_of, variant):
  weights, params, _, _ = network_of(variant)
  fc6_joined = 'fc6' in weights.config.model.meet
  expected = reference.to_interchange(params, fc6_joined=fc6_joined)
  for name in ('fc8.weight', 'fc8.bias'):
    expected[name] = expected[name][:NUM_CLASSES]
  for name in ('fc7.weight', 'fc8.weight'):
    expected[name] = expected[name] / 2
  assert_same(weights.tensors, expected)


def test_the_weights_of_a_bottleneck_include_the_factor_of_fc7s_dropout(one_device):
  config = small_config()
  config.model.kernels.bottleneck = 32
  params = exportable_params(config.model, 8)
  tensors = layout.to_tensors(params, config.model, 8)
  np.testing.assert_array_equal(tensors['bottleneck.weight'][:2], params['bottleneck']['kernel'][0].T / 2)
  np.testing.assert_array_equal(tensors['fc8.weight'][:4], params['fc8']['kernel'][0].T)
  assert_same(layout.to_params(tensors, config.model, 2), params)


def test_one_tower_can_be_read_as_two(network_of):
  """Layers that read both towers have the same kernels."""
  weights, params, _, _ = network_of('one_tower')
  split = weights.params(num_towers=2)
  np.testing.assert_array_equal(np.concatenate(split['conv3']['kernel'], -1), params['conv3']['kernel'][0])
  np.testing.assert_array_equal(np.concatenate(split['fc6']['kernel'], -1), params['fc6']['kernel'][0])


def test_the_metadata_describes_the_preprocessing(network_of):
  metadata = layout.to_metadata(network_of('paper')[0])
  assert json.loads(metadata['class_names'])[6] == 'sort 6'
  assert json.loads(metadata['config'])['model']['kernels']['conv1'] == 48
  steps = json.loads(metadata['preprocessing'])
  sizes = (steps['colours'], steps['stored_size'], steps['patch_size'], steps['first_row_and_column'])
  assert sizes == ('RGB', 96, 64, 16)
  assert 'rows and columns 16 to 79' in steps['words']
  assert 'halved' in metadata['dropout']
  assert layout.to_metadata(network_of('no_dropout')[0])['dropout'] == 'none'


def test_all_tensors_that_do_not_fit_are_named(network_of, unused, tmp_path, capsys):
  weights = network_of('paper')[0]
  tensors = weights.tensors | {'fc9.weight': np.zeros((2, 2), np.float32), 'conv3.bias': np.zeros(25, np.float32)}
  del tensors['conv1.weight'], tensors['fc8.bias']
  weight_files.write(tmp_path / 'a.safetensors', weights._replace(tensors=tensors))
  message = error_of(capsys, 'import', tmp_path / 'a.safetensors', unused)
  for part in (
    'conv1.weight is missing',
    'fc8.bias is missing',
    'fc9.weight is unexpected',
    'conv3.bias is 25 and should be 24',
  ):
    assert part in message


def test_files_of_other_programs_and_damaged_metadata_are_rejected(network_of, unused, tmp_path, capsys):
  weights = network_of('paper')[0]
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(weights.tensors, path)
  assert 'was not exported by this project' in error_of(capsys, 'import', path, unused)
  metadata = layout.to_metadata(weights)
  for changes, part in (
    ({'format_version': '9'}, 'has format version 9, and this program reads version 1'),
    ({'config': '{'}, 'is damaged'),
    ({'config': '{}'}, 'is damaged'),
    (
      {'config': metadata['config'].replace('"batch_size": 32', '"batch_size": 0')},
      'damaged .batch_size=0 must be 1 or more.;',
    ),
    ({'num_steps': 'many'}, 'is damaged'),
  ):
    safetensors.numpy.save_file(weights.arrays(), path, metadata | changes)
    assert re.search(part, error_of(capsys, 'import', path, unused))
  assert not unused.exists()
