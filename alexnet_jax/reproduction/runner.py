"""The paper's experiments, run and set beside the paper.

    python -m alexnet_jax reproduce --list                 # what there is, and how long it takes
    python -m alexnet_jax reproduce figure1 --seeds=1      # one experiment, with one seed instead of three
    python -m alexnet_jax reproduce figure1 lrn            # several, one after the other
    python -m alexnet_jax reproduce lrn --output=again     # once more from the start, in a folder of its own
    python -m alexnet_jax reproduce --write                # RESULTS.md and its figures again, from what is in results/

The small networks leave the second core of a CPU idle half of the time. Several experiments side by side, on a core
each, do 1.4 times as much as one after the other:

    taskset --cpu-list 0 python -m alexnet_jax reproduce lrn &
    taskset --cpu-list 1 python -m alexnet_jax reproduce 13pct

Every training goes on where it was stopped or killed. One that has ended leaves a small JSON with its curves in
results/EXPERIMENT/, and is not trained again while that is there; then RESULTS.md and the figure are brought up to
date. Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped; the same command goes on.
"""

import argparse
import datetime
import pathlib
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from alexnet_jax.analysis import figures, plots
from alexnet_jax.evaluation import ensemble
from alexnet_jax.kernels import onednn
from alexnet_jax.models import towers
from alexnet_jax.reproduction import claims, records, report
from alexnet_jax.reproduction.experiments import EXPERIMENTS, Condition, Experiment, curves, error_after, trial_name
from alexnet_jax.reproduction.records import Record
from alexnet_jax.runs import checkpoints, config_files, run_folder
from alexnet_jax.runtime import atomic_files, host_memory
from alexnet_jax.runtime.errors import LockedError, RunError, UsageError
from alexnet_jax.training import loop

SECONDS_BETWEEN_LOOKS = 30  # at a training that another process is at


class Folders(NamedTuple):
  """Where things are.

  Attributes:
    results: folder of what is kept, a folder for each experiment.
    report: RESULTS.md.
    runs: folder of the trainings, a folder for each experiment; they may be deleted when they have ended.
    data_dir: folder of the datasets; empty: TFDS's own.
    fields: of every config that are set to something else, for tests of a few steps.
  """

  results: pathlib.Path = pathlib.Path('results')
  report: pathlib.Path = pathlib.Path('RESULTS.md')
  runs: pathlib.Path = pathlib.Path('runs', 'reproduce')
  data_dir: str = ''
  fields: Mapping[str, object] = {}


class Training(NamedTuple):
  """One training of an experiment.

  Attributes:
    experiment: whose it is.
    arm: that is trained.
    rate: learning rate; None for that of the config.
    seed: of the run; of an average, how many networks it is of, those of seeds 0, 1, ...
    num_epochs: how long.
  """

  experiment: Experiment
  condition: Condition
  rate: float | None
  seed: int
  num_epochs: float

  @property
  def name(self) -> str:
    """Of its files, such as 'relu-rate0.001-seed0', or 'averaged'."""
    if self.condition.averages:
      return self.condition.name
    name = self.condition.name if self.rate is None else trial_name(self.condition.name, self.rate)
    return f'{name}-seed{self.seed}'

  def needed(self, condition: Condition, seed: int) -> 'Training':
    """Returns a training of another arm, which this one stands on."""
    return self._replace(condition=condition, rate=None, seed=seed, num_epochs=condition.num_epochs)

  @property
  def home(self) -> str:
    """Of the folder of its files, which may be shared with other experiments."""
    return self.condition.home or self.experiment.name


def reproduce(options: argparse.Namespace) -> int:
  """Runs `reproduce` and returns 0.

  Raises:
    UsageError: if the options do not go together, or there is no such experiment.
    RunError: as `loop.train_and_evaluate`.
    Stopped: if stopped by SIGTERM or Ctrl-C, after saving.
  """
  if options.list:
    print(listing(options.seeds))
    return 0
  folders = Folders(
    options.output / 'results', options.output / 'RESULTS.md', options.output / 'runs' / 'reproduce', options.data_dir
  )
  if options.seeds is not None and options.seeds < 1:
    raise UsageError(f'--seeds={options.seeds} must be 1 or more.')
  if not options.experiments and not options.write:
    raise UsageError('name experiments; --list shows all of them.')
  for name in options.experiments:
    if name not in EXPERIMENTS:
      raise UsageError(f"there is no experiment '{name}'; there are {', '.join(EXPERIMENTS)}.")
  if options.experiments:
    onednn.enable()
    host_memory.trim_after_compiling()
  for name in options.experiments:
    run(EXPERIMENTS[name], folders, options.seeds)
  if options.write:
    write(folders)
  return 0


