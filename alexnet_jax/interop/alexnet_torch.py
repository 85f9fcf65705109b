"""AlexNet in PyTorch, from a folder that `python -m alexnet_jax weights export --format=huggingface` wrote.

This file needs torch and safetensors only, and its syntax is that of Python 3.7. It is tested with torch 2.13:

    import torch
    from alexnet_torch import load

    network = load('FOLDER')
    images = torch.zeros(1, 3, 300, 400)  # [batch, rgb, height, width], 0-255, uint8 or float32
    logits = network(images)  # [batch, class]

Each step is a child module whose output can be hooked by name: conv1, relu1, norm1, pool1, ... fc7, relu7, drop7, fc8.
The preprocessing is part of the network.

SPDX-License-Identifier: Apache-2.0
"""

import json
import pathlib

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6')
FULLY_CONNECTED = ('fc6', 'fc7', 'bottleneck', 'fc8')
POOLED = ('conv1', 'conv2', 'conv5')
# Of the nonlinearity and normalisation of each layer: relu1 follows conv1, and relu6 follows fc6.
NUMBERS = {name: name[-1] for name in (*CONVOLUTIONS, *FULLY_CONNECTED)}
NUMBERS['conv6'] = '_conv6'
NONLINEARITIES = {'relu': nn.ReLU, 'tanh': nn.Tanh}
STRIDES = {'conv1': 4}  # section 3.5 of the paper; 1 in the other layers
PADDING = 1  # of the layers that the config does not list
POOL_STRIDE = 2  # section 3.4


