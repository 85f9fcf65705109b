"""Writes a network as a folder in the layout of the Hugging Face Hub, and checks such a folder.

model.safetensors           the weights and the whole config, see `safetensors_files`
config.json                 the `model` part of the config, and the class names
preprocessor_config.json    the preprocessing of images
labels.txt                  class names by label, one per line
alexnet_torch.py            the network in PyTorch, for programs that cannot install this project
probe.png, probe.json       an image, its logits, and the checksums of the files
README.md                   the model card
"""

import copy
import hashlib
import importlib.resources
import json
import pathlib
import string
import tempfile

import jax
import numpy as np

from alexnet_jax.data import cropping, image_io
from alexnet_jax.evaluation.trained_model import TrainedModel
from alexnet_jax.interop import layout, weight_files
from alexnet_jax.models.registry import build
from alexnet_jax.runtime.errors import RunError, UsageError, printable

CARD, PROBE, EXPECTED, TORCH_FILE = 'README.md', 'probe.png', 'probe.json', 'alexnet_torch.py'
TOLERANCE = 1e-3  # of the largest logit; for differences between machines, not between weights
# Names on the Hub of datasets of TFDS.
DATASETS = {
  'ilsvrc/2012': 'ILSVRC/imagenet-1k',
  'cifar10': 'uoft-cs/cifar10',
  'imagenette/full-size-v2': 'frgfm/imagenette',
}

MODEL_CARD = """---
$front_matter
---

# $name

An AlexNet (Krizhevsky, Sutskever and Hinton, *ImageNet Classification with Deep Convolutional Neural Networks*, 2012),
exported by `alexnet_jax`.

| | |
| --- | --- |
| variants of the recipe | $variants |
| dataset | $dataset |
| classes | $num_classes |
| parameters | $num_params |
| training steps | $num_steps |

## Results

$results

## Use

In JAX, with this project:

```python
import alexnet_jax

model = alexnet_jax.load('.')  # this folder
print(model.predict('probe.png'))  # [(class name, probability), ...], best first
```

In PyTorch, with `alexnet_torch.py` of this folder, which needs torch and safetensors only:

```python
import torch
from alexnet_torch import load

network = load('.')  # this folder
network.fc7.register_forward_hook(lambda module, inputs, output: print(output.shape))
images = torch.zeros(1, 3, 256, 256)  # [batch, rgb, height, width], 0-255, of any size
logits = network(images)  # [batch, class]
```

The names of the classes, by label, are in `labels.txt`.

Preprocessing, which both include: $preprocessing.

## Check

`python -m alexnet_jax weights check FOLDER` verifies the checksums of the files, and that the network computes the
logits in `probe.json` for `probe.png`.
"""


def write(folder: pathlib.Path, weights: layout.Weights, model: TrainedModel, results: dict, licence: str) -> None:
  """Writes a folder, which appears only once it is complete.

  Args:
    folder: the folder, which must not exist.
    weights: the weights.
    model: the network with these weights.
    results: content of the run's results.json for these weights; empty if they were not evaluated.
    licence: identifier of the licence of the weights on the Hub, such as 'apache-2.0'.

  Raises:
    OSError: if the folder cannot be written.
  """
  image = draw_probe(model.stored_size)
  logits = compute_logits(model, image)
  texts = {
    'config.json': _to_json(_config(weights)),
    'preprocessor_config.json': _to_json(_preprocessor_config(weights)),
    'labels.txt': '\n'.join(weights.class_names) + '\n',
    TORCH_FILE: importlib.resources.files('alexnet_jax.interop').joinpath(TORCH_FILE).read_text('utf-8'),
    CARD: _model_card(folder.name, weights, results, licence),
  }
  # The folder of TemporaryDirectory is private to its user, and that inside has the usual permissions.
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.absolute().parent) as temporary:
    partial = pathlib.Path(temporary, folder.name)
    partial.mkdir()
    weight_files.write(partial / weight_files.FILE_IN_FOLDER, weights)
    (partial / PROBE).write_bytes(image_io.encode_png(image))
    for name, text in texts.items():
      (partial / name).write_text(text, 'utf-8')
    expected = {
      'logits': logits.tolist(),
      'tolerance': TOLERANCE * float(np.abs(logits).max()),
      'sha256': {path.name: _sha256(path) for path in sorted(partial.iterdir()) if path.name != CARD},
    }
    (partial / EXPECTED).write_text(_to_json(expected), 'utf-8')
    partial.replace(folder)


