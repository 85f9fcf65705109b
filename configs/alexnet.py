"""AlexNet as its paper describes it; with no variant, on the embedded handwritten digits.

    python main.py --config=configs/alexnet.py                        # the digits, on a laptop, in minutes
    python main.py --config=configs/alexnet.py:imagenet2012           # the paper's task
    python main.py --config=configs/alexnet.py:imagenet2012,as_run    # the same as the code of 2012 ran it
    python main.py --config=configs/alexnet.py:cifar10,no_lrn         # enlarged to 256 x 256, one thing taken away
    python main.py --config=configs/alexnet.py:cifar10,small          # a small one, for a CPU

Variants are functions of this file, applied one after the other: configs/alexnet.py:VARIANT,VARIANT. Every number names
its section of the paper. 'Paper:' marks where we had to choose or depart from it.
"""

import itertools
from typing import NamedTuple

from ml_collections import ConfigDict

LAYERS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6', 'fc6', 'fc7', 'bottleneck', 'fc8')
MIDDLE_STD_2012 = dict(conv3=0.03, conv4=0.03, conv5=0.03, conv6=0.03)  # facts, 1.7 and 4


def paper() -> ConfigDict:
  """The recipe of the paper."""
  config = ConfigDict()
  config.variants = ()  # names of the variants applied, other than datasets; part of the default workdir
  config.seed = 0  # of the initial weights, the order of the images, augmentation and dropout
  config.batch_size = 128  # section 5
  config.num_epochs = 90.0  # section 5: 'roughly 90 cycles through the training set'
  config.num_steps = 0  # instead of num_epochs, where it is not 0
  config.eval_every = 0  # steps between evaluations on the validation split; 0: once an epoch
  config.checkpoint_every = 0  # steps between checkpoints; 0: once an epoch
  config.log_every = 10  # steps between lines on the terminal and points of the TensorBoard curves
  config.heartbeat = 60  # of several processes: seconds of silence after which one counts as dead

  config.init_from = ''  # section 6: folder of a run from which layers are taken by name, instead of drawn
  config.init_fresh = ()  # layers that are drawn all the same

  config.mesh = ConfigDict()
  config.mesh.data = 0  # devices that share a batch; 0: what the tower axis leaves
  config.mesh.tower = 0  # devices that share the towers, 1 or 2; 0: 2 where the number of devices is even

  config.model = ConfigDict()
  config.model.name = 'alexnet'
  config.model.image_size = 224  # section 4.1
  config.model.border = 32  # section 4.1: pixels by which the stored images are larger, 256 in the paper
  config.model.centre_mean = False  # section 2: the mean is cropped like the image; True: its centre, for every crop
  config.model.num_towers = 2  # section 3.2; 1 for the one-GPU network
  config.model.width = 1.0  # factor on the numbers that follow
  config.model.kernels = ConfigDict()  # figure 2: kernels, or neurons, of one tower; 0 leaves a layer out
  config.model.kernels.update(conv1=48, conv2=128, conv3=192, conv4=192, conv5=128, conv6=0, fc6=2048, fc7=2048)
  config.model.kernels.bottleneck = 0  # linear units before fc8, for very many classes (facts, 4)
  config.model.meet = ('conv3', 'fc6', 'fc7', 'fc8')  # figure 2: layers that read both towers
  # Zeros around maps: on each side, or (above and left, below and right). Figure 2: 224 pixels give 55 outputs a row,
  # so that the last window of conv1 ends 3 pixels outside (facts, 1.3); the other layers keep the size of their maps.
  config.model.padding = ConfigDict({'conv1': (0, 3), 'conv2': 2, 'conv5': 1})
  config.model.pool_size = 3  # section 3.4: z = 3 with s = 2
  config.model.nonlinearity = 'relu'  # section 3.1; or 'tanh'
  # What layers compute with; or 'bfloat16', faster on newer GPUs. Parameters, normalisation, loss and update stay
  # float32. Paper: not said; the code of 2012 had 32 bits throughout.
  config.model.dtype = 'float32'
  config.model.norm = ConfigDict()
  config.model.norm.update(k=2.0, size=5, alpha=1e-4, beta=0.75)  # section 3.3
  config.model.norm.after = ('conv1', 'conv2')  # section 3.5: layers whose outputs are normalised
  config.model.norm.before = ()  # layers normalised before the nonlinearity instead
  config.model.norm.within = ()  # layers normalised once more, each map within itself
  config.model.norm.pooled = ()  # layers normalised after they are pooled instead
  config.model.norm.joined = False  # facts, 1.2: within a tower; True: across the maps of all towers as one
  config.model.dropout = True  # section 4.2, in fc6 and fc7
  config.model.init_std = ConfigDict({name: 0.01 for name in LAYERS})  # section 5
  config.model.init_bias = ConfigDict({name: 0.0 for name in LAYERS})  # section 5 ...
  config.model.init_bias.update(conv2=1.0, conv4=1.0, conv5=1.0, fc6=1.0, fc7=1.0)  # ... and its five exceptions
  config.model.init_bias.conv6 = 1.0  # Paper: not said; as in 2012 (facts, 4)

  config.optimizer = ConfigDict()
  config.optimizer.rate = 0.01  # section 5
  config.optimizer.momentum = 0.9  # section 5
  config.optimizer.weight_decay = 0.0005  # section 5
  config.optimizer.layer_decay = ConfigDict({name: 1.0 for name in LAYERS})  # section 5: all alike; factors of it
  config.optimizer.bias_decay = True  # section 5. Paper: says 'weight decay' of w, all that is learned
  config.optimizer.schedule = 'plateau'  # section 5; or 'steps'
  config.optimizer.rate_factor = 10.0  # section 5: what the rate is divided by
  config.optimizer.plateau_drops = 3  # section 5: 'reduced three times prior to termination'
  config.optimizer.plateau_patience = 5  # evaluations without a better one. Paper: adjusted by hand, no number given
  config.optimizer.steps = RUN_145.drops  # for 'steps', fractions of the run. Paper: not given (facts, 1.6)
  config.optimizer.bias_factor = 1.0  # section 5: one rate for all; rate of the biases over that of the kernels
  config.optimizer.bias_drops = -1  # section 5: all; how many of the rate's drops reach the biases, -1 for all
  config.optimizer.layer_factor = ConfigDict({name: 1.0 for name in LAYERS})  # section 5: all alike; 0 freezes a layer
  # Later factors of a layer: ((from this fraction of the run, of the kernels' rate, of the biases' rate), ...)
  config.optimizer.layer_changes = ConfigDict({name: () for name in LAYERS})  # section 5: none

  config.augment = ConfigDict()
  config.augment.crop = True  # section 4.1: random patches; else the centre patch
  config.augment.offsets = 32  # section 4.1: places of a patch on each axis, for a factor of 32 * 32 * 2 = 2048
  config.augment.mirror = True  # section 4.1: horizontal reflections
  config.augment.shared_by = 1  # consecutive images that share patch and reflection
  config.augment.colour_std = 0.1  # section 4.1; 0 for no colour shift
  config.augment.colour_until = 1.0  # fraction of the run after which colours are left alone
  config.augment.colour_rescale = False  # True: divide the shifted image by 1 + colour_std

  config.data = ConfigDict()
  config.data.name = 'ilsvrc/2012'  # any TFDS dataset of labelled images
  config.data.dir = ''  # folder that holds it; empty: TFDS's own, where it fetches what is missing
  config.data.train_split = 'train'
  config.data.validation_split = 'validation'  # what the plateau reads
  config.data.test_split = 'validation'  # what is reported. Paper: the labels of the 2012 test set were not released
  config.data.classes = ()  # names of those to tell apart, of all splits; none: all that the dataset has
  config.data.reshuffle = True  # a new order every epoch; False: one order, drawn once. Paper: not said
  config.data.unreadable = 'fail'  # what to do about a record that cannot be read; or 'skip': named, and left out
  config.data.num_threads = 0  # that read and decode, each a batch at a time; 0: one for each core, at most 16
  config.data.num_prefetched = 0  # batches made ahead; 0: two for each thread

  config.eval = ConfigDict()
  config.eval.batch_size = 128  # changes nothing but speed and memory
  config.eval.ten_view = True  # section 4.1: at the end also the mean over ten views
  config.eval.nine_view = False  # and that over nine, as cuda-convnet did for CIFAR-10 (facts, 3)
  config.eval.save_predictions = False  # keep what is predicted, image by image, in the folder of the run
  config.eval.submission = False  # also write submission.txt, as ILSVRC takes it
  config.eval.ensemble = 'mean'  # section 6, of several runs; or 'search': weights found on the validation split
  return config


