"""The paper's experiments, run and set beside the paper.

    python -m alexnet_jax.reproduce --list                 # what there is, and how long it takes
    python -m alexnet_jax.reproduce figure1 --seeds=1      # one experiment, with one seed instead of three
    python -m alexnet_jax.reproduce figure1 lrn            # several, one after the other
    python -m alexnet_jax.reproduce lrn --output=again     # once more from the start, in a folder of its own
    python -m alexnet_jax.reproduce --write                # RESULTS.md and its figures again, from what is in results/

The small networks leave the second core of a CPU idle half of the time. Several experiments side by side, on a core
each, do 1.4 times as much as one after the other:

    taskset --cpu-list 0 python -m alexnet_jax.reproduce lrn &
    taskset --cpu-list 1 python -m alexnet_jax.reproduce 13pct

Every training goes on where it was stopped or killed. One that has ended leaves a small JSON with its curves in
results/EXPERIMENT/, and is not trained again while that is there; then RESULTS.md and the figure are brought up to
date. Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped; the same command goes on.
"""

import argparse
import datetime
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from alexnet_jax import cache, claims, command, files, memory, outcomes
from alexnet_jax.errors import HeldError, RunError, Stopped, UsageError
from alexnet_jax.experiments import EXPERIMENTS, Arm, Experiment, curves, error_after, trial_name
from alexnet_jax.outcomes import Outcome
from alexnet_jax.stopping import STOPPED

SECONDS_BETWEEN_LOOKS = 30  # at a training that another process is at


class Place(NamedTuple):
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
  arm: Arm
  rate: float | None
  seed: int
  num_epochs: float

  @property
  def name(self) -> str:
    """Of its files, such as 'relu-rate0.001-seed0', or 'averaged'."""
    if self.arm.averages:
      return self.arm.name
    name = self.arm.name if self.rate is None else trial_name(self.arm.name, self.rate)
    return f'{name}-seed{self.seed}'

  def needed(self, arm: Arm, seed: int) -> 'Training':
    """Returns a training of another arm, which this one stands on."""
    return self._replace(arm=arm, rate=None, seed=seed, num_epochs=arm.num_epochs)

  @property
  def home(self) -> str:
    """Of the folder of its files, which may be shared with other experiments."""
    return self.arm.home or self.experiment.name


def main(arguments: Sequence[str] | None = None) -> int:
  """Does what the command line asks for and returns the exit status."""
  options = parser().parse_args(arguments)

  def do():
    if options.list:
      print(listing(options.seeds))
      return 0
    place = Place(
      options.output / 'results', options.output / 'RESULTS.md', options.output / 'runs' / 'reproduce', options.data_dir
    )
    if options.seeds is not None and options.seeds < 1:
      raise UsageError(f'--seeds={options.seeds} must be 1 or more.')
    if not options.experiments and not options.write:
      raise UsageError('name experiments, as --list shows them.')
    if not pathlib.Path('configs').is_dir():
      raise UsageError('there is no folder configs/ here; run this in the folder of the project.')
    for name in options.experiments:
      if name not in EXPERIMENTS:
        raise UsageError(f"there is no experiment '{name}'; there are {', '.join(EXPERIMENTS)}.")
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # else TensorFlow, which only writes curves, speaks of them
    logging.set_verbosity(logging.ERROR)  # the libraries' own chatter
    cache.keep_compiled_programs()
    if options.experiments:
      from alexnet_jax import onednn  # needs jax, which a table does not

      onednn.use()
      memory.trim_after_compiling()
    for name in options.experiments:
      run(EXPERIMENTS[name], place, options.seeds)
    if options.write:
      write(place)
    return 0

  try:
    return command.run(do, 'stopped; the same command goes on.')
  except Stopped as stopped:
    print(f'{stopped}; the same command goes on.', file=sys.stderr)
    return STOPPED


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.reproduce', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('experiments', metavar='EXPERIMENT', nargs='*', help='names, as --list shows them')
  parser.add_argument('--list', action='store_true', help='show all experiments, what they need and how long they take')
  parser.add_argument('--write', action='store_true', help='write RESULTS.md and its figures anew from results/')
  parser.add_argument('--seeds', type=int, metavar='N', help='seeds 0 to N - 1; by default as --list shows')
  parser.add_argument(
    '--output', type=pathlib.Path, default='.', metavar='DIR', help='where results/, RESULTS.md and runs/ are (.)'
  )
  parser.add_argument('--data_dir', default='', metavar='DIR', help="folder of the datasets; by default TFDS's own")
  return parser


