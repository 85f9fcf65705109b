"""Exported folders: the model card, the check, loading in JAX, and the network in PyTorch."""

import ast
import json
import pathlib
import re
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import alexnet_jax
from alexnet_jax import __main__ as cli
from alexnet_jax.data import image_io
from alexnet_jax.evaluation import trained_model
from alexnet_jax.interop import huggingface_files, import_export
from alexnet_jax.runtime.errors import RunError, UsageError
from tests.conftest import mostly_nightly
from tests.interop.networks import assert_close, assert_same, centre_crops

torch = pytest.importorskip('torch', reason='PyTorch is the reference')

from alexnet_jax.interop import alexnet_torch  # noqa: E402

VARIANTS = mostly_nightly(
  [
    *('paper', 'as_run', 'one_tower', 'conv6', 'bottleneck', 'no_communication', 'run150', 'without_conv3'),
    *('no_lrn', 'no_overlap', 'tanh', 'no_dropout', 'bvlc_alexnet', 'bvlc_reference_caffenet', 'torchvision'),
  ],
  *('as_run', 'bvlc_reference_caffenet'),
)


@pytest.fixture(scope='session')
def exported(run, tmp_path_factory):
  """An exported folder of a run with results."""
  folder = tmp_path_factory.mktemp('exported') / 'alexnet-digits'
  evaluated = folder.with_name('run')
  shutil.copytree(run, evaluated)
  results = {'dataset': 'digits/1.0.0', 'split': 'test', 'num_examples': 360, 'step': 5, 'skipped': {}}
  results['classes'] = list('0123456789')
  results['centre'] = {'top1_error': 3.125, 'top5_error': 0.5, 'log_prob': -0.1, 'confused': []}
  (evaluated / 'results.json').write_text(json.dumps(results))
  arguments = ['export', str(evaluated), str(folder), '--format=huggingface', '--license=apache-2.0']
  assert cli.main(['weights', *arguments]) == 0
  return folder


@pytest.fixture
def copied(exported, tmp_path):
  """A copy of the exported folder, to be damaged."""
  return shutil.copytree(exported, tmp_path / 'copied')


def torch_network(weights):
  """Builds the network of the standalone file from the config and tensors that a folder would contain."""
  config = json.loads(json.dumps(huggingface_files._config(weights)))['model']
  network = alexnet_torch.AlexNet(config, {name: x.shape for name, x in weights.arrays().items()})
  network.load_state_dict({name: torch.tensor(x) for name, x in weights.arrays().items()})
  return network.eval()


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_pytorch_file_computes_the_same_logits(network_of, variant):
  weights, _, images, logits = network_of(variant)
  network, stored = torch_network(weights), torch.tensor(images.transpose(0, 3, 1, 2))
  crops = torch.tensor(centre_crops(weights.config, images).transpose(0, 3, 1, 2))
  with torch.no_grad():
    assert_close(logits, network(stored).numpy())
    assert_close(logits, network(crops.float()).numpy())


def test_units_without_cross_tower_connections_read_their_own_tower():
  layer = alexnet_torch.TowerLinear(3, 7, num_towers=2)  # the second tower has one unit less
  weight, bias, x = layer.weight.detach().numpy(), layer.bias.detach().numpy(), np.arange(12, dtype=np.float32)
  x = x.reshape(2, 6)
  expected = np.concatenate([x[:, :3] @ weight[:4].T, x[:, 3:] @ weight[4:].T], axis=1) + bias
  np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_layers_are_hooked_by_name(network_of):
  weights, _, images, logits = network_of('as_run')
  network, outputs = torch_network(weights), {}
  names = (
    'pad1 conv1 norm1_before relu1 pool1 conv2 relu2 norm2 norm2_within pool2 conv3 relu3 conv4 relu4 conv5 relu5 '
  )
  names += 'pool5 flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8'
  assert [name for name, _ in network.named_children()] == names.split()
  for name, module in network.named_children():
    module.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output.numpy()}))
  with torch.no_grad():
    network(torch.tensor(images.transpose(0, 3, 1, 2)))
  model = import_export.to_model(weights)
  assert_close(np.asarray(model.activations(images, 'conv2')), outputs['norm2_within'].transpose(0, 2, 3, 1))
  assert_close(logits, outputs['fc8'])


