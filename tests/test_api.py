"""The public API: its examples, images and files of all types, errors, and that it needs the core alone."""

import doctest
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import alexnet_jax
from alexnet_jax import models
from alexnet_jax.data import image_io
from alexnet_jax.evaluation import predict
from alexnet_jax.interop import import_export
from alexnet_jax.runtime.errors import UsageError
from tests.interop.conftest import torchvision_network  # noqa: F401
from tests.interop.networks import caffe_tensors, caffemodel

ROOT = pathlib.Path(__file__).parents[1]

# Imports that only the extra `train` installs. SciPy, its other package, is required by JAX itself.
EXTRA = ('tensorflow', 'tensorflow_datasets', 'importlib_resources', 'grain', 'clu', 'array_record', 'tensorboard')
EXTRA += ('sklearn', 'onnx', 'tqdm', 'matplotlib')


@pytest.fixture
def folder(trained_run, tmp_path, monkeypatch):
  """The current folder of the examples, with runs/digits, cat.jpg, dog.jpg and digit.png."""
  rng = np.random.default_rng(0)
  for name in ('cat.jpg', 'dog.jpg', 'digit.png'):
    PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((200, 150)).save(tmp_path / name)
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'digits').symlink_to(trained_run)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture(scope='module')
def model(trained_run):
  return alexnet_jax.load(trained_run)


