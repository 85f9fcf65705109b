import dataclasses
import pathlib
import re
import shutil

import pytest

from alexnet_jax import __main__ as cli
from alexnet_jax.reproduction import records, report, runner
from alexnet_jax.reproduction.experiments import EXPERIMENTS
from alexnet_jax.reproduction.runner import Folders
from alexnet_jax.runs import checkpoints
from alexnet_jax.runtime.errors import LockedError
from alexnet_jax.training import loop
from tests.reproduction.test_records import record

ROOT = pathlib.Path(__file__).parents[2]
TINY = {
  'data.name': 'digits',
  'data.train_split': 'train[:160]',
  'data.validation_split': 'train[160:192]',
  'data.test_split': 'test[:64]',
  'batch_size': 16,
  'eval.batch_size': 32,
  'num_steps': 2,
  'log_every': 1,
  'model.width': 1 / 16,
  'mesh.data': 1,
  'mesh.tower': 1,
}


def place_in(folder, data_dir):
  return Folders(folder / 'results', folder / 'RESULTS.md', folder / 'runs', str(data_dir), TINY)


@pytest.fixture
def place(tmp_path, data_dir):
  return place_in(tmp_path, data_dir)


@pytest.fixture(scope='module')
def common_place(tmp_path_factory, data_dir):
  """Where experiments find the trainings that they share."""
  return place_in(tmp_path_factory.mktemp('experiments'), data_dir)


def shorter(monkeypatch, experiment):
  """Lets two steps count as the whole length of every training, one rate as all of them, and one seed."""
  monkeypatch.setattr(runner, 'is_long_enough', lambda record, num_epochs: True)
  conditions = [dataclasses.replace(condition, rates=condition.rates[:1]) for condition in experiment.conditions]
  experiment = dataclasses.replace(experiment, conditions=conditions, num_seeds=1)
  monkeypatch.setitem(EXPERIMENTS, experiment.name, experiment)
  return experiment


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_runs(name, common_place, monkeypatch, capsys):
  """A smoke test: two steps of every training, on the digits."""
  experiment = shorter(monkeypatch, EXPERIMENTS[name])
  if any('data.classes' in condition.fields for condition in experiment.conditions):  # of CIFAR-10
    common_place = common_place._replace(fields=TINY | {'data.classes': ('0', '1')})
  if name == 'photographs':  # of 224 pixels
    common_place = common_place._replace(fields=TINY | {'model.image_size': 64})
  runner.run(experiment, common_place)
  assert f'## {experiment.title}' in capsys.readouterr().out
  assert all((common_place.results / f'{name}-{picture}.png').exists() for picture in experiment.pictures)
  found = runner.finished(experiment, common_place)
  is_drawn = experiment.conditions and experiment.shown and report.is_complete(experiment, found)
  assert (common_place.results / f'{name}.png').exists() == bool(is_drawn)
  trials = {f'{condition.name}-rate{rate:g}' for condition in experiment.conditions for rate in condition.rates}
  assert {one for one in found if '/' not in one} == {
    condition.name for condition in experiment.all_conditions()
  } | trials
  for condition in experiment.conditions:
    (one,) = found[condition.name]
    assert condition.averages or one.curve('train/error')[1].size
    assert condition.averages or '--config.seed=0' in one.command
  if all(
    f'{other}/{condition.name}' in found for other in experiment.reads for condition in EXPERIMENTS[other].conditions
  ):
    assert experiment.conclude(found).ours


def test_what_an_arm_starts_from_is_trained_first(place, monkeypatch, capsys):
  experiment = shorter(monkeypatch, EXPERIMENTS['pretraining'])
  pretrained = next(condition for condition in experiment.conditions if condition.init_from)
  place = place._replace(fields=TINY | {'data.classes': ('0', '1')})
  found = runner.train(runner.Training(experiment, pretrained, None, 0, pretrained.num_epochs), place)
  origin = place.runs / 'pretraining' / 'animals-seed0'
  assert f'from {origin}, step 2: conv1, conv2' in capsys.readouterr().out
  assert f'--config.init_from={origin}' in found.command


