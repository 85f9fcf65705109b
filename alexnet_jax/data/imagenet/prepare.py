"""Prepares a dataset of square images, and its statistics, from archives or class folders.

    python -m alexnet_jax prepare 2012 FOLDER

`python -m alexnet_jax prepare --help` lists the layouts and options. Worker processes write the records to a working
folder, which replaces the destination when it is complete. An interrupted preparation resumes when the same command is
run again.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import shutil
from collections.abc import Sequence

import tensorflow_datasets as tfds

from alexnet_jax.data import pixel_statistics
from alexnet_jax.data.imagenet import archives, writer
from alexnet_jax.data.imagenet.builder import Ilsvrc, IlsvrcConfig, Job, SkippedImage, write_report
from alexnet_jax.runtime import atomic_files
from alexnet_jax.runtime.errors import RunError, UsageError, first_line

VARIANTS = {  # of configs/alexnet.py, by layout or dataset name; imagenette for any other
  '2012': 'imagenet2012',
  '2010': 'ilsvrc2010',
  'synsets': 'fall2009',
  'fall2011': 'fall2011',
  'tiny_imagenet': 'tiny_imagenet',
  'folder': 'imagenette',
}


def prepare(options: argparse.Namespace) -> int:
  """Prepares a dataset.

  Args:
    options: parsed command line of `python -m alexnet_jax prepare`.

  Returns:
    The number of images that cannot be decoded.

  Raises:
    UsageError: if an option is wrong, the source has another layout, or the destination is in use.
    RunError: if an archive is damaged, the disk is full, or too many images cannot be decoded.
  """
  _check_options(options)
  builder = _make_builder(options)
  folder = pathlib.Path(builder.data_path)
  if builder.is_prepared():
    if (recipe := builder.info.metadata.get('recipe')) != builder.recipe():
      raise UsageError(
        f'{folder} was prepared with other settings ({recipe} instead of {builder.recipe()}); choose another --name or '
        '--data_dir.'
      )
    shutil.rmtree(folder / 'parts', ignore_errors=True)  # left if a preparation was killed at the very end
    reports = {split: _read_report(folder, split) for split in builder.info.splits}
    counts = {split: info.num_examples + len(reports[split]) for split, info in builder.info.splits.items()}
    _check_counts(counts, options, f'{folder} was prepared from incomplete archives; remove it to prepare it again.')
    print(f'{folder} is already prepared.')
    return sum(map(len, reports.values()))
  _check_is_empty(folder)

  print(f'Indexing {options.source}', flush=True)
  contents = archives.LAYOUTS[options.layout](options.source, options.seed)
  for split, images in contents.splits.items():
    print(f'{split}: {len(images):,} images', flush=True)
  counts = {split: len(images) for split, images in contents.splits.items()}
  _check_counts(counts, options, 'Is the archive incomplete?')
  builder.set_metadata(contents)
  skipped = _run_beam(builder, contents, options) if options.beam else _run_workers(builder, contents, options)
  _print_summary(builder, skipped, options)
  return len(skipped)


def _check_options(options):
  if not 1 <= options.quality <= 100:
    raise UsageError(f'--quality={options.quality} must be 1 to 100.')
  if options.workers < 1:
    raise UsageError(f'--workers={options.workers} must be 1 or more.')
  if not 0 <= options.max_skipped <= 1:
    raise UsageError(f'--max_skipped={options.max_skipped} is a fraction and must be 0 to 1.')
  if options.seed < 0:
    raise UsageError(f'--seed={options.seed} must be 0 or more.')
  if options.name is not None and not options.name.replace('_', '').replace('-', '').isalnum():
    raise UsageError(f"--name='{options.name}' may contain only letters, digits, _ and -.")
  if not options.source.exists():
    raise UsageError(f'{options.source} does not exist; SOURCE must be an archive or a folder of images or archives.')


def _make_builder(options):
  name = options.name or options.layout
  name = f'{name}_raw' if options.encoding == 'raw' else name
  known_config = Ilsvrc.builder_configs.get(name)
  if known_config and (known_config.layout, known_config.encoding) != (options.layout, options.encoding):
    raise UsageError(f"--name='{options.name}' is the name of another dataset; choose a different name.")
  data_dir = os.path.expanduser(options.data_dir)
  try:
    return Ilsvrc(
      config=name if known_config else IlsvrcConfig(name=name, layout=options.layout, encoding=options.encoding),
      job=Job(options.source, options.quality, options.seed, options.max_skipped, bool(options.beam)),
      data_dir=data_dir,
      file_format='array_record',
    )
  except Exception as error:  # TFDS reads the existing dataset, and raises various exceptions if that is damaged
    raise UsageError(
      f'{data_dir}/ilsvrc/{name} cannot be read ({error}); remove it, or choose another --data_dir.'
    ) from error


def _check_is_empty(folder):
  if folder.exists() and any(folder.iterdir()):
    raise UsageError(f'{folder} already contains other files; remove it, or choose another --name or --data_dir.')


def _check_counts(counts, options, advice):
  official_counts = archives.OFFICIAL_COUNTS.get(options.layout, counts)
  for split, count in counts.items():
    if not count:
      raise UsageError(f'{split} contains no images; is this the right source?')
    if count != official_counts[split] and not options.any_count:
      raise UsageError(
        f'{split} contains {count:,} images instead of {official_counts[split]:,}. {advice} With --any_count, parts of '
        'the official archives are accepted.'
      )


def _run_workers(builder, contents, options) -> Sequence[SkippedImage]:
  """Prepares the dataset in a working folder, and moves it to its destination when it is complete."""
  folder = pathlib.Path(builder.data_path)
  working_folder = folder.with_name(f'{folder.name}.preparing')
  sizes = {split: [len(images), sum(image.size for image in images)] for split, images in contents.splits.items()}
  job = builder.recipe() | {'pictures': sizes}  # the keys are those of job.json in unfinished preparations
  with _exclusive_folder(working_folder, job):
    _check_is_empty(folder)  # another process may have prepared it since the first check
    shards_by_split = {
      split: writer.plan_shards(
        split, images, working_folder, builder.builder_config.size, options.encoding, options.quality
      )
      for split, images in contents.splits.items()
    }
    writer.write_shards([shard for shards in shards_by_split.values() for shard in shards], options.workers)
    try:
      skipped = _write_metadata(builder, shards_by_split, working_folder, options.max_skipped)
      os.replace(working_folder, folder)
      shutil.rmtree(folder / 'parts')
    except OSError as error:
      raise RunError(
        f'{working_folder} cannot be completed ({error.strerror}). Finished parts are saved: free some space and run '
        'the same command to resume.'
      ) from error
  return skipped


@contextlib.contextmanager
def _exclusive_folder(folder, job):
  """Creates or reopens the working folder of a preparation, and locks it for this process.

  Args:
    folder: the working folder.
    job: JSON-serialisable settings; a folder with other settings is not reopened.

  Raises:
    UsageError: if the folder is locked, has other settings, or cannot be written to.
  """
  job_path = folder / 'parts' / 'job.json'
  with contextlib.ExitStack() as stack:
    try:
      job_path.parent.mkdir(parents=True, exist_ok=True)
      message = f'{folder} is being prepared by another process; wait until that has finished.'
      stack.enter_context(atomic_files.exclusive_lock(job_path.with_name('lock'), message))
    except OSError as error:
      raise UsageError(f'{folder} cannot be written to ({error.strerror}); choose another --data_dir.') from error
    if job_path.exists() and (existing_job := json.loads(job_path.read_text())) != json.loads(json.dumps(job)):
      raise UsageError(
        f'{folder} was started with other settings ({existing_job} instead of {job}); resume with those, or remove it.'
      )
    atomic_files.write_text(job_path, json.dumps(job))
    yield


def _write_metadata(builder, shards_by_split, folder, max_skipped):
  """Writes the reports of skipped images, the dataset's info and its statistics; returns the skipped images."""
  infos, all_skipped, sums = [], [], pixel_statistics.PixelSums.zero(builder.builder_config.size)
  for split, shards in shards_by_split.items():
    reports = [shard.read_report() for shard in shards]
    skipped = [image for report in reports for image in report.skipped]
    num_images = sum(len(shard.images) for shard in shards)
    write_report(folder, split, skipped, num_images=num_images, max_skipped=max_skipped)
    for shard, report in zip(shards, reports, strict=True):
      if not report.num_examples:
        raise RunError(f'None of the {len(shard.images):,} images of {shard.path} can be decoded.')
      sums = sums.merge(shard.read_sums())
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[report.num_examples for report in reports],
        num_bytes=sum(report.num_bytes for report in reports),
        filename_template=writer.file_template(split, builder.data_path),
      )
    )
    all_skipped += skipped
  builder.info.set_splits(tfds.core.SplitDict(infos))
  builder.info.write_to_directory(folder)
  if sums.num_images:
    sums.statistics().save(folder / pixel_statistics.file_name('train', builder.builder_config.size))
  return all_skipped


