"""Fixtures and functions that several test files use. All tests run on four simulated devices."""

import atexit
import contextlib
import gc
import importlib.metadata
import math
import os
import pathlib
import shutil
import tempfile

# Tests of small networks spend most of their time compiling. Without optimisation it takes a third of the time, and
# with XLA's older loops, which jax 0.11 does not have, a third of that. A cache lets tests reuse each other's programs.
# It is not retained: a process that a test kills may leave a truncated program in it.
if 'alexnet_jax-tests-' not in os.environ.get('JAX_COMPILATION_CACHE_DIR', ''):  # not a child process of a test
  flags = ['--xla_backend_optimization_level=1']
  if importlib.metadata.version('jax').startswith('0.10.'):
    flags.append('--xla_cpu_use_fusion_emitters=false')
  os.environ['XLA_FLAGS'] = ' '.join([*flags, os.environ.get('XLA_FLAGS', '')])
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='alexnet_jax-tests-')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

import jax
import numpy as np
import optax
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jax.experimental.compilation_cache import compilation_cache

jax.config.update('jax_num_cpu_devices', 4)

from alexnet_jax.data import sources  # noqa: E402
from alexnet_jax.data.pixel_statistics import PixelStatistics  # noqa: E402
from alexnet_jax.kernels import onednn  # noqa: E402
from alexnet_jax.models import device_mesh  # noqa: E402
from alexnet_jax.models.registry import build  # noqa: E402
from alexnet_jax.runs import run_folder  # noqa: E402
from alexnet_jax.runs.checkpoints import Checkpoints  # noqa: E402
from alexnet_jax.training import optimizer, step  # noqa: E402
from configs import alexnet  # noqa: E402

SHARED_DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'


def pytest_collection_modifyitems(items):
  """Moves the longest files to the start, so that the processes of `make test` end at the same time."""
  items.sort(key=lambda item: item.path.name not in ('test_compiler.py', 'test_loop.py'))


compiled = []  # one item for each program since `limit_memory_maps` last counted
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: compiled.append(event) if event == '/jax/core/compile/backend_compile_duration' else None
)


@pytest.fixture(autouse=True)
def limit_memory_maps():
  """Discards compiled programs in time: each takes up to 1,400 memory maps, and Linux limits a process to 65,530."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if len(compiled) > 8 and maps.exists():  # reading the list of maps after every test would take seconds
    compiled.clear()
    if maps.read_bytes().count(b'\n') > 40_000:
      jax.clear_caches()
      gc.collect()


@pytest.fixture(autouse=True, scope='session')
def isolated_cache(tmp_path_factory):
  """Prevents tests from reading and writing the user's cache."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='session')
def shared_data():
  """The folder of real data, which is not part of the project."""
  for part in ('tfds/cifar10', 'imagenette_subset'):
    if not (SHARED_DATA / part).is_dir():
      pytest.skip(f'{part} is missing: real CIFAR-10 and photographs are not part of the project')
  return SHARED_DATA


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """The folder in which the embedded digits are prepared once."""
  return tmp_path_factory.mktemp('tfds')


@pytest.fixture(scope='module')
def damaged_digits(data_dir, tmp_path_factory):
  """A folder with the digits, of which image 3 of the training set and image 8 of the test set cannot be read."""
  sources.open_splits(small_config(data_dir).data, 96, ['test'])  # prepares the digits
  folder = tmp_path_factory.mktemp('damaged') / 'tfds'
  shutil.copytree(data_dir / 'digits', folder / 'digits', ignore=shutil.ignore_patterns('*.npz'))
  for split, broken in (('train', 3), ('test', 8)):
    (file,) = folder.glob(f'digits/*/digits-{split}.array_record*')
    reader = ArrayRecordReader(str(file))
    records = reader.read_all()
    reader.close()
    records[broken] = records[broken].replace(b'PNG', b'GNP')
    writer = ArrayRecordWriter(str(file), 'group_size:1')
    for record in records:
      writer.write(record)
    writer.close()
  return folder


@pytest.fixture
def config(data_dir):
  """The default recipe with a network small enough for a test: 3 + 3 kernels in conv1, crops of 64 pixels."""
  return small_config(data_dir)


def small_config(data_dir, variants=''):
  """Returns the config of variants with a small network and a short run on one device."""
  config = alexnet.get_config(variants)
  config.data.dir = str(data_dir)
  config.model.image_size = 64
  config.model.width = 1 / 16
  config.batch_size = 8
  config.eval.batch_size = 32
  config.num_steps = 4
  config.mesh.data = config.mesh.tower = 1
  return config


