import contextlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.runs import checkpoints
from alexnet_jax.training import step
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.models.registry import build
from configs import alexnet
from tests.conftest import mesh

HYPER = step.Hyperparameters(0.9, 0.0005, bias_decay=True)
RUN = {'schedule': {'drops': 2, 'best_error': 12.345678901234567, 'evaluations_since_best': 1}}


def initial_state(seed):
  config = alexnet.paper().model
  config.image_size, config.width = 64, 1 / 16
  network = build(config, 10)

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


def test_the_best_is_kept_beside_the_newest(tmp_path, one_device):
  state, _ = initial_state(0)
  for number, error in ((1, 50.0), (2, 20.0), (3, None), (4, 30.0), (5, 30.0), (6, 25.0)):
    checkpoints = Checkpoints(tmp_path, num_kept=2)  # each in a run of its own, which must know the errors of before
    checkpoints.save(number, state, RUN, error and {'top1_error': error, 'confused': []})
    checkpoints.close()
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '5', '6']


def truncate(folder, name):
  path = max(folder.rglob(name), key=lambda path: path.stat().st_size)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder, name):
  max(folder.rglob(name), key=lambda path: path.stat().st_size).write_bytes(b'')


def remove(folder, name):
  max(folder.rglob(name), key=lambda path: path.stat().st_size).unlink()


def flip(folder, name):
  path = max(folder.rglob(name), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  # Of JSON the first character: a letter within may be one that nobody reads, and then the checkpoint is whole.
  content[0 if content.startswith(b'{') else len(content) // 2] ^= 4
  path.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, empty, remove, flip])
@pytest.mark.parametrize('name', ['state/**/d/*', 'state/manifest.ocdbt', 'state/_METADATA', 'run/metadata'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, one_device, capsys, damage, name, whole):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  damage(tmp_path / 'checkpoints' / '2', name)
  _, shapes = initial_state(0)
  checkpoints = Checkpoints(tmp_path)
  state, run = checkpoints.restore(shapes, one_device)
  assert int(state.params['fc8']['bias'].sum()) == 10
  assert run == RUN
  assert 'the checkpoint of step 2 in ' in capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2.broken']
  checkpoints.save(2, state, RUN)  # there is place for it again
  checkpoints.close()
  assert Checkpoints(tmp_path).newest_step() == 2


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Checkpoints of the steps 1 and 2."""
  folder = tmp_path_factory.mktemp('whole')
  single = mesh(1, 1)
  with jax.set_mesh(single):
    state, _ = initial_state(0)
    checkpoints = Checkpoints(folder)
    for number in (1, 2):
      state.params['fc8']['bias'] = jax.jit(lambda x, number=number: jnp.full_like(x, number))(
        state.params['fc8']['bias']
      )
      checkpoints.save(number, state, RUN)
    checkpoints.close()
  return folder


def test_if_all_are_damaged_nothing_is_touched(tmp_path, one_device, whole):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  for number in ('1', '2'):
    truncate(tmp_path / 'checkpoints' / number, 'state/**/d/*')
  before = {path: path.stat().st_size for path in tmp_path.rglob('*')}
  _, shapes = initial_state(0)
  with pytest.raises(RunError, match=r'none of the 2 checkpoint\(s\) in .* can be read, and nothing was deleted'):
    Checkpoints(tmp_path).restore(shapes, one_device)
  assert {path: path.stat().st_size for path in tmp_path.rglob('*')} == before


def test_parameters_alone_are_those_of_the_newest_that_is_whole(tmp_path, one_device, whole, capsys):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  flip(tmp_path / 'checkpoints' / '2', 'state/**/d/*')
  _, shapes = initial_state(0)
  step_found, params = checkpoints.load_newest_params(tmp_path, lambda there: shapes.params, one_device)
  assert (step_found, float(params['fc8']['bias'].sum())) == (1, 10)
  assert 'the checkpoint of step 2' in capsys.readouterr().out


def test_a_fingerprint_sees_every_bit_and_no_mesh():
  x = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
  single = checkpoints.fingerprints({'x': x})
  with jax.set_mesh(mesh(2, 2)):
    assert checkpoints.fingerprints({'x': jax.device_put(x, jax.P('tower'))}) == single
  bits = x.view(np.uint32).astype(np.uint64).reshape(-1)
  assert single == {'x': int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1) % 2**32).sum() % 2**32)}
  for place in (0, 33, 69):
    for bit in (0, 12, 31):
      other = x.copy()
      other.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
      assert checkpoints.fingerprints({'x': other}) != single


@pytest.mark.parametrize('allowed', [0, 100_000])
def test_a_full_disk_is_said_and_older_checkpoints_stay(tmp_path, one_device, whole, allowed):
  """Files may not grow beyond some size, which to the writer is the same as a full disk."""
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  state, shapes = initial_state(0)
  checkpoints = Checkpoints(tmp_path)
  kept = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, kept[1]))
    with (
      pytest.raises(RunError, match=r'cannot be written to .*; the newest whole one is that of step 2\. Make room'),
      contextlib.closing(checkpoints),
    ):
      checkpoints.save(3, state, RUN)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)
  again = Checkpoints(tmp_path)
  assert again.newest_step() == 2
  restored, _ = again.restore(shapes, one_device)
  assert int(restored.params['fc8']['bias'].sum()) == 20


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert Checkpoints(tmp_path).newest_step() is None