def read_expected(folder: pathlib.Path) -> tuple[np.ndarray, float]:
  """Reads probe.json, and checks that the files of the folder are those that were exported, the model card aside.

  Returns:
    The expected logits [class] and their tolerance.

  Raises:
    UsageError: if the folder is not an exported one.
    RunError: if a file is missing, damaged or was changed.
  """
  try:
    expected = json.loads((folder / EXPECTED).read_text('utf-8'))
    logits, tolerance = np.array(expected['logits'], np.float32), float(expected['tolerance'])
    checksums = dict(expected['sha256'])
    if logits.ndim != 1 or any(name != pathlib.PurePath(name).name for name in checksums):
      raise ValueError('logits is not a list, or a name is that of a file elsewhere')
  except OSError as error:
    raise UsageError(
      f'{folder} contains no readable {EXPECTED}; choose a folder written by `weights export --format=huggingface`.'
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
    raise RunError(f'{folder / EXPECTED} is damaged; export the run again.') from error
  for name, checksum in checksums.items():
    try:
      actual = _sha256(folder / name)
    except OSError as error:
      raise RunError(f'{folder / printable(name)} cannot be read ({error.strerror}); export the run again.') from error
    if actual != checksum:
      raise RunError(
        f'{folder / printable(name)} is not the exported file (its SHA-256 differs); export the run again.'
      )
  return logits, tolerance


def check_logits(folder: pathlib.Path, model: TrainedModel, expected: np.ndarray, tolerance: float) -> str:
  """Checks that a network computes the expected logits of the probe.

  Args:
    folder: the folder.
    model: the network in it.
    expected: logits [class].
    tolerance: largest difference of a logit.

  Returns:
    A message with the largest difference.

  Raises:
    RunError: if a logit differs by more than the tolerance.
  """
  logits = compute_logits(model, image_io.StoredImages([folder / PROBE], model.stored_size)[:1][0])
  if expected.shape != logits.shape:
    raise RunError(f'{folder / EXPECTED} has {expected.size:,} logits, and the network {logits.size:,}.')
  difference = float(np.abs(logits - expected).max())
  numbers = f'by at most {difference:.2g} (tolerance {tolerance:.2g}, {len(logits):,} classes)'
  if not difference <= tolerance:  # also if it is nan
    raise RunError(f'The logits of {folder / PROBE} differ {numbers}: the weights are not those of the exported run.')
  return f'{folder} is intact: the logits of {PROBE} differ from the expected ones {numbers}.'


def compute_logits(model: TrainedModel, image: np.ndarray) -> np.ndarray:
  """Computes the logits of the centre crop of a stored image in 32 bits: [size, size, rgb] uint8 -> [class] float32."""
  config = copy.deepcopy(model.config)
  config.dtype = 'float32'
  model = model._replace(config=config, network=build(config, len(model.class_names)))
  with jax.default_matmul_precision('highest'):
    return np.asarray(model.activations(image[None], 'fc8'))[0]


def draw_probe(size: int) -> np.ndarray:
  """Draws the probe, smooth random colours: [size, size, rgb] uint8."""
  return image_io.resize_and_crop(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), size)


def _sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _to_json(value):
  return json.dumps(value, indent=2, ensure_ascii=False) + '\n'


def _config(weights):
  return {
    'architectures': ['AlexNet'],
    'model_type': 'alexnet',
    'id2label': {str(label): name for label, name in enumerate(weights.class_names)},
    'model': weights.config.model.to_dict(),
  }


def _preprocessor_config(weights):
  """Returns the preprocessing in the Hub's fields, and in words because they do not include a mean image."""
  preprocessing = layout.describe_preprocessing(weights.config.model)
  return {
    'do_convert_rgb': True,
    'do_resize': True,
    'size': {'shortest_edge': preprocessing['stored_size']},
    'do_center_crop': True,
    'crop_size': {'height': preprocessing['patch_size'], 'width': preprocessing['patch_size']},
    'do_rescale': False,
    'do_normalize': False,
    'preprocessing': preprocessing['words'],
  }


def _model_card(name, weights, results, licence):
  """Returns the model card. Its front matter is JSON, which is valid YAML."""
  config = weights.config
  dataset = DATASETS.get(config.data.name, config.data.name)
  metadata = {
    'library_name': 'alexnet_jax',
    'pipeline_tag': 'image-classification',
    'license': licence,
    'datasets': [dataset],
  }
  evaluated = [crop_set for crop_set in cropping.CROP_SET_TITLES if results.get(crop_set)]
  if evaluated:
    metadata['model-index'] = [{'name': name, 'results': [_model_index_entry(results, evaluated, dataset)]}]
  return string.Template(MODEL_CARD).substitute(
    front_matter='\n'.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in metadata.items()),
    name=name,
    variants=', '.join(config.variants) or "none, the paper's recipe",
    dataset=config.data.name + _describe_selection(config.data.classes),
    num_classes=f'{len(weights.class_names):,}',
    num_params=f'{sum(x.size for x in weights.tensors.values()):,}',
    num_steps=f'{weights.num_steps:,}',
    preprocessing=layout.describe_preprocessing(config.model)['words'],
    results=_results_table(results, evaluated),
  )


def _model_index_entry(results, evaluated, dataset):
  metrics = [
    {
      'type': 'accuracy',
      'name': f'top-{k} accuracy, {cropping.CROP_SET_TITLES[crop_set]}',
      'value': round(1 - results[crop_set][f'top{k}_error'] / 100, 4),
    }
    for crop_set in evaluated
    for k in (1, 5)
  ]
  return {
    'task': {'type': 'image-classification'},
    'dataset': {
      'name': results['dataset'] + _describe_selection(results.get('classes')),
      'type': dataset,
      'split': results['split'],
    },
    'metrics': metrics,
  }


def _describe_selection(classes):
  """Describes the selected classes of a dataset, which are those in labels.txt; empty if all classes are used."""
  return f', {len(classes):,} selected classes' if classes else ''


def _results_table(results, evaluated):
  if not evaluated:
    return 'These weights have not been evaluated.'
  rows = [
    f'| {cropping.CROP_SET_TITLES[crop_set]} | {results[crop_set]["top1_error"]:.2f} % '
    f'| {results[crop_set]["top5_error"]:.2f} % |'
    for crop_set in evaluated
  ]
  dataset = results['dataset'] + _describe_selection(results.get('classes'))
  title = f'{dataset}, split {results["split"]}, {results["num_examples"]:,} images:'
  return '\n'.join([title, '', '| crops | top-1 error | top-5 error |', '| --- | --- | --- |', *rows])
