"""Small networks in the formats of this project, Caffe and torchvision."""

import jax
import numpy as np

from alexnet_jax import __main__ as cli
from alexnet_jax.interop import caffe_files, layout
from alexnet_jax.models import device_mesh, towers
from alexnet_jax.models.registry import build
from configs import alexnet
from tests.conftest import mesh, mostly_nightly, random_params

VARIANTS = mostly_nightly(
  [
    *('paper', 'as_run', 'one_tower', 'conv6', 'run150', 'without_conv3', 'no_overlap', 'tanh', 'no_dropout'),
    *('bvlc_alexnet', 'bvlc_reference_caffenet'),
  ],
  *('as_run', 'run150', 'bvlc_reference_caffenet'),
)
NUM_CLASSES = 7  # odd: the last unit of the second tower is unused


def small_network(variant):
  """Returns the weights of a small network, its parameters, four stored images and their logits."""
  config = small_config('' if variant == 'paper' else variant)
  params = exportable_params(config.model, NUM_CLASSES)
  rng = np.random.default_rng(1)
  size = 64 + config.model.border
  mean_image = rng.uniform(60, 180, (size, size, 3)).astype(np.float32)
  images = rng.integers(0, 256, (4, size, size, 3), np.uint8)
  tensors = layout.to_tensors(params, config.model, NUM_CLASSES)
  names = [f'sort {number}' for number in range(NUM_CLASSES)]
  weights = layout.Weights(config, tensors, mean_image, names, 123)
  return weights, params, images, compute_logits(weights, params, images)


def small_config(variants=''):
  config = alexnet.get_config(variants)
  config.model.image_size, config.model.width = 64, 1 / 16
  return config


def exportable_params(config, num_classes):
  """Draws random parameters; those of an unused unit, which is not exported, are zero."""
  with jax.set_mesh(mesh(1, 1)):
    params = random_params(build(config, num_classes))
  params['conv1']['kernel'] /= 60  # the standard deviation of the pixels
  if num_unused := params['fc8']['bias'].size - num_classes:
    for x in params['fc8'].values():
      x[-1, ..., -num_unused:] = 0
  return params


def centre_crops(config, images):
  """Crops the input of the network from stored images [..., height, width, rgb]."""
  inside = slice(config.model.border // 2, config.model.border // 2 + config.model.image_size)
  return images[..., inside, inside, :]


def preprocess(weights, images):
  return centre_crops(weights.config, images - weights.mean_image)


def compute_logits(weights, params, images):
  one_device = mesh(1, 1)
  with jax.set_mesh(one_device):
    network = build(weights.config.model, len(weights.class_names))
    params = jax.device_put(params, jax.NamedSharding(one_device, towers.PARAMS))
    x = device_mesh.put_batch(one_device, preprocess(weights, images))
    return np.asarray(jax.jit(network.apply)(params, x))


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def error_of(capsys, *arguments):
  """Runs the subcommand `weights`, which must fail with one line, and returns that line."""
  assert cli.main(['weights', *map(str, arguments)]) == 2
  message = capsys.readouterr().err
  assert message.startswith('error: ')
  assert message.count('\n') == 1
  return message


class UnsafePickle:
  """Prints when it is unpickled."""

  def __reduce__(self):
    return (print, ('this must never be printed',))


CAFFE_KERNELS = dict(conv1=12, conv2=16, conv3=20, conv4=20, conv5=16, fc6=24, fc7=28, fc8=10)


def caffe_tensors():
  """Draws random tensors of a narrow network in Caffe's layout, with conv1 in BGR order."""
  rng = np.random.default_rng(3)
  input_shapes = dict(conv1=(3, 11, 11), conv2=(6, 5, 5), conv3=(16, 3, 3), conv4=(10, 3, 3), conv5=(10, 3, 3))
  input_shapes |= dict(fc6=(16 * 36,), fc7=(24,), fc8=(28,))
  tensors = {}
  for name, num_out in CAFFE_KERNELS.items():
    std = np.sqrt(2 / np.prod(input_shapes[name])) / (60 if name == 'conv1' else 1)
    tensors[name] = [
      rng.normal(0, std, (num_out, *input_shapes[name])).astype(np.float32),
      rng.normal(0, 0.1, num_out).astype(np.float32),
    ]
  return tensors


def caffe_order(net):
  """Returns the names of all layers of a network of Caffe in their order."""
  first = [f'{kind}{number}' for number in (1, 2) for kind in ('conv', 'relu', 'norm', 'pool')]
  if net == 'bvlc_reference_caffenet':
    first = [f'{kind}{number}' for number in (1, 2) for kind in ('conv', 'relu', 'pool', 'norm')]
  middle = ['conv3', 'relu3', 'conv4', 'relu4', 'conv5', 'relu5', 'pool5']
  return [*first, *middle, 'fc6', 'relu6', 'drop6', 'fc7', 'relu7', 'drop7', 'fc8', 'prob']


def caffemodel(tensors, *, order=(), name='', old=False):
  """Serialises a network as Caffe does or, if `old`, as it did in 2014."""
  message = caffe_files._message_class('NetParameter')(name=name)
  for layer in order or tensors:
    parameter = (message.layers if old else message.layer).add(name=layer)
    for x in tensors.get(layer, ()):
      blob = parameter.blobs.add()
      blob.data.extend(x.reshape(-1))
      if old:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - x.ndim) + x.shape
      else:
        blob.shape.dim.extend(x.shape)
  return message.SerializeToString()
