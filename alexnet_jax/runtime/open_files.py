"""The number of files that this process may open."""

import resource

MAX_FILES = 10_240  # the largest limit that macOS accepts; a dataset has a file for every 4,096 images


def raise_limit() -> None:
  """Raises the limit of open files, which is often 256 or 1,024, to `MAX_FILES` or to what the system allows."""
  limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = MAX_FILES if highest == resource.RLIM_INFINITY else min(MAX_FILES, highest)
  if limit != resource.RLIM_INFINITY and limit < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))
