import resource

import pytest

from alexnet_jax.runtime import open_files


@pytest.fixture
def limits():
  """The limits of this process, which are restored after the test."""
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  yield limits
  resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_low_limit_is_raised_as_far_as_the_system_allows(limits):
  _, highest = limits
  resource.setrlimit(resource.RLIMIT_NOFILE, (200, highest))
  open_files.raise_limit()
  expected = 10_240 if highest == resource.RLIM_INFINITY else min(10_240, highest)
  assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, highest)


def test_a_high_limit_remains(limits, monkeypatch):
  resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits[1]))
  monkeypatch.setattr(open_files, 'MAX_FILES', 200)
  open_files.raise_limit()
  assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
