"""Command-line tools, one subcommand each; installed as `alexnet`.

    python -m alexnet_jax prepare 2012 FOLDER                 # a dataset from archives or folders of images
    python -m alexnet_jax features extract runs/digits fc7    # activations of a layer, nearest neighbours
    python -m alexnet_jax figures kernels runs/digits         # the paper's figures
    python -m alexnet_jax weights export runs/digits alexnet.safetensors
    python -m alexnet_jax reproduce --list                    # the paper's experiments

`python -m alexnet_jax SUBCOMMAND --help` describes a subcommand. Training, evaluation and prediction are in main.py.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 finished but some inputs could not be read (they are named), 75 stopped
by SIGTERM or Ctrl-C (run the same command to resume).
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

# TFDS encodes the images of some datasets with TensorFlow; without its oneDNN kernels it prints nothing on import.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import logging

from alexnet_jax.runtime import compilation_cache, exit_status, extras, host_memory, processor
from alexnet_jax.runtime.errors import UsageError

DATA_DIR = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')  # the default of TFDS
CURVES = ('error', 'loss', 'validation')
EXPLANATIONS = ('saliency', 'guided_backpropagation', 'grad_cam', 'occlusion', 'activation_maximisation')
SIMILARITIES = ('cka', 'unbiased_cka', 'rsa')
# Options that a subcommand or figure does not read in some case: its name, the case, the options, and the reason.
UNREAD = (
  ('prepare', lambda options: options.layout != 'synsets', ('seed',), 'only the layout synsets is split at random'),
  ('prepare', lambda options: options.encoding == 'raw', ('quality',), '--encoding=raw stores no JPEG files'),
  ('prepare', lambda options: not options.beam, ('beam_options',), 'there is no --beam'),
  ('prepare', lambda options: options.beam, ('workers',), '--beam_options configure the processes of --beam'),
  (
    'figures',
    lambda options: getattr(options, 'images', ()),
    ('split', 'data_dir', 'num_images', 'seed'),
    'the named images replace the dataset',
  ),
  ('kernels', lambda options: options.source.is_dir(), ('towers', 'bgr'), 'only an .npz file needs it'),
  ('explain', lambda options: options.unit, ('target',), '--unit replaces the classes'),
  (
    'explain',
    lambda options: options.method != 'activation_maximisation',
    ('num_steps',),
    'only --method=activation_maximisation takes steps',
  ),
  (
    'explain',
    lambda options: options.method == 'activation_maximisation',
    ('layer', 'patch', 'split', 'data_dir', 'num_images'),
    'activation_maximisation begins with noise',
  ),
  ('architecture', lambda options: options.workdir, ('config', 'num_classes'), 'WORKDIR determines it'),
)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the subcommand of a command line and returns the exit status.

  The function of the subcommand is imported after parsing, which keeps `--help` and usage errors fast.
  """
  options = parser().parse_args(arguments)
  logging.set_verbosity(logging.ERROR)  # Orbax and TFDS log every step they take
  compilation_cache.enable()
  with exit_status.interrupt_on_sigterm():
    return exit_status.exit_status_of(lambda: _run(options))


def _run(options):
  check_options_are_read(options)
  return extras.resolve(options.function)(options)


def check_options_are_read(options: argparse.Namespace) -> None:
  """Checks that every option that is set has an effect.

  Raises:
    UsageError: if one has none.
  """
  names = {options.subcommand, getattr(options, 'figure', None)}
  for name, is_unread, unread, reason in UNREAD:
    if name in names and is_unread(options):
      for option in unread:
        if getattr(options, option, None) != options.subparser.get_default(option):
          raise UsageError(f'--{option} has no effect here, because {reason}; omit it.')


def parser() -> argparse.ArgumentParser:
  """Returns the parser of all subcommands."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  subcommands = parser.add_subparsers(dest='subcommand', required=True, metavar='SUBCOMMAND')
  for add in (_prepare, _features, _figures, _explore, _weights, _reproduce):
    add(subcommands)
  return parser


def _subcommand(subcommands, name, description, **defaults):
  subparser = subcommands.add_parser(
    name,
    help=description.partition('\n')[0],
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  subparser.set_defaults(subparser=subparser, **defaults)
  return subparser


def _prepare(subcommands):
  add = _subcommand(
    subcommands,
    'prepare',
    """Prepares a dataset of square images, and its statistics, from archives or folders of images.

  prepare 2012 FOLDER                      ILSVRC2012_img_train.tar, _img_val.tar, _devkit_t12.tar.gz
  prepare 2010 FOLDER                      ILSVRC2010_images_*.tar, devkit, test ground truth
  prepare synsets TAR --name=fall2009      a tar that contains one tar per synset
  prepare folder FOLDER --name=flowers     FOLDER/train/CLASS/IMAGE, plus val or test
  prepare tiny_imagenet FOLDER_OR_ZIP      tiny-imagenet-200, stored with 64 x 64 pixels

