"""The images that excite the units of a layer most, and the patches that the units see."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation.trained_model import IMAGES_PER_DEVICE, TrainedModel
from alexnet_jax.models import alexnet

POOL_STRIDE = 2  # section 3.4
WITHIN_MAP_SIZE = 5  # side of the windows of `within_map_norm`


class ReceptiveField(NamedTuple):
  """The pixels of a crop that a map's outputs depend on, the same for rows and columns.

  Attributes:
    start: first pixel of the field of the first output; negative in the padding.
    stride: pixels between the fields of consecutive outputs.
    size: side in pixels.
  """

  start: int
  stride: int
  size: int

  def window(self, position: int, image_size: int) -> tuple[int, int]:
    """Returns the first pixel of an output's field within the crop, and the pixel after its last."""
    first = self.start + position * self.stride
    return max(first, 0), min(first + self.size, image_size)


def receptive_field(config: ConfigDict, layer: str) -> ReceptiveField:
  """Computes the receptive field of a convolutional or pooling layer.

  Args:
    config: the `model` part of a config that describes an AlexNet.
    layer: 'conv1', 'pool1', ... 'pool5', 'conv6'.
  """
  start, stride, size = 0, 1, 1
  for name, (kernel_size, kernel_stride, padding) in alexnet.WINDOWS.items():
    if config.kernels[name]:
      before, _ = padding or alexnet.both_sides(config.padding[name])
      start, size, stride = start - before * stride, size + (kernel_size - 1) * stride, stride * kernel_stride
    if name in config.norm.within:
      start, size = start - WITHIN_MAP_SIZE // 2 * stride, size + (WITHIN_MAP_SIZE - 1) * stride
    if name == layer:
      break
    if name in alexnet.POOLED:
      size, stride = size + (config.pool_size - 1) * stride, stride * POOL_STRIDE
    if alexnet.POOLS.get(name) == layer:
      break
  return ReceptiveField(start, stride, size)


class StrongestImages(NamedTuple):
  """The images with the largest outputs of each channel, largest first.

  Attributes:
    values: [rank, channel] float32.
    images: [rank, channel] int64, indices of the images.
    rows: [rank, channel] int64, row of the largest output; 0 for units.
    columns: [rank, channel] int64.
  """

  values: np.ndarray
  images: np.ndarray
  rows: np.ndarray
  columns: np.ndarray


def find_strongest_images(model: TrainedModel, source: Source, layer: str, num_images: int = 9) -> StrongestImages:
  """Finds the images of a split that excite each channel of a layer most, each image once.

  Args:
    model: the network.
    source: the split.
    layer: name of the layer.
    num_images: number of images per channel, at most that of the split.
  """
  strongest: StrongestImages | None = None
  for indices, outputs in _activations(model, source, layer):
    batch = _strongest_in_batch(indices, outputs)
    if strongest is not None:
      batch = StrongestImages(*(np.concatenate(pair) for pair in zip(strongest, batch, strict=True)))
    order = np.argsort(-batch.values, axis=0, kind='stable')[:num_images]
    strongest = StrongestImages(*(np.take_along_axis(array, order, axis=0) for array in batch))
  assert strongest is not None  # a split has at least one image
  return strongest


def _activations(model: TrainedModel, source: Source, layer: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  compute: Callable = functools.partial(model.activations, layer=layer)
  with tqdm.tqdm(total=len(source), unit=' images', desc=f'{layer} of {source.split}', mininterval=1) as bar:
    for start in range(0, len(source), IMAGES_PER_DEVICE):
      indices = np.arange(start, min(start + IMAGES_PER_DEVICE, len(source)))
      images, _ = source.read_batch(indices.tolist())
      yield indices, model.in_batches(compute, images)
      bar.update(len(indices))


def _strongest_in_batch(indices: np.ndarray, outputs: np.ndarray) -> StrongestImages:
  """Returns the largest output of each image and channel, with its position."""
  num_images, *size, num_channels = outputs.shape
  flat = outputs.reshape(num_images, -1, num_channels)
  position = flat.argmax(axis=1)
  values = np.take_along_axis(flat, position[:, None], axis=1)[:, 0]
  rows, columns = np.divmod(position, size[1] if size else 1)
  return StrongestImages(values, np.broadcast_to(indices[:, None], values.shape), rows, columns)


def patches(
  model: TrainedModel, source: Source, layer: str, channel: int, strongest: StrongestImages
) -> list[tuple[np.ndarray, str]]:
  """Cuts out what a unit sees in the images that excite it most.

  Args:
    model: the network, an AlexNet.
    source: the split that was searched.
    layer: name of the layer.
    channel: the channel.
    strongest: result of `find_strongest_images`.

  Returns:
    (patch [height, width, rgb] uint8, caption) for each image; units of fully-connected layers see the whole crop.
  """
  images, labels = source.read_batch(strongest.images[:, channel].tolist())
  crops, size = model.centre_crops(images), model.config.image_size
  is_map = len(model.layer_shape(layer)) == 3
  field = receptive_field(model.config, layer) if is_map else ReceptiveField(0, 1, size)
  found = []
  for rank, (crop, label) in enumerate(zip(crops, labels, strict=True)):
    rows, columns = (
      slice(*field.window(positions[rank, channel], size)) for positions in (strongest.rows, strongest.columns)
    )
    name = model.class_names[label] if label >= 0 else 'unknown class'
    found.append((crop[rows, columns], f'{strongest.values[rank, channel]:.1f}, {name}'))
  return found
