import numpy as np
import pytest

from alexnet_jax.explore import mosaic, training_map


@pytest.mark.parametrize('shape', [(30, 200), (200, 30), (2, 5), (40, 1)])
def test_principal_components_equal_those_of_a_singular_value_decomposition(shape):
  rows = np.random.default_rng(0).normal(100, 3, shape).astype(np.float32)
  positions, explained = training_map.principal_components(rows)
  u, s, _ = np.linalg.svd(rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64), full_matrices=False)
  expected = np.zeros((len(rows), 2))
  expected[:, : len(s)] = (u * s)[:, :2]
  np.testing.assert_allclose(abs(positions), abs(expected), atol=1e-4)  # signs are arbitrary
  np.testing.assert_allclose(explained, (s[:2] ** 2).sum() / (s**2).sum(), rtol=1e-6)


def test_equal_rows_are_all_at_the_origin():
  positions, explained = training_map.principal_components(np.ones((5, 3), np.float32))
  assert not positions.any()
  assert explained == 0


def test_the_map_shows_training_images_at_their_indices(run, monkeypatch):
  monkeypatch.setattr(training_map, 'MAX_IMAGES', 40)
  drawn = training_map.draw(run.model, run.folder, 'fc7')
  assert len(drawn.indices) == len(set(drawn.indices)) == 40
  assert 0 < drawn.explained <= 1
  top = [index for index in range(40) if (drawn.picture.channels == index).sum() == mosaic.TILE**2]  # not covered
  assert top
  for index in top:
    (image,), _ = drawn.source.read_batch([int(drawn.indices[index])])
    tile = drawn.picture.pixels[drawn.picture.channels == index].reshape(mosaic.TILE, mosaic.TILE, 3)
    blocks = image.reshape(mosaic.TILE, 3, mosaic.TILE, 3, 3).mean(axis=(1, 3))  # 96 pixels to 32
    assert abs(tile - blocks).mean() < 8
