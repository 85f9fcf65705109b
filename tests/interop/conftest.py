"""Networks, runs and files that the tests of several formats use."""

import contextlib
import functools

import jax
import numpy as np
import pytest

from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.models.registry import build
from alexnet_jax.runs import run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.training import optimizer, step
from tests.conftest import mesh
from tests.interop import networks


@pytest.fixture(scope='session')
def network_of():
  """Cached `networks.small_network`."""
  return functools.cache(networks.small_network)


@pytest.fixture(scope='session')
def torchvision_network():
  """torchvision's AlexNet, narrow."""
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  nn = torch.nn
  features = nn.Sequential(
    nn.Conv2d(3, 8, 11, stride=4, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(3, 2),
    nn.Conv2d(8, 12, 5, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(3, 2),
    nn.Conv2d(12, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 14, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(14, 10, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(3, 2),
  )
  classifier = nn.Sequential(
    nn.Dropout(),
    nn.Linear(10 * 36, 24),
    nn.ReLU(),
    nn.Dropout(),
    nn.Linear(24, 20),
    nn.ReLU(),
    nn.Linear(20, 10),
  )
  network = nn.Sequential()
  for name, module in dict(
    features=features, avgpool=nn.AdaptiveAvgPool2d((6, 6)), flatten=nn.Flatten(), classifier=classifier
  ).items():
    network.add_module(name, module)
  for parameter in network.parameters():
    parameter.data *= 2  # makes the logits differ
  return network.eval()


@pytest.fixture(scope='session')
def run(tmp_path_factory):
  """The folder of a run of a small network."""
  folder = tmp_path_factory.mktemp('run')
  config = networks.small_config()
  rule = optimizer.make_optimizer(config.optimizer, last_step=config.num_steps)
  mean_image = np.random.default_rng(0).uniform(0, 255, (96, 96, 3))
  class_names = [f'digit {label}' for label in range(10)]
  run_folder.write_metadata(folder, config, PixelStatistics(mean_image, np.eye(3), 10), class_names)
  with jax.set_mesh(mesh(1, 1)), contextlib.closing(Checkpoints(folder)) as checkpoints:
    network = build(config.model, 10)
    state = step.init_state(jax.random.key(0), network=network, optimizer=rule)
    checkpoints.save(5, state._replace(step=state.step + 5), {})
  return folder


@pytest.fixture
def mean_path(tmp_path):
  """A mean image [bgr, height, width] as .npy."""
  mean = np.random.default_rng(4).uniform(60, 180, (3, 256, 256))
  np.save(tmp_path / 'mean.npy', mean)
  return tmp_path / 'mean.npy'


@pytest.fixture
def unused(tmp_path):
  """A folder that does not exist."""
  return tmp_path / 'unused'