def listing(num_seeds: int | None = None) -> str:
  """Sets out all experiments for a reader."""
  lines = [f'{"experiment":18}{"section":9}{"seeds":>5}{"epochs":>8}{"hours":>8}  what, and what it needs']
  for experiment in EXPERIMENTS.values():
    seeds = num_seeds or experiment.num_seeds
    needs = experiment.needs or experiment.data
    cost = (f'{experiment.num_epochs(seeds):.0f}', f'{experiment.hours(seeds):.1f}') if experiment.arms else ('', '')
    lines.append(
      f'{experiment.name:18}{experiment.section:9}{seeds if experiment.arms else "":>5}{cost[0]:>8}{cost[1]:>8}  '
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


def run(experiment: Experiment, place: Place, num_seeds: int | None = None) -> None:
  """Trains what is missing of an experiment, and brings its entry up to date after each training.

  Args:
    experiment: what to train.
    place: where things are.
    num_seeds: repetitions of each arm, with seeds 0, 1, ...; None: the experiment's own number.

  Raises:
    UsageError, RunError: as `train.train_and_evaluate`.
    Stopped: if told to by SIGTERM or Ctrl-C, after saving.
  """
  num_seeds = num_seeds or experiment.num_seeds
  left = experiment.num_epochs(num_seeds)
  for training in plan(experiment, place, num_seeds):
    while find(training, place) is None:
      print(
        f'{experiment.name}: {training.name}, {training.num_epochs:g} epochs; {_time(experiment, left)} left in all'
      )
      try:
        outcomes.save(_path(training, place), (average if training.arm.averages else train)(training, place))
      except HeldError as error:  # as by an experiment that shares it
        print(f'{error} Waiting for it.', flush=True)
        time.sleep(SECONDS_BETWEEN_LOOKS)
      write(place)
    left -= 0 if training.arm.averages else training.num_epochs
  draw_pictures(experiment, place)
  write(place)
  print(claims.entry(experiment, finished(experiment, place)))


def _time(experiment, num_epochs):
  seconds = max(num_epochs, 0) * experiment.num_images / experiment.images_per_second
  return datetime.timedelta(seconds=round(seconds))


def plan(experiment: Experiment, place: Place, num_seeds: int) -> Iterator[Training]:
  """Yields the trainings of an experiment one by one; which rate comes next hangs on how the trials before it ended."""
  for arm in experiment.arms:
    for rate in arm.rates:
      yield Training(experiment, arm, rate, 0, arm.trial_epochs)
  for seed in range(num_seeds):  # all arms of one seed, so that there is something to compare as soon as may be
    for arm in experiment.all_arms():
      if not arm.averages:
        yield Training(experiment, arm, chosen_rate(experiment, arm, place), seed, arm.num_epochs)
  for arm in experiment.arms:
    if arm.averages:
      yield Training(experiment, arm, None, num_seeds, arm.num_epochs)


def chosen_rate(experiment: Experiment, arm: Arm, place: Place) -> float | None:
  """Returns the rate whose trial had the lowest training error.

  Returns:
    None if the arm has no rates to choose from, or not all of their trials have ended.
  """
  ended = trials(experiment, arm, place)
  if len(ended) < len(arm.rates) or not ended:
    return None
  return min(ended, key=lambda rate: error_after(ended[rate], arm.trial_epochs))


def trials(experiment: Experiment, arm: Arm, place: Place) -> dict[float, Outcome]:
  """Reads what is kept of the trials of an arm that have ended, by their rate."""
  found = {rate: find(Training(experiment, arm, rate, 0, arm.trial_epochs), place) for rate in arm.rates}
  return {rate: outcome for rate, outcome in found.items() if outcome}


def find(training: Training, place: Place) -> Outcome | None:
  """Returns what is kept of a training; None if it has not ended, or was a shorter one, or an average of fewer."""
  outcome = outcomes.load(_path(training, place))
  if not outcome or not is_long_enough(outcome, training.num_epochs):
    return None
  return None if training.arm.averages and outcome.seed < training.seed else outcome


def is_long_enough(outcome: Outcome, num_epochs: float) -> bool:
  """Says whether a training was of so many epochs, or more; steps are whole, epochs are not."""
  return outcome.num_epochs >= num_epochs - 0.01


def _path(training, place):
  return place.results / training.home / f'{training.name}.json'


def train(training: Training, place: Place) -> Outcome:
  """Trains and evaluates, going on where an earlier attempt ended; raises as `train.train_and_evaluate`."""
  from alexnet_jax import figures, towers, workdir
  from alexnet_jax import train as loop

  own = own_fields(training)
  if training.arm.init_from:
    own['init_from'] = str(run_of(training.needed(training.arm.init_from, training.seed), place))
  config = configure(training, own, place)
  folder = _folder(training, place)
  results = loop.train_and_evaluate(config, folder)
  flags = shlex.join(f'--config.{field}={value}' for field, value in own.items())
  return outcomes.make(
    command=f'python main.py --config={training.arm.config} {flags}',
    seed=training.seed,
    versions=towers.versions(),
    devices=towers.accelerators(),
    batch_size=config.batch_size,
    num_images=workdir.load_statistics(folder).num_images,
    results=results,
    curves=figures.read_curves(folder),
    measured=training.arm.inspect(folder) if training.arm.inspect else {},
  )


def average(training: Training, place: Place) -> Outcome:
  """Averages what the networks of all seeds predict (section 6); those whose runs are gone are trained again."""
  from alexnet_jax import ensemble, towers, workdir

  members = [training.needed(training.arm.averages, seed) for seed in range(training.seed)]
  folders = [run_of(member, place) for member in members]
  config = configure(members[0], own_fields(members[0]), place)
  results = ensemble.evaluate_ensemble(config, folders)
  return outcomes.make(
    command=f'python main.py --config={training.arm.config} --mode=eval --workdir={",".join(map(str, folders))}',
    seed=len(folders),
    versions=towers.versions(),
    devices=towers.accelerators(),
    batch_size=config.batch_size,
    num_images=workdir.load_statistics(folders[0]).num_images,
    results=results | {'step': results['members'][0]['step']},
    curves={},
  )


def run_of(training: Training, place: Place) -> pathlib.Path:
  """Returns the folder of a run that others need, with its last checkpoint; trains it where that is gone."""
  from alexnet_jax import checkpoint

  folder, outcome = _folder(training, place), find(training, place)
  if not outcome or (checkpoint.newest_step(folder) or 0) < int(outcome.num_epochs * outcome.steps_per_epoch):
    print(f'{training.name}, which this needs, is trained first: {training.num_epochs:g} epochs')
    outcomes.save(_path(training, place), train(training, place))
  return folder


def draw_pictures(experiment: Experiment, place: Place) -> None:
  """Draws what is to be seen in a run of an experiment and is not drawn yet."""
  from alexnet_jax import figures

  for name in experiment.pictures:
    path = place.results / f'{experiment.name}-{name}.png'
    if not path.exists():
      first = experiment.arms[0]
      folder = run_of(Training(experiment, first, None, 0, first.num_epochs), place)
      figures.draw(figures.parser().parse_args([name, str(folder), f'--output={path}']))


def own_fields(training: Training) -> dict[str, object]:
  """Returns the fields in which a training differs from the config of its arm."""
  own = {'num_epochs': training.num_epochs, 'seed': training.seed, **training.arm.fields}
  return own if training.rate is None else own | {'optimizer.rate': training.rate}


def configure(training: Training, own: Mapping[str, object], place: Place):
  """Returns the config of a training, with fields of its own."""
  config = command.load_config(training.arm.config)
  config.data.dir = place.data_dir
  config.update_from_flattened_dict({**own, **place.fields})
  return config


def _folder(training, place):
  return place.runs / training.home / training.name


def finished(experiment: Experiment, place: Place) -> dict[str, list[Outcome]]:
  """Reads what is kept of the trainings that have ended, of an experiment and of those that it reads."""
  found = _own(experiment, place)
  for name in experiment.reads:
    found |= {f'{name}/{arm}': some for arm, some in _own(EXPERIMENTS[name], place).items()}
  return found


def _own(experiment, place):
  """Reads what is kept of the trainings of an experiment itself, its trials too."""
  found = {}
  for arm in experiment.all_arms():
    found |= {trial_name(arm.name, rate): [one] for rate, one in trials(experiment, arm, place).items()}
    some, rate = [], chosen_rate(experiment, arm, place)
    if arm.rates and rate is None:
      continue
    if arm.averages:
      outcome = find(Training(experiment, arm, rate, 1, arm.num_epochs), place)
      some = [outcome] if outcome else []
    else:
      while outcome := find(Training(experiment, arm, rate, len(some), arm.num_epochs), place):
        some.append(outcome)
    if some:
      found[arm.name] = some
  return found


def write(place: Place, *, draw: bool = True) -> None:
  """Writes RESULTS.md and, if asked to, the figures of experiments from what is kept.

  Raises:
    RunError: if one cannot be written.
  """
  from alexnet_jax import drawing

  found = {name: finished(experiment, place) for name, experiment in EXPERIMENTS.items()}
  for name, experiment in EXPERIMENTS.items():
    if draw and experiment.arms and experiment.shown and claims.is_complete(experiment, found[name]):
      figure = drawing.draw_comparison(curves(experiment, found[name]), experiment.quantity, level=experiment.level)
      drawing.save(figure, place.results / f'{name}.png')
  try:
    with files.replacing(place.report) as partial:
      partial.write_text(claims.report(found))
  except OSError as error:
    raise RunError(f'{place.report} cannot be written ({error.strerror}).') from error


if __name__ == '__main__':
  memory.use_huge_pages()
  sys.exit(main())
