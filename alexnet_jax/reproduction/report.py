"""Renders RESULTS.md from the records of all experiments, and the figure of all claims."""

import collections
import statistics
from collections.abc import Iterator, Mapping, Sequence

from alexnet_jax.analysis import plots
from alexnet_jax.data.cropping import CROP_SET_TITLES
from alexnet_jax.reproduction.claims import CLAIMS, IMAGENET, NEIGHBOURS, NINE_CROPS, TEN_CROPS, TWO_DEVICES
from alexnet_jax.reproduction.experiments import (
  EXPERIMENTS,
  FIGURES_OF_IMAGES,
  MAIN_STUDY,
  SMALL_NOTE,
  TINY_STUDY,
  Condition,
  Experiment,
  conditions_read,
  error_after,
  trial_name,
)
from alexnet_jax.reproduction.records import Record
from alexnet_jax.reproduction.verdicts import (
  CONTRADICTED,
  INCONCLUSIVE,
  MAX_FACTOR,
  OTHER_SIZE,
  REPRODUCED,
  Finding,
  Records,
  format_estimate,
  judge_all,
)

NOT_RUN = 'not run'
STUDIES = (MAIN_STUDY, TINY_STUDY)
COMPARISONS = {
  name: claim.comparison for claim in CLAIMS for name in map(claim.experiment_in, STUDIES) if name and claim.comparison
}
NUM_TESTS = collections.Counter(EXPERIMENTS[name].study for name in COMPARISONS)

