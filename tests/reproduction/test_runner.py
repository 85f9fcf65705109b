"""The command `reproduce`, on the digits with trainings of two steps, or with records in place of trainings."""

import collections
import dataclasses
import pathlib
import re
import shutil
import types

import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from alexnet_jax import __main__ as cli
from alexnet_jax.analysis import plots
from alexnet_jax.reproduction import experiments, records, report, runner
from alexnet_jax.reproduction.claims import CLAIMS
from alexnet_jax.reproduction.experiments import EXPERIMENTS, MAIN_STUDY, TINY_EXPERIMENTS
from alexnet_jax.reproduction.runner import Folders
from alexnet_jax.reproduction.verdicts import CONTRADICTED, INCONCLUSIVE, OTHER_SIZE, REPRODUCED
from alexnet_jax.runs import checkpoints, config_checks
from alexnet_jax.runtime.errors import LockedError
from alexnet_jax.training import loop
from tests.reproduction.test_records import record
from tests.reproduction.test_verdicts import with_error
from tests.system import short_experiment

ROOT = pathlib.Path(__file__).parents[2]
CURVES = {'train/error': [[10, 20], [80.0, 40.0]]}
VERDICTS = (REPRODUCED, OTHER_SIZE, INCONCLUSIVE, CONTRADICTED)


@pytest.fixture
def folders(tmp_path, data_dir):
  return short_experiment.folders_in(tmp_path, str(data_dir))


def shorter(monkeypatch, experiment):
  """Accepts trainings of two steps as complete, and reduces an experiment to one learning rate and one seed."""
  monkeypatch.setattr(runner, 'is_long_enough', lambda record, num_epochs: True)
  conditions = [
    dataclasses.replace(condition, learning_rates=condition.learning_rates[:1]) for condition in experiment.conditions
  ]
  experiment = dataclasses.replace(experiment, conditions=conditions, num_seeds=1)
  monkeypatch.setitem(EXPERIMENTS, experiment.name, experiment)
  return experiment


