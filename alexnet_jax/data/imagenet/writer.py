"""Writes a prepared dataset in shards, in parallel.

A shard is one file of a split. A process writes it as a whole, and finished shards survive if the preparation is
killed. The content of a shard depends only on its images, not on the process that writes it.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import hashing
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import image_io
from alexnet_jax.data.imagenet.archives import ArchivedImage
from alexnet_jax.data.imagenet.builder import Ilsvrc, SkippedImage, make_example
from alexnet_jax.data.pixel_statistics import PixelSums
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError

IMAGES_PER_SHARD = 4096  # about 80 MB of JPEGs; a killed process loses at most one shard
MIN_IMAGES_PER_SHARD = 256
MAX_SMALL_SHARDS = 16  # a small dataset is divided into up to 16 shards, to occupy all cores


class ShardReport(NamedTuple):
  """The result of writing a shard.

  Attributes:
    num_examples: number of records.
    num_bytes: size of the records.
    skipped: images that cannot be decoded.
  """

  num_examples: int
  num_bytes: int
  skipped: list[SkippedImage]


class Shard(NamedTuple):
  """One file of a split.

  Attributes:
    split: name of the split.
    path: path of the file.
    parts: folder of the shard's report and pixel sums, which are needed until the dataset is complete.
    images: images in the order of the records.
    size: side of the stored images in pixels.
    encoding: 'jpeg' or 'raw'.
    quality: JPEG quality, 1 to 100.
  """

  split: str
  path: pathlib.Path
  parts: pathlib.Path
  images: list[ArchivedImage]
  size: int
  encoding: str
  quality: int

  def is_complete(self) -> bool:
    """Returns whether the shard has been written."""
    return self._report_path().exists() and self.path.exists()

  def read_report(self) -> ShardReport:
    """Reads the report of a complete shard."""
    report = json.loads(self._report_path().read_text())
    return ShardReport(**report | {'skipped': [SkippedImage(*image) for image in report['skipped']]})

  def read_sums(self) -> PixelSums:
    """Reads the pixel sums of a complete shard."""
    with np.load(self._sums_path(), allow_pickle=False) as arrays:
      return PixelSums(arrays['total'], arrays['products'], int(arrays['num_images']))

  def write(self, num_written: Synchronized | None = None) -> None:
    """Writes the shard, its report and its pixel sums.

    Args:
      num_written: counter of the images that all processes have written.

    Raises:
      RunError: if an archive cannot be read, or a file cannot be written.
    """
    partial = self.parts / f'{self.path.name}.partial'
    try:
      # One record per group makes random access fast. JPEGs do not compress, and raw pixels are meant to be read fast.
      writer = ArrayRecordWriter(str(partial), 'group_size:1,uncompressed')
      report, sums = self._write_records(writer, num_written)
      writer.close()
      if os.path.getsize(partial) < report.num_bytes:
        raise OSError('the file is shorter than its records')
      np.savez(self._sums_path(), total=sums.total, products=sums.products, num_images=sums.num_images)
      os.replace(partial, self.path)
      for path in (self._sums_path(), self.path, self.path.parent, self.parts):
        atomic_files.sync(path)
      atomic_files.write_text(self._report_path(), json.dumps(report._asdict()))  # last: the shard is complete now
    except (OSError, RuntimeError, ValueError) as error:  # ArrayRecordWriter raises the latter two
      free = shutil.disk_usage(self.parts).free
      raise RunError(
        f'{self.path} cannot be written ({error}; {free / 1e9:.2f} GB are free). Finished parts are saved: free some '
        'space and run the same command to resume.'
      ) from error

  def _report_path(self):
    return self.parts / f'{self.path.name}.json'

  def _sums_path(self):
    return self.parts / f'{self.path.name}.npz'

  def _write_records(self, writer, num_written):
    sums, buffer = PixelSums.zero(self.size), np.empty((self.size, self.size, 3), np.uint8)
    num_examples, num_bytes, skipped = 0, 0, []
    for image in self.images:
      example = make_example(image, self.size, self.encoding, self.quality)
      if isinstance(example, SkippedImage):
        skipped.append(example)
      else:
        record = _serialise(example)
        writer.write(record)
        num_examples += 1
        num_bytes += len(record)
        if self.split == 'train':  # statistics of the images as training reads them
          sums = sums.add(example['image'] if self.encoding == 'raw' else image_io.decode(example['image'], buffer))
      if num_written is not None:
        with num_written.get_lock():
          num_written.value += 1
    return ShardReport(num_examples, num_bytes, skipped), sums


def _serialise(example):
  """Serialises an example as TFDS does, but ten times as fast, and with the features in a fixed order."""
  proto = tf_example_pb2.Example()
  features, image = proto.features.feature, example['image']
  features['image'].bytes_list.value.append(image if isinstance(image, bytes) else image.tobytes())
  features['label'].int64_list.value.append(example['label'])
  features['file_name'].bytes_list.value.append(example['file_name'].encode())
  return proto.SerializeToString(deterministic=True)


def plan_shards(
  split: str, images: list[ArchivedImage], folder: pathlib.Path, size: int, encoding: str, quality: int
) -> list[Shard]:
  """Divides a split into shards. The records are in TFDS's order, which is that of a hash of their keys.

  Args:
    split: name of the split.
    images: images of the split, in any order.
    folder: folder of the shards.
    size: side of the stored images in pixels.
    encoding: 'jpeg' or 'raw'.
    quality: JPEG quality, 1 to 100.

  Raises:
    UsageError: if two images have the same key.
  """
  hasher = hashing.Hasher(split)
  ordered = sorted(images, key=lambda image: hasher.hash_key(image.key))
  for first, second in itertools.pairwise(ordered):
    if first.key == second.key:
      raise UsageError(f'{first} and {second} have the same name in {split}; rename one of them.')
  num_shards = max(
    -(-len(ordered) // IMAGES_PER_SHARD), min(MAX_SMALL_SHARDS, -(-len(ordered) // MIN_IMAGES_PER_SHARD))
  )
  template = file_template(split, folder)
  bounds = np.linspace(0, len(ordered), num_shards + 1).astype(int)
  return [
    Shard(
      split=split,
      path=pathlib.Path(template.sharded_filepath(shard_index=index, num_shards=num_shards)),
      parts=folder / 'parts',
      images=ordered[start:stop],
      size=size,
      encoding=encoding,
      quality=quality,
    )
    for index, (start, stop) in enumerate(itertools.pairwise(bounds))
  ]


def file_template(split: str, folder: pathlib.Path) -> tfds.core.ShardedFileTemplate:
  """Returns TFDS's template for the file names of a split."""
  return tfds.core.ShardedFileTemplate(
    dataset_name=Ilsvrc.name, data_dir=folder, split=split, filetype_suffix='array_record'
  )


