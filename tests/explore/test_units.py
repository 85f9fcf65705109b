"""Receptive fields against the outputs that change with a row of pixels, strongest images against a full sort."""

import jax
import numpy as np
import pytest

from alexnet_jax.explore import units
from alexnet_jax.models import device_mesh, towers
from alexnet_jax.models.registry import build
from tests.conftest import mostly_nightly, random_params
from tests.interop import networks

SIZE = 131  # of which the variants read every pixel
VARIANTS = mostly_nightly(
  ['', 'as_run', 'conv6', 'no_overlap', 'without_conv3', 'without_conv4', 'bvlc_alexnet', 'torchvision'],
  *('', 'as_run'),
)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_receptive_field_is_the_rows_on_which_an_output_depends(variant, one_device):
  config = networks.small_config(variant).model
  config.image_size = SIZE
  network = build(config, 10)
  params = jax.device_put(random_params(network), jax.NamedSharding(one_device, towers.PARAMS))
  rng = np.random.default_rng(0)
  image = rng.normal(size=(SIZE, SIZE, 3)).astype(np.float32)
  images = np.repeat(image[None], SIZE + 1, axis=0)  # the last one does not change
  for row in range(SIZE):
    images[row, row] = rng.normal(scale=10, size=(SIZE, 3))
  all_outputs = jax.jit(network.activations)(params, device_mesh.put_batch(one_device, images))
  for layer, outputs in jax.device_get(all_outputs).items():
    if outputs.ndim < 4:
      continue
    changed = (outputs[:-1] != outputs[-1]).any(axis=(2, 3))  # [row of pixels, row of outputs]
    field = units.receptive_field(config, layer)
    for position in range(outputs.shape[1]):
      rows = np.flatnonzero(changed[:, position])
      first, end = field.window(position, SIZE)
      assert (rows.min(), rows.max() + 1) == (first, end), (layer, position)


@pytest.fixture(scope='module')
def all_outputs(run):
  """All activations of the test split, {layer: [image, ...]}, and its images and labels."""
  images, labels = run.test.read_batch(list(range(len(run.test))))
  outputs = {layer: run.model.in_batches(lambda x, n=layer: run.model.activations(x, n), images) for layer in LAYERS}
  return outputs, images, labels


LAYERS = ('conv3', 'fc7')


@pytest.mark.parametrize('layer', LAYERS)
def test_the_strongest_images_are_those_of_a_full_sort(run, all_outputs, layer):
  outputs = all_outputs[0][layer]
  found = units.find_strongest_images(run.model, run.test, layer, num_images=5)
  largest = outputs.max(axis=tuple(range(1, outputs.ndim - 1)))
  expected = np.argsort(-largest, axis=0, kind='stable')[:5]
  np.testing.assert_allclose(found.values, np.take_along_axis(largest, expected, 0), rtol=1e-5)
  different = found.images != expected  # only where outputs are equal but for rounding
  np.testing.assert_allclose(
    np.take_along_axis(largest, found.images, 0)[different], found.values[different], rtol=1e-5
  )
  assert all(len(set(images)) == 5 for images in found.images.T)
  if outputs.ndim == 4:
    channels = np.arange(outputs.shape[-1])
    np.testing.assert_allclose(outputs[found.images, found.rows, found.columns, channels], found.values, rtol=1e-5)


def test_a_split_smaller_than_the_number_of_images_is_returned_whole(run, monkeypatch):
  class FirstTwo:
    split, read_batch = 'test', run.test.read_batch

    def __len__(self):
      return 2

  found = units.find_strongest_images(run.model, FirstTwo(), 'fc7')
  np.testing.assert_array_equal(np.sort(found.images, axis=0), np.repeat([[0], [1]], found.images.shape[1], axis=1))


@pytest.mark.parametrize('layer', LAYERS)
def test_a_patch_contains_the_pixels_on_which_the_output_depends(run, all_outputs, layer):
  outputs, images, labels = all_outputs
  found = units.find_strongest_images(run.model, run.test, layer, num_images=3)
  patches = units.patches(run.model, run.test, layer, 5, found)
  assert len(patches) == 3
  for rank, (patch, caption) in enumerate(patches):
    index, row, column = (x[rank, 5] for x in (found.images, found.rows, found.columns))
    crop = images[index, 16:80, 16:80]
    if (
      layer == 'conv3'
    ):  # padding 2 of conv2 and 1 of conv3, strides 4 * 2 * 2; field 11 + 2 * 4 + 4 * 8 + 2 * 8 + 2 * 16
      windows = [slice(max(-32 + 16 * position, 0), -32 + 16 * position + 99) for position in (row, column)]
      crop = crop[windows[0], windows[1]]
    np.testing.assert_array_equal(patch, crop)
    assert caption == f'{outputs[layer][index].reshape(-1, outputs[layer].shape[-1])[:, 5].max():.1f}, {labels[index]}'
