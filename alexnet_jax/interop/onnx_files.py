"""A network as an ONNX graph: from images of 0 to 255 to logits and probabilities.

  images [batch, image_size, image_size, RGB] float32, 0-255, the centre patch of a stored image, nothing subtracted
  logits, probabilities [batch, class] float32

The initializers are the tensors of the interchange layout and the mean image, whose centre the graph itself subtracts.
Every stage of the network is there by its name: conv1, pool1, ... fc7.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from alexnet_jax.interop.layout import Weights, metadata
from alexnet_jax.models.alexnet import LINEAR, POOLED, WINDOWS, both_sides

OPSET, IR_VERSION = 13, 7  # of 2020: what is in use today reads them
STRIDE = 2  # of pooling


def make(weights: Weights) -> onnx.ModelProto:
  """Makes the graph of a network, mean image included."""
  graph = _Graph(weights)
  x = graph.images_less_mean()
  for name in WINDOWS:
    x = graph.layer(name, x)
    if name in POOLED:
      x = graph.pool(name, x)
  x = graph.op('Flatten', x)  # channels, rows, columns
  for name in ('fc6', 'fc7', *LINEAR):
    x = graph.layer(name, x)
  graph.nodes[-1].output[0] = 'logits'
  graph.nodes.append(helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1))

  side, num_classes = weights.config.model.image_size, len(weights.class_names)
  arrays = weights.tensors | {'mean_image': weights.mean_image}
  proto = helper.make_graph(
    graph.nodes,
    'alexnet',
    [helper.make_tensor_value_info('images', onnx.TensorProto.FLOAT, ['batch', side, side, 3])],
    [
      helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ['batch', num_classes])
      for name in ('logits', 'probabilities')
    ],
    [numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in arrays.items()],
  )
  model = helper.make_model(
    proto,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
    producer_name='alexnet_jax',
    doc_string='AlexNet; images are RGB, 0-255, [batch, height, width, channel]; the mean is subtracted in the graph.',
  )
  helper.set_model_props(model, metadata(weights))
  onnx.checker.check_model(model)
  return model


def contents(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """Returns what `make` put into a model: its metadata and its arrays."""
  texts = {entry.key: entry.value for entry in model.metadata_props}
  return texts, {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}


class _Graph:
  """The nodes so far. Maps are [batch, channel, height, width], those of the first tower first."""

  def __init__(self, weights):
    self.config, self.tensors, self.nodes = weights.config.model, weights.tensors, []
    self.num_channels = 3  # of the last layer, all towers together

  def op(self, kind, *inputs, **attributes):
    """Adds a node with one output, and returns its name."""
    output = f'{kind.lower()}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
    return output

  def named(self, name):
    """Gives the last output, that of a stage, its name."""
    self.nodes[-1].output[0] = name
    return name

  def constant(self, value, dtype):
    return self.op('Constant', value=numpy_helper.from_array(np.array(value, dtype)))

  def images_less_mean(self):
    first, side = self.config.border // 2, self.config.image_size
    corners = [[first] * 2, [first + side] * 2, [0, 1]]
    mean = self.op('Slice', 'mean_image', *(self.constant(corner, np.int64) for corner in corners))
    return self.op('Transpose', self.op('Sub', 'images', mean), perm=[0, 3, 1, 2])

  def layer(self, name, x):
    """Applies one layer, with its nonlinearity and normalisation, as `model.AlexNet.layer` does."""
    if f'{name}.weight' not in self.tensors:
      return x
    norm = self.config.norm
    x = self.convolve(name, x) if name in WINDOWS else self.multiply(name, x)
    self.num_channels = len(self.tensors[f'{name}.bias'])
    if name in norm.before:
      x = self.across_maps(x)
    if name not in LINEAR:
      x = self.op({'relu': 'Relu', 'tanh': 'Tanh'}[self.config.nonlinearity], x)
    if name in norm.after:
      x = self.across_maps(x)
    if name in norm.within:
      x = self.within_maps(x)
    return self.named(name)

  def pool(self, name, x):
    x = self.op('MaxPool', x, kernel_shape=[self.config.pool_size] * 2, strides=[STRIDE] * 2, ceil_mode=1)
    if name in self.config.norm.pooled:
      x = self.across_maps(x)
    return self.named(name.replace('conv', 'pool'))

  def convolve(self, name, x):
    size, stride, padding = WINDOWS[name]
    before, after = padding or both_sides(self.config.padding[name])
    return self.op(
      'Conv',
      x,
      f'{name}.weight',
      f'{name}.bias',
      group=self.num_channels // self.tensors[f'{name}.weight'].shape[1],
      kernel_shape=[size] * 2,
      strides=[stride] * 2,
      pads=[before, before, after, after],
    )

  def multiply(self, name, x):
    """A fully-connected layer; where the towers do not meet, each tower multiplies its own inputs."""
    num_towers, weight = self.config.num_towers, self.tensors[f'{name}.weight']
    if num_towers == 1 or name in self.config.meet:
      return self.op('Gemm', x, f'{name}.weight', f'{name}.bias', transB=1)
    num_out = -(-len(weight) // num_towers)  # the last tower may have one less
    num_outs = [min(num_out, len(weight) - tower * num_out) for tower in range(num_towers)]
    inputs = zip(
      self.split(x, 1, [weight.shape[1]] * num_towers),
      self.split(f'{name}.weight', 0, num_outs),
      self.split(f'{name}.bias', 0, num_outs),
      strict=True,
    )
    return self.op('Concat', *[self.op('Gemm', *of_tower, transB=1) for of_tower in inputs], axis=1)

  def split(self, x, axis, sizes):
    sizes, outputs = self.constant(sizes, np.int64), [f'{x}_of_tower_{tower}' for tower in range(len(sizes))]
    self.nodes.append(helper.make_node('Split', [x, sizes], outputs, axis=axis))
    return outputs

  def across_maps(self, x):
    """ONNX normalises across all maps, and divides alpha by the window: towers become images of their own for it."""
    norm, num_towers = self.config.norm, 1 if self.config.norm.joined else self.config.num_towers
    own = self.constant([-1, self.num_channels // num_towers, 0, 0], np.int64)  # 0: as it was
    x = self.op(
      'LRN', self.op('Reshape', x, own), size=norm.size, bias=norm.k, alpha=norm.alpha * norm.size, beta=norm.beta
    )
    return self.op('Reshape', x, self.constant([-1, self.num_channels, 0, 0], np.int64))

  def within_maps(self, x):
    """`layers.within_map_norm`, with its constants: the mean over a window, zeros outside, is a 25th of the sum."""
    mean = self.op('AveragePool', self.op('Mul', x, x), kernel_shape=[5, 5], pads=[2, 2, 2, 2], count_include_pad=1)
    scaled = self.op('Mul', mean, self.constant(1e-3, np.float32))
    denominator = self.op('Add', scaled, self.constant(1, np.float32))
    return self.op('Div', x, self.op('Pow', denominator, self.constant(0.75, np.float32)))
