"""Mean image and RGB covariance of a training set (sections 2 and 4.1), computed once and cached."""

from __future__ import annotations

import os
import pathlib
import stat
import urllib.parse
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet_jax.runtime import atomic_files, compilation_cache, processor

if TYPE_CHECKING:
  from alexnet_jax.data.sources import Source

IMAGES_PER_READ = 16  # one at a time, Grain takes longer for a small image than decoding it
MAX_ADDED_IMAGES = 2**24  # a sum of more uint8 pixels may overflow 32 bits


class PixelStatistics(NamedTuple):
  """The statistics of a training set that the preprocessing needs.

  Attributes:
    mean_image: [size, size, rgb] float64, 0-255.
    covariance: [rgb, rgb] float64, of the RGB values of all pixels of all images.
    num_images: number of images in the training set, including skipped images, which are not in the mean.
  """

  mean_image: np.ndarray
  covariance: np.ndarray
  num_images: int

  def save(self, path: pathlib.Path) -> None:
    """Writes the statistics to an .npz file."""
    with atomic_files.atomic_write(path) as partial, open(partial, 'wb') as file:
      np.savez(file, **self._asdict())


class PixelSums(NamedTuple):
  """Integer sums over images, which depend neither on the order of the images nor on their division among workers.

  Attributes:
    total: [size, size, rgb] unsigned, sum of the images.
    products: [rgb, rgb] int64, sum of the outer products of all pixels.
    num_images: number of images.
  """

  total: np.ndarray
  products: np.ndarray
  num_images: int

  @classmethod
  def zero(cls, size: int) -> PixelSums:
    """Returns the sums over no image. At most `MAX_ADDED_IMAGES` can be added; sums over more can be merged."""
    return cls(np.zeros((size, size, 3), np.uint32), np.zeros((3, 3), np.int64), 0)

  def add(self, image: np.ndarray) -> PixelSums:
    """Adds an image [size, size, rgb] uint8 in place, and returns the sums with the new number of images."""
    np.add(self.total, image, out=self.total)
    channels = image.reshape(-1, 3).T.astype(np.float64, order='C')  # separate dot products are fastest
    for row in range(3):
      for column in range(row, 3):
        product = int(channels[row] @ channels[column])  # exact: an integer below 2 ** 53
        self.products[row, column] += product
        self.products[column, row] = self.products[row, column]
    return self._replace(num_images=self.num_images + 1)

  def merge(self, other: PixelSums) -> PixelSums:
    """Returns the sums over the images of both."""
    total = self.total.astype(np.uint64) + other.total
    return PixelSums(total, self.products + other.products, self.num_images + other.num_images)

  def statistics(self) -> PixelStatistics:
    """Returns the mean and covariance of the summed images."""
    num_pixels = self.num_images * self.total[..., 0].size
    mean = self.total.sum((0, 1)) / num_pixels
    return PixelStatistics(
      self.total / self.num_images, self.products / num_pixels - np.outer(mean, mean), self.num_images
    )


def load_or_compute(source: Source, num_threads: int = 0) -> PixelStatistics:
  """Loads the cached statistics of a training set, or computes and caches them.

  The cache is a file in the dataset's folder, or in the user's cache folder if that folder is not writable.

  Args:
    source: training set.
    num_threads: number of decoding threads; 0 for one per core.

  Raises:
    RunError: if an image cannot be read and is not skipped.
  """
  name = file_name(source.split, source.size, source.classes)
  paths = [folder / name for folder in (pathlib.Path(source.directory), _cache_folder(source))]
  for path in paths:
    cached = load(path)
    if cached is None:
      continue
    if cached.num_images == len(source) and cached.mean_image.shape == (source.size, source.size, 3):
      return cached
    print(f'{path} belongs to another training set ({cached.num_images:,} images); computing the statistics again.')
  statistics = compute(source, num_threads)
  path = paths[0] if _is_writable(paths[0].parent) else paths[1]
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    statistics.save(path)
  except OSError as error:  # for example a full disk, which costs only the time to compute the statistics again
    print(f'The statistics could not be cached in {path.parent} ({error.strerror}); the next run computes them again.')
  return statistics


def load(path: pathlib.Path) -> PixelStatistics | None:
  """Loads statistics written by `PixelStatistics.save`; returns None if the file is missing or damaged."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      mean_image, covariance, num_images = (arrays[name] for name in PixelStatistics._fields)
    size = len(mean_image)
    shapes_match = (mean_image.shape, covariance.shape, num_images.shape) == ((size, size, 3), (3, 3), ())
    is_valid = shapes_match and np.isfinite(mean_image).all() and np.isfinite(covariance).all()
    return PixelStatistics(mean_image, covariance, int(num_images)) if is_valid else None
  except Exception:  # on damaged files numpy and zipfile raise errors of many types
    return None


def compute(source: Source, num_threads: int = 0) -> PixelStatistics:
  """Computes the statistics of a training set; the result does not depend on the number of threads.

  Args:
    source: training set.
    num_threads: number of decoding threads; 0 for one per core.

  Raises:
    RunError: if an image cannot be read and is not skipped.
  """
  import grain  # of the extra `train`, which loading saved statistics does not need
  import tqdm  # as above

  def read(indices):
    return [example[0].copy() for example in source.read_or_none(indices.tolist()) if example]

  num_threads = num_threads or processor.num_cores()
  batches = grain.MapDataset.range(len(source)).batch(IMAGES_PER_READ).map(read)
  batches = batches.to_iter_dataset(grain.ReadOptions(num_threads, 2 * num_threads))
  merged, sums = PixelSums.zero(source.size), PixelSums.zero(source.size)
  with tqdm.tqdm(total=len(source), desc=f'Mean image of {source.dataset}, {source.split}', unit=' images') as bar:
    for images in batches:
      for image in images:
        if sums.num_images == MAX_ADDED_IMAGES:
          merged, sums = merged.merge(sums), PixelSums.zero(source.size)
        sums = sums.add(image)
      bar.update(len(images))
  return merged.merge(sums).statistics()._replace(num_images=len(source))


def file_name(split: str, size: int, classes: Sequence[str] = ()) -> str:
  """Returns the name of the statistics file of a split, or of the selected classes of a split."""
  part = urllib.parse.quote(split, safe='')
  if classes:
    part += f'-{len(classes)}-classes-{zlib.crc32(repr(tuple(classes)).encode()):08x}'
  return f'alexnet_jax-statistics-{part}-{size}.npz'


def _cache_folder(source):
  path_hash = zlib.crc32(os.path.realpath(source.directory).encode())  # separates datasets with the same name
  return compilation_cache.user_folder() / source.dataset / f'{path_hash:08x}'


def _is_writable(folder):
  # A superuser may write to any folder; missing write bits still mean that the folder must not change.
  return bool(folder.stat().st_mode & stat.S_IWUSR) and os.access(folder, os.W_OK)