When finished, it prints the command that trains on the dataset. An interrupted preparation resumes when the same
command is run again.""",
    function='alexnet_jax.data.imagenet.prepare:prepare',
  ).add_argument
  add('layout', choices=['2012', '2010', 'synsets', 'folder', 'tiny_imagenet'], help='layout of SOURCE')
  add(
    'source',
    metavar='SOURCE',
    type=pathlib.Path,
    help='folder of the archives, tar of the synsets, class folders, or zip',
  )
  add('--name', help='name of the dataset ilsvrc/NAME (default: the layout)')
  add('--data_dir', type=pathlib.Path, default=DATA_DIR, help='folder of the datasets (%(default)s)')
  add(
    '--encoding', choices=['jpeg', 'raw'], default='jpeg', help='raw pixels take ten times the space, but no decoding'
  )
  add('--quality', type=int, default=85, help='JPEG quality, 1 to 100 (%(default)s)')
  add('--workers', type=int, default=processor.num_cores(), help='number of processes (default: one per core)')
  add('--max_skipped', type=float, default=0.001, help='fraction of images that may be undecodable (%(default)s)')
  add('--seed', type=int, default=0, help='seed of the random train/test split of `synsets` (%(default)s)')
  add('--any_count', action='store_true', help='accept incomplete official archives')
  add('--beam', metavar='RUNNER', help="run as an Apache Beam pipeline on this runner, such as 'DirectRunner'")
  add('--beam_options', default='', help='options of the runner, NAME=VALUE,NAME=VALUE')


def _features(subcommands):
  features = _subcommand(
    subcommands,
    'features',
    """Extracts activations, for nearest neighbours (section 6.1), other libraries and TensorBoard's projector.

  features extract runs/digits train-fc7                    the run's training images
  features extract runs/digits test-fc7 --split=test
  features extract runs/digits mine --images PHOTOGRAPHS
  features extract runs/digits digits.pt --layer=conv5,fc6 --format=torch
  features neighbours test-fc7 train-fc7 --k=6
  features project test-fc7                                 then tensorboard --logdir test-fc7

