"""A trained network: its predictions and activations for stored images."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax.data import cropping
from alexnet_jax.data.image_io import StoredImages
from alexnet_jax.evaluation import inference
from alexnet_jax.models import device_mesh, registry
from alexnet_jax.models.registry import Network, build
from alexnet_jax.runs import checkpoints, run_folder
from alexnet_jax.runtime.errors import UsageError

IMAGES_PER_DEVICE = 64  # default batch size of `TrainedModel.in_batches`, per device


class TrainedModel(NamedTuple):
  """A network with its parameters, preprocessing and class names.

  All methods take stored images, [batch, size, size, rgb] uint8, which are `config.border` pixels larger than the crops
  that the network reads (section 4.1). They cut out the crops and subtract the same crops of the mean image. The number
  of images must be a multiple of the mesh's data axis.

  Attributes:
    network: the network.
    params: its parameters, on the devices of the mesh.
    mean_image: [size, size, rgb] float32 mean of the training set, 0-255.
    class_names: class names by label.
    num_steps: number of training steps.
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
    """Side of the stored images, pixels."""
    return self.mean_image.shape[0]

  def log_probs(self, images: np.ndarray | jax.Array, crops: Sequence[cropping.Crop]) -> jax.Array:
    """Averages the predicted probabilities over crops of each image (section 4.1).

    Args:
      images: stored images, on the devices or this process's shard of them on the host.
      crops: the crops, one or more.

    Returns:
      Logarithm of the mean probabilities, [batch, class] float32, nats.
    """
    compute = functools.partial(inference.log_probs, network=self.network, image_size=self.config.image_size)
    with jax.set_mesh(self.mesh):
      images = self._put(images)
      log_probs = (compute(self.params, images, self.mean_image, *self._crop_arrays(crop)) for crop in crops)
      return functools.reduce(jnp.logaddexp, log_probs) - np.float32(np.log(len(crops)))

  def arranged(self) -> TrainedModel:
    """Returns a copy for many batches of `log_probs` and nothing else, whose parameters a CPU reads faster."""
    with jax.set_mesh(self.mesh):
      return self._replace(params=inference.arranged(self.params, network=self.network))

  def centre_crops(self, images: np.ndarray) -> np.ndarray:
    """Cuts the centre crops out of stored images: [..., height, width, rgb] -> [..., image_size, image_size, rgb]."""
    top, left, _ = cropping.centre_crop(self.config.border)
    return images[..., top : top + self.config.image_size, left : left + self.config.image_size, :]

  def in_batches(
    self,
    function: Callable[[np.ndarray], Any],
    images: np.ndarray | StoredImages,
    images_per_device: int = IMAGES_PER_DEVICE,
  ) -> Any:
    """Applies a function to any number of images, batch by batch.

    Args:
      function: function of a batch of stored images, such as a method of this class, that returns an array [batch, ...]
        or a tuple of such arrays. The last batch is padded with black images, whose outputs are dropped.
      images: stored images, one or more.
      images_per_device: largest number of images per device in a batch.

    Returns:
      [image, ...], the outputs of the function, or a tuple of such arrays.
    """
    num_data = self.mesh.shape['data']
    batch_size = num_data * min(images_per_device, -(-len(images) // num_data))
    outputs: Any = None
    for start in range(0, len(images), batch_size):
      batch = images[start : start + batch_size]
      padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)
      of_batch = function(np.concatenate([batch, padding]))
      if outputs is None:
        outputs = jax.tree.map(lambda x: np.empty((len(images), *x.shape[1:]), x.dtype), of_batch)
      for array, x in zip(jax.tree.leaves(outputs), jax.tree.leaves(of_batch), strict=True):
        array[start : start + batch_size] = np.asarray(x)[: len(batch)]
    return outputs

  @overload
  def activations(self, images: np.ndarray | jax.Array, layer: str, crop: cropping.Crop | None = None) -> jax.Array: ...

  @overload
  def activations(
    self, images: np.ndarray | jax.Array, layer: list[str] | tuple[str, ...], crop: cropping.Crop | None = None
  ) -> tuple[jax.Array, ...]: ...

  def activations(self, images, layer, crop=None):
    """Computes the output of a layer, or of several in one pass, for a crop of each image.

    Args:
      images: stored images, on the devices or this process's shard of them on the host.
      layer: 'conv1', 'pool1', 'conv2', ... 'fc7', 'fc8', see `layer_shapes`, or several of these names.
      crop: the crop; by default the centre crop.

    Returns:
      [batch, height, width, channel] or [batch, unit] float32, see `registry.Network`; of several names, a tuple.

    Raises:
      UsageError: if the network has no such layer.
    """
    layers = (layer,) if isinstance(layer, str) else tuple(layer)
    for name in layers:
      self.check_layer(name)
    compute = functools.partial(
      inference.activations, network=self.network, image_size=self.config.image_size, layers=layers
    )
    with jax.set_mesh(self.mesh):
      outputs = compute(self.params, self._put(images), self.mean_image, *self._crop_arrays(crop))
    return outputs[0] if isinstance(layer, str) else outputs

  def check_layer(self, layer: str) -> None:
    """Checks that the network has a layer.

    Raises:
      UsageError: if it does not.
    """
    if layer not in self.network.layer_names:
      raise UsageError(f"this network has no layer '{layer}'; its layers are {', '.join(self.network.layer_names)}.")

  def layer_shape(self, layer: str) -> tuple[int, ...]:
    """Returns the output shape of a layer for one image.

    Raises:
      UsageError: if the network has no such layer.
    """
    self.check_layer(layer)
    return self.layer_shapes()[layer]

  def layer_shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the output shape of each layer for one image: {'conv1': (55, 55, 96), ..., 'fc8': (1000,)}."""
    return registry.layer_shapes(self.network, self.params, self.config.image_size, self.mesh)

  def _put(self, images):
    return images if isinstance(images, jax.Array) else device_mesh.put_batch(self.mesh, images)

  def _crop_arrays(self, crop: cropping.Crop | None) -> Iterator[cropping.Crop]:
    """Yields the crops of the image and of the mean image with numpy fields, so that one program serves all crops."""
    crop = crop or cropping.centre_crop(self.config.border)
    for top, left, mirrored in (crop, cropping.mean_crop(crop, self.config.centre_mean, self.config.border)):
      yield cropping.Crop(np.int32(top), np.int32(left), np.bool_(mirrored))


def load(folder: pathlib.Path, *, batch_size: int, num_data: int = 0, num_tower: int = 0) -> TrainedModel:
  """Loads the newest checkpoint of a run.

  Args:
    folder: folder of the run.
    batch_size: number of images per batch, which the mesh's data axis must divide; 0 if it is chosen later.
    num_data: devices along the data axis; 0 for all devices that the tower axis leaves.
    num_tower: devices along the tower axis; 0 for 2 if the number of devices is even and the network has two towers,
      else 1.

  Raises:
    UsageError: if there is no run or checkpoint, the checkpoint does not match the config, or the devices do not fit.
    RunError: if no checkpoint is readable.
  """
  config = run_folder.load_config(folder).model
  class_names = run_folder.load_classes(folder)
  mean_image = jnp.asarray(run_folder.load_statistics(folder).mean_image, jnp.float32)
  mesh = device_mesh.make_mesh(
    num_data, num_tower, num_towers=config.num_towers, batches={'eval.batch_size': batch_size}
  )
  with jax.set_mesh(mesh):
    network = build(config, len(class_names))
    abstract_params = jax.eval_shape(network.init, jax.random.key(0))

  def select(saved_shapes):
    expected = jax.tree.map(lambda x: x.shape, abstract_params)
    if differences := checkpoints.shape_differences(saved_shapes, expected):
      raise UsageError(
        f'the checkpoint in {folder} does not match config.json and classes.txt ({"; ".join(differences)}); restore '
        'the files of the run.'
      )
    return abstract_params

  num_steps, params = checkpoints.load_newest_params(folder, select, mesh)
  return TrainedModel(network, params, mean_image, class_names, num_steps, config, mesh)
