"""Compares the speed of the published network with that of PyTorch, and with the machine's peak matmul rate.

    make bench      or      python benchmarks/speed.py --batch_sizes=32,128 --rounds=7 --peers='torch compiled,openvino'
    python benchmarks/speed.py --scaling          two devices, with a tower or half of the batch each, against one
    python benchmarks/speed.py --feeding          batches copied from the host against batches on the device
    python benchmarks/speed.py --layers           the time of each layer

Each side of a comparison is a separate process, since threads and memory of one would slow the other. The sides take
turns, since the speed of a machine drifts. A turn is several consecutive steps, as in training, after one untimed step:
during a pause, a virtual machine may return memory to its host, and the next step takes up to twice its time. On a CPU,
the time of a turn is the median of its steps, because other users of the machine disturb single steps. The results are
medians over the rounds, and medians of the ratios within a round. A ratio above 1 means that we are faster.

PyTorch runs the same network with its fastest options: channels_last, fused SGD, `torch.inference_mode`, eager and
compiled, all cores; on a GPU also TF32, bf16 autocast and cudnn.benchmark. Its normalisation covers all channels in one
call, which is faster than one call per group. Compiled for a GPU, the normalisation is a sum of shifted slices in
float32, which PyTorch's compiler fuses with its neighbours, unlike PyTorch's own layer. (Compiled for a CPU, that layer
is faster: a step of 32 images takes 1,235 ms, with slices 1,297. Slices in eager mode on a GPU were not tried.) Batches
are on the device. PyTorch's pixels are float32 and ready to use; ours are uint8, and are mirrored, shifted and scaled
in the step. All sides use huge pages if ours does (see alexnet_jax/runtime/host_memory.py), which PyTorch alone would
not; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 disables them.

On a CPU, inference is compared with more peers: PyTorch compiled with frozen weights, and OpenVINO (in float32) and
ONNX Runtime, both of which run the graph that `weights export` writes. 'plain jax' is this network as its layers define
it, without fast kernels. The table names the fastest peer of each row.

On a GPU, both compute in bfloat16 (`model.dtype`, autocast), the batch sizes include 512 and 2048, and the memory is
the GPU's. The steps of a turn are queued and awaited together, which measures the device instead of the host.

The peak matmul rate is that of matrix products in the same precision, the better of JAX's and PyTorch's, measured in
the same rounds. The products of a train step take 4.136 GFLOP per image, those of inference 1.449 (two operations per
multiplication of figure 2's layers; a train step computes three products per layer, but no gradient of the images).
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from alexnet_jax.kernels import dispatch
from alexnet_jax.runtime import host_memory

CLASSES = 1000
GFLOP = {'train': 4.136, 'inference': 1.449}  # per image
BATCH_SIZES = {'cpu': (1, 32, 128), 'gpu': (1, 32, 128, 512, 2048)}
MATMUL_SIDES = {'cpu': 2048, 'gpu': 8192}
SECONDS_PER_TURN, MIN_STEPS, MAX_STEPS = 2, 3, 200
PEERS = {
  ('cpu', 'train'): ('torch', 'torch compiled', 'plain jax'),
  ('cpu', 'inference'): ('torch', 'torch compiled', 'torch frozen', 'openvino', 'onnxruntime', 'plain jax'),
  ('gpu', 'train'): ('torch', 'torch compiled'),
  ('gpu', 'inference'): ('torch', 'torch compiled'),
}
ONNX_RUNTIMES = ('openvino', 'onnxruntime')
SCALING = ('ours', 'ours, tower 2', 'ours, data 2')
FEEDING = ('ours', 'ours, from the host')
DEVICES = {'ours, tower 2': (1, 2), 'ours, data 2': (2, 1)}  # data x tower; the others use 1 x 1


def main():
  """Runs the comparison or, with `--side`, one side of it."""
  host_memory.configure_malloc()
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batch_sizes', type=sizes, default='', help='default: 1,32,128, on a GPU also 512,2048')
  parser.add_argument('--tasks', type=names_among(GFLOP), help='default: train,inference')
  parser.add_argument('--rounds', type=positive, default=7, help='number of rounds (%(default)s)')
  all_peers = list(dict.fromkeys(name for names in PEERS.values() for name in names))
  parser.add_argument('--peers', type=names_among(all_peers), help=f'default: {",".join(all_peers)}')
  modes = parser.add_mutually_exclusive_group()
  modes.add_argument('--scaling', action='store_true', help='compare two simulated CPU devices with one')
  modes.add_argument('--feeding', action='store_true', help='compare batches from the host with batches on the device')
  modes.add_argument('--layers', action='store_true', help='print the time of each layer')
  parser.add_argument('--output', type=pathlib.Path, help='JSON file to write the results to')
  parser.add_argument('--side', nargs=3, metavar=('NAME', 'TASK', 'BATCH_SIZE'), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    with contextlib.suppress(BrokenPipeError):  # the main process has exited
      serve(*options.side)
    return
  if options.peers and (options.scaling or options.feeding or options.layers):
    parser.error('--peers has no effect with --scaling, --feeding and --layers')
  if options.layers and (options.tasks or options.output):
    parser.error('--tasks and --output have no effect with --layers')
  if options.feeding and options.tasks not in (None, ['train']):
    parser.error('--feeding measures training alone')
  options.tasks = options.tasks or (['train'] if options.feeding else list(GFLOP))
  has_peers = not (options.scaling or options.feeding or options.layers)
  options.peers = (options.peers or all_peers) if has_peers else []
  required = [] if options.layers else ['torch', *(name for name in ONNX_RUNTIMES if name in options.peers)]
  if missing := [name for name in required if not importlib.util.find_spec(name)]:
    sys.exit(f'{", ".join(missing)} is not installed; `make bench` sets it up, or: pip install -e .[bench]')
  probe = Side('matmul ours', '', 0)
  platform = probe.receive()
  probe.close()
  batch_sizes = options.batch_sizes or BATCH_SIZES[platform]
  if options.layers:
    for batch_size in batch_sizes:
      print_layer_times(batch_size, options.rounds)
  else:
    report(options, batch_sizes, platform)


def names_among(valid):
  """Returns a function that parses names separated by commas."""

  def parse(text):
    names = text.split(',')
    if unknown := [name for name in names if name not in valid]:
      raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of: {', '.join(valid)}")
    return names

  return parse


def sizes(text):
  """Parses batch sizes separated by commas."""
  return [positive(size) for size in text.split(',') if size]


def positive(text):
  """Parses a positive integer."""
  if int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text} is less than 1')
  return int(text)


def select_sides(options, task, platform):
  """Returns the names of the sides to compare; the first is ours."""
  if options.scaling or options.feeding:
    return SCALING if options.scaling else FEEDING
  names = [name for name in PEERS[platform, task] if name in options.peers]
  if not names:
    sys.exit(f'--peers has no peer of {task} on a {platform}: {", ".join(PEERS[platform, task])}')
  return ('ours', *names)


def report(options, batch_sizes, platform):
  """Prints a Markdown table for each task, row by row as measured, and writes the times of all rounds as JSON."""
  cases = []
  sides = {task: select_sides(options, task, platform) for task in options.tasks}
  for task, names in sides.items():
    header = [task, *(f'{name}, images/s' for name in names), 'ours of the peak matmul rate']
    header += [*(f'ours / {name}' for name in names[1:]), 'fastest peer', 'first step, s', 'peak memory, GiB']
    print('| ' + ' | '.join(header) + ' |')
    print('| --- ' * len(header) + '|', flush=True)
    for batch_size in batch_sizes:
      cases.append(compare(task, batch_size, names, options.rounds, MATMUL_SIDES[platform]))
      print('| ' + ' | '.join(make_row(cases[-1], names)) + ' |', flush=True)
      if options.output:
        options.output.write_text(json.dumps(summarise(options, cases), indent=1) + '\n')
    print()
  peaks = [case['matmul_gflops'] for case in cases]
  print(f'peak matmul rate: {statistics.median(peaks):.0f} GFLOP/s ({min(peaks):.0f} to {max(peaks):.0f})')


def make_row(case, names):
  """Returns the cells of a row."""
  sides = case['sides']
  return [
    str(case['batch_size']),
    *(f'{sides[name]["images_per_second"]:.1f}' for name in names),
    f'{100 * case["fraction_of_limit"]:.0f} %',
    *(f'{sides[name]["ratio"]:.2f}' for name in names[1:]),
    min(names[1:], key=lambda name: sides[name]['ratio']),
    ' / '.join(f'{sides[name]["first_step_seconds"]:.0f}' for name in names),
    ' / '.join(f'{sides[name]["peak_memory_gib"]:.2f}' for name in names),
  ]


def summarise(options, cases):
  """Returns the results and the conditions in which they were measured, for JSON."""
  return {
    'date': str(datetime.date.today()),
    'cores': os.cpu_count(),
    'hardware': hardware(),
    'rounds': options.rounds,
    'malloc': os.environ.get('GLIBC_TUNABLES', ''),
    'cases': cases,
  }


def compare(task, batch_size, names, rounds, matmul_side):
  """Measures all sides in turns, for one task and batch size."""
  print(f'{task}, batch {batch_size}', file=sys.stderr, flush=True)
  sides = {name: Side(name, task, batch_size) for name in names}
  matmuls = {name: Side(f'matmul {name}', task, batch_size) for name in ('ours', 'torch')}
  times = {side: [] for side in (*sides.values(), *matmuls.values())}
  for side in times:
    side.receive()
  for side in times:
    side.start()
  for number in range(-1, rounds):
    for side, seconds in times.items():
      turn = side.query('turn')
      if number >= 0:  # the first turn warms up
        seconds.append(turn)
  ours = times[sides[names[0]]]
  peak = max(2e-9 * matmul_side**3 / statistics.median(times[side]) for side in matmuls.values())
  images_per_second = batch_size / statistics.median(ours)
  result = {
    'task': task,
    'batch_size': batch_size,
    'matmul_gflops': peak,
    'fraction_of_limit': GFLOP[task] * images_per_second / peak,
    'sides': {
      name: {
        'images_per_second': batch_size / statistics.median(times[side]),
        'seconds': times[side],
        'ratio': statistics.median(t / our_t for our_t, t in zip(ours, times[side], strict=True)),
        'peak_memory_gib': side.query('memory'),
        'first_step_seconds': side.query('first step'),
        'version': side.query('version'),
      }
      for name, side in sides.items()
    },
  }
  for side in times:
    side.close()
  return result


class Side:
  """A process that measures one side. It first sends its platform, and then answers queries."""

  def __init__(self, name, task, batch_size):
    self._name = name
    data, tower = DEVICES.get(name, (1, 1))
    self._process = subprocess.Popen(
      [sys.executable, __file__, '--side', name, task, str(batch_size)],
      env=os.environ
      | {
        'JAX_NUM_CPU_DEVICES': str(data * tower),
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        'TORCHINDUCTOR_FREEZING': str(int(name == 'torch frozen')),
        dispatch.VARIABLE: str(int(name != 'plain jax')),
      },
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def start(self):
    """Runs the first step, which compiles on all cores, and waits for it."""
    print(f'  {self._name}: first step after {self.query("start"):.0f} s', file=sys.stderr, flush=True)

  def query(self, message):
    """Sends a line and returns the answer."""
    with contextlib.suppress(BrokenPipeError):  # `receive` reports it
      self._process.stdin.write(message + '\n')
      self._process.stdin.flush()
    return self.receive()

  def receive(self):
    """Waits for an answer and returns it."""
    answer = self._process.stdout.readline()
    if not answer:
      sys.exit(f'{self._name} exited early; its error message is above.')
    return json.loads(answer)

  def close(self):
    """Ends the process, which frees its memory."""
    self._process.stdin.close()
    self._process.wait()


def serve(name, task, batch_size):
  """Sends the platform, and then answers the queries of `Side.query`, one per line."""
  about, wait = about_jax, wait_for_jax
  if 'torch' in name:
    about, wait = about_torch, wait_for_torch
  elif name in ONNX_RUNTIMES:
    about, wait = functools.partial(about_runtime, name), lambda _: None
  platform = about()['platform']
  print(json.dumps(platform), flush=True)
  if not sys.stdin.readline():  # the main process closed the pipe: it needs only the platform, or another side failed
    return
  kind, _, framework = name.partition(' ')
  if kind == 'matmul':
    step = make_matmul(framework)
  elif kind == 'torch':
    step = make_torch_step(task, int(batch_size), compiled=framework != '')
  elif name in ONNX_RUNTIMES:
    step = make_onnx_step(name, int(batch_size))
  else:
    step = make_our_step(task, int(batch_size), *DEVICES.get(name, (1, 1)), from_host='host' in name)

  def run(num_steps):
    for _ in range(num_steps):
      result = step()
    wait(result)

  def turn():
    if platform == 'cpu':  # each step by itself; JAX would run two steps at a time on a CPU
      return statistics.median(elapsed(lambda: run(1)) for _ in range(num_steps))
    return elapsed(lambda: run(num_steps)) / num_steps

  first = elapsed(lambda: run(1))  # compiles
  num_steps = max(MIN_STEPS, min(MAX_STEPS, round(SECONDS_PER_TURN / elapsed(lambda: run(1)))))
  print(json.dumps(first), flush=True)
  for line in sys.stdin:
    match line.strip():
      case 'turn':
        run(1)
        answer = turn()
      case 'first step':
        answer = first
      case fact:
        answer = about()[fact]
    print(json.dumps(answer), flush=True)


def about_jax():
  """Returns version, platform and peak memory (GiB) of JAX."""
  import jax

  device = jax.devices()[0]
  memory = peak_memory() if device.platform == 'cpu' else device.memory_stats()['peak_bytes_in_use'] / 2**30
  return {'version': f'jax {jax.__version__}, {device.device_kind}', 'platform': device.platform, 'memory': memory}


def about_torch():
  """Returns version, platform and peak memory (GiB) of PyTorch."""
  import torch

  has_gpu = torch.cuda.is_available()
  memory = torch.cuda.max_memory_allocated() / 2**30 if has_gpu else peak_memory()
  return {'version': f'torch {torch.__version__}', 'platform': 'gpu' if has_gpu else 'cpu', 'memory': memory}


def about_runtime(name):
  """Returns version, platform and peak memory (GiB) of a runtime of ONNX graphs."""
  return {'version': f'{name} {importlib.metadata.version(name)}', 'platform': 'cpu', 'memory': peak_memory()}


def wait_for_jax(result):
  """Waits until JAX has computed a result."""
  import jax

  jax.block_until_ready(result)


def wait_for_torch(_):
  """Waits until PyTorch has finished all computations."""
  import torch

  if torch.cuda.is_available():
    torch.cuda.synchronize()


def peak_memory():
  """Returns the peak resident memory of this process, GiB."""
  # On Linux, ru_maxrss is in KiB.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def elapsed(function):
  """Returns the duration of a call, seconds."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def make_our_step(task, batch_size, num_data, num_tower, *, from_host):
  """Returns a function that dispatches a train step of `python main.py`, or the forward pass."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from alexnet_jax.kernels import onednn
  from alexnet_jax.models import device_mesh
  from alexnet_jax.models.registry import build
  from alexnet_jax.training import optimizer, step
  from configs import alexnet as recipes

  if dispatch.is_enabled():
    onednn.enable()
  host_memory.trim_after_compiling()
  mesh = device_mesh.make_mesh(num_data, num_tower, num_towers=2, batches={'batch_size': batch_size})
  jax.set_mesh(mesh)
  config = recipes.paper()
  config.model.dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  network = build(config.model, CLASSES)
  config.optimizer.rate = 1e-4
  rule = optimizer.make_optimizer(config.optimizer, last_step=1)
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
  state = step.init_state(jax.random.key(0), network=network, optimizer=rule)
  mean_image, key = jnp.full((256, 256, 3), 120.0), jax.random.key(1)

  if task == 'inference':
    apply, params = jax.jit(network.apply), jax.jit(network.arrange_for_inference)(state.params)
    images = device_mesh.put_batch(mesh, batch['image'].astype(np.float32) - 120)
    del state
    return lambda: apply(params, images)

  if from_host:
    batches = device_mesh.prefetch_to_devices(mesh, itertools.repeat(batch))
  else:
    batches = itertools.repeat(device_mesh.put_batch(mesh, batch))

  def train():
    nonlocal state
    state, _ = step.train_step(state, next(batches), mean_image, key, network=network, optimizer=rule)
    return state

  return train


def make_torch_step(task, batch_size, *, compiled):
  """Returns a function that dispatches a train step or the forward pass in PyTorch."""
  import torch
  import torch.nn.functional as F
  from torch import nn

  device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  torch.manual_seed(0)

  class SlicedNorm(nn.Module):
    def forward(self, x):
      x32 = x.float()
      squares = F.pad(x32 * x32, (0, 0, 0, 0, 2, 2))
      root = (2 + 1e-4 * sum(squares[:, i : i + x.shape[1]] for i in range(5))).rsqrt()
      return (x32 * root * root.sqrt()).to(x.dtype)

  is_fused = compiled and device.type == 'cuda'
  norms = [SlicedNorm() if is_fused else nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0) for _ in range(2)]
  network = nn.Sequential(
    nn.ZeroPad2d((0, 3, 0, 3)),
    *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), norms[0], nn.MaxPool2d(3, 2)),
    *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norms[1], nn.MaxPool2d(3, 2)),
    *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
    *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    nn.Flatten(),
    *(nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout()),
    *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
    nn.Linear(4096, CLASSES),
  ).to(device, memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.0005, fused=True)
  images = torch.randn(batch_size, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
  labels = torch.randint(0, CLASSES, (batch_size,), device=device)
  network.train(task == 'train')
  call = torch.compile(network) if compiled else network

  def train():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
      loss = F.cross_entropy(call(images), labels)
    loss.backward()
    optimizer.step()

  def infer():
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
      call(images)

  return train if task == 'train' else infer


def make_onnx_step(name, batch_size):
  """Returns a function that computes the forward pass of the exported graph in ONNX Runtime or OpenVINO."""
  import numpy as np

  from alexnet_jax.interop import layout, onnx_files
  from configs import alexnet as recipes

  config, rng = recipes.paper(), np.random.default_rng(0)
  shapes = layout.tensor_shapes(config.model, CLASSES)
  tensors = {name: rng.normal(0, 0.01, shape).astype(np.float32) for name, shape in shapes.items()}
  mean_image = np.full((256, 256, 3), 120, np.float32)
  class_names = [str(label) for label in range(CLASSES)]
  graph = onnx_files.make_model(layout.Weights(config, tensors, mean_image, class_names, 0)).SerializeToString()
  images = rng.integers(0, 256, (batch_size, 224, 224, 3)).astype(np.float32)
  if name == 'onnxruntime':
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
    return lambda: session.run(['logits'], {'images': images})
  import openvino

  core = openvino.Core()
  model = core.read_model(graph)
  model.reshape(images.shape)
  hints = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
  request = core.compile_model(model, 'CPU', hints).create_infer_request()
  return lambda: request.infer({'images': images}, share_inputs=True)


def make_matmul(framework):
  """Returns a function that dispatches a product of two square matrices, float32, or bfloat16 on a GPU."""
  if framework == 'torch':
    import torch

    has_gpu = torch.cuda.is_available()
    side = MATMUL_SIDES['gpu' if has_gpu else 'cpu']
    a, b = (torch.randn(side, side) for _ in range(2))
    if has_gpu:
      a, b = (x.to('cuda', torch.bfloat16) for x in (a, b))
    return lambda: torch.mm(a, b)
  import jax
  import jax.numpy as jnp

  on_cpu = jax.default_backend() == 'cpu'
  side, dtype = MATMUL_SIDES[jax.default_backend()], jnp.float32 if on_cpu else jnp.bfloat16
  a, b = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
  product = jax.jit(lambda a, b: a @ b)
  return lambda: product(a, b)


def print_layer_times(batch_size, rounds):
  """Prints a Markdown table of the time of each layer, including its normalisation."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from alexnet_jax.kernels import onednn
  from alexnet_jax.models import alexnet, device_mesh, towers
  from configs import alexnet as recipes

  onednn.enable()
  jax.set_mesh(device_mesh.make_mesh(1, 1, num_towers=2, batches={'batch_size': batch_size}))
  config = recipes.paper().model
  module = jax.jit(lambda: nnx.state(alexnet.AlexNet(config, CLASSES, rngs=nnx.Rngs(0))))()
  graph = nnx.graphdef(nnx.eval_shape(lambda: alexnet.AlexNet(config, CLASSES, rngs=nnx.Rngs(0))))

  def apply(state, x, *, name):
    network = nnx.merge(graph, state)
    return network.pool(name.replace('pool', 'conv'), x) if name.startswith('pool') else network.layer(name, x)

  def median(function, *arguments):
    jax.block_until_ready(function(*arguments))
    return statistics.median(
      elapsed(lambda: jax.block_until_ready(function(*arguments))) for _ in range(max(rounds, 3))
    )

  x = jax.random.normal(jax.random.key(0), (batch_size, 224, 224, 3), out_sharding=towers.BATCH)
  print(
    f'| batch {batch_size} | forward, ms | GFLOP/s | forward and backward, ms | GFLOP/s |\n',
    '| --- ' * 5 + '|',
    sep='',
  )
  for name in ('conv1', 'pool1', 'conv2', 'pool2', 'conv3', 'conv4', 'conv5', 'pool5', 'fc6', 'fc7', 'fc8'):
    forward = jax.jit(functools.partial(apply, name=name))
    y = forward(module, x)
    # Gradients with respect to the layer's weights, and to its inputs unless those are the images.
    weights = nnx.State({name: module[name]}) if name in module else nnx.State({})
    rest = nnx.State({key: value for key, value in module.items() if key != name})

    def backward(weights, x, dy, name=name, rest=rest):
      _, vjp = jax.vjp(lambda weights, x: apply(nnx.merge_state(weights, rest), x, name=name), weights, x)
      return vjp(dy)[: 1 if name == 'conv1' else 2]

    seconds, both = median(forward, module, x), median(jax.jit(backward), weights, x, y)
    kernel = module[name]['kernel'] if name in module else None
    gflop = (
      0 if kernel is None else 2e-9 * batch_size * kernel[...].size * (y.shape[2] * y.shape[3] if y.ndim == 5 else 1)
    )
    gflops = [
      f'{factor * gflop / t:.0f}' if gflop else '' for factor, t in ((1, seconds), (2 if name == 'conv1' else 3, both))
    ]
    print(f'| {name} | {1e3 * seconds:.1f} | {gflops[0]} | {1e3 * both:.1f} | {gflops[1]} |')
    x = jnp.copy(y)


def hardware():
  """Returns the name of the processor, or 'unknown' if the system is not Linux."""
  cpu = pathlib.Path('/proc/cpuinfo')
  lines = cpu.read_text().splitlines() if cpu.exists() else []
  return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), 'unknown')


if __name__ == '__main__':
  main()