@pytest.mark.parametrize('experiment', EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_experiment_takes_its_trainings_in_order_with_valid_configs(experiment, folders, monkeypatch, capsys):
  """The trainings are replaced by records, so that the configs, the trials and the report remain."""
  trained = []

  def train(training, _):
    config = runner.make_config(training.condition, training.fields(), folders._replace(overrides={}))
    config_checks.check(config)
    trained.append((training.name, config))
    return record(num_epochs=training.num_epochs, seed=training.seed, curves=CURVES)

  for function in ('train', 'average'):
    monkeypatch.setattr(runner, function, train)
  monkeypatch.setattr(runner, 'draw_run_figures', lambda *_: None)
  monkeypatch.setattr(runner, 'write_report', lambda *_: None)
  monkeypatch.setattr(report, 'conclude', lambda records: {})
  monkeypatch.setattr(report, 'render_entry', lambda experiment, records, _: f'## {experiment.title} {sorted(records)}')
  runner.run_experiment(experiment, folders, num_seeds=2)
  trials = [f'{c.name}-rate{rate:g}' for c in experiment.conditions for rate in c.learning_rates]
  assert [name for name, _ in trained[: len(trials)]] == [f'{trial}-seed0' for trial in trials]
  assert len({(name, config.num_epochs) for name, config in trained}) == len(trained)
  names = [condition.name for condition in experiment.all_conditions()]
  for name, config in trained[len(trials) :]:
    condition = next(c for c in experiment.all_conditions() if name.startswith(c.name))
    if condition.learning_rates:  # that of the record with the lowest training error, which all have in common
      assert config.optimizer.rate == condition.learning_rates[0]
  recorded = runner.load_records(experiment, folders)
  assert {name for name in recorded if '/' not in name} == {*names, *trials}
  assert all(len(recorded[name]) == 1 + (name not in trials) for name in (*names, *trials))
  assert f'## {experiment.title}' in capsys.readouterr().out


@pytest.mark.slow
def test_the_figures_of_a_run_are_drawn_once(folders, trained_run, monkeypatch):
  monkeypatch.setattr(runner, 'require_run', lambda training, folders: trained_run)
  experiment = EXPERIMENTS['photographs']
  folders.results.mkdir()
  runner.draw_run_figures(experiment, folders)
  paths = [folders.results / f'photographs-{name}.png' for name in ('kernels', 'predictions', 'neighbours')]
  assert all(path.read_bytes().startswith(b'\x89PNG') for path in paths)
  times = [path.stat().st_mtime_ns for path in paths]
  runner.draw_run_figures(experiment, folders)
  assert [path.stat().st_mtime_ns for path in paths] == times


@pytest.mark.slow
def test_the_network_that_a_condition_is_initialised_from_is_trained_first(folders, monkeypatch, capsys):
  experiment = shorter(monkeypatch, EXPERIMENTS['pretraining'])
  pretrained = next(condition for condition in experiment.conditions if condition.init_from)
  folders = folders._replace(overrides=folders.overrides | {'data.classes': ('0', '1')})
  made = runner.train(runner.Training(experiment, pretrained, None, 0, pretrained.num_epochs), folders)
  origin = folders.runs / 'pretraining' / 'animals-seed0'
  assert f'from {origin}, step 2: conv1, conv2' in capsys.readouterr().out
  assert f'--config.init_from={origin}' in made.command


@pytest.mark.slow
def test_an_average_retrains_networks_whose_runs_were_deleted(folders, monkeypatch, capsys):
  experiment = shorter(monkeypatch, EXPERIMENTS['ensemble'])
  monkeypatch.setattr(experiments, 'NUM_AVERAGED', 1)
  runner.run_experiment(experiment, folders)
  (averaged,) = runner.load_records(experiment, folders)['averaged']
  single = records.load(folders.results / 'small' / 'paper-seed0.json')
  assert averaged.measured['member_errors'] == [pytest.approx(single.results['ten_view']['top1_error'], abs=1e-4)]
  assert averaged.results['centre'] == pytest.approx(single.results['centre'], abs=1e-4)  # the average of one network
  shutil.rmtree(folders.runs)
  (folders.results / 'small' / 'averaged-seed0.json').unlink()
  capsys.readouterr()
  runner.run_experiment(experiment, folders)
  assert 'paper-seed0 is required and is trained first' in capsys.readouterr().out
  assert runner.load_records(experiment, folders)['averaged'][0].results == averaged.results


def test_an_unfinished_run_is_trained_to_its_end_before_it_is_averaged(folders, monkeypatch):
  experiment = shorter(monkeypatch, EXPERIMENTS['ensemble'])
  member = runner.Training(experiment, experiment.conditions[0].ensemble_of, None, 0, 24)
  path = folders.results / 'small' / 'paper-seed0.json'
  records.save(path, record(num_epochs=24.0, steps_per_epoch=100.0))
  trained = []
  monkeypatch.setattr(runner, 'train', lambda training, folders: trained.append(training.name) or record())
  monkeypatch.setattr(checkpoints, 'newest_step', lambda folder: 2300)
  runner.require_run(member, folders)
  assert trained == ['paper-seed0']
  records.save(path, record(num_epochs=24.0, steps_per_epoch=100.0))
  monkeypatch.setattr(checkpoints, 'newest_step', lambda folder: 2400)
  runner.require_run(member, folders)
  assert trained == ['paper-seed0']


def test_averages_have_no_network_in_common(folders, monkeypatch):
  averaged = EXPERIMENTS['ensemble'].conditions[0]
  required = []
  monkeypatch.setattr(runner, 'require_run', lambda member, folders: required.append(member.name))
  monkeypatch.setattr(runner, 'make_config', lambda *_: ConfigDict({'batch_size': 1}))
  results = {'dataset': 'digits', 'members': [{'step': 1, 'ten_view': {'top1_error': 20.0}}]}
  monkeypatch.setattr(runner.ensemble, 'evaluate_ensemble', lambda config, folders: results)
  monkeypatch.setattr(runner.run_folder, 'load_statistics', lambda folder: types.SimpleNamespace(num_images=1))
  for number in range(3):
    runner.average(runner.Training(EXPERIMENTS['ensemble'], averaged, None, number, 24), folders)
  assert required == [f'paper-seed{seed}' for seed in range(15)]


def test_records_that_two_experiments_read_are_loaded_once(folders):
  """The experiment 11pct reads 13pct, and `views` reads both."""
  for name in ('13pct', '11pct'):
    records.save(folders.results / name / f'{name}-seed0.json', record(num_epochs=160.0))
  assert set(runner.load_records(EXPERIMENTS['11pct'], folders)) == {'11pct', '13pct/13pct'}
  assert set(runner.load_records(EXPERIMENTS['views'], folders)) == {'11pct/11pct', '13pct/13pct'}


def test_networks_beyond_the_planned_number_count_in_no_other_claim(folders):
  for seed in range(8):
    records.save(folders.results / 'small' / f'paper-seed{seed}.json', record(num_epochs=24.0, seed=seed))
  assert [found.seed for found in runner.load_records(EXPERIMENTS['ten_views'], folders)['paper']] == [0, 1, 2, 3, 4]


def test_a_training_of_another_process_is_waited_for(folders, monkeypatch, capsys):
  experiment = dataclasses.replace(shorter(monkeypatch, EXPERIMENTS['13pct']))

  def locked(training, folders):
    raise LockedError('another process is training.')

  num_reports = []
  write_report = runner.write_report
  monkeypatch.setattr(runner, 'write_report', lambda folders: (num_reports.append(1), write_report(folders)))
  monkeypatch.setattr(runner, 'train', locked)
  path = folders.results / '13pct' / '13pct-seed0.json'
  monkeypatch.setattr(runner.time, 'sleep', lambda seconds: records.save(path, *with_error(13.0)))
  runner.run_experiment(experiment, folders)
  assert 'Waiting: another process is training.' in capsys.readouterr().out
  assert len(num_reports) == 1  # drawing the figures again while waiting would slow down the other process


def test_finished_trainings_are_not_repeated(folders, monkeypatch):
  experiment = shorter(monkeypatch, EXPERIMENTS['lrn'])
  with monkeypatch.context() as patched:
    patched.setattr(runner, 'train', lambda training, folders: with_error(13.0)[0]._replace(curves=CURVES))
    runner.run_experiment(experiment, folders, num_seeds=1)
  text = folders.report.read_text()
  claim = r'\| 3.3 \| response normalisation lowers the error on CIFAR-10 \| inconclusive'
  row = claim + r' \| .* \| \+0.00 points \| .* \| 1 pair \|'
  assert re.search(row, text)

  def fail(*_):
    raise AssertionError('trained again')

  monkeypatch.setattr(loop, 'train_and_evaluate', fail)
  runner.run_experiment(experiment, folders, num_seeds=1)
  assert folders.report.read_text() == text
  with pytest.raises(AssertionError, match='trained again'):
    runner.run_experiment(experiment, folders, num_seeds=2)


def test_a_record_of_a_shorter_training_is_ignored(folders):
  experiment = EXPERIMENTS['lrn']
  training = runner.Training(experiment, experiment.conditions[0], None, 0, 24)
  path = folders.results / 'lrn' / 'with-seed0.json'
  records.save(path, record(num_epochs=23.9))
  assert runner.load_record(training, folders) is None
  records.save(path, record(num_epochs=24.0))
  assert runner.load_record(training, folders)


def test_the_learning_rate_with_the_lowest_training_error_is_chosen(folders):
  experiment = EXPERIMENTS['figure1']
  relu = experiment.conditions[0]
  for learning_rate, error in zip(relu.learning_rates, (50.0, 40.0, 45.0, 60.0), strict=True):
    assert runner.choose_learning_rate(experiment, relu, folders) is None  # not all trials are finished
    # Errors after the end of the trial, as in the record of a longer run, do not count.
    curve = [[10 * relu.trial_epochs, 10 * relu.num_epochs], [error, 100 - error]]
    path = folders.results / 'figure1' / f'relu-rate{learning_rate:g}-seed0.json'
    records.save(path, record(curves={'train/error': curve}, num_epochs=12))
  assert runner.choose_learning_rate(experiment, relu, folders) == relu.learning_rates[1]


def test_results_md_is_up_to_date_with_the_records(tmp_path):
  folders = Folders(ROOT / 'results', tmp_path / 'RESULTS.md')
  runner.write_report(folders, draw=False)
  assert folders.report.read_text() == (ROOT / 'RESULTS.md').read_text()


def test_the_figures_are_up_to_date_with_the_records(tmp_path):
  """The pixels of every figure that is drawn from records; the others show the kernels of runs that are not stored."""
  drawn = dict(runner.drawn_figures(runner.load_all_records(Folders(ROOT / 'results'))))
  of_runs = {f'{name}-{figure}' for name, experiment in EXPERIMENTS.items() for figure in experiment.run_figures}
  assert {path.stem for path in (ROOT / 'results').glob('*.png')} - of_runs == drawn.keys()
  for name, figure in drawn.items():
    plots.save(figure, tmp_path / f'{name}.png')
    redrawn, stored = (np.asarray(PIL.Image.open(folder / f'{name}.png')) for folder in (tmp_path, ROOT / 'results'))
    np.testing.assert_array_equal(redrawn, stored, err_msg=name)


def test_the_figure_of_all_claims_shows_effects_intervals_and_the_papers_effects():
  finished = runner.load_all_records(Folders(ROOT / 'results'))
  findings = {
    name: finding for name, finding in report.conclude(finished).items() if EXPERIMENTS[name].study == MAIN_STUDY
  }
  figure = report.draw_claims(findings, MAIN_STUDY)
  drawn = [axes for axes in figure.axes if axes.lines]
  labels = [label.get_text() for axes in drawn for label in axes.get_yticklabels()]
  assert len(labels) == len(findings)
  for axes in drawn:
    low, high = axes.get_xlim()
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    for position, label in enumerate(axes.get_yticklabels()):
      statement = label.get_text().replace('\n', ' ')
      (name,) = [claim.experiment for claim in CLAIMS if claim.statement == statement]
      measured, paper = findings[name].estimate, report.COMPARISONS[name].paper
      for effect in (measured.value, *(measured.interval or ()), *([paper] if paper else ())):
        assert np.isclose(points, [np.clip(effect, low, high), position]).all(axis=1).any(), name
      texts = [text.get_text() for text in axes.texts if text.get_position()[1] == position]
      assert f'{findings[name].verdict} ({report.format_seeds(findings[name], name)})' in texts


def test_the_claims_on_tiny_imagenet_are_a_second_study():
  """They have their own table, figure and correction, which leave those of the first study as they are."""

  def with_errors(*errors):
    crops = {'top1_error': 60.0, 'top5_error': 35.0}
    return [
      record(results={'centre': crops, 'ten_view': {'top1_error': error, 'top5_error': 30.0 + seed}}, seed=seed)
      for seed, error in enumerate(errors)
    ]

  finished = runner.load_all_records(Folders(ROOT / 'results'))
  for name in TINY_EXPERIMENTS:
    finished[name] = {}
  alone = report.conclude(finished)
  assert '## The claims on Tiny-ImageNet' not in report.render(finished)
  finished['tiny_one_tower'] = {'paper': with_errors(55.0, 55.2, 55.1), 'one_tower': with_errors(57.0, 57.3, 57.2)}
  findings = report.conclude(finished)
  finding = findings.pop('tiny_one_tower')
  assert findings == alone
  assert finding.adjusted_p == pytest.approx(len(TINY_EXPERIMENTS) * finding.estimate.p_value)
  text = report.render(finished)
  assert 'Of 12 claims: not run: 11, reproduced: 1.' in text.split('## The claims on Tiny-ImageNet')[1]
  assert '| one_tower | 3 | 2.5 | 30.00 ± 0.00 | 60.00 ± 0.00 / 35.00 ± 0.00 | 57.17 ± 0.15 / 31.00 ± 1.00 |' in text
  figures = dict(runner.drawn_figures(finished))
  assert [label.get_text() for label in figures['tiny_claims'].axes[0].get_yticklabels()] == [
    'one tower with half of the kernels has a higher error'
  ]


def test_curves_are_drawn_as_means_in_bands():
  epochs = np.array([1.0, 2.0, 3.0])
  seeds = [(epochs, np.array([50.0, 40.0, 31.0])), (epochs, np.array([54.0, 42.0, 29.0]))]
  figure = plots.draw_conditions({'ours': seeds}, 'error, %', 'A title', level=35, decays=(1.5,))
  axes, magnified = figure.axes
  np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 52], [2, 41], [3, 30]])
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices.tolist()
  assert all(corner in corners for corner in ([1, 50], [1, 54], [3, 29], [3, 31]))
  assert [text.get_text() for text in axes.texts] == ['35 %', 'learning rate decays ']
  assert (axes.get_title('left'), figure.legends[0].texts[0].get_text()) == ('A title', 'ours (2 seeds)')
  np.testing.assert_array_equal(magnified.lines[0].get_xydata(), axes.lines[0].get_xydata())
  np.testing.assert_allclose([*magnified.get_xlim(), *magnified.get_ylim()], [1.5, 3, 29 - 1.3, 42 + 1.3])
  for decays in ((), (2.5,)):  # a single point after the decay has no curve to magnify
    assert len(plots.draw_conditions({'ours': seeds}, 'error, %', 'A title', decays=decays).axes) == 1


