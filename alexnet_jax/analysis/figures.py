"""The paper's figures from a run: the functions of `python -m alexnet_jax figures`."""

import argparse
import itertools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from matplotlib.figure import Figure

from alexnet_jax.analysis import explain, features, figure2, measures, plots, similarity, training_neighbours
from alexnet_jax.analysis.explain import Explanation, Target
from alexnet_jax.data import cropping, image_io
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import evaluate, trained_model
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
    case 'explain':
      targets = [_parse_unit(*options.unit)] if options.unit else options.target or [None]
      if options.method == 'activation_maximisation':
        return optimised_images(selection, targets, num_steps=options.num_steps), 0
      return explanations(selection, options.method, targets, layer=options.layer, patch=options.patch)
    case 'similarity':
      return similarities(selection, options.other, measure=options.measure, by_tower=options.towers)
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
  except Exception as error:  # on damaged files numpy raises errors of many types
    raise UsageError(
      f'{path} is neither the folder of a run nor an .npz file with `weights` (height, width, 3, kernel).'
    ) from error
  if weights.dtype.kind != 'f' or not np.isfinite(weights).all():
    raise UsageError(f'the weights in {path} are {weights.dtype} and should be finite floating-point numbers.')
  if weights.ndim != 4 or not weights.size or weights.shape[2] != 3 or num_towers < 1 or weights.shape[3] % num_towers:
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
    source, order = _open_split(selection, model)
    errors, log_probs = find_errors(model, source, order, selection.num_images)
    if not len(errors):
      raise RunError(f'none of the {len(source):,} images is known to be misclassified; omit --only_errors.')
    images = _read_examples(source, errors)
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
    RunError: as `ImageSelection` describes, or as `training_neighbours.find`.
  """
  model = trained_model.load(selection.workdir, batch_size=0)
  model.check_layer(layer)
  images = _read_images(selection, model)
  found = training_neighbours.find(model, selection.workdir, images.images, layer, k, selection.data_dir)
  query_names = None
  if images.labels.min() >= 0:
    query_names = [model.class_names[label] for label in images.labels]
    same_class = np.mean(found.labels == images.labels[:, None])
    print(f'{100 * same_class:.0f} % of the neighbours have the class of their query')
  figure = plots.draw_neighbours(
    images.images,
    found.images,
    query_names,
    [[model.class_names[label] for label in labels] for labels in found.labels],
  )
  return figure, images.num_skipped


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
  explanations = explain.explain(model, images.images, 'saliency')
  titles = [f'{plots.short_name(drawn.name)}, {100 * drawn.score:.0f} %' for drawn in explanations]
  crops, gradients = (np.stack([getattr(drawn, name) for drawn in explanations]) for name in ('image', 'values'))
  figure = plots.draw_saliency(crops, gradients, titles, threshold)
  return figure, images.num_skipped


def similarities(
  selection: ImageSelection,
  other: pathlib.Path | None = None,
  *,
  measure: str = 'unbiased_cka',
  by_tower: bool = False,
) -> tuple[Figure, int]:
  """Draws the similarity of every layer of a run to every layer of the same or another run, for the same images.

  Prints the similarity of equally named layers of two runs, or of the towers of each layer of one run.

  Args:
    selection: the images; those of a split are the examples of the first run's dataset for both runs.
    other: folder of the other run; None for the same run.
    measure: name in `similarity.MEASURES`.
    by_tower: whether each layer is split into its towers.

  Raises:
    UsageError: if there are too few images, `by_tower` is set for networks of one tower, or as `ImageSelection`
      describes.
  """
  signatures, num_skipped = _signatures(selection, selection.workdir, measure, by_tower=by_tower)
  others = signatures
  if other:
    others, num_skipped = _signatures(selection, other, measure, by_tower=by_tower)
  matrix = np.stack(list(signatures.values())) @ np.stack(list(others.values())).T
  for (row, part), (column, other_part) in itertools.product(enumerate(signatures), enumerate(others)):
    is_printed = part == other_part if other else part.layer == other_part.layer and row < column
    if is_printed:
      print(f'{part} and {other_part}: {matrix[row, column]:.2f}')
  titles = [folder.absolute().name for folder in (selection.workdir, other or selection.workdir)]
  figure = plots.draw_similarity(matrix, list(signatures), list(others), titles, similarity.TITLES[measure])
  return figure, num_skipped


class LayerPart(NamedTuple):
  """A layer, or the part of a layer that belongs to a tower.

  Attributes:
    layer: name of the layer.
    tower: the tower; None for the whole layer.
  """

  layer: str
  tower: int | None

  def __str__(self) -> str:
    return self.layer if self.tower is None else f'{self.layer}, tower {self.tower}'


def _signatures(
  selection: ImageSelection, workdir: pathlib.Path, measure: str, *, by_tower: bool
) -> tuple[dict[LayerPart, np.ndarray], int]:
  """Returns the signature of each layer, or of each tower in each layer, and the number of skipped images."""
  model = trained_model.load(workdir, batch_size=0)
  num_towers = model.network.num_towers
  if by_tower and num_towers == 1:
    raise UsageError(f'the network of {workdir} has one tower; omit --towers.')
  images = _read_images(selection, model, of_its_classes=False)
  if len(images.images) < similarity.MIN_IMAGES:
    raise UsageError(f'{len(images.images)} images are too few to compare; choose {similarity.MIN_IMAGES} or more.')
  layers = model.network.layer_names
  outputs = model.in_batches(lambda batch: model.activations(batch, layers), images.images)
  parts = {}
  for tower in range(num_towers) if by_tower else [None]:
    for layer, x in zip(layers, outputs, strict=True):
      channels = math.ceil(x.shape[-1] / num_towers)
      part = x if tower is None else x[..., tower * channels : (tower + 1) * channels]
      parts[LayerPart(layer, tower)] = similarity.MEASURES[measure](part)
  return parts, images.num_skipped


def explanations(
  selection: ImageSelection,
  method: str,
  targets: Sequence[Target],
  *,
  layer: str | None = None,
  patch: tuple[int, int] | None = None,
) -> tuple[Figure, int]:
  """Draws images with the pixels on which classes or units depend.

  Args:
    selection: the images.
    method: one of `explain.METHODS`.
    targets: classes and units, see `explain.explain`; every image has a column for each.
    layer: layer whose maps 'grad_cam' weights.
    patch: (side, stride) of the patches of 'occlusion' in pixels.

  Raises:
    UsageError: as `explain.explain`, or as `ImageSelection` describes.
  """
  model = trained_model.load(selection.workdir, batch_size=0)
  images = _read_images(selection, model)
  by_target = [explain.explain(model, images.images, method, target, layer, patch) for target in targets]
  columns = [explanation for of_image in zip(*by_target, strict=True) for explanation in of_image]
  figure = plots.draw_explanations(
    [column.image for column in columns],
    [column.values for column in columns],
    [_score_title(model, column) for column in columns],
    in_colour=method == 'guided_backpropagation',
  )
  return figure, images.num_skipped


def optimised_images(selection: ImageSelection, targets: Sequence[Target], *, num_steps: int = 256) -> Figure:
  """Draws images that are optimised for classes or units.

  Args:
    selection: the run, and the seed of the noise; no files.
    targets: classes and units, see `explain.maximise`.
    num_steps: number of steps.

  Raises:
    UsageError: as `explain.maximise`, if files are named, or if there is no such run.
  """
  if selection.images:
    raise UsageError('activation_maximisation begins with noise; name no image.')
  model = trained_model.load(selection.workdir, batch_size=0)
  optimised = [explain.maximise(model, target, num_steps, seed=selection.seed) for target in targets]
  return plots.draw_images([row.image for row in optimised], [_score_title(model, row) for row in optimised])


def _parse_unit(layer: str, index: str) -> Target:
  if not index.isdecimal():
    raise UsageError(f"--unit={layer} '{index}' is not a unit; name a layer and a number, such as --unit conv3 7.")
  return layer, int(index)


def _score_title(model: TrainedModel, explanation: Explanation) -> str:
  if explanation.name in model.class_names:
    return f'{plots.short_name(explanation.name)}, {100 * explanation.score:.0f} %'
  return f'{explanation.name}: {explanation.score:.3g}'


def _log_probs(model: TrainedModel, images: np.ndarray) -> np.ndarray:
  crops = cropping.centre_crop_only(model.config.border)
  return model.in_batches(lambda batch: model.log_probs(batch, crops), images)


def _read_images(selection: ImageSelection, model: TrainedModel, *, of_its_classes: bool = True) -> Images:
  """Reads the selected files or random examples; prints the files that cannot be read."""
  if not selection.images:
    source, order = _open_split(selection, model, of_its_classes=of_its_classes)
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


def find_errors(
  model: TrainedModel, source: Source, order: np.ndarray, num_errors: int
) -> tuple[np.ndarray, np.ndarray]:
  """Evaluates the centre crops of a split in a given order until enough images are misclassified.

  Args:
    model: the network.
    source: the split.
    order: [image] int64, indices of the images.
    num_errors: number of misclassified images.

  Returns:
    Indices [error] int64 of up to `num_errors` images, and their log-probabilities [error, class] float32.
  """
  errors: list[tuple[int, np.ndarray]] = []
  batch_size = IMAGES_PER_DEVICE * model.mesh.shape['data']
  with tqdm.tqdm(total=len(order), unit=' images', desc='Finding errors', leave=False, mininterval=1) as bar:
    for start in range(0, len(order), batch_size):
      indices = order[start : start + batch_size]
      images, labels = source.read_batch(indices.tolist())
      log_probs = _log_probs(model, images)
      is_error = (log_probs.argmax(axis=1) != labels) & (labels >= 0)
      errors += zip(indices[is_error], log_probs[is_error], strict=True)
      bar.update(len(indices))
      if len(errors) >= num_errors:
        break
  found = errors[:num_errors]
  return np.array([index for index, _ in found], np.int64), np.array([row for _, row in found], np.float32)


def _open_split(
  selection: ImageSelection, model: TrainedModel, *, of_its_classes: bool = True
) -> tuple[Source, np.ndarray]:
  """Opens the selected split, whose classes must be the network's unless `of_its_classes` is False.

  Returns:
    The split, and all its indices in random order.
  """
  split = selection.split or run_folder.load_config(selection.workdir).data.test_split
  source = features.open_dataset(selection.workdir, model.stored_size, split=split, directory=selection.data_dir).source
  if of_its_classes:
    evaluate.check_classes(source, model.network.num_classes, selection.workdir)
  return source, np.random.default_rng(selection.seed).permutation(len(source))


def _read_examples(source: Source, indices: np.ndarray) -> Images:
  images, labels = source.read_batch(indices.tolist())
  return Images(images, labels, len(source.skipped))
