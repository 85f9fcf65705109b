"""What the paper claims, section by section, and RESULTS.md, which sets beside it what was measured."""

import statistics
from collections.abc import Mapping
from typing import NamedTuple

from alexnet_jax.conclusions import (
  DIRECTION,
  FACTOR,
  NOT_REPRODUCED,
  REPRODUCED,
  Outcomes,
  error,
  spread,
)
from alexnet_jax.experiments import EXPERIMENTS, SHOW_IMAGES, SMALL_NOTE, Experiment, arms_read, error_after, trial_name

NOT_YET = 'not yet'
IMAGENET, TWO_DEVICES = 'ImageNet', 'two GPUs'


class Claim(NamedTuple):
  """A claim of the paper.

  Attributes:
    section: of the paper.
    what: it says.
    paper: its number; errors are top-1 / top-5 in percent.
    logs: the number in the logs of 2012 (facts, 0).
    command: that puts it to the test where the paper did, or several, separated by semicolons, whose results are
      compared; one that begins with a colon is a config of `python main.py --config=configs/alexnet.py`.
    experiment: name of the experiment that does so here; empty where there is none.
    needs: what alone can show it; empty where something smaller can.
  """

  section: str
  what: str
  paper: str
  logs: str
  command: str
  experiment: str = ''
  needs: str = ''


def on_imagenet(dataset: str, variant: str) -> str:
  """Returns the commands of a comparison on ImageNet, in the recipe that the logs used."""
  return f':{dataset},as_run; :{dataset},as_run,{variant}'


