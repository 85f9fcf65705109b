"""Weights in files: against PyTorch, ONNX Runtime and OpenCV, which know nothing of this project."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import __main__ as cli
from alexnet_jax.data import transforms
from alexnet_jax.data.pixel_statistics import PixelStatistics
from alexnet_jax.evaluation import evaluate, trained_model
from alexnet_jax.interop import caffe_files, layout, onnx_files, torchvision_files, weight_files
from alexnet_jax.models import towers
from alexnet_jax.models.registry import build
from alexnet_jax.runs import run_folder
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import loop, schedules, step
from configs import alexnet
from tests import reference
from tests.conftest import mesh, random_params

ROOT = pathlib.Path(__file__).parents[2]
torch = pytest.importorskip('torch')

VARIANTS = ['paper', 'as_run', 'one_tower', 'conv6', 'run150', 'without_conv3', 'no_overlap', 'tanh', 'no_dropout']
VARIANTS += ['bvlc_alexnet', 'bvlc_reference_caffenet']
NUM_CLASSES = 7  # odd: one unit of the second tower has no class


@pytest.fixture(scope='module')
def network_of():
  """A small network of a variant: its weights, its parameters, images, and the logits of our network."""
  made = {}

  def make(variant):
    if variant not in made:
      made[variant] = small_network(variant)
    return made[variant]

  return make


def small_network(variant):
  config = alexnet.get_config('' if variant == 'paper' else variant)
  config.model.image_size, config.model.width = 64, 1 / 16
  params = params_of(config.model, NUM_CLASSES)
  rng = np.random.default_rng(1)
  size = 64 + config.model.border
  mean_image = rng.uniform(60, 180, (size, size, 3)).astype(np.float32)
  images = rng.integers(0, 256, (4, size, size, 3), np.uint8)
  tensors = layout.to_tensors(params, config.model, NUM_CLASSES)
  names = [f'sort {number}' for number in range(NUM_CLASSES)]
  whole = layout.Weights(config, tensors, mean_image, names, 123)
  return whole, params, images, logits(whole, params, images)


def params_of(config, num_classes):
  """Random parameters of what can be exported."""
  with jax.set_mesh(mesh(1, 1)):
    params = random_params(build(config, num_classes))
  params['conv1']['kernel'] /= 60  # pixels deviate by 60
  if surplus := params['fc8']['bias'].size - num_classes:  # a unit that is not exported
    for x in params['fc8'].values():
      x[-1, ..., -surplus:] = 0
  return params


def centre_less_mean(whole, images):
  border, side = whole.config.model.border, whole.config.model.image_size
  inside = slice(border // 2, border // 2 + side)
  return (images - whole.mean_image)[:, inside, inside]


def logits(whole, params, images):
  one_device = mesh(1, 1)
  with jax.set_mesh(one_device):
    network = build(whole.config.model, len(whole.class_names))
    params = jax.device_put(params, jax.NamedSharding(one_device, towers.PARAMS))
    x = towers.put_batch(one_device, centre_less_mean(whole, images))
    return np.asarray(jax.jit(network.apply)(params, x))


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# The layout, and what others make of it.


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_plain_network_in_pytorch_has_the_same_logits(network_of, variant, tmp_path):
  whole, _, images, ours = network_of(variant)
  weight_files.write(tmp_path / 'a.safetensors', whole)
  tensors = {name: torch.tensor(x) for name, x in safetensors.numpy.load_file(tmp_path / 'a.safetensors').items()}
  mean_image = tensors.pop('mean_image').numpy()
  np.testing.assert_array_equal(mean_image, whole.mean_image)
  x = torch.tensor(centre_less_mean(whole, images))
  assert_close(ours, reference.forward(tensors, x, **(reference.VARIANTS[variant] | {'dropout': False})).numpy())


def test_a_sequence_of_pytorchs_own_layers_loads_the_file(network_of, tmp_path):
  whole, _, images, ours = network_of('bvlc_alexnet')
  weight_files.write(tmp_path / 'a.safetensors', whole)
  tensors = {name: torch.tensor(x) for name, x in safetensors.numpy.load_file(tmp_path / 'a.safetensors').items()}
  del tensors['mean_image']
  nn, norm, pool = torch.nn, torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), torch.nn.MaxPool2d(3, 2, ceil_mode=True)
  layers = {'conv1': nn.Conv2d(3, 6, 11, 4), 'r1': nn.ReLU(), 'n1': norm, 'p1': pool}
  layers |= {'conv2': nn.Conv2d(6, 16, 5, padding=2, groups=2), 'r2': nn.ReLU(), 'n2': norm, 'p2': pool}
  layers |= {'conv3': nn.Conv2d(16, 24, 3, padding=1), 'r3': nn.ReLU()}
  layers |= {'conv4': nn.Conv2d(24, 24, 3, padding=1, groups=2), 'r4': nn.ReLU()}
  layers |= {'conv5': nn.Conv2d(24, 16, 3, padding=1, groups=2), 'r5': nn.ReLU(), 'p5': pool, 'flat': nn.Flatten()}
  layers |= {'fc6': nn.Linear(tensors['fc6.weight'].shape[1], 256), 'r6': nn.ReLU(), 'd6': nn.Dropout()}
  layers |= {'fc7': nn.Linear(256, 256), 'r7': nn.ReLU(), 'd7': nn.Dropout(), 'fc8': nn.Linear(256, NUM_CLASSES)}
  network = nn.Sequential()
  for name, layer in layers.items():
    network.add_module(name, layer)
  network.load_state_dict(tensors)
  x = torch.tensor(centre_less_mean(whole, images).transpose(0, 3, 1, 2))
  with torch.no_grad():
    assert_close(ours, network.eval()(x).numpy())


@pytest.mark.parametrize('variant', ['paper', 'one_tower', 'conv6', 'run150', 'without_conv5'])
def test_the_layout_is_that_of_the_reference(network_of, variant):
  whole, params, _, _ = network_of(variant)
  fc6_joined = 'fc6' in whole.config.model.meet
  expected = reference.to_interchange(params, fc6_joined=fc6_joined)
  for name in ('fc8.weight', 'fc8.bias'):
    expected[name] = expected[name][:NUM_CLASSES]
  for name in ('fc7.weight', 'fc8.weight'):
    expected[name] = expected[name] / 2
  assert_same(whole.tensors, expected)


def test_a_bottleneck_takes_the_half_of_fc7(one_device):
  config = alexnet.get_config()
  config.model.image_size, config.model.width, config.model.kernels.bottleneck = 64, 1 / 16, 32
  params = params_of(config.model, 8)
  tensors = layout.to_tensors(params, config.model, 8)
  np.testing.assert_array_equal(tensors['bottleneck.weight'][:2], params['bottleneck']['kernel'][0].T / 2)
  np.testing.assert_array_equal(tensors['fc8.weight'][:4], params['fc8']['kernel'][0].T)
  assert_same(layout.to_params(tensors, config.model, 2), params)


@pytest.mark.parametrize('variant', VARIANTS)
def test_onnx_runtime_has_the_same_logits(network_of, variant, tmp_path):
  onnxruntime = pytest.importorskip('onnxruntime')
  whole, _, images, ours = network_of(variant)
  weight_files.write(tmp_path / 'a.onnx', whole)
  session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
  border = whole.config.model.border // 2
  inside = slice(border, border + 64)
  patches = images[:, inside, inside].astype(np.float32)
  for count in (4, 1):
    theirs, probabilities = session.run(['logits', 'probabilities'], {'images': patches[:count]})
    assert_close(ours[:count], theirs)
    assert_close(np.exp(ours[:count]) / np.exp(ours[:count]).sum(1, keepdims=True), probabilities)


def test_layers_that_do_not_meet_at_the_end_are_split_in_the_graph(one_device):
  onnxruntime = pytest.importorskip('onnxruntime')
  config = alexnet.get_config('no_communication')
  config.model.image_size, config.model.width, config.model.meet = 64, 1 / 16, ()
  params = params_of(config.model, NUM_CLASSES)
  rng = np.random.default_rng(0)
  whole = layout.Weights(
    config,
    layout.to_tensors(params, config.model, NUM_CLASSES),
    rng.uniform(0, 255, (96, 96, 3)).astype(np.float32),
    list('abcdefg'),
    0,
  )
  images = rng.integers(0, 256, (2, 96, 96, 3), np.uint8)
  session = onnxruntime.InferenceSession(onnx_files.make(whole).SerializeToString())
  (theirs,) = session.run(['logits'], {'images': images[:, 16:80, 16:80].astype(np.float32)})
  assert_close(logits(whole, params, images), theirs)


@pytest.mark.parametrize('suffix', ['.safetensors', '.onnx'])
@pytest.mark.parametrize('variant', ['paper', 'one_tower', 'run150', 'bvlc_alexnet'])
def test_what_is_read_is_what_was_written(network_of, variant, suffix, tmp_path):
  whole, params, _, _ = network_of(variant)
  weight_files.write(tmp_path / f'a{suffix}', whole)
  found = weight_files.read(tmp_path / f'a{suffix}')
  assert found.config == alexnet_as_json(whole.config)
  assert_same(found.tensors, whole.tensors)
  np.testing.assert_array_equal(found.mean_image, whole.mean_image)
  assert (found.class_names, found.num_steps) == (whole.class_names, 123)
  assert_same(found.params(), params)


def alexnet_as_json(config):
  return type(config)(json.loads(json.dumps(config.to_dict())))


def test_one_tower_can_be_read_as_two(network_of):
  """Layers that read both towers get the same kernels."""
  whole, params, _, _ = network_of('one_tower')
  found = whole.params(num_towers=2)
  np.testing.assert_array_equal(np.concatenate(found['conv3']['kernel'], -1), params['conv3']['kernel'][0])
  np.testing.assert_array_equal(np.concatenate(found['fc6']['kernel'], -1), params['fc6']['kernel'][0])


def test_metadata_says_how_to_use_it(network_of, tmp_path):
  whole, _, _, _ = network_of('paper')
  texts = layout.metadata(whole)
  assert json.loads(texts['class_names'])[6] == 'sort 6'
  assert json.loads(texts['config'])['model']['kernels']['conv1'] == 48
  said = json.loads(texts['preprocessing'])
  assert (said['colours'], said['stored_size'], said['patch_size'], said['first_row_and_column']) == ('RGB', 96, 64, 16)
  assert 'rows and columns 16 to 79' in said['words']
  assert 'half' in texts['dropout']
  assert layout.metadata(network_of('no_dropout')[0])['dropout'] == 'none'


# Folders of runs.


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a run of a small network."""
  folder = tmp_path_factory.mktemp('run')
  config = alexnet.get_config()
  config.model.image_size, config.model.width = 64, 1 / 16
  hyper = step.hyperparameters(config.optimizer)
  mean = np.random.default_rng(0).uniform(0, 255, (96, 96, 3))
  run_folder.write_description(
    folder, config, PixelStatistics(mean, np.eye(3), 10), [f'digit {name}' for name in range(10)]
  )
  with jax.set_mesh(mesh(1, 1)):
    network = build(config.model, 10)
    state = step.init_state(jax.random.key(0), network=network, hyper=hyper)
    schedule = schedules.make_schedule(config.optimizer, 1)
    save(folder, 5, state._replace(step=state.step + 5), schedule)
  return folder


