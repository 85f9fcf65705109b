"""Every command and Python block of the documentation runs, or is listed below with what it needs."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
  path.relative_to(ROOT).as_posix()
  for path in (
    *ROOT.glob('README*.md'),
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'notebooks/README.md',
    *ROOT.glob('docs/*.md'),
  )
]
MODULES = ['main.py', 'alexnet_jax/__main__.py', *(f'configs/{name}.py' for name in ('alexnet', 'cifar10'))]
MODULES += [f'alexnet_jax/data/imagenet/{name}.py' for name in ('prepare', 'builder')]
FENCE = re.compile(r'^(```+|:::+)(\S*).*\n((?:.*\n)*?)\1$', re.MULTILINE)
LANGUAGES = {'bash', 'python', 'text', 'bibtex', 'json'}

# Commands that are not run, and what they need. Make's targets are run by continuous integration.
NEEDS = {
  r'imagenet2012|ilsvrc20|fall20|prepare (2010|2012|synsets)|--config=2012': 'ImageNet',
  r'srun|mpirun|gcloud|--coordinator|--distributed|FlinkRunner': 'a cluster',
  r'cuda1[23]': 'a GPU',
  r'\.caffemodel|\.pth|runs/caffe': 'a file of another program',
  r':cifar10|configs/cifar10\.py|ilsvrc_2012': 'a download',
  r'figures curves': 'the curves of a training',
  r'^((\.venv/bin/)?pip|make|\.ci/run|git clone|python -m venv|beam/bin)': 'a package index',
  r'jupyter lab|tensorboard|alexnet_jax explore': 'a browser',
}
# What a training command of the documentation is given in addition, so that it trains a small network for two steps.
SHORT = (
  '--config.model.width=0.0625',
  '--config.model.image_size=64',
  '--config.batch_size=8',
  '--config.num_steps=2',
)


def blocks(page):
  """Yields the language and the text of every fenced block of a page, or of the commands in a module's docstring."""
  text = (ROOT / page).read_text()
  if page in MODULES:
    yield 'bash', '\n'.join(re.findall('^    (python .*)', text, re.MULTILINE))
  else:
    for _, language, block in FENCE.findall(text):
      yield language, block


def commands(page):
  """Yields the shell commands of a page or of a docstring, without comments, continued lines joined."""
  for language, text in blocks(page):
    if language == 'bash':
      for line in text.replace('\\\n', ' ').splitlines():
        command = re.sub(r'\s+# .*|^#.*', '', line).strip()
        if command:
          yield re.sub(r' {2,}', ' ', command)


def reason_not_to_run(command):
  """Returns what a command needs that tests do not have, or None."""
  return next((needed for pattern, needed in NEEDS.items() if re.search(pattern, command)), None)


def test_the_readme_fits_on_one_screen():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 130


def test_the_chinese_readme_has_the_same_code_links_and_figures():
  english, chinese = ((ROOT / name).read_text() for name in ('README.md', 'README.zh-CN.md'))

  def code(text):
    return [re.sub(r'#.*', '', block) for _, _, block in FENCE.findall(text)]

  assert code(chinese) == code(english)
  links = [sorted(re.findall(r'\]\((?!README)(\S+?)\)', text)) for text in (english, chinese)]
  assert links[0] == links[1]


@pytest.mark.parametrize('page', PAGES)
def test_blocks_have_a_language(page):
  for language, _ in blocks(page):
    assert language in LANGUAGES or re.fullmatch(r'\{[\w:-]+\}', language), language


@pytest.mark.parametrize('page', [page for page in PAGES if not page.startswith('docs/')])
def test_links_lead_to_files(page):
  """Sphinx checks those of the site."""
  for link in re.findall(r'\]\((?!http|#)([^)#\s]+)', (ROOT / page).read_text()):
    assert ((ROOT / page).parent / link).exists(), link


@pytest.fixture(scope='module')
def clone(trained_run, data_dir, tmp_path_factory):
  """A folder with the files of the project and those that the examples use: a run, photographs, a folder of classes."""
  folder = tmp_path_factory.mktemp('clone')
  for path in ROOT.iterdir():
    if path.name not in ('runs', 'build', '.git') and not path.name.startswith('.venv'):
      (folder / path.name).symlink_to(path)
  shutil.copytree(trained_run, folder / 'runs' / 'digits')
  shutil.copytree(data_dir, folder / 'tfds')
  rng = np.random.default_rng(0)
  names = ['cat.jpg', 'dog.jpg', 'digit.png', *(f'PHOTOGRAPHS/{i}.jpg' for i in range(3)), 'more/1.png']
  names += [
    f'FOLDER/{split}/{name}/{i}.jpg' for split in ('train', 'val') for name in ('rose', 'tulip') for i in range(9)
  ]
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(rng.integers(0, 256, (300, 280, 3), np.uint8)).save(folder / name)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  'page', [page for page in PAGES + MODULES if any(not reason_not_to_run(command) for command in commands(page))]
)
def test_commands_run(page, clone):
  path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  environment = os.environ | {'PATH': path, 'TFDS_DATA_DIR': str(clone / 'tfds')}
  for number, command in enumerate(commands(page)):
    if reason_not_to_run(command):
      continue
    if 'main.py' in command and '--mode' not in command:  # a training
      command = ' '.join((command, *SHORT))
      if '--workdir' not in command:
        command += f' --workdir=runs/{pathlib.Path(page).stem}-{number}'
    done = subprocess.run(
      ['bash', '-c', command], cwd=clone, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if any(language == 'python' for language, _ in blocks(page))])
def test_python_blocks_run(page, clone, monkeypatch):
  monkeypatch.chdir(clone)
  names = {}
  for language, text in blocks(page):
    if language == 'python':
      exec(text, names)


@pytest.mark.slow
def test_the_site_has_no_warnings_and_loads_nothing_from_elsewhere(tmp_path):
  """Executes the pages that request it; test_notebooks.py executes the notebooks."""
  pytest.importorskip('myst_nb')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'sphinx', '--fail-on-warning', '--keep-going', '--fresh-env'),
      *('-D', 'nb_execution_mode=off', '-D', f'nb_execution_cache_path={tmp_path / "cache"}'),
      *(ROOT / 'docs', tmp_path / 'html'),
    ],
    env=os.environ | {'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  for path in (tmp_path / 'html').rglob('*.html'):
    assert not re.findall(r'<(?:script|img|iframe|link)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', path.read_text()), path
