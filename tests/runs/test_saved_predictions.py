"""Tests of predictions that are saved in the folder of a run."""

import subprocess
import sys

import numpy as np
import pytest

from alexnet_jax.runs.saved_predictions import PredictionFiles

# Saves predictions of 2 MB to a disk of 1 MB.
PROGRAM = """
import pathlib, sys
import numpy as np
from alexnet_jax.runs.saved_predictions import PredictionFiles
from alexnet_jax.runtime.errors import RunError

files = PredictionFiles(pathlib.Path(sys.argv[1]), 'digits/1.0.0', 'test', 'centre')
blocks = ((np.zeros((100, 1000), np.float32), np.zeros(100, np.int32)) for _ in range(5))
try:
  files.save(blocks, num_steps=1, shape=(500, 1000))
except RunError as error:
  print(error)
print(sorted(path.name for path in files.folder.parent.iterdir()))
"""


def test_predictions_are_those_that_were_saved(tmp_path):
  files = PredictionFiles(tmp_path, 'digits/1.0.0', 'test', 'centre')
  log_probs, labels = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), np.arange(7, dtype=np.int32) % 3
  files.save(((log_probs[rows], labels[rows]) for rows in (slice(4), slice(4, 7))), num_steps=5, shape=(7, 3))
  loaded = files.load()
  np.testing.assert_array_equal(loaded.log_probs, log_probs)
  np.testing.assert_array_equal(loaded.labels, labels)
  assert loaded.num_steps == 5


def test_a_full_disk_is_an_error_and_leaves_no_partial_predictions(tmp_path):
  mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path}'
  in_namespace = ['unshare', '--map-root-user', '--mount', 'sh', '-c']
  try:
    subprocess.run([*in_namespace, mount], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('this system does not allow a user to mount a small disk')
  command = [*in_namespace, f'{mount} && exec "$@"', 'sh', sys.executable, '-c', PROGRAM, str(tmp_path)]
  result = subprocess.run(command, capture_output=True, text=True, env={'PYTHONPATH': ':'.join(sys.path)})
  assert result.returncode == 0, result.stderr
  message, left = result.stdout.splitlines()
  assert message.startswith('predictions cannot be written to')
  assert 'No space left on device' in message
  assert left == '[]'
