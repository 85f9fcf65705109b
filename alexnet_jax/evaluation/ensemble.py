"""Averages of the predictions of several networks (section 6), and the search for their weights of 2012 (facts, 5)."""

import collections
import functools
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.data import cropping
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.metrics import SKIPPED, top_k_credit
from alexnet_jax.models import device_mesh
from alexnet_jax.runs import config_checks, run_folder
from alexnet_jax.runs.saved_predictions import Block, SavedPredictions
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import RunError, UsageError

NUM_PASSES = 5
CANDIDATES = np.arange(21) / 20  # 0, 0.05, ..., 1
INITIAL_WEIGHT = 0.5
ERRORS = ('top1_error', 'top5_error')
MAX_NAME_BYTES = 200  # of a folder; file systems allow 255


def evaluate_ensemble(config: ConfigDict, folders: Sequence[pathlib.Path]) -> dict:
  """Evaluates the average of the predictions of several runs, and each run.

  The runs may have different recipes. The predictions of each are saved in its folder and used again until the run has
  a newer checkpoint; a folder with predictions needs no checkpoint. The results are written to a folder next to that of
  the first run, named after all runs.

  Args:
    config: the whole config. It selects the data and the evaluation; the networks are those of the runs. If
      `eval.ensemble` is 'search', the weights are those with the lowest errors on the validation split.
    folders: folders of the runs.

  Returns:
    The content of `results.json`: that of a single run, with 'members', the same of each run, and 'weights'.

  Raises:
    UsageError: if the config is invalid, there is no run, or the runs have different classes.
    RunError: if the data or a checkpoint cannot be read, or a file cannot be written.
  """
  config_checks.check(config)
  is_searched = config.eval.ensemble == 'search'
  print(device_mesh.versions())
  class_names = _common_classes(folders)
  test, validation = config.data.test_split, config.data.validation_split
  splits = dict.fromkeys((test, validation) if is_searched else (test,))
  sources, predictions = _predict_splits(config, folders, list(splits), len(class_names))
  crop_sets, source = cropping.list_crop_sets(config), sources[test]
  skipped = {split: num for split in sources if (num := _num_skipped(predictions[split, crop_sets[0]]))}
  results = {'dataset': source.dataset, 'split': test, 'num_examples': len(source), 'weights': {}, 'skipped': skipped}
  results['members'] = [{'workdir': str(folder)} for folder in folders]
  for crop_set in crop_sets:
    members = predictions[test, crop_set]
    weights = search_weights(predictions[validation, crop_set]) if is_searched else [1 / len(folders)] * len(folders)
    results['weights'][crop_set] = weights
    counter = evaluate.count_errors(average(members, weights), class_names)
    results[crop_set], results['num_examples'] = counter.result(), counter.num_examples
    for row, member in zip(results['members'], members, strict=True):
      row |= {'step': member.num_steps, crop_set: evaluate.count_errors(member.blocks(), class_names).result()}
  print(format_table(results))
  folder = folders[0].parent / folder_name(folders)
  try:
    folder.mkdir(exist_ok=True)
  except OSError as error:
    raise RunError(f'{folder} cannot be created for the results ({error.strerror}).') from error
  evaluate.write_results(results, folder)
  if config.eval.submission:
    evaluate.write_submission(average(members, weights), source, folder)
  return results


def folder_name(folders: Sequence[pathlib.Path]) -> str:
  """Names the folder of an ensemble's results after its runs; a name that is too long ends with a hash of the whole."""
  name = '+'.join(folder.name for folder in folders)
  encoded = os.fsencode(name)
  if len(encoded) <= MAX_NAME_BYTES:
    return name
  return f'{encoded[: MAX_NAME_BYTES - 9].decode(errors="ignore")}-{zlib.crc32(encoded):08x}'


def _common_classes(folders):
  """Returns the class names of the runs, or raises `UsageError` if they differ."""
  class_names = run_folder.load_classes(folders[0])
  for folder in folders[1:]:
    if run_folder.load_classes(folder) != class_names:
      raise UsageError(f'{folder} and {folders[0]} have different classes; choose runs on the same data.')
  return class_names


