"""Runs the experiments of the paper: the function of `python -m alexnet_jax reproduce`.

A finished training leaves a record in results/EXPERIMENT/ and is not repeated while the record exists. An interrupted
training resumes from its newest checkpoint. RESULTS.md and its figures are updated after each training.
"""

import argparse
import datetime
import pathlib
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from alexnet_jax.analysis import figures, plots
from alexnet_jax.evaluation import ensemble
from alexnet_jax.kernels import onednn
from alexnet_jax.reproduction import records, report
from alexnet_jax.reproduction.claims import CLAIMS
from alexnet_jax.reproduction.experiments import (
  EXPERIMENTS,
  Condition,
  Experiment,
  curves_by_label,
  decay_epochs,
  error_after,
  trial_name,
)
from alexnet_jax.reproduction.records import Record
from alexnet_jax.reproduction.verdicts import Records
from alexnet_jax.runs import checkpoints, config_files, run_folder
from alexnet_jax.runs.curves import read_curves
from alexnet_jax.runtime import atomic_files, host_memory
from alexnet_jax.runtime.errors import LockedError, RunError, UsageError
from alexnet_jax.training import loop

RETRY_SECONDS = 30  # between attempts to start a training that another process is running


class Folders(NamedTuple):
  """Input and output paths, and config fields that apply to every training.

  Attributes:
    results: folder of the records, with a subfolder per experiment, and of the figures.
    report: path of RESULTS.md.
    runs: folder of the runs, with a subfolder per experiment; finished runs may be deleted.
    data_dir: folder of the datasets; empty for TFDS's default.
    overrides: config fields that replace those of every training, for tests that take a few steps.
  """

  results: pathlib.Path = pathlib.Path('results')
  report: pathlib.Path = pathlib.Path('RESULTS.md')
  runs: pathlib.Path = pathlib.Path('runs', 'reproduce')
  data_dir: str = ''
  overrides: Mapping[str, object] = {}


class Training(NamedTuple):
  """One training of an experiment, or one average of trained networks.

  Attributes:
    experiment: the experiment.
    condition: the condition.
    learning_rate: learning rate; None for that of the config.
    seed: seed of the run; for an average, its number, see `Condition.averaged_seeds`.
    num_epochs: number of epochs.
  """

  experiment: Experiment
  condition: Condition
  learning_rate: float | None
  seed: int
  num_epochs: float

  @property
  def name(self) -> str:
    """Name of its files, such as 'relu-rate0.001-seed0'."""
    name = self.condition.name
    if self.learning_rate is not None:
      name = trial_name(name, self.learning_rate)
    return f'{name}-seed{self.seed}'

  @property
  def folder(self) -> str:
    """Name of the folder of its files, which other experiments may share."""
    return self.condition.folder or self.experiment.name

  def prerequisite(self, condition: Condition, seed: int) -> 'Training':
    """Returns the training of another condition, on which this one depends."""
    return self._replace(condition=condition, learning_rate=None, seed=seed, num_epochs=condition.num_epochs)

  def fields(self) -> dict[str, object]:
    """Returns the config fields that differ from those of the condition's config."""
    fields = {'num_epochs': self.num_epochs, 'seed': self.seed, **self.condition.fields}
    return fields if self.learning_rate is None else fields | {'optimizer.rate': self.learning_rate}


def reproduce(options: argparse.Namespace) -> int:
  """Runs the subcommand `reproduce` and returns the exit status 0.

  Args:
    options: options of the subcommand.

  Raises:
    UsageError: if the options are invalid or name an unknown experiment, or as `run_experiment`.
    RunError, Stopped: as `run_experiment`.
  """
  if options.experiments and (options.list or options.write):
    raise UsageError(
      '--list and --write apply to all experiments; omit the names, or the option to run the experiments.'
    )
  if options.write and (options.list or options.seeds is not None):
    raise UsageError('--write trains nothing; omit --list and --seeds.')
  if options.list:
    print(list_experiments(options.seeds))
    return 0
  folders = Folders(
    options.output / 'results', options.output / 'RESULTS.md', options.output / 'runs' / 'reproduce', options.data_dir
  )
  if options.seeds is not None and options.seeds < 1:
    raise UsageError(f'--seeds={options.seeds} must be 1 or more.')
  if not options.experiments and not options.write:
    raise UsageError('name an experiment; --list lists all of them.')
  for name in options.experiments:
    if name not in EXPERIMENTS:
      raise UsageError(f"there is no experiment '{name}'; the experiments are {', '.join(EXPERIMENTS)}.")
  if options.write:
    write_report(folders)
    return 0
  onednn.enable()
  host_memory.trim_after_compiling()
  for name in options.experiments:
    run_experiment(EXPERIMENTS[name], folders, options.seeds)
  return 0


