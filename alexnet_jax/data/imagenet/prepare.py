"""Makes a dataset of 256 x 256 images, and its statistics, from archives or folders of pictures.

    python -m alexnet_jax prepare 2012 FOLDER       # ILSVRC2012_img_train.tar, _img_val.tar, _devkit_t12.tar.gz
    python -m alexnet_jax prepare 2010 FOLDER       # ILSVRC2010_images_*.tar, devkit, test ground truth
    python -m alexnet_jax prepare synsets TAR --name=fall2009
    python -m alexnet_jax prepare folder FOLDER --name=flowers      # FOLDER/train/CLASS/PICTURE, and val or test

At the end it says how to train on it, such as --config=configs/alexnet.py:imagenet2012. Stopped and started again, it
goes on where it was. Exit status: 0 done, 1 failed, 2 wrong usage, 3 done but for pictures that cannot be decoded
(they are named), 75 stopped.
"""

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading

import tensorflow_datasets as tfds
import tqdm
from absl import logging

from alexnet_jax.data import pixel_statistics
from alexnet_jax.data.imagenet import archives, writer
from alexnet_jax.data.imagenet.builder import SIZE, Ilsvrc, IlsvrcConfig, Job, write_report
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError

VARIANTS = {  # of configs/alexnet.py, for a layout or the name of a dataset
  '2012': 'imagenet2012',
  '2010': 'ilsvrc2010',
  'synsets': 'fall2009',
  'fall2011': 'fall2011',
  'folder': 'imagenette',
}
DATA_DIR = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')  # where TFDS looks, too


def prepare(options: argparse.Namespace) -> int:
  """Prepares a dataset.

  Args:
    options: what `parser` makes of a command line.

  Returns:
    How many pictures could not be decoded.

  Raises:
    UsageError: if something is missing or does not fit together.
    RunError: if an archive is damaged, the disk is full, or too many pictures cannot be decoded.
  """
  _check(options)
  # Here, since they take seconds: --help and a wrong option are answered at once.

  logging.set_verbosity(logging.ERROR)
  builder = _make_builder(options)
  place = pathlib.Path(builder.data_path)
  if builder.is_prepared():
    if (made := builder.info.metadata.get('recipe')) != builder.recipe():
      raise UsageError(
        f'{place} was made otherwise ({made}, now {builder.recipe()}); choose another --name or --data_dir.'
      )
    shutil.rmtree(place / 'parts', ignore_errors=True)  # left where the last moment was one too many
    print(f'{place} is there and whole; nothing to do.')
    return len(_read_reports(place))
  _check_free(place)

  print(f'looking through {options.source}', flush=True)
  contents = archives.LAYOUTS[options.layout](options.source, options.seed)
  for split, pictures in contents.splits.items():
    print(f'{split}: {len(pictures):,} pictures', flush=True)
  _check_counts(contents, options.any_count)
  builder.describe(contents)
  if options.beam:
    builder.job = builder.job._replace(contents=contents)
    return _run_on_beam(builder, options)
  return _run_here(builder, contents, options)


def _run_here(builder, contents, options):
  """Makes the dataset in a folder beside its place, and moves it there when it is whole."""
  place = pathlib.Path(builder.data_path)
  working = place.with_name(f'{place.name}.preparing')
  sizes = {split: [len(pictures), sum(p.size for p in pictures)] for split, pictures in contents.splits.items()}
  with _owned(working, builder.recipe() | {'pictures': sizes}):
    _check_free(place)  # another process may have been here meanwhile
    planned = [
      writer.plan(split, pictures, working, options.encoding, options.quality)
      for split, pictures in contents.splits.items()
    ]
    _make([shard for split in planned for shard in split], options.workers)
    try:
      skipped = _finish(builder, planned, working, options.max_skipped)
      os.replace(working, place)
      shutil.rmtree(place / 'parts')
    except OSError as error:
      raise RunError(
        f'{working} cannot be finished ({error.strerror}); what is done is kept: make room and start again.'
      ) from error
  _summarise(builder, skipped, options)
  return len(skipped)


