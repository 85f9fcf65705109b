"""Exported .onnx files, against ONNX Runtime."""

import numpy as np
import pytest

from alexnet_jax.interop import layout, onnx_files
from tests.interop.networks import (
  NUM_CLASSES,
  VARIANTS,
  assert_close,
  centre_crops,
  compute_logits,
  exportable_params,
  small_config,
)

onnxruntime = pytest.importorskip('onnxruntime')


@pytest.mark.parametrize('variant', VARIANTS)
def test_onnx_runtime_computes_the_same_logits(network_of, variant, tmp_path):
  weights, _, images, logits = network_of(variant)
  onnx_files.write(tmp_path / 'a.onnx', weights)
  session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
  crops = centre_crops(weights.config, images).astype(np.float32)
  for num_images in (4, 1):
    theirs, probabilities = session.run(['logits', 'probabilities'], {'images': crops[:num_images]})
    ours = logits[:num_images]
    assert_close(ours, theirs)
    assert_close(np.exp(ours) / np.exp(ours).sum(1, keepdims=True), probabilities)


@pytest.mark.parametrize(('num_towers', 'num_classes'), [(2, NUM_CLASSES), (4, 5)])
def test_fully_connected_layers_without_cross_tower_connections_are_split(one_device, num_towers, num_classes):
  config = small_config('no_communication')
  config.model.meet, config.model.num_towers = (), num_towers
  params = exportable_params(config.model, num_classes)
  rng = np.random.default_rng(0)
  weights = layout.Weights(
    config,
    layout.to_tensors(params, config.model, num_classes),
    rng.uniform(0, 255, (96, 96, 3)).astype(np.float32),
    list('abcdefg')[:num_classes],
    0,
  )
  images = rng.integers(0, 256, (2, 96, 96, 3), np.uint8)
  session = onnxruntime.InferenceSession(onnx_files.make_model(weights).SerializeToString())
  (theirs,) = session.run(['logits'], {'images': centre_crops(config, images).astype(np.float32)})
  assert_close(compute_logits(weights, params, images), theirs)