def save(folder, number, state, schedule):
  checkpoints = Checkpoints(folder)
  checkpoints.save(number, state, {'schedule': schedule.state()})
  checkpoints.close()


@pytest.mark.parametrize('suffix', ['.safetensors', '.onnx'])
def test_a_run_survives_export_and_import(run, suffix, tmp_path, capsys):
  file, folder = tmp_path / f'a{suffix}', tmp_path / 'imported'
  assert cli.main(['weights', 'export', str(run), str(file)]) == 0
  assert cli.main(['weights', 'import', str(file), str(folder)]) == 0
  said = capsys.readouterr().out
  assert '10 classes, step 5' in said
  assert '--config.data.name=digits --config.data.test_split=test --mode=eval' in said
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []
  assert run_folder.load_config(folder) == run_folder.load_config(run)
  before, after = (trained_model.load(one, batch_size=1, num_data=1, num_tower=1) for one in (run, folder))
  assert_same(jax.device_get(before.params), jax.device_get(after.params))
  np.testing.assert_array_equal(before.mean_image, after.mean_image)
  assert (after.class_names, after.num_steps) == (before.class_names, 5)
  with pytest.raises(UsageError, match='imported weights'):  # there are no velocities to resume from
    loop.train_and_evaluate(run_folder.load_config(folder), folder)


