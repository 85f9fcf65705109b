import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import modes
from alexnet_jax.data import cropping, sources
from alexnet_jax.evaluation import ensemble, evaluate, metrics
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.models import device_mesh
from alexnet_jax.models.registry import build
from alexnet_jax.runs import run_folder
from alexnet_jax.runs.saved_predictions import PredictionFiles
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


def load_predictions(folder):
  return PredictionFiles(folder, 'digits/1.0.0', 'test', 'centre').load()


def run(config, source, shape, crop_set, batch_size=32):
  config.eval.batch_size = batch_size
  return evaluate.evaluate(untrained(config, shape), source, config, crop_set)


def recompute(trained, source):
  """Computes the probabilities [image, class] averaged over ten crops, and the labels, without the tested module."""
  images = np.stack([source[i]['image'] for i in range(len(source))])
  labels = np.array([int(source[i]['label']) for i in range(len(source))])
  apply = jax.jit(trained.network.apply)
  probabilities = np.zeros((len(source), 10))
  with jax.set_mesh(trained.mesh):
    for top, left in [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]:
      crops = (images - MEAN)[:, top : top + 64, left : left + 64]
      for x in (crops, crops[:, :, ::-1]):
        probabilities += np.asarray(jax.nn.softmax(apply(trained.params, device_mesh.put_batch(trained.mesh, x)))) / 10
  return probabilities, labels


def test_errors_agree_with_a_plain_recomputation(config):
  trained, (test_source,) = untrained(config), sources.open_splits(config.data, 96, ['test[:90]'])
  probabilities, labels = recompute(trained, test_source)
  ranks = np.argsort(-probabilities, axis=1)
  errors = evaluate.evaluate(trained, test_source, config, 'ten_view')
  assert errors['top1_error'] == pytest.approx(100 * np.mean(ranks[:, 0] != labels), abs=1e-3)
  assert errors['top5_error'] == pytest.approx(100 * np.mean(~(ranks[:, :5] == labels[:, None]).any(1)), abs=1e-3)
  assert errors['log_prob'] == pytest.approx(np.log(probabilities[np.arange(90), labels]).mean(), rel=1e-4)


def test_as_in_2012_the_centre_of_the_mean_image_is_subtracted_from_every_crop(config):
  mean = np.random.default_rng(0).uniform(0, 255, (96, 96, 3)).astype(np.float32)
  config.model.centre_mean = True
  trained, images = untrained(config)._replace(mean_image=jnp.asarray(mean)), np.full((2, 96, 96, 3), 100, np.uint8)
  corner = (cropping.Crop(0, 0, True),)
  with jax.set_mesh(trained.mesh):
    crops = device_mesh.put_batch(trained.mesh, images[:, :64, :64] - mean[16:80, 16:80])
    expected = jax.nn.log_softmax(jax.jit(trained.network.apply)(trained.params, crops))
  np.testing.assert_allclose(trained.log_probs(images, corner), expected, rtol=1e-4)


@pytest.mark.parametrize(
  ('shape', 'batch_size'),
  [
    ((2, 2), 100),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (((1, 1), 7), ((1, 1), 500), ((4, 1), 32))),
  ],
)
def test_errors_do_not_depend_on_batch_size_and_mesh(config, test_source, shape, batch_size):
  expected = run(config, test_source, (1, 1), 'centre')
  errors = run(config, test_source, shape, 'centre', batch_size)
  for name in ('top1_error', 'top5_error', 'log_prob'):
    assert errors[name] == pytest.approx(expected[name], rel=1e-4)


def test_predictions_are_saved_in_order_and_used_until_there_is_a_newer_checkpoint(config, test_source, tmp_path):
  config.eval.save_predictions, config.eval.ten_view = True, False
  trained = untrained(config)
  results = evaluate.evaluate_and_report(trained, test_source, config, tmp_path)
  saved = load_predictions(tmp_path)
  assert saved.log_probs.shape == (360, 10)
  np.testing.assert_array_equal(saved.labels, [int(test_source[i]['label']) for i in range(360)])
  image = np.stack([test_source[i]['image'] for i in (7, 300)])
  np.testing.assert_allclose(
    saved.log_probs[[7, 300]], trained.log_probs(image, (cropping.centre_crop(32),)), rtol=1e-4
  )

  def fail():
    raise AssertionError('the network was loaded')

  loaded = evaluate.load_or_predict(fail, test_source, config, 'centre', tmp_path)
  assert evaluate.count_errors(loaded.blocks(), trained.class_names).result() == results['centre']
  (tmp_path / 'checkpoints' / '7').mkdir(parents=True)
  with pytest.raises(AssertionError, match='the network was loaded'):
    evaluate.load_or_predict(fail, test_source, config, 'centre', tmp_path)


