import math

import numpy as np
import pytest

from alexnet_jax.explore import mosaic

SHAPES = {
  'maps': (13, 13, 12),
  'large maps': (55, 55, 6),
  'one map': (7, 7, 2),
  'units': (64,),
  'few units': (10,),
  'odd units': (5,),
}


@pytest.mark.parametrize('num_towers', [1, 2, 4])
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_every_channel_has_a_tile_in_the_block_of_its_tower(shape, num_towers):
  drawn = mosaic.draw_maps(np.random.default_rng(0).normal(size=shape), num_towers)
  assert drawn.pixels.shape == (*drawn.channels.shape, 3)
  numbers, counts = np.unique(drawn.channels, return_counts=True)
  assert numbers.tolist() == [-1, *range(shape[-1])]
  assert len(set(counts[1:])) == 1
  width = drawn.channels.shape[1] // num_towers
  for channel in range(shape[-1]):
    rows, columns = np.nonzero(drawn.channels == channel)
    assert counts[1] == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a rectangle
    assert set(columns // width) == {channel // math.ceil(shape[-1] / num_towers)}
    assert drawn.channel_at(int(columns[0]), int(rows[-1])) == channel


def test_tiles_contain_their_maps_from_black_to_white():
  maps = np.random.default_rng(0).normal(size=(40, 40, 6)).astype(np.float32)
  drawn = mosaic.draw_maps(maps, 2)
  for channel in range(6):
    tile = drawn.pixels[drawn.channels == channel].reshape(40, 40, 3)
    low, high = maps[..., channel].min(), maps[..., channel].max()
    np.testing.assert_allclose(tile[..., 1], 255 * (maps[..., channel] - low) / (high - low), atol=0.51)
    assert (tile == tile[..., :1]).all()


def test_kernels_are_drawn_in_colour_in_the_order_of_the_channels():
  kernels = np.random.default_rng(0).normal(size=(2, 11, 11, 3, 5)).astype(np.float32)
  drawn = mosaic.draw_kernels(kernels)
  for channel in range(10):
    kernel = kernels[channel // 5, ..., channel % 5]
    expected = 255 * (kernel - kernel.min()) / np.ptp(kernel)
    tile = drawn.pixels[drawn.channels == channel].reshape(33, 33, 3)  # 11 pixels, three times as large
    np.testing.assert_allclose(tile[1::3, 1::3], expected, atol=0.51)


def test_a_constant_map_is_black_and_no_division_by_zero():
  drawn = mosaic.draw_maps(np.full((3, 3, 2), 5.0), 1)
  assert not drawn.pixels[drawn.channels == 1].any()


def test_there_is_no_channel_between_the_tiles_and_outside():
  drawn = mosaic.draw_maps(np.zeros((16, 16, 4)), 2)
  height, width = drawn.channels.shape
  outside = [(-1, 0), (0, -1), (width, 0), (0, height), (0, 0), (width - 1, height - 1), (width // 2, height // 2)]
  assert [drawn.channel_at(x, y) for x, y in outside] == [-1] * len(outside)
  gap = mosaic.MARGIN + mosaic.TILE
  assert [drawn.channel_at(gap + x, mosaic.MARGIN) for x in (-1, 0, 1, 2)] == [0, -1, -1, 1]


def test_the_images_of_a_scatter_are_at_their_positions():
  rng = np.random.default_rng(0)
  images, positions = rng.integers(0, 256, (5, 32, 32, 3), np.uint8), np.array([[0, 0], [1, 0], [0, 1], [1, 1], [1, 1]])
  drawn = mosaic.draw_scatter(images, positions)
  last = mosaic.SCATTER_SIDE - 32
  for index, (left, top) in {0: (0, 0), 1: (last, 0), 2: (0, last), 4: (last, last)}.items():  # 4 covers 3
    np.testing.assert_array_equal(drawn.pixels[top : top + 32, left : left + 32], images[index])
    assert drawn.channel_at(left + 31, top) == index
  assert 3 not in drawn.channels
  assert drawn.channel_at(450, 450) == -1


@pytest.mark.parametrize('side', [7, 300])
def test_pictures_are_magnified_to_any_side(side):
  pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
  magnified = mosaic.magnify(pixels, side)
  assert magnified.shape == (side, side, 3)
  for row, column in ((0, 0), (side - 1, side // 2)):
    np.testing.assert_array_equal(magnified[row, column], pixels[row * 60 // side, column * 60 // side])
