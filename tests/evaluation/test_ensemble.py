import json
import shutil

import numpy as np
import pytest

from alexnet_jax.evaluation import ensemble, metrics
from alexnet_jax.runs import saved_predictions
from alexnet_jax.runs.saved_predictions import PredictionFiles, SavedPredictions
from alexnet_jax.runtime.errors import UsageError
from alexnet_jax.training import loop


def make_members(num_members, num_images=400, num_classes=20, seed=0):
  """Makes predictions of networks of increasing accuracy for the same images."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes, num_images).astype(np.int32)
  truth = np.eye(num_classes)[labels]
  members = []
  for quality in np.linspace(0.3, 2.5, num_members):
    logits = rng.normal(size=(num_images, num_classes)) + quality * truth
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    members.append(SavedPredictions(log_probs.astype(np.float32), labels, 1))
  return members


def errors(members, weights):
  counter = metrics.ErrorCounter([str(i) for i in range(20)])
  for block in ensemble.average(members, weights):
    counter.add(*block)
  return counter.result()


def test_average_is_the_weighted_mean_of_the_probabilities(monkeypatch):
  monkeypatch.setattr(saved_predictions, 'BLOCK_BYTES', 4 * 20 * 33)  # blocks of 33 images
  members, weights = make_members(3), [0.5, 0.2, 0.3]
  log_probs = np.concatenate([log_probs for log_probs, _ in ensemble.average(members, [5, 2, 3])])
  expected = sum(w * np.exp(m.log_probs.astype(np.float64)) for w, m in zip(weights, members, strict=True))
  np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-6)
  labels = np.concatenate([labels for _, labels in ensemble.average(members, weights)])
  assert labels.tolist() == members[0].labels.tolist()


@pytest.mark.parametrize('seed', range(4))
def test_searched_weights_are_never_worse_than_the_mean(seed, monkeypatch):
  monkeypatch.setattr(saved_predictions, 'BLOCK_BYTES', 4 * 20 * 150)
  members = make_members(4, seed=seed)
  weights = ensemble.search_weights(members)
  assert sum(weights) == pytest.approx(1)
  assert all(weight >= 0 for weight in weights)
  searched, mean = errors(members, weights), errors(members, [1] * 4)
  assert searched['top5_error'] <= mean['top5_error'] + 1e-9
  assert weights[0] < weights[3]  # the worst member counts less than the best


def test_no_other_weight_on_the_grid_has_a_lower_error():
  """Searches the first coordinate once more over the whole grid."""
  members = make_members(2, seed=3)
  weights = np.array(ensemble.search_weights(members))
  best = errors(members, weights)['top5_error']
  for value in np.arange(21) / 20:
    assert errors(members, [value, weights[1] / max(weights)])['top5_error'] >= best - 1e-9 or value + weights[1] == 0


def test_among_weights_with_equal_errors_the_current_ones_remain():
  (member,) = make_members(1)
  assert ensemble.search_weights([member, member]) == [0.5, 0.5]


def test_top1_accuracy_decides_between_weights_with_equal_top5_accuracy():
  members = make_members(3, num_classes=5, seed=1)  # the top-5 accuracy is 100 % with all weights
  searched, mean = errors(members, ensemble.search_weights(members)), errors(members, [1] * 3)
  assert searched['top5_error'] == mean['top5_error'] == 0
  assert searched['top1_error'] < mean['top1_error']


def test_the_search_repeats_its_passes_over_the_members(monkeypatch):
  members = make_members(5, seed=2)

  def searched_errors():
    result = errors(members, ensemble.search_weights(members))
    return result['top5_error'], result['top1_error']

  by_default = searched_errors()
  monkeypatch.setattr(ensemble, 'NUM_PASSES', 1)
  assert by_default < searched_errors()
  monkeypatch.setattr(ensemble, 'NUM_PASSES', 20)
  assert by_default == searched_errors()  # the search has converged


def test_an_ensemble_of_runs_is_evaluated_with_its_members(config, tmp_path, capsys, monkeypatch):
  config.eval.ten_view, config.num_steps, config.data.test_split = False, 2, 'test[:90]'
  folders = [tmp_path / 'a', tmp_path / 'b']
  for seed, folder in enumerate(folders):
    config.seed = seed
    loop.train_and_evaluate(config, folder)
  config.eval.ensemble = 'search'
  num_searched = []
  search_weights = ensemble.search_weights
  monkeypatch.setattr(
    ensemble,
    'search_weights',
    lambda members: (num_searched.append(len(members[0].labels)), search_weights(members))[1],
  )
  results = ensemble.evaluate_ensemble(config, folders)
  assert num_searched == [144]  # the images of the validation split, and not those of the test split
  assert json.loads((tmp_path / 'a+b' / 'results.json').read_text()) == results
  assert results['num_examples'] == 90
  for folder, row in zip(folders, results['members'], strict=True):
    assert row['centre'] == json.loads((folder / 'results.json').read_text())['centre']
  members = [PredictionFiles(folder, 'digits/1.0.0', 'test[:90]', 'centre').load() for folder in folders]
  probs = sum(w * np.exp(member.log_probs) for w, member in zip(results['weights']['centre'], members, strict=True))
  wrong = probs.argmax(1) != members[0].labels
  assert results['centre']['top1_error'] == pytest.approx(100 * wrong.mean(), abs=0.3)  # except for ties
  shutil.rmtree(folders[1] / 'checkpoints')  # its predictions suffice
  capsys.readouterr()
  config.eval.ensemble = 'mean'
  mean = ensemble.evaluate_ensemble(config, folders)
  assert mean['weights']['centre'] == [0.5, 0.5]
  assert 'using the predictions saved in' in capsys.readouterr().out


def test_ensembles_with_long_names_have_different_folders(tmp_path):
  names = [
    ensemble.folder_name([tmp_path / f'runs/network_{member}_é' for member in range(first, first + 20)])
    for first in (0, 10, 20)
  ]
  names.append(ensemble.folder_name([tmp_path / f'runs/network_{member}_é' for member in (*range(19), 30)]))
  assert len(set(names)) == 4
  for name in names:
    (tmp_path / name).mkdir()
  assert names[0].startswith('network_0_é+network_1_é+network_2_é')
  assert ensemble.folder_name([tmp_path / 'a', tmp_path / 'b']) == 'a+b'


def test_members_must_have_the_same_classes(config, tmp_path):
  for name, classes in (('a', 'cat\ndog\n'), ('b', 'cat\nship\n')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'classes.txt').write_text(classes)
  with pytest.raises(UsageError, match='nowhere contains no run'):
    ensemble.evaluate_ensemble(config, [tmp_path / 'a', tmp_path / 'nowhere'])
  with pytest.raises(UsageError, match=r'b and .*a have different classes; choose runs on the same data'):
    ensemble.evaluate_ensemble(config, [tmp_path / 'a', tmp_path / 'b'])


def test_an_unknown_way_to_average_is_a_usage_error(config, tmp_path):
  config.eval.ensemble = 'median'
  with pytest.raises(UsageError, match=r"eval\.ensemble='median' is unknown"):
    ensemble.evaluate_ensemble(config, [tmp_path, tmp_path])