def test_saved_predictions_of_other_classes_are_not_used(config, tmp_path):
  config.eval.save_predictions, config.eval.ten_view, config.data.classes = True, False, ('3', '1')
  first, second = config, config.copy_and_resolve_references()
  second.data.classes = ('1', '3')
  (other,), (source,) = (sources.open_splits(made.data, 96, ['test']) for made in (first, second))
  trained = untrained(config)
  expected = evaluate.load_or_predict(lambda: trained, source, second, 'centre', tmp_path / 'expected')
  for used in (other, source):
    saved = evaluate.load_or_predict(lambda: trained, used, second, 'centre', tmp_path / 'run')
  np.testing.assert_array_equal(saved.labels, expected.labels)


def test_skipped_images_have_rows_but_are_not_counted(config, test_source, tmp_path, capsys):
  config.eval.save_predictions, config.eval.ten_view = True, False
  trained = untrained(config)
  results = evaluate.evaluate_and_report(trained, test_source, config, tmp_path / 'undamaged')
  assert (results['num_examples'], results['skipped']) == (360, {})
  undamaged = load_predictions(tmp_path / 'undamaged')
  test_source._skip_unreadable, test_source._records, test_source._cache = True, list(test_source._records), None
  test_source._records[7] = test_source._records[359] = b''
  results = evaluate.evaluate_and_report(trained, test_source, config, tmp_path)
  assert (results['num_examples'], results['skipped']) == (358, {'test': 2})
  assert 'unreadable and skipped: 2 of test' in capsys.readouterr().out
  damaged = load_predictions(tmp_path)
  assert np.flatnonzero(np.isnan(damaged.log_probs).all(1)).tolist() == [7, 359]
  assert np.flatnonzero(damaged.labels == metrics.SKIPPED).tolist() == [7, 359]
  rest = np.delete(np.arange(360), [7, 359])
  np.testing.assert_array_equal(damaged.log_probs[rest], undamaged.log_probs[rest])
  np.testing.assert_array_equal(damaged.labels[rest], undamaged.labels[rest])
  expected = evaluate.count_errors([(undamaged.log_probs[rest], undamaged.labels[rest])], trained.class_names).result()
  assert results['centre']['confused'] == expected['confused']
  assert results['centre']['log_prob'] == pytest.approx(expected['log_prob'])
  assert evaluate.evaluate_and_report(trained, test_source, config, tmp_path) == results  # from the saved predictions

  # An ensemble with a network that could read all images counts the same images.
  averaged = list(ensemble.average([undamaged, damaged], [1, 1]))
  counter = evaluate.count_errors(averaged, trained.class_names)
  assert (counter.num_examples, counter.num_skipped) == (358, 2)
  assert counter.result()['top1_error'] == pytest.approx(expected['top1_error'])
  assert sum(ensemble.search_weights([undamaged, damaged])) == pytest.approx(1)


def test_a_submission_has_five_ilsvrc_ids_per_line_in_the_order_of_the_files(config, test_source, tmp_path):
  config.eval.submission, config.eval.ten_view = True, False
  test_source.ilsvrc_ids = (70, 10, 40, 20, 90, 100, 60, 50, 30, 80)  # labels are in the order of the WordNet ids
  numbers = np.random.default_rng(0).permutation(360)
  test_source.file_names = [f'ILSVRC2012_test_{number + 1:08d}.JPEG' for number in numbers]
  trained = untrained(config)
  evaluate.evaluate_and_report(trained, test_source, config, tmp_path)
  lines = (tmp_path / 'submission.txt').read_text().splitlines()
  saved = load_predictions(tmp_path)
  assert len(lines) == 360
  ids = np.array(test_source.ilsvrc_ids)
  for index in range(360):
    line = lines[numbers[index]]
    assert line == ' '.join(str(ids[label]) for label in np.argsort(-saved.log_probs[index], kind='stable')[:5])


