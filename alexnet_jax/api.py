"""The public API's trained networks: loading, classification, activations and explanations; see `alexnet_jax`."""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.analysis import explain
from alexnet_jax.analysis.explain import Explanation, Target
from alexnet_jax.data import cropping
from alexnet_jax.data.image_io import Image, StoredImages, is_one_image
from alexnet_jax.evaluation import metrics, trained_model
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.interop import caffe_files, import_export, weight_files
from alexnet_jax.runs import run_folder
from alexnet_jax.runtime.errors import UsageError

Path: TypeAlias = str | os.PathLike[str]
Images: TypeAlias = Image | Iterable[Image]


class Model:
  """A trained network on one device.

  The methods take images of any size. An image is a path of a file, an array [height, width, rgb] uint8, 0-255, or an
  image of Pillow; several images are a list of these, or an array [batch, height, width, rgb]. As in training, an image
  is resized so that its short side fits, and its centre is cropped (section 2).

  Attributes:
    config: config of the run. `config.model` describes the network, and the other fields the training.
  """

  def __init__(self, trained: TrainedModel, config: ConfigDict):
    """Takes the network and the config of its run; see `load`."""
    self._trained, self.config = trained, config

  @property
  def params(self) -> dict[str, dict[str, jax.Array]]:
    """Parameters by layer, float32.

    For example {'conv1': {'kernel': [tower, height, width, in, out], 'bias': [tower, out]}, ...}; the kernels of fc6 to
    fc8 are [tower, in, out].
    """
    return self._trained.params

  @property
  def class_names(self) -> list[str]:
    """Class names by label."""
    return list(self._trained.class_names)

  @property
  def layer_names(self) -> tuple[str, ...]:
    """Names of the layers in the order of the network, such as 'conv1', 'pool1', 'conv2', ... 'fc7', 'fc8'."""
    return self._trained.network.layer_names

  def predict(self, images: Images, num_classes: int = 5) -> list:
    """Returns the most probable classes of images.

    The probabilities are averaged over the crops that `config.eval` selects, ten by default (section 4.1). A network
    trained without mirroring reads the centre crop alone.

    Args:
      images: one or more images, see the class.
      num_classes: number of classes per image.

    Returns:
      [(class name, probability), ...], best first; for several images a list of such lists.

    Raises:
      UsageError: if there is no image, a file cannot be read, an array is no image, or `num_classes` is below 1.
    """
    if num_classes < 1:
      raise UsageError(f'num_classes={num_classes} must be 1 or more.')
    crops = cropping.TEST_TIME_CROPS[cropping.prediction_crop_set(self.config)](self.config.model.border)
    log_probs = self._in_batches(lambda batch: self._trained.log_probs(batch, crops), images)
    predictions = [
      [(self._trained.class_names[label], float(np.exp(row[label]))) for label in labels]
      for row, labels in zip(log_probs, metrics.best_classes(log_probs, num_classes).tolist(), strict=True)
    ]
    return predictions[0] if is_one_image(images) else predictions

  def features(self, images: Images, layer: str = 'fc7') -> np.ndarray:
    """Computes the output of a layer for the centre crop of images.

    Args:
      images: one or more images, see the class.
      layer: one of `layer_names`.

    Returns:
      [image, height, width, channel] or [image, unit] float32, also for one image. The channels of the first tower are
      first. The outputs of fc6 and fc7 are not halved by dropout, and those of fc8 are the logits.

    Raises:
      UsageError: if there is no such layer or no image, a file cannot be read, or an array is no image.
    """
    return self._in_batches(lambda batch: self._trained.activations(batch, layer), images)

  def explain(
    self,
    image: Image,
    method: str = 'saliency',
    target: Target = None,
    *,
    layer: str | None = None,
    patch: tuple[int, int] | None = None,
  ) -> Explanation:
    """Computes on which pixels of an image, in its centre crop, a class or a unit depends.

    The methods, and the values that they compute:

    - 'saliency': the gradient of the class's log-probability with respect to the pixels, [height, width, rgb], in nats
      per grey level (Simonyan, Vedaldi and Zisserman, 2014).
    - 'guided_backpropagation': the gradient of the logit, where each ReLU passes only positive gradients, [height,
      width, rgb] (Springenberg, Dosovitskiy, Brox and Riedmiller, 2015).
    - 'grad_cam': the maps of a layer, each weighted by the mean gradient of the logit with respect to it, and summed.
      Negative sums are 0, and the result is resized to [height, width] (Selvaraju et al., 2017).
    - 'occlusion': by how much the class's probability drops when a square patch is replaced by the mean image, for each
      pixel [height, width] the mean over the patches that cover it (Zeiler and Fergus, 2014).

    Of a unit, its output takes the role of the log-probability, logit or probability; the output of a unit that has a
    map is the mean of the map.

    Args:
      image: one image, see the class.
      method: one of the methods above.
      target: what is explained: the name or the label of a class, (layer, index) of a unit, such as ('conv3', 7), or
        None for the most probable class. The channels of the first tower are first.
      layer: for 'grad_cam', a layer with maps; by default the last convolutional layer, conv5 in the paper.
      patch: for 'occlusion', the side of the patches and the distance between them, in pixels; by default a seventh
        and a fourteenth of the crop, (32, 16) in the paper's network. The network is evaluated for every patch.

    Returns:
      A named tuple of `values`, float32, `image`, the crop [height, width, rgb] uint8, `name`, that of the class, or
      the layer and unit, and `score`, its probability, 0 to 1, or output.

    Raises:
      UsageError: if there is no such method, class, unit or layer, an argument does not apply to the method, the file
        cannot be read, or the array is no image.
    """
    stored = StoredImages([image], self._trained.stored_size)[:]
    (explanation,) = explain.explain(self._trained, stored, method, target, layer, patch)
    return explanation

  def maximise(
    self, target: Target, *, num_steps: int = 256, decay: float = 0.01, blur: float = 0.5, seed: int = 0
  ) -> Explanation:
    """Optimises an image for a class or a unit, beginning with noise (Erhan et al., 2009; Simonyan et al., 2014).

    Each step adds the gradient of the logit, or of the output of the unit before its nonlinearity, scaled to a root
    mean square of 4 grey levels. As regularisers, it shrinks the difference from the mean image and blurs the image
    (Yosinski et al., 2015).

    Args:
      target: the name or the label of a class, or (layer, index) of a unit, as in `explain`.
      num_steps: number of steps.
      decay: fraction by which each step shrinks the difference from the mean image, 0 or more and below 1.
      blur: standard deviation of the Gaussian that each step blurs the image with, in pixels, 0 to 0.7.
      seed: seed of the noise.

    Returns:
      A named tuple as that of `explain`, where `image` is the image, and `values` its difference from the mean image
      before rounding, [height, width, rgb] float32.

    Raises:
      UsageError: if there is no such class or unit, or a number is out of range.
    """
    return explain.maximise(self._trained, target, num_steps, decay, blur, seed)

  def _in_batches(self, function: Callable[[np.ndarray], jax.Array], images: Images) -> np.ndarray:
    several: list[Any] = [images] if is_one_image(images) else list(cast(Iterable, images))
    if not several:
      raise UsageError('there are no images; pass one or more paths or arrays.')
    return self._trained.in_batches(function, StoredImages(several, self._trained.stored_size))


