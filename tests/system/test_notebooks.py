"""The notebooks are stored without outputs, define no functions, and run from the first cell to the last."""

import ast
import itertools
import os
import pathlib
import re
import runpy
import sys

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NUM_FIGURES = {'01_train': 6, '02_two_towers': 1, '03_inside': 7, '04_finetune': 2, '05_ablate': 2}
SECONDS = 600
BADGES = runpy.run_path(str(ROOT / 'notebooks' / 'badges.py'))

every_notebook = pytest.mark.parametrize('name', NUM_FIGURES)


def read(name):
  return nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=nbformat.NO_CONVERT)


def code(notebook):
  """Parses all code cells; lines that start with % or ! become calls of IPython's functions."""
  python = [TransformerManager().transform_cell(cell.source) for cell in notebook.cells if cell.cell_type == 'code']
  return ast.parse('\n'.join(python))


def test_every_notebook_is_tested():
  assert sorted(path.stem for path in (ROOT / 'notebooks').glob('*.ipynb')) == sorted(NUM_FIGURES)


@every_notebook
def test_a_notebook_is_valid_and_has_no_outputs(name):
  notebook = read(name)
  nbformat.validate(notebook)
  assert notebook.nbformat == 4
  assert notebook.metadata.kernelspec.name == 'python3'
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert cell.outputs == []
      assert cell.execution_count is None


@every_notebook
def test_a_notebook_contains_no_absolute_path(name):
  for cell in read(name).cells:
    assert not re.search(r'(^|[\s\'"`(=])(~/|/\w|[A-Za-z]:[\\/])', cell.source, re.MULTILINE), cell.source


@every_notebook
def test_a_notebook_imports_the_project_and_few_libraries(name):
  nodes = list(ast.walk(code(read(name))))
  modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
  modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
  packages = {module.split('.')[0] for module in modules} - sys.stdlib_module_names
  assert packages <= {'alexnet_jax', 'configs', 'jax', 'clu', 'numpy', 'matplotlib'}


@every_notebook
def test_a_notebook_defines_nothing(name):
  definitions = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda
  assert not [node for node in ast.walk(code(read(name))) if isinstance(node, definitions)]


@every_notebook
def test_a_notebook_has_one_title_and_skips_no_heading(name):
  text = '\n'.join(cell.source for cell in read(name).cells if cell.cell_type == 'markdown')
  levels = [len(marks) for marks in re.findall(r'^(#+) ', text, re.MULTILINE)]
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@every_notebook
def test_the_first_code_cell_is_short(name):
  first = next(cell for cell in read(name).cells if cell.cell_type == 'code')
  assert first.source.startswith('REPOSITORY = ')
  assert len(first.source.splitlines()) <= 3


@every_notebook
def test_the_address_in_a_notebook_is_that_in_setup_cfg(name):
  text = (ROOT / 'notebooks' / f'{name}.ipynb').read_text()
  assert BADGES['fill_in'](text, f'{name}.ipynb', BADGES['read_url'](ROOT / 'setup.cfg')) == text


@every_notebook
def test_badges_come_and_disappear_with_the_address(name):
  def fill_in(text, url):
    return BADGES['fill_in'](text, f'{name}.ipynb', url)

  without = fill_in((ROOT / 'notebooks' / f'{name}.ipynb').read_text(), '')
  assert 'colab.research.google.com' not in without
  assert "REPOSITORY = ''" in without

  filled = fill_in(without, 'https://github.com/someone/alexnet')
  notebook = nbformat.reads(filled, as_version=nbformat.NO_CONVERT)
  nbformat.validate(notebook)
  title, empty, badge, *_ = notebook.cells[0].source.splitlines()
  assert title.startswith('# ')
  assert not empty
  assert badge.endswith(f'(https://colab.research.google.com/github/someone/alexnet/blob/main/notebooks/{name}.ipynb)')
  assert "REPOSITORY = 'https://github.com/someone/alexnet'" in filled

  assert fill_in(filled, 'https://github.com/someone/alexnet') == filled
  assert fill_in(filled, 'https://github.com/other/alexnet') == filled.replace('someone', 'other')
  assert fill_in(filled, '') == without
  elsewhere = fill_in(filled, 'https://example.org/alexnet.git')  # Colab opens notebooks from GitHub only
  assert elsewhere == without.replace("REPOSITORY = ''", "REPOSITORY = 'https://example.org/alexnet.git'")


@pytest.mark.slow
def test_the_notebook_on_two_towers_runs(tmp_path, monkeypatch):
  text, num_figures = run('02_two_towers', tmp_path, monkeypatch)
  assert num_figures == NUM_FIGURES['02_two_towers']
  assert re.findall(r'(\d) all-gathers', text) == ['0', '5', '5']
  no_communication = re.search(r'no_communication: .*', text, re.DOTALL)[0]
  assert re.findall(r'(\w+) +tower 0 changed', no_communication) == ['fc8']


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NUM_FIGURES if name != '02_two_towers'])
def test_a_notebook_runs(name, tmp_path, monkeypatch):
  _, num_figures = run(name, tmp_path, monkeypatch)
  assert num_figures == NUM_FIGURES[name]


def run(name, folder, monkeypatch):
  """Runs a copy with this Python and `folder` as home folder; returns its printed text and the number of figures."""
  for variable in ('JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'IPYTHONDIR'):
    monkeypatch.setenv(variable, str(folder / '.jupyter'))
  notebook = read(name)
  # Without kernel folders, the only kernel is that of this Python.
  manager = AsyncKernelManager(kernel_name='python3', kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
  client = NotebookClient(notebook, km=manager, timeout=SECONDS, resources={'metadata': {'path': str(folder)}})
  environment = os.environ | {'HOME': str(folder), 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}
  client.execute(env=environment, cleanup_kc=True)
  outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
  text = ''.join(output.text for output in outputs if output.output_type == 'stream' and output.name == 'stdout')
  return text, sum('image/png' in output.get('data', {}) for output in outputs)
