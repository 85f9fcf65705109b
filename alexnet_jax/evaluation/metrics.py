"""Error rates of predictions, in numpy for whole splits and in JAX for the batches of a training step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NUM_CONFUSED = 10  # pairs of classes in the results
SKIPPED = -2  # label of an image that could not be read and is not counted


def top_k_credit(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
  """Computes the top-k credit of each label in numpy, as `top_k_credit_on_device` does in JAX.

  Args:
    scores: [image, class].
    labels: [image] integers, 0 or more.
    k: number of classes that count as predicted.

  Returns:
    [image] float64, 0 to 1.
  """
  label_score = np.take_along_axis(scores, labels[:, None], axis=1)
  num_better, num_tied = np.sum(scores > label_score, axis=1), np.sum(scores == label_score, axis=1)
  return np.where(num_tied > 0, np.clip((k - num_better) / np.maximum(num_tied, 1), 0.0, 1.0), 0.0)


def best_classes(scores: np.ndarray, k: int) -> np.ndarray:
  """Returns the k best-scored classes, best first, tied ones by index: [image, class] -> [image, k] int64."""
  return np.argsort(-scores, axis=1, kind='stable')[:, :k]


class ErrorCounter:
  """Counts errors over blocks of predictions. Images without a label count as examples, but not as errors.

  Attributes:
    num_examples: number of images, without skipped ones.
    num_skipped: number of images that could not be read.
  """

  def __init__(self, class_names: Sequence[str]):
    """Starts all counts at zero; `class_names` are the names of the labels."""
    self.num_examples, self.num_skipped = 0, 0
    self._class_names = class_names
    self._num_labelled, self._sums = 0, np.zeros(3)
    self._confused_pairs: list[np.ndarray] = []  # numbers true * len(class_names) + predicted, 8 bytes for each error

  def add(self, log_probs: np.ndarray, labels: np.ndarray) -> None:
    """Adds a block of predictions.

    Args:
      log_probs: [image, class] float32, nats.
      labels: [image] int32, -1 if unknown, `SKIPPED` for an image that could not be read.
    """
    num_skipped = int(np.count_nonzero(labels == SKIPPED))
    self.num_skipped += num_skipped
    self.num_examples += len(labels) - num_skipped
    is_labelled = labels >= 0
    log_probs, labels = log_probs[is_labelled], labels[is_labelled]
    self._num_labelled += len(labels)
    self._sums += (
      top_k_credit(log_probs, labels, 1).sum(),
      top_k_credit(log_probs, labels, 5).sum(),
      np.take_along_axis(log_probs, labels[:, None], axis=1).sum(dtype=np.float64),
    )
    predicted = log_probs.argmax(axis=1)
    is_wrong = predicted != labels
    self._confused_pairs.append(np.int64(len(self._class_names)) * labels[is_wrong] + predicted[is_wrong])

  def result(self) -> dict:
    """Returns the error rates.

    Returns:
      'top1_error' and 'top5_error' in percent, 'log_prob' (mean log-probability of the true class, nats), and
      'confused' (the pairs confused most often, as [true class, predicted class, number of images]). Empty if no image
      has a label.
    """
    if not self._num_labelled:
      return {}
    names = self._class_names
    top1, top5, log_prob = (self._sums / self._num_labelled).tolist()
    pairs, counts = np.unique(np.concatenate(self._confused_pairs), return_counts=True)
    most_frequent = np.argsort(-counts, kind='stable')[:NUM_CONFUSED]
    confused = zip(*np.divmod(pairs[most_frequent], len(names)), counts[most_frequent].tolist(), strict=True)
    return {
      'top1_error': 100 * (1 - top1),
      'top5_error': 100 * (1 - top5),
      'log_prob': log_prob,
      'confused': [[names[true], names[predicted], num] for true, predicted, num in confused],
    }


def label_log_prob(log_probs: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the log-probability of each label: [batch, class] and [batch] -> [batch]."""
  return jnp.sum(log_probs, axis=-1, where=_label_mask(label, log_probs))


def top_k_credit_on_device(scores: jax.Array, label: jax.Array, k: int) -> jax.Array:
  """Computes the top-k credit of each label; classes tied for the last ranks share them.

  Sharing follows the code of 2012 (facts, section 2). A network with the same score for all classes gets the credit of
  chance, k / number of classes, instead of 1.

  Args:
    scores: [batch, class].
    label: [batch] int32.
    k: number of classes that count as predicted.

  Returns:
    [batch] float32, 1 for a label among the k best classes, 0 for another label, in between for a tied one; 0 if the
    score of the label is nan.
  """
  label_score = jnp.sum(scores, axis=-1, where=_label_mask(label, scores), keepdims=True)
  num_better = jnp.sum(scores > label_score, axis=-1)
  num_tied = jnp.sum(scores == label_score, axis=-1)
  return jnp.where(num_tied > 0, jnp.clip((k - num_better) / jnp.maximum(num_tied, 1), 0.0, 1.0), 0.0)


def _label_mask(label, scores):
  """Returns a mask [batch, class] that is true at each label."""
  return label[:, None] == lax.iota(jnp.int32, scores.shape[-1])
