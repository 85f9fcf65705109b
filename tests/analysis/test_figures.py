import contextlib
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import figures
from alexnet_jax.training.progress import Progress
from tests import miniature
from tests.conftest import small_config


def errors(arguments, capsys):
  """Runs what goes wrong, and returns its status and its one sentence."""
  status = cli.main(['figures', *list(map(str, arguments))])
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ')
  return status, error


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('kernels', ['--common_scale']),
    ('predictions', ['--num_images=3']),
    ('maps', ['--layer=pool2']),
    ('saliency', ['--num_images=2', '--threshold=1']),
    ('architecture', []),
  ],
)
def test_each_figure_of_a_run_is_drawn(trained_run, tmp_path, name, flags):
  output = tmp_path / 'figure.svg'
  assert cli.main(['figures', name, str(trained_run), *flags, f'--output={output}']) == 0
  assert output.stat().st_size > 10_000


def test_neighbours_are_drawn_from_features_that_are_kept(trained_run, tmp_path, capsys):
  arguments = ['neighbours', str(trained_run), '--num_images=1', '--k=2', f'--output={tmp_path / "near.svg"}']
  assert cli.main(['figures', *arguments]) == 0
  assert 'goes to' in capsys.readouterr().out
  (kept,) = (trained_run / 'features').glob('fc7-step7-digits_1.0.0-*')
  before = (kept / 'features.npy').stat().st_mtime_ns
  assert cli.main(['figures', *arguments]) == 0
  assert 'goes to' not in capsys.readouterr().out
  assert (kept / 'features.npy').stat().st_mtime_ns == before


def test_only_errors_are_errors_and_random_images_follow_the_seed(trained_run):
  def drawn(*flags):
    options = cli.parser().parse_args(['figures', 'predictions', str(trained_run), '--num_images=3', *flags])
    options.output = None
    figure, _ = figures.FIGURES[options.figure](options)
    return figure, [axes.images[0].get_array() for axes in figure.axes if axes.images]

  figure, wrong = drawn('--only_errors')
  assert len(wrong) == 3
  for axes in [axes for axes in figure.axes if axes.patches]:
    assert not axes.patches[0].get_hatch()  # the first guess is not the truth
  first, again, other = (drawn(f'--seed={seed}')[1] for seed in (1, 1, 2))
  assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
  assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))


def test_files_of_a_user_are_drawn_and_those_that_cannot_be_read_are_named(trained_run, tmp_path, capsys):
  for number in range(2):
    (tmp_path / f'{number}.jpg').write_bytes(miniature.picture(number))
  (tmp_path / 'broken.png').write_text('no image')
  output = f'--output={tmp_path / "figure.png"}'
  assert cli.main(['figures', 'predictions', str(trained_run), str(tmp_path), output]) == 3
  assert 'broken.png: it is no image' in capsys.readouterr().err
  assert cli.main(['figures', 'maps', str(trained_run), str(tmp_path / '0.jpg'), output]) == 0
  status, error = errors(['maps', trained_run, tmp_path / '0.jpg', tmp_path / '1.jpg'], capsys)
  assert (status, 'name one' in error) == (2, True)
  status, error = errors(['saliency', trained_run, tmp_path / 'broken.png'], capsys)
  assert (status, 'none of the images can be read' in error) == (1, True)


def test_kernels_of_a_file_are_drawn_with_its_channels_in_order(tmp_path, capsys):
  weights = np.zeros((11, 11, 3, 4), np.float32)
  weights[:, :, 0] = 1  # blue, in a file that begins with it
  np.savez(tmp_path / 'kernels.npz', weights=weights)
  np.testing.assert_array_equal(figures._read_kernels(tmp_path / 'kernels.npz', 2, True)[:, :, :, 2], 1)
  np.testing.assert_array_equal(figures._read_kernels(tmp_path / 'kernels.npz', 2, False)[:, :, :, 0], 1)
  assert cli.main(['figures', 'kernels', str(tmp_path / 'kernels.npz'), f'--output={tmp_path / "k.png"}']) == 0
  assert 'tower 1: 2 kernels, 66.7 % of their energy is colour' in capsys.readouterr().out
  for arguments, sentence in (
    ([tmp_path / 'kernels.npz', '--towers=3'], 'should be (height, width, 3, kernel)'),
    ([tmp_path / 'nothing.npz'], 'is neither the folder of a run nor an .npz file'),
  ):
    assert sentence in errors(['kernels', *arguments], capsys)[1]


