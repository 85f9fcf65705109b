"""The fields of a config: their full names, and the values that no run can have."""

import json

from ml_collections import ConfigDict

from alexnet_jax.runtime.errors import UsageError

MAX_STEPS = 2**31 - 1  # steps are counted in 32 bits
# Least and most of what is counted; beyond that it is a slip of the keyboard, or more than any machine can hold.
COUNTS = {
  'seed': (0, 2**32 - 1),
  'batch_size': (1, 2**20),
  'num_epochs': (0, 10**6),
  'num_steps': (0, MAX_STEPS),
  'eval_every': (0, MAX_STEPS),
  'checkpoint_every': (0, MAX_STEPS),
  'log_every': (1, MAX_STEPS),
  'heartbeat': (1, 10**6),
  'model.image_size': (1, 2048),
  'model.border': (0, 2048),
  'optimizer.plateau_drops': (0, 50),
  'optimizer.plateau_patience': (1, MAX_STEPS),
  'augment.shared_by': (1, MAX_STEPS),
  'data.num_threads': (0, 1024),
  'data.num_prefetched': (0, 4096),
  'eval.batch_size': (1, 2**20),
}
LARGEST = 3.4e38  # of what is computed with in 32 bits
ZERO_OR_MORE = (
  'optimizer.rate',
  'optimizer.momentum',
  'optimizer.weight_decay',
  'optimizer.bias_factor',
  'augment.colour_std',
)
ZERO_OR_MORE_OF_EACH = ('model.init_std.', 'optimizer.layer_factor.', 'optimizer.layer_decay.')
NAMES = ('variants', 'init_fresh', 'model.norm.after', 'model.norm.pooled', 'data.classes')
NAMES_OF = {'alexnet': ('model.meet', 'model.norm.before', 'model.norm.within'), 'cifar': ()}  # by model.name

# Fields that older versions did not have, and what they did without.
DEFAULTS_OF_LATER_FIELDS = {'data.classes': (), 'model.dtype': 'float32'}


def add_missing_fields(config: ConfigDict) -> ConfigDict:
  """Gives the config of a run of an older version the fields that came later; raises KeyError if others are missing."""
  for field, value in DEFAULTS_OF_LATER_FIELDS.items():
    part, _, name = field.partition('.')
    if name not in config[part]:
      config[part][name] = value
  return config


def flatten(config: ConfigDict) -> dict:
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
  try:
    values = flatten(config)
  except TypeError as error:
    raise UsageError(
      f'the config has a value that cannot be kept ({error}); write numbers, names, True, False, and tuples of these.'
    ) from error
  for field, (least, most) in COUNTS.items():
    if not least <= values[field]:
      raise UsageError(f'{field}={values[field]} must be {least} or more.')
    if not values[field] <= most:
      raise UsageError(f'{field}={values[field]} must be {most:,} or less.')
  for field in (*ZERO_OR_MORE, *(name for name in values if name.startswith(ZERO_OR_MORE_OF_EACH))):
    if not 0 <= values[field] <= LARGEST:
      raise UsageError(f'{field}={values[field]} must be 0 or more, and finite in 32 bits.')
  if values['model.name'] not in NAMES_OF:
    raise UsageError(f"model.name='{values['model.name']}' is unknown; choose {' or '.join(map(repr, NAMES_OF))}.")
  for field in (*NAMES, *NAMES_OF[values['model.name']]):
    if not all(isinstance(name, str) for name in values[field]):
      example = "('cat', '7')" if field == 'data.classes' else "('conv1', 'conv2')"
      raise UsageError(f'{field}={values[field]} must be of names, such as {example}.')
  if not 0.001 <= values['optimizer.rate_factor'] <= 1e6:
    raise UsageError(
      f'optimizer.rate_factor={values["optimizer.rate_factor"]} must be above 0, 0.001 to 1,000,000; the paper has 10.'
    )
  if values['data.unreadable'] not in ('fail', 'skip'):
    raise UsageError(f"data.unreadable='{values['data.unreadable']}' is unknown; choose 'fail' or 'skip'.")
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
  if len(values['optimizer.steps']) > COUNTS['optimizer.plateau_drops'][1]:
    raise UsageError(f'optimizer.steps has {len(values["optimizer.steps"])} drops; name 50 or fewer.')
  if not values['num_epochs'] and not values['num_steps']:
    raise UsageError('num_epochs and num_steps are both 0; set one of them.')


def _from_zero(given):
  """Says whether all are numbers from 0 on, and finite in 32 bits."""
  return all(isinstance(number, int | float) and 0 <= number <= LARGEST for number in given)