`extract` writes a folder: features.npy [image, ...] float32, labels.npy [image] int32 (-1: unknown), names.json, and
about.json, which records the run, step and layer. Several layers have such a folder each, OUTPUT/LAYER. With
--format=zarr it writes a Zarr group and with --format=torch a file for torch.load. An interrupted extraction resumes.
`neighbours` writes indices [query, k] and distances [query, k] to an .npz file. `project` writes the files of the
projector to the folder of the features.""",
  ).add_subparsers(required=True, metavar='extract | neighbours | project')

  add = _subcommand(
    features,
    'extract',
    'Writes the activations of one or more layers, in one pass over the images.',
    function='alexnet_jax.analysis.features:extract_command',
  ).add_argument
  add('workdir', metavar='WORKDIR', type=pathlib.Path, help='folder of the run')
  add('output', metavar='OUTPUT', type=pathlib.Path, help='folder or file to create')
  names = "conv1, pool1, ... fc7, fc8, or Caffe's or torchvision's names of the same activations, such as relu6"
  add('--layer', default='fc7', metavar='NAME,NAME', help=f'{names} (%(default)s)')
  add('--format', choices=['npy', 'zarr', 'torch'], default='npy', help='format of the output (%(default)s)')
  add('--images', nargs='+', metavar='PATH', help='image files, folders or patterns instead of a dataset')
  add('--split', help="split of the dataset, such as 'test' or 'train[:5000]' (default: the run's training split)")
  add('--data', metavar='NAME', help="TFDS dataset (default: the run's)")
  add('--data_dir', metavar='DIR', help="folder of the dataset (default: the run's)")
  add(
    '--batch_size',
    type=int,
    default=128,
    help='images per batch, rounded up to a multiple of the number of devices (%(default)s)',
  )

  add = _subcommand(
    features,
    'neighbours',
    'Finds the nearest neighbours in Euclidean distance.',
    function='alexnet_jax.analysis.features:neighbours_command',
  ).add_argument
  add('queries', metavar='QUERIES', type=pathlib.Path, help='folder written by `extract`')
  add('train', metavar='TRAIN', type=pathlib.Path, help='folder written by `extract`, in which to search')
  add('--k', type=int, default=6, help='number of neighbours per query (%(default)s)')
  add('--output', type=pathlib.Path, default='neighbours.npz', help='file to write (%(default)s)')
  _project(features)


def _project(features):
  add = _subcommand(
    features,
    'project',
    "Writes the files of TensorBoard's embedding projector to the folder of the features.",
    function='alexnet_jax.analysis.projector:project_command',
  ).add_argument
  add('folder', metavar='FOLDER', type=pathlib.Path, help='folder written by `extract`; the argument of tensorboard')
  add('--num_images', type=int, default=1000, help='largest number of images, chosen at random (%(default)s)')
  add('--seed', type=_non_negative, default=0, help='seed of the random choice (%(default)s)')
  add('--data_dir', metavar='DIR', help="folder of the dataset (default: the run's)")


def _figures(subcommands):
  figures = _subcommand(
    subcommands,
    'figures',
    """Draws the paper's figures from a run.

  figures kernels runs/digits                           figure 3, and the colourfulness of each tower
  figures predictions runs/digits --only_errors         figure 4, left
  figures neighbours runs/digits                        figure 4, right
  figures curves runs/digits runs/tanh --show error     figure 1
  figures maps runs/digits cat.jpg --layer=conv2
  figures saliency runs/digits cat.jpg dog.jpg
  figures explain runs/digits cat.jpg --method=grad_cam
  figures similarity runs/digits runs/tanh              layer by layer
  figures architecture --config=configs/alexnet.py:one_tower      figure 2

Each writes a PNG, or an SVG or PDF if --output has that suffix. IMAGE is a file, folder or pattern; by default, images
are drawn at random from the run's test split.""",
  ).add_subparsers(dest='figure', required=True, metavar='FIGURE')

  add = _figure(figures, 'kernels', 'Kernels of conv1 by tower.')
  add('source', metavar='WORKDIR | FILE.npz', type=pathlib.Path, help='run, or array `weights` [11, 11, 3, kernel]')
  add('--towers', type=int, default=2, help='number of towers of the kernels in FILE.npz (%(default)s)')
  add('--bgr', action='store_true', help='the channels in the file are blue, green, red')
  add('--common_scale', action='store_true', help='use one scale for all kernels instead of one per kernel')

  add = _figure(figures, 'predictions', 'Images and their five most probable classes.', num_images=8)
  add('--only_errors', action='store_true', help='draw only misclassified images')

  add = _figure(figures, 'neighbours', 'Images and their nearest training images in fc7.', num_images=5)
  add('--k', type=int, default=6, help='number of neighbours (%(default)s)')
  add('--layer', default='fc7', help='layer whose activations are compared (%(default)s)')

  add = _figure(figures, 'curves', 'Training curves of one or more runs.')
  add('workdirs', metavar='WORKDIR', nargs='+', type=pathlib.Path, help='folders of the runs')
  add('--show', nargs='+', choices=CURVES, default=['error'], help='curves to draw, one panel each (error)')

  add = _figure(figures, 'maps', 'Feature maps of a layer for one image, by tower.', num_images=1)
  add('--layer', default='conv1', help='conv1, pool1, ... conv5, pool5 (%(default)s)')
  add('--common_scale', action='store_true', help='use one scale for all maps instead of one per map')

  add = _figure(figures, 'saliency', "Gradient of the top class's log-probability by pixel.", num_images=4)
  add('--threshold', type=float, default=3.0, help='gradients below this many standard deviations are 0 (%(default)s)')

  _similarity(figures)

  add = _figure(figures, 'explain', 'The pixels on which a class, or a unit, depends.', num_images=4)
  add('--method', choices=EXPLANATIONS, default='grad_cam', help='%(choices)s (%(default)s)')
  add('--target', nargs='+', metavar='CLASS', help='names or labels (default: the most probable class of each image)')
  add('--unit', nargs=2, metavar=('LAYER', 'INDEX'), help='explain a unit instead of classes')
  add('--layer', help='layer whose maps grad_cam weights (default: the last convolutional layer)')
  add('--patch', nargs=2, type=int, metavar=('SIDE', 'STRIDE'), help='patches of occlusion, in pixels')
  add('--num_steps', type=int, default=256, help='steps of activation_maximisation (%(default)s)')

  add = _figure(figures, 'architecture', 'The network and its distribution over devices.')
  add('workdir', metavar='WORKDIR', nargs='?', type=pathlib.Path, help='folder of a run')
  add('--config', default='configs/alexnet.py', help='FILE.py:VARIANT,..., used without WORKDIR (%(default)s)')
  add('--num_classes', type=int, default=1000, help='number of classes, used without WORKDIR (%(default)s)')
  add('--compact', action='store_true', help='omit the numbers below the layers, for a narrow screen')


