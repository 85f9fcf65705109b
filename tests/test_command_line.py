"""The command line of `python -m alexnet_jax`."""

import configparser
import pathlib
import pkgutil
import subprocess
import sys

import pytest

from alexnet_jax import __main__ as cli
from alexnet_jax.runtime.errors import UsageError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ('command', 'option'),
  [
    ('prepare 2012 archives --seed=4', 'seed'),
    ('prepare folder photographs --encoding=raw --quality=3', 'quality'),
    ('prepare folder photographs --beam_options=a=b', 'beam_options'),
    ('prepare folder photographs --beam=DirectRunner --workers=100', 'workers'),
    ('figures predictions run cat.jpg --split=train', 'split'),
    ('figures saliency run cat.jpg --num_images=3', 'num_images'),
    ('figures explain run cat.jpg --seed=3', 'seed'),
    ('figures similarity run --images 1.jpg 2.jpg 3.jpg 4.jpg --data_dir=datasets', 'data_dir'),
    ('figures kernels tests --towers=4', 'towers'),
    ('figures kernels tests --bgr', 'bgr'),
    ('figures explain run --unit conv3 1 --target 3', 'target'),
    ('figures explain run --num_steps=3', 'num_steps'),
    ('figures explain run --method=activation_maximisation --target 1 --num_images=3', 'num_images'),
    ('figures explain run --method=activation_maximisation --target 1 --split=train', 'split'),
    ('figures explain run --method=activation_maximisation --target 1 --layer=conv2', 'layer'),
    ('figures architecture run --num_classes=4', 'num_classes'),
    ('figures architecture run --config=configs/cifar10.py', 'config'),
  ],
)
def test_an_option_without_effect_is_an_error(command, option):
  arguments = command.split()
  with pytest.raises(UsageError, match=f'--{option} has no effect here, because .*; omit it'):
    cli.check_options_are_read(cli.parser().parse_args(arguments))
  without = [argument for argument in arguments if not argument.startswith(f'--{option}')]
  without = without[:-1] if option == 'target' else without
  cli.check_options_are_read(cli.parser().parse_args(without))


def test_every_such_option_exists():
  subparsers = cli.parser()._subparsers._group_actions[0].choices
  figures = subparsers['figures']._subparsers._group_actions[0].choices
  for name, _, options, _ in cli.UNREAD:
    parser = figures['saliency'] if name == 'figures' else (subparsers | figures)[name]
    assert set(options) <= {action.dest for action in parser._actions}


def test_output_that_is_not_read_to_its_end_is_no_traceback():
  command = f'{sys.executable} -m alexnet_jax reproduce --list | head -1'
  result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
  assert (result.stdout.count('\n'), result.stderr) == (1, '')


def test_the_console_script_configures_memory_before_it_runs(monkeypatch):
  calls = []
  monkeypatch.setattr(cli.host_memory, 'configure_malloc', lambda: calls.append('configure_malloc'))
  monkeypatch.setattr(cli, 'main', lambda: calls.append('main'))
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  _, script = setup['options.entry_points']['console_scripts'].split(' = ')
  with pytest.raises(SystemExit):
    pkgutil.resolve_name(script)()
  assert calls == ['configure_malloc', 'main']


@pytest.mark.parametrize('seed', ['-1', '1.5', 'one'])
def test_seeds_are_integers_of_0_or_more(seed, capsys):
  with pytest.raises(SystemExit):
    cli.parser().parse_args(['figures', 'saliency', 'run', f'--seed={seed}'])
  assert f'{seed} must be an integer of 0 or more' in capsys.readouterr().err
