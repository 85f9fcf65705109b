"""Every version of this project reads the files that older versions wrote, which `tests/fixtures/make.py` describes."""

import json
import tarfile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.data import cropping
from alexnet_jax.evaluation import evaluate, trained_model
from alexnet_jax.interop import import_export, layout, weight_files
from alexnet_jax.runs import config_files, curves, environment, run_folder
from alexnet_jax.runs.saved_predictions import PredictionFiles
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import loop, run_setup
from configs import alexnet
from tests.conftest import mostly_nightly
from tests.fixtures import make

ARCHIVES = sorted(make.FOLDER.glob('v*.tar.xz'))
TOLERANCE = {'rtol': 1e-4, 'atol': 1e-4}  # other kernels and other versions of XLA round differently


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition('.')[0])
def files(request, tmp_path):
  """The folder of the files of a version."""
  with tarfile.open(request.param) as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path


def load_config(files, data_dir):
  config = run_folder.load_config(files / 'run')
  config.data.dir = str(data_dir)
  return config


def tensors(model):
  return layout.to_tensors(model.params, model.config, len(model.class_names))


def test_a_new_config_field_has_a_default_and_a_new_version(files):
  saved = json.loads((files / 'run' / 'config.json').read_text())
  version = saved.pop('format_version')
  current = config_files.flatten(alexnet.get_config())
  assert config_files.flatten(run_folder.load_config(files / 'run')).keys() == current.keys()
  assert version <= config_files.FORMAT_VERSION == len(ARCHIVES)
  assert config_files.flatten(ConfigDict(saved)).keys() == current.keys() or version < config_files.FORMAT_VERSION


@pytest.mark.parametrize('ten_view', mostly_nightly([False, True], False))
def test_a_run_is_evaluated_with_the_same_predictions(ten_view, files, data_dir):
  config, run = load_config(files, data_dir), files / 'run'
  config.eval.ten_view = ten_view
  expected = json.loads((run / 'results.json').read_text())
  assert curves.read_curves(run)['train/loss'][0].tolist() == [2, 3, 4]
  (files / 'old').mkdir()
  (run / 'predictions').rename(files / 'old' / 'predictions')
  results = evaluate.evaluate_run(config, run)
  assert results.keys() == expected.keys()
  assert environment.load(run)['evaluation']['results.json']['jax'] == jax.__version__
  for crops in cropping.list_crop_sets(config):
    assert results[crops]['log_prob'] == pytest.approx(expected[crops]['log_prob'], rel=1e-4)
    saved, computed = (
      PredictionFiles(folder, expected['dataset'], expected['split'], crops).load() for folder in (files / 'old', run)
    )
    assert saved.num_steps == expected['step'] == make.NUM_STEPS
    np.testing.assert_array_equal(computed.labels, saved.labels)
    np.testing.assert_allclose(computed.log_probs, saved.log_probs, **TOLERANCE)
    assert saved.log_probs.std(axis=0).min() > 100 * TOLERANCE['atol']  # the predictions depend on the images


def test_saved_predictions_are_used_again(files, data_dir, capsys):
  expected = json.loads((files / 'run' / 'results.json').read_text())
  assert evaluate.evaluate_run(load_config(files, data_dir), files / 'run') == expected
  assert capsys.readouterr().out.count('using the predictions saved in') == 2


@pytest.mark.parametrize('name', mostly_nightly(['weights', 'resumed'], 'weights'))
def test_a_run_resumes_with_the_same_parameters(name, files, data_dir, capsys):
  """The nightly case compares them after the remaining steps, the other one after none."""
  before, after = (weight_files.read(files / f'{file}.safetensors') for file in ('weights', name))
  config = load_config(files, data_dir)
  config.num_steps = after.num_steps
  setup = run_setup.prepare(config, files / 'run')
  with jax.set_mesh(setup.mesh):
    resumed = tensors(loop.train(setup))
  assert f'Resuming from step {make.NUM_STEPS} ' in capsys.readouterr().out
  assert [entry['first_step'] for entry in environment.load(files / 'run')['training']] == [0, before.num_steps]
  assert resumed.keys() == after.tensors.keys()
  for tensor, x in resumed.items():
    change = np.abs(after.tensors[tensor] - before.tensors[tensor]).max()
    np.testing.assert_allclose(x, after.tensors[tensor], rtol=0, atol=1e-3 * change, err_msg=tensor)


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.onnx', 'huggingface'])
def test_exported_weights_are_those_of_the_run(name, files):
  weights = weight_files.read(files / name)
  model = trained_model.load(files / 'run', batch_size=1, num_data=1, num_tower=1)
  expected = tensors(model)
  assert weights.tensors.keys() == expected.keys()
  for tensor, x in expected.items():
    np.testing.assert_array_equal(weights.tensors[tensor], x, err_msg=tensor)
  np.testing.assert_array_equal(weights.mean_image, model.mean_image)
  assert (list(weights.class_names), weights.num_steps) == (list(model.class_names), model.num_steps)
  assert weights.config == run_folder.load_config(files / 'run')


@pytest.mark.slow
def test_an_exported_folder_passes_its_check(files):
  assert 'is intact' in import_export.check_folder(files / 'huggingface')


def test_a_newer_version_is_a_usage_error(files):
  path = files / 'run' / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'format_version': config_files.FORMAT_VERSION + 1}))
  with pytest.raises(UsageError, match=rf'format version \d+, .* up to {config_files.FORMAT_VERSION}; use the version'):
    run_folder.load_config(files / 'run')
