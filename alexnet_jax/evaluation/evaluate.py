"""Top-1 and top-5 error on a held-out split, for the centre crop or averaged over ten crops (section 4.1)."""

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alexnet_jax.data import cropping, pipeline, sources
from alexnet_jax.evaluation import metrics
from alexnet_jax.evaluation.trained_model import TrainedModel, load
from alexnet_jax.models import device_mesh
from alexnet_jax.runs import checkpoints, config_checks, environment, run_folder
from alexnet_jax.runs.saved_predictions import Block, PredictionFiles, SavedPredictions
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UsageError

NUM_SUBMITTED = 5  # classes per image in a submission to ILSVRC
NUM_CONFUSED = 3  # pairs of classes in the printed table


def evaluate_run(config: ConfigDict, folder: pathlib.Path) -> dict:
  """Evaluates the newest checkpoint of a run on the test split.

  Args:
    config: the whole config. It selects the data and the evaluation; the network is that of the run.
    folder: folder of the run.

  Returns:
    The content of `results.json`.

  Raises:
    UsageError: if the config is invalid, there is no run or checkpoint, or the data has other classes.
    RunError: if the data or the checkpoint cannot be read, or a file cannot be written.
  """
  config_checks.check(config)
  print(device_mesh.versions())
  model = open_run(config, folder)
  print(device_mesh.describe_mesh(model.mesh))
  source = open_split(config, config.data.test_split, model.stored_size, model.network.num_classes, folder)
  name = run_folder.results_name(folder, config, source.dataset, source.split)
  return evaluate_and_report(model, source, config, folder, results_name=name)


def open_run(config: ConfigDict, folder: pathlib.Path) -> TrainedModel:
  """Loads the newest checkpoint of a run onto the mesh of a config; raises the errors of `trained_model.load`."""
  return load(folder, batch_size=config.eval.batch_size, num_data=config.mesh.data, num_tower=config.mesh.tower)


def open_split(config: ConfigDict, split: str, size: int, num_classes: int, folder: pathlib.Path) -> sources.Source:
  """Opens a split of the data of a config for a network.

  Args:
    config: the whole config.
    split: split in TFDS's notation.
    size: side of the network's stored images, pixels.
    num_classes: number of classes of the network.
    folder: folder of the network's run.

  Raises:
    UsageError: if the split does not exist, or the data has other classes than the network.
    RunError: if the dataset cannot be prepared.
  """
  with distributed.main_process_first():
    (source,) = sources.open_splits(
      config.data, size, [split], allow_unlabelled=[split] if saves_predictions(config) else []
    )
  check_classes(source, num_classes, folder)
  return source


def check_classes(source: sources.Source, num_classes: int, folder: pathlib.Path) -> None:
  """Checks that a split has the classes of a network.

  Args:
    source: the split.
    num_classes: number of classes of the network.
    folder: folder of the network's run. If its weights were imported, only the number of classes is compared.

  Raises:
    UsageError: if the classes differ.
  """
  if source.num_classes != num_classes:
    raise UsageError(
      f'{source.dataset} has {source.num_classes} classes, but the network in {folder} has {num_classes}; name the '
      'dataset that it was trained on, and its data.classes if it was trained on selected classes.'
    )
  pairs = zip(source.class_names, run_folder.load_classes(folder), strict=True)
  differences = [(label, name, known) for label, (name, known) in enumerate(pairs) if name != known]
  if differences and not run_folder.is_imported(folder):  # an imported file may name no classes
    label, name, known = differences[0]
    raise UsageError(
      f"label {label} is '{name}' in {source.dataset}, but '{known}' for the network in {folder}; name the dataset "
      'that it was trained on, and its data.classes if it was trained on selected classes.'
    )