def listing(num_seeds: int | None = None) -> str:
  """Sets out all experiments for a reader."""
  lines = [f'{"experiment":18}{"section":9}{"seeds":>5}{"epochs":>8}{"hours":>8}  what, and what it needs']
  for experiment in EXPERIMENTS.values():
    seeds = num_seeds or experiment.num_seeds
    needs = experiment.needs or experiment.data
    cost = (
      (f'{experiment.num_epochs(seeds):.0f}', f'{experiment.hours(seeds):.1f}') if experiment.conditions else ('', '')
    )
    lines.append(
      f'{experiment.name:18}{experiment.section:9}{seeds if experiment.conditions else "":>5}{cost[0]:>8}{cost[1]:>8}  '
      f'{experiment.title}; {needs}'
    )
  lines += [
    '',
    'Hours are of training on one core of an AMD EPYC, while the other does as much; experiments on `small` share the',
    "trainings of the paper's recipe, which each of them counts. What only ImageNet or two GPUs can show, by",
    'python main.py --config=configs/alexnet.py with:',
    '',
  ]
  lines += [f'{claim.section:6}{claim.what}: {claim.command}' for claim in claims.CLAIMS if claim.needs]
  return '\n'.join(lines)


def run(experiment: Experiment, folders: Folders, num_seeds: int | None = None) -> None:
  """Trains what is missing of an experiment, and brings its entry up to date after each training.

  Args:
    experiment: what to train.
    folders: where things are.
    num_seeds: repetitions of each arm, with seeds 0, 1, ...; None: the experiment's own number.

  Raises:
    UsageError, RunError: as `train.train_and_evaluate`.
    Stopped: if told to by SIGTERM or Ctrl-C, after saving.
  """
  num_seeds = num_seeds or experiment.num_seeds
  left = experiment.num_epochs(num_seeds)
  for training in plan(experiment, folders, num_seeds):
    while find(training, folders) is None:
      print(
        f'{experiment.name}: {training.name}, {training.num_epochs:g} epochs; {_time(experiment, left)} left in all'
      )
      try:
        records.save(_path(training, folders), (average if training.condition.averages else train)(training, folders))
      except LockedError as error:  # as by an experiment that shares it
        print(f'{error} Waiting for it.', flush=True)
        time.sleep(SECONDS_BETWEEN_LOOKS)
      write(folders)
    left -= 0 if training.condition.averages else training.num_epochs
  draw_pictures(experiment, folders)
  write(folders)
  print(report.entry(experiment, finished(experiment, folders)))


def _time(experiment, num_epochs):
  seconds = max(num_epochs, 0) * experiment.num_images / experiment.images_per_second
  return datetime.timedelta(seconds=round(seconds))


def plan(experiment: Experiment, folders: Folders, num_seeds: int) -> Iterator[Training]:
  """Yields the trainings of an experiment one by one; which rate comes next hangs on how the trials before it ended."""
  for condition in experiment.conditions:
    for rate in condition.rates:
      yield Training(experiment, condition, rate, 0, condition.trial_epochs)
  for seed in range(num_seeds):  # all arms of one seed, so that there is something to compare as soon as may be
    for condition in experiment.all_conditions():
      if not condition.averages:
        yield Training(experiment, condition, chosen_rate(experiment, condition, folders), seed, condition.num_epochs)
  for condition in experiment.conditions:
    if condition.averages:
      yield Training(experiment, condition, None, num_seeds, condition.num_epochs)


def chosen_rate(experiment: Experiment, condition: Condition, folders: Folders) -> float | None:
  """Returns the rate whose trial had the lowest training error.

  Returns:
    None if the arm has no rates to choose from, or not all of their trials have ended.
  """
  ended = trials(experiment, condition, folders)
  if len(ended) < len(condition.rates) or not ended:
    return None
  return min(ended, key=lambda rate: error_after(ended[rate], condition.trial_epochs))


def trials(experiment: Experiment, condition: Condition, folders: Folders) -> dict[float, Record]:
  """Reads what is kept of the trials of an arm that have ended, by their rate."""
  found = {
    rate: find(Training(experiment, condition, rate, 0, condition.trial_epochs), folders) for rate in condition.rates
  }
  return {rate: record for rate, record in found.items() if record}


def find(training: Training, folders: Folders) -> Record | None:
  """Returns what is kept of a training; None if it has not ended, or was a shorter one, or an average of fewer."""
  record = records.load(_path(training, folders))
  if not record or not is_long_enough(record, training.num_epochs):
    return None
  return None if training.condition.averages and record.seed < training.seed else record


def is_long_enough(record: Record, num_epochs: float) -> bool:
  """Says whether a training was of so many epochs, or more; steps are whole, epochs are not."""
  return record.num_epochs >= num_epochs - 0.01


def _path(training, folders):
  return folders.results / training.home / f'{training.name}.json'


def train(training: Training, folders: Folders) -> Record:
  """Trains and evaluates, going on where an earlier attempt ended; raises as `train.train_and_evaluate`."""
  own = own_fields(training)
  if training.condition.init_from:
    own['init_from'] = str(run_of(training.needed(training.condition.init_from, training.seed), folders))
  config = configure(training, own, folders)
  folder = _folder(training, folders)
  results = loop.train_and_evaluate(config, folder)
  flags = shlex.join(f'--config.{field}={value}' for field, value in own.items())
  return records.make_record(
    command=f'python main.py --config={training.condition.config} {flags}',
    seed=training.seed,
    versions=towers.versions(),
    devices=towers.accelerators(),
    batch_size=config.batch_size,
    num_images=run_folder.load_statistics(folder).num_images,
    results=results,
    curves=figures.read_curves(folder),
    measured=training.condition.inspect(folder) if training.condition.inspect else {},
  )


