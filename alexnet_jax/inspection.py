"""What is measured of a run that has ended, beside its test errors: its training error, kernels and neighbours."""

import pathlib

import jax
import numpy as np

from alexnet_jax import data, drawing, evaluate, neighbours, workdir
from alexnet_jax.trained import BATCH, Trained, load

MOST_QUERIES, MOST_SEARCHED = 500, 10_000  # images; drawn from larger splits
NUM_NEAREST = 6  # figure 4


def colour(folder: pathlib.Path) -> dict[str, list[float]]:
  """Measures how colourful each tower's first kernels are (section 6.1).

  Args:
    folder: of the run.

  Returns:
    {'colour': [percent of the energy of conv1's kernels, one for each tower]}; noise has 67 %.
  """
  kernels = np.asarray(load(folder, batch_size=BATCH * jax.device_count()).params['conv1']['kernel'])
  return {'colour': [round(100 * float(share), 2) for share in drawing.colour_shares(kernels).mean(axis=1)]}


def training_error(folder: pathlib.Path) -> dict[str, float]:
  """Evaluates a run on its training images: their centre patches, all neurons; `train/error` has neither.

  Args:
    folder: of the run, whose dataset must be there.

  Returns:
    {'training_error': top-1 error in percent}.
  """
  config = workdir.load_config(folder)
  trained = evaluate.open_run(config, folder)
  (source,) = data.open_splits(config.data, trained.stored_size, [config.data.train_split])
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
  trained, config = load(folder, batch_size=BATCH * jax.device_count()), workdir.load_config(folder)
  splits = config.data.test_split, config.data.train_split
  test, train = data.open_splits(config.data, trained.stored_size, splits)
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


def _fc7(trained: Trained, images):
  return trained.in_batches(lambda some: trained.activations(some, 'fc7'), images)


def _pixels(trained, images):
  return trained.centre_patches(images).astype(np.float32).reshape(len(images), -1)