# The data.


def digits(config: ConfigDict) -> None:
  """The 1,797 handwritten digits of scikit-learn: eight pixels enlarged to 256, as hard as a full AlexNet needs it."""
  config.data.name = 'digits'
  config.data.train_split, config.data.validation_split, config.data.test_split = 'train[:90%]', 'train[90%:]', 'test'
  config.batch_size = 32
  config.num_epochs = 8
  config.augment.mirror = False  # a mirrored digit is another sign
  config.optimizer.plateau_patience = 2
  # Paper: 0.01 and 0.01, which learn the digits, too, but first throw the loss to 4 and need an epoch to come back, so
  # that some seeds are late: after two epochs 15 and 28 % validation error (seeds 0, 1), against 10 % with these.
  config.optimizer.rate = 0.001
  config.model.init_std.update(MIDDLE_STD_2012)


def imagenet2012(config: ConfigDict) -> None:
  """The paper's task, 1.2 million photographs of 1000 classes, made by `python -m alexnet_jax.prepare 2012 FOLDER`."""
  config.log_every = 100


def ilsvrc2010(config: ConfigDict) -> None:
  """ILSVRC-2010, the data of the paper's first table, made by `python -m alexnet_jax.prepare 2010 FOLDER`."""
  config.data.name = 'ilsvrc/2010'
  config.data.test_split = 'test'
  config.log_every = 100


