"""Starting from what another network has learned: layers taken by name, the others fresh (section 6)."""

import os
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.interop import weight_files
from alexnet_jax.runs import checkpoints, config_checks, run_folder
from alexnet_jax.runtime.errors import UsageError

# Fields of a model that change what weights mean, though not their shapes.
MEANING = ('nonlinearity', 'norm', 'dropout', 'pool_size', 'pool', 'padding')


def check(config: ConfigDict) -> None:
  """Finds what cannot be started from, before anything else is done.

  Raises:
    UsageError: if `init_fresh` is given alone, or `init_from` is not there.
  """
  if config.init_fresh and not config.init_from:
    raise UsageError(
      f'init_fresh={tuple(config.init_fresh)} is of layers that start fresh beside those of another network; name that '
      'with --config.init_from=FOLDER or FILE.'
    )
  if config.init_from and not os.path.exists(config.init_from):  # of a name too long, too
    raise UsageError(f'init_from={config.init_from} does not exist; name the folder of a run, or a file of weights.')
  origin = pathlib.Path(config.init_from)
  if config.init_from and origin.is_dir() and checkpoints.newest_step(origin) is None:
    raise UsageError(f'init_from={origin} holds no checkpoint; name the folder of a run, or a file of weights.')


def initial_params(params: dict, config: ConfigDict, mesh: Mesh) -> dict:
  """Replaces freshly drawn layers by those of the network that `init_from` names.

  A layer is taken if both networks have it, unless `init_fresh` names it. What is taken and what is not is printed.

  Args:
    params: freshly drawn, {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    config: the whole config; `init_from` is the folder of a run, or a file of weights (see `weights.read`).
    mesh: where the parameters are.

  Returns:
    The parameters to start from.

  Raises:
    UsageError: if there is no such network, none of its layers can be taken, or some have other shapes.
    RunError: if its checkpoints cannot be read.
  """
  origin, surplus = pathlib.Path(config.init_from), set()

  def select(there):
    names = _taken(there, _shapes(params), config)
    surplus.update(there.keys() - params.keys())
    return {name: jax.tree.map(_abstract, params[name]) for name in names}

  if origin.is_file():
    read = weight_files.read(origin)
    arrays, model, step = read.params(config.model.num_towers), read.config.model, read.num_steps
    found = {name: _put(arrays[name], layer) for name, layer in select(_shapes(arrays)).items()}
  else:
    model = run_folder.load_config(origin).model
    step, found = checkpoints.load_newest_params(origin, select, mesh)
  print(f'from {origin}, step {step:,}: {", ".join(name for name in params if name in found)}')
  for what, names in (('fresh', params.keys() - found.keys()), ('not taken', surplus)):
    if names:
      print(f'  {what}: {", ".join(sorted(names))}')
  for difference in _differences(model, config.model):
    print(f'  not as it was there: {difference}')
  return params | found


def _taken(there, here, config):
  """Names the layers to take; the arguments are the shapes of the layers there and here, and the whole config."""
  origin, fresh = config.init_from, tuple(config.init_fresh)
  if unknown := set(fresh) - set(here):
    raise UsageError(f'init_fresh names {", ".join(sorted(unknown))}; this network has {", ".join(here)}.')
  taken = [name for name in here if name in there and name not in fresh]
  if not taken:
    raise UsageError(f'{origin} has no layer to take: it has {", ".join(there)}, and init_fresh={fresh}.')
  if differing := checkpoints.shape_differences(*({name: shapes[name] for name in taken} for shapes in (there, here))):
    raise UsageError(
      f'{origin} has layers of other shapes: {"; ".join(differing)}; name them in init_fresh to start them fresh.'
    )
  return taken


def _shapes(params):
  return {name: {part: x.shape for part, x in layer.items()} for name, layer in params.items()}


def _put(arrays, abstract):
  return {part: jax.device_put(arrays[part], x.sharding) for part, x in abstract.items()}


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _differences(there, here):
  """Names the fields that change what the weights mean."""
  there, here = config_checks.flatten(there), config_checks.flatten(here)
  return [
    f'model.{name} was {there.get(name)} and is {value}'
    for name, value in here.items()
    if name.split('.')[0] in MEANING and there.get(name) != value
  ]
