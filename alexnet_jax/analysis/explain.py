"""Explanations of predictions: the pixels on which a class or a unit depends, and an image that excites it.

The networks are differentiated as they are defined. Where a method needs another gradient of the ReLU, it replaces the
nonlinearity of the Flax module, and where it needs the gradient with respect to a layer's output, it replaces that
output. All methods run on the mesh of the model, with any number of towers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.kernels.windows import num_windows, pad_axis, window_slices
from alexnet_jax.models import device_mesh, towers
from alexnet_jax.models.classifier import Classifier
from alexnet_jax.models.registry import Network
from alexnet_jax.runtime.errors import UsageError

METHODS = ('saliency', 'guided_backpropagation', 'grad_cam', 'occlusion')
LEARNING_RATE = 4.0  # of `maximise`: root mean square of the change of the pixels in a step, grey levels
MAX_BLUR = 0.7  # standard deviation in pixels; three pixels cannot represent a wider Gaussian

Target: TypeAlias = str | int | tuple[str, int] | None


class Explanation(NamedTuple):
  """An image, and what a class or unit depends on in it.

  Attributes:
    values: [height, width, rgb] or [height, width] float32, by method.
    image: [height, width, rgb] uint8, the crop that the network evaluates.
    name: name of the class, or layer and unit, such as 'conv5, unit 7'.
    score: probability of the class, 0 to 1, or output of the unit, for the image.
  """

  values: np.ndarray
  image: np.ndarray
  name: str
  score: float


class _Score(NamedTuple):
  """The output of one unit per image as a function of the images; of a unit with a map, the mean of the map.

  Attributes:
    network: the network.
    layer: the layer of the units.
    scale: function of the outputs of the layer, [batch, unit] to [batch, unit].
  """

  network: Network
  layer: str
  scale: Callable[[jax.Array], jax.Array]

  def __call__(self, net: Classifier, inputs: jax.Array, units: jax.Array) -> jax.Array:
    """Computes [batch] from the inputs [batch, height, width, rgb] of a module and units [batch]."""
    outputs = self.scale(_mean_of_maps(net.activations(inputs)[self.layer]))
    return jnp.sum(outputs * jax.nn.one_hot(units, outputs.shape[-1]), axis=-1)


def explain(
  model: TrainedModel,
  images: np.ndarray,
  method: str = 'saliency',
  target: Target = None,
  layer: str | None = None,
  patch: tuple[int, int] | None = None,
) -> list[Explanation]:
  """Explains the predictions for the centre crops of images; `api.Model.explain` describes the methods.

  Args:
    model: the network.
    images: stored images [image, size, size, rgb] uint8.
    method: one of `METHODS`.
    target: name or label of a class, (layer, index) of a unit, or None for the most probable class of each image.
    layer: layer whose maps 'grad_cam' weights; by default the last convolutional layer.
    patch: (side, stride) of the patches of 'occlusion' in pixels; by default a seventh of the image and half of that.

  Raises:
    UsageError: if there is no such method, class, unit or layer, or an argument does not apply to the method.
  """
  if method not in METHODS:
    raise UsageError(f"there is no method '{method}'; the methods are {', '.join(METHODS)}.")
  for name, value, needed in (('layer', layer, 'grad_cam'), ('patch', patch, 'occlusion')):
    if value is not None and method != needed:
      raise UsageError(f"{name} applies to the method '{needed}' only, not to '{method}'; omit it.")
  target_layer, unit = _find_target(model, target)
  scores = _all_scores(model, images, target_layer)
  units = (scores.argmax(axis=1) if unit is None else np.full(len(images), unit)).astype(np.int32)
  crops = model.centre_crops(images)
  inputs = crops - model.centre_crops(np.asarray(model.mean_image))
  match method:
    case 'occlusion':
      values = _occlusion_maps(model, target_layer, inputs, units, patch)
    case 'grad_cam':
      values = _class_activation_maps(model, target_layer, inputs, units, layer)
    case _:
      values = _gradients(model, target_layer, inputs, units, is_guided=method == 'guided_backpropagation')
  names = [_name(model, target_layer, unit) for unit in units.tolist()]
  return [
    Explanation(value, crop, name, float(row[unit]))
    for value, crop, name, row, unit in zip(values, crops, names, scores, units, strict=True)
  ]


def maximise(
  model: TrainedModel, target: Target, num_steps: int = 256, decay: float = 0.01, blur: float = 0.5, seed: int = 0
) -> Explanation:
  """Optimises an image for a class or unit; `api.Model.maximise` describes the optimisation.

  Args:
    model: the network.
    target: name or label of a class, or (layer, index) of a unit.
    num_steps: number of steps, 1 or more.
    decay: fraction by which a step shrinks the difference from the mean image, 0 or more and below 1.
    blur: standard deviation of the Gaussian that a step blurs the image with, in pixels, 0 to 0.7.
    seed: seed of the noise with which it begins.

  Returns:
    The image, and as its values the difference from the mean image before rounding, [height, width, rgb].

  Raises:
    UsageError: if there is no such class or unit, or a number is out of range.
  """
  layer, unit = _find_target(model, target)
  if unit is None:
    raise UsageError('there is no class or unit to optimise an image for; name one.')
  if not (num_steps >= 1 and 0 <= decay < 1 and 0 <= blur <= MAX_BLUR):
    raise UsageError(
      f'num_steps={num_steps}, decay={decay} and blur={blur} must be 1 or more, 0 or more and below 1, and 0 to '
      f'{MAX_BLUR}.'
    )
  if num_steps >= 2**31 or seed < 0:
    raise UsageError(f'num_steps={num_steps} and seed={seed} must be below 2,147,483,648, and 0 or more.')
  mean = model.centre_crops(np.asarray(model.mean_image))
  noise = np.random.default_rng(seed).normal(scale=LEARNING_RATE, size=mean.shape).astype(np.float32)
  score = _Score(model.network, layer, _identity)

  def optimise(units):
    with jax.set_mesh(model.mesh):
      units = device_mesh.put_batch(model.mesh, units)
      return _ascend(model.params, (noise, mean), units, (num_steps, decay, blur), score=score)

  (values,) = model.in_batches(optimise, np.full(1, unit, np.int32))
  image = np.rint(mean + values).astype(np.uint8)
  before = model.config.border // 2
  stored = np.pad(image, [(before, model.config.border - before)] * 2 + [(0, 0)])  # its centre crop is the image
  (scores,) = _all_scores(model, stored[None], layer)
  return Explanation(values, image, _name(model, layer, unit), float(scores[unit]))


# Targets.


def _find_target(model: TrainedModel, target: Target) -> tuple[str, int | None]:
  """Returns the layer and the index of the unit, which is None for the most probable class."""
  *_, last = model.network.layer_names
  if target is None:
    return last, None
  if isinstance(target, tuple):
    if len(target) != 2 or not isinstance(target[1], int | np.integer):
      raise UsageError(f"{target} is not a unit, (layer, index), such as ('conv3', 7).")
    layer, index = target
    num_units = model.layer_shape(layer)[-1]
    if not 0 <= index < num_units:
      raise UsageError(f'{layer} has no unit {index}; choose 0 to {num_units - 1}.')
    return layer, int(index)
  names = list(model.class_names)
  if isinstance(target, str) and names.count(target) > 1:
    labels = ', '.join(str(label) for label, name in enumerate(names) if name == target)
    raise UsageError(f"several classes are called '{target}'; name the label of one of them: {labels}.")
  if target in names:
    return last, names.index(target)
  if not str(target).isdecimal() or int(target) >= len(names):
    raise UsageError(
      f"there is no class '{target}'; name a class such as '{names[0]}', or a label, 0 to {len(names) - 1}."
    )
  return last, int(target)


def _name(model: TrainedModel, layer: str, unit: int) -> str:
  return model.class_names[unit] if _is_last(model, layer) else f'{layer}, unit {unit}'


def _is_last(model: TrainedModel, layer: str) -> bool:
  return layer == model.network.layer_names[-1]


def _all_scores(model: TrainedModel, images: np.ndarray, layer: str) -> np.ndarray:
  """Computes the probabilities of all classes, or the outputs of all units of a hidden layer: [image, unit]."""
  outputs = _mean_of_maps(model.in_batches(lambda batch: model.activations(batch, layer), images))
  return np.asarray(jax.nn.softmax(outputs)) if _is_last(model, layer) else outputs


def _mean_of_maps(outputs):
  return outputs.mean(axis=(1, 2)) if outputs.ndim == 4 else outputs


def _identity(outputs: jax.Array) -> jax.Array:
  return outputs


def _in_batches(model: TrainedModel, function: Callable, inputs: np.ndarray, units: np.ndarray) -> np.ndarray:
  """Applies a jitted function of (params, inputs, units) to any number of inputs."""

  def of_rows(rows):
    with jax.set_mesh(model.mesh):
      return function(model.params, *device_mesh.put_batch(model.mesh, (inputs[rows], units[rows])))

  return model.in_batches(of_rows, np.arange(len(inputs)))


# Gradients with respect to the pixels.


def _gradients(
  model: TrainedModel, layer: str, inputs: np.ndarray, units: np.ndarray, *, is_guided: bool
) -> np.ndarray:
  """Computes gradients [image, height, width, rgb]; of log-probabilities unless they are guided."""
  if is_guided:
    _require_relu(model)
  scale = jax.nn.log_softmax if _is_last(model, layer) and not is_guided else _identity
  compute = functools.partial(_input_gradients, score=_Score(model.network, layer, scale), is_guided=is_guided)
  return _in_batches(model, compute, inputs, units)


@functools.partial(jax.jit, static_argnames=('score', 'is_guided'))
def _input_gradients(params, inputs, units, *, score, is_guided):
  def total(inputs):
    net = score.network.module(params)
    if is_guided:
      net.nonlinearity = _guided_relu
    return score(net, inputs, units).sum()

  return jax.grad(total)(inputs)


def _require_relu(model: TrainedModel) -> None:
  if model.config.nonlinearity != 'relu':
    raise UsageError(
      f"guided_backpropagation changes the gradient of ReLUs, and model.nonlinearity='{model.config.nonlinearity}'; "
      "choose another method, such as 'saliency'."
    )


@jax.custom_vjp
def _guided_relu(x: jax.Array) -> jax.Array:
  """A ReLU that passes only positive gradients."""
  return jax.nn.relu(x)


_guided_relu.defvjp(lambda x: (jax.nn.relu(x), x > 0), lambda is_on, dy: (jnp.where(is_on & (dy > 0), dy, 0),))


# Grad-CAM.


def _class_activation_maps(
  model: TrainedModel, layer: str, inputs: np.ndarray, units: np.ndarray, maps_layer: str | None
) -> np.ndarray:
  """Computes Grad-CAM [image, height, width], resized to the inputs."""
  names = model.network.layer_names
  shapes = model.layer_shapes()
  before = [name for name in names[: names.index(layer)] if len(shapes[name]) == 3]
  if not before:
    raise UsageError(f'grad_cam requires a layer with maps before {layer}; choose a unit of a later layer.')
  maps_layer = maps_layer or max(name for name in before if name.startswith('conv'))
  if maps_layer not in before:
    raise UsageError(f'{maps_layer} is no layer with maps before {layer}; choose one of {", ".join(before)}.')
  compute = functools.partial(_weighted_maps, score=_Score(model.network, layer, _identity), maps_layer=maps_layer)
  maps = _in_batches(model, compute, inputs, units)
  return np.asarray(jax.image.resize(maps, inputs.shape[:3], 'bilinear'))


@functools.partial(jax.jit, static_argnames=('score', 'maps_layer'))
def _weighted_maps(params, inputs, units, *, score, maps_layer):
  def total(maps):
    net = score.network.module(params)
    _replace_output(net, maps_layer, maps)
    return score(net, inputs, units).sum()

  net = score.network.module(params)
  maps = dict(net.outputs(inputs.astype(net.dtype)))[maps_layer]  # [tower, batch, height, width, channel]
  weights = jax.grad(total)(maps).mean(axis=(2, 3), keepdims=True)
  return jax.nn.relu(towers.gather(weights * maps).astype(jnp.float32).sum(axis=-1))


def _replace_output(net: Classifier, layer: str, output: jax.Array) -> None:
  """Makes a module use an array as the output of a layer with maps."""
  method = 'pool' if layer in net.pools else 'layer'
  original, replaced = getattr(net, method), layer.replace('pool', 'conv')  # `pool` has the name of the layer before
  setattr(net, method, lambda name, x: output if name == replaced else original(name, x))


# Occlusion.


def _occlusion_maps(
  model: TrainedModel, layer: str, inputs: np.ndarray, units: np.ndarray, patch: tuple[int, int] | None
) -> np.ndarray:
  """Computes the drop of the score by pixel [image, height, width], averaged over the patches that cover it."""
  size = model.config.image_size
  side, stride = patch or (max(size // 7, 1), max(size // 14, 1))
  if not 1 <= stride <= side <= size:
    raise UsageError(
      f'patches of {side} pixels with a stride of {stride} do not cover the image of {size} pixels; choose a side of '
      f'at most {size}, and a stride of at most the side.'
    )
  first = stride * np.arange(num_windows(size, side, stride))  # the last patch may extend past the edge
  corners = np.stack(np.meshgrid(first, first, indexing='ij'), axis=-1).reshape(-1, 2).astype(np.int32)
  num_patches = np.zeros((size, size), np.float32)
  for top, left in corners:
    num_patches[top : top + side, left : left + side] += 1
  scale = jax.nn.softmax if _is_last(model, layer) else _identity
  compute = functools.partial(_occluded_scores, score=_Score(model.network, layer, scale), side=side)

  def drops(image, unit):
    def of_corners(corners):
      with jax.set_mesh(model.mesh):
        return compute(model.params, image, unit, device_mesh.put_batch(model.mesh, corners))

    whole, *scores = model.in_batches(of_corners, np.concatenate([[[size, size]], corners]))  # the first covers nothing
    total = np.zeros((size, size), np.float32)
    for (top, left), score in zip(corners, scores, strict=True):
      total[top : top + side, left : left + side] += whole - score
    return total / num_patches

  return np.stack([drops(image, unit) for image, unit in zip(inputs, units, strict=True)])


@functools.partial(jax.jit, static_argnames=('score', 'side'))
def _occluded_scores(params, image, unit, corners, *, score, side):
  pixels = jnp.arange(image.shape[0])
  is_in = (pixels >= corners[..., None]) & (pixels < corners[..., None] + side)  # [batch, row or column, pixel]
  is_covered = is_in[:, 0, :, None] & is_in[:, 1, None, :]
  inputs = jnp.where(is_covered[..., None], 0, image)  # 0 is the mean image
  return score(score.network.module(params), inputs, jnp.broadcast_to(unit, len(corners)))


# Activation maximisation.


@functools.partial(jax.jit, static_argnames='score')
def _ascend(params, images, units, ascent, *, score):
  (noise, mean), (num_steps, decay, blur) = images, ascent
  names = score.network.layer_names
  linear = names[names.index(score.layer) - 1] if score.layer.startswith('pool') else score.layer

  def total(x):
    net = score.network.module(params)
    _remove_nonlinearity(net, linear)
    return score(net, x, units).sum()

  def step(_, x):
    gradient = jax.grad(total)(x)
    rms = jnp.sqrt(jnp.square(gradient).mean(axis=(1, 2, 3), keepdims=True))
    x += LEARNING_RATE * gradient / jnp.maximum(rms, jnp.finfo(jnp.float32).tiny)
    return jnp.clip(_blur((1 - decay) * x, blur), -mean, 255 - mean)

  x = jnp.broadcast_to(noise, (len(units), *noise.shape), out_sharding=towers.sharding(towers.BATCH))
  return lax.fori_loop(0, num_steps, step, x)


def _remove_nonlinearity(net: Any, layer: str) -> None:
  """Makes a module compute a layer without its nonlinearity."""
  original, nonlinearity = net.layer, net.nonlinearity

  def compute(name, x):
    net.nonlinearity = _identity if name == layer else nonlinearity
    return original(name, x)

  net.layer = compute


def _blur(x, std):
  """Blurs images [batch, height, width, rgb] with three pixels per axis, whose variance is that of the Gaussian."""
  for axis in (1, 2):
    before, centre, after = window_slices(pad_axis(x, axis, 0, (1, 1, 0)), axis, 3, 1)
    x = (1 - std**2) * centre + std**2 / 2 * (before + after)
  return x