def list_experiments(num_seeds: int | None = None) -> str:
  """Formats all experiments with their durations as a table, followed by the claims that no experiment tests.

  Args:
    num_seeds: number of seeds; None for that of each experiment.
  """
  lines = [f'{"experiment":20}{"section":9}{"seeds":>5}{"epochs":>8}{"hours":>8}  title; data']
  for experiment in EXPERIMENTS.values():
    seeds, epochs, hours = '', '', ''
    if experiment.conditions:
      seeds = str(num_seeds or experiment.num_seeds)
      num_epochs = experiment.num_epochs(num_seeds or experiment.num_seeds)
      epochs, hours = f'{num_epochs:.0f}', f'{experiment.seconds(num_epochs) / 3600:.1f}'
    lines.append(
      f'{experiment.name:20}{experiment.section:9}{seeds:>5}{epochs:>8}{hours:>8}  '
      f'{experiment.title}; {experiment.requires or experiment.data}'
    )
  lines += [
    '',
    'Hours are of training on one core of an AMD EPYC while its other core trains as well. Experiments on `small`',
    "share the trainings of the paper's recipe, which count in each of them.",
    '',
    'The following claims require ImageNet or two GPUs. Test them by python main.py --config=configs/alexnet.py with:',
    '',
  ]
  lines += [f'{claim.section:6}{claim.statement}: {claim.command}' for claim in CLAIMS if claim.requires]
  return '\n'.join(lines)


def run_experiment(experiment: Experiment, folders: Folders, num_seeds: int | None = None) -> None:
  """Runs the unfinished trainings of an experiment, updates RESULTS.md after each, and prints the entry.

  Args:
    experiment: the experiment.
    folders: input and output paths.
    num_seeds: number of repetitions of each condition, with seeds 0, 1, ...; None for the experiment's default.

  Raises:
    UsageError, RunError: as `loop.train_and_evaluate`, or if a record is damaged or a file cannot be written.
    Stopped: if stopped by SIGTERM or Ctrl-C, after saving.
  """
  num_seeds = num_seeds or experiment.num_seeds
  remaining_epochs = experiment.num_epochs(num_seeds)
  for training in trainings(experiment, folders, num_seeds):
    while load_record(training, folders) is None:
      remaining = datetime.timedelta(seconds=round(experiment.seconds(max(remaining_epochs, 0))))
      print(f'{experiment.name}: {training.name}, {training.num_epochs:g} epochs; {remaining} remaining in total')
      try:
        record = average(training, folders) if training.condition.ensemble_of else train(training, folders)
        records.save(_record_path(training, folders), record)
      except LockedError as error:  # another experiment shares this training
        print(f'Waiting: {error}', flush=True)
        time.sleep(RETRY_SECONDS)
        continue
      write_report(folders)
    remaining_epochs -= training.num_epochs * training.condition.num_networks
  draw_run_figures(experiment, folders)
  write_report(folders)
  finished = load_all_records(folders)
  finding = report.conclude(finished).get(experiment.name)
  print(report.render_entry(experiment, finished[experiment.name], finding))


def trainings(experiment: Experiment, folders: Folders, num_seeds: int) -> Iterator[Training]:
  """Yields the trainings of an experiment in order.

  A training must be finished before the next is requested, because learning rates are chosen by the records of trials.
  """
  for condition in experiment.conditions:
    for candidate in condition.learning_rates:
      yield Training(experiment, condition, candidate, 0, condition.trial_epochs)
  for seed in range(num_seeds):  # all conditions of a seed, so that they can be compared early
    for condition in experiment.all_conditions():
      learning_rate = choose_learning_rate(experiment, condition, folders)
      yield Training(experiment, condition, learning_rate, seed, condition.num_epochs)


