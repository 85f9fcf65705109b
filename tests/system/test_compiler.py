"""The tests compile with reduced optimisation; here a program is compiled with the flags that users have."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_compiled_reductions_are_those_of_numpy():
  environment = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_'))}
  environment['PYTHONPATH'] = str(ROOT)
  subprocess.run([sys.executable, '-m', 'tests.reductions'], cwd=ROOT, env=environment, check=True, timeout=300)