INTRODUCTION = """\
The claims of the paper, compared with our measurements. Most claims are about ImageNet and were tested on smaller data,
named in the last column: a verdict holds for these data. The networks whose data are CIFAR-10 without `small` have the
recipes of cuda-convnet. All others have the recipe of the paper's text and not that of the code of 2012, `as_run`, with
these exceptions: other standard deviations of the initial weights (see [the network
`small`](#the-network-small-and-how-results-vary)); decays of the learning rate at fixed epochs; on photographs, batches
of 32 images and an initial learning rate of 0.002. A positive difference, or a ratio above 1, has the paper's
direction. The paper's errors are top-1 / top-5 in percent; our effects are those of the primary metric. Two claims are
not in the paper: the towers without cross-tower layers are in its logs, and the nine crops in the documentation of
cuda-convnet ([facts, section 3](docs/facts.md#3-cifar-10-networks)). Some variants change more than one ingredient;
they are listed under [which ablations are confounded](docs/variants.md#which-ablations-are-confounded).

The table of an entry lists all seeds of a condition. An effect uses only the seeds that both conditions have, so it can
differ from the difference of two rows, even in its sign. Curves are means over seeds, in bands from the lowest to the
highest seed; ± is the standard deviation over seeds.

`python -m alexnet_jax reproduce NAME` runs an experiment and updates its entry, which contains the name. This file is
generated from `results/` by `python -m alexnet_jax reproduce --write`; do not edit it.
"""
TINY_INTRODUCTION = """\
## The claims on Tiny-ImageNet

Tiny-ImageNet-200 contains 100,000 training and 10,000 validation photographs of 200 classes of ImageNet, 64 x 64
pixels. The networks are those of `small` and trained with the same recipe as on CIFAR-10, for 16 epochs instead of 24.
Errors are of the validation images, which no schedule reads. The entries give them as top-1 / top-5; the primary
metrics are top-1 errors. Nine claims that have an experiment on CIFAR-10 have none here: the four about the networks of
cuda-convnet, the three about durations, whose thresholds are errors on CIFAR-10, the colours of the towers, and
pre-training.

The recipe was chosen with the paper's network and seed 0, before any ablation. The learning rate is that of CIFAR-10,
because twice this rate has a similar error after two epochs, 94.1 and 93.8 %. Images of 96 x 96 pixels have a lower
error after four epochs, 84.9 instead of 87.5 %, but an epoch takes twice the time. This network underfits: on centre
crops and without dropout, its training error of 69.6 % is only 4.1 points below its validation error. Such a network
may need neither dropout nor augmentation.
"""
RULES = f"""\
## How the verdicts are derived

**Metric.** Each claim has one primary metric, which `alexnet_jax/reproduction/claims.py` fixes and the table names. The
metrics were fixed on 2026-11-29, that of the averaged networks on 2026-11-30, after most of these records had been
measured: they are the paper's, or have their reason in a comment. Records measured later do not change them.

**Effect.** The difference between two conditions in percentage points, averaged over pairs of trainings with the same
seed. Durations in epochs are compared by their ratio, with logarithms in place of the values. If the slower condition
never reaches the error, its full length counts, and the effect is a lower bound; so far, every slower condition reaches
it. If the faster one does not, no effect is computed. Durations are interpolated between the points of a curve: the
training error has one every 0.2 epochs, the test error one every two. For crops, averages of networks and neighbours,
the effect is a difference within the same network or networks, so the table counts seeds instead of pairs.

Pairing by seed reduces the variance little: the errors of the paper's recipe and of an ablation correlate with -0.7 to
0.5 over the five seeds, except for the colour shift, 0.9, and Figure 1, 0.8 (logarithms of epochs). A test of
independent samples would have smaller p-values for one tower and normalisation. The paired one was fixed beforehand and
remains.

**Interval.** The 95 % confidence interval of the mean effect, from Student's t distribution of the effects of all
seeds, which assumes that they are normally distributed. It covers the variation between trainings (initial weights,
order of the images, dropout). It covers neither that of the test images, nor the choice of a learning rate, which was
made with seed 0, nor the difference between these data and ImageNet. It requires two seeds whose effects differ. With
two pairs, it extends 12.7 standard errors in each direction, so only very regular effects can be shown. Intervals are
not adjusted for the number of claims.

**Test.** A two-sided t-test of no effect. The p-values are adjusted by Holm's procedure for all {NUM_TESTS[MAIN_STUDY]}
claims that have an experiment; a claim without an interval counts with p = 1. An effect is significant if its adjusted
p-value is at most 5 %; its interval then excludes 0, or a ratio of 1. The converse does not hold: the fifth-smallest of
{NUM_TESTS[MAIN_STUDY]} p-values, for example, is multiplied by {NUM_TESTS[MAIN_STUDY] - 4}. Most comparisons on `small`
share the networks of the paper's recipe, so their errors are not independent. Holm's procedure does not require
independence. The {NUM_TESTS[TINY_STUDY]} claims that have an experiment on Tiny-ImageNet are a second study and are
corrected separately, so the chance of at least one false rejection is up to 5 % in each study, and not in both
together. This was decided on 2026-12-01, before any ablation was trained on these images.

**Number of seeds.** Five are planned, and three for the networks of 13 and 11 %, which train for over an hour on one
core, for the averages, each of five trainings, and for the photographs. A verdict on fewer seeds than planned, such as
'3 of 5 pairs', is provisional. Networks beyond the plan, which the averages contain, count in no other claim. This plan
was fixed on 2026-11-30 at noon. Until then, seeds had been added without one and the verdicts computed after each: from
two to five pairs for one tower and for normalisation, from one to three for augmentation, from two to three for weight
decay, from one to two for the colour shift. The p-values are not corrected
for these looks. Of true null hypotheses that are tested at 5 % after two, three, four and five pairs, 13 % are rejected
at least once (simulated). Multiplied by four, for at most four looks, the adjusted p-values of one tower, normalisation
and weight decay would be 0.07, 0.17 and 0.03: the first two verdicts depend on the looks. With the plan, the correction
was extended from the 13 claims with an interval to all {NUM_TESTS[MAIN_STUDY]}, which made normalisation, nine crops
and weight decay inconclusive. The planned fourth pair for weight decay made this claim significant and, because the
corrections depend on each other, normalisation as well: its adjusted p-value changed from 0.051 to 0.048, close to the
limit, without a new training of its own.

**Size.** An effect has the paper's size if it is {1 / MAX_FACTOR:g} to {MAX_FACTOR} times as large. If the paper gives
a lower bound, only the first limit counts. For a ratio, the effect is its excess over 1. Only the estimate decides
about the size, and not its interval, which can exclude the paper's number although the claim is reproduced. Percentage
points are compared although the errors are of other sizes: 19 % on CIFAR-10, 72 % on Tiny-ImageNet, 27 % on the
photographs, and 41 % on ImageNet in the paper.

| verdict | condition |
| --- | --- |
| {REPRODUCED} | The effect is significant and has the paper's direction and, if the paper has a number, its size. |
| {OTHER_SIZE} | The effect is significant and has the paper's direction, but not its size. |
| {INCONCLUSIVE} | The effect is not significant, or has no interval. This alone is no evidence against the claim. |
| {CONTRADICTED} | The effect is significant and has the opposite direction. |
| needs {IMAGENET}, needs {TWO_DEVICES} | The claim was not tested. |

An interval can also exclude the paper's size on these data although the verdict is '{INCONCLUSIVE}'.

**Claims that are not differences.** The error rates of 13 and 11 % are compared with all values that round to the
paper's number, and the difference between the towers' colours with all values from half of Caffe's network upwards
(section 6.1). The test is that of the mean over seeds against the nearest limit of these values. If it is significant,
the whole interval is on one side of the limit, and the claim is reproduced if it is inside and contradicted if it is
outside. A mean that agrees without an interval, or with one that includes a limit, is inconclusive. With three seeds
and this correction, the tests of 13 and 11 % can hardly be significant: the standard deviation over seeds would have to
be about 0.05 points. These rows describe more than they test. The network of 11 % is trained for 100 epochs instead of
520, which cannot contradict the claim (added on 2026-12-01, with one seed at 13.8 %).

**Environments.** The trainings of a pair can differ in processor, commit and version of jax. An entry lists all that
occur in a condition, and the files in `results/` those of each training. The five networks of the paper's recipe were
trained on an Intel Xeon, but four of those with one tower, and four of those without normalisation, on an AMD EPYC. On
Python 3.11, jax is pinned to 0.10.1, because 0.10.2 computes some jitted reductions wrongly on a CPU (jax issue 39103).
The trainings with 0.10.2 precede this pin. Those with 0.10.1 are paired with networks of the paper's recipe that were
trained with 0.10.2; one of these was repeated with 0.10.1 (see the table of repetitions below). The networks of the
paper's recipe were trained twice, on 2026-11-26 and 11-27, that of seed 0 on 2026-11-25 as well. Each time, the later
records replaced the earlier ones. With those of 2026-11-26, the effect of one tower is +2.54 points [1.80, 3.27], and
that of normalisation +1.62 [1.07, 2.17], with p = 0.0012 before the correction.
"""
IMAGENET_NOTE = """\
## Test a claim on ImageNet

docs/data.md describes how to prepare ImageNet. If a claim has several commands, compare the `results.json` of their
runs. The numbers in the logs of 2012 are in docs/facts.md.

<details>
<summary>Commands and their cost</summary>
"""
CLAIMS_FIGURES = {MAIN_STUDY: 'claims', TINY_STUDY: 'tiny_claims'}  # names of the figures
SMALL_HEADING = '## The network `small`, and how results vary\n'