@pytest.mark.parametrize('module', [alexnet_jax, models.alexnet], ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(folder, config, module):
  names = {'images': np.zeros((1, 64, 64, 3)), 'config': config, 'nnx': nnx}
  results = doctest.testmod(module, extraglobs=names)
  assert results.failed == 0
  assert results.attempted > 2


def test_the_example_in_the_readme_runs(folder):
  (example,) = re.findall(r'^```python\n(.*?)^```', (ROOT / 'README.md').read_text(), re.MULTILINE | re.DOTALL)
  names = {}
  exec(example, names)
  assert names['net'](np.zeros((1, 64, 64, 3))).shape == (1, 1000)


def test_importing_the_package_loads_no_jax():
  code = 'import sys, alexnet_jax; print(dir(alexnet_jax), {"jax", "numpy"} & sys.modules.keys())'
  output = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
  assert output == "['AlexNet', 'Model', 'RunError', 'UsageError', 'load'] set()\n"
  with pytest.raises(AttributeError, match="module 'alexnet_jax' has no attribute 'train'"):
    alexnet_jax.train  # noqa: B018


@pytest.mark.parametrize('mirror', [True, False])
def test_predictions_are_those_of_main(trained_run, config, folder, mirror):
  model = alexnet_jax.load(trained_run)
  model.config.augment.mirror = config.augment.mirror = mirror
  predict.predict_files(['cat.jpg', 'dog.jpg'], trained_run, config, 'predictions.json')
  rows = json.loads((folder / 'predictions.json').read_text())['pictures']
  expected = [
    [(row['class'], pytest.approx(row['probability'], rel=1e-4)) for row in image['classes']] for image in rows
  ]
  assert model.predict(['cat.jpg', 'dog.jpg']) == expected
  assert model.predict(pathlib.Path('cat.jpg')) == expected[0] != expected[1]
  everything = model.predict('cat.jpg', num_classes=10)
  assert everything[:5] == expected[0]
  assert sum(probability for _, probability in everything) == pytest.approx(1)


def test_images_of_all_types_have_the_same_features(model, folder):
  cat, dog = (image_io.decode((folder / name).read_bytes()) for name in ('cat.jpg', 'dog.jpg'))
  features = model.features(['cat.jpg', 'dog.jpg'], layer='fc7')
  assert (features.shape, features.dtype) == ((2, 256), np.float32)
  for images in (
    np.stack([cat, dog]),
    [cat, 'dog.jpg'],
    [PIL.Image.fromarray(cat), PIL.Image.fromarray(dog)],
    map(pathlib.Path, ('cat.jpg', 'dog.jpg')),
    jax.numpy.stack([cat, dog]),
  ):
    np.testing.assert_array_equal(model.features(images), features)
  for image in (cat, 'cat.jpg', jax.numpy.asarray(cat), PIL.Image.fromarray(cat)):
    np.testing.assert_allclose(model.features(image), features[:1], rtol=1e-4, atol=1e-4)
  sizes = [cat, dog[:40, :50], np.repeat(dog, 2, axis=0)]
  np.testing.assert_allclose(model.features(sizes)[:1], features[:1], rtol=1e-4, atol=1e-4)
  assert model.features('cat.jpg', layer='pool1').shape == (1, 7, 7, 6)


def test_an_image_of_pillow_that_cannot_be_decoded_is_reported(model, folder):
  (folder / 'truncated.png').write_bytes((folder / 'digit.png').read_bytes()[:-1000])
  for image in (PIL.Image.open('truncated.png'), PIL.Image.new('I', (0, 5))):
    with pytest.raises(UsageError, match=r'cannot be decoded: .*; choose another image'):
      model.predict(image)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_pytorch_computes_the_same_logits(torchvision_network, suffix, tmp_path):  # noqa: F811
  torch = pytest.importorskip('torch')
  path = tmp_path / f'a{suffix}'
  if suffix == '.pth':
    torch.save(torchvision_network.state_dict(), path)
  else:
    pytest.importorskip('safetensors.torch').save_file(torchvision_network.state_dict(), path)
  (tmp_path / 'classes.txt').write_text('\n'.join('abcdefghij'))
  model = alexnet_jax.load(str(path), classes=str(tmp_path / 'classes.txt'))
  image = np.random.default_rng(5).integers(0, 256, (256, 300, 3), np.uint8)
  x = (image[16:240, 38:262] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  with torch.no_grad():
    expected = torchvision_network(torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float32)).numpy()
  np.testing.assert_allclose(model.features(image, layer='fc8'), expected, rtol=1e-4, atol=1e-4)
  assert model.class_names == list('abcdefghij')
  assert alexnet_jax.load(path).class_names[:2] == ['class 0', 'class 1']


def test_an_exported_run_is_the_same_network(model, trained_run, folder):
  import_export.export_run(trained_run, folder / 'a.safetensors')
  exported = alexnet_jax.load('a.safetensors')
  assert (exported.config, exported.class_names) == (alexnet_jax.load(trained_run).config, model.class_names)
  np.testing.assert_array_equal(exported.features('cat.jpg', 'fc8'), model.features('cat.jpg', 'fc8'))


def test_the_mean_of_a_caffemodel_is_a_file_or_the_colour_of_its_convention(folder):
  path, mean_path = folder / 'a.caffemodel', folder / 'mean.npy'
  path.write_bytes(caffemodel(caffe_tensors()))
  colour = np.array([104.00698793, 116.66876762, 122.67891434])[:, None, None]  # BGR, as in Caffe's examples
  np.save(mean_path, np.broadcast_to(colour, (3, 256, 256)))
  with_file = alexnet_jax.load(path, net='bvlc_alexnet', mean=mean_path)
  without = alexnet_jax.load(path, net='bvlc_alexnet')
  image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
  features = with_file.features(image, 'fc8')
  np.testing.assert_allclose(without.features(image, 'fc8'), features, rtol=1e-4, atol=1e-4 * np.abs(features).max())
  np.save(mean_path, np.full((3, 256, 256), 10.0))
  assert not np.allclose(alexnet_jax.load(path, net='bvlc_alexnet', mean=mean_path).features(image, 'fc8'), features)


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    ('missing.jpg', r'missing\.jpg cannot be read: No such file or directory; choose another image\.$'),
    (['cat.jpg', 'text.jpg'], r'text\.jpg cannot be read: not an image in a known format'),
    ('runs', 'runs cannot be read: Is a directory'),
    ([], 'there are no images; pass one or more paths or arrays'),
    (np.zeros((2, 9, 9, 3)), r'is a float64 array of the shape \(9, 9, 3\) and should be \[height, width, rgb\] uint8'),
    (np.zeros((9, 9), np.uint8), r'is a uint8 array of the shape \(9, 9\)'),
    (np.zeros((9, 9, 4), np.uint8), r'is a uint8 array of the shape \(9, 9, 4\)'),
    (np.zeros((1, 0, 9, 3), np.uint8), r'is a uint8 array of the shape \(0, 9, 3\)'),
    ([[1, 2], [3, 4]], r'is a int64 array of the shape \(2,\)'),
  ],
)
def test_wrong_images_are_usage_errors(model, folder, images, message):
  (folder / 'text.jpg').write_text('no image')
  for function in (model.predict, model.features):
    with pytest.raises(alexnet_jax.UsageError, match=message):
      function(images)


