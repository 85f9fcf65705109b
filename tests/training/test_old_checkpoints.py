import contextlib
import shutil

import jax
import numpy as np
import optax
import pytest

from alexnet_jax.models.registry import build
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.training import loop, optimizer, step
from tests.conftest import mesh, small_config, velocities


def restore(config, folder):
  """Returns the state of the newest checkpoint and its JSON object."""
  current = mesh(1, 1)
  with jax.set_mesh(current):
    rule = optimizer.make_optimizer(config.optimizer, config.num_steps)
    abstract_state = step.abstract_state(build(config.model, 10), rule)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
      return checkpoints.restore(lambda _: abstract_state, current)


def save_in_old_layout(config, folder):
  """Replaces the checkpoints of a run by its newest one, in the layout of the first versions of this project."""
  state, saved = restore(config, folder)
  plateau = state.opt_state.inner_states['kernel'].inner_state.hyperparams_states['learning_rate']
  schedule = {}
  if config.optimizer.schedule == 'plateau':
    counts = int(plateau.num_decays), int(plateau.evaluations_since_best)
    schedule = {'drops': counts[0], 'best_error': float(plateau.best_error), 'evaluations_since_best': counts[1]}
  trace = optax.TraceState({name: velocities(state.opt_state)[name] for name in state.params})
  state = state._replace(opt_state=(optax.EmptyState(), optax.EmptyState(), trace))
  shutil.rmtree(folder / 'checkpoints')
  with jax.set_mesh(mesh(1, 1)), contextlib.closing(Checkpoints(folder)) as checkpoints:
    checkpoints.save(int(state.step), state, {'schedule': schedule, 'evaluated': saved['evaluated']})


@pytest.mark.slow
@pytest.mark.parametrize('variants', ['', 'as_run'])
def test_a_run_resumes_from_an_old_checkpoint_with_the_same_bits(variants, data_dir, tmp_path):
  config = small_config(data_dir, variants)
  config.optimizer.rate, config.optimizer.plateau_patience = 1e-7, 1  # the first evaluations are a plateau
  config.eval_every, config.num_steps, config.eval.ten_view, config.data.test_split = 2, 5, False, 'test[:32]'
  loop.train_and_evaluate(config, tmp_path / 'new')
  shutil.copytree(tmp_path / 'new', tmp_path / 'old')
  save_in_old_layout(config, tmp_path / 'old')
  config.num_steps = 8
  for folder in ('new', 'old'):
    loop.train_and_evaluate(config, tmp_path / folder)
  (state, saved), (expected, expected_saved) = (restore(config, tmp_path / folder) for folder in ('old', 'new'))
  assert saved == expected_saved
  for (path, x), y in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
