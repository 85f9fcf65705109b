"""Renders RESULTS.md from the records of all experiments."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from alexnet_jax.reproduction.claims import CLAIMS, IMAGENET, TWO_DEVICES
from alexnet_jax.reproduction.experiments import (
  EXPERIMENTS,
  FIGURES_OF_IMAGES,
  SMALL_NOTE,
  Condition,
  Experiment,
  conditions_read,
  error_after,
  trial_name,
)
from alexnet_jax.reproduction.records import Record
from alexnet_jax.reproduction.verdicts import (
  DIRECTION,
  MAX_FACTOR,
  NOT_REPRODUCED,
  REPRODUCED,
  Records,
  error,
  format_mean_and_std,
)

NOT_RUN = 'not run'

INTRODUCTION = f"""# Results

The claims of the paper, compared with our measurements. `python -m alexnet_jax reproduce NAME` runs an experiment and
updates its entry. This file is generated from `results/` by `python -m alexnet_jax reproduce --write`; do not edit it.

| status | meaning |
| --- | --- |
| {REPRODUCED} | The effect is clear and of the paper's size. |
| {DIRECTION} | The effect has the paper's sign, but is not clear, or differs in size. |
| {NOT_REPRODUCED} | There is no effect, or it has the opposite sign. |
| needs {IMAGENET} | The claim cannot be tested without {IMAGENET}. |
| needs {TWO_DEVICES} | The claim cannot be tested without {TWO_DEVICES}, which were not available. |
| {NOT_RUN} | The experiment is not finished. |

An effect is clear if every seed of one condition is better than every seed of the other, and each condition has at
least two seeds; an ensemble of all seeds counts as clear without a second ensemble. An effect has the paper's size if
it is {1 / MAX_FACTOR:g} to {MAX_FACTOR} times as large, or if the paper gives no number. An error rate is reproduced if
it is at most half a point above the paper's.

Errors are in percent (top-1 / top-5 if there are two numbers), differences in percentage points; ± is the standard
deviation over seeds. A positive difference has the paper's direction. In the column 'ours', `paper` is the condition
with the paper's recipe. Most claims are about ImageNet, and were tested on the smaller data that the column 'data'
names, with the paper's recipe instead of `as_run`: 'reproduced' means that the effect is the same there.

