"""RESULTS.md."""

import statistics
from collections.abc import Mapping

from alexnet_jax.reproduction.claims import CLAIMS, IMAGENET, TWO_DEVICES
from alexnet_jax.reproduction.experiments import (
  EXPERIMENTS,
  SHOW_IMAGES,
  SMALL_NOTE,
  Experiment,
  conditions_read,
  error_after,
  trial_name,
)
from alexnet_jax.reproduction.verdicts import (
  DIRECTION,
  FACTOR,
  NOT_REPRODUCED,
  REPRODUCED,
  Outcomes,
  error,
  mean_and_std,
)

NOT_YET = 'not yet'


INTRODUCTION = f"""# Results

Every claim of the paper, and what was measured here. `python -m alexnet_jax reproduce NAME` runs an experiment and
writes its entry; this file is made from `results/` by `python -m alexnet_jax reproduce --write`, so do not edit it.

- **{REPRODUCED}**: the effect is there, every seed of one side is better than every seed of the other, and it is
  between {1 / FACTOR:g} and {FACTOR} times as large as in the paper, where that gives a number (an error rate: at most
  half a point above it).
- **{DIRECTION}**: it has the paper's sign, but another size, or it is within the spread, or one side has one seed alone
  (an average of all seeds may).
- **{NOT_REPRODUCED}**: it is not there.
- **needs {IMAGENET}**: only ImageNet can show it. **needs {TWO_DEVICES}**: there were never two.
- **{NOT_YET}**: not run to the end yet; a smaller dataset can show it.

Errors are in percent, top-1 / top-5 where there are two; differences are in percentage points; ± is the standard
deviation between seeds.
"""


IMAGES_PER_SECOND = 55  # batches of 128 on two cores of an AMD EPYC, 2026-11-25 (benchmarks/README.md)


BYTES_PER_IMAGE = 15_500  # of 3,500 photographs of 224 x 224, prepared, 2026-11-25


RUNS = (  # on ImageNet (facts, 1.6 and 4): config, epochs, training images, all images
  (':ilsvrc2010', 90, 1_261_406, 1_461_406),
  (':imagenet2012', 90, 1_281_167, 1_431_167),
  (':fall2009,conv6', 90, 4_405_500, 8_900_000),  # half of them is for training, a hundredth of that for validation
  (':fall2009,run146_2009', 6.65, 4_405_500, 8_900_000),
  (':fall2011,run146_2011', 8.11, 7_425_000, 15_000_000),
  (':imagenet2012,run146_2012', 54, 1_281_167, 1_431_167),
)


def cost() -> str:
  """Says what the runs on ImageNet cost."""
  lines = [
    '',
    '`:imagenet2012,as_run` is short for `python main.py --config=configs/alexnet.py:imagenet2012,as_run`; where there',
    'are two, what is compared stands in the `results.json` of each (README says how to prepare ImageNet). It costs:',
    '',
    f'| run | epochs | steps of 128 | days of two CPU cores, {IMAGES_PER_SECOND} images/s | disk, GB |',
    '| --- | --- | --- | --- | --- |',
  ]
  for config, epochs, training_images, all_images in RUNS:
    days = epochs * training_images / IMAGES_PER_SECOND / 86_400
    lines.append(
      f'| `{config}` | {epochs} | {round(epochs * training_images / 128, -3):,.0f} | {days:.0f} | '
      f'{all_images * BYTES_PER_IMAGE / 1e9:.0f} |'
    )
  lines += [
    '',
    'With `as_run` a run has the epochs of its log (facts, 1.6). Disk is that of the prepared images, 15.5 KB each as',
    'was measured on photographs of 224 x 224; those of larger originals may take twice as much, and the official',
    'archives are read where they are, beside it. The days are of the published network: one with conv6 and more',
    'classes takes longer. On an H100 the train step takes 9 ms with 512 images in bfloat16 that lie in its memory,',
    '56,000 images/s (benchmarks/README.md); no network was trained there yet.',
    '',
  ]
  return '\n'.join(lines)


def report(found: Mapping[str, Outcomes]) -> str:
  """Writes RESULTS.md.

  Args:
    found: of each experiment, the outcomes of its trainings that have ended.
  """
  described = set()
  entries = [
    entry(EXPERIMENTS[name], records, described)
    for name, records in found.items()
    if is_complete(EXPERIMENTS[name], records)
  ]
  return '\n'.join([INTRODUCTION, table(found), cost(), f'{SMALL_NOTE}\n', *entries])