def fall2009(config: ConfigDict) -> None:
  """ImageNet, Fall 2009: 10,184 classes, made by `python -m alexnet_jax.prepare synsets TAR --name=fall2009`."""
  _synsets(config, 'fall2009')


def fall2011(config: ConfigDict) -> None:
  """ImageNet, Fall 2011: 22 thousand classes, made by `python -m alexnet_jax.prepare synsets TAR --name=fall2011`."""
  _synsets(config, 'fall2011')


def _synsets(config, name):
  config.data.name = f'ilsvrc/{name}'
  config.data.train_split, config.data.validation_split, config.data.test_split = 'train[:99%]', 'train[99%:]', 'test'
  config.log_every = 100


def imagenette(config: ConfigDict) -> None:
  """Ten easy classes of ImageNet, which TFDS downloads (1.5 GB)."""
  config.data.name = 'imagenette/full-size-v2'
  config.data.train_split, config.data.validation_split, config.data.test_split = (
    'train[:95%]',
    'train[95%:]',
    'validation',
  )
  config.optimizer.rate = 0.002  # Paper: 0.01. As for cifar10, and not tried yet
  config.model.init_std.update(MIDDLE_STD_2012)  # Paper: 0.01. As for cifar10, and not tried yet


def cifar10(config: ConfigDict) -> None:
  """CIFAR-10, 32 x 32 pixels enlarged to 256."""
  config.data.name = 'cifar10'
  config.data.train_split, config.data.validation_split, config.data.test_split = 'train[:90%]', 'train[90%:]', 'test'
  config.batch_size = 32  # Paper: 128. Smaller steps show something on a CPU
  # Paper: at 0.01, and 0.01 in the middle layers, the loss is still at chance after 50 such steps; with these it falls.
  config.optimizer.rate = 0.002
  config.model.init_std.update(MIDDLE_STD_2012)


# The second recipe.


class Run(NamedTuple):
  """When a run of 2012 was changed by hand (facts, 1.6).

  Attributes:
    num_epochs: length.
    drops: when all rates but those of the biases were divided by 10, as fractions of the run.
    bias_drops: how many of these reached the biases, too.
    colour_off: when the colour shift ended and conv1's kernels went on at a tenth of the others' rate, as a fraction.
    conv1_off: when conv1 stood still, as a fraction.
  """

  num_epochs: int
  drops: tuple[float, ...]
  bias_drops: int
  colour_off: float
  conv1_off: float