IMAGES_PER_SECOND = 55  # batches of 128 on two cores of an AMD EPYC, 2026-11-25 (docs/performance.md)
BYTES_PER_IMAGE = 15_500  # of 3,500 photographs of 224 x 224, prepared, 2026-11-25

IMAGENET_RUNS = (  # (facts, 1.6 and 4): config, epochs, training images, all images
  (':ilsvrc2010', 90, 1_261_406, 1_461_406),
  (':imagenet2012', 90, 1_281_167, 1_431_167),
  (':fall2009,conv6', 90, 4_405_500, 8_900_000),  # half of the images are for training, 1 % of those for validation
  (':fall2009,run146_2009', 6.65, 4_405_500, 8_900_000),
  (':fall2011,run146_2011', 8.11, 14_925_000, 15_000_000),  # both halves
  (':imagenet2012,run146_2012', 54, 1_281_167, 1_431_167),
)
COST_NOTE = """\
With `as_run`, the number of epochs is that of the run's log (facts, 1.6). Disk space is that of the prepared images,
at 15.5 KB each as measured on photographs of 224 x 224 pixels. Images with larger originals may take twice as much. The
official archives are read in place and take additional space. The days are those of the published network; a network
with conv6 and more classes takes longer. On an H100, the train step takes 9 ms with 512 images in bfloat16 from device
memory, which is 56,000 images/s (docs/performance.md). No network has been trained there yet.
"""


# Panels of the figure of all claims: label, value of no effect, limits of the axis. Effects of section 6.1 are larger
# than differences between errors, so they share the panel of error rates.
PANELS = {
  'points': ('difference, percentage points (positive as in the paper)', 0.0, (-6.0, 6.0)),
  'times': ('ratio of epochs (above 1 as in the paper)', 1.0, (0.5, 12.0)),
  '%': ('value, % or percentage points', 0.0, (-3.0, 45.0)),
}


def conclude(records: Mapping[str, Records]) -> dict[str, Finding]:
  """Returns the findings of all finished experiments by name; the argument is that of `render`."""
  findings: dict[str, Finding] = {}
  for study in STUDIES:
    tests = {
      name: (records[name], COMPARISONS[name])
      for name, experiment in EXPERIMENTS.items()
      if experiment.study == study and not missing_conditions(experiment, records[name])
    }
    findings |= judge_all(tests, num_claims=NUM_TESTS[study])
  return findings