def _check(options):
  if not 1 <= options.quality <= 100:
    raise UsageError(f'--quality={options.quality} must be 1 to 100.')
  if options.workers < 1:
    raise UsageError(f'--workers={options.workers} must be 1 or more.')
  if not 0 <= options.max_skipped <= 1:
    raise UsageError(f'--max_skipped={options.max_skipped} is a share and must be 0 to 1.')
  if options.seed < 0:
    raise UsageError(f'--seed={options.seed} must be 0 or more.')
  if options.name is not None and not options.name.replace('_', '').replace('-', '').isalnum():
    raise UsageError(f"--name='{options.name}' may have letters, digits, _ and - only.")
  if not options.source.exists():
    raise UsageError(f'{options.source} does not exist; name what holds the pictures.')


def _check_free(place):
  if place.exists() and any(place.iterdir()):
    raise UsageError(f'{place} holds something else; remove it, or choose another --name or --data_dir.')


def _check_counts(contents, any_count):
  for split, pictures in contents.splits.items():
    if not pictures:
      raise UsageError(f'{split} has no picture at all; is this the right source?')
    expected = contents.expected.get(split, len(pictures))
    if len(pictures) != expected and not any_count:
      raise UsageError(
        f'{split} has {len(pictures):,} pictures and should have {expected:,}; is the archive whole? '
        'With --any_count a part is enough.'
      )


def _make_builder(options):

  name = options.name or options.layout
  name = f'{name}_raw' if options.encoding == 'raw' else name
  known = Ilsvrc.builder_configs.get(name)
  if known and (known.layout, known.encoding) != (options.layout, options.encoding):
    raise UsageError(f"--name='{options.name}' is the name of another dataset; choose one of your own.")
  folder = os.path.expanduser(options.data_dir)
  try:
    return Ilsvrc(
      config=name if known else IlsvrcConfig(name=name, layout=options.layout, encoding=options.encoding),
      job=Job(options.source, options.quality, options.seed, options.max_skipped, bool(options.beam)),
      data_dir=folder,
      file_format='array_record',
    )
  except Exception as error:  # TFDS reads what is there, and fails in many ways where that is damaged
    raise UsageError(
      f'what is in {folder}/ilsvrc/{name} cannot be read ({error}); remove it, or choose another --data_dir.'
    ) from error


@contextlib.contextmanager
def _owned(working, job):
  """Makes the folder in which a dataset grows, or finds the one that was begun; it is this process's alone."""
  note = working / 'parts' / 'job.json'
  with contextlib.ExitStack() as stack:
    try:
      note.parent.mkdir(parents=True, exist_ok=True)
      sentence = f'{working} is being prepared by another process; wait for its end.'
      stack.enter_context(atomic_files.exclusive_lock(note.with_name('lock'), sentence))
    except OSError as error:
      raise UsageError(f'{working} cannot be written to ({error.strerror}); choose another --data_dir.') from error
    if note.exists() and (begun := json.loads(note.read_text())) != json.loads(json.dumps(job)):
      raise UsageError(f'{working} was begun otherwise ({begun}, now {job}); go on as it was begun, or remove it.')
    with atomic_files.atomic_write(note) as partial:
      partial.write_text(json.dumps(job))
    yield


