"""The project's own rules: one list of pins, imports that run one way."""

import ast
import configparser
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'alexnet_jax'
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')

# Each may import those before it. What comes up to `step` runs where TensorFlow, TFDS, grain and clu are not installed.
ORDER = [
  *('errors', 'cache', 'onednn', 'convolution', 'towers', 'layers', 'model', 'cifar', 'network', 'optimizer'),
  *('augment', 'step'),
  'memory',
  'files',
  'images',
  'drawing',
  'datasets',
  'data',
  'statistics',
  'fields',
  'workdir',
  'checkpoint',
  'processes',
  'stopping',
  'command',
  'trained',
  'architecture',
  'neighbours',
  'features',
  'interchange',
  'caffe',
  'torchvision',
  'onnx_graph',
  'weights',
  'scores',
  'predictions',
  'evaluate',
  'ensemble',
  'predict',
  'transfer',
  'progress',
  'train',
  'shards',
  'prepare',
  'figures',
  'inspection',
  'outcomes',
  'conclusions',
  'experiments',
  'claims',
  'reproduce',
]


def imports(path):
  """Yields what a module imports when it runs; imports for annotations alone do not count."""
  tree = ast.parse(path.read_text())
  tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test))]
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def modules():
  return sorted(path.stem for path in PACKAGE.glob('*.py') if path.stem != '__init__')


def test_every_module_has_its_place():
  assert sorted(set(modules()) | {'datasets'}) == sorted(ORDER)


@pytest.mark.parametrize('name', modules())
def test_imports_run_one_way(name):
  ours = {imported.split('.')[1] for imported in imports(PACKAGE / f'{name}.py') if imported.startswith('alexnet_jax.')}
  assert ours <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize('name', ORDER[: ORDER.index('step') + 1])
def test_up_to_the_step_only_jax_flax_and_optax_are_needed(name):
  found = {imported.split('.')[0] for imported in imports(PACKAGE / f'{name}.py')}
  assert found - sys.stdlib_module_names <= {'alexnet_jax', 'flax', 'jax', 'numpy', 'optax'}


@pytest.mark.parametrize('name', ['images', 'data', 'augment', 'statistics', 'workdir', 'fields'])
def test_the_pipeline_imports_no_jax(name):
  assert not any(imported.split('.')[0] in ('jax', 'flax') for imported in imports(PACKAGE / f'{name}.py'))


def test_configs_import_ml_collections_and_each_other():
  for path in (ROOT / 'configs').glob('*.py'):
    found = {imported.split('.')[0] for imported in imports(path)}
    assert found - sys.stdlib_module_names - {'configs'} == {'ml_collections'}


def test_requirements_are_exact_and_each_has_a_reason():
  for paragraph in re.split(r'\n(?=#)', (ROOT / 'requirements.txt').read_text().strip().split('\n\n', 1)[1]):
    reason, *pins = [line for line in paragraph.splitlines() if line]
    assert reason.startswith('# '), paragraph
    assert pins, paragraph
    assert all(re.fullmatch(r'[\w-]+==[\w.]+(; .*)?', pin) for pin in pins), paragraph


def test_extras_pin_the_same_jax_as_requirements():
  def pins(text):
    return dict(re.findall(r'^jax(?:\[\w+\])?==(\S+);\s*(python_version.*)$', text, re.MULTILINE))

  ours = pins((ROOT / 'requirements.txt').read_text())
  assert len(ours) == 2
  for extra in ('cuda12', 'cuda13'):
    assert pins(SETUP['options.extras_require'][extra]) == ours


def test_torch_is_pinned_alike_wherever_it_is_named():
  pins = {
    pin for extra in SETUP['options.extras_require'].values() for pin in re.findall(r'^torch==\S+', extra, re.MULTILINE)
  }
  assert len(pins) == 1