def _run_beam(builder, contents, options) -> Sequence[str]:
  """Prepares the dataset as a Beam pipeline, which does not compute the statistics; the first training does."""
  try:
    from apache_beam.options.pipeline_options import PipelineOptions  # optional: requirements-beam.txt
  except ImportError as error:
    raise UsageError('--beam requires Apache Beam; install requirements-beam.txt in a separate environment.') from error
  builder.job = builder.job._replace(contents=contents)
  beam_options = PipelineOptions([f'--{option}' for option in options.beam_options.split(',') if option])
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(beam_runner=options.beam, beam_options=beam_options)
    )
  except Exception as error:  # runners wrap the original exception in various others
    raise RunError(f'The pipeline on {options.beam} failed: {first_line(error)}') from error
  return [line for split in builder.info.splits for line in _read_report(builder.data_path, split)]


def _read_report(folder, split):
  """Returns the lines of the report of skipped images, see `write_report`."""
  path = pathlib.Path(folder) / f'skipped-{split}.txt'
  return path.read_text().splitlines() if path.exists() else []


def _print_summary(builder, skipped, options):
  """Prints the size of the dataset, some of the skipped images, and the command that trains on it."""
  side = builder.builder_config.size
  for split in builder.info.splits.values():
    gigabytes = split.num_bytes / 1e9
    images = f'{split.num_examples:,} images of {side} x {side}'
    print(f'{split.name}: {images}, {gigabytes:.3f} GB in {split.num_shards} file(s)')
  if skipped:
    print(f'{len(skipped):,} image(s) cannot be decoded; {builder.data_path}/skipped-*.txt lists them. The first are:')
    for image in sorted(skipped)[:5]:
      print(f'  {image}')
  print(f'{builder.data_path}: {builder.info.features["label"].num_classes:,} classes')
  name = builder.builder_config.name
  variant = VARIANTS.get(name) or VARIANTS.get(options.layout, 'imagenette')
  flags = [
    f'--config=configs/alexnet.py:{variant}',
    f'--config.data.name=ilsvrc/{name}',
  ]
  if options.layout == 'folder' and 'validation' not in builder.info.splits:
    splits = {'test_split': 'test'}
    if 'test' not in builder.info.splits:
      splits = {'train_split': 'train[:90%]', 'validation_split': 'train[90%:95%]', 'test_split': 'train[95%:]'}
    flags += [shlex.quote(f'--config.data.{field}={split}') for field, split in splits.items()]
  if options.data_dir.expanduser() != pathlib.Path(tfds.core.constants.DATA_DIR).expanduser():
    flags.append(shlex.quote(f'--config.data.dir={options.data_dir}'))
  print(f'To train on it: python main.py {" ".join(flags)}')
