"""Tests of what a run needs before its first step."""

import pytest

from alexnet_jax.configs import alexnet
from alexnet_jax.training import run_setup


@pytest.mark.parametrize(
  ('num_epochs', 'num_images', 'batch_size', 'expected'),
  [(90, 1_281_167, 128, 900_821), (30, 50_000, 96, 15_625), (1, 129, 128, 2), (0.5, 1000, 10, 50)],
)
def test_a_run_has_as_many_steps_as_its_epochs_need(num_epochs, num_images, batch_size, expected):
  config = alexnet.get_config()
  config.num_epochs, config.batch_size, config.num_steps = num_epochs, batch_size, 0
  assert run_setup.compute_last_step(config, num_images) == expected
