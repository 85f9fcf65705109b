"""Mean image and RGB covariance of a training set (sections 2 and 4.1), computed once and kept."""

import collections
import concurrent.futures
import os
import pathlib
import stat
import urllib.parse
import zipfile
from typing import NamedTuple

import numpy as np
import tqdm

from alexnet_jax.data import Source


class Statistics(NamedTuple):
  """What the preprocessing must know of a training set.

  Attributes:
    mean_image: [size, size, rgb] float64, 0-255.
    covariance: [rgb, rgb] float64, of the RGB values of all pixels of all images.
  """

  mean_image: np.ndarray
  covariance: np.ndarray

  def save(self, place: pathlib.Path) -> None:
    """Writes an .npz file."""
    partial = place.with_name(f'.{place.name}.{os.getpid()}')  # never half a file under the real name
    with open(partial, 'wb') as file:
      np.savez(file, **self._asdict())
    partial.replace(place)


def of(source: Source, num_threads: int = 0) -> Statistics:
  """Returns the statistics of a training set, from where they are kept or, the first time, from its images."""
  places = [folder / _file_name(source) for folder in (pathlib.Path(source.directory), _cache_folder(source))]
  for place in places:
    if (kept := load(place)) is not None:
      return kept
  statistics = compute(source, num_threads)
  place = places[0] if _is_writable(places[0].parent) else places[1]
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    statistics.save(place)
  except OSError as error:  # a full disk, say: nothing is lost but the time to do it again
    print(f'the statistics could not be kept in {place.parent} ({error.strerror}); next time they are computed again')
  return statistics


def load(place: pathlib.Path) -> Statistics | None:
  """Reads what `Statistics.save` wrote; None if the file is missing or damaged."""
  try:
    with np.load(place, allow_pickle=False) as arrays:
      return Statistics(**arrays)
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile):
    return None


def compute(source: Source, num_threads: int) -> Statistics:
  """Goes once over all images, with a progress bar.

  All sums are of whole numbers in exact arithmetic, so the result depends neither on the order nor on the threads.
  """
  total = np.zeros((source.size, source.size, 3), np.int64)
  products = np.zeros((3, 3), np.int64)
  title = f'Mean image of {source.dataset}, {source.split}'
  with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
    for image in tqdm.tqdm(_read_ahead(pool, source), title, len(source), unit=' images'):
      total += image
      pixels = image.reshape(-1, 3).astype(np.float64)
      products += (pixels.T @ pixels).astype(np.int64)  # whole numbers below 2 ** 53: exact
  num_pixels = len(source) * source.size**2
  mean = total.sum((0, 1)) / num_pixels
  return Statistics(total / len(source), products / num_pixels - np.outer(mean, mean))


def _read_ahead(pool, source, distance=64):
  """Yields the images in order while the pool decodes the next ones."""
  waiting = collections.deque()
  for index in range(len(source)):
    waiting.append(pool.submit(lambda index: source[index]['image'], index))
    if len(waiting) > distance:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


def _file_name(source):
  """Named by split and size; the folder says which dataset and version."""
  return f'alexnet_jax-statistics-{urllib.parse.quote(source.split, safe="")}-{source.size}.npz'


def _cache_folder(source):
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(cache) / 'alexnet_jax' / source.dataset


def _is_writable(folder):
  # The mode is asked too: a superuser may write anywhere, but a folder without write bits was meant to stay as it is.
  return bool(folder.stat().st_mode & stat.S_IWUSR) and os.access(folder, os.W_OK)
