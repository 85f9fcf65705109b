"""The command line of main.py, in separate processes."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from alexnet_jax.kernels import onednn
from alexnet_jax.runtime import compilation_cache
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.training import loop
from tests.conftest import small_config

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments, devices=1, **environment):
  return subprocess.run(
    [sys.executable, 'main.py', *arguments],
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)} | environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


TINY = (
  '--config.model.image_size=64',
  '--config.model.width=0.0625',
  '--config.batch_size=8',
  '--config.num_steps=3',
  '--config.log_every=1',
  '--config.eval.ten_view=False',
)


@pytest.mark.slow
def test_a_run_trained_on_more_devices_predicts_on_the_devices_of_this_machine(trained_run, tmp_path):
  folder = shutil.copytree(trained_run, tmp_path / 'run')
  config = json.loads((folder / 'config.json').read_text())
  config['mesh'] = {'data': 4, 'tower': 2}
  (folder / 'config.json').write_text(json.dumps(config))
  done = command('--mode=predict', f'--workdir={folder}', 'docs/digits-predictions.png')
  assert done.returncode == 0, done.stderr
  assert re.search(r'docs/digits-predictions\.png\n +\d+\.\d %  \d\n', done.stdout)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), 'name a config, such as --config=configs/alexnet.py'),
    (
      ('--config=configs/alexnet.py', '--config.model.widht=1'),
      "no config field 'widht'; the fields are .*model.width",
    ),
    (
      ('--config=configs/alexnet.py', '--config.model.conv1.width=1'),
      "no config field 'conv1'; the fields are .*model.kernels.conv1",
    ),
    (('--config=configs/alexnet.py', '--config.batch_size=many'), 'config.batch_size=many: invalid literal'),
    (('--config=README.md',), 'the file of --config is not valid Python: .*README.md, line'),
    (('--config=alexnet_jax/__init__.py',), 'the file of --config has no function get_config'),
    (('--config=configs/nowhere.py',), "'configs/nowhere.py'; run the command in the folder of the clone"),
    (('--config=configs/alexnet.py', '--mode=sing'), 'mode=sing: value should be one of'),
    (('--config=configs/alexnet.py', '--wrokdir=x'), "Unknown command line flag 'wrokdir'"),
    (('--config=configs/alexnet.py', 'cat.jpg'), "'cat.jpg' is not a flag"),
    (('--config=configs/alexnet.py', '--mode=eval', '--exif'), '--output and --exif require --mode=predict, not eval'),
    (('--config=configs/alexnet.py:one_tower,run150',), 'one_tower and run150 exclude each other'),
    (('--config=configs/alexnet.py', '--mode=eval', '--workdir=README.md'), 'README.md contains no run'),
  ],
)
def test_wrong_usage_is_an_error_message_and_status_2(arguments, message):
  result = command(*arguments)
  assert result.returncode == 2, result.stderr
  assert re.search(f'^error: .*{message}', result.stderr, re.MULTILINE), result.stderr
  assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ('{}', 'get_config in the file of --config returns a dict, not a ConfigDict'),
    ('1 / 0', r'the file of --config raises ZeroDivisionError: division by zero \(.*config.py, line 2\)'),
    ('name', r"the file of --config raises NameError: name 'name' is not defined \(.*config.py, line 2\)"),
  ],
)
def test_a_config_file_with_an_error_is_named(value, message, tmp_path):
  (tmp_path / 'config.py').write_text(f'def get_config():\n  return {value}\n')
  result = command(f'--config={tmp_path}/config.py')
  assert result.returncode == 2, result.stderr
  assert re.search(f'^error: .*{message}', result.stderr, re.MULTILINE), result.stderr
  assert 'Traceback' not in result.stderr


def test_an_unreadable_image_is_a_run_error(damaged_digits, tmp_path):
  with pytest.raises(RunError, match=r"image 3 of split 'train.*cannot be read.*data.unreadable=skip"):
    loop.train_and_evaluate(small_config(damaged_digits), tmp_path / 'run')


@pytest.fixture(scope='module')
def skipping(damaged_digits, tmp_path_factory):
  """The arguments of a run that skips unreadable images, its folder, and its training in a process of its own."""
  folder = tmp_path_factory.mktemp('skipping') / 'run'
  arguments = ('--config=configs/alexnet.py', f'--config.data.dir={damaged_digits}', f'--workdir={folder}', *TINY)
  arguments = (*arguments, '--config.data.unreadable=skip')
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_COMPILATION_CACHE_DIR')  # use the default folder
    yield arguments, folder, command(*arguments, devices=2)


def test_training_names_skipped_images_and_exits_with_status_3(skipping):
  _, folder, trained = skipping
  assert trained.returncode == 3, trained.stderr
  named = [line.partition('\r')[2] or line for line in trained.stderr.splitlines() if 'skipped' in line]
  assert [re.sub('.*skipped', 'skipped', line) for line in named] == [
    f"skipped image {index} of split '{split}' of digits/1.0.0: not an image in a known format"
    for index, split in ((3, 'train[:90%]'), (8, 'test'))
  ]
  results = json.loads((folder / 'results.json').read_text())
  assert (results['num_examples'], results['skipped']) == (359, {'train[:90%]': 1, 'test': 1})


def test_training_prints_the_mesh_and_the_shardings_and_caches_the_step(skipping):
  _, _, trained = skipping
  assert 'mesh data 1 x tower 2' in trained.stdout
  # Each device holds half of the kernels: those of one tower.
  assert re.search(r"conv1/kernel \| \(2, 11, 11, 3, 3\) .*\('tower', None, None, None, None\)", trained.stdout)
  assert 'step 3/3' in trained.stdout
  # The step is cached for the next run, unless it calls oneDNN, which XLA cannot cache.
  assert any(compilation_cache.default_folder().glob('jit_train_step-*')) != onednn.is_available()


def test_evaluation_names_skipped_images_and_exits_with_status_3(skipping):
  arguments, folder, _ = skipping
  results = json.loads((folder / 'results.json').read_text())
  evaluated = command(*arguments, '--mode=eval', devices=2)
  assert evaluated.returncode == 3, evaluated.stderr
  assert json.loads((folder / 'results.json').read_text()) == results | {'skipped': {'test': 1}}


def test_help_and_flag_errors_do_not_load_jax():
  result = command('--help')
  assert result.returncode == 0
  assert '--workdir' in result.stdout
  probe = "import sys, runpy; sys.argv = ['main.py', '--config=configs/alexnet.py', '--nosuch']\n"
  probe += "try: runpy.run_path('main.py', run_name='__main__')\nexcept SystemExit as end: print(end.code)\n"
  probe += "print([name for name in ('jax', 'tensorflow') if name in sys.modules])"
  loaded = subprocess.run([sys.executable, '-c', probe], cwd=ROOT, capture_output=True, text=True, check=True)
  assert loaded.stdout.split('\n')[:2] == ['2', '[]']