CLAIMS = (
  Claim('3.1', 'ReLU reaches 25 % training error on CIFAR-10 sooner than tanh', '6 times', '', '', 'figure1'),
  Claim(
    '3.2',
    'one tower of half the kernels is worse',
    '1.7 / 1.2',
    '1.70 / 1.23',
    on_imagenet('ilsvrc2010', 'one_tower'),
    'one_tower',
  ),
  Claim(
    '3.2',
    'two towers train a little faster than one',
    'slightly',
    '',
    ':imagenet2012; :imagenet2012,one_tower',
    '',
    TWO_DEVICES,
  ),
  Claim(
    '3.2',
    'towers that never meet are worse (run 150)',
    '',
    '1.2 / 1.1',
    on_imagenet('imagenet2012', 'run150'),
    'communication',
  ),
  Claim(
    '3.3',
    'response normalisation helps',
    '1.4 / 1.2',
    '1.37 / 1.15',
    on_imagenet('imagenet2012', 'no_lrn'),
    'normalisation',
  ),
  Claim('3.3', 'response normalisation helps on CIFAR-10', '13 to 11 %', '', '', 'lrn'),
  Claim('3.3', 'a four-layer network without normalisation on CIFAR-10', '13 %', '', '', '13pct'),
  Claim('3.3', 'a four-layer network with normalisation on CIFAR-10', '11 %', '', '', '11pct'),
  Claim(
    '3.4', 'overlapping pooling helps', '0.4 / 0.3', '0.39 / 0.30', on_imagenet('imagenet2012', 'no_overlap'), 'overlap'
  ),
  Claim(
    '4.1',
    'without crops and reflections it overfits',
    'substantially',
    '',
    on_imagenet('imagenet2012', 'no_augmentation'),
    'augmentation',
  ),
  Claim('4.1', 'the colour shift helps', 'over 1 (top-1)', '', on_imagenet('imagenet2012', 'no_colour'), 'colour'),
  Claim('4.1', 'ten views are better than the centre', '1.5 / 1.3', '1.55 / 1.30', ':ilsvrc2010,as_run', 'ten_views'),
  Claim('4.1', 'so are the nine views of CIFAR-10', '', '', '', 'views'),
  Claim(
    '4.2', 'without dropout it overfits', 'substantially', '', on_imagenet('imagenet2012', 'no_dropout'), 'dropout'
  ),
  Claim(
    '4.2', 'dropout needs more iterations', 'about twice', '', on_imagenet('imagenet2012', 'no_dropout'), 'dropout_time'
  ),
  Claim('5', 'weight decay lowers the training error', '', '', on_imagenet('imagenet2012', 'no_decay'), 'decay'),
  Claim('5', 'biases of 1 speed up the early phase', '', '', on_imagenet('imagenet2012', 'zero_bias'), 'biases'),
  Claim('6', 'one network on ILSVRC-2010, test', '37.5 / 17.0', '37.47 / 17.00', ':ilsvrc2010,as_run', '', IMAGENET),
  Claim('6', 'the same without ten views', '39.0 / 18.3', '39.02 / 18.30', ':ilsvrc2010,as_run', '', IMAGENET),
  Claim(
    '6',
    'one network on ILSVRC-2012, validation',
    '40.7 / 18.2',
    '40.66 / 18.21',
    ':imagenet2012,as_run',
    '',
    IMAGENET,
  ),
  Claim(
    '6',
    'five networks, averaged',
    '38.1 / 16.4',
    '',
    ':imagenet2012,as_run --config.seed=0 --workdir=runs/A (B, C, D, E: seeds 1 to 4); '
    ':imagenet2012 --mode=eval --workdir=runs/A,runs/B,runs/C,runs/D,runs/E',
    'ensemble',
  ),
  Claim(
    '6',
    'one network with conv6, pre-trained on Fall 2011 and fine-tuned',
    '39.0 / 16.6',
    '38.99 / 16.62',
    ':imagenet2012,as_run; :fall2009,run146_2009 --config.init_from=DIR; '
    ':fall2011,run146_2011 --config.init_from=DIR; :imagenet2012,run146_2012 --config.init_from=DIR',
    'pretraining',
  ),
  Claim(
    '6',
    'two such networks and the five, averaged',
    '36.7 / 15.4',
    '',
    ':imagenet2012 --mode=eval --workdir=runs/A,runs/B,...',
    '',
    IMAGENET,
  ),
  Claim('6', 'Fall 2009, 10,184 classes, with conv6', '67.4 / 40.9', '', ':fall2009,conv6', '', IMAGENET),
  Claim(
    '6.1',
    'one tower learns colour, the other does not',
    'figure 3',
    '',
    'python -m alexnet_jax.figures kernels DIR',
    'kernels',
  ),
  Claim(
    '6.1', 'what is near in fc7 is alike', 'figure 4', '', 'python -m alexnet_jax.figures neighbours DIR', 'photographs'
  ),
  Claim(
    '7',
    'without a middle layer it is worse',
    'about 2 (top-1)',
    '',
    on_imagenet('imagenet2012', 'without_conv4'),
    'depth',
  ),
)