RUN_145 = Run(91, (25 / 91, 51 / 91, 79 / 91), 0, 67 / 91, 72 / 91)  # on ILSVRC-2012: 40.7 / 18.2
# On ILSVRC-2010: 37.5 / 17.0. The epoch of its biases' only drop was not recorded; elsewhere it was the first.
RUN_145_2010 = Run(93, (23 / 93, 51 / 93, 78 / 93), 1, 68 / 93, 72 / 93)


def as_run(config: ConfigDict) -> None:
  """The code as it ran in 2012, run 145, where it differs from the paper's text (facts, 7)."""
  run = RUN_145_2010 if config.data.name == 'ilsvrc/2010' else RUN_145
  if config.data.name in ('ilsvrc/2012', 'ilsvrc/2010'):
    config.num_epochs = run.num_epochs
  config.model.norm.alpha = 1e-4 / 5  # divided by the window
  config.model.norm.before, config.model.norm.after = ('conv1',), ('conv2',)
  config.model.norm.within = ('conv2',)
  config.model.init_std.update(MIDDLE_STD_2012)
  config.model.centre_mean = True
  config.optimizer.schedule = 'steps'
  config.optimizer.steps = run.drops
  config.optimizer.bias_factor, config.optimizer.bias_drops = 2.0, run.bias_drops
  config.optimizer.bias_decay = False
  config.optimizer.layer_changes.conv1 = ((run.colour_off, 0.1, 1.0), (run.conv1_off, 0.0, 0.0))
  config.augment.offsets = 33
  config.augment.shared_by = 32
  config.augment.colour_rescale = True
  config.augment.colour_until = run.colour_off
  config.data.reshuffle = False


def small(config: ConfigDict) -> None:
  """Half of the kernels, and patches of 64 pixels: two towers that learn CIFAR-10 on a CPU, in batches of 128."""
  config.model.width = 0.5
  config.model.image_size, config.model.border = 64, 8
  config.augment.offsets -= 24  # of a border of 32: 8 places on each axis, 9 in the code of 2012
  config.batch_size, config.optimizer.rate = 128, 0.01  # section 5
  # Paper: as there, times the root of how many fewer inputs a unit has, so that outputs are as large as there. A kernel
  # of conv2 to conv6 reads half as many, as do the units of fc7, the bottleneck and fc8; of fc6 128 instead of 9,216.
  for name in ('conv2', 'conv3', 'conv4', 'conv5', 'conv6', 'fc7', 'bottleneck', 'fc8'):
    config.model.init_std[name] *= 2**0.5
  config.model.init_std.fc6 *= (9216 / 128) ** 0.5


# Networks of others, as their weights need them (see `python -m alexnet_jax.weights`).


def bvlc_alexnet(config: ConfigDict) -> None:
  """Caffe's AlexNet: patches of 227 pixels, normalised across both towers with k = 1, alpha / 5 (facts, 1.2, 1.3)."""
  config.model.image_size, config.model.border = 227, 29
  config.model.padding.conv1 = (0, 0)
  config.model.norm.update(k=1.0, alpha=1e-4 / 5, before=(), after=('conv1', 'conv2'), within=(), joined=True)
  config.augment.offsets = 30


def bvlc_reference_caffenet(config: ConfigDict) -> None:
  """Caffe's CaffeNet: its AlexNet, but pooled before it is normalised (facts, 1.7)."""
  bvlc_alexnet(config)
  config.model.norm.after, config.model.norm.pooled = (), ('conv1', 'conv2')


def torchvision(config: ConfigDict) -> None:
  """The network of torchvision: one tower of other widths, padded by 2, without normalisation."""
  config.model.num_towers = 1
  config.model.kernels.update(conv1=64, conv2=192, conv3=384, conv4=256, conv5=256, fc6=4096, fc7=4096)
  config.model.padding.conv1 = (2, 2)
  config.model.norm.before = config.model.norm.after = config.model.norm.within = ()


# What was taken away, or added.


def one_tower(config: ConfigDict) -> None:
  """The one-GPU network: half of the kernels, but all of conv5's and all neurons (section 3.2; facts, 1.8)."""
  config.model.num_towers = 1
  config.model.kernels.update(conv5=256, fc6=4096, fc7=4096)


def conv6(config: ConfigDict) -> None:
  """A sixth convolution over the last pooling layer, as in the networks marked with a star (section 6; facts, 4)."""
  config.model.kernels.conv6 = 256 // config.model.num_towers
  config.model.meet += ('conv6',)


