"""Fixtures of the tests of the page."""

import shutil

import pytest

from alexnet_jax.explore import loaded_run


@pytest.fixture(scope='module')
def run(trained_run, tmp_path_factory):
  """A copy of the small network's run, to which the page may save features."""
  return loaded_run.load(shutil.copytree(trained_run, tmp_path_factory.mktemp('copies') / 'small'))
