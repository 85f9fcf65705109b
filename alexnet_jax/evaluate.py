"""Top-1 and top-5 error on a held-out split, from the centre patch or from ten views (section 4.1)."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import tqdm
from ml_collections import ConfigDict

from alexnet_jax import augment, data, fields, step, towers, workdir
from alexnet_jax.errors import UsageError
from alexnet_jax.trained import Trained, load


def evaluate(
  trained: Trained, source: data.Source, config: ConfigDict, views: Sequence[augment.View]
) -> dict[str, float]:
  """Looks at every example of a split exactly once.

  Args:
    trained: the network.
    source: the split.
    config: the whole config.
    views: the patches whose predicted probabilities are averaged.

  Returns:
    'top1_error' and 'top5_error' in percent, 'log_prob' (the mean log-probability of the true class, nats), and
    'num_examples'.
  """
  totals = {'top1': 0.0, 'top5': 0.0, 'log_prob': 0.0, 'weight': 0.0}
  title = f'{source.split}, {len(views)} view(s)'
  progress = tqdm.tqdm(total=len(source), desc=title, unit=' images', leave=False, mininterval=1)
  for batch in data.evaluation_batches(source, config, share=towers.data_share(trained.mesh)):
    batch = towers.put_batch(trained.mesh, batch)
    for name, value in score(trained.log_probs(batch['image'], views), batch['label'], batch['weight']).items():
      totals[name] += float(value)
    progress.update(min(config.eval.batch_size, len(source) - progress.n))
  progress.close()
  seen = totals['weight']
  return {
    'top1_error': 100 * (1 - totals['top1'] / seen),
    'top5_error': 100 * (1 - totals['top5'] / seen),
    'log_prob': totals['log_prob'] / seen,
    'num_examples': round(seen),
  }


def report(trained: Trained, source: data.Source, config: ConfigDict, folder: pathlib.Path) -> dict:
  """Evaluates a split for the record: prints a table and writes `results.json`.

  Args:
    trained: the network.
    source: the split.
    config: the whole config; `eval.ten_view` asks for ten views beside the centre.
    folder: of the run.

  Returns:
    What `results.json` holds.
  """
  results = {'dataset': source.dataset, 'split': source.split, 'num_examples': len(source), 'step': trained.num_steps}
  border = trained.config.border
  protocols = {'centre': augment.centre_view(border)}
  if config.eval.ten_view:
    protocols['ten_view'] = augment.ten_views(border)
  for name, views in protocols.items():
    row = evaluate(trained, source, config, views)
    results['num_examples'] = row.pop('num_examples')
    results[name] = row
  workdir.write_results(folder, results)
  print(table(results), flush=True)
  return results


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
  fields.check(config)
  print(towers.versions())
  trained = load(folder, batch_size=config.eval.batch_size, num_data=config.mesh.data, num_tower=config.mesh.tower)
  print(towers.describe(trained.mesh))
  (source,) = data.open_splits(config.data, trained.stored_size, [config.data.test_split])
  if source.num_classes != trained.network.num_classes:
    raise UsageError(
      f'{source.dataset} has {source.num_classes} classes and the network in {folder} tells '
      f'{trained.network.num_classes} apart; name the data it was trained for.'
    )
  return report(trained, source, config, folder)


@jax.jit
def score(log_probs: jax.Array, label: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
  """Sums over a batch, in which weight 0 marks what is no example.

  Args:
    log_probs: [batch, class] float32, nats.
    label: [batch] int32.
    weight: [batch] float32, 1 or 0.

  Returns:
    Sums of 'top1' and 'top5' credit, of the label's 'log_prob', and of 'weight'.
  """
  return {
    'top1': jnp.sum(weight * step.top_k_credit(log_probs, label, 1)),
    'top5': jnp.sum(weight * step.top_k_credit(log_probs, label, 5)),
    'log_prob': jnp.sum(jnp.where(weight > 0, step.label_log_prob(log_probs, label), 0)),
    'weight': jnp.sum(weight),
  }


def table(results: dict) -> str:
  """Sets out what `results.json` holds for a reader."""
  lines = [
    f'{results["dataset"]}, split {results["split"]}, {results["num_examples"]:,} images, step {results["step"]:,}',
    f'{"":10}{"top-1 error":>13}{"top-5 error":>13}{"log-prob":>11}',
  ]
  for name, title in (('centre', 'centre'), ('ten_view', 'ten views')):
    if name in results:
      row = results[name]
      lines.append(f'{title:10}{row["top1_error"]:11.2f} %{row["top5_error"]:11.2f} %{row["log_prob"]:11.4f}')
  return '\n'.join(lines)
