"""Measures the throughput of the input pipeline, of PyTorch's DataLoader, of decoding alone, and of `prepare`.

    make bench-data      or      python benchmarks/input_pipeline.py --pictures=FOLDER --rounds=7

All contestants read the same prepared images in alternating turns, use all cores, and use huge pages if `main.py` does;
the results are medians over the rounds. FOLDER contains train/CLASS/IMAGE; by default, images are cropped from
scikit-learn's two sample photographs.

- bare: libjpeg-turbo (simplejpeg) decodes the JPEGs in one thread per core, and does nothing else.
- ours: `pipeline.training_dataset` reads, decodes and crops images, and makes batches of 128 that are ready for the
  device.
- torch: a DataLoader whose dataset has the JPEGs in memory, decodes, crops and mirrors with Pillow (its fastest way),
  and draws the colour shift. The best number of worker processes counts: 0, 1, one for
  two cores, or one per core.
- profile: what every step of our dataset costs in one thread.
- preparing: `writer.Shard.write` against decode + resize + encode of the same images, both on one core.
"""

import argparse
import concurrent.futures
import gc
import itertools
import json
import os
import pathlib
import statistics as stats
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ['OPENBLAS_NUM_THREADS'] = '1'  # as in the workers of `prepare`

import numpy as np

from alexnet_jax import __main__ as cli
from alexnet_jax.data import image_io, pipeline, sources
from alexnet_jax.data.imagenet import archives, writer
from alexnet_jax.runtime import host_memory
from configs import alexnet

CORES = len(os.sched_getaffinity(0))
IMAGENET_SIZE = 1_281_167


def main():
  """Prepares the images, measures all contestants, and prints a table and a line of JSON."""
  host_memory.configure_malloc()  # as `main.py` does
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pictures', type=pathlib.Path, help='folder that contains train/CLASS/IMAGE')
  parser.add_argument('--rounds', type=int, default=7, help='number of rounds (%(default)s)')
  parser.add_argument('--seconds', type=float, default=2.0, help='duration of each turn (%(default)s)')
  parser.add_argument('--memory_batches', type=int, default=2000, help='batches over which memory is measured; 0: skip')
  options = parser.parse_args()
  sources.MAX_CACHED_BYTES = 0  # otherwise the small split would be decoded once and then copied from memory
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    images = options.pictures or write_sample_images(folder / 'images')
    for encoding in ('jpeg', 'raw'):
      status = cli.main(['prepare', 'folder', str(images), f'--data_dir={folder}', f'--encoding={encoding}'])
      if status not in (0, 3):
        sys.exit(status)
    result = {'cores': CORES, 'pictures': str(options.pictures or 'scikit-learn'), 'rounds': options.rounds}
    result |= compare(folder, options)
    result['profile'] = profile(folder, options.rounds)
    result['preparing'] = compare_preparation(images, folder, options.rounds)
    if options.memory_batches:
      result['resident_gib'] = measure_memory(folder, options.memory_batches)
  print(json.dumps(result))