def _similarity(figures):
  description = 'Similarity of the layers of one run or of two runs, for the same images.'
  add = _figure(figures, 'similarity', description, num_images=200, has_other_run=True)
  add('--measure', choices=SIMILARITIES, default='unbiased_cka', help='measure of similarity (%(default)s)')
  add('--towers', action='store_true', help='split each layer into its towers')


def _figure(figures, name, description, num_images=None, has_other_run=False):
  """Adds the subcommand of a figure; `num_images` is the default number of images if the figure reads images."""
  add = _subcommand(figures, name, description, function='alexnet_jax.analysis.figures:draw').add_argument
  add('--output', type=pathlib.Path, help=f'.png, .svg or .pdf file to write ({name}.png)')
  if num_images is not None:
    add('workdir', metavar='WORKDIR', type=pathlib.Path, help='folder of the run')
    if has_other_run:
      add('other', metavar='WORKDIR', nargs='?', type=pathlib.Path, help='folder of another run (default: the same)')
    images_help = 'files, folders or patterns (default: images of --split)'
    add('--images' if has_other_run else 'images', metavar='IMAGE', nargs='*', default=(), help=images_help)
    add('--num_images', type=int, default=num_images, help='number of images drawn at random (%(default)s)')
    add('--seed', type=_non_negative, default=0, help='seed of the random choice (%(default)s)')
    add('--split', help="split to choose from (default: the run's test split)")
    add('--data_dir', metavar='DIR', help="folder of the dataset (default: the run's)")
  return add


def _explore(subcommands):
  add = _subcommand(
    subcommands,
    'explore',
    """Serves a page on this computer that shows what a trained network computes.

  explore runs/digits
  explore runs/digits runs/tanh          two runs side by side

Open the printed address in a browser, and drop a photograph. The page needs no internet. It requires Gradio: pip
install 'alexnet_jax[explore]'.""",
    function='alexnet_jax.explore.page:command',
  ).add_argument
  add('workdirs', metavar='WORKDIR', nargs='+', type=pathlib.Path, help='folder of a run; two are compared')
  add('--host', default='127.0.0.1', help='address to serve on; 0.0.0.0 admits other computers (%(default)s)')
  add('--port', type=int, default=7860, help='port to serve on (%(default)s)')


