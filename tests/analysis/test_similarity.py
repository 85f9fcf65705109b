"""Similarity measures against their published formulas, and properties that distinguish them."""

import math
import shutil

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import features, figures, plots, similarity
from alexnet_jax.evaluation import trained_model


def representation(seed, num_images=20, num_units=50):
  return np.random.default_rng(seed).normal(1, 2, (num_images, num_units)).astype(np.float32)


def related(x):
  """Returns a representation that is partly a linear function of another."""
  rng = np.random.default_rng(5)
  return x @ rng.normal(0, 1, (x.shape[1], 30)) + rng.normal(0, 10, (len(x), 30))


def kornblith(x, y):
  """Equations 3 and 4 of Kornblith et al. 2019, with centred Gram matrices."""
  n = len(x)
  centring = np.eye(n) - np.ones((n, n)) / n

  def hsic(k, m):
    return np.trace(k @ centring @ m @ centring) / (n - 1) ** 2

  k, m = x @ x.T, y @ y.T
  return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def song(x, y):
  """CKA with HSIC_1, equation 5 of Song et al. 2012, which needs no centring."""
  n, ones = len(x), np.ones(len(x))

  def hsic(k, m):
    k, m = (matrix - np.diag(np.diag(matrix)) for matrix in (k, m))
    constant = ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + constant - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

  k, m = x @ x.T, y @ y.T
  return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def kriegeskorte(x, y):
  """Spearman's correlation of correlation distances, by SciPy."""
  distances = [scipy.spatial.distance.pdist(z, 'correlation') for z in (x, y)]
  return scipy.stats.spearmanr(*distances).statistic


@pytest.mark.parametrize(('measure', 'reference'), [('cka', kornblith), ('unbiased_cka', song), ('rsa', kriegeskorte)])
def test_measures_equal_their_published_formulas(measure, reference, monkeypatch):
  monkeypatch.setattr(similarity, 'BLOCK_UNITS', 17)  # several blocks, the last of which is not full
  x = representation(0)
  for y in (representation(1), related(x), x[:, :7]):
    expected = reference(x.astype(np.float64), y.astype(np.float64))
    assert similarity.similarity(x, y, measure) == pytest.approx(expected, abs=1e-6)
  assert similarity.similarity(x.reshape(20, 5, 2, 5), x, measure) == pytest.approx(1)


@pytest.mark.parametrize('measure', ['cka', 'unbiased_cka'])
def test_cka_is_invariant_to_orthogonal_transforms_translation_and_isotropic_scaling(measure):
  x = representation(0).astype(np.float64)
  y = related(x)
  orthogonal, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(50, 50)))
  before = similarity.similarity(x, y, measure)
  assert before < 0.95
  assert similarity.similarity(3 * x @ orthogonal + np.arange(50), 0.1 * y, measure) == pytest.approx(before)
  stretched = x * np.geomspace(1, 100, 50)  # an invertible transform, to which CKA is not invariant
  assert abs(similarity.similarity(stretched, y, measure) - before) > 0.02


def test_rsa_is_invariant_to_permutations_of_units_and_to_scaling_and_shifting_images():
  x = representation(0).astype(np.float64)
  y, rng = related(x), np.random.default_rng(2)
  before = similarity.similarity(x, y, 'rsa')
  changed = x[:, rng.permutation(50)] * rng.uniform(1, 3, (20, 1)) + rng.normal(0, 5, (20, 1))
  assert similarity.similarity(changed, y, 'rsa') == pytest.approx(before)


def test_only_the_unbiased_measure_is_zero_for_many_independent_units():
  x, y = (representation(seed, 20, 5000) for seed in (0, 1))
  assert similarity.similarity(x, y, 'cka') > 0.9
  assert abs(similarity.similarity(x, y, 'unbiased_cka')) < 0.1


@pytest.mark.parametrize('measure', list(similarity.MEASURES))
def test_dead_units_have_no_similarity_and_dead_images_are_tolerated(measure):
  x = representation(0)
  assert np.isnan(similarity.similarity(x, np.full((20, 3), 0.1, np.float32), measure))
  dead = x.copy()
  dead[3] = 0  # of one image, no unit is active
  assert np.isfinite(similarity.similarity(x, dead, measure))