def write_sample_images(folder):
  """Crops 2,048 images of 500 x 375, ImageNet's usual size, from two photographs."""
  import PIL.Image
  from sklearn import datasets

  rng = np.random.default_rng(0)
  photographs = [PIL.Image.fromarray(photograph) for photograph in datasets.load_sample_images().images]
  for number in range(2048):
    width = int(rng.integers(200, 560))
    left, top = (int(rng.integers(0, margin + 1)) for margin in (640 - width, 427 - width * 3 // 4))
    image = photographs[number % 2].resize((500, 375), box=(left, top, left + width, top + width * 3 // 4))
    class_folder = folder / 'train' / str(number % 2)
    class_folder.mkdir(parents=True, exist_ok=True)
    image.save(class_folder / f'{number}.jpg', quality=92)
  return folder


def make_config(folder, encoding):
  """Returns the paper's config, with the prepared images as dataset."""
  config = alexnet.get_config('imagenet2012')
  config.data.name, config.data.dir = 'ilsvrc/folder' + ('_raw' if encoding == 'raw' else ''), str(folder)
  return config


def compare(folder, options):
  """Measures all contestants in turns; returns images per second and ratios."""
  splits = {name: sources.open_splits(make_config(folder, name).data, 256, ['train'])[0] for name in ('jpeg', 'raw')}
  files = read_encoded(splits['jpeg'])
  contestants = {'bare': lambda seconds: decode_only(files, seconds)}
  for name, source in splits.items():
    config = make_config(folder, name)
    contestants[f'ours {name}'] = make_turn(our_batches(Repeated(source), config), skip=4 * CORES)
  for workers in sorted({0, 1, CORES // 2, CORES}):
    contestants[f'torch {workers}'] = make_turn(torch_batches(files, workers), skip=2 * 2 * workers + 1)
  throughputs = {name: [] for name in contestants}
  for number in range(options.rounds + 1):
    for name, run_turn in contestants.items():
      time.sleep(0.5)  # until the previous contestant has prefetched
      throughput = run_turn(options.seconds)
      if number:  # the first round warms up
        throughputs[name].append(throughput)
  median = {name: stats.median(values) for name, values in throughputs.items()}
  best = max((name for name in contestants if name.startswith('torch')), key=median.get)

  def ratio(numerator, denominator):
    return stats.median(a / b for a, b in zip(throughputs[numerator], throughputs[denominator], strict=True))

  ratios = {
    'ours jpeg / bare': ratio('ours jpeg', 'bare'),
    f'ours jpeg / {best}': ratio('ours jpeg', best),
    'ours raw / ours jpeg': ratio('ours raw', 'ours jpeg'),
  }
  print(f'{"":12}{"images/s":>10}{"per core":>10}   ({CORES} cores, median of {options.rounds} rounds)')
  for name, throughput in median.items():
    print(f'{name:12}{throughput:10.0f}{throughput / CORES:10.0f}')
  for name, value in ratios.items():
    print(f'{name}: {value:.2f}')
  return {'images_per_second': median, 'ratios': ratios}


def read_encoded(source):
  """Reads the JPEGs of a source into memory."""
  from tensorflow_datasets.proto import tf_example_pb2

  records = (source._records[index] for index in range(len(source)))
  return [tf_example_pb2.Example.FromString(record).features.feature['image'].bytes_list.value[0] for record in records]


def decode_only(files, seconds):
  """Decodes JPEGs in one thread per core; returns images per second."""
  import simplejpeg

  end = time.perf_counter() + seconds

  def decode_from(first):
    buffer, count = np.empty((256, 256, 3), np.uint8), 0
    while time.perf_counter() < end:
      simplejpeg.decode_jpeg(files[(first + count) % len(files)], 'RGB', buffer=buffer)
      count += 1
    return count

  start = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
    total = sum(pool.map(decode_from, range(0, len(files), len(files) // CORES)[:CORES]))
  return total / (time.perf_counter() - start)


class Repeated:
  """The images of a source, repeated up to the number of ImageNet's: Grain's shuffle takes longer for fewer images."""

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return IMAGENET_SIZE

  def read(self, indices):
    """Yields the examples of `Source.read`."""
    return self._source.read([index % len(self._source) for index in indices])


def our_dataset(source, config):
  """Returns the dataset of our training batches."""
  covariance = np.diag([5000.0, 5000.0, 5000.0])
  return pipeline.training_dataset(source, covariance, config, num_colour_steps=10**9, shard=(0, 1))


def our_batches(source, config):
  """Returns an infinite iterator over our training batches."""
  return pipeline.prefetch(our_dataset(source, config), config)


def make_turn(batches, skip):
  """Returns a function that measures images per second, after skipping the batches prefetched between turns."""

  def run_turn(seconds):
    for _ in range(skip):
      next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
      count += len(next(batches)['label'])
    return count / (time.perf_counter() - start)

  return run_turn


def torch_batches(files, num_workers):
  """Returns an infinite iterator of batches from a DataLoader that does the same work."""
  import io

  import PIL.Image
  import torch

  class Dataset(torch.utils.data.Dataset):
    def __len__(self):
      return len(files)

    def __getitem__(self, index):
      with PIL.Image.open(io.BytesIO(files[index])) as image:
        top, left = torch.randint(0, 32, (2,)).tolist()
        crop = image.convert('RGB').crop((left, top, left + 224, top + 224))
      if torch.rand(()) < 0.5:
        crop = crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
      colour = torch.randn(3) * 0.1 * 70
      return {'image': torch.from_numpy(np.array(crop)), 'colour': colour, 'label': index % 10}

  loader = torch.utils.data.DataLoader(
    Dataset(),
    batch_size=128,
    shuffle=True,
    drop_last=True,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
  )
  return itertools.chain.from_iterable(itertools.repeat(loader))


def profile(folder, rounds):
  """Measures the processor time per image of each step of the dataset, in one thread; returns microseconds, medians."""
  config = make_config(folder, 'jpeg')
  (source,) = sources.open_splits(config.data, 256, ['train'])
  files, buffer, batch_size = read_encoded(source), np.empty((256, 256, 3), np.uint8), config.batch_size
  functions = {
    'reading': (lambda index: source._records[index % len(source)], batch_size),
    'decoding': (lambda index: image_io.decode(files[index % len(files)], buffer), batch_size),
  }
  steps = [our_dataset(Repeated(source), config)]
  while steps[0].parents:
    steps.insert(0, steps[0].parents[0])
  for position, step in enumerate(steps):
    is_batch = isinstance(step[0], (dict, np.ndarray))
    functions[f'{position} {step}'] = (step.__getitem__, 1 if is_batch else batch_size)
  times = {name: [] for name in functions}
  for _ in range(rounds + 1):
    for name, (function, calls_per_batch) in functions.items():
      times[name].append(time_calls(function, 8 * calls_per_batch) / 8 / batch_size * 1e6)
  median = {name: stats.median(values[1:]) for name, values in times.items()}  # the first round warms up
  totals = list(median.values())
  costs = [*totals[:3], *(total - before for before, total in itertools.pairwise(totals[2:]))]  # of the steps alone
  print('microseconds of one thread per image:')
  for name, cost in zip(median, costs, strict=True):
    print(f'{cost:8.2f} {name}')
  return dict(zip(median, costs, strict=True))


def time_calls(function, num_calls):
  """Calls a function with 0, 1, ... and returns the processor time of this thread in seconds."""
  start = time.thread_time()
  for index in range(num_calls):
    function(index)
  return time.thread_time() - start


def compare_preparation(images, folder, rounds):
  """Compares writing a shard with decode + resize + encode alone, on one core."""
  (shard, *_) = writer.plan_shards(
    'train', archives.index_class_folders(images).splits['train'], folder / 'again', 256, 'jpeg', quality=85
  )
  shard.parts.mkdir(parents=True)
  files = [image.read() for image in shard.images]
  throughputs = {'bare': [], 'ours': []}
  for number in range(rounds + 1):
    start = time.perf_counter()
    for file in files:
      image_io.encode_jpeg(image_io.resize_and_crop(image_io.decode(file), 256), 85)
    middle = time.perf_counter()
    shard.write()
    end = time.perf_counter()
    if number:
      throughputs['bare'].append(len(files) / (middle - start))
      throughputs['ours'].append(len(files) / (end - middle))
  ratio = stats.median(ours / bare for ours, bare in zip(throughputs['ours'], throughputs['bare'], strict=True))
  median = {name: stats.median(values) for name, values in throughputs.items()}
  print(
    f'preparing on one core: {median["ours"]:.0f} images/s, decode + resize + encode alone {median["bare"]:.0f}; '
    f'ratio {ratio:.2f}'
  )
  return median | {'ratio': ratio}


def measure_memory(folder, num_batches):
  """Measures the resident memory after several numbers of batches, in GiB."""
  config = make_config(folder, 'jpeg')
  (source,) = sources.open_splits(config.data, 256, ['train'])
  gc.collect()
  batches, resident = our_batches(Repeated(source), config), {'before': resident_memory()}
  for number in range(1, num_batches + 1):
    next(batches)
    if number in (num_batches // 10, num_batches // 2, num_batches):
      resident[f'after {number}'] = resident_memory()
  print(f'resident memory with {IMAGENET_SIZE:,} images, GiB: {resident}')
  return resident


def resident_memory():
  """Returns the resident memory of this process, GiB."""
  with open('/proc/self/statm') as statm:
    return round(int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**30, 3)


if __name__ == '__main__':
  main()
