"""Writing and reading the TensorBoard curves of a run."""

import subprocess
import sys

from alexnet_jax.runs import curves

ROUND_TRIP = """
import pathlib, sys
from alexnet_jax.runs import curves
folder = pathlib.Path(sys.argv[1])
for start in (0, 2):  # the second writer is that of a resumed run
  writer = curves.open_writer(folder)
  for step in range(start, start + 3):
    writer.add_scalar('train/loss', start + step / 10, step)
  writer.close()
print({tag: (steps.tolist(), values.round(5).tolist()) for tag, (steps, values) in curves.read_curves(folder).items()})
print('tensorflow' in sys.modules)
"""


def test_curves_of_a_resumed_run_are_read_without_tensorflow(tmp_path):
  """Its import takes longer than the first step of a run."""
  command = [sys.executable, '-c', ROUND_TRIP, str(tmp_path)]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert result.stdout.splitlines() == ["{'train/loss': ([0, 1, 2, 3, 4], [0.0, 0.1, 2.2, 2.3, 2.4])}", 'False']


def test_a_run_without_curves_has_none(tmp_path):
  assert curves.read_curves(tmp_path) == {}