def test_every_figure_of_the_report_exists():
  for path in re.findall(r'\]\((results/\S+)\)', (ROOT / 'RESULTS.md').read_text()):
    assert (ROOT / path).exists(), path


def rows_of_claims():
  """Yields {column: cell} of the table of claims in RESULTS.md."""
  header, *rows = re.findall(
    r'^\| ((?:section|\d).*) \|$', (ROOT / 'RESULTS.md').read_text().split('\n## ')[0], re.MULTILINE
  )
  for row in rows:
    yield dict(zip(header.split(' | '), row.split(' | '), strict=True))


@pytest.mark.parametrize('name', ['README.md', 'README.zh-CN.md'])
def test_the_numbers_in_the_readme_are_those_of_the_results(name):
  """Each row of its table has an effect, an interval and a number of seeds of a conclusive row in RESULTS.md."""
  effects = re.findall(r'\| ([+-]?[\d.]+)[^|\[]*(\[[^\]]*\]) \| (\d)', (ROOT / name).read_text())
  assert len(effects) == sum(row['verdict'] in set(VERDICTS) - {INCONCLUSIVE} for row in rows_of_claims())
  for effect, interval, num_seeds in effects:
    (row,) = [row for row in rows_of_claims() if row['ours, 95 % interval'].endswith(interval)]
    assert row['ours, 95 % interval'].split()[0] == effect
    assert row['seeds'].split()[0] == num_seeds