def choose_learning_rate(experiment: Experiment, condition: Condition, folders: Folders) -> float | None:
  """Returns the learning rate whose trial had the lowest training error.

  Returns:
    The learning rate; None if the condition has no candidates, or their trials are not all finished.
  """
  trials = load_trials(experiment, condition, folders)
  if len(trials) < len(condition.learning_rates) or not trials:
    return None
  return min(trials, key=lambda learning_rate: error_after(trials[learning_rate], condition.trial_epochs))


# Records.


def _record_path(training, folders):
  return folders.results / training.folder / f'{training.name}.json'


def load_record(training: Training, folders: Folders) -> Record | None:
  """Loads the record of a training; None if there is none, or it is of fewer epochs."""
  record = records.load(_record_path(training, folders))
  return record if record and is_long_enough(record, training.num_epochs) else None


def is_long_enough(record: Record, num_epochs: float) -> bool:
  """Returns whether a training has a number of epochs, or more; a whole number of steps may fall slightly short."""
  return record.num_epochs >= num_epochs - 0.01


def load_trials(experiment: Experiment, condition: Condition, folders: Folders) -> dict[float, Record]:
  """Loads the records of the finished trials of a condition, by learning rate."""
  trials = {}
  for learning_rate in condition.learning_rates:
    if record := load_record(Training(experiment, condition, learning_rate, 0, condition.trial_epochs), folders):
      trials[learning_rate] = record
  return trials


def load_records(experiment: Experiment, folders: Folders) -> dict[str, list[Record]]:
  """Loads the records of the finished trainings of an experiment and of those that it reads, by condition or trial.

  Seeds beyond the planned number, such as those of further networks in averages, do not count.
  """
  finished = _load_own_records(experiment, folders)
  for name in experiment.reads:
    others = _load_own_records(EXPERIMENTS[name], folders)
    finished |= {f'{name}/{condition}': seeds for condition, seeds in others.items()}
  return finished


def load_all_records(folders: Folders) -> dict[str, dict[str, list[Record]]]:
  """Loads the records of `load_records` for all experiments, by name."""
  return {name: load_records(experiment, folders) for name, experiment in EXPERIMENTS.items()}


def _load_own_records(experiment: Experiment, folders: Folders) -> dict[str, list[Record]]:
  finished: dict[str, list[Record]] = {}
  for condition in experiment.all_conditions():
    trials = load_trials(experiment, condition, folders)
    finished |= {trial_name(condition.name, learning_rate): [record] for learning_rate, record in trials.items()}
    learning_rate = choose_learning_rate(experiment, condition, folders)
    if condition.learning_rates and learning_rate is None:
      continue
    training = Training(experiment, condition, learning_rate, 0, condition.num_epochs)
    seeds: list[Record] = []
    while len(seeds) < experiment.num_seeds and (record := load_record(training._replace(seed=len(seeds)), folders)):
      seeds.append(record)
    if seeds:
      finished[condition.name] = seeds
  return finished


# Trainings.


def train(training: Training, folders: Folders) -> Record:
  """Trains and evaluates a network, resuming an interrupted run; raises as `loop.train_and_evaluate`."""
  condition, fields = training.condition, training.fields()
  if condition.init_from:
    fields['init_from'] = str(require_run(training.prerequisite(condition.init_from, training.seed), folders))
  config, workdir = make_config(condition, fields, folders), _workdir(training, folders)
  results = loop.train_and_evaluate(config, workdir)
  flags = shlex.join(f'--config.{field}={value}' for field, value in fields.items())
  record = records.make_record(
    command=f'python main.py --config={condition.config} {flags}',
    seed=training.seed,
    batch_size=config.batch_size,
    num_images=run_folder.load_statistics(workdir).num_images,
    results=results,
    curves=read_curves(workdir),
  )
  return record._replace(measured=dict(item for measure in condition.measures for item in measure(workdir).items()))


