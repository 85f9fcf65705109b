"""The update rule of section 5 and its learning rates."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.kernels import barriers
from alexnet_jax.training.schedules import step_at

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def momentum_sgd(
  learning_rates: dict,
  momentum: float,
  weight_decay: float,
  *,
  bias_decay: bool = True,
  layer_decay: Mapping[str, float] = types.MappingProxyType({}),
) -> optax.GradientTransformation:
  """Creates the update rule of section 5, stochastic gradient descent with momentum and weight decay.

      v <- momentum * v - weight_decay * learning_rate * w - learning_rate * gradient
      w <- w + v

  The learning rate is inside the velocity, so past gradients retain the learning rate that was in effect when they were
  computed; `optax.sgd` scales the whole velocity by the current learning rate instead. Where the learning rate is 0,
  neither v nor w changes by a bit.

  Args:
    learning_rates: one for each array, epsilon in the paper: {layer: {'kernel': learning rate, 'bias': learning rate},
      ...}; may be traced.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.
    bias_decay: whether biases decay, too. Paper: w, which is subject to weight decay, stands for all parameters, so
      biases decay; the code of 2012 excluded them (facts, 1.5).
    layer_decay: factors of the weight decay, by layer; 1 for layers that are not listed.

  Returns:
    A transformation whose state contains the velocity v. Add its updates to the weights with `optax.apply_updates`.
  """

  def add_weight_decay(path, gradient, weight):
    layer, part = (key.key for key in path)
    decay = weight_decay * layer_decay.get(layer, 1.0) if bias_decay or part != 'bias' else 0.0
    return gradient + decay * weight if decay else gradient

  rule = optax.chain(
    optax.stateless(functools.partial(jax.tree.map_with_path, add_weight_decay)),
    optax.stateless(
      lambda updates, _: jax.tree.map(lambda x, learning_rate: -learning_rate * x, updates, learning_rates)
    ),
    optax.trace(momentum),
  )

  def update(gradients, state, params):
    _, new_state = rule.update(gradients, state, params)
    *stateless, trace = new_state
    velocity = jax.tree.map(
      lambda new, old, learning_rate: jnp.where(learning_rate != 0, new, old),
      trace.trace,
      state[-1].trace,
      learning_rates,
    )
    velocity = barriers.computed_once_on_cpu(velocity)
    updates = jax.tree.map(lambda v, learning_rate: jnp.where(learning_rate != 0, v, 0), velocity, learning_rates)
    return updates, (*stateless, optax.TraceState(velocity))

  return optax.GradientTransformation(rule.init, update)


@dataclasses.dataclass
class LearningRates:
  """The learning rate of every kernel and bias; in the paper it is the same for all (section 5).

  Attributes:
    initial: initial learning rate of kernels.
    decay_factor: divisor of one decay.
    bias_factor: initial learning rate of biases, relative to that of kernels.
    num_bias_decays: number of the schedule's decays that apply to biases; -1 for all.
    layer_factors: for each layer the factors of its learning rates as (first step, kernel factor, bias factor), in the
      order of the steps: {'conv1': ((0, 1.0, 1.0), (670, 0.1, 1.0), ...), ...}.
  """

  initial: float
  decay_factor: float
  bias_factor: float
  num_bias_decays: int
  layer_factors: dict[str, tuple[tuple[int, float, float], ...]]

  def at_step(self, step: int, num_decays: int) -> dict[str, dict[str, np.float32]]:
    """Returns the learning rates of the next step, as `momentum_sgd` takes them.

    Args:
      step: number of steps taken so far.
      num_decays: number of the schedule's decays in effect.
    """
    kernel, bias = self.kernel_learning_rate(num_decays), self.bias_learning_rate(num_decays)
    learning_rates = {}
    for layer, changes in self.layer_factors.items():
      _, kernel_factor, bias_factor = [change for change in changes if change[0] <= step][-1]
      learning_rates[layer] = {'kernel': np.float32(kernel * kernel_factor), 'bias': np.float32(bias * bias_factor)}
    return learning_rates

  def kernel_learning_rate(self, num_decays: int) -> float:
    """Returns the learning rate of kernels after a number of decays, without layer factors."""
    return self.initial / self.decay_factor**num_decays

  def bias_learning_rate(self, num_decays: int) -> float:
    """Returns the learning rate of biases after a number of decays, without layer factors."""
    num_bias_decays = num_decays if self.num_bias_decays < 0 else min(num_decays, self.num_bias_decays)
    return self.initial * self.bias_factor / self.decay_factor**num_bias_decays

  def summary(self, step: int, num_decays: int) -> str:
    """Describes the learning rates of the next step: the common ones, then those of layers that differ."""

    def pair(kernel, bias):
      return f'{kernel:.4g}' if kernel == bias else f'{kernel:.4g} (biases {bias:.4g})'

    kernel, bias = self.kernel_learning_rate(num_decays), self.bias_learning_rate(num_decays)
    common = np.float32(kernel), np.float32(bias)
    exceptions = [
      f'{layer} {pair(learning_rate["kernel"], learning_rate["bias"])}'
      for layer, learning_rate in self.at_step(step, num_decays).items()
      if (learning_rate['kernel'], learning_rate['bias']) != common
    ]
    return ', '.join((f'learning rate {pair(kernel, bias)}', *exceptions))


def make_learning_rates(config: ConfigDict, layers: Sequence[str], last_step: int) -> LearningRates:
  """Creates the learning rates of the `optimizer` part of a config.

  Args:
    config: the `optimizer` part of a config.
    layers: names of the network's layers.
    last_step: length of the run; `config.layer_changes` gives fractions of it.
  """

  def factors(layer):
    factor = config.layer_factor[layer]
    later = (
      (step_at(fraction, last_step), factor * kernel_factor, factor * bias_factor)
      for fraction, kernel_factor, bias_factor in sorted(config.layer_changes[layer])
    )
    return ((0, factor, factor), *later)

  return LearningRates(
    config.rate,
    config.rate_factor,
    config.bias_factor,
    config.bias_drops,
    {layer: factors(layer) for layer in layers},
  )


class Hyperparameters(NamedTuple):
  """The constants of the update rule (section 5), hashable because they are static arguments of jitted functions.

  Attributes:
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.
    bias_decay: whether biases decay, too.
    layer_decay: (layer, factor of its weight decay) for each layer whose factor is not 1.
  """

  momentum: float
  weight_decay: float
  bias_decay: bool
  layer_decay: tuple[tuple[str, float], ...] = ()

  def update_rule(self, learning_rates: dict) -> optax.GradientTransformation:
    """Creates the update rule for the learning rates of a step, see `momentum_sgd`."""
    return momentum_sgd(
      learning_rates,
      self.momentum,
      self.weight_decay,
      bias_decay=self.bias_decay,
      layer_decay=dict(self.layer_decay),
    )


def hyperparameters(config: ConfigDict) -> Hyperparameters:
  """Returns the hyperparameters of the `optimizer` part of a config."""
  factors = tuple((name, factor) for name, factor in config.layer_decay.items() if factor != 1)
  return Hyperparameters(config.momentum, config.weight_decay, config.bias_decay, factors)
