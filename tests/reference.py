"""An AlexNet written independently, in PyTorch with grouped convolutions, on the interchange layout of weights."""

import numpy as np
import torch
import torch.nn.functional as F


def to_interchange(params):
  """Rearranges our parameters, or their gradients, to (out, in / groups, height, width) and (out, in).

  Tower 0 holds the first half of every layer's outputs; the inputs of fc6 are in channel, row, column order.
  """
  tensors = {}
  for name, layer in params.items():
    kernel, bias = np.asarray(layer['kernel']), np.asarray(layer['bias'])
    if name.startswith('conv'):  # [tower, height, width, in, out]
      weight = np.concatenate([k.transpose(3, 2, 0, 1) for k in kernel])
    else:
      if name == 'fc6':  # rows are in row, column, channel order
        channels = 2 * np.shape(params['conv5']['kernel'])[-1]
        side = round((kernel.shape[1] / channels) ** 0.5)
        shape = (2, side, side, channels, -1)
        kernel = kernel.reshape(shape).transpose(0, 3, 1, 2, 4).reshape(kernel.shape)
      weight = np.concatenate([k.T for k in kernel])
    tensors[f'{name}.weight'], tensors[f'{name}.bias'] = weight, bias.reshape(-1)
  return tensors


def forward(tensors, images, *, keep=None):
  """Computes logits with PyTorch.

  Args:
    tensors: {'conv1.weight': tensor, ...} in the interchange layout.
    images: [batch, height, width, rgb] tensor, mean subtracted.
    keep: masks of fc6 and fc7, [batch, unit] each, in training; None at test time.

  Returns:
    [batch, class] tensor.
  """
  w = tensors

  def conv(x, name, **window):
    return F.relu(F.conv2d(x, w[f'{name}.weight'], w[f'{name}.bias'], **window))

  def norm(x):  # within each group; PyTorch divides alpha by the window
    halves = [F.local_response_norm(half, 5, alpha=5e-4, beta=0.75, k=2.0) for half in x.chunk(2, dim=1)]
    return torch.cat(halves, dim=1)

  x = F.pad(images.permute(0, 3, 1, 2), (0, 3, 0, 3))
  x = F.max_pool2d(norm(conv(x, 'conv1', stride=4)), 3, 2)
  x = F.max_pool2d(norm(conv(x, 'conv2', padding=2, groups=2)), 3, 2)
  x = conv(x, 'conv3', padding=1)
  x = conv(x, 'conv4', padding=1, groups=2)
  x = F.max_pool2d(conv(x, 'conv5', padding=1, groups=2), 3, 2).flatten(1)
  for name, mask in zip(('fc6', 'fc7'), keep or (0.5, 0.5), strict=True):
    x = F.relu(F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])) * mask
  return F.linear(x, w['fc8.weight'], w['fc8.bias'])
