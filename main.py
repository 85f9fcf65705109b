"""Trains AlexNet, evaluates it, or shows it pictures.

    python main.py --config=configs/alexnet.py
    python main.py --config=configs/alexnet.py:cifar10 --mode=eval --workdir=runs/cifar10
    python main.py --config=configs/alexnet.py:cifar10 --mode=eval --workdir=runs/cifar10,runs/cifar10-tanh
    python main.py --mode=predict --workdir=runs/cifar10 FILE FOLDER 'more/*.jpg'
    srun python main.py --config=configs/alexnet.py:imagenet2012 --distributed

Exit status: 0 done, 1 failed at run time, 2 wrong usage, 3 done but for images that cannot be read (they are named),
75 stopped by SIGTERM or Ctrl-C with everything saved: the same command goes on.
"""

import os
import pathlib
import re
import sys

# TensorFlow only writes summaries here; without its oneDNN kernels it also says nothing when it is imported.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax import cache, fields, memory, processes, stopping
from alexnet_jax.errors import RunError, Stopped, UsageError

CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE.py, or FILE.py:VARIANT,VARIANT. Required.')
WORKDIR = flags.DEFINE_list(
  'workdir', None, 'Folder of the run; runs/ + names of data and variants by default. In eval several, for an ensemble.'
)
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'predict'], 'Train and then evaluate, evaluate alone, or say what pictures show.'
)
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'This is one of the processes that SLURM, a TPU pod, GKE or Open MPI started; ask which.'
)
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where processes are started by hand.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many there are.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
OUTPUT = flags.DEFINE_string('output', None, 'FILE.json, .png, .svg or .pdf: also write predictions there.')


def main(arguments) -> int:
  """Does what the flags ask for and returns the exit status."""
  pictures = arguments[1:]
  if pictures and MODE.value != 'predict':
    raise UsageError(
      f"'{' '.join(pictures)}' is not a flag; flags begin with --, as --help shows; pictures go with --mode=predict."
    )
  logging.set_verbosity(logging.ERROR)  # the libraries' own chatter
  cache.keep_compiled_programs()
  place = processes.find_place(DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
  if place and MODE.value == 'predict':
    raise UsageError('--mode=predict runs in one process; leave the flags of several out.')
  # Imported here, so that --help and a wrong flag are answered at once.
  from alexnet_jax import workdir

  config = CONFIG.value
  if config is None and not WORKDIR.value:
    raise UsageError('name the run with --workdir=FOLDER.')
  folders = [pathlib.Path(folder) for folder in WORKDIR.value or [workdir.default(config)]]
  if place:
    fields.check(config)
  heartbeat = config.heartbeat if place else 0
  with processes.together(place, heartbeat=heartbeat, folder=folders[0]):
    return run(config, folders, pictures)


def run(config, folders, pictures) -> int:
  """Does what --mode asks for and returns the exit status."""
  from alexnet_jax import ensemble, evaluate, onednn, predict, train, workdir

  if MODE.value != 'predict':
    onednn.use()
    memory.trim_after_compiling()
  if MODE.value == 'eval' and len(folders) > 1:
    return 3 if ensemble.evaluate_ensemble(config, folders)['skipped'] else 0
  if len(folders) > 1:
    raise UsageError(f'--workdir={",".join(map(str, folders))} names {len(folders)} runs; several are for --mode=eval.')
  if MODE.value == 'train':
    skipped = train.train_and_evaluate(config, folders[0])['skipped']
  elif MODE.value == 'eval':
    skipped = evaluate.evaluate_workdir(config, folders[0])['skipped']
  else:
    if config is None:
      config = workdir.load_config(folders[0])
      config.mesh.data = config.mesh.tower = 0  # those of this machine, which may have fewer than it was trained on
    skipped = predict.predict_files(pictures, folders[0], config, OUTPUT.value)
  return 3 if skipped else 0


def parse(arguments):
  """Parses the flags.

  Raises:
    UsageError: for what cannot be parsed.
  """
  try:
    remaining = flags.FLAGS(arguments)
    if CONFIG.value is None and MODE.value == 'predict':
      return remaining  # it then takes that of the run
    if CONFIG.value is None:
      raise UsageError('name a config, such as --config=configs/alexnet.py.')
    CONFIG.value.lock()  # a config that could not be loaded says so when it is first touched
    return remaining
  except AttributeError as error:  # --config.field of a field that is not there
    sys.argv = [argument for argument in arguments if not argument.startswith('--config.')]  # it looks there too
    flags.FLAGS(sys.argv)
    name = re.search(r"'(\w+)\W", str(error))
    raise UsageError(
      f"there is no config field '{name[1] if name else error}'; the fields are {', '.join(fields.flat(CONFIG.value))}."
    ) from error
  except (flags.Error, ValueError, TypeError, KeyError, OSError) as error:
    # ml_collections puts the traceback of a config file into its message; the last line says what is wrong.
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    raise UsageError(re.sub(r'^\w+Error: ', '', last)) from error


if __name__ == '__main__':
  memory.use_huge_pages()
  stopping.leave_when_told()
  try:
    app.run(main, flags_parser=parse)
  except SystemExit as end:
    asked_for_help = any(re.fullmatch(r'--?(h|help|helpfull|helpshort)', argument) for argument in sys.argv[1:])
    sys.exit(0 if asked_for_help else end.code)  # absl ends with 1
  except (UsageError, RunError) as error:
    print(f'error: {error}', file=sys.stderr)
    processes.leave(2 if isinstance(error, UsageError) else 1)
  except Stopped as stopped:
    if processes.is_first():
      print(f'{stopped}; start again to go on.', file=sys.stderr)
    sys.exit(stopping.STOPPED)
  except Exception as error:
    if not memory.ran_out(error):
      raise
    print('error: there is not enough memory; choose a smaller batch_size or eval.batch_size.', file=sys.stderr)
    sys.exit(1)
