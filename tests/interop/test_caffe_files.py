"""Caffe's networks and mean images, against OpenCV."""

import numpy as np
import pytest

from alexnet_jax import __main__ as cli
from alexnet_jax.data import cropping
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import caffe_files
from alexnet_jax.runtime.errors import UsageError
from tests.interop.networks import (
  CAFFE_KERNELS,
  UnsafePickle,
  caffe_order,
  caffe_tensors,
  caffemodel,
  error_of,
)

CAFFE_TYPES = dict(conv='Convolution', relu='ReLU', norm='LRN', pool='Pooling', fc='InnerProduct', drop='Dropout')
CAFFE_PARAMETERS = dict(
  norm='lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }',
  pool='pooling_param { pool: MAX kernel_size: 3 stride: 2 }',
)
CAFFE_CONV = dict(
  conv1='kernel_size: 11 stride: 4',
  conv2='kernel_size: 5 pad: 2 group: 2',
  conv3='kernel_size: 3 pad: 1',
  conv4='kernel_size: 3 pad: 1 group: 2',
  conv5='kernel_size: 3 pad: 1 group: 2',
)


def prototxt(net):
  text, bottom = 'name: "net" input: "data" input_dim: 1 input_dim: 3 input_dim: 227 input_dim: 227\n', 'data'
  for name in caffe_order(net):
    kind = name.rstrip('0123456789')
    parameters = CAFFE_PARAMETERS.get(kind, '')
    if kind == 'conv':
      parameters = f'convolution_param {{ num_output: {CAFFE_KERNELS[name]} {CAFFE_CONV[name]} }}'
    if kind == 'fc':
      parameters = f'inner_product_param {{ num_output: {CAFFE_KERNELS[name]} }}'
    kind = CAFFE_TYPES.get(kind, 'Softmax')
    text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {parameters} }}\n'
    bottom = name
  return text


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('net', caffe_files.NETS.values())
def test_opencv_computes_the_same_probabilities(net, old, mean_path, tmp_path):
  cv2 = pytest.importorskip('cv2')
  if not hasattr(cv2.dnn, 'readNetFromCaffe'):
    pytest.skip('this version of OpenCV cannot read Caffe files; version 4 can')
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), order=caffe_order(net), old=old))
  (tmp_path / 'a.prototxt').write_text(prototxt(net))
  images = np.random.default_rng(5).integers(0, 256, (3, 256, 256, 3), np.uint8)

  reference = cv2.dnn.readNetFromCaffe(str(tmp_path / 'a.prototxt'), str(tmp_path / 'a.caffemodel'))
  bgr = images[..., ::-1].transpose(0, 3, 1, 2) - np.load(mean_path)
  reference.setInput(bgr[:, :, 14:241, 14:241].astype(np.float32))
  expected = reference.forward()

  folder = tmp_path / 'run'
  assert cli.main(['weights', 'import', str(tmp_path / 'a.caffemodel'), str(folder), f'--mean={mean_path}']) == 0
  model = trained_model.load(folder, batch_size=3, num_data=1, num_tower=1)
  assert (model.stored_size, model.class_names[9]) == (256, 'class 9')
  assert bool(model.config.norm.pooled) == (net == 'bvlc_reference_caffenet')
  probabilities = np.exp(model.log_probs(images, cropping.centre_crop_only(29)))
  assert expected.max() - expected.min() > 0.05
  np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)


def test_conv1_of_the_real_network_is_read(shared_data, tmp_path):
  """Its kernels 0-47 are nearly grey and 48-95 coloured (facts, 4), whatever the order of the channels."""
  real = np.load(shared_data / 'bvlc_alexnet_conv1.npz')
  blobs = [real['weights'].transpose(3, 2, 0, 1), real['biases']]
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel({'conv1': blobs}, name='AlexNet'))
  net, tensors = caffe_files.read_tensors(tmp_path / 'a.caffemodel')
  assert net == 'bvlc_alexnet'
  np.testing.assert_array_equal(tensors['conv1.weight'].transpose(2, 3, 1, 0), real['weights'][:, :, ::-1])