def no_communication(config: ConfigDict) -> None:
  """The towers meet at fc8 only; every layer keeps its width."""
  config.model.meet = ('fc8',)


def run150(config: ConfigDict) -> None:
  """The network of run 150: no communication before fc8, and wider layers instead (facts, 0)."""
  no_communication(config)
  config.model.kernels.update(conv2=160, fc6=4096)


def bottleneck(config: ConfigDict) -> None:
  """1024 + 1024 linear units before fc8, for a head of 21,843 classes (facts, 4)."""
  config.model.kernels.bottleneck = 2048 // config.model.num_towers
  config.model.meet += ('bottleneck',)


def finetune(config: ConfigDict) -> None:
  """All of the network that `init_from` names but its last layer, which learns ten times as fast as the others."""
  config.init_fresh = ('fc8',)
  config.optimizer.rate *= 0.1
  config.optimizer.layer_factor.fc8 = 10.0


def run146_2009(config: ConfigDict) -> None:
  """Pre-training of the networks with a star, first part: conv1 to conv5 of run 145, on Fall 2009 (facts, 4)."""
  _pretrain(config, fresh=('conv6', 'fc6', 'fc7', 'fc8'), num_epochs=6.65, slow_from=2.16)


def run146_2011(config: ConfigDict) -> None:
  """Their pre-training, second part: conv1 to conv6 of run 146-2009, on Fall 2011 (facts, 4)."""
  bottleneck(config)
  _pretrain(config, fresh=('fc6', 'fc7', 'bottleneck', 'fc8'), num_epochs=8.11, slow_from=6)


def _pretrain(config, fresh, num_epochs, slow_from):
  """Fresh layers learn ten times as fast as the others until the epoch `slow_from`. No other change is recorded."""
  as_run(config)
  conv6(config)
  if config.data.name in ('ilsvrc/fall2009', 'ilsvrc/fall2011'):
    config.num_epochs = num_epochs
  config.init_fresh = fresh
  config.augment.colour_until = 1.0
  config.optimizer.rate, config.optimizer.steps = 0.001, ()
  config.optimizer.layer_changes.conv1 = ()
  for name in fresh:
    config.optimizer.layer_factor[name] = 10.0
    config.optimizer.layer_changes[name] = ((slow_from / num_epochs, 0.1, 1.0),)


def run146_2012(config: ConfigDict) -> None:
  """Their fine-tuning: all of run 146-2011 but the bottleneck and fc8, on ILSVRC-2012, 54 epochs (facts, 1.6)."""
  as_run(config)
  conv6(config)
  if config.data.name == 'ilsvrc/2012':
    config.num_epochs = 54
  config.init_fresh = ('fc8',)
  config.augment.colour_until = 38 / 54
  config.optimizer.rate, config.optimizer.steps = 0.001, (22 / 54, 42 / 54)
  config.optimizer.layer_factor.conv1 = 0.1
  config.optimizer.layer_changes.conv1 = ((5 / 54, 0.1, 1.0), (7 / 54, 0.0, 0.0))
  config.optimizer.layer_changes.fc8 = ((300 / (54 * 10_010), 10.0, 10.0), (9 / 54, 1.0, 1.0))  # after 300 batches


def without_conv3(config: ConfigDict) -> None:
  """Section 7: conv4 reads both towers' pooled conv2 instead."""
  config.model.kernels.conv3 = 0


def without_conv4(config: ConfigDict) -> None:
  """Section 7: conv5 reads conv3."""
  config.model.kernels.conv4 = 0


def without_conv5(config: ConfigDict) -> None:
  """Section 7: conv4 is pooled and read by fc6."""
  config.model.kernels.conv5 = 0


def no_lrn(config: ConfigDict) -> None:
  """No response normalisation of any kind (section 3.3; run 148)."""
  norm = config.model.norm
  norm.before = norm.after = norm.within = norm.pooled = ()


def no_overlap(config: ConfigDict) -> None:
  """Pooling with s = 2, z = 2 (section 3.4), and paddings so that the maps come out alike (run 147; facts, 4)."""
  config.model.pool_size = 2
  config.model.padding.update(conv2=1, conv5=0)