def test_curves_are_those_of_the_run(trained_run, data_dir, tmp_path, capsys):
  folder = tmp_path / 'curves'
  folder.mkdir()
  for name in ('config.json', 'statistics.npz', 'classes.txt'):
    (folder / name).write_bytes((trained_run / name).read_bytes())
  status, error = errors(['curves', folder], capsys)
  assert (status, 'not written yet' in error) == (2, True)

  config = small_config(data_dir)  # batches of 8, a line every 10 steps
  with contextlib.closing(Progress(folder, config, 10, 1293, 41)) as progress:
    for number in range(1, 42):
      metrics = {'loss': jnp.float32(3 - number / 100), 'error': jnp.float32(90 - number)}
      progress.step_dispatched(number, 0.1, metrics)
    progress.read()
    progress.evaluated(41, {'top1_error': 12.5, 'top5_error': 3.0, 'log_prob': -1.0, 'num_examples': 100})
  curves = figures.read_curves(folder)
  steps, error = curves['train/error']
  np.testing.assert_array_equal(steps, [10, 20, 30, 40])
  np.testing.assert_allclose(error, [90 - 6, 90 - 15.5, 90 - 25.5, 90 - 35.5])  # means since the line before
  assert [list(map(float, column)) for column in curves['validation/top1_error']] == [[41], [12.5]]

  options = cli.parser().parse_args(['figures', 'curves', str(folder), '--show', 'error', 'loss', 'validation'])
  figure, _ = figures.FIGURES[options.figure](options)
  np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), np.array([10, 20, 30, 40]) * 8 / 1293)
  assert [axes.get_ylabel() for axes in figure.axes] == [
    'training error, %',
    'training loss, nats',
    'validation error, %',
  ]


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (['predictions', '{empty}'], 'holds no run'),
    (['predictions', '{unborn}'], 'holds no checkpoint yet'),
    (['predictions', '{run}', '{empty}'], 'has no image in it'),
    (['predictions', '{run}', '{run}/classes.txt', '--only_errors'], 'name no files'),
    (['predictions', '{run}', '--num_images=0'], '--num_images=0 must be 1 or more'),
    (['neighbours', '{run}', '--layer=fc9'], "this network has no layer 'fc9'"),
    (['maps', '{run}', '--layer=conv9'], "this network has no layer 'conv9'"),
    (['maps', '{run}', '--layer=fc7'], 'fc7 has no maps; choose one of conv1, pool1'),
    (['saliency', '{run}', '--threshold=-1'], '--threshold=-1.0 must be 0 or more'),
    (['kernels', '{run}', '--output=figure.gif'], "'figure.gif' does not end in .png, .svg or .pdf"),
    (['architecture', '--config=configs/alexnet.py:nothing'], "there is no variant 'nothing'"),
    (['architecture', '--config=nowhere.py'], "--config='nowhere.py' cannot be loaded"),
    (['architecture', '--config=configs/alexnet'], 'configs/alexnet is not a Python file'),
  ],
)
def test_wrong_usage_is_one_sentence(trained_run, tmp_path, capsys, arguments, sentence):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'unborn').mkdir()
  for name in ('config.json', 'statistics.npz', 'classes.txt'):
    (tmp_path / 'unborn' / name).write_bytes((trained_run / name).read_bytes())
  places = {'run': trained_run, 'empty': tmp_path / 'empty', 'unborn': tmp_path / 'unborn'}
  status, error = errors([argument.format(**places) for argument in arguments], capsys)
  assert status == 2
  assert sentence in error


@pytest.mark.parametrize('tool', ['figures', 'features'])
def test_help_is_there_at_once(tool):
  code = f'from alexnet_jax import __main__ as cli\ntry:\n  cli.main(["{tool}", "--help"])\nfinally:\n  import sys\n'
  code += '  assert not {"jax", "matplotlib", "tensorflow"} & set(sys.modules)'
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert f'python -m alexnet_jax {tool}' in done.stdout
