"""The update rule of section 5, for groups of parameters with different learning rates, in Optax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.kernels import barriers
from alexnet_jax.training.schedules import CONSTANT, Plateau, Steps, step_at

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def momentum_sgd(
  learning_rate: float | jax.Array, momentum: float, weight_decay: float, can_freeze: bool = False
) -> optax.GradientTransformation:
  """Creates the update rule of section 5, stochastic gradient descent with momentum and weight decay.

      v <- momentum * v - weight_decay * learning_rate * w - learning_rate * gradient
      w <- w + v

  The learning rate is inside the velocity, so past gradients retain the learning rate that was in effect when they were
  computed; `optax.sgd` scales the whole velocity by the current learning rate instead.

  Args:
    learning_rate: epsilon in the paper; may be traced.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.
    can_freeze: whether the learning rate can be 0. Then neither v nor w changes by a bit.
  """
  rule = optax.chain(
    optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
    optax.scale_by_learning_rate(learning_rate),
    optax.trace(momentum),
    optax.stateless(lambda velocity, _: barriers.computed_once_on_cpu(velocity)),
  )
  return optax.conditionally_mask(rule, lambda _: learning_rate != 0) if can_freeze else rule


@dataclasses.dataclass(frozen=True)
class Group:
  """The settings of a group of parameters.

  Attributes:
    schedule: learning rate.
    weight_decay: factor of the weights in the update, relative to the learning rate.
  """

  schedule: Plateau | Steps
  weight_decay: float

  def transformation(self, momentum: float) -> optax.GradientTransformation:
    """Creates the update rule of the group. Its state contains the velocities, the schedule and the learning rate."""
    static_args = 'momentum', 'weight_decay'
    rule = optax.inject_hyperparams(momentum_sgd, static_args=static_args, hyperparam_dtype=jnp.float32)
    can_freeze = any(self.schedule.initial * factor == 0 for _, factor in self.schedule.factors)
    return rule(self.schedule, momentum, self.weight_decay, can_freeze)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The optimizer of a run. Equal optimizers have the same hash, so they can be static arguments of jitted functions.

  Attributes:
    momentum: 0.9 in the paper.
    groups: settings by name: 'kernel', 'bias', and those of layers with settings of their own, such as 'conv1.kernel'.
  """

  momentum: float
  groups: tuple[tuple[str, Group], ...]

  def transformation(self) -> optax.GradientTransformation:
    """Creates the Optax transformation; add its updates to the parameters with `optax.apply_updates`."""
    rules = {name: group.transformation(self.momentum) for name, group in self.groups}

    def label(path, _):
      layer, part = (key.key for key in path)
      return f'{layer}.{part}' if f'{layer}.{part}' in rules else part

    return optax.partition(rules, lambda params: jax.tree.map_with_path(label, params))


def make_optimizer(config: ConfigDict, last_step: int) -> Optimizer:
  """Creates the optimizer of the `optimizer` part of a config.

  Args:
    config: the `optimizer` part of a config, validated by `config_checks`.
    last_step: length of the run; `config.steps` and `config.layer_changes` give fractions of it.
  """
  groups = {}
  for part in ('kernel', 'bias'):
    groups[part] = _make_group(config, part, CONSTANT, 1.0, last_step)
    for layer, factor in config.layer_factor.items():
      changes = sorted(config.layer_changes[layer])
      later = ((step_at(change[0], last_step), factor * change[1 if part == 'kernel' else 2]) for change in changes)
      group = _make_group(config, part, ((0, factor), *later), config.layer_decay[layer], last_step)
      if group != groups[part]:
        groups[f'{layer}.{part}'] = group
  return Optimizer(config.momentum, tuple(groups.items()))


def _make_group(config, part, factors, decay_factor, last_step):
  is_bias = part == 'bias'
  initial = config.rate * (config.bias_factor if is_bias else 1.0)
  weight_decay = 0.0 if is_bias and not config.bias_decay else config.weight_decay * decay_factor
  max_decays = config.bias_drops if is_bias and config.bias_drops >= 0 else None
  if config.schedule == 'plateau':
    num_decays = config.plateau_drops if max_decays is None else min(config.plateau_drops, max_decays)
    return Group(Plateau(initial, config.rate_factor, num_decays, factors), weight_decay)
  boundaries = tuple(sorted(step_at(fraction, last_step) for fraction in config.steps)[:max_decays])
  return Group(Steps(initial, config.rate_factor, boundaries, factors), weight_decay)


def learning_rates(opt_state: Any) -> dict[str, jax.Array]:
  """Returns the learning rates of the last step, float32 scalars by group, from the state of `Optimizer`."""
  return {name: state.inner_state.hyperparams['learning_rate'] for name, state in opt_state.inner_states.items()}


def describe_learning_rates(values: Mapping[str, float]) -> str:
  """Describes learning rates by group: the common ones, then those of layers that differ."""

  def pair(kernel, bias):
    return f'{kernel:.4g}' if kernel == bias else f'{kernel:.4g} (biases {bias:.4g})'

  common = values['kernel'], values['bias']
  layers = dict.fromkeys(name.partition('.')[0] for name in values if '.' in name)
  by_layer = {
    layer: tuple(values.get(f'{layer}.{part}', values[part]) for part in ('kernel', 'bias')) for layer in layers
  }
  exceptions = [f'{layer} {pair(*own)}' for layer, own in by_layer.items() if own != common]
  return ', '.join((f'learning rate {pair(*common)}', *exceptions))