def load(folder):
  """Loads the network of an exported folder, ready for evaluation.

  Args:
    folder: path of the folder, with config.json and model.safetensors.

  Returns:
    An `AlexNet` on the CPU.
  """
  folder = pathlib.Path(folder)
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))['model']
  tensors = load_file(str(folder / 'model.safetensors'))
  network = AlexNet(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
  network.load_state_dict(tensors)
  return network.eval()


class AlexNet(nn.Sequential):
  """AlexNet and its variants; the maps of the first tower are the first channels.

  Attributes:
    mean_image: [height, width, rgb] float32, 0-255, which is subtracted from the images.
  """

  mean_image: torch.Tensor

  def __init__(self, config, shapes):
    """Declares the layers, with the initial weights of PyTorch.

    Args:
      config: the dict 'model' of config.json.
      shapes: {'conv1.weight': (out, in / groups, height, width), 'conv1.bias': (out,), ..., 'mean_image': (height,
        width, 3)}.
    """
    super().__init__()
    self.image_size = config['image_size']
    self.register_buffer('mean_image', torch.zeros(shapes['mean_image']))
    num_channels = 3
    for name in CONVOLUTIONS:
      if name + '.weight' in shapes:
        self._add_convolution(name, shapes[name + '.weight'], num_channels, config)
        num_channels = shapes[name + '.weight'][0]
      if name in POOLED:
        self.add_module('pool' + NUMBERS[name], nn.MaxPool2d(config['pool_size'], POOL_STRIDE, ceil_mode=True))
        if name in config['norm']['pooled']:
          self.add_module('norm' + NUMBERS[name] + '_pooled', NormAcrossMaps(config))
    self.add_module('flatten', nn.Flatten())
    for name in FULLY_CONNECTED:
      if name + '.weight' in shapes:
        self._add_fully_connected(name, shapes[name + '.weight'], config)

  def forward(self, images):
    """Computes the logits of the centre crops of images.

    Args:
      images: [batch, rgb, height, width], 0-255, uint8 or float; see `preprocess`.

    Returns:
      Logits [batch, class] float32.
    """
    return super().forward(self.preprocess(images))

  def preprocess(self, images):
    """Resizes images, crops their centre and subtracts the mean image, as in training (sections 2 and 4.1).

    The short side is resized to that of the mean image, 256 pixels in the paper. An image that already has the size of
    the crop, 224 x 224 pixels in the paper, is not resized.

    Args:
      images: [batch, rgb, height, width], 0-255, uint8 or float.

    Returns:
      [batch, rgb, crop height, crop width] float32, about -128 to 128.
    """
    images = images.to(self.mean_image.dtype)
    stored_size, crop_size = self.mean_image.shape[0], self.image_size
    if tuple(images.shape[2:]) != (crop_size, crop_size):
      images = resize_centre(images, stored_size)
      images = centre(images, crop_size)
    return images - centre(self.mean_image.permute(2, 0, 1), crop_size)

  def _add_convolution(self, name, shape, num_channels, config):
    """Adds a convolution with its padding, nonlinearity and normalisation."""
    num_out, num_in, side, _ = shape
    number, norm = NUMBERS[name], config['norm']
    padding = config['padding'].get(name, PADDING)
    if not isinstance(padding, int):  # top and left, bottom and right
      before, after = padding
      self.add_module('pad' + number, nn.ZeroPad2d((before, after, before, after)))
      padding = 0
    convolution = nn.Conv2d(
      num_channels, num_out, side, stride=STRIDES.get(name, 1), padding=padding, groups=num_channels // num_in
    )
    self.add_module(name, convolution)
    if name in norm['before']:
      self.add_module('norm' + number + '_before', NormAcrossMaps(config))
    self.add_module(config['nonlinearity'] + number, NONLINEARITIES[config['nonlinearity']]())
    if name in norm['after']:
      self.add_module('norm' + number, NormAcrossMaps(config))
    if name in norm['within']:
      self.add_module('norm' + number + '_within', NormWithinMaps())

  def _add_fully_connected(self, name, shape, config):
    """Adds a fully-connected layer and, to fc6 and fc7, its nonlinearity and dropout."""
    num_out, num_in = shape
    num_towers = 1 if name in config['meet'] else config['num_towers']
    self.add_module(name, TowerLinear(num_in, num_out, num_towers))
    if name in ('fc6', 'fc7'):
      self.add_module(config['nonlinearity'] + NUMBERS[name], NONLINEARITIES[config['nonlinearity']]())
      if config['dropout']:  # active in training only: the weights of the next layer include the factor of 0.5
        self.add_module('drop' + NUMBERS[name], nn.Dropout(0.5))


class TowerLinear(nn.Linear):
  """A fully-connected layer whose units read the outputs of their own tower, or of all if there is one tower."""

  def __init__(self, num_in, num_out, num_towers):
    """Declares weights [out, in of one tower]."""
    super().__init__(num_in, num_out)
    self.num_towers = num_towers

  def forward(self, x):
    """Maps [batch, in of all towers] to [batch, out]."""
    inputs, weights, biases = (
      tensor.chunk(self.num_towers, axis) for tensor, axis in ((x, 1), (self.weight, 0), (self.bias, 0))
    )
    return torch.cat([functional.linear(*tower) for tower in zip(inputs, weights, biases)], 1)  # noqa: B905


class NormAcrossMaps(nn.Module):
  """Local response normalisation across the neighbouring maps of a tower (section 3.3)."""

  def __init__(self, config):
    """Takes the constants; PyTorch divides alpha by the number of neighbours, the paper does not."""
    super().__init__()
    norm = config['norm']
    self.num_groups = 1 if norm['joined'] else config['num_towers']
    self.norm = nn.LocalResponseNorm(norm['size'], norm['alpha'] * norm['size'], norm['beta'], norm['k'])

  def forward(self, x):
    """Maps [batch, channel, height, width] to the same shape."""
    height, width = x.shape[2:]
    groups = x.reshape(len(x) * self.num_groups, -1, height, width)  # each tower becomes an image
    return self.norm(groups).reshape(x.shape)


class NormWithinMaps(nn.Module):
  """Normalisation over the 5 x 5 neighbours in the same map, as in the code of 2012."""

  def forward(self, x):
    """Maps [batch, channel, height, width] to the same shape."""
    return x / (1 + 1e-3 * functional.avg_pool2d(x * x, 5, stride=1, padding=2)) ** 0.75


def centre(x, size):
  """Crops the centre: [..., height, width] -> [..., size, size]."""
  top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
  return x[..., top : top + size, left : left + size]


def resize_centre(images, size):
  """Resizes the central square of images to `size` pixels.

  Like Pillow, it shrinks by averaging areas, enlarges by cubic interpolation, and rounds to grey levels on each axis.

  Args:
    images: [batch, rgb, height, width] float, 0-255.
    size: side of the result, pixels.

  Returns:
    [batch, rgb, size, size] float.
  """
  height, width = images.shape[2:]
  short = min(height, width)
  if short == size:
    return centre(images, size)
  rows, columns = (interpolation(side, short, size).to(images) for side in (height, width))
  images = (images @ columns.t() + 0.5).floor().clamp(0, 255)
  return (rows @ images + 0.5).floor().clamp(0, 255)


def interpolation(num_in, length, num_out):
  """Returns the weights [out, in] with which the central `length` of `num_in` pixels are resized to `num_out`."""
  scale = length / num_out
  centres = ((num_in - length) / 2 + (torch.arange(num_out, dtype=torch.float64) + 0.5) * scale)[:, None]
  pixels = torch.arange(num_in, dtype=torch.float64)
  if scale > 1:
    first, last = (centres - 0.5 * scale + 0.5).floor(), (centres + 0.5 * scale + 0.5).floor()
    x = (pixels - centres + 0.5) * (1 / scale)  # both conditions, as in Pillow: rounding decides a pixel on an edge
    weights = ((pixels >= first) & (pixels < last) & (x > -0.5) & (x <= 0.5)).double()
  else:
    x = (pixels + 0.5 - centres).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = near * (x < 1) + far * ((x >= 1) & (x < 2))
  return weights / weights.sum(1, keepdim=True)
