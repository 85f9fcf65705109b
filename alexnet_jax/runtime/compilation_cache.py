"""This project's cache folder, which contains the compiled programs."""

import os
import pathlib


def user_folder() -> pathlib.Path:
  """Returns this project's folder in XDG_CACHE_HOME or ~/.cache; it may not exist."""
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'alexnet_jax'


def default_folder() -> pathlib.Path:
  """Returns the default folder of compiled programs; it may not exist."""
  return user_folder() / 'compiled'


def enable() -> None:
  """Enables JAX's persistent compilation cache. Call it before jax is imported.

  The environment variable JAX_COMPILATION_CACHE_DIR selects another folder, and JAX_ENABLE_COMPILATION_CACHE=false
  disables the cache. With the default folder, training and evaluation on a CPU do not use it (`onednn.enable`).
  """
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(default_folder()))
  # jaxlib 0.10.1 logs two errors for every cached CPU program: it mistakes tuning preferences for processor features.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
