"""An AlexNet written independently, in PyTorch with grouped convolutions, on the interchange layout of weights."""

import numpy as np
import torch
import torch.nn.functional as F

# How each variant differs from the network of the paper, said in the words of this file.
VARIANTS = {
  'paper': {},
  'as_run': dict(alpha=2e-5, norm1_first=True, within_map=True),
  'one_tower': dict(groups=1),
  'conv6': dict(joined=('conv3', 'conv6', 'fc6', 'fc7', 'fc8')),
  'bottleneck': dict(joined=('conv3', 'fc6', 'fc7', 'bottleneck', 'fc8')),
  'run146_2011': dict(
    joined=('conv3', 'conv6', 'fc6', 'fc7', 'bottleneck', 'fc8'), alpha=2e-5, norm1_first=True, within_map=True
  ),
  'no_communication': dict(joined=('fc8',)),
  'run150': dict(joined=('fc8',)),
  'without_conv3': dict(joined=('conv4', 'fc6', 'fc7', 'fc8')),
  'without_conv4': {},
  'without_conv5': {},
  'no_lrn': dict(alpha=None),
  'no_overlap': dict(pool=2, padding=dict(conv2=1, conv5=0)),
  'tanh': dict(nonlinearity=torch.tanh),
  'no_dropout': dict(dropout=False),
  'bvlc_alexnet': dict(alpha=2e-5, k=1.0, norm_groups=1, padding=dict(conv1=(0, 0), conv2=2, conv5=1)),
  'bvlc_reference_caffenet': dict(
    alpha=2e-5, k=1.0, norm_groups=1, norm_last=True, padding=dict(conv1=(0, 0), conv2=2, conv5=1)
  ),
  'torchvision': dict(groups=1, alpha=None, padding=dict(conv1=(2, 2), conv2=2, conv5=1)),
}


def to_interchange(params, *, fc6_joined=True):
  """Rearranges our parameters, or their gradients, to (out, in / groups, height, width) and (out, in / groups).

  Tower 0 holds the first half of every layer's outputs; the inputs of fc6 are in channel, row, column order.
  """
  tensors = {}
  for name, layer in params.items():
    kernel, bias = np.asarray(layer['kernel']), np.asarray(layer['bias'])
    num_towers = len(kernel)
    if name.startswith('conv'):  # [tower, height, width, in, out]
      weight = np.concatenate([k.transpose(3, 2, 0, 1) for k in kernel])
    else:
      if name == 'fc6':  # rows are in row, column, channel order
        last = max(name for name in params if name.startswith('conv'))
        channels = np.shape(params[last]['kernel'])[-1] * (num_towers if fc6_joined else 1)
        side = round((kernel.shape[1] / channels) ** 0.5)
        shape = (num_towers, side, side, channels, -1)
        kernel = kernel.reshape(shape).transpose(0, 3, 1, 2, 4).reshape(kernel.shape)
      weight = np.concatenate([k.T for k in kernel])
    tensors[f'{name}.weight'], tensors[f'{name}.bias'] = weight, bias.reshape(-1)
  return tensors


def forward(
  tensors,
  images,
  *,
  keep=None,
  groups=2,
  joined=('conv3', 'fc6', 'fc7', 'fc8'),
  alpha=1e-4,
  k=2.0,
  norm_groups=None,
  norm1_first=False,
  norm_last=False,
  within_map=False,
  pool=3,
  padding=None,
  nonlinearity=F.relu,
  dropout=True,
):
  """Computes logits with PyTorch.

  Args:
    tensors: {'conv1.weight': tensor, ...} in the interchange layout; a layer that is not there is skipped.
    images: [batch, height, width, rgb] tensor, mean subtracted.
    keep: masks of fc6 and fc7, [batch, unit] each, in training; None at test time.
    groups: towers.
    joined: layers that see both towers.
    alpha: of the normalisation across maps; None for no normalisation.
    k: of the normalisation across maps.
    norm_groups: groups of maps that are normalised each within itself; by default the towers.
    norm1_first: layer 1 is normalised, pooled and then rectified, as in the code of 2012.
    norm_last: layers 1 and 2 are pooled before they are normalised.
    within_map: layer 2 is normalised within each map, too.
    pool: size of the pooling windows.
    padding: of conv1, (top and left, bottom and right), conv2 and conv5.
    nonlinearity: of all hidden layers.
    dropout: whether `keep` is applied, or outputs of fc6 and fc7 are halved at test time.

  Returns:
    [batch, class] tensor.
  """
  w = tensors
  padding = dict(conv1=(0, 3), conv2=2, conv5=1) | (padding or {})

  def conv(x, name, **window):
    parts = 1 if name == 'conv1' or name in joined else groups
    return F.conv2d(x, w[f'{name}.weight'], w[f'{name}.bias'], groups=parts, **window)

  def linear(x, name):
    if name in joined or groups == 1:
      return F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])
    parts = zip(x.chunk(2, 1), w[f'{name}.weight'].chunk(2), w[f'{name}.bias'].chunk(2), strict=True)
    return torch.cat([F.linear(*part) for part in parts], dim=1)

  def norm(x):  # within each group; PyTorch divides alpha by the window
    if alpha is None:
      return x
    parts = x.chunk(norm_groups or groups, dim=1)
    parts = [F.local_response_norm(part, 5, alpha=5 * alpha, beta=0.75, k=k) for part in parts]
    return torch.cat(parts, dim=1)

  def norm_within_map(x):
    sums = F.avg_pool2d(x * x, 5, stride=1, padding=2, divisor_override=1)
    return x / (1 + 0.001 / 25 * sums) ** 0.75

  def pooled(x):
    return F.max_pool2d(x, pool, 2, ceil_mode=True)

  def hidden(x, name, **window):
    return nonlinearity(conv(x, name, **window)) if f'{name}.weight' in w else x

  def pooled_and_normalised(x, name):
    if norm_last:
      return norm(pooled(x))
    x = norm(x)
    return pooled(norm_within_map(x) if within_map and name == 'conv2' else x)

  x = F.pad(images.permute(0, 3, 1, 2), 2 * padding['conv1'])
  x = conv(x, 'conv1', stride=4)
  x = nonlinearity(pooled(norm(x))) if norm1_first else pooled_and_normalised(nonlinearity(x), 'conv1')
  x = pooled_and_normalised(hidden(x, 'conv2', padding=padding['conv2']), 'conv2')
  x = hidden(x, 'conv3', padding=1)
  x = hidden(x, 'conv4', padding=1)
  x = pooled(hidden(x, 'conv5', padding=padding['conv5']))
  x = hidden(x, 'conv6', padding=1).flatten(1)
  for name, mask in zip(('fc6', 'fc7'), keep or (0.5, 0.5), strict=True):
    x = nonlinearity(linear(x, name)) * (mask if dropout else 1)
  if 'bottleneck.weight' in w:
    x = linear(x, 'bottleneck')
  return linear(x, 'fc8')
