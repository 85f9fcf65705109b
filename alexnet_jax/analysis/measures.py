"""Measurements of a finished run: the colour of its kernels, its training error, and the classes of neighbours."""

import pathlib

import numpy as np

from alexnet_jax.analysis import neighbours, training_neighbours
from alexnet_jax.data import sources
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import evaluate, trained_model
from alexnet_jax.runs import run_folder

# Numbers of images for `measure_same_class`; larger splits are sampled.
MAX_QUERIES, MAX_SEARCHED = 500, 10_000
NUM_NEIGHBOURS = 6  # figure 4
NOISE_COLOUR_FRACTION = 2 / 3  # colour fraction of noise, whose three channels are independent


def measure_colour(folder: pathlib.Path) -> dict[str, list[float]]:
  """Measures how colourful the first kernels of each tower are (section 6.1).

  Args:
    folder: folder of the run.

  Returns:
    {'colour': [mean colour fraction of conv1's kernels in percent, by tower]}; 67 % for noise.

  Raises:
    UsageError: as `trained_model.load`.
  """
  kernels = np.asarray(trained_model.load(folder, batch_size=0).params['conv1']['kernel'])
  return {'colour': [round(100 * float(fraction), 2) for fraction in colour_fractions(kernels).mean(axis=1)]}


def measure_training_error(folder: pathlib.Path) -> dict[str, float]:
  """Evaluates a run on the centre crops of its training images, without dropout.

  The curve `train/error`, in contrast, is measured on random crops and with dropout.

  Args:
    folder: folder of the run, whose dataset must be available.

  Returns:
    {'training_error': top-1 error in percent}.

  Raises:
    UsageError, RunError: as `sources.open_splits` and `evaluate.evaluate`.
  """
  config = run_folder.load_config(folder)
  model = evaluate.open_run(config, folder)
  (source,) = sources.open_splits(config.data, model.stored_size, [config.data.train_split])
  return {'training_error': round(evaluate.evaluate(model, source, config, 'centre')['top1_error'], 4)}


def measure_same_class(folder: pathlib.Path) -> dict[str, dict[str, float]]:
  """Measures how often the training images nearest to a test image are of its class (section 6.1).

  Uses up to 500 test images as queries and searches up to 10,000 training images. Larger splits are sampled.

  Args:
    folder: folder of the run, whose dataset must be available.

  Returns:
    {'same_class': {'fc7': percent of the six nearest in fc7, 'pixels': percent of the six nearest in the pixels of the
    centre crops}}.

  Raises:
    UsageError, RunError: as `trained_model.load`, `sources.open_splits` and `neighbours.find_nearest`.
  """
  model, config = trained_model.load(folder, batch_size=0), run_folder.load_config(folder)
  splits = config.data.test_split, config.data.train_split
  test, train = sources.open_splits(config.data, model.stored_size, splits)
  queries, query_labels = _sample(test, MAX_QUERIES)
  searched, labels = _sample(train, MAX_SEARCHED)
  percentages = {}
  for name in ('fc7', training_neighbours.PIXELS):
    rows, train_rows = (training_neighbours.represent(model, images, name) for images in (queries, searched))
    nearest, _ = neighbours.find_nearest(rows, train_rows, min(NUM_NEIGHBOURS, len(searched)))
    percentages[name] = round(100 * float(np.mean(labels[nearest] == query_labels[:, None])), 2)
  return {'same_class': percentages}


def _sample(source: Source, max_images: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads the images and labels of a split, or of `max_images` random examples if the split is larger."""
  indices = np.random.default_rng(0).permutation(len(source))[:max_images]
  return source.read_batch(np.sort(indices).tolist())


def colour_fractions(kernels: np.ndarray) -> np.ndarray:
  """Computes the fraction of each kernel's energy (its sum of squares) that is colour.

  A kernel is the sum of a grey kernel, the mean of its three channels, and a remainder that does not respond to any
  grey image. The energy of the remainder is colour.

  Args:
    kernels: [tower, height, width, rgb, kernel].

  Returns:
    [tower, kernel] float64, 0 to 1; 0 for a kernel of zeros.
  """
  kernels = kernels.astype(np.float64)
  remainder = kernels - kernels.mean(axis=3, keepdims=True)
  energy, colour = (np.square(x).sum(axis=(1, 2, 3)) for x in (kernels, remainder))
  return np.divide(colour, energy, out=np.zeros_like(energy), where=energy > 0)
