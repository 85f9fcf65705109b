"""The paper's figures, from a run of one's own.

    python -m alexnet_jax figures kernels runs/digits                      # figure 3, and how colourful each tower is
    python -m alexnet_jax figures predictions runs/digits --only_errors    # figure 4, left
    python -m alexnet_jax figures neighbours runs/digits                   # figure 4, right
    python -m alexnet_jax figures curves runs/digits runs/digits-tanh --show error validation      # as figure 1
    python -m alexnet_jax figures maps runs/digits cat.jpg --layer=conv2
    python -m alexnet_jax figures saliency runs/digits cat.jpg dog.jpg
    python -m alexnet_jax figures architecture --config=configs/alexnet.py:one_tower               # figure 2

Each writes a PNG, or an SVG or PDF where --output says so. Where images are named they are files, folders or patterns;
else images of the run's test split are drawn at random. Exit status: 0 done, 1 failed, 2 wrong usage, 3 done but for
images that cannot be read (they are named), 75 stopped.
"""

import argparse
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm
from absl import logging

from alexnet_jax.analysis import features, figure2, measures, neighbours, plots
from alexnet_jax.data import image_io, sources, transforms
from alexnet_jax.evaluation import trained_model
from alexnet_jax.evaluation.predict import Prediction
from alexnet_jax.evaluation.trained_model import IMAGES_PER_DEVICE
from alexnet_jax.models import towers
from alexnet_jax.runs import config_files, run_folder
from alexnet_jax.runtime.errors import RunError, UsageError

SHOWN = {  # curve: (tag in TensorBoard, what the axis says)
  'error': ('train/error', 'training error, %'),
  'loss': ('train/loss', 'training loss, nats'),
  'validation': ('validation/top1_error', 'validation error, %'),
}


def draw(options: argparse.Namespace) -> int:
  """Draws a figure into its file.

  Args:
    options: from `parser`.

  Returns:
    How many images were left out, since they cannot be read.

  Raises:
    UsageError, RunError: as the figure needs.
  """
  output = options.output or pathlib.Path(f'{options.figure}.png')
  plots.check_suffix(output)
  figure, num_skipped = FIGURES[options.figure](options)
  plots.save(figure, output)
  print(f'{output} is drawn')
  return num_skipped


def draw_file_predictions(predictions: Sequence[Prediction], class_names: Sequence[str], output: pathlib.Path) -> None:
  """Draws image files with their five most probable classes.

  Raises:
    UsageError, RunError: as `plots.save`.
  """
  images = np.stack([prediction.image for prediction in predictions])
  log_probs = np.stack([prediction.log_probs for prediction in predictions])
  plots.save(plots.draw_predictions(images, log_probs, class_names), output)


# Figures of kernels, of runs, and of the network itself.


def _kernels(options):

  if options.source.is_dir():
    kernels = np.asarray(_load(options.source).params['conv1']['kernel'])
  else:
    kernels = _read_kernels(options.source, options.towers, options.bgr)
  for tower, shares in enumerate(measures.colour_fractions(kernels)):
    print(f'tower {tower}: {len(shares)} kernels, {100 * shares.mean():.1f} % of their energy is colour')
  return plots.draw_kernels(kernels, common_scale=options.common_scale), 0


