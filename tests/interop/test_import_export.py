"""The subcommands that export runs and import files of weights."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

from alexnet_jax import __main__ as cli
from alexnet_jax.evaluation import evaluate, trained_model
from alexnet_jax.interop import import_export
from alexnet_jax.runs import run_folder
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import loop
from tests.interop.networks import assert_same, caffe_order, caffe_tensors, caffemodel, error_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('suffix', ['.safetensors', '.onnx'])
def test_a_run_is_the_same_after_export_and_import(run, suffix, tmp_path, capsys):
  path, folder = tmp_path / f'a{suffix}', tmp_path / 'imported'
  assert cli.main(['weights', 'export', str(run), str(path)]) == 0
  assert cli.main(['weights', 'import', str(path), str(folder)]) == 0
  output = capsys.readouterr().out
  assert '10 classes, step 5' in output
  assert '--config.data.name=digits --config.data.test_split=test --mode=eval' in output
  assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []
  assert run_folder.load_config(folder) == run_folder.load_config(run)
  before, after = (trained_model.load(path, batch_size=1, num_data=1, num_tower=1) for path in (run, folder))
  assert_same(jax.device_get(before.params), jax.device_get(after.params))
  np.testing.assert_array_equal(before.mean_image, after.mean_image)
  assert (after.class_names, after.num_steps) == (before.class_names, 5)
  with pytest.raises(UsageError, match='imported weights'):  # training cannot resume without velocities
    loop.train_and_evaluate(run_folder.load_config(folder), folder)


def test_the_printed_command_evaluates_a_network_of_selected_classes(run, tmp_path, capsys):
  before, after = tmp_path / 'before', tmp_path / 'an imported run'
  shutil.copytree(run, before)
  fields = json.loads((before / 'config.json').read_text())
  fields['data']['classes'] = list('0123456789')
  (before / 'config.json').write_text(json.dumps(fields))
  import_export.export_run(before, tmp_path / 'a.safetensors')
  capsys.readouterr()
  import_export.import_weights(tmp_path / 'a.safetensors', after)
  _, _, command = capsys.readouterr().out.partition('Evaluate it with ')
  assert shlex.split(command) == [
    *('python', 'main.py', '--config=configs/alexnet.py', '--config.data.name=digits', '--config.data.test_split=test'),
    *(f'--config.data.classes={tuple("0123456789")}', '--mode=eval', f'--workdir={after}'),
  ]
  import_export.export_run(before, tmp_path / 'folder', 'huggingface')
  assert '| dataset | digits, 10 selected classes |' in (tmp_path / 'folder' / 'README.md').read_text()


def test_an_imported_network_is_evaluated(torchvision_network, config, tmp_path):
  torch.save(torchvision_network.state_dict(), tmp_path / 'a.pth')
  (tmp_path / 'classes.txt').write_text('\n'.join('0123456789') + '\n')
  arguments = ['import', str(tmp_path / 'a.pth'), str(tmp_path / 'run'), f'--classes={tmp_path / "classes.txt"}']
  assert cli.main(['weights', *arguments]) == 0
  assert run_folder.load_classes(tmp_path / 'run') == list('0123456789')
  config.data.test_split, config.eval.ten_view = 'test[:32]', False
  results = evaluate.evaluate_run(config, tmp_path / 'run')
  assert (results['num_examples'], results['step']) == (32, 0)
  assert 0 <= results['centre']['top1_error'] <= 100


@pytest.mark.slow
def test_main_evaluates_an_imported_network(mean_path, data_dir, tmp_path):
  (tmp_path / 'a.caffemodel').write_bytes(caffemodel(caffe_tensors(), order=caffe_order('bvlc_alexnet')))
  arguments = ['import', str(tmp_path / 'a.caffemodel'), str(tmp_path / 'run'), f'--mean={mean_path}']
  assert cli.main(['weights', *arguments]) == 0
  flags = ['--mode=eval', f'--workdir={tmp_path / "run"}', f'--config.data.dir={data_dir}']
  command = [sys.executable, 'main.py', '--config=configs/alexnet.py', *flags]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert process.returncode == 0, process.stderr
  assert 'digits/1.0.0, split test, 360 images, step 0' in process.stdout


def test_options_that_do_not_fit_are_rejected(torchvision_network, run, unused, tmp_path, mean_path, capsys):
  path = tmp_path / 'a.pth'
  torch.save(torchvision_network.state_dict(), path)
  (tmp_path / 'classes.txt').write_text('cat\ndog\n')
  message = error_of(capsys, 'import', path, unused, f'--classes={tmp_path / "classes.txt"}')
  assert 'names 2 classes, but' in message
  assert 'has 10;' in message
  assert 'contains its own mean image' in error_of(capsys, 'import', path, unused, f'--mean={mean_path}')
  assert 'omit it for' in error_of(capsys, 'import', path, unused, '--net=bvlc_alexnet')
  assert 'already contains a run; choose another folder' in error_of(capsys, 'import', path, run)
  assert 'does not exist' in error_of(capsys, 'import', tmp_path / 'b.pth', unused)
  message = error_of(capsys, 'import', tmp_path / 'classes.txt', unused)
  assert "Unknown file type '.txt'" in message
  assert 'supported types are .safetensors, .onnx, .caffemodel, .pth and .pt.' in message
  message = error_of(capsys, 'export', run, tmp_path / 'a.h5')
  assert "Unknown file type '.h5'" in message
  assert 'supported types are .safetensors and .onnx.' in message
  assert 'contains no run' in error_of(capsys, 'export', tmp_path / 'nowhere', tmp_path / 'a.onnx')
  assert not (tmp_path / 'a.onnx').exists()
  assert cli.main(['weights', 'export', str(run), str(tmp_path / 'none' / 'a.onnx')]) == 1
  assert 'a.onnx cannot be written' in capsys.readouterr().err