def render(records: Mapping[str, Records]) -> str:
  """Renders RESULTS.md.

  Args:
    records: {experiment: {condition: records of its finished trainings}}, for all experiments.
  """
  described: set[tuple[str, str]] = set()
  findings = conclude(records)
  has_tiny_imagenet = any(EXPERIMENTS[name].study == TINY_STUDY for name in findings)
  return '\n'.join(
    [
      '# Results\n',
      render_claims(findings, MAIN_STUDY),
      INTRODUCTION,
      *([TINY_INTRODUCTION, render_claims(findings, TINY_STUDY)] if has_tiny_imagenet else ()),
      RULES,
      IMAGENET_NOTE,
      render_commands(),
      render_cost(),
      f'{COST_NOTE}\n</details>\n',
      SMALL_HEADING,
      SMALL_NOTE,
      *(render_entry(EXPERIMENTS[name], records[name], finding, described) for name, finding in findings.items()),
    ]
  )


def draw_claims(findings: Mapping[str, Finding], study: str) -> plots.Figure:
  """Draws the effects of the finished experiments of a study from the findings of `conclude`."""
  rows: dict[str, list[plots.Row]] = {unit: [] for unit in PANELS}
  for claim in CLAIMS:
    name, comparison = claim.experiment_in(study), claim.comparison
    finding = findings.get(name)
    if comparison and finding and (measured := finding.estimate):
      panel = '%' if comparison.accepted or comparison.metric is NEIGHBOURS else comparison.unit
      verdict = f'{finding.verdict} ({format_seeds(finding, name)})'
      rows[panel].append(plots.Row(claim.statement, measured.value, measured.interval, comparison.paper, verdict))
  panels = {PANELS[unit][0]: (drawn, *PANELS[unit][1:]) for unit, drawn in rows.items() if drawn}
  return plots.draw_claims(panels, f'The claims of the paper and our measurements: {study}')


def render_claims(findings: Mapping[str, Finding], study: str) -> str:
  """Renders the figure, the number of verdicts and the table of the claims of a study.

  The claims that require ImageNet or two GPUs are in the table of `MAIN_STUDY`.

  Args:
    findings: findings of `conclude`.
    study: the study.
  """
  rows, verdicts = [], collections.Counter[str]()
  for claim in CLAIMS:
    name = claim.experiment_in(study)
    if not name and study != MAIN_STUDY:
      continue
    finding, metric, measured, seeds, data = findings.get(name), '', '', '', ''
    if claim.comparison:
      metric, data = claim.comparison.metric.name, EXPERIMENTS[name].data
    if claim.comparison and finding:
      measured, seeds = format_estimate(finding.estimate, claim.comparison), format_seeds(finding, name)
    verdict = finding.verdict if finding else f'needs {claim.requires}' if claim.requires else NOT_RUN
    verdicts[verdict] += 1
    rows.append((claim.section, claim.statement, verdict, claim.paper, measured, metric, seeds, data))
  counts = ', '.join(f'{verdict}: {number}' for verdict, number in verdicts.most_common())
  return (
    f'![The claims: the paper, ours with intervals, and the verdicts](results/{CLAIMS_FIGURES[study]}.png)\n\n'
    f'Of {len(rows)} claims: {counts}.\n\n'
    f'{_table("section | claim | verdict | paper | ours, 95 % interval | primary metric | seeds | data", rows)}\n'
  )


def format_seeds(finding: Finding, name: str) -> str:
  """Formats the number of seeds of an experiment, and of those planned: '3 of 5 pairs', '5 seeds'; '' if none."""
  if not finding.estimate:
    return ''
  number, planned = finding.estimate.num_seeds, EXPERIMENTS[name].num_seeds
  text = str(number) if number >= planned else f'{number} of {planned}'
  return f'{text} {"pair" if COMPARISONS[name].lower else "seed"}{"s" * (text != "1")}'


def render_commands() -> str:
  """Renders the table of the commands that test the claims as the paper did."""
  rows = [
    (claim.section, claim.statement, '; '.join(f'`{command}`' for command in claim.command.split('; ')))
    for claim in CLAIMS
    if claim.command
  ]
  note = '`:imagenet2012,as_run` is short for `python main.py --config=configs/alexnet.py:imagenet2012,as_run`.'
  return f'{note}\n\n{_table("section | claim | commands", rows)}\n'


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