def _read_kernels(path, num_towers, is_bgr):
  """Reads `weights` [height, width, rgb, kernel] as [tower, height, width, rgb, kernel]."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      kernels = arrays['weights']
  except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(
      f'{path} is neither the folder of a run nor an .npz file with `weights` (height, width, 3, kernel).'
    ) from error
  if kernels.ndim != 4 or kernels.shape[2] != 3 or num_towers < 1 or kernels.shape[3] % num_towers:
    raise UsageError(
      f'the weights in {path} are {kernels.shape} and should be (height, width, 3, kernel), with as many kernels in '
      f'each of --towers={num_towers}.'
    )
  kernels = kernels[:, :, ::-1] if is_bgr else kernels
  return np.stack(np.split(kernels, num_towers, axis=3))


def _curves(options):

  panels = {SHOWN[shown][1]: {} for shown in options.show}
  names = [folder.absolute().name for folder in options.workdirs]
  for folder, name in zip(options.workdirs, names, strict=True):
    config = run_folder.load_config(folder)
    steps_per_epoch = run_folder.load_statistics(folder).num_images / config.batch_size
    curves = read_curves(folder)
    for shown in options.show:
      tag, quantity = SHOWN[shown]
      if tag not in curves:
        raise UsageError(f"{folder} holds no '{tag}'; its curves are {', '.join(curves) or 'not written yet'}.")
      steps, values = curves[tag]
      panels[quantity][name if names.count(name) == 1 else str(folder)] = (steps / steps_per_epoch, values)
  return plots.draw_curves(panels), 0


def read_curves(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the TensorBoard curves of a run, {'train/loss': (steps [point], values [point]), ...}, which may be none."""
  if not (folder / 'tensorboard').is_dir():
    return {}
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # else TensorFlow, which only reads here, speaks of them
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  kinds = {event_accumulator.TENSORS: 0, event_accumulator.SCALARS: 0}  # 0: all points
  events = event_accumulator.EventAccumulator(str(folder / 'tensorboard'), kinds).Reload()
  curves = {}
  for tag in events.Tags()[event_accumulator.TENSORS]:
    points = {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
    curves[tag] = tuple(np.array(column) for column in zip(*sorted(points.items()), strict=True))
  return curves


def _architecture(options):

  if options.workdir:
    config, num_classes = run_folder.load_config(options.workdir), len(run_folder.load_classes(options.workdir))
  else:
    config, num_classes = config_files.load_config(options.config), options.num_classes
  if num_classes < 2:
    raise UsageError(f'--num_classes={num_classes} must be 2 or more.')
  mesh = towers.make_mesh(config.mesh.data, config.mesh.tower, num_towers=config.model.num_towers, batches={})
  layers = figure2.read_layers(config.model, num_classes, mesh)
  return figure2.draw_figure2(layers, config.model.image_size, num_classes, mesh, config.model.num_towers), 0


# Figures of images.


class Pictures(NamedTuple):
  """Images to draw.

  Attributes:
    images: stored images [image, size, size, rgb] uint8.
    labels: [image] int32; -1 where the class is not known, as of a user's files.
    num_skipped: files that cannot be read.
  """

  images: np.ndarray
  labels: np.ndarray
  num_skipped: int


def _load(folder):

  logging.set_verbosity(logging.ERROR)  # Orbax's own chatter
  return trained_model.load(folder, batch_size=trained_model.IMAGES_PER_DEVICE * jax.device_count())


def _log_probs(trained, images):

  crop = transforms.centre_crop_only(trained.config.border)
  return trained.in_batches(lambda some: trained.log_probs(some, crop), images)


def _pictures(options, trained):
  """Reads the images that the command line names, or draws some."""
  if options.num_images < 1:
    raise UsageError(f'--num_images={options.num_images} must be 1 or more.')
  if not options.images:
    source = _test_split(options, trained)
    order = np.random.default_rng(options.seed).permutation(len(source))[: options.num_images]
    return _read(source, order)

  found, num_skipped = [], 0
  for path in image_io.find_images(options.images):
    try:
      found.append(image_io.read_square(path, trained.stored_size))
    except ValueError as error:
      num_skipped += 1
      print(f'left out: {path}: {error}', file=sys.stderr)
  if not found:
    raise RunError('none of the images can be read; name others.')
  return Pictures(np.stack(found), np.full(len(found), -1, np.int32), num_skipped)


def _test_split(options, trained):

  config = run_folder.load_config(options.workdir)
  config.data.dir = options.data_dir or config.data.dir
  split = options.split or config.data.test_split
  (source,) = sources.open_splits(config.data, trained.stored_size, [split], may_lack_labels=[split])
  return source


def _read(source, indices):
  images, labels = source.read_together(indices.tolist())
  return Pictures(images, labels, len(source.skipped))


def _predictions(options):

  trained = _load(options.workdir)
  if options.only_errors:
    if options.images:
      raise UsageError('--only_errors is for images of the test split, whose classes are known; name no files.')
    pictures, log_probs = _errors(options, trained)
  else:
    pictures = _pictures(options, trained)
    log_probs = _log_probs(trained, pictures.images)
  figure = plots.draw_predictions(pictures.images, log_probs, trained.class_names, pictures.labels)
  return figure, pictures.num_skipped


def _errors(options, trained):
  """Draws images whose first guess is wrong: goes through the split in a random order until there are enough."""
  source = _test_split(options, trained)
  order = np.random.default_rng(options.seed).permutation(len(source))
  found, batch_size = [], IMAGES_PER_DEVICE * trained.mesh.shape['data']
  with tqdm.tqdm(total=len(source), unit=' images', desc='Looking for errors', leave=False, mininterval=1) as bar:
    for start in range(0, len(order), batch_size):
      some = _read(source, order[start : start + batch_size])
      log_probs = _log_probs(trained, some.images)
      wrong = (log_probs.argmax(axis=1) != some.labels) & (some.labels >= 0)
      found += zip(some.images[wrong], some.labels[wrong], log_probs[wrong], strict=True)
      bar.update(len(some.images))
      if len(found) >= options.num_images:
        break
  if not found:
    raise RunError(f'none of the {len(source):,} first guesses is known to be wrong; leave out --only_errors.')
  images, labels, log_probs = map(np.stack, zip(*found[: options.num_images], strict=True))
  return Pictures(images, labels, some.num_skipped), log_probs


def _neighbours(options):

  trained = _load(options.workdir)
  trained.layer_shape(options.layer)
  pictures = _pictures(options, trained)
  dataset = features.dataset(
    options.workdir,
    trained.stored_size,
    directory=options.data_dir,
    batch_size=IMAGES_PER_DEVICE * trained.mesh.shape['data'],
  )
  about = f'{options.layer}-step{trained.num_steps}-{dataset.about["dataset"]}-{dataset.about["split"]}'
  folder = options.workdir / 'features' / re.sub(r'[^A-Za-z0-9._-]+', '_', about)
  if not folder.exists():
    print(f'{options.layer} of the training images goes to {folder}, once', flush=True)
    features.extract(trained, dataset, options.layer, options.workdir, folder)
  train = features.load(folder)
  if not 1 <= options.k <= len(train.features):
    raise UsageError(f'--k={options.k} must be 1 to {len(train.features):,}, the number of training images.')
  queries = trained.in_batches(lambda some: trained.activations(some, options.layer), pictures.images)
  indices, _ = neighbours.nearest(queries, train.features, options.k)
  numbers = np.array([int(name.rpartition('/')[2]) for name in train.names])  # in the split; skipped images have no row
  near = [_read(dataset.source, numbers[of_one]) for of_one in indices]
  names = trained.class_names
  query_names = None
  if pictures.labels.min() >= 0:
    query_names = [names[label] for label in pictures.labels]
    same = np.mean([one.labels == label for one, label in zip(near, pictures.labels, strict=True)])
    print(f'{100 * same:.0f} % of the neighbours are of the class of their image')
  figure = plots.draw_neighbours(
    pictures.images,
    np.stack([one.images for one in near]),
    query_names,
    [[names[label] for label in one.labels] for one in near],
  )
  return figure, pictures.num_skipped


def _maps(options):

  trained = _load(options.workdir)
  shape = trained.layer_shape(options.layer)
  if len(shape) != 3:
    with_maps = ', '.join(stage for stage, shape in trained.layer_shapes().items() if len(shape) == 3)
    raise UsageError(f'{options.layer} has no maps; choose one of {with_maps}.')
  pictures = _pictures(options, trained)
  if len(pictures.images) > 1:
    raise UsageError(f'maps are drawn of one image and {len(pictures.images)} are named; name one.')
  (maps,) = trained.in_batches(lambda some: trained.activations(some, options.layer), pictures.images)
  figure = plots.draw_maps(
    trained.centre_patches(pictures.images)[0],
    maps,
    options.layer,
    trained.network.num_towers,
    common_scale=options.common_scale,
  )
  return figure, pictures.num_skipped


def _saliency(options):

  if not options.threshold >= 0:
    raise UsageError(f'--threshold={options.threshold} must be 0 or more; the tool of 2012 had 3.')
  trained = _load(options.workdir)
  pictures = _pictures(options, trained)
  log_probs = _log_probs(trained, pictures.images)
  gradients = trained.in_batches(trained.saliency, pictures.images)
  best = log_probs.argmax(axis=1)
  titles = [
    f'{plots.short_name(trained.class_names[one])}, {100 * np.exp(row[one]):.0f} %'
    for one, row in zip(best, log_probs, strict=True)
  ]
  return plots.draw_saliency(
    trained.centre_patches(pictures.images), gradients, titles, options.threshold
  ), pictures.num_skipped


FIGURES = {
  'kernels': _kernels,
  'predictions': _predictions,
  'neighbours': _neighbours,
  'curves': _curves,
  'maps': _maps,
  'saliency': _saliency,
  'architecture': _architecture,
}
