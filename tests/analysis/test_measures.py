"""Compares the measurements of a run with brute force."""

import numpy as np
import pytest

from alexnet_jax.analysis import measures
from alexnet_jax.data import sources
from alexnet_jax.evaluation import trained_model
from alexnet_jax.runs import run_folder


def test_the_colour_of_a_tower_is_the_mean_over_its_kernels(trained_run):
  kernels = np.asarray(trained_model.load(trained_run, batch_size=8).params['conv1']['kernel'], np.float64)
  grey = kernels.mean(axis=3, keepdims=True)
  fractions = 1 - 3 * np.square(grey).sum(axis=(1, 2, 3)) / np.square(kernels).sum(axis=(1, 2, 3))
  percentages = measures.measure_colour(trained_run)['colour']
  np.testing.assert_allclose(percentages, 100 * fractions.mean(axis=1), atol=0.01)
  noise = 100 * measures.NOISE_COLOUR_FRACTION  # the network has not been trained
  assert all(abs(percentage - noise) < 5 for percentage in percentages)


@pytest.mark.slow
def test_the_training_error_is_measured_on_the_centre_crops_of_all_training_images(trained_run):
  network, config = trained_model.load(trained_run, batch_size=32), run_folder.load_config(trained_run)
  (source,) = sources.open_splits(config.data, 96, [config.data.train_split])
  images = np.zeros((1312, 96, 96, 3), np.uint8)  # a multiple of 32
  images[: len(source)] = np.stack([source[index]['image'] for index in range(len(source))])
  labels = np.array([source[index]['label'] for index in range(len(source))])
  logits = [np.asarray(network.activations(images[start : start + 32], 'fc8')) for start in range(0, len(images), 32)]
  predicted = np.concatenate(logits)[: len(source)].argmax(axis=1)
  error = measures.measure_training_error(trained_run)['training_error']
  assert error == pytest.approx(100 * np.mean(predicted != labels), abs=0.01)


@pytest.mark.slow
def test_classes_of_neighbours_are_those_of_a_brute_force_search(trained_run, monkeypatch):
  monkeypatch.setattr(measures, 'MAX_QUERIES', 20)
  monkeypatch.setattr(measures, 'MAX_SEARCHED', 150)
  percentages = measures.measure_same_class(trained_run)['same_class']

  network, config = trained_model.load(trained_run, batch_size=10), run_folder.load_config(trained_run)
  splits = config.data.test_split, config.data.train_split
  splits_features = []
  for source, max_images in zip(sources.open_splits(config.data, 96, splits), (20, 150), strict=True):
    indices = sorted(np.random.default_rng(0).permutation(len(source))[:max_images].tolist())
    examples = [source[index] for index in indices]
    images = np.stack([example['image'] for example in examples])
    fc7 = np.concatenate([network.activations(images[start : start + 10], 'fc7') for start in range(0, max_images, 10)])
    centre = images[:, 16:80, 16:80]
    splits_features.append((fc7, centre, np.array([example['label'] for example in examples])))
  (*query_features, query_labels), (*features, labels) = splits_features
  for name, queries, rows in zip(('fc7', 'pixels'), query_features, features, strict=True):
    queries, rows = (x.reshape(len(x), -1).astype(np.float64) for x in (queries, rows))
    distances = np.square(queries[:, None] - rows).sum(axis=-1)
    nearest = np.argsort(distances, axis=1, kind='stable')[:, :6]
    assert percentages[name] == round(100 * np.mean(labels[nearest] == query_labels[:, None]), 2)
  assert percentages['pixels'] > 50  # digits are similar in pixels as well; chance is 10 %


@pytest.mark.parametrize('num_images', [1, 7, 8, 19])
def test_any_number_of_images_is_processed_in_batches(trained_run, num_images):
  """Shards batches over four devices, with two images or fewer per device."""
  network = trained_model.load(trained_run, batch_size=8, num_data=4, num_tower=1)
  images = np.random.default_rng(num_images).integers(0, 256, (num_images, 96, 96, 3), np.uint8)
  batch_sizes = []

  def fc7(batch):
    batch_sizes.append(len(batch))
    return network.activations(batch, 'fc7')

  activations = network.in_batches(fc7, images, 2)
  assert batch_sizes == {1: [4], 7: [8], 8: [8], 19: [8, 8, 8]}[num_images]
  on_one_device = trained_model.load(trained_run, batch_size=1, num_data=1, num_tower=1)
  expected = np.concatenate([on_one_device.activations(image[None], 'fc7') for image in images])
  np.testing.assert_allclose(activations, expected, rtol=1e-4, atol=1e-4)