Each entry lists the version of jax that it was measured with. On Python 3.11, jax is pinned to 0.10.1, because 0.10.2
computes some jitted reductions wrongly on a CPU (jax issue 39103). The entries measured with 0.10.2 precede this pin;
one training was repeated with 0.10.1 (see the table of repetitions below).
"""

IMAGES_PER_SECOND = 55  # batches of 128 on two cores of an AMD EPYC, 2026-11-25 (docs/performance.md)
BYTES_PER_IMAGE = 15_500  # of 3,500 photographs of 224 x 224, prepared, 2026-11-25

IMAGENET_RUNS = (  # (facts, 1.6 and 4): config, epochs, training images, all images
  (':ilsvrc2010', 90, 1_261_406, 1_461_406),
  (':imagenet2012', 90, 1_281_167, 1_431_167),
  (':fall2009,conv6', 90, 4_405_500, 8_900_000),  # half of the images are for training, 1 % of those for validation
  (':fall2009,run146_2009', 6.65, 4_405_500, 8_900_000),
  (':fall2011,run146_2011', 8.11, 7_425_000, 15_000_000),
  (':imagenet2012,run146_2012', 54, 1_281_167, 1_431_167),
)
IMAGENET_NOTE = """\
`:imagenet2012,as_run` is short for `python main.py --config=configs/alexnet.py:imagenet2012,as_run`. If a claim has
several commands, compare the `results.json` of their runs. docs/data.md describes how to prepare ImageNet. The runs
cost:
"""
COST_NOTE = """\
With `as_run`, the number of epochs is that of the run's log (facts, 1.6). Disk space is that of the prepared images,
at 15.5 KB each as measured on photographs of 224 x 224 pixels. Images with larger originals may take twice as much. The
official archives are read in place and take additional space. The days are those of the published network; a network
with conv6 and more classes takes longer. On an H100, the train step takes 9 ms with 512 images in bfloat16 from device
memory, which is 56,000 images/s (docs/performance.md). No network has been trained there yet.
"""


def render(records: Mapping[str, Records]) -> str:
  """Renders RESULTS.md.

  Args:
    records: {experiment: {condition: records of its finished trainings}}, for all experiments.
  """
  described: set[tuple[str, str]] = set()
  entries = [
    render_entry(EXPERIMENTS[name], finished, described)
    for name, finished in records.items()
    if not missing_conditions(EXPERIMENTS[name], finished)
  ]
  return '\n'.join(
    [INTRODUCTION, render_claims(records), IMAGENET_NOTE, render_cost(), COST_NOTE, SMALL_NOTE, *entries]
  )


def render_claims(records: Mapping[str, Records]) -> str:
  """Renders the table of all claims; the argument is that of `render`."""
  rows = []
  for claim in CLAIMS:
    measured, data, status = '', '', f'needs {claim.requires}' if claim.requires else NOT_RUN
    commands = claim.command.split('; ') if claim.command else []
    if claim.experiment:
      experiment = EXPERIMENTS[claim.experiment]
      data = experiment.data
      commands.insert(0, f'python -m alexnet_jax reproduce {experiment.name}')
      if not missing_conditions(experiment, records[experiment.name]):
        measured, status = experiment.conclude(records[experiment.name])
    command = '; '.join(f'`{command}`' for command in commands)
    rows.append((claim.section, claim.statement, claim.paper, claim.logs, measured, data, status, command))
  return _table('section | claim | paper | logs of 2012 | ours | data | status | command', rows) + '\n'


def render_cost() -> str:
  """Renders the table of what the runs on ImageNet cost."""
  rows = []
  for config, num_epochs, num_training_images, num_images in IMAGENET_RUNS:
    num_trained_images = num_epochs * num_training_images
    num_steps, num_days = num_trained_images / 128, num_trained_images / IMAGES_PER_SECOND / 86_400
    disk = f'{num_images * BYTES_PER_IMAGE / 1e9:.0f}'
    rows.append((f'`{config}`', str(num_epochs), f'{round(num_steps, -3):,.0f}', f'{num_days:.0f}', disk))
  header = f'run | epochs | steps of 128 | days on two CPU cores, {IMAGES_PER_SECOND} images/s | disk, GB'
  return _table(header, rows) + '\n'


def _table(header: str, rows: Sequence[Sequence[str]]) -> str:
  """Renders a table; the header has a bar between its columns."""
  rule = ' | '.join('---' for _ in header.split(' | '))
  return '\n'.join(f'| {line} |' for line in (header, rule, *map(' | '.join, rows)))


def missing_conditions(experiment: Experiment, records: Records) -> list[str]:
  """Returns the conditions of an experiment, and of those that it reads, without any finished training."""
  own = [condition.name for condition in experiment.conditions]
  return [name for name in own + conditions_read(experiment) if name not in records]


def render_entry(experiment: Experiment, records: Records, described: set[tuple[str, str]] | None = None) -> str:
  """Renders the entry of an experiment.

  Args:
    experiment: the experiment.
    records: {condition: records of its finished trainings}.
    described: (folder, condition) whose commands are in an entry above; those of this entry are added.
  """
  missing = missing_conditions(experiment, records)
  if missing:
    conclusion = f'Not finished yet: {", ".join(missing)}.'
  else:
    measured, verdict = experiment.conclude(records)
    conclusion = f'**{measured}** -- {verdict}.'
  paragraphs = [
    f'## {experiment.title}',
    f'Section {experiment.section}, on {experiment.data}. {experiment.note}'.strip(),
    conclusion,
  ]
  if experiment.conditions:
    paragraphs += _figures(experiment, is_finished=not missing)
    paragraphs.append(_condition_table(experiment, records))
    paragraphs += _trials(experiment, records)
    paragraphs += _commands(experiment, records, set() if described is None else described)
  return '\n\n'.join(paragraphs) + '\n'


def _figures(experiment: Experiment, is_finished: bool) -> list[str]:
  """Renders the figure of an experiment, and those of its run, which exist once it is finished."""
  paragraphs = [f'![{experiment.title}](results/{experiment.name}.png)'] if experiment.curves else []
  excluded = []
  for name in experiment.run_figures if is_finished else ():
    path = f'results/{experiment.name}-{name}.png'
    if name in FIGURES_OF_IMAGES:
      excluded.append(f'`{path}`')
    else:
      paragraphs.append(f'![{name} of {experiment.conditions[0].name}]({path})')
  if excluded:
    paragraphs.append(
      f'The command also draws {" and ".join(excluded)}. They show images of the dataset and are not included.'
    )
  return paragraphs


def _condition_table(experiment: Experiment, records: Records) -> str:
  """Renders the table of an experiment, with a row per condition."""
  has_ten = any('ten_view' in record.results for seeds in records.values() for record in seeds)
  crop_set, crops = ('ten_view', 'ten') if has_ten else ('nine_view', 'nine')
  rows = [
    (condition.name, *_cells(seeds, crop_set))
    for condition in experiment.conditions
    if (seeds := records.get(condition.name))
  ]
  return _table(
    f'condition | epochs | seeds | final training error | test error, centre | {crops} crops | minutes per seed', rows
  )


def _cells(records: Sequence[Record], crop_set: str) -> Iterator[str]:
  yield f'{records[0].num_epochs:.4g}'
  yield str(len(records))
  curves = [errors for _, errors in (record.training_curve() for record in records)]
  training_errors = [float(errors[-1]) for errors in curves if errors.size]
  test_errors = ([error(record, name) for record in records if name in record.results] for name in ('centre', crop_set))
  for errors in (training_errors, *test_errors):
    yield f'{format_mean_and_std(errors)} %' if errors else ''
  yield f'{statistics.mean(record.minutes for record in records):.0f}'


def _trials(experiment: Experiment, records: Records) -> list[str]:
  """Renders the training errors of the trials of learning rates, one paragraph per condition."""
  paragraphs = []
  for condition in experiment.conditions:
    errors = []
    for learning_rate in condition.learning_rates:
      for trial in records.get(trial_name(condition.name, learning_rate), ()):
        errors.append(f'{error_after(trial, condition.trial_epochs):.1f} % at {learning_rate:g}')
    if errors:
      paragraphs.append(
        f'{condition.name}, training error after {condition.trial_epochs:g} epochs: {", ".join(errors)}.'
      )
  return paragraphs


def _commands(experiment: Experiment, records: Records, described: set[tuple[str, str]]) -> list[str]:
  """Renders the command and the environment of each condition, or a reference to an entry above."""
  paragraphs = []
  for condition in experiment.all_conditions():
    training = condition.folder or experiment.name, condition.name
    if condition.name not in records:
      continue
    if training in described:
      paragraphs.append(f'{condition.name}: as above.')
    else:
      described.add(training)
      paragraphs.append(_environment(condition, records[condition.name]))
  return paragraphs


def _environment(condition: Condition, records: Sequence[Record]) -> str:
  first = records[0]
  dates = sorted({record.date for record in records})
  commits = sorted({record.commit for record in records})
  machines = sorted({record.hardware for record in records})
  return (
    f'{condition.name}: `{first.command}`; {first.dataset}; {" to ".join(dict.fromkeys((dates[0], dates[-1])))}; '
    f'commit {", ".join(commits)}; {" and ".join(machines)}; {first.versions}.'
  )