def test_an_average_trains_again_what_is_gone(place, monkeypatch, capsys):
  experiment = shorter(monkeypatch, EXPERIMENTS['ensemble'])
  runner.run(experiment, place)
  (averaged,) = runner.finished(experiment, place)['averaged']
  (alone,) = runner.finished(experiment, place)['paper']
  assert averaged.results['centre'] == pytest.approx(alone.results['centre'], abs=1e-4)  # of a single network
  shutil.rmtree(place.runs)
  (place.results / 'small' / 'averaged.json').unlink()
  capsys.readouterr()
  runner.run(experiment, place)
  assert 'paper-seed0, which this needs, is trained first' in capsys.readouterr().out
  assert runner.finished(experiment, place)['averaged'][0].results == averaged.results


def test_half_a_run_is_trained_to_its_end_before_it_is_averaged(place, monkeypatch):
  experiment = shorter(monkeypatch, EXPERIMENTS['ensemble'])
  member = runner.Training(experiment, experiment.conditions[0], None, 0, 24)
  path = place.results / 'small' / 'paper-seed0.json'
  records.save(path, record(num_epochs=24.0, steps_per_epoch=100.0))
  trained = []
  monkeypatch.setattr(runner, 'train', lambda training, place: trained.append(training.name) or record())
  monkeypatch.setattr(checkpoints, 'newest_step', lambda folder: 2300)
  runner.run_of(member, place)
  assert trained == ['paper-seed0']
  records.save(path, record(num_epochs=24.0, steps_per_epoch=100.0))
  monkeypatch.setattr(checkpoints, 'newest_step', lambda folder: 2400)
  runner.run_of(member, place)
  assert trained == ['paper-seed0']


def test_an_average_of_fewer_is_made_again(place, monkeypatch):
  experiment = shorter(monkeypatch, EXPERIMENTS['ensemble'])
  of_two, of_five = (runner.Training(experiment, experiment.conditions[1], None, number, 24) for number in (2, 5))
  records.save(place.results / 'small' / 'averaged.json', record(seed=2))
  assert runner.find(of_two, place)
  assert runner.find(of_five, place) is None


def test_what_is_read_is_counted_once(place):
  """The entry of 11 % reads that of 13 %, and both are read for the nine views."""
  for name in ('13pct', '11pct'):
    records.save(place.results / name / f'{name}-seed0.json', record(num_epochs=160.0))
  assert set(runner.finished(EXPERIMENTS['11pct'], place)) == {'11pct', '13pct/13pct'}
  assert set(runner.finished(EXPERIMENTS['views'], place)) == {'11pct/11pct', '13pct/13pct'}


def test_what_another_process_trains_is_waited_for(place, monkeypatch, capsys):
  experiment = dataclasses.replace(shorter(monkeypatch, EXPERIMENTS['13pct']))

  def held(training, place):
    raise LockedError('another process is at it.')

  monkeypatch.setattr(runner, 'train', held)
  path = place.results / '13pct' / '13pct-seed0.json'
  monkeypatch.setattr(runner.time, 'sleep', lambda seconds: records.save(path, record()))
  runner.run(experiment, place)
  assert 'another process is at it. Waiting for it.' in capsys.readouterr().out


def test_what_has_ended_is_not_trained_again(place, monkeypatch):
  experiment = shorter(monkeypatch, EXPERIMENTS['lrn'])
  runner.run(experiment, place, num_seeds=1)
  report = place.report.read_text()
  assert re.search(r'\| 3.3 \| response normalisation helps on CIFAR-10 \|.*seed.*`python -m', report)

  def nobody(*_):
    raise AssertionError('trained again')

  monkeypatch.setattr(loop, 'train_and_evaluate', nobody)
  runner.run(experiment, place, num_seeds=1)
  assert place.report.read_text() == report
  with pytest.raises(AssertionError, match='trained again'):
    runner.run(experiment, place, num_seeds=2)


