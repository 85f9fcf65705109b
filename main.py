"""Trains AlexNet, evaluates it, or classifies image files.

    python main.py --config=configs/alexnet.py
    python main.py --config=configs/alexnet.py:cifar10 --mode=eval --workdir=runs/cifar10
    python main.py --config=configs/alexnet.py:cifar10 --mode=eval --workdir=runs/cifar10,runs/cifar10-tanh
    python main.py --mode=predict --workdir=runs/digits digit.png PHOTOGRAPHS 'more/*.png'
    srun python main.py --config=configs/alexnet.py:imagenet2012 --distributed

Exit status: 0 done, 1 failed, 2 wrong usage, 3 finished but some images could not be read (they are named), 75 stopped
by SIGTERM or Ctrl-C after saving (run the same command to resume).
"""

import os
import pkgutil
import sys

# TFDS encodes the images of some datasets with TensorFlow. Without its oneDNN kernels it prints nothing on import.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax.runs import config_files
from alexnet_jax.runtime import compilation_cache, distributed, exit_status, host_memory, preemption

CONFIG = config_flags.DEFINE_config_file('config', None, 'FILE.py or FILE.py:VARIANT,... Optional with predict.')
WORKDIR = flags.DEFINE_list('workdir', None, 'Folder of the run (runs/DATASET-VARIANTS), or folders of an ensemble.')
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval', 'predict'], 'Train, evaluate, or classify image files.')
DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Detect the processes of SLURM, a TPU pod, GKE or Open MPI.')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, for processes started by hand.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Index of this process, from 0.')
OUTPUT = flags.DEFINE_string('output', None, 'FILE.json, .png, .svg or .pdf to which predict writes its predictions.')
EXIF = flags.DEFINE_bool('exif', False, 'Let predict rotate photographs as their EXIF data specifies.')


def main(arguments: list[str]) -> int:
  """Dispatches on `--mode` and returns the exit status."""
  logging.set_verbosity(logging.ERROR)  # Orbax and TFDS log every operation
  compilation_cache.enable()
  process = distributed.process_info(DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
  if process and not distributed.is_child():
    return distributed.run_in_child()
  modes = pkgutil.resolve_name('alexnet_jax.modes')  # imports jax, which --help must not load
  has_output_flags = bool(OUTPUT.value or EXIF.value)
  modes.check_arguments(MODE.value, arguments[1:], WORKDIR.value or [], process is not None, has_output_flags)
  config, folders = modes.load_run(CONFIG.value, WORKDIR.value or [])
  with distributed.connection(process, config.heartbeat):
    num_skipped = modes.run(MODE.value, config, folders, arguments[1:], OUTPUT.value, EXIF.value)
  return exit_status.SOME_SKIPPED if num_skipped else 0


if __name__ == '__main__':
  sys.stdout.reconfigure(line_buffering=True)  # a log file shows every line when it is printed
  host_memory.configure_malloc()
  preemption.exit_on_signals()
  with exit_status.exit_on_errors():
    app.run(main, flags_parser=lambda argv: config_files.parse_flags(argv, CONFIG, MODE))
