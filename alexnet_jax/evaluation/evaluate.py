"""Top-1 and top-5 error on a held-out split, from the centre patch or from ten views (section 4.1)."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.data import pipeline, sources, transforms
from alexnet_jax.evaluation import metrics
from alexnet_jax.evaluation.trained_model import TrainedModel, load
from alexnet_jax.models import towers
from alexnet_jax.runs import checkpoints, config_checks, run_folder, saved_predictions
from alexnet_jax.runs.saved_predictions import Block, SavedPredictions
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UsageError

NUM_SUBMITTED = 5  # classes of each image, in ILSVRC
NUM_CONFUSED = 3  # pairs of classes that are printed


def evaluate(trained: TrainedModel, source: sources.Source, config: ConfigDict, crop_set: str) -> dict:
  """Looks at every example of a split exactly once.

  Args:
    trained: the network.
    source: the split.
    config: the whole config.
    crop_set: 'centre', 'ten_view' or 'nine_view'.

  Returns:
    The error rates, see `scores.Tally.result`.
  """
  return count_errors(predictions(trained, source, config, crop_set), trained.class_names).result()


def count_errors(blocks: Iterable[Block], class_names: Sequence[str]) -> metrics.ErrorCounter:
  """Counts over predictions."""
  tally = metrics.ErrorCounter(class_names)
  for log_probs, labels in blocks:
    tally.add(log_probs, labels)
  return tally


def predictions(trained: TrainedModel, source: sources.Source, config: ConfigDict, crop_set: str) -> Iterator[Block]:
  """Yields the log-probabilities and labels of every example once, in order; the same in every process.

  An image that is skipped has no numbers and the label `scores.SKIPPED`, so that the rows of all networks are alike.
  """
  title, done = f'{source.split}, {transforms.CROP_SET_TITLES[crop_set]}', 0
  with tqdm.tqdm(total=len(source), desc=title, unit=' images', leave=False, mininterval=1) as progress:
    for batch in pipeline.evaluation_batches(source, config, share=towers.data_shard(trained.mesh)):
      batch = towers.put_batch(trained.mesh, batch)
      log_probs = trained.log_probs(batch['image'], transforms.TEST_TIME_CROPS[crop_set](trained.config.border))
      log_probs, labels, weight = towers.to_host(trained.mesh, (log_probs, batch['label'], batch['weight']))
      num_rows = min(len(labels), len(source) - done)  # what follows fills up the last batch
      was_read = weight[:num_rows] > 0
      yield (
        np.where(was_read[:, None], log_probs[:num_rows], np.float32(np.nan)),
        np.where(was_read, labels[:num_rows], np.int32(metrics.SKIPPED)),
      )
      done += num_rows
      progress.update(num_rows)


def cached_predictions(
  network: Callable[[], TrainedModel], source: sources.Source, config: ConfigDict, crop_set: str, folder: pathlib.Path
) -> SavedPredictions:
  """Predicts a split and keeps that in the folder of the run; what is kept of its newest checkpoint is read instead.

  Args:
    network: loads the network; called only where it must be asked.
    source: the split.
    config: the whole config.
    crop_set: 'centre', 'ten_view' or 'nine_view'.
    folder: of the run; without checkpoints, what is kept there is taken as it is.
  """
  kept = saved_predictions.load(folder, source.dataset, source.split, crop_set)
  if kept is not None and len(kept.labels) == len(source) and checkpoints.newest_step(folder) in (None, kept.num_steps):
    print(f'{source.split}, {transforms.CROP_SET_TITLES[crop_set]}: as predicted before, kept in {folder}/predictions')
    return kept
  trained = network()
  blocks = predictions(trained, source, config, crop_set)
  if distributed.is_main_process():
    shape = len(source), trained.network.num_classes
    saved_predictions.save(
      blocks,
      folder,
      dataset=source.dataset,
      split=source.split,
      crop_set=crop_set,
      num_steps=trained.num_steps,
      shape=shape,
    )
  else:
    for _ in blocks:  # takes part in what all processes compute
      pass
  with distributed.main_process_first():  # by then it has written them
    return saved_predictions.load(folder, source.dataset, source.split, crop_set)


def evaluate_and_report(
  trained: TrainedModel,
  source: sources.Source,
  config: ConfigDict,
  folder: pathlib.Path,
  *,
  also_read: Sequence[sources.Source] = (),
) -> dict:
  """Evaluates a split for the record: prints a table and writes `results.json`, and what else `eval` asks for.

  Args:
    trained: the network.
    source: the split.
    config: the whole config.
    folder: of the run.
    also_read: splits that were read before, for the record of what was skipped.

  Returns:
    What `results.json` holds.

  Raises:
    UsageError: if a submission is asked for and the classes have no ILSVRC ids.
    RunError: if a file cannot be written.
  """
  check_submission(source, config)
  results = {'dataset': source.dataset, 'split': source.split, 'num_examples': len(source), 'step': trained.num_steps}
  results['skipped'] = {one.split: len(one.skipped) for one in also_read if one.skipped}
  kept = None
  for crop_set in crop_sets(config):
    if saves_predictions(config):
      kept = cached_predictions(lambda: trained, source, config, crop_set, folder)
    blocks = kept.blocks() if kept else predictions(trained, source, config, crop_set)
    tally = count_errors(blocks, trained.class_names)
    results[crop_set], results['num_examples'] = tally.result(), tally.num_examples
  if tally.num_skipped:
    results['skipped'][source.split] = tally.num_skipped
  write_results(results, folder)
  if config.eval.submission:
    submit(kept.blocks(), source, folder)
  return results


def crop_sets(config: ConfigDict) -> list[str]:
  """Returns how to look at images; the last is the one whose predictions are submitted."""
  return ['centre', *(name for name in ('ten_view', 'nine_view') if config.eval[name])]


def write_results(results: dict, folder: pathlib.Path) -> None:
  """Prints what `results.json` holds, and writes it."""
  if distributed.is_main_process():
    run_folder.write_results(folder, results)
    print(table(results), flush=True)


def saves_predictions(config: ConfigDict) -> bool:
  """Says whether what is predicted for the test split is kept; then a split will do whose labels were not released."""
  return config.eval.save_predictions or config.eval.submission


def check_submission(source: sources.Source, config: ConfigDict) -> None:
  """Finds a submission that cannot be.

  Raises:
    UsageError: if one is asked for and the classes have no ILSVRC ids.
  """
  if config.eval.submission and not source.ilsvrc_ids:
    raise UsageError(
      f'{source.dataset} is no ILSVRC dataset, whose classes have ids to submit; leave eval.submission out.'
    )


def submit(blocks: Iterable[Block], source: sources.Source, folder: pathlib.Path) -> None:
  """Writes `submission.txt` as ILSVRC takes it: a line for each image, the ids of its five best classes, best first.

  Raises:
    RunError: if it cannot be written.
  """
  ids = np.asarray(source.ilsvrc_ids)
  best = [ids[metrics.best_classes(log_probs, NUM_SUBMITTED)] for log_probs, _ in blocks]
  lines = [' '.join(map(str, row)) for row in np.concatenate(best).tolist()]
  if distributed.is_main_process():
    run_folder.write_submission(folder, lines)
    print(f'{folder}/submission.txt: five ILSVRC ids for each of {len(lines):,} images')


def evaluate_workdir(config: ConfigDict, folder: pathlib.Path) -> dict:
  """Evaluates the newest checkpoint of a run.

  Args:
    config: supplies the data and how to evaluate; the model is that of the run.
    folder: of the run.

  Returns:
    What `results.json` holds.

  Raises:
    UsageError: if there is no run or checkpoint, or the data has another number of classes.
    RunError: if the data cannot be read.
  """
  config_checks.check(config)
  print(towers.versions())
  trained = open_run(config, folder)
  print(towers.describe_mesh(trained.mesh))
  source = open_split(config, config.data.test_split, trained.stored_size, trained.network.num_classes, folder)
  return evaluate_and_report(trained, source, config, folder)


def open_run(config: ConfigDict, folder: pathlib.Path) -> TrainedModel:
  """Loads the newest checkpoint of a run onto the mesh of a config."""
  return load(folder, batch_size=config.eval.batch_size, num_data=config.mesh.data, num_tower=config.mesh.tower)


def open_split(config: ConfigDict, split: str, size: int, num_classes: int, folder: pathlib.Path) -> sources.Source:
  """Opens a split for a network.

  Args:
    config: names the data.
    split: in TFDS's notation.
    size: of the images that the network takes, pixels.
    num_classes: that it tells apart.
    folder: of its run.

  Raises:
    UsageError: if the data has another number of classes, or others were chosen.
  """
  with distributed.main_process_first():
    (source,) = sources.open_splits(
      config.data, size, [split], may_lack_labels=[split] if saves_predictions(config) else []
    )
  if source.num_classes != num_classes:
    raise UsageError(
      f'{source.dataset} has {source.num_classes} classes and the network in {folder} tells {num_classes} apart; '
      'name the data it was trained for, and the data.classes if it was trained on some.'
    )
  if source.classes and list(source.classes) != run_folder.load_classes(folder):
    raise UsageError(
      f'data.classes={source.classes} are not the classes that the network in {folder} tells apart, which are '
      f'{", ".join(run_folder.load_classes(folder))}; name these.'
    )
  return source


def table(results: dict) -> str:
  """Sets out what `results.json` holds for a reader."""
  steps = f', step {results["step"]:,}' if 'step' in results else ''
  lines = [
    f'{results["dataset"]}, split {results["split"]}, {results["num_examples"]:,} images{steps}',
    f'{"":10}{"top-1 error":>13}{"top-5 error":>13}{"log-prob":>11}',
  ]
  confused = []
  for name, title in transforms.CROP_SET_TITLES.items():
    if row := results.get(name):
      lines.append(f'{title:10}{row["top1_error"]:11.2f} %{row["top5_error"]:11.2f} %{row["log_prob"]:11.4f}')
      confused = row['confused']
    elif name in results:
      lines.append(f'{title:10}no image has a label')
  if confused:
    pairs = (f'{true} for {other} ({count:,})' for true, other, count in confused[:NUM_CONFUSED])
    lines.append(f'mistaken most often: {"; ".join(pairs)}')
  if results.get('skipped'):
    counts = (f'{count:,} of {split}' for split, count in results['skipped'].items())
    lines.append(f'skipped, since they cannot be read: {", ".join(counts)}')
  return '\n'.join(lines)