def _weights(subcommands):
  weights = _subcommand(
    subcommands,
    'weights',
    """Exports weights to other programs, and imports theirs.

  weights export WORKDIR alexnet.safetensors      or alexnet.onnx
  weights export WORKDIR FOLDER --format=huggingface
  weights check FOLDER
  weights import alexnet.safetensors WORKDIR      or an .onnx file or a folder that `export` wrote
  weights import bvlc_alexnet.caffemodel WORKDIR --mean=imagenet_mean.binaryproto
  weights import alexnet-owt-7be5be79.pth WORKDIR       torchvision's .pth or .safetensors

A .safetensors file contains conv1.weight [out, in / groups, height, width] ... fc8.bias in the layout of Caffe and
PyTorch, and mean_image [size, size, rgb]. Tower 0 is the first half of every layer's outputs; the inputs of fc6 are in
channel, row, column order. The metadata contains the config, the class names and the preprocessing. At test time, our
dropout halves the outputs of fc6 and fc7; fc7.weight and fc8.weight in the file include that factor, and a network
without it computes the same logits. An .onnx file takes images [batch, 224, 224, rgb], 0-255, subtracts the mean image,
and returns logits and probabilities. A folder in the layout of the Hugging Face Hub contains model.safetensors, a model
card, and alexnet_torch.py, which loads the network in PyTorch without this project.

Evaluate an imported network with main.py --mode=eval --workdir=WORKDIR.""",
  ).add_subparsers(required=True, metavar='export | check | import')

  add = _subcommand(
    weights,
    'export',
    'Writes the weights of the newest checkpoint of a run to a file or folder.',
    function='alexnet_jax.interop.import_export:export_command',
  ).add_argument
  add('workdir', metavar='WORKDIR', type=pathlib.Path, help='folder of the run')
  add('file', metavar='OUTPUT', type=pathlib.Path, help='.safetensors or .onnx file, or a folder to create')
  add('--format', choices=['huggingface'], help='write a folder for the Hugging Face Hub (default: by suffix)')
  add('--license', default='unknown', metavar='ID', help="of the weights, for the Hub's model card (%(default)s)")

  add = _subcommand(
    weights,
    'check',
    'Checks that an exported folder is complete, unchanged and computes the logits that it had when it was exported.',
    function='alexnet_jax.interop.import_export:check_command',
  ).add_argument
  add('folder', metavar='FOLDER', type=pathlib.Path, help='folder written by `export --format=huggingface`')

  add = _subcommand(
    weights,
    'import',
    'Makes the folder of a run from a file of weights.',
    function='alexnet_jax.interop.import_export:import_command',
  ).add_argument
  add('file', metavar='FILE', type=pathlib.Path, help='.safetensors, .onnx, .caffemodel, .pth, .pt or exported folder')
  add('workdir', metavar='WORKDIR', type=pathlib.Path, help='folder to create; it must not contain a run')
  add('--mean', type=pathlib.Path, help="Caffe's mean image, .binaryproto or .npy [BGR, 256, 256]")
  add(
    '--classes',
    type=pathlib.Path,
    help="class names, one per line (default: those in FILE, or 'class 0', 'class 1', ...)",
  )
  add(
    '--net', choices=['bvlc_alexnet', 'bvlc_reference_caffenet'], help='network of a Caffe FILE that does not name it'
  )


def _reproduce(subcommands):
  add = _subcommand(
    subcommands,
    'reproduce',
    """Runs the paper's experiments and compares the results with the paper.

  reproduce --list                 list all experiments and their durations
  reproduce figure1 --seeds=1      run one experiment, with one seed instead of five
  reproduce figure1 lrn            run two experiments in sequence
  reproduce lrn --output=again     run an experiment again, in another folder
  reproduce --write                write RESULTS.md and its figures again, from results/

The small networks leave the second core of a CPU idle half of the time. Running experiments in parallel, one per core,
trains 1.4 times as many steps as running them in sequence:

  taskset --cpu-list 0 python -m alexnet_jax reproduce lrn &
  taskset --cpu-list 1 python -m alexnet_jax reproduce 13pct

An interrupted training resumes. A finished training writes a small JSON file with its curves to results/EXPERIMENT/,
and is not repeated while that file exists.""",
    function='alexnet_jax.reproduction.runner:reproduce',
  ).add_argument
  add('experiments', metavar='EXPERIMENT', nargs='*', help='names of experiments, as listed by --list')
  add('--list', action='store_true', help='list all experiments, their requirements and durations')
  add('--write', action='store_true', help='write RESULTS.md and its figures again from results/')
  add(
    '--seeds',
    type=int,
    metavar='N',
    help='train with the seeds 0 to N - 1 (default: see --list); results use at most this default',
  )
  add(
    '--output',
    type=pathlib.Path,
    default='.',
    metavar='DIR',
    help='folder of results/, RESULTS.md and runs/ (%(default)s)',
  )
  add('--data_dir', default='', metavar='DIR', help="folder of the datasets (default: TFDS's)")


def _non_negative(text: str) -> int:
  """Parses an integer of 0 or more, as a `type` of argparse."""
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f'{text} must be an integer of 0 or more')
  return int(text)


def command() -> NoReturn:
  """Runs the command in a process of its own: the console script `alexnet`, and `python -m alexnet_jax`."""
  host_memory.configure_malloc()
  sys.exit(main())


if __name__ == '__main__':
  command()