def test_the_readme_counts_the_verdicts():
  verdicts = collections.Counter(row['verdict'] for row in rows_of_claims())
  untested = verdicts.pop('needs ImageNet') + verdicts.pop('needs two GPUs')
  counts = [verdicts.total() + untested, *(verdicts[name] for name in VERDICTS), untested]
  sentence = (
    'Of {} claims, {} are reproduced, {} have the same direction but another size, {} are inconclusive, {} are '
    'contradicted, and {} need ImageNet or two GPUs'
  )
  assert sentence.format(*counts).replace(', 1 are', ', 1 is') in ' '.join((ROOT / 'README.md').read_text().split())
  _, chinese = (ROOT / 'README.zh-CN.md').read_text().split('[RESULTS.md](RESULTS.md)')
  assert [int(number) for number in re.findall(r'(\d+) 个', chinese.split('\n\n')[0])] == counts


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'name an experiment; --list lists all of them'),
    (['figure2'], "there is no experiment 'figure2'; the experiments are figure1, lrn"),
    (['lrn', '--seeds=0'], '--seeds=0 must be 1 or more'),
    (['lrn', '--write'], '--list and --write apply to all experiments'),
    (['lrn', '--list'], '--list and --write apply to all experiments'),
    (['--write', '--seeds=3'], '--write trains nothing; omit --list and --seeds'),
    (['lrn', '--data_dir=nowhere'], "data.dir='nowhere' is not a folder"),
  ],
)
def test_wrong_usage_is_explained(arguments, message, capsys, tmp_path, monkeypatch):
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  assert cli.main(['reproduce', *arguments]) == 2
  assert message in capsys.readouterr().err


def test_the_list_contains_all_experiments_and_the_claims_that_require_imagenet(capsys):
  assert cli.main(['reproduce', '--list']) == 0
  output = capsys.readouterr().out
  assert all(name in output for name in EXPERIMENTS)
  assert ':fall2009,conv6' in output