def _predict_splits(
  config: ConfigDict, folders: Sequence[pathlib.Path], splits: Sequence[str], num_classes: int
) -> tuple[dict[str, Source], dict[tuple[str, str], list[SavedPredictions]]]:
  """Loads or computes the predictions of every run for every split.

  Returns:
    The splits by name, and the predictions of all runs by split and crop set.
  """
  sources = {}
  predictions: dict[tuple[str, str], list[SavedPredictions]] = collections.defaultdict(list)
  for folder in folders:
    model_config = run_folder.load_config(folder).model
    load_model = functools.cache(functools.partial(evaluate.open_run, config, folder))
    for split in splits:
      size = cropping.stored_size(model_config)
      source = sources[split] = evaluate.open_split(config, split, size, num_classes, folder)
      evaluate.check_submission(source, config)
      for crop_set in cropping.list_crop_sets(config):
        predictions[split, crop_set].append(evaluate.load_or_predict(load_model, source, config, crop_set, folder))
  return sources, predictions


def _num_skipped(members):
  return int(np.count_nonzero(np.minimum.reduce([member.labels for member in members]) == SKIPPED))


def format_table(results: dict) -> str:
  """Formats the members of an ensemble as a table."""
  lines = [f'{"":10}{"top-1 error":>13}{"top-5 error":>13}{"weight":>9}']
  for crop_set, weights in results['weights'].items():
    for row, weight in zip(results['members'], weights, strict=True):
      errors = ''.join(f'{row[crop_set][error]:11.2f} %' if row[crop_set] else f'{"":13}' for error in ERRORS)
      lines.append(
        f'{cropping.CROP_SET_TITLES[crop_set]:10}{errors}{weight:9.3f}  {row["workdir"]}, step {row["step"]:,}'
      )
  return '\n'.join(lines)


def average(members: Sequence[SavedPredictions], weights: Sequence[float]) -> Iterator[Block]:
  """Averages the probabilities that several networks predict.

  Args:
    members: predictions for the same images.
    weights: one weight per member, 0 or more, not all 0. They are normalised to sum to 1.

  Yields:
    Logarithm of the weighted mean of the probabilities, and labels, block by block.
  """
  normalised = np.asarray(weights, np.float64) / np.sum(weights)
  for blocks in zip(*(member.blocks() for member in members), strict=True):
    probs = sum(
      weight * np.exp(log_probs.astype(np.float64)) for weight, (log_probs, _) in zip(normalised, blocks, strict=True)
    )
    with np.errstate(divide='ignore'):
      yield np.log(probs).astype(np.float32), _common_labels(blocks)


def search_weights(members: Sequence[SavedPredictions]) -> list[float]:
  """Searches the weights of a weighted mean by coordinate descent on a grid.

  The search starts from the plain mean. Each weight in turn is set to the value of 0, 0.05, ... 1 that gives the
  highest top-5 accuracy; ties are broken by the top-1 accuracy, then in favour of the current value. The 2012 tool used
  the top-5 accuracy only (avg-valid; facts, 5).

  Args:
    members: predictions of two or more networks for the same labelled images.

  Returns:
    One weight per member; they sum to 1.
  """
  weights = np.full(len(members), INITIAL_WEIGHT)
  progress = tqdm.tqdm(
    total=NUM_PASSES * len(members),
    desc='weights of the ensemble',
    leave=False,
    disable=not distributed.is_main_process(),
  )
  for _ in range(NUM_PASSES):
    before = weights.copy()
    for index in range(len(members)):
      credit = _candidate_credit(members, weights, index)
      weights[index] = max(credit, key=lambda value: (*credit[value], value == weights[index]))
      progress.update()
    if np.array_equal(weights, before):
      break
  progress.close()
  return (weights / weights.sum()).tolist()


def _candidate_credit(members, weights, index):
  """Computes the top-5 and top-1 credit for each candidate weight of a member: {candidate: [top-5, top-1]}."""
  others_are_zero = not np.delete(weights, index).any()
  candidates = CANDIDATES[1:] if others_are_zero else CANDIDATES  # not all weights may be 0
  credit = {value: np.zeros(2) for value in candidates.tolist()}
  for blocks in zip(*(member.blocks() for member in members), strict=True):
    labels = _common_labels(blocks)
    is_labelled = labels >= 0
    probs = [np.exp(log_probs[is_labelled]) for log_probs, _ in blocks]
    others = sum(np.float32(weight) * p for i, (weight, p) in enumerate(zip(weights, probs, strict=True)) if i != index)
    for value in credit:
      mixed = others + np.float32(value) * probs[index]
      credit[value] += [top_k_credit(mixed, labels[is_labelled], k).sum() for k in (5, 1)]
  return credit


def _common_labels(blocks):
  """Returns the labels of the images, `SKIPPED` for an image that any member could not read."""
  return np.minimum.reduce([labels for _, labels in blocks])
