"""Times the train step of the published network here and in PyTorch, and prints the ratio.

    make bench      or      python benchmarks/train_step.py --batch_size=32 --pairs=5

Each side is a process of its own, so that neither's threads or memory get in the other's way, and they take turns, so
that a machine whose speed drifts slows both. A turn is a few steps in a row, as in training: the first step after a
pause finds its threads asleep. The ratio is the median over the pairs; above 1 we are faster. PyTorch
runs the same network in channels_last with its own SGD; its normalisation takes all channels in one call, which costs
it less than one call for each group.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
CLASSES = 1000


def main():
  """Runs the pairs, or one side of them."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--pairs', type=int, default=5)
  parser.add_argument('--steps', type=int, default=3, help='steps in a turn')
  parser.add_argument('--warmup', type=int, default=3)
  parser.add_argument('--side', choices=['ours', 'torch'], help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    serve(options)
  else:
    compare(options)


def compare(options):
  """Lets the two sides take turns and prints the result as a table and as one line of JSON."""
  sides = {name: Side(name, options) for name in ('ours', 'torch')}
  seconds = {name: [] for name in sides}
  for number in range(options.warmup + options.pairs):
    for name, side in sides.items():
      elapsed = side.ask('step')
      if number >= options.warmup:
        seconds[name].append(elapsed)
  result = {
    'batch_size': options.batch_size,
    'pairs': options.pairs,
    'steps_per_turn': options.steps,
    'cores': os.cpu_count(),
    'seconds_per_step': {name: statistics.median(values) for name, values in seconds.items()},
    'ratio_to_torch': statistics.median(t / o for o, t in zip(seconds['ours'], seconds['torch'], strict=True)),
    'ratios': [t / o for o, t in zip(seconds['ours'], seconds['torch'], strict=True)],
    'compile_seconds': sides['ours'].ask('compile'),
    'peak_memory_gib': {name: side.ask('memory') for name, side in sides.items()},
    'versions': {name: side.ask('version') for name, side in sides.items()},
  }
  for name in sides:
    median = result['seconds_per_step'][name]
    print(
      f'{name:6} {result["versions"][name]:28} {median:7.3f} s a step  {options.batch_size / median:7.1f} images/s  '
      f'peak memory {result["peak_memory_gib"][name]:.2f} GiB'
    )
  print(f'ours is {result["ratio_to_torch"]:.2f} times as fast; compiled in {result["compile_seconds"]:.1f} s')
  print(json.dumps(result))


class Side:
  """A process that takes a step whenever it is asked to."""

  def __init__(self, name, options):
    command = [sys.executable, __file__, f'--side={name}', f'--batch_size={options.batch_size}']
    command.append(f'--steps={options.steps}')
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def ask(self, what):
    """Sends one word and returns the answer."""
    self._process.stdin.write(what + '\n')
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      sys.exit('one side ended before its time; what it said stands above.')
    return json.loads(answer)


def serve(options):
  """Answers the questions of `Side.ask`, one a line."""
  step, facts = {'ours': ours, 'torch': torch_step}[options.side](options.batch_size)
  for line in sys.stdin:
    match line.strip():
      case 'step':
        start = time.perf_counter()
        for _ in range(options.steps):
          step()
        answer = (time.perf_counter() - start) / options.steps
      case 'memory':  # the largest this process ever was; ru_maxrss is in KiB on Linux
        answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
      case fact:
        answer = facts[fact]
    print(json.dumps(answer), flush=True)


def ours(batch_size):
  """The train step of `python main.py`, on one device."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from alexnet_jax import model, optimizer, step, towers
  from configs import alexnet

  mesh = towers.make_mesh(1, 1, num_towers=2, batches={'batch_size': batch_size})
  jax.set_mesh(mesh)
  config = alexnet.paper()
  network = model.build(config.model, CLASSES)
  hyper = step.hyperparameters(config.optimizer)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (batch_size, 224, 224, 3), np.uint8),
    'mirrored': rng.integers(0, 2, batch_size).astype(bool),
    'mean_offset': rng.integers(0, 32, (batch_size, 2), np.int32),
    'mean_mirrored': rng.integers(0, 2, batch_size).astype(bool),
    'colour': np.zeros((batch_size, 3), np.float32),
    'scale': np.ones(batch_size, np.float32),
    'label': rng.integers(0, CLASSES, batch_size, np.int32),
  }
  state = step.init_state(jax.random.key(0), network=network, hyper=hyper)
  mean_image, key = jnp.full((256, 256, 3), 120.0), jax.random.key(1)
  config.optimizer.rate = 1e-4
  rates = optimizer.make_rates(config.optimizer, tuple(state.params), last_step=1).at(0, 0)
  constants = dict(network=network, hyper=hyper)

  lowered = step.train_step.lower(state, towers.put_batch(mesh, batch), mean_image, rates, key, **constants)
  start = time.perf_counter()
  compiled = lowered.compile()
  compile_seconds = time.perf_counter() - start

  def run():
    nonlocal state
    state, metrics = compiled(state, towers.put_batch(mesh, batch), mean_image, rates, key)
    float(metrics['loss'])

  return run, {'compile': compile_seconds, 'version': f'jax {jax.__version__}'}


def torch_step(batch_size):
  """The same network and update in PyTorch; pixels arrive as float, ready to use."""
  import torch
  import torch.nn.functional as F
  from torch import nn

  torch.manual_seed(0)
  network = nn.Sequential(
    nn.ZeroPad2d((0, 3, 0, 3)),
    *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2)),
    *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)),
    nn.MaxPool2d(3, 2),
    *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
    *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    nn.Flatten(),
    *(nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout()),
    *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
    nn.Linear(4096, CLASSES),
  ).to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.0005)
  images = torch.randn(batch_size, 3, 224, 224).contiguous(memory_format=torch.channels_last)
  labels = torch.randint(0, CLASSES, (batch_size,))

  def run():
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    loss.item()

  return run, {'version': f'torch {torch.__version__}'}


if __name__ == '__main__':
  main()
