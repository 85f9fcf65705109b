"""Runs `ensemble` with trainings of a few steps: `python -m tests.system.short_experiment OUTPUT DATA_DIR`."""

import pathlib
import sys

from alexnet_jax.reproduction import experiments, runner
from alexnet_jax.reproduction.experiments import EXPERIMENTS
from alexnet_jax.reproduction.runner import Folders

FIELDS = {
  'data.name': 'digits',
  'data.train_split': 'train[:160]',
  'data.validation_split': 'train[160:192]',
  'data.test_split': 'test[:64]',
  'batch_size': 16,
  'eval.batch_size': 32,
  'num_steps': 2,
  'log_every': 1,
  'model.width': 1 / 16,
  'mesh.data': 1,
  'mesh.tower': 1,
}


def folders_in(folder: pathlib.Path, data_dir: str, **fields) -> Folders:
  """Returns the folders of a reproduction whose trainings take two steps, or as many as `num_steps`."""
  return Folders(folder / 'results', folder / 'RESULTS.md', folder / 'runs', data_dir, FIELDS | fields)


if __name__ == '__main__':
  runner.is_long_enough = lambda record, num_epochs: True
  output, data_dir = sys.argv[1:]
  folders = folders_in(pathlib.Path(output), data_dir, num_steps=12, checkpoint_every=3)
  experiments.NUM_AVERAGED = 2
  runner.run_experiment(EXPERIMENTS['ensemble'], folders, num_seeds=1)