def average(training: Training, folders: Folders) -> Record:
  """Averages the predictions of several networks (section 6); those whose runs do not exist are trained first.

  Raises:
    UsageError, RunError, Stopped: as `train` and `ensemble.evaluate_ensemble`.
  """
  condition = training.condition
  assert condition.ensemble_of is not None
  members = [training.prerequisite(condition.ensemble_of, seed) for seed in condition.averaged_seeds(training.seed)]
  workdirs = [require_run(member, folders) for member in members]
  config = make_config(condition.ensemble_of, members[0].fields(), folders)
  results = ensemble.evaluate_ensemble(config, workdirs)
  record = records.make_record(
    command=f'python main.py --config={condition.config} --mode=eval --workdir={",".join(map(str, workdirs))}',
    seed=training.seed,
    batch_size=config.batch_size,
    num_images=run_folder.load_statistics(workdirs[0]).num_images,
    results=results | {'step': results['members'][0]['step']},
    curves={},
  )
  return record._replace(measured={'member_errors': [row['ten_view']['top1_error'] for row in results['members']]})


def require_run(training: Training, folders: Folders) -> pathlib.Path:
  """Returns the folder of a finished run with its last checkpoint; trains the network if necessary.

  Raises:
    UsageError, RunError, Stopped: as `train`.
  """
  workdir, record = _workdir(training, folders), load_record(training, folders)
  if not record or (checkpoints.newest_step(workdir) or 0) < int(record.num_epochs * record.steps_per_epoch):
    print(f'{training.name} is required and is trained first: {training.num_epochs:g} epochs')
    records.save(_record_path(training, folders), train(training, folders))
  return workdir


def make_config(condition: Condition, fields: Mapping[str, object], folders: Folders) -> ConfigDict:
  """Returns the config of a condition with other values of some fields."""
  config = config_files.load_config(condition.config)
  config.data.dir = folders.data_dir
  config.update_from_flattened_dict({**fields, **folders.overrides})
  return config


def _workdir(training, folders):
  return folders.runs / training.folder / training.name


# Output.


def draw_run_figures(experiment: Experiment, folders: Folders) -> None:
  """Draws the figures of the first run of an experiment that do not exist yet."""
  for name in experiment.run_figures:
    path = folders.results / f'{experiment.name}-{name}.png'
    if path.exists():
      continue
    condition = experiment.conditions[0]
    workdir = require_run(Training(experiment, condition, None, 0, condition.num_epochs), folders)
    match name:
      case 'kernels':
        figure = figures.kernels(workdir)
      case 'predictions':
        figure, _ = figures.predictions(figures.ImageSelection(workdir, num_images=8))
      case 'neighbours':
        figure, _ = figures.neighbours(figures.ImageSelection(workdir, num_images=5))
    plots.save(figure, path)


def write_report(folders: Folders, *, draw: bool = True) -> None:
  """Writes RESULTS.md and, if `draw`, the figures of all finished experiments.

  Raises:
    UsageError: if a record is damaged.
    RunError: if a file cannot be written.
  """
  finished = load_all_records(folders)
  if draw:
    for name, figure in drawn_figures(finished):
      plots.save(figure, folders.results / f'{name}.png')
  try:
    atomic_files.write_text(folders.report, report.render(finished))
  except OSError as error:
    raise RunError(f'{folders.report} cannot be written ({error.strerror}).') from error


def drawn_figures(finished: Mapping[str, Records]) -> Iterator[tuple[str, plots.Figure]]:
  """Yields the names and figures that are drawn from the records of `load_all_records`: curves, and all claims."""
  for name, experiment in EXPERIMENTS.items():
    if experiment.conditions and experiment.curves and not report.missing_conditions(experiment, finished[name]):
      yield (
        name,
        plots.draw_conditions(
          curves_by_label(experiment, finished[name]),
          experiment.axis_label,
          experiment.title,
          level=experiment.marked_error,
          decays=decay_epochs(experiment),
        ),
      )
  findings = report.conclude(finished)
  for study in dict.fromkeys(EXPERIMENTS[name].study for name in findings):
    yield report.CLAIMS_FIGURES[study], report.draw_claims(findings, study)
