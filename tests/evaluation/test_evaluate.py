import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import sources, transforms
from alexnet_jax.evaluation import ensemble, evaluate, metrics
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.models import towers
from alexnet_jax.models.registry import build
from alexnet_jax.runs import saved_predictions
from alexnet_jax.runtime.errors import UsageError
from tests.conftest import mesh


@pytest.fixture
def test_source(config):
  return sources.open_splits(config.data, 96, ['test'])[0]


def untrained(config, shape=(1, 1)):
  config.model.init_std = dict.fromkeys(config.model.init_std, 0.05)
  current = mesh(*shape)
  with jax.set_mesh(current):
    network = build(config.model, 10)
    params = jax.jit(network.init)(jax.random.key(0))
  return TrainedModel(network, params, jnp.asarray(MEAN), list('0123456789'), 0, config.model, current)


MEAN = np.full((96, 96, 3), 80, np.float32)


def run(config, source, shape, crop_set, batch_size=32):
  config.eval.batch_size = batch_size
  return evaluate.evaluate(untrained(config, shape), source, config, crop_set)


def recompute(trained, source):
  """Probabilities [image, class] of ten views, and labels, without anything of the module."""
  images = np.stack([source[i]['image'] for i in range(len(source))])
  labels = np.array([int(source[i]['label']) for i in range(len(source))])
  apply = jax.jit(trained.network.apply)
  probabilities = np.zeros((len(source), 10))
  with jax.set_mesh(trained.mesh):
    for top, left in [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]:
      crops = (images - MEAN)[:, top : top + 64, left : left + 64]
      for x in (crops, crops[:, :, ::-1]):
        probabilities += np.asarray(jax.nn.softmax(apply(trained.params, towers.put_batch(trained.mesh, x)))) / 10
  return probabilities, labels


def test_errors_are_those_of_a_plain_recomputation(config, test_source):
  trained = untrained(config)
  probabilities, labels = recompute(trained, test_source)
  ranks = np.argsort(-probabilities, axis=1)
  found = evaluate.evaluate(trained, test_source, config, 'ten_view')
  assert found['top1_error'] == pytest.approx(100 * np.mean(ranks[:, 0] != labels), abs=1e-3)
  assert found['top5_error'] == pytest.approx(100 * np.mean(~(ranks[:, :5] == labels[:, None]).any(1)), abs=1e-3)
  assert found['log_prob'] == pytest.approx(np.log(probabilities[np.arange(360), labels]).mean(), rel=1e-4)


@pytest.mark.parametrize(('shape', 'batch_size'), [((1, 1), 7), ((1, 1), 500), ((2, 2), 100), ((4, 1), 32)])
def test_batch_size_and_mesh_change_nothing(config, test_source, shape, batch_size):
  plain = run(config, test_source, (1, 1), 'centre')
  other = run(config, test_source, shape, 'centre', batch_size)
  for name in ('top1_error', 'top5_error', 'log_prob'):
    assert other[name] == pytest.approx(plain[name], rel=1e-4)


def test_predictions_are_kept_in_order_and_read_until_the_network_is_another(config, test_source, tmp_path):
  config.eval.save_predictions, config.eval.ten_view = True, False
  trained = untrained(config)
  first = evaluate.evaluate_and_report(trained, test_source, config, tmp_path)
  kept = saved_predictions.load(tmp_path, 'digits/1.0.0', 'test', 'centre')
  assert kept.log_probs.shape == (360, 10)
  np.testing.assert_array_equal(kept.labels, [int(test_source[i]['label']) for i in range(360)])
  image = np.stack([test_source[i]['image'] for i in (7, 300)])
  np.testing.assert_allclose(
    kept.log_probs[[7, 300]], trained.log_probs(image, (transforms.centre_crop(32),)), rtol=1e-4
  )

  def nobody():
    raise AssertionError('asked again')

  again = evaluate.cached_predictions(nobody, test_source, config, 'centre', tmp_path)
  assert evaluate.count_errors(again.blocks(), trained.class_names).result() == first['centre']
  (tmp_path / 'checkpoints' / '7').mkdir(parents=True)  # trained on since
  with pytest.raises(AssertionError, match='asked again'):
    evaluate.cached_predictions(nobody, test_source, config, 'centre', tmp_path)


