"""How fast images come: our pipeline, PyTorch's DataLoader, and bare decoding; and how fast a dataset is prepared.

    make bench-data      or      python benchmarks/input_pipeline.py --pictures=FOLDER --rounds=7

All read the same prepared images, take turns, and use all cores; the figures are medians over the rounds. FOLDER is a
tree train/CLASS/PICTURE; by default pictures are cut out of the two photographs that come with scikit-learn.

- bare: libjpeg-turbo (simplejpeg) decodes the JPEGs, one after the other in one thread a core, and does nothing else.
- ours: `data.training_batches`: reading, decoding, cropping, batches of 128 ready for the device.
- torch: a DataLoader whose dataset holds the JPEGs in memory, decodes with Pillow, crops and mirrors with Pillow (its
  fastest way), and draws the colour shift. The best of 0, 1 and 2 worker processes counts.
- preparing: `shards.Shard.make` against decode + resize + encode of the same pictures alone, both on one core.
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
from configs import alexnet

CORES = len(os.sched_getaffinity(0))
IMAGENET_SIZE = 1_281_167


def main():
  """Prepares the pictures, lets the sides take turns, and prints a table and a line of JSON."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pictures', type=pathlib.Path, help='tree train/CLASS/PICTURE')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=2.0, help='of each turn')
  parser.add_argument('--memory_batches', type=int, default=2000, help='over which memory is watched; 0: not at all')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    pictures = options.pictures or sample_pictures(folder / 'pictures')
    for encoding in ('jpeg', 'raw'):
      status = cli.main(['prepare', 'folder', str(pictures), f'--data_dir={folder}', f'--encoding={encoding}'])
      if status not in (0, 3):
        sys.exit(status)
    result = {'cores': CORES, 'pictures': str(options.pictures or 'scikit-learn'), 'rounds': options.rounds}
    result |= compare(folder, options)
    result['preparing'] = preparing(pictures, folder, options.rounds)
    if options.memory_batches:
      result['resident_gib'] = memory(folder, options.memory_batches)
  print(json.dumps(result))


