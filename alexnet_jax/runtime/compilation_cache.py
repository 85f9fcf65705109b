"""The user's cache: what can be made again, but takes time."""

import os
import pathlib


def user_folder() -> pathlib.Path:
  """Names this project's folder in the user's cache, XDG_CACHE_HOME or ~/.cache; it need not exist."""
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'alexnet_jax'


def default_folder() -> pathlib.Path:
  """Names the folder for what XLA compiled; it need not exist."""
  return user_folder() / 'compiled'


def enable() -> None:
  """Lets XLA look for what it compiled before; call it before jax is imported.

  JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=false compiles anew. Training and
  evaluation on a CPU do so anyway (`onednn.use`), unless another folder is named.
  """
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(default_folder()))