# Caffe.


CAFFE_KERNELS = dict(conv1=12, conv2=16, conv3=20, conv4=20, conv5=16, fc6=24, fc7=28, fc8=10)


def caffe_tensors():
  """Random tensors of a narrow network, in Caffe's layout: conv1 reads BGR."""
  rng = np.random.default_rng(3)
  seen = dict(conv1=(3, 11, 11), conv2=(6, 5, 5), conv3=(16, 3, 3), conv4=(10, 3, 3), conv5=(10, 3, 3))
  seen |= dict(fc6=(16 * 36,), fc7=(24,), fc8=(28,))
  tensors = {}
  for name, num_out in CAFFE_KERNELS.items():
    deviation = np.sqrt(2 / np.prod(seen[name])) / (60 if name == 'conv1' else 1)
    tensors[name] = [
      rng.normal(0, deviation, (num_out, *seen[name])).astype(np.float32),
      rng.normal(0, 0.1, num_out).astype(np.float32),
    ]
  return tensors


def caffe_order(net):
  first = [f'{kind}{number}' for number in (1, 2) for kind in ('conv', 'relu', 'norm', 'pool')]
  if net == 'bvlc_reference_caffenet':
    first = [f'{kind}{number}' for number in (1, 2) for kind in ('conv', 'relu', 'pool', 'norm')]
  middle = ['conv3', 'relu3', 'conv4', 'relu4', 'conv5', 'relu5', 'pool5']
  return [*first, *middle, 'fc6', 'relu6', 'drop6', 'fc7', 'relu7', 'drop7', 'fc8', 'prob']


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


