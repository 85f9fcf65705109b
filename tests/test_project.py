"""The rules of the house: imports run one way, libraries have one room each, functions are short, words are English."""

import ast
import configparser
import pathlib
import re
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'alexnet_jax'
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')

# Each room may import those named behind it, besides itself.
ROOMS = {'runtime': (), 'kernels': ('runtime',), 'data': ('runtime',)}
ROOMS['models'] = ('kernels', *ROOMS['kernels'])
ROOMS['runs'] = ('models', 'data', *ROOMS['models'])
ROOMS['evaluation'] = ('runs', *ROOMS['runs'])
ROOMS['interop'] = ('evaluation', 'configs', *ROOMS['evaluation'])
ROOMS['training'] = ROOMS['analysis'] = ('interop', *ROOMS['interop'])
ROOMS['reproduction'] = ('training', 'analysis', *ROOMS['training'])
ROOMS['explore'] = ('analysis', *ROOMS['analysis'])
# The only room that may import a library.
HOMES = {
  'runs': ('orbax', 'tensorstore', 'tensorboard'),
  'analysis': ('matplotlib',),
  'interop': ('onnx', 'google', 'torch', 'safetensors'),
  'data': ('tensorflow_datasets', 'grain', 'PIL', 'simplejpeg', 'array_record', 'apache_beam', 'sklearn'),
  'training': ('optax', 'clu'),
  'explore': ('gradio',),
}
MAX_INNER_IMPORTS = 10
MAX_LINES, MAX_ARGUMENTS = 60, 6
EXCEPTIONS = {  # functions that are longer, or take more arguments
  'evaluation/inference.py:log_probs': 'jit takes arrays and static values one by one',
  'evaluation/inference.py:activations': 'jit takes arrays and static values one by one',
  'models/layers.py:Conv.__init__': 'the hyperparameters of a layer, as in Flax',
  'models/layers.py:LocalConv.__init__': 'the hyperparameters of a layer, as in Flax',
  'kernels/onednn.py:_conv': "the dimensions and window of oneDNN's configuration",
  'kernels/fast_response_norm.py:_backward': 'the arguments of a custom_vjp are those of its function',
}

# Turns of phrase that are not used; the plan of the project's vocabulary is in CONTRIBUTING.md.
BANNED = (
  r'\bgo(es)? on\b',
  r'\bgoing on\b',
  r'\bwent on\b',
  r'\bsays?\b',
  r'\bsaid\b',
  r'\btold\b',
  r'\bwhoever\b',
  r'\bset(s)? beside\b',
  r'\bstands? (in|beside|there)\b',
  r'\bfrom now on\b',
  r'\bhang(s)? on\b',
  r'\bhand(s|ed)? on\b',
  r'\blook(s|ed)? (at|for|through)\b',
)


def imports(path):
  """Yields (name, node, whether at the top) of what a module imports when it runs, annotations aside."""
  tree = ast.parse(path.read_text())
  body = [node for node in tree.body if not (isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test))]
  for statement in body:
    for node in ast.walk(statement):
      if isinstance(node, ast.Import):
        yield from ((alias.name, node, node is statement) for alias in node.names)
      elif isinstance(node, ast.ImportFrom):
        yield from ((f'{node.module}.{alias.name}', node, node is statement) for alias in node.names)


def modules(room=''):
  """Returns the modules of a room; of none: of the whole package. The configs are not code."""
  return sorted(path for path in (PACKAGE / room).rglob('*.py') if 'configs' not in path.relative_to(ROOT).parts[:2])


def functions(path):
  """Yields (qualified name, node) of all functions of a module."""

  def walk(node, prefix):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.FunctionDef | ast.ClassDef):
        name = f'{prefix}{child.name}'
        if isinstance(child, ast.FunctionDef):
          yield name, child
        yield from walk(child, f'{name}.')

  yield from walk(ast.parse(path.read_text()), '')


@pytest.mark.parametrize('room', ROOMS)
def test_imports_run_one_way(room):
  ours = {
    (str(path.relative_to(PACKAGE)), name.split('.')[1])
    for path in modules(room)
    for name, _, _ in imports(path)
    if name.startswith('alexnet_jax.')
  }
  assert not {(path, imported) for path, imported in ours if imported not in (room, *ROOMS[room])}


def test_every_room_is_known():
  folders = {path.parent.relative_to(PACKAGE).parts[0] for path in modules() if path.parent != PACKAGE}
  assert folders == set(ROOMS)


@pytest.mark.parametrize('room', ['kernels', 'models'])
def test_networks_need_jax_and_flax_alone(room):
  files = [path for path in modules(room) if path.name != 'registry.py']  # which builds networks from configs
  found = {name.split('.')[0] for path in files for name, _, _ in imports(path)}
  assert found - sys.stdlib_module_names <= {'alexnet_jax', 'flax', 'jax', 'numpy'}