def test_wrong_layers_paths_and_options_are_usage_errors(model, folder):
  with pytest.raises(alexnet_jax.UsageError, match="this network has no layer 'conv7'; its layers are conv1, "):
    model.features('cat.jpg', layer='conv7')
  with pytest.raises(alexnet_jax.UsageError, match='num_classes=0 must be 1 or more'):
    model.predict('cat.jpg', num_classes=0)
  for path, options, message in (
    ('runs/nothing', {}, 'runs/nothing does not exist; name the folder of a run or a file of weights'),
    ('runs', {}, 'runs contains no run'),
    ('cat.jpg', {}, "Unknown file type '.jpg' of cat.jpg; supported types are .safetensors"),
    ('runs/digits', {'net': 'bvlc_alexnet', 'mean': 'mean.npy'}, 'to which mean and net do not apply; omit them'),
  ):
    with pytest.raises(alexnet_jax.UsageError, match=message):
      alexnet_jax.load(path, **options)


def test_load_predict_features_and_imports_need_the_core_alone(folder, torchvision_network):  # noqa: F811
  """Also in a folder other than the clone's."""
  torch = pytest.importorskip('torch')
  torch.save(torchvision_network.state_dict(), 'a.pth')
  pathlib.Path('a.caffemodel').write_bytes(caffemodel(caffe_tensors(), name='AlexNet'))
  np.save('mean.npy', np.zeros((3, 256, 256)))
  pathlib.Path('core.py').write_text(f"""
import sys
sys.modules.update(dict.fromkeys({EXTRA}))  # makes them impossible to find
import alexnet_jax
from alexnet_jax import __main__ as cli
for path in ('runs/digits', 'a.pth', 'a.caffemodel'):
  model = alexnet_jax.load(path)
assert cli.main(['weights', 'import', 'a.pth', 'runs/a']) == 0
assert cli.main(['weights', 'import', 'a.caffemodel', 'runs/b', '--mean=mean.npy']) == 0
assert cli.main(['weights', 'export', 'runs/digits', 'a.safetensors']) == 0
assert cli.main(['weights', 'export', 'runs/digits', 'a.onnx']) == 2
assert cli.main(['features', 'extract', 'runs/digits', 'fc7']) == 2
model = alexnet_jax.load('a.safetensors')
assert len(model.predict('cat.jpg')) == 5
assert model.features('cat.jpg').shape == (1, 256)
cli.main(['--help'])
""")
  command = [sys.executable, 'core.py']
  process = subprocess.run(
    command, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=540, check=False
  )
  assert process.returncode == 0, process.stderr
  assert 'usage: python -m alexnet_jax' in process.stdout
  missing = re.findall(
    r"^error: (\w+) is not installed; install it with pip install 'alexnet_jax\[train\]'.$", process.stderr, re.M
  )
  assert missing[0] == 'onnx'
  assert missing[1] in EXTRA
  assert len(missing) == 2