def caffemodel(tensors, *, order=(), name='', old=False):
  """A network as Caffe writes it, or wrote it in 2014."""
  message = caffe_files._message_class('NetParameter')(name=name)
  for layer in order or tensors:
    written = (message.layers if old else message.layer).add(name=layer)
    for x in tensors.get(layer, ()):
      blob = written.blobs.add()
      blob.data.extend(x.reshape(-1))
      if old:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - x.ndim) + x.shape
      else:
        blob.shape.dim.extend(x.shape)
  return message.SerializeToString()


@pytest.fixture
def mean_file(tmp_path):
  """A mean image [bgr, height, width] as .npy."""
  mean = np.random.default_rng(4).uniform(60, 180, (3, 256, 256))
  np.save(tmp_path / 'mean.npy', mean)
  return tmp_path / 'mean.npy'


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('net', weight_files.NETS)
def test_caffe_networks_say_what_opencv_says(net, old, mean_file, tmp_path):
  cv2 = pytest.importorskip('cv2')
  if not hasattr(cv2.dnn, 'readNetFromCaffe'):
    pytest.skip('this OpenCV reads no Caffe files; version 4 does')
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), order=caffe_order(net), old=old))
  (tmp_path / 'a.prototxt').write_text(prototxt(net))
  images = np.random.default_rng(5).integers(0, 256, (3, 256, 256, 3), np.uint8)

  theirs = cv2.dnn.readNetFromCaffe(str(tmp_path / 'a.prototxt'), str(tmp_path / 'a.caffemodel'))
  bgr = images[..., ::-1].transpose(0, 3, 1, 2) - np.load(mean_file)
  theirs.setInput(bgr[:, :, 14:241, 14:241].astype(np.float32))
  expected = theirs.forward()

  folder = tmp_path / 'run'
  assert cli.main(['weights', 'import', str(tmp_path / 'a.caffemodel'), str(folder), f'--mean={mean_file}']) == 0
  network = trained_model.load(folder, batch_size=3, num_data=1, num_tower=1)
  assert (network.stored_size, network.class_names[9]) == (256, 'class 9')
  assert bool(network.config.norm.pooled) == (net == 'bvlc_reference_caffenet')
  found = np.exp(network.log_probs(images, transforms.centre_crop_only(29)))
  assert expected.max() - expected.min() > 0.05
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_conv1_of_the_real_network_is_read(shared_data, tmp_path):
  """Its kernels 0-47 are nearly grey and 48-95 coloured (facts, 4), whatever the order of the channels."""
  real = np.load(shared_data / 'bvlc_alexnet_conv1.npz')
  blobs = [real['weights'].transpose(3, 2, 0, 1), real['biases']]
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel({'conv1': blobs}, name='AlexNet'))
  net, tensors = caffe_files.read_model(tmp_path / 'a.caffemodel')
  assert net == 'bvlc_alexnet'
  np.testing.assert_array_equal(tensors['conv1.weight'].transpose(2, 3, 1, 0), real['weights'][:, :, ::-1])


