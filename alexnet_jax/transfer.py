"""Starting from what another network has learned: layers taken by name, the others fresh (section 6)."""

import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import checkpoint, fields, workdir
from alexnet_jax.errors import UsageError

# Fields of a model that change what weights mean, though not their shapes.
MEANING = ('nonlinearity', 'norm', 'dropout', 'pool_size', 'padding')


def initial_params(params: dict, config: ConfigDict, mesh: Mesh) -> dict:
  """Replaces freshly drawn layers by those of the network that `init_from` names.

  A layer is taken if both networks have it, unless `init_fresh` names it. What is taken and what is not is printed.

  Args:
    params: freshly drawn, {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    config: the whole config; `init_from` is the folder of a run.
    mesh: where the parameters are.

  Returns:
    The parameters to start from.

  Raises:
    UsageError: if there is no such network, none of its layers can be taken, or some have other shapes.
  """
  origin, fresh = pathlib.Path(config.init_from), tuple(config.init_fresh)
  newest = checkpoint.newest_step(origin)
  if newest is None:
    raise UsageError(f'init_from={origin} holds no checkpoint; name the folder of a run that was trained.')
  there = checkpoint.param_shapes(origin, newest)
  here = {name: {part: x.shape for part, x in layer.items()} for name, layer in params.items()}
  if unknown := set(fresh) - set(here):
    raise UsageError(f'init_fresh names {", ".join(sorted(unknown))}; this network has {", ".join(here)}.')
  taken = [name for name in here if name in there and name not in fresh]
  differing = checkpoint.differing(*({name: shapes[name] for name in taken} for shapes in (there, here)))
  if differing:
    raise UsageError(
      f'{origin} has layers of other shapes: {"; ".join(differing)}; name them in init_fresh to start them fresh.'
    )
  if not taken:
    raise UsageError(f'{origin} has no layer to take: there are {", ".join(there)}, and init_fresh names {fresh}.')
  abstract = {name: jax.tree.map(_abstract, params[name]) for name in taken}
  print(f'from {origin}, step {newest:,}: {", ".join(taken)}')
  for what, names in (('fresh', set(here) - set(taken)), ('not taken', set(there) - set(here))):
    if names:
      print(f'  {what}: {", ".join(sorted(names))}')
  for difference in _differences(workdir.load_config(origin).model, config.model):
    print(f'  not as it was there: {difference}')
  return params | checkpoint.load_params(origin, newest, abstract, mesh)


def _abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _differences(there, here):
  """Names the fields that change what the weights mean."""
  there, here = fields.flat(there), fields.flat(here)
  return [
    f'model.{name} was {there.get(name)} and is {value}'
    for name, value in here.items()
    if name.split('.')[0] in MEANING and there.get(name) != value
  ]
