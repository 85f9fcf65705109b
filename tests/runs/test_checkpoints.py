import contextlib
import json
import pathlib
import resource
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.registry import build
from alexnet_jax.runs import checkpoints
from alexnet_jax.runs.checkpoints import Checkpoints
from alexnet_jax.runtime.errors import RunError
from alexnet_jax.training import optimizer, step
from configs import alexnet
from tests.conftest import mesh

RULE = optimizer.make_optimizer(alexnet.paper().optimizer, last_step=100)
RUN = {'evaluated': 3, 'error': 12.345678901234567}


def initial_state(seed):
  config = alexnet.paper().model
  config.image_size, config.width = 64, 1 / 16
  network = build(config, 10)
  state = step.init_state(jax.random.key(seed), network=network, optimizer=RULE)
  return state, step.abstract_state(network, RULE)


@pytest.mark.parametrize(
  ('saved_on', 'restored_on'), [((1, 1), (1, 1)), ((1, 2), (1, 1)), ((1, 1), (2, 2)), ((4, 1), (1, 2))]
)
def test_a_checkpoint_is_restored_exactly_on_any_mesh(tmp_path, saved_on, restored_on):
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
    restored, run = checkpoints.restore(lambda _: shapes, target_mesh)
  assert run == RUN
  for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(x, y)
  kernel = restored.params['conv1']['kernel']
  assert kernel.sharding.shard_shape(kernel.shape)[0] == 2 // restored_on[1]


def test_the_newest_checkpoints_are_kept_and_no_step_is_saved_twice(tmp_path, one_device):
  state, _ = initial_state(0)
  checkpoints = Checkpoints(tmp_path, num_newest=2)
  for num_steps in (1, 2, 2, 3):
    checkpoints.save(num_steps, state, RUN)
  checkpoints.close()
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']


def test_a_checkpoint_contains_the_state_at_the_time_of_the_call(tmp_path, one_device):
  """The buffers of the state are donated to the next step while the checkpoint is being written."""
  state, shapes = initial_state(0)
  expected = np.asarray(state.params['fc6']['kernel'])
  change = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, RUN)
  state = change(state)
  jnp.sum(state.params['fc6']['kernel']).block_until_ready()
  checkpoints.close()
  restored, _ = Checkpoints(tmp_path).restore(lambda _: shapes, one_device)
  np.testing.assert_array_equal(restored.params['fc6']['kernel'], expected)


def test_checkpoints_leave_no_objects_in_memory(tmp_path, one_device):
  """Orbax 0.12.8 leaves 400 objects with each checkpoint, and reference cycles that are collected now and then."""
  state, _ = initial_state(0)
  checkpoints = Checkpoints(tmp_path)
  num_objects = []
  for num_steps in range(1, 32):
    checkpoints.save(num_steps, state, RUN)  # waits for the previous one
    if num_steps % 10 == 1:
      num_objects.append(sys.getallocatedblocks())
  checkpoints.close()
  assert num_objects[-1] - num_objects[1] < 3000  # by 20 checkpoints


def test_the_best_checkpoint_is_kept_in_addition_to_the_newest(tmp_path, one_device):
  state, _ = initial_state(0)
  for num_steps, error in ((1, 50.0), (2, 20.0), (3, None), (4, 30.0), (5, 30.0), (6, 25.0)):
    checkpoints = Checkpoints(tmp_path, num_newest=2)  # a resumed run, which must know earlier errors
    checkpoints.save(num_steps, state, RUN, error and {'top1_error': error, 'confused': []})
    checkpoints.close()
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '5', '6']


def largest(folder, name):
  return max(folder.rglob(name), key=lambda path: path.stat().st_size)


def truncate(folder, name):
  path = largest(folder, name)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder, name):
  largest(folder, name).write_bytes(b'')


def remove(folder, name):
  largest(folder, name).unlink()


def flip_a_bit(folder, name):
  path = largest(folder, name)
  content = bytearray(path.read_bytes())
  # The first character of JSON, since a change of a letter that no reader needs would not damage the checkpoint.
  content[0 if content.startswith(b'{') else len(content) // 2] ^= 4
  path.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, empty, remove, flip_a_bit])
@pytest.mark.parametrize('name', ['state/**/d/*', 'state/manifest.ocdbt', 'state/_METADATA', 'run/metadata'])
def test_a_damaged_checkpoint_is_reported_and_replaced_by_the_previous_one(
  tmp_path, one_device, capsys, damage, name, undamaged
):
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  damage(tmp_path / 'checkpoints' / '2', name)
  _, shapes = initial_state(0)
  checkpoints = Checkpoints(tmp_path)
  state, run = checkpoints.restore(lambda _: shapes, one_device)
  assert int(state.params['fc8']['bias'].sum()) == 10
  assert run == RUN
  assert 'The checkpoint of step 2 in ' in capsys.readouterr().out
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2.broken']
  checkpoints.save(2, state, RUN)  # possible again
  checkpoints.close()
  assert Checkpoints(tmp_path).newest_step() == 2
  damage(tmp_path / 'checkpoints' / '2', name)
  Checkpoints(tmp_path).restore(lambda _: shapes, one_device)
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2.broken', '2.broken-2']


def test_a_checkpoint_that_another_process_cannot_read_is_not_restored(tmp_path, one_device, monkeypatch, undamaged):
  """Otherwise, the processes would resume from different checkpoints."""
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  of_process_1 = iter([True, False])  # whether it fails, for each checkpoint
  multihost_utils = types.SimpleNamespace(
    process_allgather=lambda failed: np.array([failed, next(of_process_1)]), sync_global_devices=lambda name: None
  )
  monkeypatch.setattr(checkpoints, 'multihost_utils', multihost_utils)
  _, shapes = initial_state(0)
  state, _ = Checkpoints(tmp_path).restore(lambda _: shapes, one_device)
  assert int(state.params['fc8']['bias'].sum()) == 10
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2.broken']


