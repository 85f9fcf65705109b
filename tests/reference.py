"""An independent implementation of AlexNet in PyTorch, with grouped convolutions and weights in interchange layout."""

import numpy as np
import torch
import torch.nn.functional as F

# Arguments of `forward` by variant, where they differ from those of the network of the paper.
VARIANTS = {
  'paper': {},
  'as_run': dict(alpha=2e-5, norm1_before=True, within_map=True),
  'one_tower': dict(groups=1),
  'conv6': dict(cross_tower=('conv3', 'conv6', 'fc6', 'fc7', 'fc8')),
  'bottleneck': dict(cross_tower=('conv3', 'fc6', 'fc7', 'bottleneck', 'fc8')),
  'run146_2011': dict(
    cross_tower=('conv3', 'conv6', 'fc6', 'fc7', 'bottleneck', 'fc8'), alpha=2e-5, norm1_before=True, within_map=True
  ),
  'no_communication': dict(cross_tower=('fc8',)),
  'run150': dict(cross_tower=('fc8',)),
  'without_conv3': dict(cross_tower=('conv4', 'fc6', 'fc7', 'fc8')),
  'without_conv4': {},
  'without_conv5': {},
  'no_lrn': dict(alpha=None),
  'no_overlap': dict(pool=2, padding=dict(conv2=1, conv5=0)),
  'tanh': dict(nonlinearity=torch.tanh),
  'no_dropout': dict(dropout=False),
  'bvlc_alexnet': dict(alpha=2e-5, k=1.0, norm_groups=1, padding=dict(conv1=(0, 0), conv2=2, conv5=1)),
  'bvlc_reference_caffenet': dict(
    alpha=2e-5, k=1.0, norm_groups=1, norm_after_pooling=True, padding=dict(conv1=(0, 0), conv2=2, conv5=1)
  ),
  'torchvision': dict(groups=1, alpha=None, padding=dict(conv1=(2, 2), conv2=2, conv5=1)),
}


def to_interchange(params, *, fc6_joined=True):
  """Converts parameters, or their gradients, to the interchange layout.

  The first half of every layer's outputs is that of tower 0. The inputs of fc6 are in channel, row, column order.

  Args:
    params: {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.
    fc6_joined: whether fc6 reads both towers.

  Returns:
    {'conv1.weight': [out, in / groups, height, width], 'conv1.bias': [out], ..., 'fc8.weight': [out, in], ...}.
  """
  tensors = {}
  for name, layer in params.items():
    kernel, bias = np.asarray(layer['kernel']), np.asarray(layer['bias'])
    num_towers = len(kernel)
    if name.startswith('conv'):  # kernel [tower, height, width, in, out]
      weight = np.concatenate([k.transpose(3, 2, 0, 1) for k in kernel])
    else:
      if name == 'fc6':  # inputs are in row, column, channel order
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
  masks=None,
  groups=2,
  cross_tower=('conv3', 'fc6', 'fc7', 'fc8'),
  alpha=1e-4,
  k=2.0,
  norm_groups=None,
  norm1_before=False,
  norm_after_pooling=False,
  within_map=False,
  pool=3,
  padding=None,
  nonlinearity=F.relu,
  dropout=True,
):
  """Computes logits with PyTorch.

  Args:
    tensors: {'conv1.weight': tensor, ...} in the interchange layout; missing layers are skipped.
    images: [batch, height, width, rgb] tensor, minus the mean image.
    masks: dropout masks of fc6 and fc7 in training, [batch, unit] each; None at test time.
    groups: number of towers.
    cross_tower: layers that read both towers.
    alpha: constant of the normalisation across maps; None for no normalisation.
    k: constant of the normalisation across maps.
    norm_groups: number of groups of maps that are normalised separately; by default the number of towers.
    norm1_before: whether layer 1 is normalised and pooled before its nonlinearity, as in the code of 2012.
    norm_after_pooling: whether layers 1 and 2 are normalised after pooling.
    within_map: whether layer 2 is normalised within each map, too.
    pool: side of the pooling windows.
    padding: padding of conv1 (top and left, bottom and right), conv2 and conv5, where it differs from the paper.
    nonlinearity: nonlinearity of all hidden layers.
    dropout: whether masks apply in training, and outputs of fc6 and fc7 are halved at test time.

  Returns:
    Logits, a [batch, class] tensor.
  """
  w = tensors
  padding = dict(conv1=(0, 3), conv2=2, conv5=1) | (padding or {})

  def conv(x, name, **window):
    num_groups = 1 if name == 'conv1' or name in cross_tower else groups
    return F.conv2d(x, w[f'{name}.weight'], w[f'{name}.bias'], groups=num_groups, **window)

  def linear(x, name):
    if name in cross_tower or groups == 1:
      return F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])
    parts = zip(x.chunk(2, 1), w[f'{name}.weight'].chunk(2), w[f'{name}.bias'].chunk(2), strict=True)
    return torch.cat([F.linear(*part) for part in parts], dim=1)

  def norm(x):  # within each group; PyTorch divides alpha by the size of the window
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
    if norm_after_pooling:
      return norm(pooled(x))
    x = norm(x)
    return pooled(norm_within_map(x) if within_map and name == 'conv2' else x)

  x = F.pad(images.permute(0, 3, 1, 2), 2 * padding['conv1'])
  x = conv(x, 'conv1', stride=4)
  x = nonlinearity(pooled(norm(x))) if norm1_before else pooled_and_normalised(nonlinearity(x), 'conv1')
  x = pooled_and_normalised(hidden(x, 'conv2', padding=padding['conv2']), 'conv2')
  x = hidden(x, 'conv3', padding=1)
  x = hidden(x, 'conv4', padding=1)
  x = pooled(hidden(x, 'conv5', padding=padding['conv5']))
  x = hidden(x, 'conv6', padding=1).flatten(1)
  for name, mask in zip(('fc6', 'fc7'), masks or (0.5, 0.5), strict=True):
    x = nonlinearity(linear(x, name)) * (mask if dropout else 1)
  if 'bottleneck.weight' in w:
    x = linear(x, 'bottleneck')
  return linear(x, 'fc8')
