"""torchvision's AlexNet, against PyTorch."""

import sys

import numpy as np
import pytest
import torch

from alexnet_jax import __main__ as cli
from alexnet_jax.data import cropping
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import torchvision_files, weight_files
from tests.interop.networks import UnsafePickle, error_of


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_pytorch_computes_the_same_log_probabilities(torchvision_network, suffix, tmp_path, capsys):
  path = tmp_path / f'a{suffix}'
  if suffix == '.pth':
    torch.save(torchvision_network.state_dict(), path)
  else:
    safetensors_torch = pytest.importorskip('safetensors.torch')
    metadata = {'format': 'pt'}  # as users of PyTorch write it
    safetensors_torch.save_file(torchvision_network.state_dict(), path, metadata)
  images = np.random.default_rng(5).integers(0, 256, (3, 256, 256, 3), np.uint8)
  x = (images[:, 16:240, 16:240] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  with torch.no_grad():
    logits = torchvision_network(torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32))
  expected = logits.log_softmax(1).numpy()
  assert expected.max() - expected.min() > 0.1

  assert cli.main(['weights', 'import', str(path), str(tmp_path / 'run')]) == 0
  assert '--config=configs/alexnet.py:imagenet2012 --mode=eval' in capsys.readouterr().out
  model = trained_model.load(tmp_path / 'run', batch_size=3, num_data=1)
  assert (model.network.num_towers, model.stored_size) == (1, 256)
  log_probs = model.log_probs(images, cropping.centre_crop_only(32))
  np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-4)


def test_safetensors_may_be_of_sixteen_bits(torchvision_network, tmp_path):
  safetensors_torch = pytest.importorskip('safetensors.torch')
  tensors = {name: x.bfloat16() for name, x in torchvision_network.state_dict().items()}
  safetensors_torch.save_file(tensors, tmp_path / 'short.safetensors')
  safetensors_torch.save_file({name: x.float() for name, x in tensors.items()}, tmp_path / 'long.safetensors')
  short, long = (weight_files.read(tmp_path / name).tensors for name in ('short.safetensors', 'long.safetensors'))
  for name, x in short.items():
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, long[name])


def test_tensors_that_do_not_fit_are_named_as_in_torchvision(torchvision_network, unused, tmp_path, capsys):
  tensors = dict(torchvision_network.state_dict())
  del tensors['features.0.weight'], tensors['classifier.6.bias']
  tensors['features.1.weight'], tensors['features.2.count'] = torch.zeros(3), torch.tensor(1)
  tensors['features.3.weight'] = torch.zeros(12, 4, 5, 5)
  torch.save(tensors, tmp_path / 'a.pth')
  message = error_of(capsys, 'import', tmp_path / 'a.pth', unused)
  assert 'features.0.weight is missing' in message
  assert 'classifier.6.bias is missing' in message
  assert 'features.1.weight is unexpected' in message
  assert 'features.2.count is unexpected' in message
  assert 'features.3.weight is 12 x 4 x 5 x 5 and should be 12 x 8 x 5 x 5' in message


def test_objects_other_than_tensors_are_not_unpickled(unused, tmp_path, capsys):
  torch.save({'features.0.weight': UnsafePickle()}, tmp_path / 'a.pth')
  assert 'contains objects other than tensors' in error_of(capsys, 'import', tmp_path / 'a.pth', unused)
  torch.save([1, 2], tmp_path / 'a.pth')
  assert 'does not contain a state dict' in error_of(capsys, 'import', tmp_path / 'a.pth', unused)


def test_torch_is_required(unused, tmp_path, capsys, monkeypatch):
  (tmp_path / 'a.pth').write_bytes(b'anything')
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert 'install torch' in error_of(capsys, 'import', tmp_path / 'a.pth', unused)


def test_names_of_tensors_are_those_of_torchvision():
  assert torchvision_files.torchvision_name('fc8.bias') == 'classifier.6.bias'
  assert torchvision_files.is_state_dict({'classifier.1.weight': 0})
  assert not torchvision_files.is_state_dict({'conv1.weight': 0})