def write_shards(shards: Sequence[Shard], num_workers: int) -> None:
  """Writes all incomplete shards in parallel, with a progress bar.

  Args:
    shards: shards of the dataset.
    num_workers: maximum number of processes.

  Raises:
    RunError: if an archive cannot be read, a file cannot be written, or a process dies.
  """
  incomplete = [shard for shard in shards if not shard.is_complete()]
  num_images = sum(len(shard.images) for shard in shards)
  num_complete = num_images - sum(len(shard.images) for shard in incomplete)
  if num_complete:
    print(f'Resuming: {num_complete:,} of {num_images:,} images are done', flush=True)
  if not incomplete:
    return
  os.environ['OPENBLAS_NUM_THREADS'] = '1'  # inherited by the workers, which already occupy all cores
  spawn = multiprocessing.get_context('spawn')
  counter = spawn.Value('q', 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(incomplete)), spawn, initializer=_start_worker, initargs=(counter,)
  )
  with tqdm.tqdm(total=num_images, initial=num_complete, unit=' images', desc='Preparing', mininterval=1) as bar:
    try:
      pending = {pool.submit(_write_shard, shard) for shard in incomplete}
      while pending:
        done, pending = concurrent.futures.wait(pending, timeout=1, return_when='FIRST_COMPLETED')
        # Read without the lock: a process that was killed may have held it.
        bar.update(num_complete + counter.get_obj().value - bar.n)
        for future in done:
          future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise RunError(
        'A worker process died, perhaps for lack of memory. Finished parts are saved: run the same command to resume, '
        'with fewer --workers if it happens again.'
      ) from error
    finally:
      for process in list((pool._processes or {}).values()):
        process.terminate()  # its unfinished shard is written again after resuming
      pool.shutdown(wait=True, cancel_futures=True)


_counter: Synchronized  # in a worker process: number of images that all workers have written


def _start_worker(counter):
  global _counter
  _counter = counter
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles interrupts
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()  # the parent may be killed without notice
  os._exit(1)


def _write_shard(shard):
  shard.write(_counter)