def test_mean_images_of_both_kinds_are_read(tmp_path, shared_data):
  place = shared_data / 'ilsvrc_2012_mean.npy'
  mean = caffe_files.read_mean(place)
  np.testing.assert_allclose(mean.mean((0, 1)), [122.7, 116.7, 104.0], atol=0.1)  # RGB
  stored = np.load(place)
  blob = caffe_files._message_class('BlobProto')(num=1, channels=3, height=256, width=256, data=stored.reshape(-1))
  (tmp_path / 'mean.binaryproto').write_bytes(blob.SerializeToString())
  np.testing.assert_allclose(caffe_files.read_mean(tmp_path / 'mean.binaryproto'), mean, rtol=1e-6)


def test_the_name_of_a_caffe_net_tells_where_its_layers_do_not(tmp_path, mean_file):
  for name, net in (('AlexNet', 'bvlc_alexnet'), ('CaffeNet', 'bvlc_reference_caffenet')):
    (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), name=name))
    assert weight_files.read(tmp_path / 'a.caffemodel').config.variants == (net,)
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), name='mine'))
  with pytest.raises(UsageError, match='does not tell which network it is; say so with --net=bvlc_alexnet or --net='):
    weight_files.read(tmp_path / 'a.caffemodel')
  assert weight_files.read(tmp_path / 'a.caffemodel', net='bvlc_alexnet').config.variants == ('bvlc_alexnet',)
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  with pytest.raises(UsageError, match='is bvlc_alexnet and not --net=bvlc_reference_caffenet'):
    weight_files.read(tmp_path / 'a.caffemodel', net='bvlc_reference_caffenet')


# torchvision.


class OneWeirdTrick(torch.nn.Module):
  """torchvision's AlexNet, narrow."""

  def __init__(self, num_classes=10):
    super().__init__()
    nn = torch.nn
    self.features = nn.Sequential(
      nn.Conv2d(3, 8, 11, stride=4, padding=2),
      nn.ReLU(),
      nn.MaxPool2d(3, 2),
      nn.Conv2d(8, 12, 5, padding=2),
      nn.ReLU(),
      nn.MaxPool2d(3, 2),
      nn.Conv2d(12, 16, 3, padding=1),
      nn.ReLU(),
      nn.Conv2d(16, 14, 3, padding=1),
      nn.ReLU(),
      nn.Conv2d(14, 10, 3, padding=1),
      nn.ReLU(),
      nn.MaxPool2d(3, 2),
    )
    self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
    self.classifier = nn.Sequential(
      nn.Dropout(),
      nn.Linear(10 * 36, 24),
      nn.ReLU(),
      nn.Dropout(),
      nn.Linear(24, 20),
      nn.ReLU(),
      nn.Linear(20, num_classes),
    )

  def forward(self, x):
    return self.classifier(self.avgpool(self.features(x)).flatten(1))


