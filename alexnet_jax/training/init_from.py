"""Initialisation from a trained network: layers are loaded by name, the others are drawn at random (section 6)."""

import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.interop import weight_files
from alexnet_jax.runs import checkpoints, config_files, run_folder
from alexnet_jax.runtime.errors import UsageError

# Fields of a model, or groups of fields, that change the meaning of its weights but not their shapes.
FIELDS_OF_MEANING = ('nonlinearity', 'norm', 'dropout', 'pool_size', 'pool', 'padding')


def initial_params(params: dict, config: ConfigDict, mesh: Mesh) -> dict:
  """Replaces randomly initialised layers by those of the network that `init_from` names.

  A layer is loaded if both networks have it and `init_fresh` does not list it. Prints the layers that are loaded, those
  that are not, and model fields that change the meaning of the loaded weights.

  Args:
    params: randomly initialised, {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    config: the whole config; `init_from` is the folder of a run or a file of weights (see `weight_files.read`).
    mesh: the devices of the parameters.

  Returns:
    The initial parameters of the run.

  Raises:
    UsageError: if the network cannot be read, none of its layers can be loaded, or some differ in shape.
    RunError: if none of its checkpoints can be read.
  """
  origin = pathlib.Path(config.init_from)
  unused: set[str] = set()

  def select(available):
    unused.update(available.keys() - params.keys())
    return {name: jax.tree.map(_abstract, params[name]) for name in _loadable(available, _shapes(params), config)}

  if origin.is_file():
    weights = weight_files.read(origin)
    arrays, model, num_steps = weights.params(config.model.num_towers), weights.config.model, weights.num_steps
    loaded = {name: _put(arrays[name], layer) for name, layer in select(_shapes(arrays)).items()}
  else:
    model = run_folder.load_config(origin).model
    num_steps, loaded = checkpoints.load_newest_params(origin, select, mesh)
  print(f'Initialised from {origin}, step {num_steps:,}: {", ".join(name for name in params if name in loaded)}')
  for status, names in (('randomly initialised', params.keys() - loaded.keys()), ('not loaded', unused)):
    if names:
      print(f'  {status}: {", ".join(sorted(names))}')
  for difference in _differences(model, config.model):
    print(f'  different: {difference}')
  return params | loaded


def _loadable(available, shapes, config):
  """Names the layers to load, given the shapes of the layers of the other network and of this one."""
  origin, init_fresh = config.init_from, tuple(config.init_fresh)
  names = [name for name in shapes if name in available and name not in init_fresh]
  if not names:
    raise UsageError(
      f'no layer can be loaded from {origin}, which has {", ".join(available)}: this network has '
      f'{", ".join(shapes)}, and init_fresh={init_fresh}.'
    )
  if differing := checkpoints.shape_differences(
    {name: available[name] for name in names}, {name: shapes[name] for name in names}
  ):
    raise UsageError(
      f'layers in {origin} differ in shape: {"; ".join(differing)}; list them in init_fresh to draw them at random.'
    )
  return names


def _shapes(params):
  return {name: {part: x.shape for part, x in layer.items()} for name, layer in params.items()}


def _put(arrays, abstract):
  return {part: jax.device_put(arrays[part], x.sharding) for part, x in abstract.items()}


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _differences(origin_model, model):
  """Describes the fields that change the meaning of the loaded weights."""
  origin_values = config_files.flatten(origin_model)
  return [
    f'model.{field} was {origin_values.get(field)} and is {value}'
    for field, value in config_files.flatten(model).items()
    if field.split('.')[0] in FIELDS_OF_MEANING and origin_values.get(field) != value
  ]
