"""Error rates from predictions; numpy only."""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NUM_CONFUSED = 10  # pairs of classes that are named
SKIPPED = -2  # in place of a label: the image could not be read, and there is nothing to score


def top_k_credit(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
  """Says how far each label is among the k best-scored classes; `step.top_k_credit` on the host.

  Args:
    scores: [image, class].
    labels: [image] integers, 0 or more.
    k: places.

  Returns:
    [image] float64, 1 for in, 0 for out, between for a place that classes with the same score share; 0 where the
    label's score is no number.
  """
  own = np.take_along_axis(scores, labels[:, None], axis=1)
  better, tied = np.sum(scores > own, axis=1), np.sum(scores == own, axis=1)
  return np.where(tied > 0, np.clip((k - better) / np.maximum(tied, 1), 0.0, 1.0), 0.0)


def best_classes(scores: np.ndarray, k: int) -> np.ndarray:
  """Returns the k best-scored classes, best first, of equals the first: [image, class] -> [image, k] int64."""
  return np.argsort(-scores, axis=1, kind='stable')[:, :k]


class ErrorCounter:
  """Counts over predictions that come block by block; an image with the label -1 is not scored.

  Attributes:
    num_examples: images seen.
    num_skipped: images that could not be read.
  """

  def __init__(self, class_names: Sequence[str]):
    """Begins with nothing seen; `class_names` are those of the labels."""
    self.num_examples, self.num_skipped = 0, 0
    self._class_names = class_names
    self._num_scored, self._sums, self._confused = 0, np.zeros(3), collections.Counter()

  def add(self, log_probs: np.ndarray, labels: np.ndarray) -> None:
    """Takes in log-probabilities [image, class] float32, nats, and labels [image] int32."""
    num_skipped = int(np.count_nonzero(labels == SKIPPED))
    self.num_skipped += num_skipped
    self.num_examples += len(labels) - num_skipped
    known = labels >= 0
    log_probs, labels = log_probs[known], labels[known]
    self._num_scored += len(labels)
    self._sums += (
      top_k_credit(log_probs, labels, 1).sum(),
      top_k_credit(log_probs, labels, 5).sum(),
      np.take_along_axis(log_probs, labels[:, None], axis=1).sum(dtype=np.float64),
    )
    predicted = log_probs.argmax(axis=1)
    wrong = predicted != labels
    self._confused.update(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))

  def result(self) -> dict:
    """Returns the error rates.

    Returns:
      'top1_error' and 'top5_error' in percent, 'log_prob' (the mean log-probability of the true class, nats), and
      'confused', [true class, predicted class, images] of the pairs that were confused most often; empty if no image
      has a label.
    """
    if not self._num_scored:
      return {}
    top1, top5, log_prob = (self._sums / self._num_scored).tolist()
    most = sorted(self._confused.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_CONFUSED]
    return {
      'top1_error': 100 * (1 - top1),
      'top5_error': 100 * (1 - top5),
      'log_prob': log_prob,
      'confused': [[self._class_names[true], self._class_names[other], count] for (true, other), count in most],
    }


def label_log_prob(log_probs: jax.Array, label: jax.Array) -> jax.Array:
  """Picks each label's log-probability: [batch, class] and [batch] -> [batch]."""
  return jnp.sum(log_probs, axis=-1, where=_is(label, log_probs))


def top_k_credit_on_device(scores: jax.Array, label: jax.Array, k: int) -> jax.Array:
  """Says how far each label is among the k best-scored classes.

  Classes that tie for the last places share them, as in the 2012 code (facts, section 2), so that a network which
  says the same of every class is right in k of all classes and not always.

  Args:
    scores: [batch, class].
    label: [batch] int32.
    k: places.

  Returns:
    [batch] float32, 1 for in, 0 for out, between for a shared place; 0 where a score is no number.
  """
  own = jnp.sum(scores, axis=-1, where=_is(label, scores), keepdims=True)
  better = jnp.sum(scores > own, axis=-1)
  tied = jnp.sum(scores == own, axis=-1)
  return jnp.where(tied > 0, jnp.clip((k - better) / jnp.maximum(tied, 1), 0.0, 1.0), 0.0)


def _is(label, scores):
  """A mask [batch, class], true at each label."""
  return label[:, None] == lax.iota(jnp.int32, scores.shape[-1])
