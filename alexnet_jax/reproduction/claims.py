"""The claims of the paper, by section, and the commands that test them."""

from typing import NamedTuple

IMAGENET, TWO_DEVICES = 'ImageNet', 'two GPUs'


class Claim(NamedTuple):
  """A claim of the paper.

  Attributes:
    section: section of the paper.
    statement: the claim in a few words.
    paper: the paper's number; errors are top-1 / top-5 in percent.
    logs: the number in the logs of 2012 (facts, 0).
    experiment: name of the experiment that tests the claim with fewer resources; empty if there is none.
    command: commands that test the claim as the paper did, separated by semicolons; a command that begins with a colon
      is short for a variant of `python main.py --config=configs/alexnet.py`.
    requires: `IMAGENET` or `TWO_DEVICES` if the claim cannot be tested without; else empty.
  """

  section: str
  statement: str
  paper: str
  logs: str
  experiment: str
  command: str = ''
  requires: str = ''


def _pair(variant: str, dataset: str = 'imagenet2012') -> str:
  """Returns the commands that compare a variant with the full network on ImageNet, in the recipe of the logs."""
  return f':{dataset},as_run; :{dataset},as_run,{variant}'


CLAIMS = (
  Claim('3.1', 'ReLU reaches 25 % training error on CIFAR-10 sooner than tanh', '6 times', '', 'figure1'),
  Claim(
    '3.2',
    'one tower with half of the kernels has a higher error',
    '1.7 / 1.2',
    '1.70 / 1.23',
    'one_tower',
    _pair('one_tower', 'ilsvrc2010'),
  ),
  Claim(
    '3.2',
    'two towers train slightly faster than one',
    'slightly',
    '',
    '',
    ':imagenet2012; :imagenet2012,one_tower',
    TWO_DEVICES,
  ),
  Claim(
    '3.2',
    'towers without cross-tower layers have a higher error (run 150)',
    '',
    '1.2 / 1.1',
    'communication',
    _pair('run150'),
  ),
  Claim('3.3', 'response normalisation lowers the error', '1.4 / 1.2', '1.37 / 1.15', 'normalisation', _pair('no_lrn')),
  Claim('3.3', 'response normalisation lowers the error on CIFAR-10', '13 to 11 %', '', 'lrn'),
  Claim('3.3', 'error of a four-layer network without normalisation on CIFAR-10', '13 %', '', '13pct'),
  Claim('3.3', 'error of a four-layer network with normalisation on CIFAR-10', '11 %', '', '11pct'),
  Claim('3.4', 'overlapping pooling lowers the error', '0.4 / 0.3', '0.39 / 0.30', 'overlap', _pair('no_overlap')),
  Claim(
    '4.1',
    'the network overfits without random crops and reflections',
    'substantially',
    '',
    'augmentation',
    _pair('no_augmentation'),
  ),
  Claim('4.1', 'the colour shift lowers the error', 'over 1 (top-1)', '', 'colour', _pair('no_colour')),
  Claim('4.1', 'averaging ten crops lowers the error', '1.5 / 1.3', '1.55 / 1.30', 'ten_views', ':ilsvrc2010,as_run'),
  Claim('4.1', 'averaging nine crops lowers the error on CIFAR-10', '', '', 'views'),
  Claim('4.2', 'the network overfits without dropout', 'substantially', '', 'dropout', _pair('no_dropout')),
  Claim('4.2', 'dropout requires more iterations', 'about twice', '', 'dropout_time', _pair('no_dropout')),
  Claim('5', 'weight decay lowers the training error', '', '', 'decay', _pair('no_decay')),
  Claim('5', 'biases of 1 accelerate early training', '', '', 'biases', _pair('zero_bias')),
  Claim(
    '6', 'error of one network on ILSVRC-2010, test', '37.5 / 17.0', '37.47 / 17.00', '', ':ilsvrc2010,as_run', IMAGENET
  ),
  Claim('6', 'the same with the centre crop alone', '39.0 / 18.3', '39.02 / 18.30', '', ':ilsvrc2010,as_run', IMAGENET),
  Claim(
    '6',
    'error of one network on ILSVRC-2012, validation',
    '40.7 / 18.2',
    '40.66 / 18.21',
    '',
    ':imagenet2012,as_run',
    IMAGENET,
  ),
  Claim(
    '6',
    'averaging five networks lowers the error',
    '38.1 / 16.4',
    '',
    'ensemble',
    ':imagenet2012,as_run --config.seed=0 --workdir=runs/A (B, C, D, E: seeds 1 to 4); '
    ':imagenet2012 --mode=eval --workdir=runs/A,runs/B,runs/C,runs/D,runs/E',
  ),
  Claim(
    '6',
    'pre-training one network with conv6 on Fall 2011 and fine-tuning it lowers the error',
    '39.0 / 16.6',
    '38.99 / 16.62',
    'pretraining',
    ':imagenet2012,as_run; :fall2009,run146_2009 --config.init_from=DIR; '
    ':fall2011,run146_2011 --config.init_from=DIR; :imagenet2012,run146_2012 --config.init_from=DIR',
  ),
  Claim(
    '6',
    'error of the average of two such networks and the five',
    '36.7 / 15.4',
    '',
    '',
    ':imagenet2012 --mode=eval --workdir=runs/A,runs/B,...',
    IMAGENET,
  ),
  Claim('6', 'error on Fall 2009, 10,184 classes, with conv6', '67.4 / 40.9', '', '', ':fall2009,conv6', IMAGENET),
  Claim(
    '6.1',
    'the kernels of one tower are colourful, those of the other are not',
    'figure 3',
    '',
    'kernels',
    'python -m alexnet_jax figures kernels DIR',
  ),
  Claim(
    '6.1',
    'images that are close in fc7 are similar',
    'figure 4',
    '',
    'photographs',
    'python -m alexnet_jax figures neighbours DIR',
  ),
  Claim('7', 'removing a middle layer raises the error', 'about 2 (top-1)', '', 'depth', _pair('without_conv4')),
)