INTRODUCTION = f"""# Results

Every claim of the paper, and what was measured here. `python -m alexnet_jax.reproduce NAME` runs an experiment and
writes its entry; this file is made from `results/` by `python -m alexnet_jax.reproduce --write`, so do not edit it.

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
    entry(EXPERIMENTS[name], outcomes, described)
    for name, outcomes in found.items()
    if is_complete(EXPERIMENTS[name], outcomes)
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
      command = '; '.join(filter(None, (f'python -m alexnet_jax.reproduce {experiment.name}', claim.command)))
      if is_complete(experiment, found[experiment.name]):
        ours, status = experiment.conclude(found[experiment.name])
    command = '; '.join(f'`{one}`' for one in command.split('; '))
    lines.append(
      f'| {claim.section} | {claim.what} | {claim.paper} | {claim.logs} | {ours} | {data} | {status} | {command} |'
    )
  return '\n'.join(lines)


def is_complete(experiment: Experiment, outcomes: Outcomes) -> bool:
  """Says whether there is something to conclude from: every arm has ended at least once, of what it reads, too."""
  return not missing(experiment, outcomes)


def missing(experiment: Experiment, outcomes: Outcomes) -> list[str]:
  """Names the arms of an experiment, and of those that it reads, that have not ended with any seed."""
  return [name for name in (*(arm.name for arm in experiment.arms), *arms_read(experiment)) if name not in outcomes]


def entry(experiment: Experiment, outcomes: Outcomes, described: set | None = None) -> str:
  """Returns the entry of an experiment.

  Args:
    experiment: what it is of.
    outcomes: of its trainings that have ended.
    described: trainings whose commands stand in an entry above, to which those of this one are added.
  """
  described = set() if described is None else described
  lines = [
    f'## {experiment.title}',
    '',
    f'Section {experiment.section}, on {experiment.data}. {experiment.note}'.strip(),
    '',
  ]
  if is_complete(experiment, outcomes):
    ours, verdict = experiment.conclude(outcomes)
    lines += [f'**{ours}** -- {verdict}.', '']
  else:
    lines += [f'Not run to the end yet: {", ".join(missing(experiment, outcomes))}.', '']
  if not experiment.arms:
    return '\n'.join(lines)
  if experiment.shown:
    lines += [f'![{experiment.title}](results/{experiment.name}.png)', '']
  if is_complete(experiment, outcomes):
    lines += [
      f'![{picture} of {experiment.arms[0].name}](results/{experiment.name}-{picture}.png)\n'
      for picture in experiment.pictures
      if picture not in SHOW_IMAGES
    ]
    if drawn := [f'`results/{experiment.name}-{name}.png`' for name in experiment.pictures if name in SHOW_IMAGES]:
      lines += [
        f'The command also draws {" and ".join(drawn)}; they show images of the dataset, so are not kept here.',
        '',
      ]
  has_ten = any('ten_view' in outcome.results for some in outcomes.values() for outcome in some)
  protocol, several = ('ten_view', 'ten') if has_ten else ('nine_view', 'nine')
  lines += [
    f'| arm | epochs | seeds | training error at the end | test error, centre | {several} views | minutes a seed |',
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for arm in experiment.arms:
    if some := outcomes.get(arm.name):
      lines.append(f'| {arm.name} | {" | ".join(_row(some, protocol))} |')
  lines.append('')
  for arm in experiment.arms:
    trials = {
      rate: outcomes[trial_name(arm.name, rate)] for rate in arm.rates if trial_name(arm.name, rate) in outcomes
    }
    errors = (f'{error_after(one, arm.trial_epochs):.1f} % at {rate:g}' for rate, (one,) in trials.items())
    if trials:
      lines += [f'{arm.name}, training error after {arm.trial_epochs:g} epochs: {", ".join(errors)}.', '']
  for arm in experiment.all_arms():
    name, training = arm.name, (arm.home or experiment.name, arm.name)
    if name not in outcomes:
      continue
    if training in described:
      lines += [f'{name}: as above.', '']
      continue
    described.add(training)
    first = outcomes[name][0]
    dates = sorted({outcome.date for outcome in outcomes[name]})
    commits = sorted({outcome.commit for outcome in outcomes[name]})
    machines = sorted({outcome.hardware for outcome in outcomes[name]})
    lines += [
      f'{name}: `{first.command}`; {first.dataset}; {" to ".join(dict.fromkeys((dates[0], dates[-1])))}; '
      f'commit {", ".join(commits)}; {" and ".join(machines)}; {first.versions}.',
      '',
    ]
  return '\n'.join(lines)


def _row(outcomes, protocol):
  last = [float(outcome.training_curve()[1][-1]) for outcome in outcomes if outcome.training_curve()[1].size]
  yield f'{outcomes[0].num_epochs:.4g}'
  yield str(len(outcomes))
  yield f'{spread(last)} %' if last else ''
  for views in ('centre', protocol):
    errors = [error(outcome, views) for outcome in outcomes if views in outcome.results]
    yield f'{spread(errors)} %' if errors else ''
  yield f'{statistics.mean(outcome.minutes for outcome in outcomes):.0f}'
