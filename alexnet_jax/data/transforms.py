"""Grain transforms from the indices of a batch to its augmented images (section 4.1).

A batch is a dict of arrays with a row for each image. It starts with 'index' alone. The random transforms add what they
draw, `Shard` selects the rows of this process, and `ReadAndCrop` replaces indices by images.

Transforms process whole batches: Grain calls a transform once for each element, which takes longer for every image than
these draws. Decoding and cropping run on the host. Mirroring, subtracting the mean and shifting colours run on the
device, as part of `step.train_step`: mirroring is free there, and on the host costs more than decoding a JPEG.
"""

import dataclasses

import grain
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.cropping import Crop, centre_crop, mean_crop
from alexnet_jax.data.sources import Source

Batch = dict[str, np.ndarray]

PADDING = -1  # the index of a row without an image


def augmentation(
  config: ConfigDict, covariance: np.ndarray, num_colour_steps: int
) -> list[grain.transforms.Transformation]:
  """Returns the transforms that augment a training batch, in their order.

  Grain derives the seed of a random transform from its position. An augmentation that a config switches off therefore
  has a substitute, which leaves the draws of the others unchanged.

  Args:
    config: the whole config.
    covariance: [rgb, rgb] covariance of the training pixels, 0-255.
    num_colour_steps: number of training steps, counted from step 0, whose images get a colour shift.
  """
  augment, margin = config.augment, config.model.border
  return [
    SharedBy(augment.shared_by, RandomCrop(augment.offsets)) if augment.crop else CentreCrop(margin),
    SharedBy(augment.shared_by, RandomMirror(0.5 if augment.mirror else 0.0)),
    MeanCrop(config.model.centre_mean, margin),
    ColourShift(covariance, augment.colour_std, augment.colour_rescale),
    ColourShiftUntil(num_colour_steps),
  ]


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
  """'Extracting random 224 x 224 patches' (section 4.1): adds 'offset' [batch, 2] int32, first row and column.

  `ReadAndCrop` cuts the crops out on the host.

  Attributes:
    num_offsets: number of offsets on each axis. The paper's 32, 0 to 31, and reflections make 32 * 32 * 2 = 2048 crops.
      The code of 2012 had 33, 0 to 32 (facts, section 2).
  """

  num_offsets: int

  def random_map(self, batch: Batch, rng: np.random.Generator) -> Batch:
    """Draws the offsets of all images."""
    return batch | {'offset': rng.integers(0, self.num_offsets, (len(batch['index']), 2), np.int32)}


@dataclasses.dataclass(frozen=True)
class CentreCrop(grain.transforms.Map):
  """Adds the 'offset' of the centre crop for every image.

  Attributes:
    margin: difference between the sides of image and crop in pixels.
  """

  margin: int

  def map(self, batch: Batch) -> Batch:
    """Adds the offset."""
    return batch | {'offset': np.full((len(batch['index']), 2), centre_crop(self.margin)[:2], np.int32)}


@dataclasses.dataclass(frozen=True)
class RandomMirror(grain.transforms.RandomMap):
  """'And their horizontal reflections' (section 4.1): adds 'mirrored' [batch] bool. The device mirrors the crops.

  Attributes:
    probability: of a reflection.
  """

  probability: float = 0.5

  def random_map(self, batch: Batch, rng: np.random.Generator) -> Batch:
    """Draws for every image whether it is mirrored."""
    return batch | {'mirrored': rng.random(len(batch['index'])) < self.probability}


@dataclasses.dataclass(frozen=True)
class SharedBy(grain.transforms.RandomMap):
  """Lets consecutive images share the draw of a transform, as 32 images shared a crop in 2012 (facts, section 2).

  Attributes:
    num_images: number of images that share a draw. The last group of a batch can be smaller.
    transform: a transform that adds fields.
  """

  num_images: int
  transform: grain.transforms.RandomMap

  def random_map(self, batch: Batch, rng: np.random.Generator) -> Batch:
    """Applies the transform to the first image of each group and repeats the fields that it adds."""
    firsts = {name: values[:: self.num_images] for name, values in batch.items()}
    groups = np.arange(len(batch['index'])) // self.num_images
    drawn = self.transform.random_map(firsts, rng)
    return {name: values[groups] for name, values in drawn.items()} | batch


@dataclasses.dataclass(frozen=True)
class MeanCrop(grain.transforms.Map):
  """Adds the crop of the mean image that the device subtracts (section 2); see `cropping.mean_crop`.

  The fields are 'mean_offset' [batch, 2] int32, first row and column, and 'mean_mirrored' [batch] bool.

  Attributes:
    centre_mean: whether to subtract the centre crop of the mean image as in 2012.
    margin: difference between the sides of image and crop in pixels.
  """

  centre_mean: bool
  margin: int

  def map(self, batch: Batch) -> Batch:
    """Adds both fields."""
    top, left = batch['offset'].T
    mean = mean_crop(Crop(top, left, batch['mirrored']), self.centre_mean, self.margin)
    return batch | {'mean_offset': np.stack(mean[:2], axis=1), 'mean_mirrored': np.asarray(mean.mirrored)}


