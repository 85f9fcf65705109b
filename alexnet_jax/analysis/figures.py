"""The paper's figures from a run: the functions of `python -m alexnet_jax figures`."""

import argparse
import pathlib
import re
import sys
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from matplotlib.figure import Figure

from alexnet_jax.analysis import features, figure2, measures, plots
from alexnet_jax.analysis.features import DatasetImages, Features
from alexnet_jax.analysis.neighbours import find_nearest
from alexnet_jax.data import cropping, image_io, sources
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import trained_model
from alexnet_jax.evaluation.predict import Prediction
from alexnet_jax.evaluation.trained_model import IMAGES_PER_DEVICE, TrainedModel
from alexnet_jax.models import device_mesh
from alexnet_jax.runs import config_files, run_folder
from alexnet_jax.runs.curves import CURVES, read_curves
from alexnet_jax.runtime.errors import RunError, UsageError


def draw(options: argparse.Namespace) -> int:
  """Draws and saves the figure of a command line, and returns the number of images that could not be read.

  Raises:
    UsageError, RunError: as the function of the figure and `plots.save`.
  """
  output = options.output or pathlib.Path(f'{options.figure}.png')
  plots.check_suffix(output)
  figure, num_skipped = make_figure(options)
  plots.save(figure, output)
  print(f'Saved {output}')
  return num_skipped


def make_figure(options: argparse.Namespace) -> tuple[Figure, int]:
  """Makes the figure of a command line, and returns it with the number of images that could not be read.

  Raises:
    UsageError: if `--num_images` is less than 1.
    UsageError, RunError: as the function of the figure.
  """
  match options.figure:
    case 'kernels':
      figure = kernels(options.source, num_towers=options.towers, is_bgr=options.bgr, common_scale=options.common_scale)
      return figure, 0
    case 'curves':
      return curves(options.workdirs, show=options.show), 0
    case 'architecture':
      return architecture(
        options.workdir, config_file=options.config, num_classes=options.num_classes, compact=options.compact
      ), 0
  if options.num_images < 1:
    raise UsageError(f'--num_images={options.num_images} must be 1 or more.')
  selection = ImageSelection(**{name: getattr(options, name) for name in ImageSelection._fields})
  match options.figure:
    case 'predictions':
      return predictions(selection, only_errors=options.only_errors)
    case 'neighbours':
      return neighbours(selection, k=options.k, layer=options.layer)
    case 'maps':
      return maps(selection, layer=options.layer, common_scale=options.common_scale)
    case 'saliency':
      return saliency(selection, threshold=options.threshold)
  raise ValueError(f"there is no figure '{options.figure}'")


def draw_file_predictions(predictions: Sequence[Prediction], class_names: Sequence[str], output: pathlib.Path) -> None:
  """Draws image files with the five most probable classes of each, and saves the figure; raises as `plots.save`."""
  images = np.stack([prediction.image for prediction in predictions])
  log_probs = np.stack([prediction.log_probs for prediction in predictions])
  plots.save(plots.draw_predictions(images, log_probs, class_names), output)


# Figures of kernels, of curves, and of the network.


def kernels(source: pathlib.Path, *, num_towers: int = 2, is_bgr: bool = False, common_scale: bool = False) -> Figure:
  """Draws the kernels of conv1 by tower and prints their colour fraction (figure 3).

  Args:
    source: folder of a run, or .npz file with an array `weights` [height, width, channel, kernel].
    num_towers: number of towers of the kernels in a file.
    is_bgr: whether the channels in a file are blue, green, red.
    common_scale: whether all kernels are drawn on one scale.

  Raises:
    UsageError: if the source is neither, the file has other shapes, or as `trained_model.load`.
  """
  if source.is_dir():
    weights = np.asarray(trained_model.load(source, batch_size=0).params['conv1']['kernel'])
  else:
    weights = _read_kernels(source, num_towers, is_bgr)
  for tower, fractions in enumerate(measures.colour_fractions(weights)):
    print(f'tower {tower}: {len(fractions)} kernels, {100 * fractions.mean():.1f} % of their energy is colour')
  return plots.draw_kernels(weights, common_scale=common_scale)


