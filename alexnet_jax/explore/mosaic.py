"""Pictures of all maps or units of a layer, in which a click selects one."""

import math
from typing import NamedTuple

import numpy as np

from alexnet_jax.analysis import plots

SMALLEST_TILE = 8  # pixels
TILE = 32  # pixels, of maps
GAP = 2  # pixels between tiles
SCATTER_SIDE = 900  # pixels
MARGIN = 8  # pixels around the tiles of a tower, in its colour


class Mosaic(NamedTuple):
  """A picture of the channels of a layer, a block of tiles for each tower from left to right.

  Attributes:
    pixels: [height, width, rgb] uint8.
    channels: [height, width] int32, the channel at each pixel; -1 between the tiles.
  """

  pixels: np.ndarray
  channels: np.ndarray

  def channel_at(self, x: int, y: int) -> int:
    """Returns the channel at a pixel, or -1 if there is none."""
    height, width = self.channels.shape
    return int(self.channels[y, x]) if 0 <= y < height and 0 <= x < width else -1


def draw_maps(maps: np.ndarray, num_towers: int) -> Mosaic:
  """Draws each channel in grey, scaled from its minimum to its maximum, or units from that of the layer.

  Args:
    maps: [height, width, channel] or [unit] float32, the channels of the first tower first.
    num_towers: number of towers.
  """
  if maps.ndim == 1:
    tiles = _scale(maps, None)[:, None, None]
  else:
    tiles = _scale(np.moveaxis(maps, -1, 0), (1, 2))
  return draw_tiles(np.repeat(tiles[..., None], 3, axis=-1), num_towers)


def draw_kernels(kernels: np.ndarray) -> Mosaic:
  """Draws the kernels of the first layer in colour, each scaled from its minimum to its maximum.

  Args:
    kernels: [tower, height, width, rgb, kernel] float32.
  """
  num_towers = len(kernels)
  tiles = np.moveaxis(kernels, -1, 1).reshape(-1, *kernels.shape[1:4])
  return draw_tiles(_scale(tiles, (1, 2, 3)), num_towers)


def draw_tiles(tiles: np.ndarray, num_towers: int) -> Mosaic:
  """Arranges tiles in one block for each tower, on a ground in the colour of the tower.

  Args:
    tiles: [channel, height, width, rgb] float32, 0-1, the channels of the first tower first. If the number of channels
      is not a multiple of the number of towers, the last towers have fewer.
    num_towers: number of towers.
  """
  num_tiles, side = math.ceil(len(tiles) / num_towers), tiles.shape[1]
  scale = math.ceil((TILE if side > 1 else SMALLEST_TILE) / side)
  tiles = np.repeat(np.repeat(tiles, scale, axis=1), scale, axis=2)
  num_columns = math.ceil(math.sqrt(num_tiles))
  pitch = side * scale + GAP
  height = math.ceil(num_tiles / num_columns) * pitch - GAP + 2 * MARGIN
  width = num_columns * pitch - GAP + 2 * MARGIN
  blocks, channels = [], []
  for tower in range(num_towers):
    colour = np.frombuffer(bytes.fromhex(plots.tower_colour(tower).removeprefix('#')), np.uint8) / 255
    block = np.full((height, width, 3), colour, np.float32)
    numbers = np.full((height, width), -1, np.int32)
    channels_of_tower = range(tower * num_tiles, min((tower + 1) * num_tiles, len(tiles)))
    for index, channel in enumerate(channels_of_tower):
      row, column = divmod(index, num_columns)
      top, left = MARGIN + row * pitch, MARGIN + column * pitch
      place = np.s_[top : top + side * scale, left : left + side * scale]
      block[place], numbers[place] = tiles[channel], channel
    blocks.append(block)
    channels.append(numbers)
  return Mosaic(np.rint(255 * np.concatenate(blocks, axis=1)).astype(np.uint8), np.concatenate(channels, axis=1))


def magnify(pixels: np.ndarray, side: int) -> np.ndarray:
  """Repeats the pixels of a picture, [height, width, ...] -> [side, side, ...]."""
  rows, columns = (np.arange(side) * length // side for length in pixels.shape[:2])
  return pixels[rows][:, columns]


def draw_scatter(images: np.ndarray, positions: np.ndarray) -> Mosaic:
  """Draws small images at their positions; a later one covers an earlier one.

  Args:
    images: [image, side, side, rgb] uint8, with the side `TILE`.
    positions: [image, 2] float, to the right and down.
  """
  pixels = np.full((SCATTER_SIDE, SCATTER_SIDE, 3), 255, np.uint8)
  numbers = np.full((SCATTER_SIDE, SCATTER_SIDE), -1, np.int32)
  corners = np.rint(_scale(positions, 0) * (SCATTER_SIDE - TILE)).astype(int)
  for index, (image, (left, top)) in enumerate(zip(images, corners, strict=True)):
    place = np.s_[top : top + TILE, left : left + TILE]
    pixels[place], numbers[place] = image, index
  return Mosaic(pixels, numbers)


def _scale(values, axis):
  low, high = (f(values, axis=axis, keepdims=True) for f in (np.min, np.max))
  return (values - low) / np.where(high > low, high - low, 1)