def evaluate_and_report(
  model: TrainedModel,
  source: sources.Source,
  config: ConfigDict,
  folder: pathlib.Path,
  *,
  also_read: Sequence[sources.Source] = (),
  results_name: str = 'results.json',
) -> dict:
  """Evaluates a split, prints a table and writes its results, and predictions and submission if `eval` selects them.

  Crop sets that were evaluated earlier, for the same checkpoint and split, remain in the results.

  Args:
    model: the trained network.
    source: the split.
    config: the whole config.
    folder: folder of the run.
    also_read: splits read earlier, whose skipped images are reported as well.
    results_name: name of the file of the results, in the folder of the run.

  Returns:
    The content of the file of the results.

  Raises:
    UsageError: if `eval.submission` is set and the classes have no ILSVRC ids.
    RunError: if the data cannot be read, or a file cannot be written.
  """
  check_submission(source, config)
  data = {'dataset': source.dataset, 'split': source.split}
  data |= {'classes': list(source.classes)} if source.classes else {}
  results = data | {'num_examples': len(source), 'step': model.num_steps}
  results['skipped'] = {other.split: num_skipped for other in also_read if (num_skipped := _count_skipped(other))}
  saved = None
  for crop_set in cropping.list_crop_sets(config):
    if saves_predictions(config):
      saved = load_or_predict(lambda: model, source, config, crop_set, folder)
    blocks = saved.blocks() if saved else predict_split(model, source, config, crop_set)
    counter = count_errors(blocks, model.class_names)
    results[crop_set], results['num_examples'] = counter.result(), counter.num_examples
  if counter.num_skipped:
    results['skipped'][source.split] = counter.num_skipped
  with contextlib.suppress(UsageError):  # a damaged file is replaced
    earlier = run_folder.load_results(folder, model.num_steps, results_name)
    if data == {name: earlier[name] for name in ('dataset', 'split', 'classes') if name in earlier}:
      results |= {name: earlier[name] for name in cropping.CROP_SET_TITLES if name in earlier and name not in results}
  write_results(results, folder, results_name)
  environment.record_evaluation(folder, model.mesh, source, results_name)
  if saved and config.eval.submission:
    write_submission(saved.blocks(), source, folder)
  return results


def _count_skipped(source):
  """Returns the number of images that any process has skipped; each process reads other images."""
  is_skipped = np.zeros(len(source), bool)
  is_skipped[list(source.skipped)] = True
  by_process = np.reshape(multihost_utils.process_allgather(is_skipped), (-1, len(source)))
  return int(by_process.any(axis=0).sum())


def evaluate(model: TrainedModel, source: sources.Source, config: ConfigDict, crop_set: str) -> dict:
  """Evaluates a split, reading each example exactly once.

  Args:
    model: the trained network.
    source: the split.
    config: the whole config.
    crop_set: 'centre', 'ten_view' or 'nine_view'.

  Returns:
    The error rates, see `metrics.ErrorCounter.result`.

  Raises:
    RunError: if the data cannot be read.
  """
  return count_errors(predict_split(model, source, config, crop_set), model.class_names).result()


def count_errors(blocks: Iterable[Block], class_names: Sequence[str]) -> metrics.ErrorCounter:
  """Counts the errors of predictions."""
  counter = metrics.ErrorCounter(class_names)
  for log_probs, labels in blocks:
    counter.add(log_probs, labels)
  return counter


def predict_split(model: TrainedModel, source: sources.Source, config: ConfigDict, crop_set: str) -> Iterator[Block]:
  """Predicts every example of a split once, in order; every process yields the same predictions.

  Args:
    model: the trained network.
    source: the split.
    config: the whole config.
    crop_set: 'centre', 'ten_view' or 'nine_view'.

  Yields:
    Log-probabilities [image, class] float32, nats, and labels [image] int32. A skipped image has nan and the label
    `metrics.SKIPPED`, which gives the predictions of all networks the same rows.

  Raises:
    RunError: if the data cannot be read.
  """
  title, num_done = f'{source.split}, {cropping.CROP_SET_TITLES[crop_set]}', 0
  crops = cropping.TEST_TIME_CROPS[crop_set](model.config.border)
  model = model.arranged()
  with tqdm.tqdm(
    total=len(source), desc=title, unit=' images', leave=False, mininterval=1, disable=not distributed.is_main_process()
  ) as progress:
    dataset = pipeline.evaluation_dataset(source, config, shard=device_mesh.data_shard(model.mesh))
    for batch in pipeline.prefetch(dataset, config):
      on_devices = device_mesh.put_batch(model.mesh, batch)
      log_probs, labels, weight = device_mesh.to_host(
        model.mesh, (model.log_probs(on_devices['image'], crops), on_devices['label'], on_devices['weight'])
      )
      num_rows = min(len(labels), len(source) - num_done)  # the last batch is padded
      is_readable = weight[:num_rows] > 0
      yield (
        np.where(is_readable[:, None], log_probs[:num_rows], np.float32(np.nan)),
        np.where(is_readable, labels[:num_rows], np.int32(metrics.SKIPPED)),
      )
      num_done += num_rows
      progress.update(num_rows)


