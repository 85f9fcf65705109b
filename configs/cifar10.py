"""The small networks of sections 3.1 and 3.3 on CIFAR-10, as specified by the files of cuda-convnet (facts, 3).

    python main.py --config=configs/cifar10.py                 # the network with 13 % error, footnote 3 of the paper
    python main.py --config=configs/cifar10.py:11pct           # a similar network with response normalisation
    python main.py --config=configs/cifar10.py:11pct,no_lrn    # the same network without it
    python main.py --config=configs/cifar10.py:figure1,tanh    # one curve of figure 1

Networks and variants are functions in this file; --config=configs/cifar10.py:NETWORK,VARIANT,VARIANT applies them.
Networks are named after the error rates that the files of cuda-convnet state. All other fields have the values of
alexnet.py.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet

LAYERS = ('conv1', 'conv2', 'conv3', 'local3', 'local4', 'fc64', 'fc10')


def convnet() -> ConfigDict:
  """Returns the settings that all networks have in common (facts, 3)."""
  config = alexnet.paper()
  config.model = ConfigDict()
  config.model.name = 'cifar'  # network of this file; 'alexnet' needs the fields of alexnet.py
  config.model.image_size = 32  # side of the crops, pixels
  config.model.border = 0  # crop margin: stored images are this many pixels larger than crops
  config.model.centre_mean = True  # subtract the centre of the mean image from every crop
  config.model.num_towers = 1  # these networks have one tower
  config.model.width = 1.0  # factor of the numbers in kernels
  config.model.kernels = ConfigDict({name: 0 for name in LAYERS[:-1]})  # or units; 0 removes the layer
  config.model.pool = ConfigDict({'conv1': 'max', 'conv2': 'max', 'conv3': 'average'})  # windows of 3, stride 2
  config.model.nonlinearity = 'relu'  # section 3.1: of all hidden layers; or 'tanh'
  config.model.dtype = 'float32'  # type in which layers compute; or 'bfloat16'
  config.model.norm = ConfigDict({'k': 1.0, 'size': 9, 'alpha': 0.001 / 9, 'beta': 0.75})  # k: the default of the code
  config.model.norm.within = False  # normalise across maps; True: within each map
  config.model.norm.after = ()  # layers whose outputs are normalised
  config.model.norm.pooled = ()  # layers normalised after pooling instead
  config.model.init_std = ConfigDict({name: 0.01 for name in LAYERS})  # standard deviations of the kernels
  config.model.init_std.update(conv1=0.0001, local3=0.04, local4=0.04, fc64=0.1)
  config.model.init_bias = ConfigDict({name: 0.0 for name in LAYERS})  # initial biases

  config.optimizer.rate = 0.001
  config.optimizer.bias_factor, config.optimizer.bias_drops = 2.0, 0  # the learning rate of biases does not decay
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
  # Batch file 5, which the authors monitored in 2012. It is part of the training set; the fixed schedule ignores its
  # error.
  config.data.validation_split = 'train[80%:]'
  config.data.test_split = 'test'
  config.data.reshuffle = False  # the code of 2012 read its batch files in one order
  config.log_every = 79  # steps; 10,000 images, one batch file of 2012
  config.eval.ten_view = False
  return config


def cropped(config: ConfigDict) -> None:
  """Trains on crops of 24 x 24 pixels and their reflections, with nine-crop evaluation at test time."""
  config.model.image_size, config.model.border = 24, 8
  config.augment.crop = config.augment.mirror = True
  config.augment.offsets = 9
  config.eval.nine_view = True


# Networks.


def pct26(config: ConfigDict) -> None:
  """Selects layers-80sec: three convolutions and 64 hidden units."""
  config.model.kernels.update(conv1=32, conv2=32, conv3=64, fc64=64)
  config.model.pool.conv2 = 'average'
  config.model.init_std.fc10 = 0.1
  config.optimizer.layer_decay.update(fc64=7.5, fc10=7.5)  # 7.5 * 0.004 = 0.03
  config.num_epochs = 8


def pct19(config: ConfigDict) -> None:
  """Selects layers-19pct: three convolutions."""
  config.model.kernels.update(conv1=32, conv2=32, conv3=64)
  config.model.pool.conv2 = 'average'
  config.optimizer.layer_decay.fc10 = 750.0  # 750 * 0.004 = 3
  _set_schedule(config, 120, 130, 140)


def pct18(config: ConfigDict) -> None:
  """Selects layers-18pct: layers-19pct with normalisation within maps after the first two pooling layers."""
  pct19(config)
  config.model.norm.update(size=3, alpha=5e-5 / 9, within=True, pooled=('conv1', 'conv2'))
  config.optimizer.layer_decay.fc10 = 250.0  # 250 * 0.004 = 1


def pct13(config: ConfigDict) -> None:
  """Selects layers-conv-local-13pct: two convolutions and two locally connected layers, as in section 3.3."""
  cropped(config)
  config.model.kernels.update(conv1=64, conv2=64, local3=32, local4=32)
  config.optimizer.layer_decay.update(conv1=0.0, conv2=0.0)
  _set_schedule(config, 140, 150, 160)


def pct11(config: ConfigDict) -> None:
  """Selects layers-conv-local-11pct: normalisation across maps, a wider local3, and three times the epochs."""
  pct13(config)
  config.model.kernels.local3 = 64
  lrn(config)
  config.optimizer.layer_decay.fc10 = 2.5  # 2.5 * 0.004 = 0.01
  _set_schedule(config, 500, 510, 520)


def figure1(config: ConfigDict) -> None:
  """Selects a four-layer network without regularisation, 40 epochs at a constant learning rate (section 3.1).

  Paper: does not specify the network. layers-19pct has four layers of weights, counted like the eight of AlexNet.
  """
  pct19(config)
  config.optimizer.weight_decay = 0.0
  config.num_epochs, config.optimizer.steps = 40, ()


def _set_schedule(config, first_decay, second_decay, num_epochs):
  config.num_epochs, config.optimizer.steps = num_epochs, (first_decay / num_epochs, second_decay / num_epochs)


# Ablations and additions.


def lrn(config: ConfigDict) -> None:
  """Normalises across nine maps, conv1 after pooling and conv2 before pooling (section 3.3)."""
  config.model.norm.update(size=9, alpha=0.001 / 9, within=False, pooled=('conv1',), after=('conv2',))


def no_lrn(config: ConfigDict) -> None:
  """Removes all response normalisation (section 3.3)."""
  config.model.norm.after = config.model.norm.pooled = ()


def tanh(config: ConfigDict) -> None:
  """Replaces ReLU by tanh, a saturating nonlinearity (section 3.1)."""
  config.model.nonlinearity = 'tanh'


def no_augmentation(config: ConfigDict) -> None:
  """Trains on centre crops without reflections (section 4.1)."""
  config.augment.crop = config.augment.mirror = False


def no_decay(config: ConfigDict) -> None:
  """Removes weight decay (section 5)."""
  config.optimizer.weight_decay = 0.0


NETWORKS = {'13pct': pct13, '11pct': pct11, '18pct': pct18, '19pct': pct19, '26pct': pct26, 'figure1': figure1}
VARIANTS = alexnet.by_name(lrn, no_lrn, tanh, no_augmentation, no_decay)  # applied in this order


def get_config(variants: str = '') -> ConfigDict:
  """Returns the recipe of a network with variants applied.

  Args:
    variants: names of a network and of variants, separated by commas, in any order; the default network is `13pct`.

  Raises:
    ValueError: if a name is unknown or empty, or names exclude each other.
  """
  names = alexnet.split_names(variants)
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