@pytest.mark.parametrize('shape', [(41, 70), (70, 41), (96, 120), (300, 199), (96, 96)])
def test_the_pytorch_file_resizes_images_like_pillow(shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  resized = alexnet_torch.resize_centre(torch.tensor(image.transpose(2, 0, 1)[None]).float(), 96)[0]
  difference = np.abs(resized.numpy().transpose(1, 2, 0) - image_io.resize_and_crop(image, 96))
  assert difference.max() <= 1
  assert difference.mean() < 1e-3  # Pillow's weights are rounded


def test_the_pytorch_file_stands_alone():
  """Its users have other versions of Python, and no other package."""
  text = pathlib.Path(alexnet_torch.__file__).read_text()
  imports = {name.split('.')[0] for name in re.findall(r'^(?:import|from) (\S+)', text, re.MULTILINE)}
  assert imports == {'json', 'pathlib', 'safetensors', 'torch'}
  ast.parse(text, feature_version=(3, 7))


def test_a_folder_is_loaded_and_imported_with_the_same_parameters(exported, run, tmp_path, capsys):
  expected, loaded = alexnet_jax.load(run), alexnet_jax.load(exported)
  assert_same(jax.device_get(expected.params), jax.device_get(loaded.params))
  assert (loaded.config, loaded.class_names) == (expected.config, expected.class_names)
  assert cli.main(['weights', 'import', str(exported), str(tmp_path / 'imported')]) == 0
  imported = trained_model.load(tmp_path / 'imported', batch_size=1, num_data=1, num_tower=1)
  assert_same(jax.device_get(expected.params), jax.device_get(imported.params))


def test_the_model_card(exported):
  _, front_matter, text = (exported / 'README.md').read_text().split('---\n', 2)
  metadata = yaml.safe_load(front_matter)
  (entry,) = metadata.pop('model-index')
  assert metadata == {
    'library_name': 'alexnet_jax',
    'pipeline_tag': 'image-classification',
    'license': 'apache-2.0',
    'datasets': ['digits'],
  }
  assert entry['name'] == 'alexnet-digits'
  (results,) = entry['results']
  name = 'digits/1.0.0, 10 selected classes'
  assert results['dataset'] == {'name': name, 'type': 'digits', 'split': 'test'}
  assert [(metric['name'], metric['value']) for metric in results['metrics']] == [
    ('top-1 accuracy, centre', 0.9688),
    ('top-5 accuracy, centre', 0.995),
  ]
  assert f'{name}, split test, 360 images:' in text
  assert '| centre | 3.12 % | 0.50 % |' in text


def test_results_of_another_checkpoint_are_omitted(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  (tmp_path / 'run' / 'results.json').write_text(json.dumps({'step': 4, 'centre': {'top1_error': 1, 'top5_error': 0}}))
  import_export.export_run(tmp_path / 'run', tmp_path / 'folder', 'huggingface')
  card = (tmp_path / 'folder' / 'README.md').read_text()
  assert 'model-index' not in card
  assert 'have not been evaluated' in card
  (tmp_path / 'run' / 'results.json').write_text('{')
  with pytest.raises(UsageError, match=r'results\.json is damaged; evaluate the run again'):
    import_export.export_run(tmp_path / 'run', tmp_path / 'another', 'huggingface')
  with pytest.raises(UsageError, match=r'folder already exists; choose another folder'):
    import_export.export_run(tmp_path / 'run', tmp_path / 'folder', 'huggingface')
  with pytest.raises(RunError, match=r'cannot be written \(No such file or directory\)'):
    import_export.export_run(run, tmp_path / 'missing' / 'folder', 'huggingface')
  assert {path.name for path in tmp_path.iterdir()} == {'run', 'folder'}


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
  def fail(image):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(image_io, 'encode_png', fail)
  with pytest.raises(RunError, match=r'folder cannot be written \(No space left on device\)'):
    import_export.export_run(run, tmp_path / 'folder', 'huggingface')
  assert not list(tmp_path.iterdir())


def test_the_examples_of_the_model_card_run(exported, monkeypatch, capsys):
  monkeypatch.chdir(exported)
  monkeypatch.syspath_prepend(str(exported))
  monkeypatch.delitem(sys.modules, 'alexnet_torch', raising=False)
  in_jax, in_torch = re.findall(r'```python\n(.*?)```', (exported / 'README.md').read_text(), re.DOTALL)
  names = {}
  exec(in_jax, names)
  exec(in_torch, names)
  assert 'torch.Size([1, 256])' in capsys.readouterr().out
  probe = torch.tensor(image_io.decode((exported / 'probe.png').read_bytes())).permute(2, 0, 1)[None]
  expected = json.loads((exported / 'probe.json').read_text())['logits']
  with torch.no_grad():
    assert_close(np.array([expected]), names['network'](probe).numpy())
  sys.modules.pop('alexnet_torch')


def test_an_intact_folder_passes_the_check(exported, copied, capsys):
  assert cli.main(['weights', 'check', str(exported)]) == 0
  pattern = (
    r'.*alexnet-digits is intact: the logits of probe\.png differ .* by at most \S+ \(tolerance \S+, 10 classes\)\.'
  )
  assert re.fullmatch(pattern, capsys.readouterr().out.strip())
  (copied / 'README.md').write_text('A card of mine.')  # may be edited
  import_export.check_folder(copied)


def with_checksum(folder, name):
  """Lets probe.json agree with a file that was changed."""
  expected = json.loads((folder / 'probe.json').read_text())
  expected['sha256'][name] = huggingface_files._sha256(folder / name)
  (folder / 'probe.json').write_text(json.dumps(expected))


def change_weight(folder, value):
  file = folder / 'model.safetensors'
  with safetensors.safe_open(file, 'numpy') as reader:
    metadata = reader.metadata()
  tensors = safetensors.numpy.load_file(file)
  tensors['fc8.bias'][3] += value
  safetensors.numpy.save_file(tensors, file, metadata)


@pytest.mark.parametrize(
  ('value', 'error', 'message'),
  [
    (0.1, RunError, r'The logits of .*probe\.png differ by at most 0\.1.*: the weights are not'),
    (np.nan, UsageError, r'fc8\.bias contains values other than finite floating-point numbers'),
  ],
)
def test_other_weights_are_detected_even_with_their_checksum(copied, value, error, message):
  change_weight(copied, value)
  with pytest.raises(RunError, match=r'model\.safetensors is not the exported file \(its SHA-256 differs\)'):
    import_export.check_folder(copied)
  with_checksum(copied, 'model.safetensors')
  with pytest.raises(error, match=message):
    import_export.check_folder(copied)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('model.safetensors', None, r'model\.safetensors cannot be read \(No such file or directory\)'),
    ('config.json', '{}', r'config\.json is not the exported file'),
    ('probe.json', None, r'contains no readable probe\.json; choose a folder written by'),
    ('probe.json', '{"logits": "many"}', r'probe\.json is damaged'),
    ('probe.json', '[]', r'probe\.json is damaged'),
  ],
)
def test_damaged_folders_are_reported_in_one_sentence(copied, name, content, message, capsys):
  (copied / name).unlink()
  if content is not None:
    (copied / name).write_text(content)
  assert cli.main(['weights', 'check', str(copied)]) == (2 if 'choose a folder' in message else 1)
  error = capsys.readouterr().err
  assert re.match(f'error: .*{message}', error)
  assert error.count('\n') == 1


