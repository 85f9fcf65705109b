"""A trained network, and what one can ask it about images."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.data import transforms
from alexnet_jax.evaluation import inference
from alexnet_jax.models import registry, towers
from alexnet_jax.models.registry import Network, build
from alexnet_jax.runs import checkpoints, run_folder
from alexnet_jax.runtime.errors import UsageError

IMAGES_PER_DEVICE = 64  # images looked at together, for each device


class TrainedModel(NamedTuple):
  """A network with its parameters, and what belongs to them.

  Images are always stored images, [batch, size, size, rgb] uint8, `config.border` pixels larger than what the network
  sees (section 4.1): a view cuts its patch out and subtracts its part of the mean image. Their number must be a
  multiple of the data axis of the mesh.

  Attributes:
    network: the network.
    params: its parameters, on the devices of the mesh.
    mean_image: [size, size, rgb] float32 of its training set, 0-255.
    class_names: in the order of the labels.
    num_steps: steps it was trained for.
    config: the `model` part of its config.
    mesh: the devices.
  """

  network: Network
  params: dict
  mean_image: jax.Array
  class_names: Sequence[str]
  num_steps: int
  config: ConfigDict
  mesh: Mesh

  @property
  def stored_size(self) -> int:
    """Side of the images it is asked about, pixels."""
    return self.mean_image.shape[0]

  def log_probs(self, images: np.ndarray, crops: Sequence[transforms.Crop]) -> jax.Array:
    """Averages the probabilities predicted for several views of each image (section 4.1).

    Args:
      images: stored images, on the devices or this process's share of them.
      crops: the crops.

    Returns:
      Logarithm of the mean probabilities, [batch, class] float32, nats.
    """
    ask = functools.partial(inference.log_probs, network=self.network, image_size=self.config.image_size)
    with jax.set_mesh(self.mesh):
      images = self._put(images)
      looks = (ask(self.params, images, self.mean_image, *self._traced(crop)) for crop in crops)
      return functools.reduce(jnp.logaddexp, looks) - np.float32(np.log(len(crops)))

  def centre_patches(self, images: np.ndarray) -> np.ndarray:
    """Cuts out of stored images [..., height, width, rgb] what the network sees of them."""
    top, left, _ = transforms.centre_crop(self.config.border)
    return images[..., top : top + self.config.image_size, left : left + self.config.image_size, :]

  def in_batches(
    self, question: Callable[[np.ndarray], jax.Array], images: np.ndarray, for_each_device: int = IMAGES_PER_DEVICE
  ) -> np.ndarray:
    """Asks about any number of images, as many at a time as the devices take, the last ones filled up with black.

    Args:
      question: a method of this class, or a function of it, of a batch of images.
      images: stored images, at least one.
      for_each_device: the most images that a device is asked about at a time.

    Returns:
      [image, ...], the answers.
    """
    num_data = self.mesh.shape['data']
    size = num_data * min(for_each_device, -(-len(images) // num_data))
    answers = []
    for start in range(0, len(images), size):
      some = images[start : start + size]
      filled = np.concatenate([some, np.zeros((size - len(some), *some.shape[1:]), np.uint8)])
      answers.append(np.asarray(question(filled))[: len(some)])
    return np.concatenate(answers)

  def activations(self, images: np.ndarray, layer: str, crop: transforms.Crop | None = None) -> jax.Array:
    """Computes what a stage of the network says of a view of each image.

    Args:
      images: stored images, on the devices or this process's share of them.
      layer: 'conv1', 'pool1', 'conv2', ... 'fc7', 'fc8', see `layer_shapes`.
      crop: the crop; the centre patch if none is given.

    Returns:
      [batch, height, width, channel] or [batch, unit] float32, see `network.Network`.

    Raises:
      UsageError: if the network has no such stage.
    """
    crop = crop or transforms.centre_crop(self.config.border)
    if layer not in self.network.layer_names:
      self.layer_shape(layer)  # says what there is
    ask = functools.partial(inference.activations, network=self.network, image_size=self.config.image_size, layer=layer)
    with jax.set_mesh(self.mesh):
      return ask(self.params, self._put(images), self.mean_image, *self._traced(crop))

  def saliency(self, images: np.ndarray, crop: transforms.Crop | None = None) -> jax.Array:
    """Computes how the log-probability of each image's top class changes with the pixels of a view.

    Args:
      images: stored images, on the devices or this process's share of them.
      crop: the crop; the centre patch if none is given.

    Returns:
      [batch, height, width, rgb] float32, nats for a grey level, in the places of the view.
    """
    crop = crop or transforms.centre_crop(self.config.border)
    ask = functools.partial(inference.saliency, network=self.network, image_size=self.config.image_size)
    with jax.set_mesh(self.mesh):
      return ask(self.params, self._put(images), self.mean_image, *self._traced(crop))

  def layer_shape(self, layer: str) -> tuple[int, ...]:
    """Returns the shape of what a stage says of one image.

    Raises:
      UsageError: if the network has no such stage.
    """
    shapes = self.layer_shapes()
    if layer not in shapes:
      raise UsageError(f"this network has no layer '{layer}'; it has {', '.join(shapes)}.")
    return shapes[layer]

  def layer_shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the shape of what each stage says of one image: {'conv1': (55, 55, 96), ..., 'fc8': (1000,)}."""
    return registry.layer_shapes(self.network, self.params, self.config.image_size, self.mesh)

  def _put(self, images):
    return images if isinstance(images, jax.Array) else towers.put_batch(self.mesh, images)

  def _traced(self, crop):
    """The view of the image and that of the mean image, as numbers of one type, so that all views share a program."""
    for one in (crop, transforms.mean_crop(crop, self.config.centre_mean, self.config.border)):
      yield transforms.Crop(np.int32(one.top), np.int32(one.left), np.bool_(one.mirrored))


def load(folder: pathlib.Path, *, batch_size: int, num_data: int = 0, num_tower: int = 0) -> TrainedModel:
  """Loads the newest checkpoint of a run.

  Args:
    folder: of the run.
    batch_size: how many images it will be asked about at a time; 0 where that will follow the mesh.
    num_data: devices that share a batch; 0 for what the tower axis leaves.
    num_tower: devices that share the towers; 0 for 2 where the number of devices is even.

  Raises:
    UsageError: if there is no run or checkpoint, it is not that of its config, or the devices do not fit it.
  """
  config = run_folder.load_config(folder).model
  class_names = run_folder.load_classes(folder)
  mean_image = jnp.asarray(run_folder.load_statistics(folder).mean_image, jnp.float32)
  mesh = towers.make_mesh(num_data, num_tower, num_towers=config.num_towers, batches={'eval.batch_size': batch_size})
  with jax.set_mesh(mesh):
    network = build(config, len(class_names))
    abstract_params = jax.eval_shape(network.init, jax.random.key(0))

  def select(there):
    here = jax.tree.map(lambda x: x.shape, abstract_params)
    if differing := checkpoints.shape_differences(there, here):
      raise UsageError(
        f'the checkpoint in {folder} does not fit config.json and classes.txt there ({"; ".join(differing)}); put back '
        'those of the run.'
      )
    return abstract_params

  num_steps, params = checkpoints.load_newest_params(folder, select, mesh)
  return TrainedModel(network, params, mean_image, class_names, num_steps, config, mesh)
