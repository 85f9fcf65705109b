"""The network of Figure 2, line by line.

Sizes in the comments are those of the paper: 224 x 224 images, two towers, 1000 classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
from flax import nnx

from alexnet_jax import towers
from alexnet_jax.errors import UsageError
from alexnet_jax.layers import Conv, Linear, dropout, local_response_norm, max_pool

if TYPE_CHECKING:
  from ml_collections import ConfigDict

relu = jax.nn.relu
SAME = ((1, 1), (1, 1))
NUM_TOWERS = 2


class AlexNet(nnx.Module):
  """Five convolutional and three fully-connected layers, half of the kernels in each of two towers (section 3.5)."""

  def __init__(self, config: ConfigDict, num_classes: int, *, rngs: nnx.Rngs):
    """Declares the layers.

    Args:
      config: the `model` part of a config.
      num_classes: classes to tell apart, 2 or more; an odd number leaves the last unit of the last tower unused.
      rngs: source of the initial weights.

    Raises:
      UsageError: if the image is too small for five layers and three poolings.
    """
    self.num_classes, self.num_towers = num_classes, NUM_TOWERS

    def kernels(number):  # of one tower
      return max(1, round(number * config.width))

    def conv(name, num_in, num_out, size, **window):
      return Conv(num_in, num_out, size, **window, **start(name))

    def linear(name, num_in, num_out):
      return Linear(num_in, num_out, **start(name))

    def start(name):
      return dict(std=config.init_std[name], bias=config.init_bias[name], num_towers=self.num_towers, rngs=rngs)

    c1, c2, c3, c4, c5 = map(kernels, (48, 128, 192, 192, 128))
    f6, f7, f8 = kernels(2048), kernels(2048), math.ceil(num_classes / self.num_towers)
    both = self.num_towers  # `both *` marks where the towers meet
    side = pooled_side(config.image_size)

    # The image is 224 pixels wide and conv1 has 55 outputs a row: the last window ends 3 pixels outside (facts, 1.3).
    self.conv1 = conv('conv1', 3, c1, 11, stride=4, padding=((0, 3), (0, 3)))
    self.conv2 = conv('conv2', c1, c2, 5, padding=((2, 2), (2, 2)))
    self.conv3 = conv('conv3', both * c2, c3, 3, padding=SAME)
    self.conv4 = conv('conv4', c3, c4, 3, padding=SAME)
    self.conv5 = conv('conv5', c4, c5, 3, padding=SAME)
    self.fc6 = linear('fc6', side * side * both * c5, f6)
    self.fc7 = linear('fc7', both * f6, f7)
    self.fc8 = linear('fc8', both * f7, f8)

  def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """Computes logits.

    Args:
      x: images [batch, height, width, rgb] float32, 0-255 less the mean image.
      dropout_key: given in training; without it every unit is there and outputs are halved.

    Returns:
      Logits [batch, class] float32.
    """
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)

    x = max_pool(local_response_norm(relu(self.conv1(x))))  # [2, N, 27, 27, 48]
    x = max_pool(local_response_norm(relu(self.conv2(x))))  # [2, N, 13, 13, 128]
    x = relu(self.conv3(towers.gather(x)))  # [2, N, 13, 13, 192]
    x = relu(self.conv4(x))  # [2, N, 13, 13, 192]
    x = max_pool(relu(self.conv5(x)))  # [2, N, 6, 6, 128]
    x = towers.gather(x)  # [N, 6, 6, 256]
    x = x.reshape(len(x), -1)  # [N, 9216]
    x = dropout(relu(self.fc6(x)), keys[0])  # [2, N, 2048]
    x = dropout(relu(self.fc7(towers.gather(x))), keys[1])  # [2, N, 2048]
    x = self.fc8(towers.gather(x))  # [2, N, 500]
    return towers.gather(x)[:, : self.num_classes]  # [N, 1000]


def pooled_side(image_size: int) -> int:
  """Follows the side of a map from the image to the last pooling: 224 -> 55 -> 27 -> 13 -> 6.

  Raises:
    UsageError: if nothing is left by then.
  """
  side = (image_size + 3 - 11) // 4 + 1  # conv1
  for _ in range(3):  # pooling after conv1, conv2 and conv5
    side = (side - 3) // 2 + 1
  if side < 1:
    raise UsageError(f'model.image_size={image_size} leaves no pixel after the last pooling; choose 64 or more.')
  return side


class Network(NamedTuple):
  """A network as two pure functions over a plain nested dict of arrays, {'conv1': {'kernel': ..., 'bias': ...}, ...}.

  Attributes:
    init: key -> params. Call it under `jax.jit`, in a mesh.
    apply: (params, images, dropout_key=None) -> logits.
    num_classes: classes it tells apart.
    num_towers: length of the tower axis of its parameters.
  """

  init: Callable
  apply: Callable
  num_classes: int
  num_towers: int


def build(config: ConfigDict, num_classes: int) -> Network:
  """Makes the network of a config's `model` part; takes no memory. Call it in the mesh it will run on.

  Raises:
    UsageError: if the fields do not make a network.
  """
  if not config.width > 0:
    raise UsageError(f'model.width={config.width} must be above 0; 1.0 is the published network.')
  new = functools.partial(AlexNet, config, num_classes)
  module = nnx.eval_shape(lambda: new(rngs=nnx.Rngs(0)))
  graph = nnx.graphdef(module)

  def init(key):
    return nnx.to_pure_dict(nnx.state(new(rngs=nnx.Rngs(key)), nnx.Param))

  def apply(params, images, dropout_key=None):
    return nnx.merge(graph, params)(images, dropout_key)

  return Network(init, apply, num_classes, module.num_towers)