def load_or_predict(
  load_model: Callable[[], TrainedModel],
  source: sources.Source,
  config: ConfigDict,
  crop_set: str,
  folder: pathlib.Path,
) -> SavedPredictions:
  """Loads the predictions for a split that are saved in the folder of a run, or computes and saves them.

  Saved predictions are used if they are those of the newest checkpoint, or if the folder contains no checkpoint.

  Args:
    load_model: function that loads the trained network; called only if predictions must be computed.
    source: the split.
    config: the whole config.
    crop_set: 'centre', 'ten_view' or 'nine_view'.
    folder: folder of the run.

  Raises:
    UsageError: as `load_model`.
    RunError: if the data or the checkpoint cannot be read, or the predictions cannot be written.
  """
  files = PredictionFiles(folder, source.dataset, source.split, crop_set, source.fingerprint, source.classes)
  saved = files.load()
  is_current = saved is not None and checkpoints.newest_step(folder) in (None, saved.num_steps)
  if saved and is_current and len(saved.labels) == len(source):
    print(f'{source.split}, {cropping.CROP_SET_TITLES[crop_set]}: using the predictions saved in {files.folder}')
    return saved
  model = load_model()
  blocks = predict_split(model, source, config, crop_set)
  if distributed.is_main_process():
    files.save(blocks, model.num_steps, (len(source), model.network.num_classes))
  else:
    for _ in blocks:  # all processes take part in the computation
      pass
  with distributed.main_process_first():  # the other processes read what process 0 has written
    saved = files.load()
  assert saved is not None
  return saved


def saves_predictions(config: ConfigDict) -> bool:
  """Returns whether the predictions for the test split are saved, in which case its labels may be unknown."""
  return config.eval.save_predictions or config.eval.submission


def check_submission(source: sources.Source, config: ConfigDict) -> None:
  """Checks that a submission is possible if `eval.submission` is set.

  Raises:
    UsageError: if the classes have no ILSVRC ids, or the split is not a whole validation or test set of ILSVRC.
  """
  if config.eval.submission:
    if not source.ilsvrc_ids:
      raise UsageError(f'the classes of {source.dataset} have no ILSVRC ids to submit; omit eval.submission.')
    _submission_order(source)


def _submission_order(source):
  """Returns the indices of the images in the order of the numbers of their files, ILSVRC2012_test_00000001.JPEG first.

  Raises:
    UsageError: if the numbers are not 1 to the number of images, in which case the lines would be of other images.
  """
  matches = [re.search(r'_(\d+)\.\w+$', name) for name in source.file_names]
  numbers = np.array([int(match[1]) if match else 0 for match in matches])
  if missing := sorted({*range(1, len(numbers) + 1)}.difference(numbers.tolist())):
    raise UsageError(
      f"a submission has a line for every image of ILSVRC's validation or test set, but split '{source.split}' of "
      f'{source.dataset} lacks image {missing[0]}; choose the whole split, or prepare the dataset from intact archives.'
    )
  return np.argsort(numbers)


def write_submission(blocks: Iterable[Block], source: sources.Source, folder: pathlib.Path) -> None:
  """Writes `submission.txt` in the format of ILSVRC: a line per image, with the ids of its five best classes in order.

  The lines are in the order of the names of the images' files, as ILSVRC requires, and not in that of the dataset.

  Raises:
    UsageError: as `check_submission`.
    RunError: if the file cannot be written.
  """
  ids = np.asarray(source.ilsvrc_ids)
  best = [ids[metrics.best_classes(log_probs, NUM_SUBMITTED)] for log_probs, _ in blocks]
  lines = [' '.join(map(str, row)) for row in np.concatenate(best)[_submission_order(source)].tolist()]
  if distributed.is_main_process():
    run_folder.write_submission(folder, lines)
    print(f'{folder}/submission.txt: five ILSVRC ids for each of {len(lines):,} images')


def write_results(results: dict, folder: pathlib.Path, name: str = 'results.json') -> None:
  """Writes results to a file of a run and prints them as a table; raises `RunError` if it cannot be written."""
  if distributed.is_main_process():
    run_folder.write_results(folder, results, name)
    print(format_table(results), flush=True)


def format_table(results: dict) -> str:
  """Formats the content of `results.json` as a table."""
  steps = f', step {results["step"]:,}' if 'step' in results else ''
  lines = [
    f'{results["dataset"]}, split {results["split"]}, {results["num_examples"]:,} images{steps}',
    f'{"":10}{"top-1 error":>13}{"top-5 error":>13}{"log-prob":>11}',
  ]
  confused = []
  for name, title in cropping.CROP_SET_TITLES.items():
    if row := results.get(name):
      lines.append(f'{title:10}{row["top1_error"]:11.2f} %{row["top5_error"]:11.2f} %{row["log_prob"]:11.4f}')
      confused = row['confused']
    elif name in results:
      lines.append(f'{title:10}no image has a label')
  if confused:
    pairs = (f'{true} for {predicted} ({num:,})' for true, predicted, num in confused[:NUM_CONFUSED])
    lines.append(f'most frequent errors: {"; ".join(pairs)}')
  if results.get('skipped'):
    counts = (f'{num:,} of {split}' for split, num in results['skipped'].items())
    lines.append(f'unreadable and skipped: {", ".join(counts)}')
  return '\n'.join(lines)