@pytest.fixture(scope='module')
def weird():
  torch.manual_seed(0)
  network = OneWeirdTrick().eval()
  for parameter in network.parameters():
    parameter.data *= 2  # so that the logits are not all alike
  return network


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_torchvisions_network_says_what_it_says_in_torch(weird, suffix, tmp_path, capsys):
  file = tmp_path / f'a{suffix}'
  if suffix == '.pth':
    torch.save(weird.state_dict(), file)
  else:
    safetensors_torch = pytest.importorskip('safetensors.torch')
    safetensors_torch.save_file(weird.state_dict(), file, {'format': 'pt'})  # as PyTorch's users write it
  images = np.random.default_rng(5).integers(0, 256, (3, 256, 256, 3), np.uint8)
  x = (images[:, 16:240, 16:240] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  with torch.no_grad():
    expected = weird(torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)).log_softmax(1).numpy()
  assert expected.max() - expected.min() > 0.1

  assert cli.main(['weights', 'import', str(file), str(tmp_path / 'run')]) == 0
  assert '--config=configs/alexnet.py:imagenet2012 --mode=eval' in capsys.readouterr().out
  network = trained_model.load(tmp_path / 'run', batch_size=3, num_data=1)
  assert (network.network.num_towers, network.stored_size) == (1, 256)
  np.testing.assert_allclose(network.log_probs(images, transforms.centre_crop_only(32)), expected, rtol=1e-4, atol=1e-4)


def test_an_imported_network_is_evaluated(weird, config, tmp_path):
  torch.save(weird.state_dict(), tmp_path / 'a.pth')
  (tmp_path / 'classes.txt').write_text('\n'.join('0123456789') + '\n')
  arguments = ['import', str(tmp_path / 'a.pth'), str(tmp_path / 'run'), f'--classes={tmp_path / "classes.txt"}']
  assert cli.main(['weights', *arguments]) == 0
  assert run_folder.load_classes(tmp_path / 'run') == list('0123456789')
  config.data.test_split, config.eval.ten_view = 'test[:32]', False
  results = evaluate.evaluate_workdir(config, tmp_path / 'run')
  assert (results['num_examples'], results['step']) == (32, 0)
  assert 0 <= results['centre']['top1_error'] <= 100


@pytest.mark.slow
def test_main_evaluates_an_imported_network(mean_file, data_dir, tmp_path):
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), order=caffe_order('bvlc_alexnet')))
  assert (
    cli.main(['weights', 'import', str(tmp_path / 'a.caffemodel'), str(tmp_path / 'run'), f'--mean={mean_file}']) == 0
  )
  flags = ['--mode=eval', f'--workdir={tmp_path / "run"}', f'--config.data.dir={data_dir}']
  command = [sys.executable, 'main.py', '--config=configs/alexnet.py', *flags]
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert ended.returncode == 0, ended.stderr
  assert 'digits/1.0.0, split test, 360 images, step 0' in ended.stdout


# What cannot be read.


def fails(capsys, *arguments):
  assert cli.main(['weights', *map(str, arguments)]) == 2
  said = capsys.readouterr().err
  assert said.startswith('error: ')
  assert said.count('\n') == 1
  return said


@pytest.fixture
def free(tmp_path):
  return tmp_path / 'free'


