"""What is measured of a run, against brute force."""

import numpy as np
import pytest

from alexnet_jax.analysis import measures
from alexnet_jax.data import sources
from alexnet_jax.evaluation import trained_model
from alexnet_jax.runs import run_folder


def test_the_colour_of_each_tower_is_that_of_its_kernels(trained_run):
  kernels = np.asarray(trained_model.load(trained_run, batch_size=8).params['conv1']['kernel'], np.float64)
  grey = kernels.mean(axis=3, keepdims=True)
  shares = 1 - 3 * np.square(grey).sum(axis=(1, 2, 3)) / np.square(kernels).sum(axis=(1, 2, 3))
  found = measures.colour(trained_run)['colour']
  np.testing.assert_allclose(found, 100 * shares.mean(axis=1), atol=0.01)
  assert all(abs(share - 100 * measures.NOISE_FRACTION) < 5 for share in found)  # of a network that took no step


def test_the_training_error_is_that_of_centre_patches_of_all_training_images(trained_run):
  network, config = trained_model.load(trained_run, batch_size=32), run_folder.load_config(trained_run)
  (source,) = sources.open_splits(config.data, 96, [config.data.train_split])
  images = np.zeros((1312, 96, 96, 3), np.uint8)  # a multiple of 32
  images[: len(source)] = np.stack([source[index]['image'] for index in range(len(source))])
  labels = np.array([source[index]['label'] for index in range(len(source))])
  logits = [network.activations(images[start : start + 32], 'fc8') for start in range(0, len(images), 32)]
  guesses = np.concatenate(logits)[: len(source)].argmax(axis=1)
  found = measures.training_error(trained_run)['training_error']
  assert found == pytest.approx(100 * np.mean(guesses != labels), abs=0.01)


def test_neighbours_are_counted_as_by_brute_force(trained_run, monkeypatch):
  monkeypatch.setattr(measures, 'MOST_QUERIES', 20)
  monkeypatch.setattr(measures, 'MOST_SEARCHED', 150)
  found = measures.same_class(trained_run)['same_class']

  network, config = trained_model.load(trained_run, batch_size=10), run_folder.load_config(trained_run)
  splits = config.data.test_split, config.data.train_split
  sides = []
  for source, most in zip(sources.open_splits(config.data, 96, splits), (20, 150), strict=True):
    drawn = sorted(np.random.default_rng(0).permutation(len(source))[:most].tolist())
    examples = [source[index] for index in drawn]
    images = np.stack([one['image'] for one in examples])
    fc7 = np.concatenate([network.activations(images[start : start + 10], 'fc7') for start in range(0, most, 10)])
    centre = images[:, 16:80, 16:80]
    sides.append((fc7, centre, np.array([one['label'] for one in examples])))
  (*queries, wanted), (*rows, labels) = sides
  for name, one, other in zip(('fc7', 'pixels'), queries, rows, strict=True):
    one, other = (x.reshape(len(x), -1).astype(np.float64) for x in (one, other))
    distances = np.square(one[:, None] - other).sum(axis=-1)
    nearest = np.argsort(distances, axis=1, kind='stable')[:, :6]
    assert found[name] == round(100 * np.mean(labels[nearest] == wanted[:, None]), 2)
  assert found['pixels'] > 50  # digits are near in pixels, too: chance is 10 %


@pytest.mark.parametrize('number', [1, 7, 8, 19])
def test_any_number_of_images_may_be_asked_about(trained_run, number):
  """On four devices that share a batch, at most two images each at a time."""
  network = trained_model.load(trained_run, batch_size=8, num_data=4, num_tower=1)
  images = np.random.default_rng(number).integers(0, 256, (number, 96, 96, 3), np.uint8)
  asked = []

  def fc7(some):
    asked.append(len(some))
    return network.activations(some, 'fc7')

  found = network.in_batches(fc7, images, 2)
  assert asked == {1: [4], 7: [8], 8: [8], 19: [8, 8, 8]}[number]
  alone = trained_model.load(trained_run, batch_size=1, num_data=1, num_tower=1)
  expected = np.concatenate([alone.activations(image[None], 'fc7') for image in images])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