def render_entry(
  experiment: Experiment,
  records: Records,
  finding: Finding | None,
  described: set[tuple[str, str]] | None = None,
) -> str:
  """Renders the entry of an experiment.

  Args:
    experiment: the experiment.
    records: {condition: records of its finished trainings}.
    finding: its finding; None if it is not finished.
    described: (folder, condition) whose commands are in an entry above; those of this entry are added.
  """
  comparison = COMPARISONS[experiment.name]
  if finding is None:
    conclusion = f'Not finished yet: {", ".join(missing_conditions(experiment, records))}.'
  else:
    measured = finding.estimate
    conclusion = f'**{format_estimate(measured, comparison)}: {finding.verdict}**'
    if measured and measured.p_value is not None:
      p_values = f'p = {measured.p_value:.2g}, {finding.adjusted_p:.2g} after the correction'
      against = f', against {comparison.null_value(measured.value):g}' if comparison.accepted else ''
      conclusion += f' ({format_seeds(finding, experiment.name)}; {p_values}{against})'
    conclusion += f'. Primary metric: {comparison.metric.name}.'
  paragraphs = [
    f'## {experiment.title}',
    f'Experiment `{experiment.name}`, section {experiment.section}, on {experiment.data}. {experiment.note}'.strip(),
    conclusion,
    *(_figures(experiment, is_finished=finding is not None) if experiment.conditions else ()),
    _condition_table(experiment, records),
  ]
  details = _trials(experiment, records) + _commands(experiment, records, set() if described is None else described)
  if details:
    paragraphs += ['<details>\n<summary>Commands and environment</summary>', *details, '</details>']
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
  """Renders the table of an experiment, with a row per condition, including those that it reads."""
  names = [condition.name for condition in experiment.conditions] + conditions_read(experiment)
  shown = {name: records[name] for name in names if name in records}
  evaluated = {crop_set for seeds in shown.values() for record in seeds for crop_set in record.results}
  crop_sets = [crop_set for crop_set in CROP_SET_TITLES if crop_set in evaluated]
  has_top5 = experiment.study == TINY_STUDY  # with ten classes, top-5 errors are small and hardly differ
  shown_errors, test_error = (
    (('top1_error', 'top5_error'), 'top-1 / top-5 test error') if has_top5 else (('top1_error',), 'test error')
  )
  crops = f', % | {test_error}, '.join(CROP_SET_TITLES[crop_set] for crop_set in crop_sets)
  header = f'condition | seeds | epochs | training error, % | {test_error}, {crops}, % | minutes'
  metric = COMPARISONS[experiment.name].metric
  rows = [[name, *_cells(seeds, crop_sets, shown_errors)] for name, seeds in shown.items()]
  if metric not in (TEN_CROPS, NINE_CROPS):
    header += f' | {metric.name}' + (f', {metric.unit}' if metric.unit != 'epochs' else '')
    for row, seeds in zip(rows, shown.values(), strict=True):
      row.append(format_mean_and_std([metric.value(record) for record in seeds]))
  return _table(header, rows)


def format_mean_and_std(values: Sequence[float]) -> str:
  """Formats values as mean and standard deviation: '11.20 ± 0.15', '11.20' for a single value, or '' for none."""
  if len(values) < 2:
    return ''.join(f'{value:.2f}' for value in values)
  return f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'


def _cells(records: Sequence[Record], crop_sets: Sequence[str], shown_errors: Sequence[str]) -> Iterator[str]:
  yield str(len(records))
  yield f'{records[0].num_epochs:.4g}'
  curves = [errors for _, errors in (record.training_curve() for record in records)]
  yield format_mean_and_std([float(errors[-1]) for errors in curves if errors.size])
  for name in crop_sets:
    evaluated = [record.results[name] for record in records if name in record.results]
    yield ' / '.join(format_mean_and_std([metrics[shown] for metrics in evaluated]) for shown in shown_errors)
  minutes = statistics.mean(record.minutes for record in records)
  yield f'{minutes:.0f}' if minutes else ''  # an average of networks trains nothing


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
  versions = sorted({record.versions for record in records})
  return (
    f'{condition.name}: `{first.command}`; {first.dataset}; {" to ".join(dict.fromkeys((dates[0], dates[-1])))}; '
    f'commit {", ".join(commits)}; {" and ".join(machines)}; {" and ".join(versions)}.'
  )