@pytest.mark.parametrize('name', ['a.safetensors', 'a.onnx', 'a.caffemodel', 'a.pth'])
@pytest.mark.parametrize('damage', ['cut', 'text', 'empty'])
def test_what_is_no_weights_file_is_said_to_be_none(network_of, weird, name, damage, free, tmp_path, capsys):
  file = tmp_path / name
  if name == 'a.pth':
    torch.save(weird.state_dict(), file)
  elif name == 'a.caffemodel':
    file.write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  else:
    weight_files.write(file, network_of('paper')[0])
  whole = file.read_bytes()
  file.write_bytes({'cut': whole[: len(whole) // 2], 'text': b'not weights at all', 'empty': b''}[damage])
  said = fails(capsys, 'import', file, free)
  assert str(file) in said


def test_all_tensors_that_do_not_fit_are_named(network_of, free, tmp_path, capsys):
  whole = network_of('paper')[0]
  tensors = whole.tensors | {'fc9.weight': np.zeros((2, 2), np.float32), 'conv3.bias': np.zeros(25, np.float32)}
  del tensors['conv1.weight'], tensors['fc8.bias']
  weight_files.write(tmp_path / 'a.safetensors', whole._replace(tensors=tensors))
  said = fails(capsys, 'import', tmp_path / 'a.safetensors', free)
  for part in (
    'conv1.weight is missing',
    'fc8.bias is missing',
    'fc9.weight is surplus',
    'conv3.bias is 25 and should be 24',
  ):
    assert part in said


def test_torchvisions_tensors_are_named_as_it_names_them(weird, free, tmp_path, capsys):
  tensors = dict(weird.state_dict())
  del tensors['features.0.weight'], tensors['classifier.6.bias']
  tensors['features.1.weight'], tensors['features.2.count'] = torch.zeros(3), torch.tensor(1)
  tensors['features.3.weight'] = torch.zeros(12, 4, 5, 5)
  torch.save(tensors, tmp_path / 'a.pth')
  said = fails(capsys, 'import', tmp_path / 'a.pth', free)
  assert 'features.0.weight is missing' in said
  assert 'classifier.6.bias is missing' in said
  assert 'features.1.weight is surplus' in said
  assert 'features.2.count is surplus' in said
  assert 'features.3.weight is 12 x 4 x 5 x 5 and should be 12 x 8 x 5 x 5' in said


def test_caffes_tensors_are_named(free, tmp_path, mean_file, capsys):
  tensors = caffe_tensors()
  del tensors['conv2'], tensors['fc7'][1]
  tensors['conv1'][0] = tensors['conv1'][0][:, :, :10]
  tensors['extra'] = [np.ones(3, np.float32)]
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(tensors, name='AlexNet'))
  said = fails(capsys, 'import', tmp_path / 'a.caffemodel', free, f'--mean={mean_file}')
  for part in ('conv2.weight is missing', 'conv2.bias is missing', 'fc7.bias is missing', 'extra.weight is surplus'):
    assert part in said
  assert 'conv1.weight is 12 x 3 x 10 x 11 and should be 12 x 3 x 11 x 11' in said


class Evil:
  def __reduce__(self):
    return (print, ('this must never be seen',))


def test_a_pickle_is_never_run(free, tmp_path, capsys):
  torch.save({'features.0.weight': Evil()}, tmp_path / 'a.pth')
  assert 'no file of tensors alone' in fails(capsys, 'import', tmp_path / 'a.pth', free)
  torch.save([1, 2], tmp_path / 'a.pth')
  assert 'holds no state dict' in fails(capsys, 'import', tmp_path / 'a.pth', free)
  np.save(tmp_path / 'mean.npy', np.array([Evil()], object))
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  said = fails(capsys, 'import', tmp_path / 'a.caffemodel', free, f'--mean={tmp_path / "mean.npy"}')
  assert 'the mean image' in said
  assert 'cannot be read' in said


def test_torch_is_asked_for_in_one_sentence(free, tmp_path, capsys, monkeypatch):
  (tmp_path / 'a.pth').write_bytes(b'anything')
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert 'install torch' in fails(capsys, 'import', tmp_path / 'a.pth', free)


def test_mean_images_that_do_not_fit_say_why(free, tmp_path, capsys):
  file = tmp_path / 'a.caffemodel'
  file.write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  assert 'does not hold the mean image of its training set; name it with --mean' in fails(capsys, 'import', file, free)
  for array, part in (
    (np.zeros((3, 224, 224)), 'is 3 x 224 x 224 and should be 3 x 256 x 256'),
    (np.zeros((256, 256, 3)), 'float64 256 x 256 x 3 and should be 3 x height x width'),
    (np.zeros((3, 256, 256), np.uint8), 'uint8'),
  ):
    np.save(tmp_path / 'mean.npy', array)
    assert part in fails(capsys, 'import', file, free, f'--mean={tmp_path / "mean.npy"}')
  (tmp_path / 'mean.binaryproto').write_bytes(b'no mean at all')
  assert "none of Caffe's files" in fails(capsys, 'import', file, free, f'--mean={tmp_path / "mean.binaryproto"}')
  assert 'cannot be read' in fails(capsys, 'import', file, free, f'--mean={tmp_path / "none.binaryproto"}')


def test_options_that_do_not_fit_say_why(network_of, weird, run, free, tmp_path, mean_file, capsys):
  torch.save(weird.state_dict(), tmp_path / 'a.pth')
  (tmp_path / 'classes.txt').write_text('cat\ndog\n')
  said = fails(capsys, 'import', tmp_path / 'a.pth', free, f'--classes={tmp_path / "classes.txt"}')
  assert 'names 2 classes and' in said
  assert 'tells 10 apart' in said
  assert 'a mean image of its own' in fails(capsys, 'import', tmp_path / 'a.pth', free, f'--mean={mean_file}')
  assert 'leave --net out' in fails(capsys, 'import', tmp_path / 'a.pth', free, '--net=bvlc_alexnet')
  assert 'holds a run already; choose another folder' in fails(capsys, 'import', tmp_path / 'a.pth', run)
  assert 'does not exist' in fails(capsys, 'import', tmp_path / 'b.pth', free)
  assert 'no suffix that says what it is' in fails(capsys, 'import', tmp_path / 'classes.txt', free)
  assert 'end it in .safetensors or .onnx' in fails(capsys, 'export', run, tmp_path / 'a.h5')
  assert 'holds no run' in fails(capsys, 'export', tmp_path / 'nowhere', tmp_path / 'a.onnx')
  assert not (tmp_path / 'a.onnx').exists()
  assert cli.main(['weights', 'export', str(run), str(tmp_path / 'none' / 'a.onnx')]) == 1
  assert 'a.onnx cannot be written' in capsys.readouterr().err


def test_files_that_others_wrote_say_so(network_of, free, tmp_path, capsys):
  whole = network_of('paper')[0]
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file(whole.tensors, file)
  assert 'was not exported by this project' in fails(capsys, 'import', file, free)
  texts = layout.metadata(whole)
  for change, part in (
    ({'format_version': '9'}, 'has format version 9 and this program reads 1'),
    ({'config': '{'}, 'is damaged'),
    ({'config': '{}'}, 'is damaged'),
    (
      {'config': texts['config'].replace('"batch_size": 32', '"batch_size": 0')},
      'damaged .batch_size=0 must be 1 or more.;',
    ),
    ({'num_steps': 'many'}, 'is damaged'),
  ):
    safetensors.numpy.save_file(whole.tensors | {'mean_image': whole.mean_image}, file, texts | change)
    assert re.search(part, fails(capsys, 'import', file, free))
  assert not free.exists()


def test_names_are_translated_both_ways():
  assert torchvision_files.torchvision_name('fc8.bias') == 'classifier.6.bias'
  assert torchvision_files.is_state_dict({'classifier.1.weight': 0})
  assert not torchvision_files.is_state_dict({'conv1.weight': 0})
