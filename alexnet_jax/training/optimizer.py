"""The update rule of section 5, and the schedules that set its rate."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax.training.schedules import step_at

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def momentum_sgd(
  rates: dict,
  momentum: float,
  weight_decay: float,
  *,
  bias_decay: bool = True,
  layer_decay: Mapping[str, float] = types.MappingProxyType({}),
) -> optax.GradientTransformation:
  """The two equations of section 5.

      v <- momentum * v - weight_decay * rate * w - rate * gradient
      w <- w + v

  The rate is inside the velocity, so when it drops, what was gathered at the old rate goes on; `optax.sgd` scales the
  whole velocity by the new rate instead. A rate of 0 means no update at all: neither v nor w changes by a bit.

  Args:
    rates: learning rates, epsilon in the paper, one for each array: {layer: {'kernel': rate, 'bias': rate}, ...}; may
      be traced.
    momentum: 0.9 in the paper.
    weight_decay: 0.0005 in the paper.
    bias_decay: whether biases decay, too. Paper: 'weight decay' is said of w, all that is learned, so they do; the
      2012 code spared them (facts, 1.5).
    layer_decay: factors of the weight decay of single layers; of the others it is 1.

  Returns:
    A transformation whose state is the velocity v. Add its updates to the weights with `optax.apply_updates`.
  """

  def decay(path, gradient, weight):
    layer, part = (key.key for key in path)
    own = weight_decay * layer_decay.get(layer, 1.0) if bias_decay or part != 'bias' else 0.0
    return gradient + own * weight if own else gradient

  rule = optax.chain(
    optax.stateless(functools.partial(jax.tree.map_with_path, decay)),
    optax.stateless(lambda updates, _: jax.tree.map(lambda update, rate: -rate * update, updates, rates)),
    optax.trace(momentum),
  )

  def update(gradients, state, params):
    _, new_state = rule.update(gradients, state, params)
    *stateless, trace = new_state
    velocity = jax.tree.map(lambda new, old, rate: jnp.where(rate != 0, new, old), trace.trace, state[-1].trace, rates)
    if jax.default_backend() == 'cpu':
      # Computed once, in place, and then added: otherwise XLA works it out twice and copies it and the weights before.
      velocity = jax.lax.optimization_barrier(velocity)
    updates = jax.tree.map(lambda v, rate: jnp.where(rate != 0, v, 0), velocity, rates)
    return updates, (*stateless, optax.TraceState(velocity))

  return optax.GradientTransformation(rule.init, update)


@dataclasses.dataclass
class LearningRates:
  """The learning rate of every kernel and bias (section 5: one for all).

  Attributes:
    base: initial rate of the kernels.
    factor: what a drop divides rates by.
    bias_factor: initial rate of the biases over that of the kernels.
    bias_drops: how many of the schedule's drops reach the biases; -1 for all.
    layers: for each layer the factors of its kernels' and its biases' rate, and from which step each pair holds:
      {'conv1': ((0, 1.0, 1.0), (670, 0.1, 1.0), ...), ...}.
  """

  base: float
  factor: float
  bias_factor: float
  bias_drops: int
  layers: dict[str, tuple[tuple[int, float, float], ...]]

  def at(self, step: int, num_drops: int) -> dict[str, dict[str, np.float32]]:
    """Returns the rates for the step to come, for `momentum_sgd`.

    Args:
      step: steps taken so far.
      num_drops: how often the schedule has divided the rate.
    """
    kernel, bias = self.of_kernels(num_drops), self.of_biases(num_drops)
    rates = {}
    for name, changes in self.layers.items():
      _, of_kernel, of_bias = [change for change in changes if change[0] <= step][-1]
      rates[name] = {'kernel': np.float32(kernel * of_kernel), 'bias': np.float32(bias * of_bias)}
    return rates

  def of_kernels(self, num_drops: int) -> float:
    """Returns the rate of the kernels of a layer whose factor is 1."""
    return self.base / self.factor**num_drops

  def of_biases(self, num_drops: int) -> float:
    """Returns the rate of the biases of a layer whose factor is 1."""
    reached = num_drops if self.bias_drops < 0 else min(num_drops, self.bias_drops)
    return self.base * self.bias_factor / self.factor**reached

  def describe(self, step: int, num_drops: int) -> str:
    """Says the rates in words: the common ones, then the layers that have others."""
    kernel, bias = self.of_kernels(num_drops), self.of_biases(num_drops)

    def say(kernel, bias):
      return f'{kernel:.4g}' if kernel == bias else f'{kernel:.4g} (biases {bias:.4g})'

    common = np.float32(kernel), np.float32(bias)
    others = [
      f'{name} {say(rate["kernel"], rate["bias"])}'
      for name, rate in self.at(step, num_drops).items()
      if (rate['kernel'], rate['bias']) != common
    ]
    return ', '.join((f'rate {say(kernel, bias)}', *others))


def make_learning_rates(config: ConfigDict, layers: Sequence[str], last_step: int) -> LearningRates:
  """Makes the rates of a config's `optimizer` part.

  Args:
    config: the `optimizer` part of a config.
    layers: names of the network's layers.
    last_step: steps of the whole run, of which `layer_changes` gives fractions.
  """

  def changes(name):
    own = config.layer_factor[name]
    later = sorted(config.layer_changes[name])
    return (
      (0, own, own),
      *((step_at(fraction, last_step), own * kernel, own * bias) for fraction, kernel, bias in later),
    )

  return LearningRates(
    config.rate, config.rate_factor, config.bias_factor, config.bias_drops, {name: changes(name) for name in layers}
  )