def test_a_shorter_training_is_none(place):
  experiment = EXPERIMENTS['lrn']
  training = runner.Training(experiment, experiment.conditions[0], None, 0, 24)
  path = place.results / 'lrn' / 'with-seed0.json'
  records.save(path, record(num_epochs=23.9))
  assert runner.find(training, place) is None
  records.save(path, record(num_epochs=24.0))
  assert runner.find(training, place)


def test_the_rate_with_the_lowest_error_is_chosen(place):
  experiment = EXPERIMENTS['figure1']
  relu = experiment.conditions[0]
  for rate, error in zip(relu.rates, (50.0, 40.0, 45.0, 60.0), strict=True):
    assert runner.chosen_rate(experiment, relu, place) is None  # not all trials have ended
    # What comes after the trial, in a run that went on, does not count.
    curve = [[10 * relu.trial_epochs, 10 * relu.num_epochs], [error, 100 - error]]
    path = place.results / 'figure1' / f'relu-rate{rate:g}-seed0.json'
    records.save(path, record(curves={'train/error': curve}, num_epochs=12))
  assert runner.chosen_rate(experiment, relu, place) == relu.rates[1]


def test_results_md_is_made_from_what_is_kept(tmp_path):
  """Nobody edited it, and nobody forgot to write it."""
  place = Folders(ROOT / 'results', tmp_path / 'RESULTS.md')
  runner.write(place, draw=False)
  assert place.report.read_text() == (ROOT / 'RESULTS.md').read_text()


@pytest.mark.parametrize(
  ('experiment', 'sentence'),
  [
    ('one_tower', 'of one tower with half of the kernels is {:.1f} points worse'),
    ('communication', 'one whose towers never meet {:.1f} points'),
    ('normalisation', 'one without normalisation {:.1f} points'),
    ('depth', 'one without conv3 or conv4 {:.1f} points'),
    ('augmentation', 'its test error stays {:.1f} points higher'),
    ('decay', 'Without weight decay its training error ends {:.1f} points higher'),
    ('dropout', 'without dropout, at a rate of its own, its test error is {:.1f} points higher'),
    ('colour', 'without the colour shift {:.1f} points'),
    ('views', 'nine views gain {:.2f} points'),
    ('lrn', 'normalisation gains {:.2f} points in 24 epochs'),
    ('ensemble', '{:.1f} points fewer than one'),
  ],
)
def test_the_readme_says_what_the_results_say(experiment, sentence):
  claims_table, *_ = (ROOT / 'RESULTS.md').read_text().split('\n## ')
  (row,) = [line for line in claims_table.splitlines() if f'reproduce {experiment}`' in line]
  (difference,) = re.findall(r': \+(\d+\.\d\d)', row)
  readme = ' '.join((ROOT / 'README.md').read_text().split())
  assert sentence.format(float(difference)) in readme


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    ([], 'name experiments; --list shows all of them'),
    (['figure2'], "there is no experiment 'figure2'; there are figure1, lrn"),
    (['lrn', '--seeds=0'], '--seeds=0 must be 1 or more'),
    (['lrn', '--data_dir=nowhere'], "data.dir='nowhere' is not a folder"),
  ],
)
def test_wrong_usage_says_why(arguments, sentence, capsys, tmp_path, monkeypatch):
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  assert cli.main(['reproduce', *arguments]) == 2
  assert sentence in capsys.readouterr().err


def test_the_list_shows_experiments_and_what_needs_imagenet(capsys):
  assert cli.main(['reproduce', '--list']) == 0
  shown = capsys.readouterr().out
  assert all(name in shown for name in EXPERIMENTS)
  assert ':fall2009,conv6' in shown
