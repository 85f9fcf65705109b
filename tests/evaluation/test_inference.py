import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data import cropping
from alexnet_jax.evaluation import inference
from alexnet_jax.models import device_mesh
from alexnet_jax.models.registry import build
from configs import alexnet

MEAN_IMAGE = np.random.default_rng(1).uniform(80, 150, (96, 96, 3)).astype(np.float32)


def build_network():
  """Returns a network with 3 + 3 kernels in conv1, for images of 64 pixels, and its parameters."""
  config = alexnet.paper().model
  config.image_size, config.width = 64, 1 / 16
  config.init_std = dict.fromkeys(alexnet.LAYERS, 0.05)
  network = build(config, 10)
  return network, jax.jit(network.init)(jax.random.key(0))


def test_log_probs_subtracts_the_mean_image_and_then_crops_and_mirrors(one_device):
  network, params = build_network()
  images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
  crop = cropping.Crop(np.int32(32), np.int32(5), np.bool_(True))
  constants = dict(network=network, image_size=64)

  def log_softmax(x):
    return jax.nn.log_softmax(jax.jit(network.apply)(params, device_mesh.put_batch(one_device, x)))

  on_device, mean_image = device_mesh.put_batch(one_device, images), jnp.asarray(MEAN_IMAGE)
  log_probs = inference.log_probs(params, on_device, mean_image, crop, crop, **constants)
  x = (images - MEAN_IMAGE)[:, 32:96, 5:69][:, :, ::-1]
  np.testing.assert_allclose(log_probs, log_softmax(x), rtol=1e-5, atol=1e-5)

  as_run = inference.log_probs(params, on_device, mean_image, crop, cropping.centre_crop(32), **constants)
  x = images[:, 32:96, 5:69][:, :, ::-1] - MEAN_IMAGE[16:80, 16:80]
  np.testing.assert_allclose(as_run, log_softmax(x), rtol=1e-5, atol=1e-5)
