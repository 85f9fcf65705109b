import importlib.util

import numpy as np
import pytest

from alexnet_jax.explore import mosaic, training_map
from tests.conftest import mostly_nightly


@pytest.mark.parametrize('shape', [(30, 200), (200, 30), (2, 5), (40, 1)])
def test_principal_components_equal_those_of_a_singular_value_decomposition(shape, monkeypatch):
  monkeypatch.setattr(training_map, 'MAX_VALUES', 1000)  # several blocks of columns
  rows = np.random.default_rng(0).normal(100, 3, shape).astype(np.float32)
  positions, explained = training_map.principal_components(rows)
  u, s, _ = np.linalg.svd(rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64), full_matrices=False)
  expected = np.zeros((len(rows), 2))
  expected[:, : len(s)] = (u * s)[:, :2]
  np.testing.assert_allclose(abs(positions), abs(expected), atol=1e-4)  # signs are arbitrary
  np.testing.assert_allclose(explained, (s[:2] ** 2).sum() / (s**2).sum(), rtol=1e-6)
  more, _ = training_map.principal_components(rows, 5)
  np.testing.assert_allclose(abs(more[:, : len(s)]), abs(u * s)[:, :5], atol=1e-4)


def test_equal_rows_are_all_at_the_origin():
  positions, explained = training_map.principal_components(np.ones((5, 3), np.float32))
  assert not positions.any()
  assert explained == 0


@pytest.mark.parametrize('layer', mostly_nightly(['fc7', 'pixels'], 'pixels'))
def test_the_map_shows_training_images_at_their_indices(run, monkeypatch, layer):
  monkeypatch.setattr(training_map, 'MAX_IMAGES', 40)
  drawn = training_map.draw(run.model, run.folder, layer)
  assert len(drawn.indices) == len(set(drawn.indices)) == 40
  assert 0 < drawn.explained <= 1
  top = [index for index in range(40) if (drawn.picture.channels == index).sum() == mosaic.TILE**2]  # not covered
  assert top
  for index in top:
    (image,), _ = drawn.source.read_batch([int(drawn.indices[index])])
    tile = drawn.picture.pixels[drawn.picture.channels == index].reshape(mosaic.TILE, mosaic.TILE, 3)
    blocks = image.reshape(mosaic.TILE, 3, mosaic.TILE, 3, 3).mean(axis=(1, 3))  # 96 pixels to 32
    assert abs(tile - blocks).mean() < 8


def test_without_umap_the_map_shows_principal_components_alone(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert training_map.projections() == ['principal components']


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('umap'), reason='umap-learn is optional, and not installed')
def test_umap_separates_clusters_that_two_principal_components_do_not():
  assert training_map.projections() == ['principal components', 'UMAP']
  clusters = np.repeat(np.arange(12), 20)
  rows = np.eye(200)[clusters] * 20 + np.random.default_rng(0).normal(size=(240, 200))
  purity = {}
  for projection in training_map.projections():
    positions, explained = training_map.project(rows.astype(np.float32), projection)
    assert 0 < explained < 1
    distances = np.square(positions[:, None] - positions).sum(axis=-1) + np.diag(np.full(240, np.inf))
    purity[projection] = np.mean(clusters[distances.argmin(axis=1)] == clusters)
  assert purity['UMAP'] == 1
  assert purity['principal components'] < 0.9