@pytest.mark.parametrize('name', ['ILSVRC2012_test_00000361.JPEG', 'n01440764_5.JPEG', 'photograph.jpg'])
def test_a_submission_that_would_lack_an_image_is_a_usage_error(config, test_source, tmp_path, name):
  config.eval.submission, test_source.ilsvrc_ids = True, tuple(range(1, 11))
  test_source.file_names = [f'ILSVRC2012_test_{number:08d}.JPEG' for number in range(360, 0, -1)]
  evaluate.check_submission(test_source, config)
  test_source.file_names[7] = name
  with pytest.raises(UsageError, match=r"split 'test' of digits/1\.0\.0 lacks image 353; choose the whole split"):
    evaluate.check_submission(test_source, config)


def test_a_submission_of_classes_without_ilsvrc_ids_is_a_usage_error(config, test_source, tmp_path):
  config.eval.submission, config.eval.ten_view = True, False
  with pytest.raises(UsageError, match=r'the classes of digits/1\.0\.0 have no ILSVRC ids'):
    evaluate.evaluate_and_report(untrained(config), test_source, config, tmp_path)


def test_the_table_contains_the_evaluated_crop_sets():
  row = {
    'top1_error': 37.5,
    'top5_error': 17.0,
    'log_prob': -1.61466,
    'confused': [['maillot', 'maillot, tank suit', 9]],
  }
  results = {'dataset': 'ilsvrc/2010', 'split': 'test', 'num_examples': 150_000, 'step': 1000, 'ten_view': row}
  text = evaluate.format_table(results)
  assert '150,000 images' in text
  assert 'ten crops' in text
  assert '37.50 %' in text
  assert 'maillot for maillot, tank suit (9)' in text
  assert 'centre' not in text


@pytest.fixture
def copied_run(trained_run, tmp_path):
  return shutil.copytree(trained_run, tmp_path / 'run')


def test_results_of_the_training_are_retained(config, copied_run):
  """An evaluation replaces its own crop sets only, and results of another split have a file of their own."""
  path = copied_run / 'results.json'
  ten_view = {'top1_error': 5, 'top5_error': 1, 'log_prob': -1, 'confused': []}
  record = {'dataset': 'digits/1.0.0', 'split': 'test', 'num_examples': 360, 'step': 7, 'ten_view': ten_view}
  path.write_text(json.dumps(record))
  config.eval.ten_view = False
  results = evaluate.evaluate_run(config, copied_run)
  written = json.loads(path.read_text())
  assert written == json.loads(json.dumps(results))
  assert written['ten_view'] == ten_view
  assert written['centre']['top1_error'] > 0
  config.data.test_split = 'test[:9]'
  assert evaluate.evaluate_run(config, copied_run)['num_examples'] == 9
  assert json.loads(path.read_text()) == written
  other = json.loads((copied_run / 'results-digits_1.0.0-test%5B%3A9%5D.json').read_text())
  assert (other['split'], 'ten_view' in other) == ('test[:9]', False)


def test_data_whose_classes_have_other_names_is_a_usage_error(config, copied_run):
  names = [*'012345678', 'nine']
  (copied_run / 'classes.txt').write_text('\n'.join(names) + '\n')
  message = r"label 9 is '9' in digits/1\.0\.0, but 'nine' for the network in .*; name the dataset"
  with pytest.raises(UsageError, match=message):
    evaluate.open_split(config, 'test', 96, 10, copied_run)
  statistics = run_folder.load_statistics(copied_run)
  statistics._replace(num_images=0).save(copied_run / 'statistics.npz')  # as of imported weights
  assert len(evaluate.open_split(config, 'test', 96, 10, copied_run)) == 360


def test_fields_that_an_evaluation_ignores_are_reported(config, copied_run, monkeypatch, capsys):
  monkeypatch.setattr(evaluate, 'evaluate_run', lambda config, folder: {'skipped': {}})
  modes.run('eval', config, [copied_run], [], None)
  assert capsys.readouterr().err == ''
  config.model.nonlinearity = 'tanh'
  modes.run('eval', config, [copied_run], [], None)
  expected = f'warning: the network is that of {copied_run} (model.nonlinearity: relu in the run, tanh given).\n'
  assert capsys.readouterr().err == expected
