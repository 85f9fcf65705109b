"""Writes a network as an ONNX graph from images to logits and probabilities, and reads such a file.

  images [batch, height, width, rgb] float32, 0-255: the centre crop of the stored image, without the mean subtracted
  logits, probabilities [batch, class] float32

The initializers are the tensors of the interchange layout and the mean image; the graph subtracts the centre of the
mean image. Each layer's output is named after the layer: conv1, pool1, ... fc7.
"""

import pathlib

import numpy as np
import onnx
from onnx import helper, numpy_helper

from alexnet_jax.interop import layout
from alexnet_jax.models.alexnet import LINEAR, POOLS, WINDOWS, both_sides
from alexnet_jax.runtime.errors import UsageError, first_line

OPSET, IR_VERSION = 13, 7  # of 2020; all current runtimes read them
POOL_STRIDE = 2  # section 3.4


def read(path: pathlib.Path) -> layout.Weights:
  """Reads an .onnx file that `write` wrote.

  Raises:
    UsageError: if the file cannot be read, or was not exported by this project.
  """
  try:
    model = onnx.load(path, load_external_data=False)
    if any(array.data_location == onnx.TensorProto.EXTERNAL for array in model.graph.initializer):
      raise ValueError('its tensors are in other files, which this project does not write')
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
  except Exception as error:  # on damaged files onnx raises errors of many types
    raise UsageError(
      f'{path} is not an ONNX file, or is damaged ({first_line(error)}); choose a complete file.'
    ) from error
  metadata = {entry.key: entry.value for entry in model.metadata_props}
  return layout.from_metadata(path, metadata, arrays)


def write(path: pathlib.Path, weights: layout.Weights) -> None:
  """Writes an .onnx file; raises `OSError` if that fails."""
  onnx.save(make_model(weights), path)


def make_model(weights: layout.Weights) -> onnx.ModelProto:
  """Returns the ONNX model of a network."""
  graph = _Graph(weights)
  x = graph.subtract_mean()
  for name in WINDOWS:
    x = graph.apply_layer(name, x)
    if name in POOLS:
      x = graph.pool(name, x)
  x = graph.add('Flatten', x)  # channel, row, column order
  for name in ('fc6', 'fc7', *LINEAR):
    x = graph.apply_layer(name, x)
  graph.name_output('logits')
  graph.nodes.append(helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1))

  side, num_classes = weights.config.model.image_size, len(weights.class_names)
  proto = helper.make_graph(
    graph.nodes,
    'alexnet',
    [helper.make_tensor_value_info('images', onnx.TensorProto.FLOAT, ['batch', side, side, 3])],
    [
      helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ['batch', num_classes])
      for name in ('logits', 'probabilities')
    ],
    [numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in weights.arrays().items()],
  )
  model = helper.make_model(
    proto,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
    producer_name='alexnet_jax',
    doc_string='AlexNet; images are RGB, 0-255, [batch, height, width, channel]; the mean is subtracted in the graph.',
  )
  helper.set_model_props(model, layout.to_metadata(weights))
  onnx.checker.check_model(model)
  return model