def test_skipped_images_have_rows_but_are_not_scored(config, test_source, tmp_path, capsys):
  config.eval.save_predictions, config.eval.ten_view = True, False
  trained = untrained(config)
  whole = evaluate.evaluate_and_report(trained, test_source, config, tmp_path / 'whole')
  assert (whole['num_examples'], whole['skipped']) == (360, {})
  kept = saved_predictions.load(tmp_path / 'whole', 'digits/1.0.0', 'test', 'centre')
  test_source._skips, test_source._records, test_source._kept = True, list(test_source._records), None
  test_source._records[7] = test_source._records[359] = b''
  found = evaluate.evaluate_and_report(trained, test_source, config, tmp_path)
  assert (found['num_examples'], found['skipped']) == (358, {'test': 2})
  assert 'skipped, since they cannot be read: 2 of test' in capsys.readouterr().out
  others = saved_predictions.load(tmp_path, 'digits/1.0.0', 'test', 'centre')
  assert np.flatnonzero(np.isnan(others.log_probs).all(1)).tolist() == [7, 359]
  assert np.flatnonzero(others.labels == metrics.SKIPPED).tolist() == [7, 359]
  rest = np.delete(np.arange(360), [7, 359])
  np.testing.assert_array_equal(others.log_probs[rest], kept.log_probs[rest])
  np.testing.assert_array_equal(others.labels[rest], kept.labels[rest])
  alone = evaluate.count_errors([(kept.log_probs[rest], kept.labels[rest])], trained.class_names).result()
  assert found['centre']['confused'] == alone['confused']
  assert found['centre']['log_prob'] == pytest.approx(alone['log_prob'])
  again = evaluate.evaluate_and_report(trained, test_source, config, tmp_path)  # kept predictions remember it
  assert again == found

  # Beside a network that could read all, the same images count.
  averaged = list(ensemble.average([kept, others], [1, 1]))
  tally = evaluate.count_errors(averaged, trained.class_names)
  assert (tally.num_examples, tally.num_skipped) == (358, 2)
  assert tally.result()['top1_error'] == pytest.approx(alone['top1_error'])
  assert sum(ensemble.search_weights([kept, others])) == pytest.approx(1)


def test_submission_has_five_ilsvrc_ids_a_line_best_first(config, test_source, tmp_path):
  config.eval.submission, config.eval.ten_view = True, False
  test_source.ilsvrc_ids = (70, 10, 40, 20, 90, 100, 60, 50, 30, 80)  # our order is that of the WordNet ids
  test_source._least_label = -1
  trained = untrained(config)
  evaluate.evaluate_and_report(trained, test_source, config, tmp_path)
  lines = (tmp_path / 'submission.txt').read_text().splitlines()
  kept = saved_predictions.load(tmp_path, 'digits/1.0.0', 'test', 'centre')
  assert len(lines) == 360
  ids = np.array(test_source.ilsvrc_ids)
  assert lines[17] == ' '.join(str(ids[label]) for label in np.argsort(-kept.log_probs[17])[:5])


def test_a_submission_of_another_dataset_says_why_not(config, test_source, tmp_path):
  config.eval.submission, config.eval.ten_view = True, False
  with pytest.raises(UsageError, match=r'digits/1\.0\.0 is no ILSVRC dataset'):
    evaluate.evaluate_and_report(untrained(config), test_source, config, tmp_path)


def test_table_shows_what_was_measured():
  row = {
    'top1_error': 37.5,
    'top5_error': 17.0,
    'log_prob': -1.61466,
    'confused': [['maillot', 'maillot, tank suit', 9]],
  }
  results = {'dataset': 'ilsvrc/2010', 'split': 'test', 'num_examples': 150_000, 'step': 1000, 'ten_view': row}
  text = evaluate.table(results)
  assert '150,000 images' in text
  assert 'ten views' in text
  assert '37.50 %' in text
  assert 'maillot for maillot, tank suit (9)' in text
  assert 'centre' not in text