def sample_pictures(folder):
  """Cuts 2,048 pictures of 500 x 375, ImageNet's usual size, out of two photographs."""
  import PIL.Image
  from sklearn import datasets

  rng = np.random.default_rng(0)
  photographs = [PIL.Image.fromarray(photograph) for photograph in datasets.load_sample_images().images]
  for number in range(2048):
    width = int(rng.integers(200, 560))
    left, top = (int(rng.integers(0, room + 1)) for room in (640 - width, 427 - width * 3 // 4))
    picture = photographs[number % 2].resize((500, 375), box=(left, top, left + width, top + width * 3 // 4))
    place = folder / 'train' / str(number % 2)
    place.mkdir(parents=True, exist_ok=True)
    picture.save(place / f'{number}.jpg', quality=92)
  return folder


def config_of(folder, encoding):
  """The paper's augmentation of the prepared pictures, in batches of 128."""
  config = alexnet.get_config('imagenet2012')
  config.data.name, config.data.dir = 'ilsvrc/folder' + ('_raw' if encoding == 'raw' else ''), str(folder)
  return config


def compare(folder, options):
  """Lets the sides take turns; returns images per second and ratios."""
  sources = {name: sources.open_splits(config_of(folder, name).data, 256, ['train'])[0] for name in ('jpeg', 'raw')}
  files = encoded_files(sources['jpeg'])
  sides = {'bare': lambda seconds: bare(files, seconds)}
  for name, source in sources.items():
    sides[f'ours {name}'] = turn_of(endless(source, config_of(folder, name)), skip=4 * CORES)
  for workers in (0, 1, 2):
    sides[f'torch {workers}'] = turn_of(torch_batches(files, workers), skip=2 * 2 * workers + 1)
  rates = {name: [] for name in sides}
  for number in range(options.rounds + 1):
    for name, side in sides.items():
      rate = side(options.seconds)
      if number:  # the first round warms up
        rates[name].append(rate)
  median = {name: stats.median(values) for name, values in rates.items()}
  best = max((name for name in sides if name.startswith('torch')), key=median.get)

  def ratio(one, other):
    return stats.median(a / b for a, b in zip(rates[one], rates[other], strict=True))

  ratios = {
    'ours jpeg / bare': ratio('ours jpeg', 'bare'),
    f'ours jpeg / {best}': ratio('ours jpeg', best),
    'ours raw / ours jpeg': ratio('ours raw', 'ours jpeg'),
  }
  print(f'{"":12}{"images/s":>10}{"per core":>10}   ({CORES} cores, median of {options.rounds} rounds)')
  for name, rate in median.items():
    print(f'{name:12}{rate:10.0f}{rate / CORES:10.0f}')
  for name, value in ratios.items():
    print(f'{name}: {value:.2f}')
  return {'images_per_second': median, 'ratios': ratios}


def encoded_files(source):
  """The JPEGs of a source, in memory."""
  from tensorflow_datasets.proto import tf_example_pb2

  records = (source._records[index] for index in range(len(source)))
  return [tf_example_pb2.Example.FromString(record).features.feature['image'].bytes_list.value[0] for record in records]


def bare(files, seconds):
  """Decodes in one thread a core and counts."""
  import simplejpeg

  end = time.perf_counter() + seconds

  def loop(first):
    buffer, count = np.empty((256, 256, 3), np.uint8), 0
    while time.perf_counter() < end:
      simplejpeg.decode_jpeg(files[(first + count) % len(files)], 'RGB', buffer=buffer)
      count += 1
    return count

  start = time.perf_counter()
  with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
    total = sum(pool.map(loop, range(0, len(files), len(files) // CORES)[:CORES]))
  return total / (time.perf_counter() - start)


def endless(source, config):
  """Our batches."""
  covariance = np.diag([5000.0, 5000.0, 5000.0])
  return pipeline.training_batches(source, covariance, config, first_step=0, colour_steps=10**9, share=(0, 1))


def turn_of(batches, skip):
  """Makes a side of a stream: takes batches for some seconds, but first those made while others had their turn."""

  def turn(seconds):
    for _ in range(skip):
      next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
      count += len(next(batches)['label'])
    return count / (time.perf_counter() - start)

  return turn


def torch_batches(files, num_workers):
  """The same work in a DataLoader."""
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


def preparing(pictures, folder, rounds):
  """Compares the making of a shard with decode + resize + encode alone, on one core."""
  (shard, *_) = writer.plan(
    'train', archives.folder_of_classes(pictures).splits['train'], folder / 'again', 'jpeg', quality=85
  )
  shard.parts.mkdir(parents=True)
  files = [picture.read() for picture in shard.pictures]
  rates = {'bare': [], 'ours': []}
  for number in range(rounds + 1):
    start = time.perf_counter()
    for file in files:
      image_io.encode_jpeg(image_io.resize_and_crop(image_io.decode(file), 256), 85)
    middle = time.perf_counter()
    shard.make()
    end = time.perf_counter()
    if number:
      rates['bare'].append(len(files) / (middle - start))
      rates['ours'].append(len(files) / (end - middle))
  ratio = stats.median(o / b for o, b in zip(rates['ours'], rates['bare'], strict=True))
  median = {name: stats.median(values) for name, values in rates.items()}
  print(
    f'preparing on one core: {median["ours"]:.0f} pictures/s, decode + resize + encode alone {median["bare"]:.0f}; '
    f'ratio {ratio:.2f}'
  )
  return median | {'ratio': ratio}


def memory(folder, num_batches):
  """Watches the resident memory with an index as long as ImageNet's, whose images are those of the small dataset."""
  config = config_of(folder, 'jpeg')
  (source,) = sources.open_splits(config.data, 256, ['train'])

  class Repeated:
    def __len__(self):
      return IMAGENET_SIZE

    def read(self, indices):
      return source.read([index % len(source) for index in indices])

  gc.collect()
  batches, seen = endless(Repeated(), config), {'before': resident()}
  for number in range(1, num_batches + 1):
    next(batches)
    if number in (num_batches // 10, num_batches // 2, num_batches):
      seen[f'after {number}'] = resident()
  print(f'resident memory with {IMAGENET_SIZE:,} images, GiB: {seen}')
  return seen


def resident():
  """Resident memory of this process in GiB."""
  with open('/proc/self/statm') as statm:
    return round(int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**30, 3)


if __name__ == '__main__':
  main()
