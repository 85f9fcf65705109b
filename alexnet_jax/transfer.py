"""Starting from what another network has learned: layers taken by name, the others fresh (section 6)."""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import checkpoint, fields, weights, workdir
from alexnet_jax.errors import UsageError

# Fields of a model that change what weights mean, though not their shapes.
MEANING = ('nonlinearity', 'norm', 'dropout', 'pool_size', 'padding')


class Origin(NamedTuple):
  """The network that layers are taken from.

  Attributes:
    name: of the run or file, and its step.
    model: the `model` part of its config.
    shapes: {'conv1': {'kernel': shape, 'bias': shape}, ...}.
    load: (abstract parameters of some of the layers, mesh) -> these parameters.
  """

  name: str
  model: ConfigDict
  shapes: dict
  load: Callable


def open_origin(path: str, num_towers: int) -> Origin:
  """Opens the newest checkpoint of a run, or a file of weights, see `weights.read`.

  Args:
    path: folder of the run, or the file.
    num_towers: length of the tower axis that the parameters must have.

  Raises:
    UsageError: if there is no such run or file.
  """
  place = pathlib.Path(path)
  if place.is_file():
    read = weights.read(place)
    params = read.params(num_towers)
    shapes = {name: {part: x.shape for part, x in layer.items()} for name, layer in params.items()}

    def load(abstract, mesh):
      del mesh  # the abstract parameters know it
      return {
        name: jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), params[name], abstract[name])
        for name in abstract
      }

    return Origin(f'{place}, step {read.num_steps:,}', read.config.model, shapes, load)
  newest = checkpoint.newest_step(place)
  if newest is None:
    raise UsageError(
      f'init_from={path} holds no checkpoint; name the folder of a run that was trained, or a file of weights.'
    )

  def load(abstract, mesh):
    return checkpoint.load_params(place, newest, abstract, mesh)

  model = workdir.load_config(place).model
  return Origin(f'{place}, step {newest:,}', model, checkpoint.param_shapes(place, newest), load)


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


def initial_params(params: dict, config: ConfigDict, mesh: Mesh) -> dict:
  """Replaces freshly drawn layers by those of the network that `init_from` names.

  A layer is taken if both networks have it, unless `init_fresh` names it. What is taken and what is not is printed.

  Args:
    params: freshly drawn, {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    config: the whole config; `init_from` is the folder of a run or a file of weights.
    mesh: where the parameters are.

  Returns:
    The parameters to start from.

  Raises:
    UsageError: if there is no such network, none of its layers can be taken, or some have other shapes.
  """
  origin, fresh = open_origin(config.init_from, config.model.num_towers), tuple(config.init_fresh)
  there, here = origin.shapes, {name: {part: x.shape for part, x in layer.items()} for name, layer in params.items()}
  if unknown := set(fresh) - set(here):
    raise UsageError(f'init_fresh names {", ".join(sorted(unknown))}; this network has {", ".join(here)}.')
  taken = [name for name in here if name in there and name not in fresh]
  if not taken:
    raise UsageError(f'{origin.name} has no layer to take: it has {", ".join(there)}, and init_fresh={fresh}.')
  if differing := checkpoint.differing(*({name: shapes[name] for name in taken} for shapes in (there, here))):
    raise UsageError(
      f'{origin.name} has layers of other shapes: {"; ".join(differing)}; name them in init_fresh to start them fresh.'
    )
  print(f'from {origin.name}: {", ".join(taken)}')
  for what, names in (('fresh', set(here) - set(taken)), ('not taken', set(there) - set(here))):
    if names:
      print(f'  {what}: {", ".join(sorted(names))}')
  for difference in _differences(origin.model, config.model):
    print(f'  not as it was there: {difference}')
  abstract = {name: jax.tree.map(_abstract, params[name]) for name in taken}
  return params | origin.load(abstract, mesh)


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