def average(training: Training, folders: Folders) -> Record:
  """Averages what the networks of all seeds predict (section 6); those whose runs are gone are trained again."""
  members = [training.needed(training.condition.averages, seed) for seed in range(training.seed)]
  run_folders = [run_of(member, folders) for member in members]
  config = configure(members[0], own_fields(members[0]), folders)
  results = ensemble.evaluate_ensemble(config, run_folders)
  return records.make_record(
    command=f'python main.py --config={training.condition.config} --mode=eval '
    f'--workdir={",".join(map(str, run_folders))}',
    seed=len(run_folders),
    versions=towers.versions(),
    devices=towers.accelerators(),
    batch_size=config.batch_size,
    num_images=run_folder.load_statistics(run_folders[0]).num_images,
    results=results | {'step': results['members'][0]['step']},
    curves={},
  )


def run_of(training: Training, folders: Folders) -> pathlib.Path:
  """Returns the folder of a run that others need, with its last checkpoint; trains it where that is gone."""
  folder, record = _folder(training, folders), find(training, folders)
  if not record or (checkpoints.newest_step(folder) or 0) < int(record.num_epochs * record.steps_per_epoch):
    print(f'{training.name}, which this needs, is trained first: {training.num_epochs:g} epochs')
    records.save(_path(training, folders), train(training, folders))
  return folder


def draw_pictures(experiment: Experiment, folders: Folders) -> None:
  """Draws what is to be seen in a run of an experiment and is not drawn yet."""
  for name in experiment.pictures:
    path = folders.results / f'{experiment.name}-{name}.png'
    if not path.exists():
      first = experiment.conditions[0]
      folder = run_of(Training(experiment, first, None, 0, first.num_epochs), folders)
      figures.draw(
        argparse.Namespace(
          figure=name,
          source=folder,
          workdir=folder,
          images=[],
          num_images=8 if name == 'predictions' else 5,
          seed=0,
          split=None,
          data_dir=None,
          only_errors=False,
          k=6,
          layer='fc7',
          towers=2,
          bgr=False,
          common_scale=False,
          output=path,
        )
      )


def own_fields(training: Training) -> dict[str, object]:
  """Returns the fields in which a training differs from the config of its arm."""
  own = {'num_epochs': training.num_epochs, 'seed': training.seed, **training.condition.fields}
  return own if training.rate is None else own | {'optimizer.rate': training.rate}


def configure(training: Training, own: Mapping[str, object], folders: Folders):
  """Returns the config of a training, with fields of its own."""
  config = config_files.load_config(training.condition.config)
  config.data.dir = folders.data_dir
  config.update_from_flattened_dict({**own, **folders.fields})
  return config


def _folder(training, folders):
  return folders.runs / training.home / training.name


def finished(experiment: Experiment, folders: Folders) -> dict[str, list[Record]]:
  """Reads what is kept of the trainings that have ended, of an experiment and of those that it reads."""
  found = _own(experiment, folders)
  for name in experiment.reads:
    found |= {f'{name}/{condition}': some for condition, some in _own(EXPERIMENTS[name], folders).items()}
  return found


def _own(experiment, folders):
  """Reads what is kept of the trainings of an experiment itself, its trials too."""
  found = {}
  for condition in experiment.all_conditions():
    found |= {trial_name(condition.name, rate): [one] for rate, one in trials(experiment, condition, folders).items()}
    some, rate = [], chosen_rate(experiment, condition, folders)
    if condition.rates and rate is None:
      continue
    if condition.averages:
      record = find(Training(experiment, condition, rate, 1, condition.num_epochs), folders)
      some = [record] if record else []
    else:
      while record := find(Training(experiment, condition, rate, len(some), condition.num_epochs), folders):
        some.append(record)
    if some:
      found[condition.name] = some
  return found


def write(folders: Folders, *, draw: bool = True) -> None:
  """Writes RESULTS.md and, if asked to, the figures of experiments from what is kept.

  Raises:
    RunError: if one cannot be written.
  """
  found = {name: finished(experiment, folders) for name, experiment in EXPERIMENTS.items()}
  for name, experiment in EXPERIMENTS.items():
    if draw and experiment.conditions and experiment.shown and report.is_complete(experiment, found[name]):
      figure = plots.draw_comparison(curves(experiment, found[name]), experiment.quantity, level=experiment.level)
      plots.save(figure, folders.results / f'{name}.png')
  try:
    with atomic_files.atomic_write(folders.report) as partial:
      partial.write_text(report.report(found))
  except OSError as error:
    raise RunError(f'{folders.report} cannot be written ({error.strerror}).') from error
