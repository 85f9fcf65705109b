"""A trained network with parts switched off."""

from typing import NamedTuple

import jax
import numpy as np

from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.models import alexnet
from alexnet_jax.models.registry import build

NORM_FIELDS = ('before', 'after', 'within', 'pooled')


class Ablation(NamedTuple):
  """The parts to switch off.

  Attributes:
    towers: towers whose kernels and units output zero, except in the last layer.
    units: (layer, channel) of maps or units that output zero; the channels of the first tower are first.
    norms: layers without response normalisation.
  """

  towers: tuple[int, ...] = ()
  units: tuple[tuple[str, int], ...] = ()
  norms: tuple[str, ...] = ()


def normalised_layers(model: TrainedModel) -> list[str]:
  """Returns the names of the layers that are normalised, in the order of the network."""
  norm = model.config.norm
  names = {name for field in NORM_FIELDS for name in norm[field]}
  return [name for name in model.network.layer_names if name in names]


def apply(model: TrainedModel, ablation: Ablation) -> TrainedModel:
  """Switches parts of a network off; the other parts do not change.

  A map or unit is switched off by setting its kernel and bias to zero, since every nonlinearity maps 0 to 0.

  Args:
    model: the network, an AlexNet.
    ablation: what to switch off.
  """
  params = dict(model.params)
  with jax.set_mesh(model.mesh):
    for name, layer in params.items():
      is_active = np.ones(layer['bias'].shape, np.float32)
      if name not in alexnet.LINEAR:
        is_active[list(ablation.towers)] = 0
      channels = [channel for unit_layer, channel in ablation.units if unit_layer == name]
      is_active.reshape(-1)[channels] = 0
      if not is_active.all():
        masks = {'kernel': np.expand_dims(is_active, tuple(range(1, layer['kernel'].ndim - 1))), 'bias': is_active}
        params[name] = {part: layer[part] * masks[part] for part in layer}
  if not ablation.norms:
    return model._replace(params=params)
  config = model.config.copy_and_resolve_references()
  with config.unlocked():
    for field in NORM_FIELDS:
      config.norm[field] = tuple(name for name in config.norm[field] if name not in ablation.norms)
  return model._replace(params=params, config=config, network=build(config, model.network.num_classes))
