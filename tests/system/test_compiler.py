"""A test with the compiler flags of users. The other tests compile with reduced optimisation."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_compiled_reductions_agree_with_numpy():
  environment = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_'))}
  environment['PYTHONPATH'] = str(ROOT)
  subprocess.run([sys.executable, '-m', 'tests.reductions'], cwd=ROOT, env=environment, check=True, timeout=300)
