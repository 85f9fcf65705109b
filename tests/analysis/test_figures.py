import contextlib
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import figures
from alexnet_jax.runs.curves import read_curves
from alexnet_jax.training.progress import Progress
from tests import miniature
from tests.conftest import small_config


def run_failing(arguments, capsys):
  """Runs a command that fails, and returns its exit status and error message."""
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


@pytest.mark.slow
def test_features_are_extracted_once_for_all_figures_of_neighbours(trained_run, tmp_path, capsys):
  arguments = ['neighbours', str(trained_run), '--num_images=1', '--k=2', f'--output={tmp_path / "near.svg"}']
  assert cli.main(['figures', *arguments]) == 0
  assert 'Saving fc7' in capsys.readouterr().out
  (folder,) = (trained_run / 'features').glob('fc7-step7-digits_1.0.0-*')
  before = (folder / 'features.npy').stat().st_mtime_ns
  assert cli.main(['figures', *arguments]) == 0
  assert 'Saving fc7' not in capsys.readouterr().out
  assert (folder / 'features.npy').stat().st_mtime_ns == before


def test_only_errors_selects_misclassified_images_and_the_seed_selects_images(trained_run):
  def draw(*flags):
    options = cli.parser().parse_args(['figures', 'predictions', str(trained_run), '--num_images=3', *flags])
    figure, _ = figures.make_figure(options)
    return figure, [axes.images[0].get_array() for axes in figure.axes if axes.images]

  figure, errors = draw('--only_errors')
  assert len(errors) == 3
  for axes in [axes for axes in figure.axes if axes.patches]:
    assert not axes.patches[0].get_hatch()  # the most probable class is not the true one
  first, again, other = (draw(f'--seed={seed}')[1] for seed in (1, 1, 2))
  assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
  assert not all(np.array_equal(*pair) for pair in zip(first, other, strict=True))


def test_image_files_are_drawn_and_unreadable_ones_are_named(trained_run, tmp_path, capsys):
  for number in range(2):
    (tmp_path / f'{number}.jpg').write_bytes(miniature.make_image(number))
  (tmp_path / 'broken.png').write_text('no image')
  output = f'--output={tmp_path / "figure.png"}'
  assert cli.main(['figures', 'predictions', str(trained_run), str(tmp_path), output]) == 3
  assert 'broken.png: not an image' in capsys.readouterr().err
  assert cli.main(['figures', 'maps', str(trained_run), str(tmp_path / '0.jpg'), output]) == 0
  status, error = run_failing(['maps', trained_run, tmp_path / '0.jpg', tmp_path / '1.jpg'], capsys)
  assert (status, 'name one' in error) == (2, True)
  status, error = run_failing(['saliency', trained_run, tmp_path / 'broken.png'], capsys)
  assert (status, 'none of the images can be read' in error) == (1, True)


def test_kernels_in_a_file_are_drawn_with_their_channels_in_order(tmp_path, capsys):
  weights = np.zeros((11, 11, 3, 4), np.float32)
  weights[:, :, 0] = 1  # blue, if the file is in the order BGR
  np.savez(tmp_path / 'kernels.npz', weights=weights)
  np.testing.assert_array_equal(figures._read_kernels(tmp_path / 'kernels.npz', 2, True)[:, :, :, 2], 1)
  np.testing.assert_array_equal(figures._read_kernels(tmp_path / 'kernels.npz', 2, False)[:, :, :, 0], 1)
  assert cli.main(['figures', 'kernels', str(tmp_path / 'kernels.npz'), f'--output={tmp_path / "k.png"}']) == 0
  assert 'tower 1: 2 kernels, 66.7 % of their energy is colour' in capsys.readouterr().out
  for arguments, message in (
    ([tmp_path / 'kernels.npz', '--towers=3'], 'should be (height, width, 3, kernel)'),
    ([tmp_path / 'nothing.npz'], 'is neither the folder of a run nor an .npz file'),
  ):
    assert message in run_failing(['kernels', *arguments], capsys)[1]