def test_data_imports_no_jax():
  assert not {name for path in modules('data') for name, _, _ in imports(path) if name.split('.')[0] in ('jax', 'flax')}


@pytest.mark.parametrize(('room', 'library'), [(room, library) for room in HOMES for library in HOMES[room]])
def test_a_library_has_one_room(room, library):
  found = {
    path.relative_to(PACKAGE).parts[0]
    for path in modules()
    for name, _, _ in imports(path)
    if name.split('.')[0] == library
  }
  assert found == {room}


def test_imports_inside_functions_are_few_and_each_has_a_reason():
  inner = {(path, node) for path in modules() for _, node, is_top in imports(path) if not is_top}
  assert len(inner) <= MAX_INNER_IMPORTS
  without = [path for path, node in inner if '  # ' not in path.read_text().splitlines()[node.lineno - 1]]
  assert not without


def test_functions_are_short():
  long = {}
  for path in modules():
    for name, node in functions(path):
      arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      num_arguments = sum(argument.arg not in ('self', 'cls') for argument in arguments)
      num_lines = node.end_lineno - node.lineno + 1
      if num_lines > MAX_LINES or num_arguments > MAX_ARGUMENTS:
        long[f'{path.relative_to(PACKAGE)}:{name}'] = (num_lines, num_arguments)
  assert long.keys() == EXCEPTIONS.keys(), long


def test_main_fits_on_a_screen():
  assert len((ROOT / 'main.py').read_text().splitlines()) <= 60


def test_only_kernels_know_the_platform():
  found = {
    path.relative_to(PACKAGE).parts[0]
    for path in modules()
    if re.search(r'\b(default_backend|optimization_barrier)\b', path.read_text())
  }
  assert found <= {'kernels'}


def test_no_module_has_the_name_of_a_library():
  known = sys.stdlib_module_names | {
    'torchvision',
    'onnx',
    'safetensors',
    'caffe',
    'grain',
    'optax',
    'clu',
    'metrics_lib',
  }
  assert not {path.stem for path in modules() if path.stem not in ('__init__', '__main__')} & known


def texts():
  """Returns the files whose words count: code, tests, configs, documentation."""
  folders = ('alexnet_jax', 'configs', 'tests', 'benchmarks')
  code = [path for folder in folders for path in (ROOT / folder).rglob('*.py')]
  return [*code, ROOT / 'main.py', *ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'), *(ROOT / 'notebooks').glob('*.*')]


@pytest.mark.parametrize('pattern', BANNED)
def test_banned_words_are_not_used(pattern):
  found = [
    f'{path.relative_to(ROOT)}:{number}: {line.strip()}'
    for path in texts()
    if path != pathlib.Path(__file__).resolve()
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(pattern, line, re.IGNORECASE)
  ]
  assert not found, '\n'.join(found[:20])


def test_configs_import_ml_collections_and_each_other():
  for path in (ROOT / 'configs').glob('[a-z]*.py'):
    found = {name.split('.')[0] for name, _, _ in imports(path)}
    assert found - sys.stdlib_module_names - {'alexnet_jax'} == {'ml_collections'}


def test_requirements_are_exact_and_each_has_a_reason():
  for paragraph in re.split(r'\n(?=#)', (ROOT / 'requirements.txt').read_text().strip().split('\n\n', 1)[1]):
    if not re.search('^[^#]', paragraph, re.MULTILINE):
      continue  # the first line of a longer reason
    reason, *pins = [line for line in paragraph.splitlines() if line]
    assert reason.startswith('# '), paragraph
    assert pins, paragraph
    assert all(re.fullmatch(r'[\w-]+==[\w.]+(; .*)?', pin) for pin in pins), paragraph


def test_the_ranges_of_the_core_and_of_train_contain_the_tested_set():
  def requirements(text):
    return [Requirement(line) for line in text.splitlines() if re.match(r'\w', line)]

  train = SETUP['options.extras_require']['train']
  ranges = {
    requirement.name: requirement.specifier
    for requirement in requirements(SETUP['options']['install_requires'] + train)
  }
  ranges['tensorflow-cpu'] = ranges['tensorflow']  # the same package, without its code for GPUs
  pins = requirements((ROOT / 'requirements.txt').read_text())
  assert {pin.name for pin in pins} == ranges.keys()
  assert not [str(pin) for pin in pins if not ranges[pin.name].contains(str(pin.specifier).removeprefix('=='))]


def test_torch_is_pinned_alike_wherever_it_is_named():
  pins = {
    pin for extra in SETUP['options.extras_require'].values() for pin in re.findall(r'^torch==\S+', extra, re.MULTILINE)
  }
  assert len(pins) == 1
