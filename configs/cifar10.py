"""The small networks of sections 3.1 and 3.3 on CIFAR-10, as the files of cuda-convnet specify them (facts, 3).

    python main.py --config=configs/cifar10.py                 # the network of 13 %, footnote 3 of the paper
    python main.py --config=configs/cifar10.py:11pct           # the same idea with response normalisation
    python main.py --config=configs/cifar10.py:11pct,no_lrn    # and the same network without
    python main.py --config=configs/cifar10.py:figure1,tanh    # one curve of figure 1

One network, then variants: configs/cifar10.py:NETWORK,VARIANT,VARIANT. What is not said here is as in alexnet.py. The
networks are named after the error that their files promise.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet

LAYERS = ('conv1', 'conv2', 'conv3', 'local3', 'local4', 'fc64', 'fc10')


def convnet() -> ConfigDict:
  """What the networks have in common (facts, 3): the rates, the initial weights, the data, and no colour shift."""
  config = alexnet.paper()
  config.model = ConfigDict()
  config.model.name = 'cifar'
  config.model.image_size = 32
  config.model.border = 0  # pixels by which the stored images are larger
  config.model.centre_mean = True  # the centre of the mean image is subtracted, whatever the patch
  config.model.num_towers = 1
  config.model.width = 1.0  # factor on the numbers that follow
  config.model.kernels = ConfigDict({name: 0 for name in LAYERS[:-1]})  # or neurons; 0 leaves a layer out
  config.model.pool = ConfigDict({'conv1': 'max', 'conv2': 'max', 'conv3': 'average'})  # windows of 3 pixels, stride 2
  config.model.nonlinearity = 'relu'  # section 3.1; or 'tanh'
  config.model.dtype = 'float32'  # what layers compute with; or 'bfloat16'
  config.model.norm = ConfigDict({'k': 1.0, 'size': 9, 'alpha': 0.001 / 9, 'beta': 0.75})  # k: the code's default
  config.model.norm.within = False  # across maps; True: each map within itself
  config.model.norm.after = ()  # layers whose outputs are normalised
  config.model.norm.pooled = ()  # layers normalised after they are pooled instead
  config.model.init_std = ConfigDict({name: 0.01 for name in LAYERS})
  config.model.init_std.update(conv1=0.0001, local3=0.04, local4=0.04, fc64=0.1)
  config.model.init_bias = ConfigDict({name: 0.0 for name in LAYERS})

  config.optimizer.rate = 0.001
  config.optimizer.bias_factor, config.optimizer.bias_drops = 2.0, 0  # the drops were of the kernels' rate
  config.optimizer.bias_decay = False
  config.optimizer.weight_decay = 0.004
  config.optimizer.layer_decay = ConfigDict({name: 1.0 for name in LAYERS})
  config.optimizer.layer_factor = ConfigDict({name: 1.0 for name in LAYERS})
  config.optimizer.layer_changes = ConfigDict({name: () for name in LAYERS})
  config.optimizer.schedule, config.optimizer.steps = 'steps', ()

  config.augment.crop = config.augment.mirror = False
  config.augment.offsets = 1
  config.augment.colour_std = 0.0

  config.data.name = 'cifar10'
  config.data.train_split = 'train'
  # Batch 5, which was watched in 2012 and is trained on all the same. Nothing hangs on it: the schedule is fixed.
  config.data.validation_split = 'train[80%:]'
  config.data.test_split = 'test'
  config.data.reshuffle = False  # the batches of 2012 came in one order
  config.log_every = 79  # steps: 10,000 images, a batch file of 2012
  config.eval.ten_view = False
  return config


def cropped(config: ConfigDict) -> None:
  """Patches of 24 x 24 pixels and their reflections; nine views at test time."""
  config.model.image_size, config.model.border = 24, 8
  config.augment.crop = config.augment.mirror = True
  config.augment.offsets = 9
  config.eval.nine_view = True


# The networks.


def pct26(config: ConfigDict) -> None:
  """layers-80sec: three convolutions and 64 hidden units."""
  config.model.kernels.update(conv1=32, conv2=32, conv3=64, fc64=64)
  config.model.pool.conv2 = 'average'
  config.model.init_std.fc10 = 0.1
  config.optimizer.layer_decay.update(fc64=7.5, fc10=7.5)  # 0.03
  config.num_epochs = 8


def pct19(config: ConfigDict) -> None:
  """layers-19pct: three convolutions."""
  config.model.kernels.update(conv1=32, conv2=32, conv3=64)
  config.model.pool.conv2 = 'average'
  config.optimizer.layer_decay.fc10 = 750.0  # 3
  _until(config, 120, 130, 140)


def pct18(config: ConfigDict) -> None:
  """layers-18pct: the same, normalised within maps after the first two are pooled."""
  pct19(config)
  config.model.norm.update(size=3, alpha=5e-5 / 9, within=True, pooled=('conv1', 'conv2'))
  config.optimizer.layer_decay.fc10 = 250.0  # 1


def pct13(config: ConfigDict) -> None:
  """layers-conv-local-13pct: two convolutions and two locally connected layers, the four layers of section 3.3."""
  cropped(config)
  config.model.kernels.update(conv1=64, conv2=64, local3=32, local4=32)
  config.optimizer.layer_decay.update(conv1=0.0, conv2=0.0)
  _until(config, 140, 150, 160)


def pct11(config: ConfigDict) -> None:
  """layers-conv-local-11pct: with response normalisation across maps, and wider, and trained three times as long."""
  pct13(config)
  config.model.kernels.local3 = 64
  lrn(config)
  config.optimizer.layer_decay.fc10 = 2.5  # 0.01
  _until(config, 500, 510, 520)


def figure1(config: ConfigDict) -> None:
  """Section 3.1: a four-layer network without regularisation, 40 epochs at one rate.

  Paper: it does not say which. That of 19 % has four layers of weights, counted as the paper counts its own eight.
  """
  pct19(config)
  config.optimizer.weight_decay = 0.0
  config.num_epochs, config.optimizer.steps = 40, ()


def _until(config, first_drop, second_drop, num_epochs):
  config.num_epochs, config.optimizer.steps = num_epochs, (first_drop / num_epochs, second_drop / num_epochs)


# What is taken away, or added.


def lrn(config: ConfigDict) -> None:
  """Response normalisation across nine maps: of conv1 after it is pooled, of conv2 before (section 3.3)."""
  config.model.norm.update(size=9, alpha=0.001 / 9, within=False, pooled=('conv1',), after=('conv2',))


def no_lrn(config: ConfigDict) -> None:
  """No normalisation of any kind."""
  config.model.norm.after = config.model.norm.pooled = ()


def tanh(config: ConfigDict) -> None:
  """Saturating neurons (section 3.1)."""
  config.model.nonlinearity = 'tanh'


def no_augmentation(config: ConfigDict) -> None:
  """The centre patch, never mirrored (section 4.1)."""
  config.augment.crop = config.augment.mirror = False


def no_decay(config: ConfigDict) -> None:
  """No weight decay (section 5)."""
  config.optimizer.weight_decay = 0.0


NETWORKS = {'13pct': pct13, '11pct': pct11, '18pct': pct18, '19pct': pct19, '26pct': pct26, 'figure1': figure1}
VARIANTS = alexnet.by_name(lrn, no_lrn, tanh, no_augmentation, no_decay)  # applied in this order


def get_config(variants: str = '') -> ConfigDict:
  """Makes a network and applies variants to it.

  Args:
    variants: names separated by commas, in any order; with no network among them, `13pct` is taken.

  Raises:
    ValueError: for a name that is not in this file, or names that exclude each other.
  """
  names = [name.strip() for name in variants.split(',') if name.strip()]
  for name in names:
    if name not in NETWORKS | VARIANTS:
      raise ValueError(
        f"there is no variant '{name}'; there are {', '.join(VARIANTS)}, and the networks {', '.join(NETWORKS)}"
      )
  networks = [name for name in NETWORKS if name in names] or ['13pct']
  if len(networks) > 1:
    raise ValueError(f'{" and ".join(networks)} are {len(networks)} networks; name one')
  if {'lrn', 'no_lrn'} <= set(names):
    raise ValueError('lrn and no_lrn exclude each other')
  config = convnet()
  NETWORKS[networks[0]](config)
  config.variants = (*networks, *(name for name in VARIANTS if name in names))
  for name in config.variants[1:]:
    VARIANTS[name](config)
  return config