class ColourShift(grain.transforms.RandomMap):
  """'Altering the intensities of the RGB channels' (section 4.1): draws one shift for all pixels of an image.

  Adds 'colour' [batch, rgb] float32, grey levels, and 'scale' [batch] float32. The device adds the shift to every pixel
  and multiplies by the scale.

  Paper: it multiplies each principal component by its eigenvalue times a random variable of standard deviation 0.1.
  For pixels in 0-255 that would shift by a thousand grey levels. Like the 2012 code we multiply by the standard
  deviation along the component instead, the square root of the eigenvalue (facts, section 2). The covariance of the
  shifts is therefore std ** 2 times that of the pixels.
  """

  def __init__(self, covariance: np.ndarray, std: float, rescale: bool = False):
    """Computes the principal components.

    Args:
      covariance: [rgb, rgb] float64 covariance of all pixels of the training set, 0-255.
      std: standard deviation of the random variables, 0.1 in the paper; 0 for no shift.
      rescale: whether the scale is 1 / (1 + std) as in 2012, or 1.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    self._components = eigenvectors * np.sqrt(np.maximum(eigenvalues, 0.0))  # [rgb, component]
    self._std, self._scale = std, 1 / (1 + std) if rescale else 1

  def random_map(self, batch: Batch, rng: np.random.Generator) -> Batch:
    """Draws the shifts of all images."""
    num_images = len(batch['index'])
    colour = rng.normal(0.0, self._std, (num_images, 3)) @ self._components.T
    return batch | {'colour': colour.astype(np.float32), 'scale': np.full(num_images, self._scale, np.float32)}


@dataclasses.dataclass(frozen=True)
class ColourShiftUntil(grain.transforms.MapWithIndex):
  """Ends the colour shift, and its scale, after the first steps of a run, as in 2012 (facts, section 2).

  Attributes:
    num_steps: number of training steps, counted from step 0, whose images get a colour shift.
  """

  num_steps: int

  def map_with_index(self, step: int, batch: Batch) -> Batch:
    """Sets the shift of a later step to 0 and the scale to 1."""
    if step < self.num_steps:
      return batch
    return batch | {'colour': np.zeros_like(batch['colour']), 'scale': np.ones_like(batch['scale'])}


@dataclasses.dataclass(frozen=True)
class Shard(grain.transforms.Map):
  """Selects the rows of this process. It follows all draws, which thus do not depend on the number of processes.

  Attributes:
    index: which of the shards, from 0.
    count: number of shards, which divides the size of a batch.
  """

  index: int
  count: int

  def map(self, batch: Batch) -> Batch:
    """Returns one of `count` equal parts of consecutive rows."""
    return {name: np.split(values, self.count)[self.index] for name, values in batch.items()}


@dataclasses.dataclass(frozen=True)
class ReadAndCrop(grain.transforms.Map):
  """Reads the images of a batch and cuts their crops out: 'index' and 'offset' become 'image' and 'label'.

  'image' is [batch, size, size, rgb] uint8 and 'label' [batch] int32.

  Crops are copied as rows of pixels, because numpy releases the interpreter lock to copy more than 500 elements: when
  several threads read raw images, waiting for the lock takes longer than the copy.

  Attributes:
    source: the images.
    size: side of the crops in pixels.
  """

  source: Source
  size: int

  def map(self, batch: Batch) -> Batch:
    """Reads and crops; raises the errors of `Source.read`."""
    fields = dict(batch)
    indices, offsets = fields.pop('index').tolist(), fields.pop('offset').tolist()
    images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
    labels = []
    row_dtype = np.dtype(('V', self.size * 3))  # a row of pixels
    crops = images.reshape(len(indices), self.size, -1).view(row_dtype)
    for row, ((top, left), (image, label)) in enumerate(zip(offsets, self.source.read(indices), strict=True)):
      rows = image.reshape(len(image), -1)
      crops[row] = rows[top : top + self.size, 3 * left : 3 * (left + self.size)].view(row_dtype)
      labels.append(label)
    return fields | {'image': images, 'label': np.array(labels, np.int32)}


@dataclasses.dataclass(frozen=True)
class ReadWhole(grain.transforms.Map):
  """Reads whole images for an evaluation: 'index' becomes 'image', 'label' and 'weight'.

  'image' is [batch, height, width, rgb] uint8, 'label' [batch] int32 and 'weight' [batch] float32. Rows without an
  image (`PADDING`) and skipped examples are blank and have weight 0, others weight 1.

  Attributes:
    source: the images.
  """

  source: Source

  def map(self, batch: Batch) -> Batch:
    """Reads; raises the errors of `Source.read_or_none`."""
    num_rows, size = len(batch['index']), self.source.size
    images = np.zeros((num_rows, size, size, 3), np.uint8)
    labels, weight = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.float32)
    indices = batch['index'][batch['index'] != PADDING].tolist()  # padding is at the end
    for row, example in enumerate(self.source.read_or_none(indices)):
      if example is not None:
        images[row], labels[row] = example
        weight[row] = 1
    return {'image': images, 'label': labels, 'weight': weight}