def test_cells_have_their_values_unless_they_are_undefined():
  matrix = np.array([[1, -0.04, np.nan], [0.256, 0.5, 0]])
  rows, columns = [('fc7', 0), ('fc7', 1)], [('conv1', None), ('fc7', None), ('fc8', None)]
  axes, colours = plots.draw_similarity(matrix, rows, columns, ['one', 'two'], 'measure').axes
  drawn = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
  assert drawn == {(0, 0): '1.00', (0, 1): '-0.04', (1, 0): '0.26', (1, 1): '0.50', (1, 2): '0.00'}
  assert (axes.get_ylabel(), axes.get_xlabel(), colours.get_ylabel()) == ('one', 'two', 'measure')
  (line,) = axes.lines  # between the towers of the rows
  np.testing.assert_array_equal(line.get_ydata(), 0.5)


def test_the_command_offers_every_measure():
  assert set(cli.SIMILARITIES) == set(similarity.MEASURES) == set(similarity.TITLES)


def draw(*arguments):
  return figures.make_figure(cli.parser().parse_args(['figures', 'similarity', *map(str, arguments)]))[0]


@pytest.mark.slow
def test_the_matrix_of_a_run_with_its_towers(trained_run, capsys):
  figure = draw(trained_run, '--num_images=9', '--towers', '--seed=3', '--measure=cka')
  axes = figure.axes[0]
  matrix = np.asarray(axes.images[0].get_array())
  model = trained_model.load(trained_run, batch_size=0)
  layers = model.network.layer_names
  expected = [f'{layer}, tower {tower}' for tower in (0, 1) for layer in layers]
  assert [label.get_text() for label in axes.get_yticklabels()] == expected
  np.testing.assert_allclose(np.diag(matrix), 1)
  np.testing.assert_allclose(matrix, matrix.T)
  split = features.open_dataset(trained_run, 96, split='test')
  images, _ = split.source.read_batch(np.random.default_rng(3).permutation(len(split))[:9].tolist())
  for row, layer in enumerate(layers):
    x = np.asarray(model.activations(np.concatenate([images, images[:3]]), layer))[:9].astype(np.float64)
    first, second = np.split(x, 2, axis=-1)  # ten classes, five in each tower
    expected = kornblith(first.reshape(9, -1), second.reshape(9, -1))
    assert matrix[row, row + len(layers)] == pytest.approx(expected, abs=1e-3)
  assert f'fc7, tower 0 and fc7, tower 1: {matrix[9, 9 + len(layers)]:.2f}' in capsys.readouterr().out


def test_the_matrix_of_two_runs(trained_run, tmp_path, capsys):
  output = tmp_path / 'similarity.svg'
  arguments = [str(trained_run), str(trained_run), '--num_images=8', '--measure=rsa', f'--output={output}']
  assert cli.main(['figures', 'similarity', *arguments]) == 0
  assert 'fc7 and fc7: 1.00' in capsys.readouterr().out  # a run is similar to itself
  assert output.stat().st_size > 10_000


def test_runs_with_other_classes_are_compared(trained_run, tmp_path, capsys):
  other = shutil.copytree(trained_run, tmp_path / 'other')
  (other / 'classes.txt').write_text('\n'.join('abcdefghij') + '\n')
  arguments = [str(trained_run), str(other), '--num_images=8', f'--output={tmp_path / "similarity.png"}']
  assert cli.main(['figures', 'similarity', *arguments]) == 0
  assert 'fc7 and fc7: 1.00' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [(['{run}', '--num_images=3'], '3 images are too few to compare'), (['{run}', '{none}'], 'contains no run')],
)
def test_wrong_usage_prints_one_message(trained_run, tmp_path, capsys, arguments, message):
  arguments = [argument.format(run=trained_run, none=tmp_path) for argument in arguments]
  assert cli.main(['figures', 'similarity', *arguments]) == 2
  assert message in capsys.readouterr().err.splitlines()[-1]