def test_mean_images_of_both_formats_are_read(tmp_path, shared_data):
  path = shared_data / 'ilsvrc_2012_mean.npy'
  mean = caffe_files.read_mean_image(path)
  np.testing.assert_allclose(mean.mean((0, 1)), [122.7, 116.7, 104.0], atol=0.1)  # RGB
  bgr = np.load(path)
  blob = caffe_files._message_class('BlobProto')(num=1, channels=3, height=256, width=256, data=bgr.reshape(-1))
  (tmp_path / 'mean.binaryproto').write_bytes(blob.SerializeToString())
  np.testing.assert_allclose(caffe_files.read_mean_image(tmp_path / 'mean.binaryproto'), mean, rtol=1e-6)


def test_a_file_without_all_layers_is_identified_by_its_name(tmp_path):
  path = tmp_path / 'a.caffemodel'
  for name, net in (('AlexNet', 'bvlc_alexnet'), ('CaffeNet', 'bvlc_reference_caffenet')):
    path.write_bytes(caffemodel(caffe_tensors(), name=name))
    assert caffe_files.read(path).config.variants == (net,)
  path.write_bytes(caffemodel(caffe_tensors(), name='mine'))
  with pytest.raises(UsageError, match='does not identify its network; name it with --net=bvlc_alexnet or --net='):
    caffe_files.read(path)
  assert caffe_files.read(path, net='bvlc_alexnet').config.variants == ('bvlc_alexnet',)
  path.write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  with pytest.raises(UsageError, match='contains bvlc_alexnet, not bvlc_reference_caffenet; omit --net'):
    caffe_files.read(path, net='bvlc_reference_caffenet')


def test_all_tensors_that_do_not_fit_are_named(unused, tmp_path, mean_path, capsys):
  tensors = caffe_tensors()
  del tensors['conv2'], tensors['fc7'][1]
  tensors['conv1'][0] = tensors['conv1'][0][:, :, :10]
  tensors['extra'] = [np.ones(3, np.float32)]
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(tensors, name='AlexNet'))
  message = error_of(capsys, 'import', tmp_path / 'a.caffemodel', unused, f'--mean={mean_path}')
  for part in ('conv2.weight is missing', 'conv2.bias is missing', 'fc7.bias is missing', 'extra.weight is unexpected'):
    assert part in message
  assert 'conv1.weight is 12 x 3 x 10 x 11 and should be 12 x 3 x 11 x 11' in message


def test_mean_images_that_do_not_fit_are_rejected(unused, tmp_path, capsys):
  path = tmp_path / 'a.caffemodel'
  path.write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  message = error_of(capsys, 'import', path, unused)
  assert 'does not contain the mean image of its training set; name that file with --mean' in message
  for array, part in (
    (np.zeros((3, 224, 224)), 'is 3 x 224 x 224 and should be 3 x 256 x 256'),
    (np.zeros((256, 256, 3)), 'float64 256 x 256 x 3 and should be 3 x height x width'),
    (np.zeros((3, 256, 256), np.uint8), 'uint8'),
  ):
    np.save(tmp_path / 'mean.npy', array)
    assert part in error_of(capsys, 'import', path, unused, f'--mean={tmp_path / "mean.npy"}')
  with open(tmp_path / 'mean.npy', 'wb') as file:
    np.savez(file, np.zeros((3, 256, 256)))
  assert 'is an archive of arrays' in error_of(capsys, 'import', path, unused, f'--mean={tmp_path / "mean.npy"}')
  (tmp_path / 'mean.binaryproto').write_bytes(b'no mean at all')
  message = error_of(capsys, 'import', path, unused, f'--mean={tmp_path / "mean.binaryproto"}')
  assert 'is not a Caffe file' in message
  message = error_of(capsys, 'import', path, unused, f'--mean={tmp_path / "none.binaryproto"}')
  assert 'cannot be read' in message


def test_a_pickled_mean_image_is_not_loaded(unused, tmp_path, capsys):
  np.save(tmp_path / 'mean.npy', np.array([UnsafePickle()], object))
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  message = error_of(capsys, 'import', tmp_path / 'a.caffemodel', unused, f'--mean={tmp_path / "mean.npy"}')
  assert 'The mean image' in message
  assert 'cannot be read' in message
