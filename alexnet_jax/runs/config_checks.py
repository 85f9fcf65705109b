"""Validation of configs: reports invalid values before a folder is made, a dataset opened or a device used."""

import os
import pathlib

from ml_collections import ConfigDict

from alexnet_jax.models import registry
from alexnet_jax.models.checks import MAX_FLOAT32
from alexnet_jax.runs import checkpoints
from alexnet_jax.runs.config_files import flatten
from alexnet_jax.runtime.errors import UsageError, first_line

MAX_STEPS = 2**31 - 1  # steps are counted in 32 bits
MAX_DECAYS = 50  # of the learning rate

# Smallest and largest value of each count. Larger values are typing errors or exceed the capacity of any machine.
COUNT_RANGES = {
  'seed': (0, 2**32 - 1),
  'batch_size': (1, 2**20),
  'num_epochs': (0, 10**6),
  'num_steps': (0, MAX_STEPS),
  'eval_every': (0, MAX_STEPS),
  'checkpoint_every': (0, MAX_STEPS),
  'log_every': (1, MAX_STEPS),
  'heartbeat': (1, 10**6),
  'mesh.data': (0, MAX_STEPS),
  'mesh.tower': (0, MAX_STEPS),
  'model.image_size': (1, 2048),
  'model.border': (0, 2048),
  'optimizer.plateau_drops': (0, MAX_DECAYS),
  'optimizer.plateau_patience': (1, MAX_STEPS),
  'augment.shared_by': (1, MAX_STEPS),
  'data.num_threads': (0, 1024),
  'data.num_prefetched': (0, 4096),
  'eval.batch_size': (1, 2**20),
}
NON_NEGATIVE_FIELDS = (
  'optimizer.rate',
  'optimizer.momentum',
  'optimizer.weight_decay',
  'optimizer.bias_factor',
  'augment.colour_std',
)
NON_NEGATIVE_PARTS = ('model.init_std.', 'optimizer.layer_factor.', 'optimizer.layer_decay.')
CHOICES = {
  'optimizer.schedule': ('plateau', 'steps'),
  'data.unreadable': ('fail', 'skip'),
  'eval.ensemble': ('mean', 'search'),
}


def check(config: ConfigDict) -> None:
  """Validates a config, as far as its values do not depend on the dataset and the devices.

  Raises:
    UsageError: naming the field and its valid values.
  """
  try:
    check_values(config)
  except KeyError as error:
    raise UsageError(
      f'the config lacks the field {first_line(error)}; add it, with the value in configs/alexnet.py.'
    ) from error
  except TypeError as error:
    raise UsageError(
      f'the config has a value of another type than configs/alexnet.py ({first_line(error)}); correct it.'
    ) from error


def check_values(config: ConfigDict) -> None:
  """Validates the values of a config with all fields.

  Raises:
    UsageError: naming the field and its valid values.
    KeyError: if a field is missing.
    TypeError: if the type of a value is none that the field can have.
  """
  try:
    values = flatten(config)
  except TypeError as error:
    raise UsageError(
      f'the config contains a value that JSON cannot represent ({error}); use numbers, strings, True, False, and '
      'tuples of these.'
    ) from error
  _check_counts(values)
  _check_amounts(values)
  _check_choices(values)
  _check_names(values)
  registry.build(config.model, num_classes=2)  # any number: the layers before the last do not depend on it
  _check_init_fresh(values)
  _check_learning_rate(values)
  _check_fractions(values)


def check_initialisation(config: ConfigDict) -> None:
  """Validates `init_from` and `init_fresh` of a new run. A resumed run does not need the network it started from.

  Raises:
    UsageError: if `init_fresh` is set without `init_from`, or `init_from` is neither a file nor the folder of a run
      with a checkpoint.
  """
  origin = config.init_from
  if config.init_fresh and not origin:
    raise UsageError(
      f'init_fresh={tuple(config.init_fresh)} lists layers that are not loaded from another network, and init_from is '
      'empty; name that network with --config.init_from=FOLDER or FILE.'
    )
  if origin and not os.path.exists(origin):  # False for a name that is too long, unlike pathlib's exists
    raise UsageError(f'init_from={origin} does not exist; name the folder of a run or a file of weights.')
  if origin and os.path.isdir(origin) and checkpoints.newest_step(pathlib.Path(origin)) is None:
    raise UsageError(f'init_from={origin} contains no checkpoint; name the folder of a run or a file of weights.')


