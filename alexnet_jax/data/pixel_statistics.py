"""Mean image and RGB covariance of a training set (sections 2 and 4.1), computed once and kept."""

import collections
import concurrent.futures
import os
import pathlib
import stat
import urllib.parse
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from alexnet_jax.data.sources import Source
from alexnet_jax.runtime import atomic_files, compilation_cache

MOST_ADDED = 2**24  # images whose pixels fit into 32 bits


class PixelStatistics(NamedTuple):
  """What the preprocessing must know of a training set.

  Attributes:
    mean_image: [size, size, rgb] float64, 0-255.
    covariance: [rgb, rgb] float64, of the RGB values of all pixels of all images.
    num_images: of the training set, with those that could not be read and are not in the mean.
  """

  mean_image: np.ndarray
  covariance: np.ndarray
  num_images: int

  def save(self, place: pathlib.Path) -> None:
    """Writes an .npz file."""
    with atomic_files.atomic_write(place) as partial, open(partial, 'wb') as file:
      np.savez(file, **self._asdict())


class PixelSums(NamedTuple):
  """Sums over images, in whole numbers: they depend neither on the order nor on how the images were divided up.

  Attributes:
    total: [size, size, rgb] unsigned, of the pixels at each place.
    products: [rgb, rgb] int64, of the outer products of all pixels.
    num_images: how many.
  """

  total: np.ndarray
  products: np.ndarray
  num_images: int

  @classmethod
  def zero(cls, size: int) -> 'PixelSums':
    """Returns the sums over no image, to which up to `MOST_ADDED` can be added; more can be merged."""
    return cls(np.zeros((size, size, 3), np.uint32), np.zeros((3, 3), np.int64), 0)

  def add(self, image: np.ndarray) -> 'PixelSums':
    """Takes in an image [size, size, rgb] uint8; the arrays are changed in place."""
    np.add(self.total, image, out=self.total)
    channels = image.reshape(-1, 3).T.astype(np.float64, order='C')  # one dot product after the other is fastest
    for row in range(3):
      for column in range(row, 3):
        product = int(channels[row] @ channels[column])  # a whole number below 2 ** 53: exact
        self.products[row, column] += product
        self.products[column, row] = self.products[row, column]
    return self._replace(num_images=self.num_images + 1)

  def merge(self, other: 'PixelSums') -> 'PixelSums':
    """Returns the sums over the images of both."""
    total = self.total.astype(np.uint64) + other.total
    return PixelSums(total, self.products + other.products, self.num_images + other.num_images)

  def statistics(self) -> PixelStatistics:
    """Returns what the sums say."""
    num_pixels = self.num_images * self.total[..., 0].size
    mean = self.total.sum((0, 1)) / num_pixels
    return PixelStatistics(
      self.total / self.num_images, self.products / num_pixels - np.outer(mean, mean), self.num_images
    )


def load_or_compute(source: Source, num_threads: int = 0) -> PixelStatistics:
  """Returns the statistics of a training set, from where they are kept or, the first time, from its images.

  Args:
    source: the training set.
    num_threads: that decode; 0 for one a core.
  """
  name = file_name(source.split, source.size, source.classes)
  places = [folder / name for folder in (pathlib.Path(source.directory), _cache_folder(source))]
  for place in places:
    kept = load(place)
    if kept is not None and kept.num_images == len(source) and kept.mean_image.shape == (source.size, source.size, 3):
      return kept
    if kept is not None:
      print(f'{place} is of another training set ({kept.num_images:,} images); the statistics are computed anew')
  statistics = compute(source, num_threads)
  place = places[0] if _is_writable(places[0].parent) else places[1]
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    statistics.save(place)
  except OSError as error:  # a full disk, say: nothing is lost but the time to do it again
    print(f'the statistics could not be kept in {place.parent} ({error.strerror}); next time they are computed again')
  return statistics


def load(place: pathlib.Path) -> PixelStatistics | None:
  """Reads what `Statistics.save` wrote; None if the file is missing or damaged."""
  try:
    with np.load(place, allow_pickle=False) as arrays:
      found = PixelStatistics(**{name: array if array.ndim else int(array) for name, array in arrays.items()})
    height, width, channels = found.mean_image.shape
    is_whole = (
      height == width and channels == 3 and found.covariance.shape == (3, 3) and isinstance(found.num_images, int)
    )
    return found if is_whole and np.isfinite(found.mean_image).all() and np.isfinite(found.covariance).all() else None
  except Exception:  # a broken file leads numpy and its zip reader to raise whatever they come upon
    return None


def compute(source: Source, num_threads: int = 0) -> PixelStatistics:
  """Goes once over all images, with a progress bar; the result does not depend on the threads."""
  whole, sums = PixelSums.zero(source.size), PixelSums.zero(source.size)
  title = f'Mean image of {source.dataset}, {source.split}'
  with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
    for image in tqdm.tqdm(_read_ahead(pool, source), title, len(source), unit=' images'):
      if image is None:  # it is skipped
        continue
      if sums.num_images == MOST_ADDED:
        whole, sums = whole.merge(sums), PixelSums.zero(source.size)
      sums = sums.add(image)
  return whole.merge(sums).statistics()._replace(num_images=len(source))


def _read_ahead(pool, source, distance=64):
  """Yields the images in order, None for one that is skipped, while the pool decodes the next ones."""

  def read(index):
    (example,) = source.read_or_leave_out([index])
    return example and example[0]

  waiting = collections.deque()
  for index in range(len(source)):
    waiting.append(pool.submit(read, index))
    if len(waiting) > distance:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


def file_name(split: str, size: int, classes: Sequence[str] = ()) -> str:
  """Names the file of the statistics of a split, or of its images of some classes; its folder says of which dataset."""
  part = urllib.parse.quote(split, safe='')
  if classes:
    part += f'-{len(classes)}-classes-{zlib.crc32(repr(tuple(classes)).encode()):08x}'
  return f'alexnet_jax-statistics-{part}-{size}.npz'


def _cache_folder(source):
  place = zlib.crc32(os.path.realpath(source.directory).encode())  # of two datasets of one name, each has its own
  return compilation_cache.user_folder() / source.dataset / f'{place:08x}'


def _is_writable(folder):
  # The mode is asked too: a superuser may write anywhere, but a folder without write bits was meant to stay as it is.
  return bool(folder.stat().st_mode & stat.S_IWUSR) and os.access(folder, os.W_OK)
