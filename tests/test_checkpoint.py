import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import model, step
from alexnet_jax.checkpoint import Checkpoints
from configs import alexnet
from tests.conftest import mesh

HYPER = step.Hyperparameters(0.9, 0.0005, bias_decay=True)
RUN = {'schedule': {'drops': 2, 'best_error': 12.345678901234567, 'evaluations_since_best': 1}}


def initial_state(seed):
  config = alexnet.paper().model
  config.image_size, config.width = 64, 1 / 16
  network = model.build(config, 10)

  state = step.init_state(jax.random.key(seed), network=network, hyper=HYPER)
  return state, step.abstract_state(network, HYPER)


@pytest.mark.parametrize(
  ('saved_on', 'restored_on'), [((1, 1), (1, 1)), ((1, 2), (1, 1)), ((1, 1), (2, 2)), ((4, 1), (1, 2))]
)
def test_a_checkpoint_comes_back_bit_by_bit_on_any_mesh(tmp_path, saved_on, restored_on):
  with jax.set_mesh(mesh(*saved_on)):
    state, _ = initial_state(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state, RUN)
    checkpoints.close()
    expected = jax.tree.map(np.asarray, state)
  target_mesh = mesh(*restored_on)
  with jax.set_mesh(target_mesh):
    _, shapes = initial_state(0)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_step() == 5
    restored, run = checkpoints.restore(shapes, target_mesh)
  assert run == RUN
  for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  kernel = restored.params['conv1']['kernel']
  assert kernel.sharding.shard_shape(kernel.shape)[0] == 2 // restored_on[1]


def test_the_newest_are_kept_and_nothing_is_saved_twice(tmp_path, one_device):
  state, _ = initial_state(0)
  checkpoints = Checkpoints(tmp_path, num_kept=2)
  for number in (1, 2, 2, 3):
    checkpoints.save(number, state, RUN)
  checkpoints.close()
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']


def test_what_a_save_holds_is_the_state_at_that_moment(tmp_path, one_device):
  """The state's buffers are donated to the next step while the save goes on."""
  state, shapes = initial_state(0)
  expected = np.asarray(state.params['fc6']['kernel'])
  change = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, RUN)
  state = change(state)
  jnp.sum(state.params['fc6']['kernel']).block_until_ready()
  checkpoints.close()
  restored, _ = Checkpoints(tmp_path).restore(shapes, one_device)
  np.testing.assert_array_equal(restored.params['fc6']['kernel'], expected)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert Checkpoints(tmp_path).newest_step() is None