class _Graph:
  """Builds the nodes of a graph; methods take and return names of tensors.

  Maps are [batch, channel, height, width], with the channels of the first tower first.
  """

  def __init__(self, weights):
    self.config, self.tensors, self.nodes = weights.config.model, weights.tensors, []
    self.num_channels = 3  # of the last layer, over all towers

  def add(self, kind, *inputs, **attributes):
    """Adds a node with one output and returns the name of the output."""
    output = f'{kind.lower()}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
    return output

  def name_output(self, name):
    """Renames the output of the last node and returns the name."""
    self.nodes[-1].output[0] = name
    return name

  def add_constant(self, value, dtype):
    return self.add('Constant', value=numpy_helper.from_array(np.array(value, dtype)))

  def subtract_mean(self):
    """Subtracts the centre of the mean image from the images, and moves the channels to axis 1."""
    first, side = self.config.border // 2, self.config.image_size
    corners = [[first] * 2, [first + side] * 2, [0, 1]]
    mean = self.add('Slice', 'mean_image', *(self.add_constant(corner, np.int64) for corner in corners))
    return self.add('Transpose', self.add('Sub', 'images', mean), perm=[0, 3, 1, 2])

  def apply_layer(self, name, x):
    """Applies a layer with its nonlinearity and normalisation, as `models.alexnet.AlexNet.layer` does."""
    if f'{name}.weight' not in self.tensors:
      return x
    norm = self.config.norm
    x = self.convolve(name, x) if name in WINDOWS else self.multiply(name, x)
    self.num_channels = len(self.tensors[f'{name}.bias'])
    if name in norm.before:
      x = self.normalise_across_maps(x)
    if name not in LINEAR:
      x = self.add({'relu': 'Relu', 'tanh': 'Tanh'}[self.config.nonlinearity], x)
    if name in norm.after:
      x = self.normalise_across_maps(x)
    if name in norm.within:
      x = self.normalise_within_maps(x)
    return self.name_output(name)

  def pool(self, name, x):
    x = self.add('MaxPool', x, kernel_shape=[self.config.pool_size] * 2, strides=[POOL_STRIDE] * 2, ceil_mode=1)
    if name in self.config.norm.pooled:
      x = self.normalise_across_maps(x)
    return self.name_output(POOLS[name])

  def convolve(self, name, x):
    size, stride, padding = WINDOWS[name]
    before, after = padding or both_sides(self.config.padding[name])
    return self.add(
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
    """Applies a fully-connected layer; without cross-tower connections, each tower multiplies its own inputs."""
    num_towers, weight = self.config.num_towers, self.tensors[f'{name}.weight']
    if num_towers == 1 or name in self.config.meet:
      return self.add('Gemm', x, f'{name}.weight', f'{name}.bias', transB=1)
    num_out = -(-len(weight) // num_towers)  # the last towers may have fewer units, or none
    num_outs = [min(num_out, len(weight) - first) for first in range(0, len(weight), num_out)]
    inputs = zip(
      self.split(x, 1, [weight.shape[1]] * num_towers),
      self.split(f'{name}.weight', 0, num_outs),
      self.split(f'{name}.bias', 0, num_outs),
      strict=False,
    )
    return self.add('Concat', *[self.add('Gemm', *of_tower, transB=1) for of_tower in inputs], axis=1)

  def split(self, x, axis, sizes):
    """Splits a tensor along an axis into one tensor per tower."""
    sizes, outputs = self.add_constant(sizes, np.int64), [f'{x}_of_tower_{tower}' for tower in range(len(sizes))]
    self.nodes.append(helper.make_node('Split', [x, sizes], outputs, axis=axis))
    return outputs

  def normalise_across_maps(self, x):
    """Applies local response normalisation within each tower, or across all if `norm.joined`.

    ONNX normalises across all maps of an image, so each tower becomes an image; it divides alpha by the window size.
    """
    norm, num_towers = self.config.norm, 1 if self.config.norm.joined else self.config.num_towers
    shape = self.add_constant([-1, self.num_channels // num_towers, 0, 0], np.int64)  # 0 copies the size of the input
    x = self.add(
      'LRN', self.add('Reshape', x, shape), size=norm.size, bias=norm.k, alpha=norm.alpha * norm.size, beta=norm.beta
    )
    return self.add('Reshape', x, self.add_constant([-1, self.num_channels, 0, 0], np.int64))

  def normalise_within_maps(self, x):
    """Applies `models.layers.within_map_norm`; the mean over a zero-padded 5 x 5 window is 1/25 of its sum."""
    mean = self.add('AveragePool', self.add('Mul', x, x), kernel_shape=[5, 5], pads=[2, 2, 2, 2], count_include_pad=1)
    scaled = self.add('Mul', mean, self.add_constant(1e-3, np.float32))
    denominator = self.add('Add', scaled, self.add_constant(1, np.float32))
    return self.add('Div', x, self.add('Pow', denominator, self.add_constant(0.75, np.float32)))