@pytest.fixture(scope='session')
def trained_run(data_dir, tmp_path_factory):
  """The folder of a run of the small network on the digits, with random weights that classify images differently."""
  folder = tmp_path_factory.mktemp('runs') / 'small'
  config = small_config(data_dir)
  config.model.init_std = dict.fromkeys(config.model.init_std, 0.05)
  (train,) = sources.open_splits(config.data, 96, [config.data.train_split])
  run_folder.prepare(folder, config)
  mean_image = np.random.default_rng(0).uniform(60, 100, (96, 96, 3))
  run_folder.write_metadata(
    folder, config, PixelStatistics(mean_image, 1000 * np.eye(3), len(train)), train.class_names
  )
  with jax.set_mesh(mesh(1, 1)), contextlib.closing(Checkpoints(folder)) as checkpoints:
    network = build(config.model, 10)
    rule = optimizer.make_optimizer(config.optimizer, last_step=config.num_steps)
    checkpoints.save(7, step.init_state(jax.random.key(0), network=network, optimizer=rule), {})
  return folder


@pytest.fixture
def train_source(config):
  """The training split of the digits, at the stored size of the small network."""
  return sources.open_splits(config.data, 96, ['train'])[0]


@pytest.fixture
def one_device():
  """Makes a mesh of one device the current mesh."""
  single = mesh(1, 1)
  with jax.set_mesh(single):
    yield single


@pytest.fixture
def with_onednn():
  """Enables oneDNN for convolutions and products, without the compilation cache, which cannot store its programs."""
  if not onednn.is_available():
    pytest.skip(f'jaxlib {jax.lib.__version__} does not provide oneDNN on this machine')
  fields = ('compilation_cache_dir', 'enable_compilation_cache', 'remove_size_one_mesh_axis_from_type')
  before = {f'jax_{field}': getattr(jax.config, f'jax_{field}') for field in fields}
  jax.config.update('jax_compilation_cache_dir', None)
  onednn.enable()
  jax.clear_caches()  # of programs traced without oneDNN
  yield
  for field, value in before.items():
    jax.config.update(field, value)
  compilation_cache.reset_cache()
  jax.clear_caches()


@pytest.fixture
def as_on_gpu(monkeypatch):
  """Selects this project's code for GPUs, although XLA compiles it for the CPU."""
  jax.clear_caches()  # of programs traced for a CPU
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'default_backend', lambda: 'gpu')
    patch.setattr(onednn, 'is_available', lambda: False)  # which would remember this platform
    yield
  jax.clear_caches()


def scikit_digits():
  """The digits of scikit-learn, whose import takes half a second in every process that collects the tests."""
  from sklearn import datasets

  return datasets.load_digits()


def mostly_nightly(cases, *every_commit):
  """Returns the cases of a parametrised test; only those of `every_commit` run in `make test`, all in `test-all`."""
  assert set(every_commit) <= set(cases)
  return [case if case in every_commit else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@contextlib.contextmanager
def optimised():
  """Compiles with optimisation, for training runs that compute longer than they compile."""
  jax.clear_caches()  # of programs compiled without it
  jax.config.update('jax_disable_most_optimizations', False)
  try:
    yield
  finally:
    jax.config.update('jax_disable_most_optimizations', True)


def with_gradients(function, *inputs):
  """Computes a function of arrays and its gradients in one program, which compiles faster than single operations.

  Returns:
    The output, a random gradient of the output, and the resulting gradients of the inputs.
  """

  @jax.jit
  def run(*inputs):
    y, pull_back = jax.vjp(function, *inputs)
    dy = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
    return y, dy, pull_back(dy)

  return run(*inputs)


def random_params(network, dtype=np.float32):
  """Draws parameters as numpy arrays, with weights so large that all layers affect the logits."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    values = rng.normal(size=x.shape) * (math.sqrt(2 / math.prod(x.shape[1:-1])) if path[-1].key == 'kernel' else 0.1)
    return values.astype(dtype)

  return jax.tree.map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0)))


def velocities(opt_state):
  """Returns the velocities of all parameters, {'conv1': {'kernel': ..., 'bias': ...}, ...}."""

  def is_trace(node):
    return isinstance(node, optax.TraceState)

  arrays = {}
  for node in filter(is_trace, jax.tree.leaves(opt_state, is_leaf=is_trace)):  # one for each group of parameters
    for (layer, part), velocity in jax.tree.leaves_with_path(node.trace):
      arrays.setdefault(layer.key, {})[part.key] = velocity
  return arrays


def mesh(num_data, num_tower, batch_size=8):
  """Returns a mesh of simulated devices for a network of two towers."""
  return device_mesh.make_mesh(num_data, num_tower, num_towers=2, batches={'batch_size': batch_size})
