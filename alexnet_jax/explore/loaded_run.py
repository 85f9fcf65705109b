"""A run that the page shows, shared by all visitors, and the parts that the tabs have in common."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.analysis import features
from alexnet_jax.data import cropping
from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import evaluate, metrics, trained_model
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.explore import training_map, units
from alexnet_jax.explore.training_map import TrainingMap
from alexnet_jax.explore.units import StrongestImages
from alexnet_jax.models import alexnet
from alexnet_jax.runs import run_folder
from alexnet_jax.runtime.errors import UsageError

NUM_CLASSES = 5  # with bars


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class LoadedRun:
  """A trained network that does not change while the page is served.

  Attributes:
    folder: folder of the run.
    config: config of the run.
    model: the network, on one device.
  """

  folder: pathlib.Path
  config: ConfigDict
  model: TrainedModel

  @functools.cached_property
  def test(self) -> Source:
    """The test split.

    Raises:
      UsageError: if the dataset of the run does not exist, or has other classes than the network.
      RunError: if it cannot be prepared.
    """
    source = features.open_dataset(self.folder, self.model.stored_size, split=self.config.data.test_split).source
    evaluate.check_classes(source, self.model.network.num_classes, self.folder)
    return source

  @functools.cache  # noqa: B019, a run is loaded until the process ends
  def strongest_images(self, layer: str) -> StrongestImages:
    """Finds the test images that excite the channels of a layer most; the second call returns the result at once."""
    return units.find_strongest_images(self.model, self.test, layer)

  @functools.cache  # noqa: B019
  def training_map(self, layer: str, projection: str) -> TrainingMap:
    """Draws the map of the training set; the second call returns the result at once."""
    return training_map.draw(self.model, self.folder, layer, projection)

  def class_name(self, label: int) -> str:
    """Returns the name of a class; that of the label -1 is 'unknown class'."""
    return self.model.class_names[label] if label >= 0 else 'unknown class'


def load(folder: pathlib.Path) -> LoadedRun:
  """Loads the newest checkpoint of a run.

  Raises:
    UsageError: if there is no such run, or its network is no AlexNet.
    RunError: if no checkpoint is readable.
  """
  config = run_folder.load_config(folder)
  alexnet.require_alexnet(config.model, 'this page')
  return LoadedRun(folder, config, trained_model.load(folder, batch_size=1, num_data=1, num_tower=1))


def by_title(runs: Sequence[LoadedRun]) -> Mapping[str, LoadedRun]:
  """Returns runs by title: the names of their folders, with those of the folders above where the names are equal.

  Raises:
    UsageError: if two runs are the same.
  """
  paths = [run.folder.absolute().parts for run in runs]
  for num_parts in range(1, max(map(len, paths)) + 1):
    titles = [str(pathlib.PurePath(*parts[-num_parts:])) for parts in paths]
    if len(set(titles)) == len(runs):
      return dict(zip(titles, runs, strict=True))
  raise UsageError(f'{runs[0].folder} is named twice; name another run, or this one alone.')


def probabilities(model: TrainedModel, image: np.ndarray, crops: Sequence[cropping.Crop]) -> np.ndarray:
  """Computes the probabilities of all classes for each crop of an image.

  Args:
    model: the network.
    image: stored image [size, size, rgb] uint8.
    crops: the crops.

  Returns:
    [crop, class] float32.
  """
  return np.exp(np.concatenate([np.asarray(model.log_probs(image[None], [crop])) for crop in crops]))


def class_titles(model: TrainedModel) -> list[str]:
  """Returns the class names by label, followed by the label if several classes have one name: 'crane (134)'."""
  counts = collections.Counter(model.class_names)
  return [name if counts[name] == 1 else f'{name} ({label})' for label, name in enumerate(model.class_names)]


def best_classes(model: TrainedModel, probabilities: np.ndarray) -> dict[str, float]:
  """Returns the most probable classes, {title: probability}, best first, for [class] probabilities."""
  titles, (labels,) = class_titles(model), metrics.best_classes(probabilities[None], NUM_CLASSES)
  return {titles[label]: float(probabilities[label]) for label in labels}


def require_image(image: np.ndarray | None) -> np.ndarray:
  """Returns the image of a visitor.

  Raises:
    UsageError: if there is none.
  """
  if image is None:
    raise UsageError('there is no photograph yet; drop one, or choose a random test image.')
  return image


def require_unit(run: LoadedRun, layer: str, unit: float | None) -> int:
  """Returns the number of a unit or map.

  Raises:
    UsageError: if the layer has no such unit.
  """
  num_units = run.model.layer_shape(layer)[-1]
  if unit is None or not 0 <= unit < num_units:
    raise UsageError(f'{layer} has the units 0 to {num_units - 1}; enter one of them.')
  return int(unit)