def _make(planned, num_workers):
  """Makes the shards that are not there yet, each in one of several processes, with a bar."""
  missing = [shard for shard in planned if not shard.is_made()]
  total, left = (sum(len(shard.pictures) for shard in some) for some in (planned, missing))
  if left < total:
    print(f'going on: {total - left:,} of {total:,} pictures are done', flush=True)
  if not missing:
    return
  os.environ['OPENBLAS_NUM_THREADS'] = '1'  # of the workers: numpy's threads would be as many again for every core
  spawn = multiprocessing.get_context('spawn')
  count = spawn.Value('q', 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(missing)), spawn, initializer=_start_worker, initargs=(count,)
  )
  with tqdm.tqdm(total=total, initial=total - left, unit=' pictures', desc='Preparing', mininterval=1) as bar:
    try:
      waiting = {pool.submit(_work, shard) for shard in missing}
      while waiting:
        done, waiting = concurrent.futures.wait(waiting, timeout=1, return_when='FIRST_COMPLETED')
        # Read without the lock, which may have died with its holder.
        bar.update(total - left + count.get_obj().value - bar.n)
        for future in done:
          future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise RunError(
        'a process ended before its time, perhaps for want of memory; what is done is kept: start again, '
        'with fewer --workers if it happens again.'
      ) from error
    finally:
      for process in list((pool._processes or {}).values()):  # what they are at will be done again
        process.terminate()
      pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(count):
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to stop
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  _work.count = count

  def end_with_parent():  # which may be killed without a word
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _work(shard):
  def tick():
    with _work.count.get_lock():
      _work.count.value += 1

  shard.make(tick)


def _finish(builder, planned, working, max_skipped):
  """Writes all that goes with the records; returns what was skipped."""
  infos, all_skipped, sums = [], [], pixel_statistics.PixelSums.zero(SIZE)
  for of_split in planned:
    split, reports = of_split[0].split, [shard.report() for shard in of_split]
    skipped = [one for report in reports for one in report['skipped']]
    num_pictures = sum(len(shard.pictures) for shard in of_split)
    write_report(working, split, skipped, num_pictures=num_pictures, max_skipped=max_skipped)
    for shard, report in zip(of_split, reports, strict=True):
      if not report['num_examples']:
        raise RunError(f'none of the {len(shard.pictures):,} pictures for {shard.path} can be decoded.')
      sums = sums.merge(shard.sums())
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[report['num_examples'] for report in reports],
        num_bytes=sum(report['num_bytes'] for report in reports),
        filename_template=writer.template(split, builder.data_path),
      )
    )
    all_skipped += skipped
  builder.info.set_splits(tfds.core.SplitDict(infos))
  builder.info.write_to_directory(working)
  if sums.num_images:
    sums.statistics().save(working / pixel_statistics.file_name('train', SIZE))
  return all_skipped


def _run_on_beam(builder, options):
  """Runs the builder as a Beam pipeline; the statistics are left to the first training."""
  try:
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UsageError('--beam needs Apache Beam; install requirements-beam.txt in an environment of its own.') from error

  runner_options = PipelineOptions([f'--{option}' for option in options.beam_options.split(',') if option])
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(beam_runner=options.beam, beam_options=runner_options)
    )
  except Exception as error:  # runners wrap what went wrong in what they please
    last = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    raise RunError(f'the pipeline on {options.beam} failed: {last[0]}') from error
  skipped = _read_reports(pathlib.Path(builder.data_path))
  _summarise(builder, skipped, options)
  return len(skipped)


def _read_reports(place):
  return [line for report in sorted(place.glob('skipped-*.txt')) for line in report.read_text().splitlines()]


def _summarise(builder, skipped, options):
  for split in builder.info.splits.values():
    size = split.num_bytes / 1e9
    print(f'{split.name}: {split.num_examples:,} images of 256 x 256, {size:.3f} GB in {split.num_shards} file(s)')
  if skipped:
    print(f'{len(skipped):,} picture(s) cannot be decoded; {builder.data_path}/skipped-*.txt name them, such as')
    for one in sorted(skipped)[:5]:
      print(f'  {one}')
  print(f'{builder.data_path}: {builder.info.features["label"].num_classes:,} classes')
  print(f'train on it: python main.py {" ".join(_flags(builder, options))}')


def _flags(builder, options):
  """Says how to train on what was prepared."""
  name = builder.builder_config.name
  yield f'--config=configs/alexnet.py:{VARIANTS.get(name) or VARIANTS[options.layout]} --config.data.name=ilsvrc/{name}'
  if options.layout == 'folder' and 'validation' not in builder.info.splits:
    yield '--config.data.test_split=test'
  if str(options.data_dir) != DATA_DIR:
    yield f'--config.data.dir={options.data_dir}'
