"""The fields of a config: their full names, and the values that no run can have."""

import json
import math

from ml_collections import ConfigDict

from alexnet_jax.errors import UsageError

ONE_OR_MORE = (
  'batch_size',
  'log_every',
  'heartbeat',
  'eval.batch_size',
  'optimizer.plateau_patience',
  'augment.shared_by',
)
ZERO_OR_MORE = (
  'data.num_threads',
  'data.num_prefetched',
  'seed',
  'num_epochs',
  'num_steps',
  'eval_every',
  'checkpoint_every',
  'optimizer.rate',
  'optimizer.momentum',
  'optimizer.weight_decay',
  'optimizer.plateau_drops',
  'optimizer.bias_factor',
  'augment.colour_std',
  'model.border',
)
ZERO_OR_MORE_OF_EACH = ('model.init_std.', 'optimizer.layer_factor.')


def flat(config: ConfigDict) -> dict:
  """Flattens a config to {'model.width': 1.0, ...}, in JSON's types."""

  def flatten(prefix, value):
    if not isinstance(value, dict):
      return {prefix: value}
    parts = (flatten(f'{prefix}.{name}' if prefix else name, part) for name, part in value.items())
    return {name: part for flattened in parts for name, part in flattened.items()}

  return flatten('', json.loads(json.dumps(config.to_dict())))


def check(config: ConfigDict) -> None:
  """Finds values that no run can have.

  Raises:
    UsageError: naming the field and what it may be.
  """
  values = flat(config)
  for field in ONE_OR_MORE:
    if not 1 <= values[field] < math.inf:
      raise UsageError(f'{field}={values[field]} must be 1 or more.')
  for field in (*ZERO_OR_MORE, *(name for name in values if name.startswith(ZERO_OR_MORE_OF_EACH))):
    if not 0 <= values[field] < math.inf:
      raise UsageError(f'{field}={values[field]} must be 0 or more, and finite.')
  if values['seed'] >= 2**32:
    raise UsageError(f'seed={values["seed"]} must be below 2 ** 32.')
  if not values['optimizer.rate_factor'] > 0:
    raise UsageError(f'optimizer.rate_factor={values["optimizer.rate_factor"]} must be above 0; the paper has 10.')
  if values['optimizer.bias_drops'] < -1:
    raise UsageError(f'optimizer.bias_drops={values["optimizer.bias_drops"]} must be -1, for all, or more.')
  num_places = values['model.border'] + 1
  if not 1 <= values['augment.offsets'] <= num_places:
    raise UsageError(
      f'augment.offsets={values["augment.offsets"]} must be 1 to {num_places}, the places of a patch on each axis.'
    )
  fractions = {'augment.colour_until': [values['augment.colour_until']], 'optimizer.steps': values['optimizer.steps']}
  for field in (name for name in values if name.startswith('optimizer.layer_changes.')):
    if not all(isinstance(change, list) and len(change) == 3 and _from_zero(change) for change in values[field]):
      raise UsageError(
        f"{field}={values[field]} must be of triples: fraction of the run, factor of the kernels' rate, of the biases'."
      )
    fractions[field] = [fraction for fraction, _, _ in values[field]]
  for field, given in fractions.items():
    if not (_from_zero(given) and all(fraction <= 1 for fraction in given)):
      raise UsageError(f'{field}={values[field]} must be in fractions of the run, 0 to 1.')
  if not values['num_epochs'] and not values['num_steps']:
    raise UsageError('num_epochs and num_steps are both 0; set one of them.')


def _from_zero(given):
  """Says whether all are numbers from 0 on, and finite."""
  return all(isinstance(number, int | float) and 0 <= number < math.inf for number in given)