def _read_kernels(path: pathlib.Path, num_towers: int, is_bgr: bool) -> np.ndarray:
  """Reads `weights` [height, width, rgb, kernel] as [tower, height, width, rgb, kernel]."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      weights = arrays['weights']
  except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
    raise UsageError(
      f'{path} is neither the folder of a run nor an .npz file with `weights` (height, width, 3, kernel).'
    ) from error
  if weights.ndim != 4 or weights.shape[2] != 3 or num_towers < 1 or weights.shape[3] % num_towers:
    raise UsageError(
      f'the weights in {path} are {weights.shape} and should be (height, width, 3, kernel), with an equal number of '
      f'kernels in each of --towers={num_towers}.'
    )
  weights = weights[:, :, ::-1] if is_bgr else weights
  return np.stack(np.split(weights, num_towers, axis=3))


def curves(workdirs: Sequence[pathlib.Path], *, show: Sequence[str] = ('error',)) -> Figure:
  """Draws the training curves of runs, with a panel for each quantity (figure 1).

  Args:
    workdirs: folders of the runs.
    show: names in `CURVES`.

  Raises:
    UsageError: if a folder holds no run, or not these curves.
  """
  panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {CURVES[name][1]: {} for name in show}
  run_names = [folder.absolute().name for folder in workdirs]
  for folder, run_name in zip(workdirs, run_names, strict=True):
    label = run_name if run_names.count(run_name) == 1 else str(folder)
    config = run_folder.load_config(folder)
    steps_per_epoch = run_folder.load_statistics(folder).num_images / config.batch_size
    run_curves = read_curves(folder)
    for name in show:
      tag, quantity = CURVES[name]
      if tag not in run_curves:
        existing = ', '.join(run_curves) or 'not written yet'
        raise UsageError(f"{folder} contains no '{tag}'; its curves are {existing}.")
      steps, values = run_curves[tag]
      panels[quantity][label] = steps / steps_per_epoch, values
  return plots.draw_curves(panels)


def architecture(
  workdir: pathlib.Path | None = None,
  *,
  config_file: str = 'configs/alexnet.py',
  num_classes: int = 1000,
  compact: bool = False,
) -> Figure:
  """Draws a network and its distribution over the devices (figure 2).

  Args:
    workdir: folder of a run.
    config_file: FILE.py or FILE.py:VARIANT,... with the config of the network if there is no run.
    num_classes: number of classes if there is no run, 2 or more.
    compact: whether to omit the numbers below the layers, so that the figure fits on a narrow screen.

  Raises:
    UsageError: if there is no such run, config or network, or too few devices or classes.
  """
  if workdir:
    config, num_classes = run_folder.load_config(workdir), len(run_folder.load_classes(workdir))
  else:
    config = config_files.load_config(config_file)
  if num_classes < 2:
    raise UsageError(f'--num_classes={num_classes} must be 2 or more.')
  num_towers = config.model.num_towers
  mesh = device_mesh.make_mesh(config.mesh.data, config.mesh.tower, num_towers=num_towers, batches={})
  layers = figure2.read_layers(config.model, num_classes, mesh)
  return figure2.draw_figure2(layers, config.model.image_size, num_classes, mesh, num_towers, compact=compact)


# Figures of images.


class ImageSelection(NamedTuple):
  """The images of a figure: image files, or random examples of a split.

  The functions that take it return the figure, and the number of images that could not be read. They raise `UsageError`
  if there is no such run, file, split or layer, and `RunError` if no image can be read.

  Attributes:
    workdir: folder of the run whose network evaluates the images.
    num_images: number of random examples, 1 or more.
    images: files, folders and patterns; if not empty, these files are the images.
    seed: seed of the random choice.
    split: split of the random examples in TFDS's notation; None for the run's test split.
    data_dir: folder of the dataset; None for the run's.
  """

  workdir: pathlib.Path
  num_images: int
  images: Sequence[str] = ()
  seed: int = 0
  split: str | None = None
  data_dir: str | None = None


class Images(NamedTuple):
  """Images to draw.

  Attributes:
    images: [image, size, size, rgb] uint8, stored images.
    labels: [image] int32; -1 if the class is unknown, as for image files.
    num_skipped: number of images that could not be read.
  """

  images: np.ndarray
  labels: np.ndarray
  num_skipped: int


def predictions(selection: ImageSelection, *, only_errors: bool = False) -> tuple[Figure, int]:
  """Draws images with the five most probable classes of each (figure 4, left).

  Args:
    selection: the images.
    only_errors: whether only misclassified examples of the split are drawn.

  Raises:
    UsageError: if `only_errors` is combined with files, or as `ImageSelection` describes.
    RunError: if no image is misclassified, or as `ImageSelection` describes.
  """
  model = trained_model.load(selection.workdir, batch_size=0)
  if not only_errors:
    images = _read_images(selection, model)
    log_probs = _log_probs(model, images.images)
  elif not selection.images:
    images, log_probs = _read_errors(selection, model)
  else:
    raise UsageError('--only_errors requires images whose classes are known, those of a split; name no files.')
  figure = plots.draw_predictions(images.images, log_probs, model.class_names, images.labels)
  return figure, images.num_skipped


def neighbours(selection: ImageSelection, *, k: int = 6, layer: str = 'fc7') -> tuple[Figure, int]:
  """Draws images with their nearest training images (figure 4, right).

  Prints the percentage of neighbours with the class of their query if the classes are known. The features of the
  training images are extracted once and saved to WORKDIR/features/.

  Args:
    selection: the images.
    k: number of neighbours.
    layer: layer whose activations are compared.

  Raises:
    UsageError: if `k` is not 1 to the number of training images, or as `ImageSelection` describes.
    RunError: as `ImageSelection` describes, `features.extract` or `find_nearest`.
  """
  workdir = selection.workdir
  model = trained_model.load(workdir, batch_size=0)
  model.check_layer(layer)
  images = _read_images(selection, model)
  batch_size = IMAGES_PER_DEVICE * model.mesh.shape['data']
  dataset = features.open_dataset(workdir, model.stored_size, directory=selection.data_dir, batch_size=batch_size)
  train = _training_features(workdir, model, dataset, layer)
  if not 1 <= k <= len(train.features):
    raise UsageError(f'--k={k} must be 1 to {len(train.features):,}, the number of training images.')
  queries = model.in_batches(lambda batch: model.activations(batch, layer), images.images)
  rows, _ = find_nearest(queries, train.features, k)
  indices = np.array([int(name.rpartition('/')[2]) for name in train.names])  # skipped images have no row
  nearest = [_read_examples(dataset.source, indices[query_rows]) for query_rows in rows]
  query_names = None
  if images.labels.min() >= 0:
    query_names = [model.class_names[label] for label in images.labels]
    same_class = np.mean([near.labels == label for near, label in zip(nearest, images.labels, strict=True)])
    print(f'{100 * same_class:.0f} % of the neighbours have the class of their query')
  figure = plots.draw_neighbours(
    images.images,
    np.stack([near.images for near in nearest]),
    query_names,
    [[model.class_names[label] for label in near.labels] for near in nearest],
  )
  return figure, images.num_skipped


def _training_features(workdir: pathlib.Path, model: TrainedModel, dataset: DatasetImages, layer: str) -> Features:
  """Loads the features of the training images, which are extracted and saved first if necessary."""
  name = f'{layer}-step{model.num_steps}-{dataset.about["dataset"]}-{dataset.about["split"]}'
  folder = workdir / 'features' / re.sub(r'[^A-Za-z0-9._-]+', '_', name)
  if not folder.exists():
    print(f'Saving {layer} of the training images to {folder}', flush=True)
    features.extract(model, dataset, layer, workdir, folder)
  return features.load(folder)


def maps(selection: ImageSelection, *, layer: str = 'conv1', common_scale: bool = False) -> tuple[Figure, int]:
  """Draws the kernel maps of a layer for one image, by tower.

  Args:
    selection: the image.
    layer: convolutional or pooling layer.
    common_scale: whether all maps are drawn on one scale.

  Raises:
    UsageError: if the layer has no maps, there are several images, or as `ImageSelection` describes.
  """
  model = trained_model.load(selection.workdir, batch_size=0)
  if len(model.layer_shape(layer)) != 3:
    with_maps = ', '.join(name for name, shape in model.layer_shapes().items() if len(shape) == 3)
    raise UsageError(f'{layer} has no maps; choose one of {with_maps}.')
  images = _read_images(selection, model)
  if len(images.images) > 1:
    raise UsageError(f'maps are drawn for one image, but there are {len(images.images)}; name one.')
  (layer_maps,) = model.in_batches(lambda batch: model.activations(batch, layer), images.images)
  (crop,) = model.centre_crops(images.images)
  figure = plots.draw_maps(crop, layer_maps, layer, model.network.num_towers, common_scale=common_scale)
  return figure, images.num_skipped


def saliency(selection: ImageSelection, *, threshold: float = 3.0) -> tuple[Figure, int]:
  """Draws images with the gradient of the top class's log-probability with respect to the pixels.

  Args:
    selection: the images.
    threshold: gradients below this many standard deviations are drawn as zero, 0 or more.

  Raises:
    UsageError: if the threshold is negative, or as `ImageSelection` describes.
  """
  if not threshold >= 0:
    raise UsageError(f'--threshold={threshold} must be 0 or more; the tool of 2012 used 3.')
  model = trained_model.load(selection.workdir, batch_size=0)
  images = _read_images(selection, model)
  log_probs = _log_probs(model, images.images)
  gradients = model.in_batches(model.saliency, images.images)
  titles = [
    f'{plots.short_name(model.class_names[label])}, {100 * np.exp(row[label]):.0f} %'
    for label, row in zip(log_probs.argmax(axis=1), log_probs, strict=True)
  ]
  figure = plots.draw_saliency(model.centre_crops(images.images), gradients, titles, threshold)
  return figure, images.num_skipped


def _log_probs(model: TrainedModel, images: np.ndarray) -> np.ndarray:
  crops = cropping.centre_crop_only(model.config.border)
  return model.in_batches(lambda batch: model.log_probs(batch, crops), images)


def _read_images(selection: ImageSelection, model: TrainedModel) -> Images:
  """Reads the selected files or random examples; prints the files that cannot be read."""
  if not selection.images:
    source, order = _open_split(selection, model)
    return _read_examples(source, order[: selection.num_images])
  images, num_skipped = [], 0
  for path in image_io.find_images(selection.images):
    try:
      images.append(image_io.read_square(path, model.stored_size))
    except ValueError as error:
      num_skipped += 1
      print(f'skipped {path}: {error}', file=sys.stderr)
  if not images:
    raise RunError('none of the images can be read; name others.')
  return Images(np.stack(images), np.full(len(images), -1, np.int32), num_skipped)


def _read_errors(selection: ImageSelection, model: TrainedModel) -> tuple[Images, np.ndarray]:
  """Evaluates a split in random order until enough examples are misclassified; returns them and their log_probs."""
  source, order = _open_split(selection, model)
  errors: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
  batch_size = IMAGES_PER_DEVICE * model.mesh.shape['data']
  with tqdm.tqdm(total=len(source), unit=' images', desc='Finding errors', leave=False, mininterval=1) as bar:
    for start in range(0, len(order), batch_size):
      examples = _read_examples(source, order[start : start + batch_size])
      log_probs = _log_probs(model, examples.images)
      is_error = (log_probs.argmax(axis=1) != examples.labels) & (examples.labels >= 0)
      errors += zip(examples.images[is_error], examples.labels[is_error], log_probs[is_error], strict=True)
      bar.update(len(examples.images))
      if len(errors) >= selection.num_images:
        break
  if not errors:
    raise RunError(f'none of the {len(source):,} images is known to be misclassified; omit --only_errors.')
  images, labels, log_probs = map(np.stack, zip(*errors[: selection.num_images], strict=True))
  return Images(images, labels, len(source.skipped)), log_probs


def _open_split(selection: ImageSelection, model: TrainedModel) -> tuple[Source, np.ndarray]:
  """Opens the selected split; returns it with all indices in random order."""
  config = run_folder.load_config(selection.workdir)
  config.data.dir = selection.data_dir or config.data.dir
  split = selection.split or config.data.test_split
  (source,) = sources.open_splits(config.data, model.stored_size, [split], allow_unlabelled=[split])
  return source, np.random.default_rng(selection.seed).permutation(len(source))


def _read_examples(source: Source, indices: np.ndarray) -> Images:
  images, labels = source.read_batch(indices.tolist())
  return Images(images, labels, len(source.skipped))
