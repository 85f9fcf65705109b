"""Tests with the compiler flags of users. The other tests compile with reduced optimisation."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run_program(name, num_devices):
  """Runs a program of this folder's parent without the compiler flags of the tests."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_'))}
  environment |= {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': str(num_devices)}
  result = subprocess.run(
    [sys.executable, '-m', f'tests.{name}'], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert result.returncode == 0, result.stdout + result.stderr


def test_compiled_reductions_agree_with_numpy():
  run_program('reductions', num_devices=1)


def test_a_step_and_an_evaluation_at_full_size_agree_with_pytorch():
  """On one device and on two, with the fast kernels and with the definitions of the layers."""
  pytest.importorskip('torch', reason='PyTorch is the reference')
  run_program('full_size', num_devices=2)
