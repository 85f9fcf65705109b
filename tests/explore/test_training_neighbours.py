"""Nearest training images against a search over all activations."""

import numpy as np
import pytest

from alexnet_jax.analysis import training_neighbours
from alexnet_jax.data import sources
from alexnet_jax.runtime.errors import UsageError
from tests.analysis.test_neighbours import search
from tests.conftest import mostly_nightly


@pytest.mark.slow
@pytest.mark.parametrize('layer', ['fc7', 'pool5', 'pixels'])
def test_neighbours_are_those_of_a_search_over_all_activations(run, layer):
  queries, _ = run.test.read_batch([0, 5, 9])
  found = training_neighbours.find(run.model, run.folder, queries, layer, 4)
  (train,) = sources.open_splits(run.config.data, run.model.stored_size, [run.config.data.train_split])
  images, labels = train.read_batch(list(range(len(train))))

  def compute(images):
    if layer == 'pixels':
      return images[:, 16:80, 16:80].astype(np.float32).reshape(len(images), -1)
    return run.model.in_batches(lambda x: run.model.activations(x, layer), images).reshape(len(images), -1)

  rows, distances = search(compute(queries), compute(images), 4)
  np.testing.assert_array_equal(found.images, images[rows])
  np.testing.assert_array_equal(found.labels, labels[rows])
  np.testing.assert_allclose(found.distances, distances, rtol=1e-4)


@pytest.mark.parametrize('layer', mostly_nightly(['fc7', 'pixels'], 'pixels'))
def test_a_training_image_is_nearest_to_itself(run, layer):
  dataset = training_neighbours.open_training_set(run.model, run.folder)
  source, _, indices = training_neighbours.open_training_rows(run.model, run.folder, layer, dataset)
  np.testing.assert_array_equal(indices, np.arange(len(source)))
  images, labels = source.read_batch([3, 70])
  found = training_neighbours.find(run.model, run.folder, images, layer, 1)
  np.testing.assert_array_equal(found.images[:, 0], images)
  np.testing.assert_array_equal(found.labels[:, 0], labels)


@pytest.mark.parametrize(
  ('layer', 'k', 'message'), [('fc7', 0, '--k=0 must be 1 to'), ('fc7', 10**6, 'must be 1 to'), ('fc9', 1, 'no layer')]
)
def test_errors_name_what_is_possible(run, layer, k, message):
  images = np.zeros((1, 96, 96, 3), np.uint8)
  with pytest.raises(UsageError, match=message):
    training_neighbours.find(run.model, run.folder, images, layer, k)
