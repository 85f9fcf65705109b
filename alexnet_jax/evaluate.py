"""Top-1 and top-5 error on a held-out split, from the centre patch or from ten views (section 4.1)."""

import contextlib
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import augment, data, fields, step, towers, workdir
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.errors import UsageError
from alexnet_jax.model import Network, build


def evaluate(
  network: Network,
  params: dict,
  source: data.Source,
  mean_image: jax.Array,
  config: ConfigDict,
  mesh: Mesh,
  views: Sequence[augment.View],
) -> dict[str, float]:
  """Looks at every example of a split exactly once.

  Args:
    network: to evaluate.
    params: its parameters.
    source: the split.
    mean_image: [size, size, rgb] float32 of the training set.
    config: the whole config.
    mesh: the devices; the current mesh.
    views: the patches whose predicted probabilities are averaged.

  Returns:
    'top1_error' and 'top5_error' in percent, 'log_prob' (the mean log-probability of the true class, nats), and
    'num_examples'.
  """
  totals = {'top1': 0.0, 'top5': 0.0, 'log_prob': 0.0, 'weight': 0.0}
  title = f'{source.split}, {len(views)} view(s)'
  progress = tqdm.tqdm(total=len(source), desc=title, unit=' images', leave=False, mininterval=1)
  for batch in data.evaluation_batches(source, config, share=towers.data_share(mesh)):
    batch = towers.put_batch(mesh, batch)
    log_probs = mean_log_probs(network, params, batch['image'], mean_image, config.model, views)
    for name, value in score(log_probs, batch['label'], batch['weight']).items():
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


def report(
  network: Network,
  params: dict,
  num_steps: int,
  source: data.Source,
  mean_image: jax.Array,
  config: ConfigDict,
  mesh: Mesh,
  folder: pathlib.Path,
) -> dict:
  """Evaluates a split for the record: prints a table and writes `results.json`.

  Args:
    network: to evaluate.
    params: its parameters.
    num_steps: steps it was trained for.
    source: the split.
    mean_image: [size, size, rgb] float32 of the training set.
    config: the whole config; `eval.ten_view` asks for ten views beside the centre.
    mesh: the devices; the current mesh.
    folder: of the run.

  Returns:
    What `results.json` holds.
  """
  results = {'dataset': source.dataset, 'split': source.split, 'num_examples': len(source), 'step': num_steps}
  protocols = {'centre': augment.centre_view()} | ({'ten_view': augment.ten_views()} if config.eval.ten_view else {})
  for name, views in protocols.items():
    row = evaluate(network, params, source, mean_image, config, mesh, views)
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
  trained = workdir.load_config(folder)
  config = config.copy_and_resolve_references()
  config.model = trained.model
  fields.check(config)
  num_classes = len(workdir.load_classes(folder))
  mean_image = workdir.load_statistics(folder).mean_image
  print(towers.versions())
  mesh = towers.make_mesh(
    config.mesh.data,
    config.mesh.tower,
    num_towers=config.model.num_towers,
    batches={'eval.batch_size': config.eval.batch_size},
  )
  print(towers.describe(mesh))
  (source,) = data.open_splits(config.data, config.model.image_size + augment.BORDER, [config.data.test_split])
  if source.num_classes != num_classes:
    raise UsageError(
      f'{source.dataset} has {source.num_classes} classes and the network in {folder} tells {num_classes} apart; '
      'name the data it was trained for.'
    )
  with jax.set_mesh(mesh), contextlib.closing(Checkpoints(folder)) as checkpoints:
    network = build(config.model, num_classes)
    if checkpoints.newest_step() is None:
      raise UsageError(f'{folder} holds no checkpoint yet; train there first.')
    hyper = step.hyperparameters(trained.optimizer)
    state, _ = checkpoints.restore(step.abstract_state(network, hyper), mesh)
    mean_image = jnp.asarray(mean_image, jnp.float32)
    return report(network, state.params, int(state.step), source, mean_image, config, mesh, folder)


def mean_log_probs(
  network: Network,
  params: dict,
  images: jax.Array,
  mean_image: jax.Array,
  config: ConfigDict,
  views: Sequence[augment.View],
) -> jax.Array:
  """Averages the probabilities predicted for several views of each image.

  Args:
    network: to ask.
    params: its parameters.
    images: stored images [batch, height, width, rgb] uint8.
    mean_image: [height, width, rgb] float32.
    config: the `model` part of the network's config.
    views: the views.

  Returns:
    Logarithm of the mean probabilities, [batch, class] float32, nats.
  """

  def look(view):
    mean_view = augment.mean_view(view, config.centre_mean)
    traced = [augment.View(np.int32(v.top), np.int32(v.left), np.bool_(v.mirrored)) for v in (view, mean_view)]
    return step.log_probs(params, images, mean_image, *traced, network=network, image_size=config.image_size)

  total = functools.reduce(jnp.logaddexp, map(look, views))
  return total - np.float32(np.log(len(views)))


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
