"""Compares the published network at full size with PyTorch. Run it as a program, with the compiler flags of main.py.

It takes a training step with 32 images and dropout, and evaluates ten crops of two images. JAX_NUM_CPU_DEVICES is the
number of devices, one or two, and ALEXNET_JAX_FAST_KERNELS selects the fast kernels or the definitions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from alexnet_jax.data import cropping
from alexnet_jax.evaluation import inference
from alexnet_jax.kernels import onednn
from alexnet_jax.models import device_mesh
from alexnet_jax.models.registry import build
from alexnet_jax.training import optimizer, step
from configs import alexnet
from tests import reference

BATCH, NUM_CLASSES = 32, 1000
RNG = np.random.default_rng(0)
CONFIG = alexnet.get_config('imagenet2012')
MEAN_IMAGE = RNG.uniform(80, 150, (256, 256, 3)).astype(np.float32)
KEY = jax.random.key(7)


def assert_close(name, ours, theirs, tolerance):
  """Compares arrays by the norm of their difference."""
  ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy()
  difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
  print(f'{name}: {difference:.1e}')
  assert difference < tolerance, f'{name} differs from PyTorch by {difference:.1e} of its norm'


def tensors_of(params):
  """Converts parameters to tensors in double precision."""
  converted = reference.to_interchange(params).items()
  return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in converted}


def compare_training_step(network, mesh):
  """Compares the loss of a step, and its update of every layer (section 5)."""
  images, labels = RNG.integers(0, 256, (BATCH, 224, 224, 3), np.uint8), np.arange(BATCH, dtype=np.int32)
  colour = RNG.normal(0, 10, (BATCH, 3)).astype(np.float32)
  batch = {
    'image': images,
    'mirrored': np.arange(BATCH) % 2 == 0,
    'mean_offset': np.full((BATCH, 2), 16, np.int32),
    'mean_mirrored': np.zeros(BATCH, bool),
    'colour': colour,
    'scale': np.ones(BATCH, np.float32),
    'label': labels,
  }
  rule = optimizer.make_optimizer(CONFIG.optimizer, last_step=100)
  state = step.init_state(jax.random.key(0), network=network, optimizer=rule)
  tensors = tensors_of(state.params)
  masks = [
    torch.tensor(np.concatenate(list(jax.random.bernoulli(key, 0.5, (2, BATCH, 2048))), axis=-1), dtype=torch.float64)
    for key in jax.random.split(jax.random.fold_in(KEY, 0))
  ]
  state, metrics = step.train_step(
    state, device_mesh.put_batch(mesh, batch), jnp.asarray(MEAN_IMAGE), KEY, network=network, optimizer=rule
  )

  crops = np.where(batch['mirrored'][:, None, None, None], images[:, :, ::-1], images)
  inputs = crops.astype(np.float64) - MEAN_IMAGE[16:240, 16:240] + colour[:, None, None]
  loss = torch.nn.functional.cross_entropy(
    reference.forward(tensors, torch.tensor(inputs), masks=masks), torch.tensor(labels, dtype=torch.long)
  )
  loss.backward()
  assert_close('loss', metrics['loss'], loss, 1e-5)
  updates = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), state.params, initial_params(network))
  for name, update in reference.to_interchange(updates).items():
    tensor = tensors[name]
    expected = -CONFIG.optimizer.rate * (tensor.grad + CONFIG.optimizer.weight_decay * tensor)
    # Of the millions of maxima in pooling windows, some tens are ties up to rounding, whose gradients reach another
    # pixel. Below the last pooling layer this changes the update by up to 0.4 % of its norm.
    assert_close(name, update, expected, 0.01 if name.startswith('conv') else 1e-5)


def initial_params(network):
  """Draws the initial parameters again: the step reuses the memory of the first."""
  return jax.jit(network.init)(jax.random.key(0))


def compare_ten_crop_evaluation(network, mesh):
  """Compares the mean of the probabilities of ten crops (section 4.1)."""
  images = RNG.integers(0, 256, (2, 256, 256, 3), np.uint8)
  params = initial_params(network)
  tensors = tensors_of(params)
  ours, theirs = 0, 0
  on_devices = device_mesh.put_batch(mesh, images)
  for crop in cropping.ten_crops(32):
    mean_crop = cropping.mean_crop(crop, False, 32)
    scores = inference.log_probs(
      params, on_devices, jnp.asarray(MEAN_IMAGE), crop, mean_crop, network=network, image_size=224
    )
    ours += np.exp(scores) / 10
    centred = (images - MEAN_IMAGE.astype(np.float64))[:, crop.top : crop.top + 224, crop.left : crop.left + 224]
    logits = reference.forward(tensors, torch.tensor((centred[:, :, ::-1] if crop.mirrored else centred).copy()))
    theirs += torch.softmax(logits, -1) / 10
  assert_close('probabilities', ours, theirs, 1e-5)


if __name__ == '__main__':
  onednn.enable()
  current = device_mesh.make_mesh(0, 0, num_towers=2, batches={'batch_size': BATCH})
  assert current.size == jax.device_count()
  CONFIG.optimizer.rate = 100.0  # so that updates are not lost in the rounding of the parameters
  CONFIG.model.init_std = dict.fromkeys(CONFIG.model.init_std, 0.02)
  with jax.set_mesh(current):
    alexnet_2012 = build(CONFIG.model, NUM_CLASSES)
    compare_training_step(alexnet_2012, current)
    compare_ten_crop_evaluation(alexnet_2012, current)