def test_logits_of_other_classes_are_reported(copied):
  expected = json.loads((copied / 'probe.json').read_text())
  expected['logits'].pop()
  (copied / 'probe.json').write_text(json.dumps(expected))
  with pytest.raises(RunError, match=r'probe\.json has 9 logits, and the network 10\.'):
    import_export.check_folder(copied)


def test_an_unreadable_probe_is_reported(copied):
  (copied / 'probe.png').write_text('no image')
  with_checksum(copied, 'probe.png')
  with pytest.raises(UsageError, match=r'probe\.png cannot be read'):
    import_export.check_folder(copied)


def test_an_exported_folder_is_not_a_run(exported):
  with pytest.raises(UsageError, match=r'was exported for the Hugging Face Hub; import it with `python -m alexnet_jax'):
    trained_model.load(exported, batch_size=1, num_data=1, num_tower=1)


def test_a_file_has_no_licence(run, tmp_path):
  with pytest.raises(UsageError, match='--license=mit applies to --format=huggingface only'):
    import_export.export_run(run, tmp_path / 'file.safetensors', licence='mit')


def test_a_run_is_not_an_exported_folder(run, tmp_path, capsys):
  assert cli.main(['weights', 'check', str(run)]) == 2
  assert 'contains no readable probe.json' in capsys.readouterr().err
  shutil.copytree(run, tmp_path / 'run')
  import_export.export_run(run, tmp_path / 'run' / 'model.safetensors')  # next to its checkpoints
  assert alexnet_jax.load(tmp_path / 'run').class_names == [f'digit {label}' for label in range(10)]
  with pytest.raises(UsageError, match='is the folder of a run, to which net do not apply'):
    alexnet_jax.load(tmp_path / 'run', net='bvlc_alexnet')
