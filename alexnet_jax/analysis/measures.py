"""What is measured of a run that has ended, beside its test errors: its training error, kernels and neighbours."""

import pathlib

import jax
import numpy as np

from alexnet_jax.analysis import measures, neighbours
from alexnet_jax.data import sources
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.trained_model import IMAGES_PER_DEVICE, TrainedModel, load
from alexnet_jax.runs import run_folder

MOST_QUERIES, MOST_SEARCHED = 500, 10_000  # images; drawn from larger splits
NUM_NEAREST = 6  # figure 4


def colour(folder: pathlib.Path) -> dict[str, list[float]]:
  """Measures how colourful each tower's first kernels are (section 6.1).

  Args:
    folder: of the run.

  Returns:
    {'colour': [percent of the energy of conv1's kernels, one for each tower]}; noise has 67 %.
  """
  kernels = np.asarray(load(folder, batch_size=IMAGES_PER_DEVICE * jax.device_count()).params['conv1']['kernel'])
  return {'colour': [round(100 * float(share), 2) for share in measures.colour_fractions(kernels).mean(axis=1)]}


def training_error(folder: pathlib.Path) -> dict[str, float]:
  """Evaluates a run on its training images: their centre patches, all neurons; `train/error` has neither.

  Args:
    folder: of the run, whose dataset must be there.

  Returns:
    {'training_error': top-1 error in percent}.
  """
  config = run_folder.load_config(folder)
  trained = evaluate.open_run(config, folder)
  (source,) = sources.open_splits(config.data, trained.stored_size, [config.data.train_split])
  return {'training_error': round(evaluate.evaluate(trained, source, config, 'centre')['top1_error'], 4)}


def same_class(folder: pathlib.Path) -> dict[str, dict[str, float]]:
  """Counts how many of the training images nearest to a test image are of its class (section 6.1).

  Up to 500 test images ask, up to 10,000 training images are searched; where there are more they are drawn.

  Args:
    folder: of the run, whose dataset must be there.

  Returns:
    {'same_class': {'fc7': percent of the six nearest in fc7, 'pixels': percent of the six nearest in pixels of the
    centre patch}}.
  """
  trained, config = load(folder, batch_size=IMAGES_PER_DEVICE * jax.device_count()), run_folder.load_config(folder)
  splits = config.data.test_split, config.data.train_split
  test, train = sources.open_splits(config.data, trained.stored_size, splits)
  asked, searched = _some(test, MOST_QUERIES), _some(train, MOST_SEARCHED)
  found = {}
  for name, features in (('fc7', _fc7), ('pixels', _pixels)):
    queries, rows = (features(trained, images) for images, _ in (asked, searched))
    nearest, _ = neighbours.nearest(queries, rows, min(NUM_NEAREST, len(rows)))
    found[name] = round(100 * float(np.mean(searched[1][nearest] == asked[1][:, None])), 2)
  return {'same_class': found}


def _some(source, most):
  """Returns images and labels of a split, drawn where it has more than `most`."""
  indices = np.random.default_rng(0).permutation(len(source))[:most]
  return source.read_together(np.sort(indices).tolist())


def _fc7(trained: TrainedModel, images):
  return trained.in_batches(lambda some: trained.activations(some, 'fc7'), images)


def _pixels(trained, images):
  return trained.centre_patches(images).astype(np.float32).reshape(len(images), -1)


NOISE_FRACTION = 2 / 3  # of colour in noise, where the three channels have nothing to do with each other


def colour_fractions(kernels: np.ndarray) -> np.ndarray:
  """Measures how colourful kernels are.

  A kernel is the sum of a grey one, the mean of its three channels, and of a rest that no grey image excites.

  Args:
    kernels: [tower, height, width, rgb, kernel].

  Returns:
    [tower, kernel], 0 to 1: the rest's share of the sum of squares; 0 for a kernel of zeros.
  """
  kernels = kernels.astype(np.float64)
  rest = kernels - kernels.mean(axis=3, keepdims=True)
  energy, colour = (np.square(x).sum(axis=(1, 2, 3)) for x in (kernels, rest))
  return np.divide(colour, energy, out=np.zeros_like(energy), where=energy > 0)


def strong_gradients(gradient: np.ndarray, threshold: float) -> np.ndarray:
  """Keeps what is strong in a gradient: [height, width, rgb] -> [height, width], 0 or more.

  Args:
    gradient: of the log-probability.
    threshold: in standard deviations of the gradient; what is smaller becomes 0.
  """
  size = np.abs(gradient)
  return np.where(size < threshold * gradient.std(), 0, size).max(axis=-1)
