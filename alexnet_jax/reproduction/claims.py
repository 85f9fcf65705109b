"""What the paper claims, section by section, and RESULTS.md, which sets beside it what was measured."""

from typing import NamedTuple

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
    'python -m alexnet_jax figures kernels DIR',
    'kernels',
  ),
  Claim(
    '6.1', 'what is near in fc7 is alike', 'figure 4', '', 'python -m alexnet_jax figures neighbours DIR', 'photographs'
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