def load(path: Path, *, mean: Path | None = None, classes: Path | None = None, net: str | None = None) -> Model:
  """Loads a trained network onto one device.

  Args:
    path: folder of a run, whose newest checkpoint is loaded; a folder exported with `--format=huggingface`; or a file
      of weights: .safetensors, exported here or torchvision's, .onnx, exported here, Caffe's .caffemodel, or
      torchvision's .pth or .pt, which requires PyTorch.
    mean: Caffe's mean image, .binaryproto or .npy [bgr, height, width], for a .caffemodel. Without it, the mean colour
      of that image for ILSVRC-2012 is subtracted, as in Caffe's example of classification. The files of torchvision
      imply a mean colour, and all others contain the mean image.
    classes: text file with one class name per line, for a file of weights. Without it, the names are those in the file,
      or 'class 0', 'class 1', ... in the files of Caffe and torchvision, which contain none.
    net: 'bvlc_alexnet' or 'bvlc_reference_caffenet', for a .caffemodel that does not identify its network.

  Raises:
    UsageError: if the path does not exist or contains no network, a file cannot be read, or an option does not fit.
    RunError: if none of the checkpoints can be read.
  """
  path, options = pathlib.Path(path), {'mean': mean, 'classes': classes, 'net': net}
  if not path.exists():
    raise UsageError(f'{path} does not exist; name the folder of a run or a file of weights.')
  path = weight_files.find_file(path)
  if path.is_dir():
    if given := [name for name, option in options.items() if option is not None]:
      raise UsageError(f'{path} is the folder of a run, to which {" and ".join(given)} do not apply; omit them.')
    trained = trained_model.load(path, batch_size=1, num_data=1, num_tower=1)
    return Model(trained, run_folder.load_config(path))
  weights = import_export.read_weights(path, mean=mean, classes=classes, net=net)
  if weights.mean_image is None:
    size = cropping.stored_size(weights.config.model)
    weights = weights._replace(mean_image=np.broadcast_to(caffe_files.MEAN, (size, size, 3)))
  return Model(import_export.to_model(weights), weights.config)