def _check_counts(values):
  for field, (smallest, largest) in COUNT_RANGES.items():
    if field != 'num_epochs' and not isinstance(values[field], int):
      raise UsageError(f'{field}={values[field]} must be an integer.')
    if not values[field] >= smallest:  # also for nan
      raise UsageError(f'{field}={values[field]} must be {smallest} or more.')
    if values[field] > largest:
      raise UsageError(f'{field}={values[field]} must be {largest:,} or less.')
  num_offsets = values['model.border'] + 1
  if not 1 <= values['augment.offsets'] <= num_offsets:
    raise UsageError(
      f'augment.offsets={values["augment.offsets"]} must be 1 to {num_offsets}, the number of offsets of a crop on '
      'each axis.'
    )
  if not values['num_epochs'] and not values['num_steps']:
    raise UsageError('num_epochs and num_steps are both 0; set one of them.')


def _check_amounts(values):
  for field in (*NON_NEGATIVE_FIELDS, *(field for field in values if field.startswith(NON_NEGATIVE_PARTS))):
    if not 0 <= values[field] <= MAX_FLOAT32:
      raise UsageError(f'{field}={values[field]} must be 0 or more, and finite in 32 bits.')
  if values['optimizer.momentum'] >= 1:
    raise UsageError(f'optimizer.momentum={values["optimizer.momentum"]} must be less than 1; the paper has 0.9.')


def _check_choices(values):
  for field, choices in CHOICES.items():
    if values[field] not in choices:
      raise UsageError(f"{field}='{values[field]}' is unknown; choose {' or '.join(map(repr, choices))}.")


def _check_names(values):
  for field, example in (
    ('variants', "('as_run',)"),
    ('init_fresh', "('fc7', 'fc8')"),
    ('data.classes', "('cat', '7')"),
  ):
    if not all(isinstance(name, str) for name in values[field]):
      raise UsageError(f'{field}={values[field]} must contain names, such as {example}.')
  classes = values['data.classes']
  if classes and (len(classes) < 2 or len(set(classes)) < len(classes)):
    raise UsageError(f'data.classes={tuple(classes)} must name two or more different classes.')


def _check_init_fresh(values):
  layers = [field.rpartition('.')[2] for field in values if field.startswith('model.init_std.')]
  layers = [name for name in layers if values.get(f'model.kernels.{name}') != 0]
  if unknown := [name for name in values['init_fresh'] if name not in layers]:
    raise UsageError(f'init_fresh contains {", ".join(unknown)}; the layers of this network are {", ".join(layers)}.')


def _check_learning_rate(values):
  if not 0.001 <= values['optimizer.rate_factor'] <= 1e6:
    raise UsageError(
      f'optimizer.rate_factor={values["optimizer.rate_factor"]} must be 0.001 to 1,000,000; the paper has 10.'
    )
  if values['optimizer.bias_drops'] < -1:
    raise UsageError(
      f'optimizer.bias_drops={values["optimizer.bias_drops"]} must be -1 or more; -1 means all decays of the learning '
      'rate.'
    )
  if len(values['optimizer.steps']) > MAX_DECAYS:
    raise UsageError(f'optimizer.steps contains {len(values["optimizer.steps"])} steps; name {MAX_DECAYS} or fewer.')


def _check_fractions(values):
  fractions = {'augment.colour_until': [values['augment.colour_until']], 'optimizer.steps': values['optimizer.steps']}
  for field in (name for name in values if name.startswith('optimizer.layer_changes.')):
    changes = values[field]
    if not all(isinstance(change, list) and len(change) == 3 and _are_non_negative(change) for change in changes):
      raise UsageError(
        f'{field}={changes} must contain triples: fraction of the run, and the factors of the learning rates of '
        'kernels and biases.'
      )
    fractions[field] = [fraction for fraction, _, _ in changes]
  for field, numbers in fractions.items():
    if not (_are_non_negative(numbers) and all(number <= 1 for number in numbers)):
      raise UsageError(f'{field}={values[field]} must be given as fractions of the run, 0 to 1.')


def _are_non_negative(values):
  """Returns whether all values are numbers from 0 to the largest finite one of 32 bits."""
  return all(isinstance(value, int | float) and 0 <= value <= MAX_FLOAT32 for value in values)
