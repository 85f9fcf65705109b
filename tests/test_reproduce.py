import dataclasses
import pathlib
import re

import pytest

from alexnet_jax import outcomes, reproduce, train
from alexnet_jax.experiments import EXPERIMENTS
from alexnet_jax.reproduce import Place
from tests.test_outcomes import outcome

ROOT = pathlib.Path(__file__).parents[1]
TINY = {
  'data.name': 'digits',
  'data.train_split': 'train[:160]',
  'data.validation_split': 'train[160:192]',
  'data.test_split': 'test[:64]',
  'batch_size': 16,
  'num_steps': 2,
  'log_every': 1,
  'model.width': 1 / 16,
  'mesh.data': 1,
  'mesh.tower': 1,
}


@pytest.fixture
def place(tmp_path, data_dir):
  return Place(tmp_path / 'results', tmp_path / 'RESULTS.md', tmp_path / 'runs', str(data_dir), TINY)


def shorter(monkeypatch, experiment):
  """Lets two steps count as the whole length of every training, and two rates as all of them."""
  monkeypatch.setattr(reproduce, 'is_long_enough', lambda outcome, num_epochs: True)
  arms = [dataclasses.replace(arm, rates=arm.rates[:2]) for arm in experiment.arms]
  experiment = dataclasses.replace(experiment, arms=arms)
  monkeypatch.setitem(EXPERIMENTS, experiment.name, experiment)
  return experiment


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_runs(name, place, monkeypatch, capsys):
  """A smoke test: two steps of every training, on the digits."""
  experiment = shorter(monkeypatch, EXPERIMENTS[name])
  reproduce.run(experiment, place, num_seeds=1)
  assert f'## {experiment.title}' in capsys.readouterr().out
  assert sorted(path.name for path in place.results.glob('*.png')) == ([f'{name}.png'] if experiment.arms else [])
  found = reproduce.finished(experiment, place)
  trials = {f'{arm.name}-rate{rate:g}' for arm in experiment.arms for rate in arm.rates}
  assert set(found) == {arm.name for arm in experiment.arms} | trials
  for arm in experiment.arms:
    (one,) = found[arm.name]
    assert one.curve('train/error')[1].size
    assert '--config.seed=0' in one.command


def test_what_has_ended_is_not_trained_again(place, monkeypatch):
  experiment = shorter(monkeypatch, EXPERIMENTS['lrn'])
  reproduce.run(experiment, place, num_seeds=1)
  report = place.report.read_text()
  assert re.search(r'\| 3.3 \| response normalisation helps on CIFAR-10 \|.*seed.*`python -m', report)

  def nobody(*_):
    raise AssertionError('trained again')

  monkeypatch.setattr(train, 'train_and_evaluate', nobody)
  reproduce.run(experiment, place, num_seeds=1)
  assert place.report.read_text() == report
  with pytest.raises(AssertionError, match='trained again'):
    reproduce.run(experiment, place, num_seeds=2)


def test_a_shorter_training_is_none(place):
  experiment = EXPERIMENTS['lrn']
  training = reproduce.Training(experiment, experiment.arms[0], None, 0, 24)
  path = place.results / 'lrn' / 'with-seed0.json'
  outcomes.save(path, outcome(num_epochs=23.9))
  assert reproduce.find(training, place) is None
  outcomes.save(path, outcome(num_epochs=24.0))
  assert reproduce.find(training, place)


def test_the_rate_with_the_lowest_error_is_chosen(place):
  experiment = EXPERIMENTS['figure1']
  relu = experiment.arms[0]
  for rate, error in zip(relu.rates, (50.0, 40.0, 45.0, 60.0), strict=True):
    assert reproduce.chosen_rate(experiment, relu, place) is None  # not all trials have ended
    # What comes after the trial, in a run that went on, does not count.
    curve = [[10 * relu.trial_epochs, 10 * relu.num_epochs], [error, 100 - error]]
    path = place.results / 'figure1' / f'relu-rate{rate:g}-seed0.json'
    outcomes.save(path, outcome(curves={'train/error': curve}, num_epochs=12))
  assert reproduce.chosen_rate(experiment, relu, place) == relu.rates[1]


def test_results_md_is_made_from_what_is_kept(tmp_path):
  """Nobody edited it, and nobody forgot to write it."""
  place = Place(ROOT / 'results', tmp_path / 'RESULTS.md')
  reproduce.write(place, draw=False)
  assert place.report.read_text() == (ROOT / 'RESULTS.md').read_text()


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ([], 'name experiments, as --list shows them'),
    (['figure2'], "there is no experiment 'figure2'; there are figure1, lrn"),
    (['lrn', '--seeds=0'], '--seeds=0 must be 1 or more'),
    (['lrn', '--data_dir=nowhere'], "data.dir='nowhere' is not a folder"),
  ],
)
def test_wrong_usage_says_why(arguments, sentence, capsys, tmp_path, monkeypatch):
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  assert reproduce.main(arguments) == 2
  assert sentence in capsys.readouterr().err


def test_the_list_shows_experiments_and_what_needs_imagenet(capsys):
  assert reproduce.main(['--list']) == 0
  shown = capsys.readouterr().out
  assert all(name in shown for name in EXPERIMENTS)
  assert ':imagenet2012,as_run,no_lrn' in shown
