"""Takes trained networks to other programs and brings theirs here.

    python -m alexnet_jax.weights export WORKDIR alexnet.safetensors      # or alexnet.onnx
    python -m alexnet_jax.weights import alexnet.safetensors WORKDIR      # or an .onnx that was exported here
    python -m alexnet_jax.weights import bvlc_alexnet.caffemodel WORKDIR --mean=imagenet_mean.binaryproto
    python -m alexnet_jax.weights import alexnet-owt-7be5be79.pth WORKDIR    # torchvision's; or .safetensors

An exported .safetensors holds conv1.weight [out, in / groups, height, width] ... fc8.bias as Caffe and PyTorch have
them (tower 0 is the first half of the outputs; fc6 reads channel, row, column) and mean_image [size, size, RGB]; its
metadata the config, the class names and the preprocessing. Our dropout halves the outputs of fc6 and fc7 at test time;
in the file the half is part of fc7.weight and fc8.weight, so that a plain network has the same logits. An .onnx takes
images [batch, 224, 224, RGB], 0-255, subtracts the mean itself, and returns logits and probabilities.

Use what was imported with main.py --mode=eval --workdir=WORKDIR. Exit status: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import logging

from alexnet_jax import command, files
from alexnet_jax.errors import RunError, UsageError

if TYPE_CHECKING:
  from alexnet_jax.interchange import Weights

NETS = ('bvlc_alexnet', 'bvlc_reference_caffenet')


def main(arguments: Sequence[str] | None = None) -> int:
  """Does what the command line asks for and returns the exit status."""
  options = parser().parse_args(arguments)
  logging.set_verbosity(logging.ERROR)  # Orbax's own chatter

  def do():
    if options.command == 'export':
      export_workdir(options.workdir, options.file)
    else:
      import_file(options.file, options.workdir, mean=options.mean, classes=options.classes, net=options.net)
    return 0

  return command.run(do, 'error: interrupted; start again.', status_when_stopped=command.FAILED)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.weights', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  add = commands.add_parser('export', help='from the newest checkpoint of a run to a file').add_argument
  add('workdir', metavar='WORKDIR', type=pathlib.Path, help='folder of the run')
  add('file', metavar='OUTPUT', type=pathlib.Path, help='.safetensors or .onnx')
  add = commands.add_parser('import', help='from a file to the folder of a run').add_argument
  add('file', metavar='FILE', type=pathlib.Path, help='.safetensors, .onnx, .caffemodel, .pth or .pt')
  add('workdir', metavar='WORKDIR', type=pathlib.Path, help='folder of the run to be, without one in it')
  add('--mean', type=pathlib.Path, help="Caffe's mean image, .binaryproto or .npy [BGR, 256, 256]")
  add('--classes', type=pathlib.Path, help="the classes' names, one a line (those in FILE, or 'class 0' and so on)")
  add('--net', choices=NETS, help='which Caffe network it is, where the file does not tell')
  return parser


def export_workdir(workdir: pathlib.Path, output: pathlib.Path) -> None:
  """Writes the newest checkpoint of a run to a .safetensors or .onnx file.

  Raises:
    UsageError: if there is no run or checkpoint, or the suffix is unknown.
    RunError: if the file cannot be written.
  """
  if output.suffix not in ('.safetensors', '.onnx'):
    raise UsageError(f'{output} has no suffix that says what to write; end it in .safetensors or .onnx.')
  import numpy as np

  from alexnet_jax import interchange, trained
  from alexnet_jax.workdir import load_config

  network = trained.load(workdir, batch_size=1, num_data=1, num_tower=1)
  tensors = interchange.to_tensors(network.params, network.config, len(network.class_names))
  mean_image = np.asarray(network.mean_image)
  weights = interchange.Weights(load_config(workdir), tensors, mean_image, network.class_names, network.num_steps)
  try:
    with files.replacing(output) as partial:
      write(partial, weights)
  except OSError as error:
    raise RunError(f'{output} cannot be written ({error.strerror}); name a file in a folder with room.') from error
  print(f'{output}: {_summary(weights)}')


def import_file(
  file: pathlib.Path,
  workdir: pathlib.Path,
  *,
  mean: pathlib.Path | None = None,
  classes: pathlib.Path | None = None,
  net: str | None = None,
) -> None:
  """Makes the folder of a run from a file of weights: config, classes, mean image, and a checkpoint.

  The checkpoint is what training writes, with velocities of zero. What the file does not say (how it was trained) is
  the paper's recipe; the RGB covariance of its training images is not known and set to zero.

  Args:
    file: what `read` reads.
    workdir: the folder.
    mean: Caffe's mean image, where the file is Caffe's.
    classes: names of the classes, one a line.
    net: which of `NETS` a .caffemodel is.

  Raises:
    UsageError: if the file, the mean image or the classes cannot be read or do not fit, or the folder holds a run.
    RunError: if the folder cannot be written.
  """
  from alexnet_jax.workdir import check_free

  check_free(workdir)  # before much is read
  weights = read(file, net=net)
  if mean is not None:
    weights = weights._replace(mean_image=_read_mean(mean, file, weights))
  if weights.mean_image is None:
    raise UsageError(f'{file} does not hold the mean image of its training set; name it with --mean.')
  if classes is not None:
    weights = weights._replace(class_names=_read_classes(classes, file, len(weights.class_names)))
  try:
    _write_workdir(workdir, weights)
  except OSError as error:
    raise RunError(f'{workdir} cannot be written ({error.strerror}); choose a folder with room.') from error
  print(f'{workdir}: {_summary(weights)}')
  print(f'evaluate it with python main.py {_of_its_data(weights.config.data)} --mode=eval --workdir={workdir}')


def _of_its_data(data):
  """Says with which flags main.py reads the data that a network was made for."""
  if data.name == 'ilsvrc/2012':
    return '--config=configs/alexnet.py:imagenet2012'
  own = f'--config.data.name={data.name}', f'--config.data.test_split={data.test_split}'
  return shlex.join(('--config=configs/alexnet.py', *own))


def read(file: pathlib.Path, *, net: str | None = None) -> 'Weights':
  """Reads a file of weights.

  Args:
    file: a .safetensors or .onnx that was exported here, a .caffemodel of one of `NETS`, or torchvision's AlexNet as
      .pth, .pt or .safetensors.
    net: which of `NETS` a .caffemodel is, where the file does not tell.

  Returns:
    The network; `.config.model` describes it, `.params(num_towers)` gives its parameters,
    {'conv1': {'kernel': [tower, ...], 'bias': [tower, out]}, ...}.

  Raises:
    UsageError: if it is no such file, is damaged, or does not hold the tensors of its network.
  """
  if net is not None and file.suffix != '.caffemodel':
    raise UsageError(f'--net={net} says which .caffemodel a file is; {file} is none, so leave --net out.')
  readers = {
    '.safetensors': _read_safetensors,
    '.onnx': _read_onnx,
    '.caffemodel': lambda file: _read_caffe(file, net),
    '.pth': _read_torch,
    '.pt': _read_torch,
  }
  if file.suffix not in readers:
    raise UsageError(f'{file} has no suffix that says what it is; known are {", ".join(readers)}.')
  if not file.is_file():
    raise UsageError(f'{file} does not exist, or is no file; name a file of weights.')
  return readers[file.suffix](file)


def write(file: pathlib.Path, weights: 'Weights') -> None:
  """Writes a file that `read` reads, by its suffix .safetensors or .onnx.

  Raises:
    OSError: if it cannot be written.
  """
  from alexnet_jax import interchange

  if file.suffix == '.onnx':
    import onnx

    from alexnet_jax import onnx_graph

    onnx.save(onnx_graph.make(weights), file)
    return
  from safetensors.numpy import save

  file.write_bytes(save(weights.tensors | {'mean_image': weights.mean_image}, interchange.metadata(weights)))


def _read_safetensors(file):
  import safetensors

  from alexnet_jax import interchange, torchvision

  try:
    with safetensors.safe_open(file, framework='numpy') as opened:
      texts, tensors = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
    raise UsageError(f'{file} is no safetensors file, or is cut short ({error}); choose a whole one.') from error
  if texts.get('format') != interchange.FORMAT and torchvision.is_state_dict(tensors):
    return _from_torchvision(file, tensors)
  return interchange.from_metadata(file, texts, tensors)


def _read_onnx(file):
  import onnx
  from google.protobuf.message import DecodeError

  from alexnet_jax import interchange, onnx_graph

  try:
    model = onnx.load(file)
  except (DecodeError, OSError) as error:
    raise UsageError(f'{file} is no ONNX file, or is cut short ({error}); choose a whole one.') from error
  return interchange.from_metadata(file, *onnx_graph.contents(model))


def _read_torch(file):
  from alexnet_jax import torchvision

  return _from_torchvision(file, torchvision.load(file))


def _from_torchvision(file, found):
  from alexnet_jax import interchange, torchvision

  ours = {
    torchvision.theirs(f'{layer}.{part}'): f'{layer}.{part}'
    for layer in torchvision.NAMES
    for part in ('weight', 'bias')
  }
  tensors = {ours.get(name, name): x for name, x in found.items()}
  config, num_classes = _recipe('torchvision', tensors, num_towers=1)
  expected = interchange.shapes(config.model, num_classes)
  expected = {torchvision.theirs(name): shape for name, shape in expected.items()}
  interchange.check(file, {name: x.shape for name, x in found.items()}, expected)
  mean_image = torchvision.mean_image(config.model.image_size + config.model.border)
  tensors = _float32(torchvision.fold_preprocessing(tensors))
  return interchange.Weights(config, tensors, mean_image, _numbered(num_classes), 0)


def _read_caffe(file, net):
  from alexnet_jax import caffe, interchange

  found, tensors = caffe.read_model(file)
  if net is not None and found is not None and net != found:
    raise UsageError(f'{file} is {found} and not --net={net}; leave --net out.')
  if net is None and found is None:
    raise UsageError(f'{file} does not tell which network it is; say so with --net={" or --net=".join(NETS)}.')
  if {'conv1.bias', 'conv2.weight'} <= tensors.keys() and tensors['conv2.weight'].ndim == 4:
    num_towers = 1 if tensors['conv2.weight'].shape[1] == len(tensors['conv1.bias']) else 2
  else:
    num_towers = 2
  config, num_classes = _recipe(net or found, tensors, num_towers)
  interchange.check(file, {name: x.shape for name, x in tensors.items()}, interchange.shapes(config.model, num_classes))
  return interchange.Weights(config, tensors, None, _numbered(num_classes), 0)


def _recipe(variant, tensors, num_towers):
  """Returns the config of a network of others, as wide as its tensors are, and the number of its classes."""
  try:
    from configs import alexnet
  except ImportError as error:
    raise UsageError('the recipes in configs/ are not there; start this in the folder of the project.') from error
  config = alexnet.get_config(f'imagenet2012,{variant}')
  config.model.num_towers = num_towers
  num_out = {}
  for name, x in tensors.items():
    num_out.setdefault(name.partition('.')[0], x.shape[0] if x.shape else 1)
  for layer in config.model.kernels.keys() & num_out.keys():
    config.model.kernels[layer] = max(1, num_out[layer] // num_towers)
  return config, num_out.get('fc8', 1000)


def _float32(tensors):
  import numpy as np

  return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def _numbered(num_classes):
  return [f'class {number}' for number in range(num_classes)]


def _read_mean(mean, file, weights):
  from alexnet_jax import caffe

  if file.suffix != '.caffemodel':
    raise UsageError(f'{file} has a mean image of its own; leave --mean={mean} out.')
  image = caffe.read_mean(mean)
  size = weights.config.model.image_size + weights.config.model.border
  if image.shape != (size, size, 3):
    height, width, _ = image.shape
    raise UsageError(f'the mean image {mean} is 3 x {height} x {width} and should be 3 x {size} x {size}.')
  return image


def _read_classes(classes, file, num_classes):
  try:
    names = classes.read_text().removesuffix('\n').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise UsageError(f'{classes} cannot be read ({error}); name a text file with one class a line.') from error
  if len(names) != num_classes:
    raise UsageError(f'{classes} names {len(names):,} classes and {file} tells {num_classes:,} apart.')
  return names


def _write_workdir(folder, weights):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from alexnet_jax import optimizer, step, towers, workdir
  from alexnet_jax.checkpoint import Checkpoints
  from alexnet_jax.statistics import Statistics

  config = weights.config
  statistics = Statistics(np.asarray(weights.mean_image, np.float64), np.zeros((3, 3)), 0)
  workdir.check(folder, config)
  workdir.start(folder, config, statistics, weights.class_names)
  mesh = towers.make_mesh(1, 1, num_towers=config.model.num_towers, batches={})
  with jax.set_mesh(mesh):
    params = jax.device_put(weights.params(), jax.NamedSharding(mesh, towers.PARAMS))
    rule = optimizer.momentum_sgd({}, **step.hyperparameters(config.optimizer)._asdict())
    state = step.TrainState(params, rule.init(params), jnp.asarray(weights.num_steps, jnp.int32))
    schedule = optimizer.make_schedule(config.optimizer, max(1, weights.num_steps))
    checkpoints = Checkpoints(folder)
    checkpoints.save(weights.num_steps, state, {'schedule': schedule.state()})
    checkpoints.close()


def _summary(weights):
  count = sum(x.size for x in weights.tensors.values())
  return f'{count:,} parameters, {len(weights.class_names):,} classes, step {weights.num_steps:,}'


if __name__ == '__main__':
  sys.exit(main())