def tanh(config: ConfigDict) -> None:
  """Saturating neurons (section 3.1)."""
  config.model.nonlinearity = 'tanh'


def no_dropout(config: ConfigDict) -> None:
  """Every neuron is there in training, and counts in full at test time (section 4.2)."""
  config.model.dropout = False


def no_colour(config: ConfigDict) -> None:
  """No colour shift (section 4.1, second form of augmentation)."""
  config.augment.colour_std = 0.0


def no_augmentation(config: ConfigDict) -> None:
  """The centre patch, never mirrored, in its own colours (section 4.1, both forms)."""
  no_colour(config)
  config.augment.crop = config.augment.mirror = False


def no_decay(config: ConfigDict) -> None:
  """No weight decay (section 5)."""
  config.optimizer.weight_decay = 0.0


def zero_bias(config: ConfigDict) -> None:
  """All biases begin at 0 (section 5)."""
  config.model.init_bias.update({name: 0.0 for name in LAYERS})


def by_name(*functions):
  """Maps names to functions."""
  return {function.__name__: function for function in functions}


DATASETS = by_name(digits, imagenet2012, ilsvrc2010, fall2009, fall2011, imagenette, cifar10)
# Applied in this order, in whatever order they are named.
VARIANTS = by_name(as_run, small, bvlc_alexnet, bvlc_reference_caffenet, torchvision)
VARIANTS |= by_name(one_tower, conv6, no_communication, run150, without_conv3, without_conv4, without_conv5)
VARIANTS |= by_name(bottleneck, finetune, run146_2009, run146_2011, run146_2012)
VARIANTS |= by_name(no_lrn, no_overlap, tanh, no_dropout, no_colour, no_augmentation, no_decay, zero_bias)
OTHERS = ('bvlc_alexnet', 'bvlc_reference_caffenet', 'torchvision')
RUN_146 = ('run146_2009', 'run146_2011', 'run146_2012')
CONFLICTS = {
  **{pair: 'each is a run of its own' for pair in itertools.combinations(RUN_146, 2)},
  **{('conv6', run): 'it has conv6 already' for run in RUN_146},
  **{(other, run): 'it is a run of the network of 2012' for other in (*OTHERS, 'small') for run in RUN_146},
  **{('small', other): 'it is a network of another size' for other in OTHERS},
  **{('finetune', run): 'it says itself what is fine-tuned' for run in RUN_146},
  ('bottleneck', 'run146_2011'): 'it has a bottleneck already',
  ('one_tower', 'no_communication'): 'a single tower has no other to meet',
  ('one_tower', 'run150'): 'a single tower has no other to meet',
  **{pair: 'these are two networks' for pair in itertools.combinations(OTHERS, 2)},
  ('one_tower', 'torchvision'): 'torchvision has one tower already, and of other widths',
  ('torchvision', 'no_communication'): 'a single tower has no other to meet',
  ('torchvision', 'run150'): 'a single tower has no other to meet',
  ('no_communication', 'run150'): 'run150 is without communication already, and of other widths',
  ('without_conv3', 'without_conv4', 'without_conv5'): 'of these layers one must stay',
}


def get_config(variants: str = '') -> ConfigDict:
  """Applies variants to the paper's recipe.

  Args:
    variants: names separated by commas, in any order; with no dataset among them, `digits` is taken.

  Raises:
    ValueError: for a name that is not in this file, or names that exclude each other.
  """
  names = [name.strip() for name in variants.split(',') if name.strip()]
  for name in names:
    if name not in DATASETS | VARIANTS:
      raise ValueError(
        f"there is no variant '{name}'; there are {', '.join(VARIANTS)}, and the datasets {', '.join(DATASETS)}"
      )
  datasets = [name for name in DATASETS if name in names] or ['digits']
  if len(datasets) > 1:
    raise ValueError(f'{" and ".join(datasets)} are {len(datasets)} datasets; name one')
  for together, reason in CONFLICTS.items():
    if set(together) <= set(names):
      raise ValueError(f'{" and ".join(together)} exclude each other: {reason}')
  config = paper()
  DATASETS[datasets[0]](config)
  config.variants = tuple(name for name in VARIANTS if name in names)
  for name in config.variants:
    VARIANTS[name](config)
  return config
