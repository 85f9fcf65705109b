"""Averages of what several networks predict (section 6), and weights for them, found as in 2012 (facts, 5)."""

import collections
import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from ml_collections import ConfigDict

from alexnet_jax.data import transforms
from alexnet_jax.evaluation import evaluate
from alexnet_jax.evaluation.metrics import SKIPPED, top_k_credit
from alexnet_jax.models import towers
from alexnet_jax.runs import config_checks, run_folder
from alexnet_jax.runs.saved_predictions import Block, SavedPredictions
from alexnet_jax.runtime.errors import UsageError

NUM_PASSES = 5
CANDIDATES = np.arange(21) / 20  # 0, 0.05, ..., 1
START = 0.5
ERRORS = ('top1_error', 'top5_error')
LONGEST_NAME = 200  # of a folder; file systems take 255 bytes


def evaluate_ensemble(config: ConfigDict, folders: Sequence[pathlib.Path]) -> dict:
  """Averages the predictions of several runs, and scores the average beside its members.

  The members may be of different recipes. Each keeps its predictions in its folder, and where it has kept those of its
  newest checkpoint it is not asked again; predictions without a checkpoint will do. The results go to a folder beside
  that of the first run, named after all.

  Args:
    config: supplies the data and how to evaluate; the models are those of the runs. With `eval.ensemble` = 'search' the
      weights are those that are best on the validation split.
    folders: of the runs.

  Returns:
    What `results.json` holds: what it holds of a single run, and 'members', the same of each of them, and 'weights'.

  Raises:
    UsageError: if there is no run, or they tell different classes apart.
    RunError: if the data cannot be read, or a file cannot be written.
  """
  config_checks.check(config)
  if config.eval.ensemble not in ('mean', 'search'):
    raise UsageError(f"eval.ensemble='{config.eval.ensemble}' is unknown; choose 'mean' or 'search'.")
  print(towers.versions())
  class_names = run_folder.load_classes(folders[0])
  for folder in folders[1:]:
    if run_folder.load_classes(folder) != class_names:
      raise UsageError(f'{folder} tells other classes apart than {folders[0]}; average runs on the same data.')
  is_searched = config.eval.ensemble == 'search'
  crop_sets, test, validation = evaluate.crop_sets(config), config.data.test_split, config.data.validation_split
  sources, predicted = {}, collections.defaultdict(list)  # predictions of every member, by split and protocol
  for folder in folders:
    model = run_folder.load_config(folder).model
    network = functools.cache(functools.partial(evaluate.open_run, config, folder))
    for split in dict.fromkeys((test, validation) if is_searched else (test,)):
      source = evaluate.open_split(config, split, model.image_size + model.border, len(class_names), folder)
      evaluate.check_submission(source, config)
      sources[split] = source
      for crop_set in crop_sets:
        predicted[split, crop_set].append(evaluate.cached_predictions(network, source, config, crop_set, folder))

  source = sources[test]
  results = {'dataset': source.dataset, 'split': test, 'num_examples': len(source), 'weights': {}}
  results['skipped'] = {split: count for split in sources if (count := _num_skipped(predicted[split, crop_sets[0]]))}
  results['members'] = [{'workdir': str(folder)} for folder in folders]
  for crop_set in crop_sets:
    members = predicted[test, crop_set]
    weights = search_weights(predicted[validation, crop_set]) if is_searched else [1 / len(folders)] * len(folders)
    results['weights'][crop_set] = weights
    tally = evaluate.count_errors(average(members, weights), class_names)
    results[crop_set], results['num_examples'] = tally.result(), tally.num_examples
    for row, member in zip(results['members'], members, strict=True):
      row |= {'step': member.num_steps, crop_set: evaluate.count_errors(member.blocks(), class_names).result()}
  print(table(results))
  folder = folders[0].parent / '+'.join(folder.name for folder in folders)[:LONGEST_NAME]
  folder.mkdir(exist_ok=True)
  evaluate.write_results(results, folder)
  if config.eval.submission:
    evaluate.submit(average(members, weights), source, folder)
  return results


def table(results: dict) -> str:
  """Sets out the members of an ensemble for a reader."""
  lines = [f'{"":10}{"top-1 error":>13}{"top-5 error":>13}{"weight":>9}']
  for crop_set, weights in results['weights'].items():
    for row, weight in zip(results['members'], weights, strict=True):
      errors = ''.join(f'{row[crop_set][error]:11.2f} %' if row[crop_set] else f'{"":13}' for error in ERRORS)
      lines.append(
        f'{transforms.CROP_SET_TITLES[crop_set]:10}{errors}{weight:9.3f}  {row["workdir"]}, step {row["step"]:,}'
      )
  return '\n'.join(lines)


def average(members: Sequence[SavedPredictions], weights: Sequence[float]) -> Iterator[Block]:
  """Yields the logarithm of the weighted mean of the probabilities, image by image.

  Args:
    members: predictions for the same images.
    weights: one for each member, 0 or more, not all 0; only their ratios count.
  """
  weights = np.asarray(weights, np.float64) / np.sum(weights)
  for blocks in zip(*(member.blocks() for member in members), strict=True):
    probs = sum(
      weight * np.exp(log_probs.astype(np.float64)) for weight, (log_probs, _) in zip(weights, blocks, strict=True)
    )
    with np.errstate(divide='ignore'):
      yield np.log(probs).astype(np.float32), _labels(blocks)


def search_weights(members: Sequence[SavedPredictions]) -> list[float]:
  """Finds weights for a weighted mean, one after the other, over and over.

  Each weight in turn takes the value of 0, 0.05, ... 1 with which most images have their class among the five best; of
  equals, among them the one with most images right, and of these the one it had. It starts from the plain mean and
  moves for the better alone. The 2012 tool did the same with the first criterion only (avg-valid; facts, 5).

  Args:
    members: predictions, two or more, for the same images, with labels.

  Returns:
    One weight for each member; they sum to 1.
  """
  weights = np.full(len(members), START)
  progress = tqdm.tqdm(total=NUM_PASSES * len(members), desc='weights of the ensemble', leave=False, mininterval=1)
  for _ in range(NUM_PASSES):
    before = weights.copy()
    for member in range(len(members)):
      credit = _credit(members, weights, member)
      weights[member] = max(credit, key=lambda value: (*credit[value], value == weights[member]))
      progress.update()
    if np.array_equal(weights, before):
      break
  progress.close()
  return (weights / weights.sum()).tolist()


def _credit(members, weights, member):
  """Counts, for every candidate weight of a member, the images with their class among the best five, and the best."""
  alone = not np.delete(weights, member).any()  # then a weight of 0 would leave nothing
  credit = {value: np.zeros(2) for value in CANDIDATES.tolist()[alone:]}
  for blocks in zip(*(other.blocks() for other in members), strict=True):
    labels = _labels(blocks)
    known = labels >= 0
    probs = [np.exp(log_probs[known]) for log_probs, _ in blocks]
    others = sum(
      np.float32(weight) * p for i, (weight, p) in enumerate(zip(weights, probs, strict=True)) if i != member
    )
    for value in credit:
      mixed = others + np.float32(value) * probs[member]
      credit[value] += [top_k_credit(mixed, labels[known], k).sum() for k in (5, 1)]
  return credit


def _labels(blocks):
  """Returns the labels of the images, `SKIPPED` where a member could not read its own."""
  return np.minimum.reduce([labels for _, labels in blocks])


def _num_skipped(members):
  return int(np.count_nonzero(np.minimum.reduce([member.labels for member in members]) == SKIPPED))