def table(found: Mapping[str, Outcomes]) -> str:
  """Returns the table of all claims."""
  lines = [
    '| section | claim | paper | logs of 2012 | ours | data | status | command |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  for claim in CLAIMS:
    ours, data, status, command = '', '', f'needs {claim.needs}' if claim.needs else NOT_YET, claim.command
    if claim.experiment:
      experiment = EXPERIMENTS[claim.experiment]
      data = experiment.data
      command = '; '.join(filter(None, (f'python -m alexnet_jax reproduce {experiment.name}', claim.command)))
      if is_complete(experiment, found[experiment.name]):
        ours, status = experiment.conclude(found[experiment.name])
    command = '; '.join(f'`{one}`' for one in command.split('; '))
    lines.append(
      f'| {claim.section} | {claim.what} | {claim.paper} | {claim.logs} | {ours} | {data} | {status} | {command} |'
    )
  return '\n'.join(lines)


def is_complete(experiment: Experiment, records: Outcomes) -> bool:
  """Says whether there is something to conclude from: every arm has ended at least once, of what it reads, too."""
  return not missing(experiment, records)


def missing(experiment: Experiment, records: Outcomes) -> list[str]:
  """Names the arms of an experiment, and of those that it reads, that have not ended with any seed."""
  return [
    name
    for name in (*(condition.name for condition in experiment.conditions), *conditions_read(experiment))
    if name not in records
  ]


def entry(experiment: Experiment, records: Outcomes, described: set | None = None) -> str:
  """Returns the entry of an experiment.

  Args:
    experiment: what it is of.
    records: of its trainings that have ended.
    described: trainings whose commands stand in an entry above, to which those of this one are added.
  """
  described = set() if described is None else described
  lines = [
    f'## {experiment.title}',
    '',
    f'Section {experiment.section}, on {experiment.data}. {experiment.note}'.strip(),
    '',
  ]
  if is_complete(experiment, records):
    ours, verdict = experiment.conclude(records)
    lines += [f'**{ours}** -- {verdict}.', '']
  else:
    lines += [f'Not run to the end yet: {", ".join(missing(experiment, records))}.', '']
  if not experiment.conditions:
    return '\n'.join(lines)
  if experiment.shown:
    lines += [f'![{experiment.title}](results/{experiment.name}.png)', '']
  if is_complete(experiment, records):
    lines += [
      f'![{picture} of {experiment.conditions[0].name}](results/{experiment.name}-{picture}.png)\n'
      for picture in experiment.pictures
      if picture not in SHOW_IMAGES
    ]
    if drawn := [f'`results/{experiment.name}-{name}.png`' for name in experiment.pictures if name in SHOW_IMAGES]:
      lines += [
        f'The command also draws {" and ".join(drawn)}; they show images of the dataset, so are not kept here.',
        '',
      ]
  has_ten = any('ten_view' in record.results for some in records.values() for record in some)
  crop_set, several = ('ten_view', 'ten') if has_ten else ('nine_view', 'nine')
  lines += [
    f'| arm | epochs | seeds | training error at the end | test error, centre | {several} views | minutes a seed |',
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for condition in experiment.conditions:
    if some := records.get(condition.name):
      lines.append(f'| {condition.name} | {" | ".join(_row(some, crop_set))} |')
  lines.append('')
  for condition in experiment.conditions:
    trials = {
      rate: records[trial_name(condition.name, rate)]
      for rate in condition.rates
      if trial_name(condition.name, rate) in records
    }
    errors = (f'{error_after(one, condition.trial_epochs):.1f} % at {rate:g}' for rate, (one,) in trials.items())
    if trials:
      lines += [f'{condition.name}, training error after {condition.trial_epochs:g} epochs: {", ".join(errors)}.', '']
  for condition in experiment.all_conditions():
    name, training = condition.name, (condition.home or experiment.name, condition.name)
    if name not in records:
      continue
    if training in described:
      lines += [f'{name}: as above.', '']
      continue
    described.add(training)
    first = records[name][0]
    dates = sorted({record.date for record in records[name]})
    commits = sorted({record.commit for record in records[name]})
    machines = sorted({record.hardware for record in records[name]})
    lines += [
      f'{name}: `{first.command}`; {first.dataset}; {" to ".join(dict.fromkeys((dates[0], dates[-1])))}; '
      f'commit {", ".join(commits)}; {" and ".join(machines)}; {first.versions}.',
      '',
    ]
  return '\n'.join(lines)


def _row(records, crop_set):
  last = [float(record.training_curve()[1][-1]) for record in records if record.training_curve()[1].size]
  yield f'{records[0].num_epochs:.4g}'
  yield str(len(records))
  yield f'{mean_and_std(last)} %' if last else ''
  for crops in ('centre', crop_set):
    errors = [error(record, crops) for record in records if crops in record.results]
    yield f'{mean_and_std(errors)} %' if errors else ''
  yield f'{statistics.mean(record.minutes for record in records):.0f}'