def test_curves_are_those_of_the_run(trained_run, data_dir, tmp_path, capsys):
  folder = tmp_path / 'curves'
  folder.mkdir()
  for name in ('config.json', 'statistics.npz', 'classes.txt'):
    (folder / name).write_bytes((trained_run / name).read_bytes())
  status, error = run_failing(['curves', folder], capsys)
  assert (status, 'not written yet' in error) == (2, True)

  config = small_config(data_dir)  # batches of 8; a point is written every 10 steps
  with contextlib.closing(Progress(folder, config, 10, 1293, 41)) as progress:
    for step in range(1, 42):
      metrics = {'loss': jnp.float32(3 - step / 100), 'error': jnp.float32(90 - step)}
      learning_rates = {'kernel': jnp.float32(0.1), 'bias': jnp.float32(0.1)}
      progress.step_dispatched(step, metrics | {'learning_rates': learning_rates}, shifts_colour=True)
    progress.read()
    progress.evaluated(41, {'top1_error': 12.5, 'top5_error': 3.0, 'log_prob': -1.0, 'num_examples': 100})
  curves = read_curves(folder)
  steps, error = curves['train/error']
  np.testing.assert_array_equal(steps, [10, 20, 30, 40])
  np.testing.assert_allclose(error, [90 - 5.5, 90 - 15.5, 90 - 25.5, 90 - 35.5])  # means since the previous point
  assert [list(map(float, column)) for column in curves['validation/top1_error']] == [[41], [12.5]]

  options = cli.parser().parse_args(['figures', 'curves', str(folder), '--show', 'error', 'loss', 'validation'])
  figure, _ = figures.make_figure(options)
  np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), np.array([10, 20, 30, 40]) * 8 / 1293)
  assert [axes.get_ylabel() for axes in figure.axes] == [
    'training error, %',
    'training loss, nats',
    'validation error, %',
  ]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['predictions', '{empty}'], 'contains no run'),
    (['predictions', '{untrained}'], 'contains no checkpoint'),
    (['predictions', '{run}', '{empty}'], 'contains no image'),
    (['predictions', '{run}', '{run}/classes.txt', '--only_errors'], 'name no files'),
    (['predictions', '{run}', '--num_images=0'], '--num_images=0 must be 1 or more'),
    (['predictions', '{run}', '--num_images=0', '--only_errors'], '--num_images=0 must be 1 or more'),
    (['neighbours', '{run}', '--layer=fc9'], "this network has no layer 'fc9'"),
    (['maps', '{run}', '--layer=conv9'], "this network has no layer 'conv9'"),
    (['maps', '{run}', '--layer=fc7'], 'fc7 has no maps; choose one of conv1, pool1'),
    (['saliency', '{run}', '--threshold=-1'], '--threshold=-1.0 must be 0 or more'),
    (['neighbours', '{run}', '--k=0'], '--k=0 must be 1 to 1,293, the number of training images'),
    (['kernels', '{empty}/kernels.npy'], 'is neither the folder of a run nor an .npz file'),
    (['kernels', '{empty}/none.npz'], 'should be (height, width, 3, kernel)'),
    (['kernels', '{empty}/text.npz'], 'are <U4 and should be finite floating-point numbers'),
    (['kernels', '{empty}/damaged.npz'], 'is neither the folder of a run nor an .npz file'),
    (['kernels', '{run}', '--output=figure.gif'], "'figure.gif' does not end in .png, .svg or .pdf"),
    (['architecture', '--config=configs/alexnet.py:nothing'], "there is no variant 'nothing'"),
    (['architecture', '--config=nowhere.py'], 'nowhere.py does not exist; run the command in the folder of the clone'),
    (['architecture', '--config=configs/alexnet'], 'configs/alexnet is not a Python file'),
    (['architecture', '--config={invalid}'], 'cannot be loaded: invalid syntax'),
  ],
)
def test_wrong_usage_prints_one_message(trained_run, tmp_path, capsys, arguments, message):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'untrained').mkdir()
  for name in ('config.json', 'statistics.npz', 'classes.txt'):
    (tmp_path / 'untrained' / name).write_bytes((trained_run / name).read_bytes())
  (tmp_path / 'invalid.py').write_text('def get_config(:')
  if arguments[0] == 'kernels':
    np.save(tmp_path / 'empty' / 'kernels.npy', np.zeros((11, 11, 3, 96)))
    np.savez(tmp_path / 'empty' / 'none.npz', weights=np.zeros((11, 11, 3, 0)))
    np.savez(tmp_path / 'empty' / 'text.npz', weights=np.full((11, 11, 3, 4), 'text'))
    np.savez_compressed(
      tmp_path / 'empty' / 'damaged.npz', weights=np.random.default_rng(0).normal(size=(11, 11, 3, 4))
    )
    content = bytearray((tmp_path / 'empty' / 'damaged.npz').read_bytes())
    content[2000:2100] = bytes(100)
    (tmp_path / 'empty' / 'damaged.npz').write_bytes(content)
  paths = {
    'run': trained_run,
    'empty': tmp_path / 'empty',
    'untrained': tmp_path / 'untrained',
    'invalid': tmp_path / 'invalid.py',
  }
  status, error = run_failing([argument.format(**paths) for argument in arguments], capsys)
  assert status == 2
  assert message in error


@pytest.mark.parametrize('tool', ['figures', 'features'])
def test_help_imports_no_heavy_library(tool):
  code = f'from alexnet_jax import __main__ as cli\ntry:\n  cli.main(["{tool}", "--help"])\nfinally:\n  import sys\n'
  code += '  assert not {"jax", "matplotlib", "tensorflow"} & set(sys.modules)'
  root = pathlib.Path(__file__).parents[2]
  result = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert f'python -m alexnet_jax {tool}' in result.stdout