def test_a_process_that_alone_cannot_read_arrays_ends(tmp_path, one_device, monkeypatch, undamaged):
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  truncate(tmp_path / 'checkpoints' / '2', 'state/**/d/*')
  monkeypatch.setattr(checkpoints.distributed, 'is_single_process', lambda: False)
  _, shapes = initial_state(0)
  message = r'process 0 cannot read .*/checkpoints/2 \(.*\); start again, or rename this folder to 2\.broken'
  with pytest.raises(RunError, match=message):
    Checkpoints(tmp_path).restore(lambda _: shapes, one_device)
  with pytest.raises(RunError, match=message):
    checkpoints.load_newest_params(tmp_path, lambda _: shapes.params, one_device)
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']


@pytest.fixture(scope='module')
def undamaged(tmp_path_factory):
  """A folder with checkpoints of steps 1 and 2, whose biases of fc8 are 1 and 2."""
  folder = tmp_path_factory.mktemp('undamaged')
  single = mesh(1, 1)
  with jax.set_mesh(single):
    state, _ = initial_state(0)
    checkpoints = Checkpoints(folder)
    for num_steps in (1, 2):
      fill = jax.jit(lambda x, value=num_steps: jnp.full_like(x, value))
      state.params['fc8']['bias'] = fill(state.params['fc8']['bias'])
      checkpoints.save(num_steps, state, RUN)
    checkpoints.close()
  return folder


def test_if_all_checkpoints_are_damaged_no_file_is_changed(tmp_path, one_device, undamaged):
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  for num_steps in ('1', '2'):
    truncate(tmp_path / 'checkpoints' / num_steps, 'state/**/d/*')
  before = {path: path.stat().st_size for path in tmp_path.rglob('*')}
  _, shapes = initial_state(0)
  with pytest.raises(RunError, match=r'none of the 2 checkpoint\(s\) in .* can be read, and none was deleted'):
    Checkpoints(tmp_path).restore(lambda _: shapes, one_device)
  assert {path: path.stat().st_size for path in tmp_path.rglob('*')} == before


def test_parameters_are_loaded_from_the_newest_undamaged_checkpoint(tmp_path, one_device, undamaged, capsys):
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  flip_a_bit(tmp_path / 'checkpoints' / '2', 'state/**/d/*')
  _, shapes = initial_state(0)
  num_steps, params = checkpoints.load_newest_params(tmp_path, lambda _: shapes.params, one_device)
  assert (num_steps, float(params['fc8']['bias'].sum())) == (1, 10)
  assert 'The checkpoint of step 2' in capsys.readouterr().out


def test_a_folder_may_be_named_relative_to_the_parent_of_the_current_one(tmp_path, one_device, monkeypatch, undamaged):
  """The storage library of Orbax rejects paths with '..'."""
  shutil.copytree(undamaged, tmp_path / 'run')
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  folder = pathlib.Path('../run')
  state, shapes = initial_state(0)
  with contextlib.closing(Checkpoints(folder)) as run_checkpoints:
    restored, _ = run_checkpoints.restore(lambda _: shapes, one_device)
    assert float(restored.params['fc8']['bias'].sum()) == 20
    run_checkpoints.save(3, state, RUN)
  num_steps, _ = checkpoints.load_newest_params(folder, lambda _: shapes.params, one_device)
  assert num_steps == 3


def test_a_fingerprint_depends_on_every_bit_and_not_on_the_mesh():
  x = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
  fingerprints = checkpoints.fingerprints({'x': x})
  with jax.set_mesh(mesh(2, 2)):
    assert checkpoints.fingerprints({'x': jax.device_put(x, jax.P('tower'))}) == fingerprints
  bits = x.view(np.uint32).astype(np.uint64).reshape(-1)
  assert fingerprints == {'x': int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1) % 2**32).sum() % 2**32)}
  for index in (0, 33, 69):
    for bit in (0, 12, 31):
      changed = x.copy()
      changed.view(np.uint32).reshape(-1)[index] ^= np.uint32(1 << bit)
      assert checkpoints.fingerprints({'x': changed}) != fingerprints


@pytest.mark.parametrize('max_bytes', [0, 100_000])
def test_a_full_disk_is_reported_and_older_checkpoints_are_retained(tmp_path, one_device, undamaged, max_bytes):
  """A limit on the size of files has the same effect as a full disk."""
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  state, shapes = initial_state(0)
  checkpoints = Checkpoints(tmp_path)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, limits[1]))
    with (
      pytest.raises(RunError, match=r'cannot be written to .*; the newest complete checkpoint is of step 2\. Free'),
      contextlib.closing(checkpoints),
    ):
      checkpoints.save(3, state, RUN)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.newest_step() == 2
  restored, _ = checkpoints.restore(lambda _: shapes, one_device)
  assert int(restored.params['fc8']['bias'].sum()) == 20


def test_the_number_of_damaged_arrays_is_reported(tmp_path, one_device, undamaged, capsys):
  shutil.copytree(undamaged, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'checkpoints' / '2' / 'run' / 'metadata'
  run = json.loads(path.read_text())
  first, second, *_ = run['fingerprints']
  run['fingerprints'] |= {first: -1, second: -1}
  path.write_text(json.dumps(run))
  _, shapes = initial_state(0)
  Checkpoints(tmp_path).restore(lambda _: shapes, one_device)
  assert f'{first} does not match its fingerprint, nor do 1 more' in capsys.readouterr().out


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert Checkpoints(tmp_path).newest_step() is None
