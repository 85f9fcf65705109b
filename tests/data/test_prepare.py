"""Preparing a dataset from archives with the command, with TFDS, and with Beam."""

import fcntl
import json
import os
import pathlib
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax import __main__ as cli
from alexnet_jax.data import image_io, pipeline, pixel_statistics, sources
from alexnet_jax.data.imagenet import archives, prepare, writer
from alexnet_jax.data.imagenet.builder import Ilsvrc, IlsvrcConfig, Job
from alexnet_jax.runs import config_files
from alexnet_jax.runtime.errors import RunError, UsageError
from alexnet_jax.training import loop
from tests import miniature

ROOT = pathlib.Path(__file__).parents[2]


def read_records(folder):
  """Reads {split: [record, ...]} of a prepared dataset, file by file."""
  records = {}
  for path in sorted(folder.glob('*.array_record-*')):
    reader = ArrayRecordReader(str(path))
    records.setdefault(path.name.split('.')[0], []).extend(reader.read_all())
    reader.close()
  return records


def sort_features(records_by_split):
  """Serialises the records again with sorted features; TFDS writes the features of a record in random order."""
  return {
    split: [tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True) for record in records]
    for split, records in records_by_split.items()
  }


def run(*arguments):
  return cli.main(['prepare', *map(str, arguments)])


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
  """The miniature archives, prepared by one process: (folder of the archives, data_dir)."""
  root = tmp_path_factory.mktemp('prepared')
  miniature.write_ilsvrc2012(root / 'in' / '2012')
  miniature.write_ilsvrc2010(root / 'in' / '2010')
  (root / 'in' / 'fall.tar').write_bytes(miniature.make_tar(miniature.make_synset_tars(20)))
  common = ('--data_dir', root / 'out', '--workers=1', '--max_skipped=0.2')
  assert run('2012', root / 'in' / '2012', '--any_count', *common) == 3
  assert run('2010', root / 'in' / '2010', '--any_count', *common) == 3
  assert run('synsets', root / 'in' / 'fall.tar', '--name=fall', *common) == 3
  return root / 'in', root / 'out'


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('2012', {'train': 16, 'validation': 4, 'test': 2}),
    ('2010', {'train': 10, 'validation': 3, 'test': 5}),
    ('fall', {'train': 31, 'test': 30}),
  ],
)
def test_tfds_reads_the_prepared_datasets(prepared, name, expected):
  _, data_dir = prepared
  dataset = tfds.builder(f'ilsvrc/{name}', data_dir=data_dir)
  counts = {split: info.num_examples for split, info in dataset.info.splits.items()}
  assert sum(counts.values()) == sum(expected.values())
  if name != 'fall':  # whose undecodable images are in random halves
    assert counts == expected
    assert dataset.info.features['label'].names == miniature.CLASS_NAMES
    assert dataset.info.metadata['ilsvrc_ids'] == [2, 3, 1]
  for split in expected:
    for example in tfds.data_source(f'ilsvrc/{name}', data_dir=data_dir, split=split):
      assert example['image'].shape == (256, 256, 3)
      name_of_label = dataset.info.features['label'].names[example['label']] if example['label'] >= 0 else ''
      if split == 'train':
        assert example['file_name'].decode().startswith(name_of_label[:9])


def test_stored_images_are_resized_cropped_and_encoded(prepared):
  downloads, data_dir = prepared
  images = {image.key: image for image in archives.index_ilsvrc2012(downloads / '2012').splits['train']}
  examples = tfds.data_source('ilsvrc/2012', data_dir=data_dir, split='train')
  for example in examples:
    image = images[example['file_name'].decode()]
    expected = image_io.resize_and_crop(image_io.decode(image.read()), 256)
    np.testing.assert_array_equal(example['image'], image_io.decode(image_io.encode_jpeg(expected, 85)))
    assert example['label'] == image.label


def test_the_report_lists_exactly_the_undecodable_images(prepared):
  downloads, data_dir = prepared
  archive = downloads / '2012' / 'ILSVRC2012_img_train.tar'
  report = (data_dir / 'ilsvrc' / '2012' / '1.0.0' / 'skipped-train.txt').read_text().splitlines()
  assert len(report) == 2
  for line, (name, reason) in zip(report, sorted(miniature.UNDECODABLE.items()), strict=True):
    assert line.startswith(f'n02119789_{name} in {archive}: ')
    assert reason in line
  assert (data_dir / 'ilsvrc' / '2012' / '1.0.0' / 'skipped-validation.txt').read_text() == ''


def test_statistics_equal_those_of_numpy(prepared):
  _, data_dir = prepared
  pixels = np.stack([e['image'] for e in tfds.data_source('ilsvrc/2012', data_dir=data_dir, split='train')])
  stats = pixel_statistics.load(data_dir / 'ilsvrc' / '2012' / '1.0.0' / pixel_statistics.file_name('train', 256))
  np.testing.assert_allclose(stats.mean_image, pixels.mean(0, dtype=np.float64), rtol=1e-12)
  np.testing.assert_allclose(stats.covariance, np.cov(pixels.reshape(-1, 3).T, bias=True), rtol=1e-6)
  assert stats.num_images == 16


@pytest.mark.parametrize(
  ('layout', 'source', 'name'), [('2012', '2012', '2012'), ('2010', '2010', '2010'), ('synsets', 'fall.tar', 'fall')]
)
def test_two_processes_make_the_same_dataset(prepared, tmp_path, layout, source, name):
  downloads, data_dir = prepared
  options = ('--data_dir', tmp_path, f'--name={name}', '--any_count', '--max_skipped=0.2')
  assert run(layout, downloads / source, *options, '--workers=2') == 3
  ours, theirs = (folder / 'ilsvrc' / name / '1.0.0' for folder in (tmp_path, data_dir))
  assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
  for path in ours.iterdir():
    if path.suffix != '.npz':  # which contains the time
      assert path.read_bytes() == (theirs / path.name).read_bytes(), path.name
  stats = pixel_statistics.file_name('train', 256)
  for our_value, their_value in zip(
    pixel_statistics.load(ours / stats), pixel_statistics.load(theirs / stats), strict=True
  ):
    np.testing.assert_array_equal(our_value, their_value)


@pytest.mark.parametrize(
  ('layout', 'source', 'name'), [('2012', '2012', '2012'), ('2010', '2010', '2010'), ('synsets', 'fall.tar', 'fall')]
)
def test_tfds_build_makes_the_same_records_in_the_same_order(prepared, tmp_path, layout, source, name):
  downloads, data_dir = prepared
  config = name if name == layout else IlsvrcConfig(name=name, layout=layout)
  job = Job(source=downloads / source, max_skipped=0.2)
  dataset = Ilsvrc(config=config, job=job, data_dir=tmp_path, file_format='array_record')
  dataset.download_and_prepare()
  ours, theirs = (folder / 'ilsvrc' / name / '1.0.0' for folder in (tmp_path, data_dir))
  assert sort_features(read_records(ours)) == read_records(theirs)
  assert (ours / 'skipped-train.txt').read_text() == (theirs / 'skipped-train.txt').read_text()


def run_on_beam(*arguments):
  """Runs the command in the environment of requirements-beam.txt, which `make test-all` creates."""
  python = ROOT / '.venv-beam' / 'bin' / 'python'
  if not python.exists():
    pytest.skip('Apache Beam requires a separate environment, .venv-beam, which `make test-all` creates')
  command = [str(python), '-m', 'alexnet_jax', 'prepare', *map(str, arguments), '--beam=DirectRunner']
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_beam_makes_the_same_records_in_the_same_order(prepared, tmp_path):
  downloads, data_dir = prepared
  arguments = ('2012', downloads / '2012', '--data_dir', tmp_path, '--any_count')
  rejected = run_on_beam(*arguments)
  assert rejected.returncode == 1
  assert 'error: The pipeline on DirectRunner failed: ' in rejected.stderr
  assert '2 of 18 images in train cannot be decoded' in rejected.stderr
  result = run_on_beam(*arguments, '--max_skipped=0.2')
  assert result.returncode == 3, result.stderr
  ours, theirs = (folder / 'ilsvrc' / '2012' / '1.0.0' for folder in (tmp_path, data_dir))
  assert sort_features(read_records(ours)) == read_records(theirs)
  assert (ours / 'skipped-train.txt').read_text() == (theirs / 'skipped-train.txt').read_text()


@pytest.fixture(scope='module')
def prepared_raw(prepared, tmp_path_factory):
  """The folder of ILSVRC-2012 with raw pixels."""
  data_dir = tmp_path_factory.mktemp('raw')
  options = ('--data_dir', data_dir, '--any_count', '--max_skipped=0.2', '--encoding=raw', '--workers=1')
  assert run('2012', prepared[0] / '2012', *options) == 3
  return data_dir


def test_raw_pixels_equal_those_before_encoding(prepared, prepared_raw):
  downloads, _ = prepared
  images = {image.key: image for image in archives.index_ilsvrc2012(downloads / '2012').splits['train']}
  examples = tfds.data_source('ilsvrc/2012_raw', data_dir=prepared_raw, split='train')
  assert len(examples) == 16
  for example in examples:
    expected = image_io.resize_and_crop(image_io.decode(images[example['file_name'].decode()].read()), 256)
    np.testing.assert_array_equal(example['image'], expected)


@pytest.mark.parametrize('name', ['2012', '2012_raw'])
def test_the_pipeline_reads_both_encodings(prepared, prepared_raw, config, name):
  data_dir = prepared_raw if name == '2012_raw' else prepared[1]
  config.data.name, config.data.dir, config.model.image_size = f'ilsvrc/{name}', str(data_dir), 224
  (train,) = sources.open_splits(config.data, 256, ['train'])
  assert train.class_names == tuple(miniature.CLASS_NAMES)
  stats = pixel_statistics.load_or_compute(train)
  batch = pipeline.training_dataset(train, stats.covariance, config, num_colour_steps=9, shard=(0, 1))[0]
  assert batch['image'].shape == (8, 224, 224, 3)
  stored = [train[i]['image'].copy() for i in range(len(train))]
  for crop, (top, left), label in zip(batch['image'], batch['mean_offset'], batch['label'], strict=True):
    crops = [image[top : top + 224, left : left + 224] for image in stored]
    assert any(np.array_equal(crop, expected) and label == train[i]['label'] for i, expected in enumerate(crops))


def start(tmp_path, name, *, pipe=None):
  """Starts a process that prepares the class folders in tmp_path/in as a dataset in tmp_path/name."""
  command = [sys.executable, '-m', 'alexnet_jax', 'prepare', 'folder', str(tmp_path / 'in'), '--workers=2']
  return subprocess.Popen(
    [*command, f'--data_dir={tmp_path / name}'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE if pipe else subprocess.DEVNULL,
    stderr=subprocess.PIPE if pipe else subprocess.DEVNULL,
    text=True,
  )


def test_a_split_lists_the_names_of_its_files(prepared, config):
  config.data.name, config.data.dir = 'ilsvrc/2012', str(prepared[1])
  validation, test = sources.open_splits(config.data, 96, ['validation', 'test'], allow_unlabelled=['test'])
  for split, source in (('val', validation), ('test', test)):
    assert sorted(source.file_names) == [f'ILSVRC2012_{split}_{i:08d}.JPEG' for i in range(1, len(source) + 1)]
    for index, name in enumerate(source.file_names):
      image = image_io.decode(miniature.make_image(5000 + int(name[-13:-5])))
      stored = np.asarray(source[index]['image'], np.float32)
      assert np.abs(stored - image_io.resize_and_crop(image, 96)).mean() < 10


@pytest.mark.slow
def test_training_writes_a_submission_for_images_without_labels(prepared, tmp_path, config):
  config.data.name, config.data.dir, config.data.test_split = 'ilsvrc/2012', str(prepared[1]), 'test'
  config.data.train_split, config.data.validation_split = 'train', 'validation'
  config.num_steps, config.eval.submission, config.eval.ten_view = 1, True, False
  results = loop.train_and_evaluate(config, tmp_path)
  assert not results['centre']  # without labels there are no errors
  submission = [line.split() for line in (tmp_path / 'submission.txt').read_text().splitlines()]
  assert [len(ids) for ids in submission] == [3, 3]  # the dataset has three classes


@pytest.mark.slow
def test_a_killed_preparation_resumes_to_the_same_dataset(tmp_path):
  miniature.write_class_folders(tmp_path / 'in', per_class=300)
  start_time = time.monotonic()
  assert start(tmp_path, 'complete').wait(timeout=300) == 0
  seconds = time.monotonic() - start_time
  folder = pathlib.Path('ilsvrc', 'folder', '1.0.0')
  records = read_records(tmp_path / 'complete' / folder)
  assert sum(map(len, records.values())) == 604
  stats = pixel_statistics.file_name('train', 256)

  def is_the_same():
    statistics = [pixel_statistics.load(tmp_path / name / folder / stats) for name in ('killed', 'complete')]
    same_statistics = all(np.array_equal(killed, complete) for killed, complete in zip(*statistics, strict=True))
    return same_statistics and read_records(tmp_path / 'killed' / folder) == records

  rng, kills = random.Random(0), 0
  while kills < 10:  # at random times, while a preparation starts, runs or finishes
    process = start(tmp_path, 'killed')
    try:
      process.wait(timeout=rng.uniform(0.1, 1.0) * seconds)
      assert process.returncode == 0
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      kills += 1
      time.sleep(1)  # until its workers notice and exit
    if (tmp_path / 'killed' / folder).exists():  # then the dataset must be complete, and another one is started
      assert is_the_same()
      shutil.rmtree(tmp_path / 'killed')
  assert start(tmp_path, 'killed').wait(timeout=300) == 0
  assert is_the_same()


def test_sigterm_gives_status_75_and_saves_finished_shards(tmp_path):
  miniature.write_class_folders(tmp_path / 'in', per_class=300)
  working = tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0.preparing'
  process = start(tmp_path, 'out', pipe=True)
  while not list(working.glob('parts/[!.]*-of-*.json')):
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 75, stderr
  assert 'Run the same command to resume' in stderr
  assert 'Traceback' not in stderr
  again = start(tmp_path, 'out', pipe=True)
  stdout, stderr = again.communicate(timeout=300)
  assert again.returncode == 0, stderr
  assert 'Resuming: ' in stdout


def small_source(tmp_path):
  """Writes a few class folders; returns the arguments of the command that prepares them."""
  miniature.write_class_folders(tmp_path / 'in')
  return ['folder', tmp_path / 'in', '--data_dir', tmp_path / 'out', '--workers=1']


def test_a_prepared_dataset_is_not_changed(tmp_path, capsys):
  arguments = small_source(tmp_path)
  assert run(*arguments) == 0
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')}
  assert run(*arguments) == 0
  assert 'is already prepared' in capsys.readouterr().out
  assert run(*arguments, '--quality=50') == 2
  assert 'was prepared with other settings' in capsys.readouterr().err
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')} == before


def test_a_dataset_of_incomplete_archives_is_not_taken_for_the_complete_one(prepared, capsys):
  downloads, data_dir = prepared
  arguments = ('2012', downloads / '2012', '--data_dir', data_dir)
  assert run(*arguments) == 2
  error = capsys.readouterr().err
  assert 'train contains 18 images instead of 1,281,167.' in error  # 16 records and two skipped images
  assert '1.0.0 was prepared from incomplete archives; remove it to prepare it again.' in error
  assert run(*arguments, '--any_count') == 3
  assert 'is already prepared' in capsys.readouterr().out


def test_too_many_undecodable_images_are_an_error_and_leave_no_dataset(tmp_path, capsys):
  arguments = small_source(tmp_path)
  (tmp_path / 'in' / 'train' / 'cat' / '9.jpg').write_bytes(b'garbage')
  assert run(*arguments) == 1
  error = capsys.readouterr().err
  assert '1 of 13 images in train cannot be decoded, more than max_skipped=0.001' in error
  assert 'cat/9.jpg: not an image' in error
  assert not (tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0').exists()
  assert run(*arguments, '--max_skipped=0.5') == 3
  assert 'Resuming: 17 of 17' in capsys.readouterr().out


def test_another_dataset_or_other_files_in_the_destination_are_an_error(tmp_path, capsys):
  arguments = small_source(tmp_path)
  assert run(*arguments) == 0
  other = miniature.write_class_folders(tmp_path / 'other')
  assert run('folder', other, *arguments[2:]) == 2
  assert 'was prepared with other settings' in capsys.readouterr().err
  occupied = tmp_path / 'out' / 'ilsvrc' / 'occupied' / '1.0.0'
  occupied.mkdir(parents=True)
  (occupied / 'junk').write_text('')
  assert run(*arguments, '--name=occupied') == 2
  assert 'already contains other files' in capsys.readouterr().err
  (occupied / 'dataset_info.json').write_text('{"half')
  assert run(*arguments, '--name=occupied') == 2
  assert 'cannot be read' in capsys.readouterr().err


def test_a_dataset_that_another_process_prepares_meanwhile_is_not_changed(tmp_path, capsys, monkeypatch):
  arguments = small_source(tmp_path)
  original = archives.LAYOUTS['folder']

  def prepare_first(folder, seed):
    monkeypatch.setitem(archives.LAYOUTS, 'folder', original)
    assert run(*arguments) == 0
    return original(folder, seed)

  monkeypatch.setitem(archives.LAYOUTS, 'folder', prepare_first)
  assert run(*arguments) == 2
  assert 'already contains other files' in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_is_an_error(tmp_path, capsys, monkeypatch):
  arguments = small_source(tmp_path)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(prepare, 'write_report', full)
    assert run(*arguments) == 1
  assert 'cannot be completed (No space left on device). Finished parts are saved' in capsys.readouterr().err
  assert not (tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0').exists()
  assert run(*arguments) == 0
  assert 'Resuming: 16 of 16' in capsys.readouterr().out


def test_an_archive_without_images_is_an_error(tmp_path, capsys):
  (tmp_path / 'fall.tar').write_bytes(
    miniature.make_tar({'n1.tar': miniature.make_tar({'a.JPEG': miniature.make_image(0)})})
  )
  assert run('synsets', tmp_path / 'fall.tar', '--data_dir', tmp_path) == 2
  assert 'test contains no images' in capsys.readouterr().err


def test_tiny_imagenet_is_stored_with_64_pixels(tmp_path, capsys):
  source = miniature.write_tiny_imagenet(tmp_path / 'in')
  arguments = ('--data_dir', tmp_path / 'out', '--workers=1', '--encoding=raw')
  assert run('tiny_imagenet', source, '--any_count', *arguments) == 0
  assert 'train: 12 images of 64 x 64' in capsys.readouterr().out
  config = config_files.load_config('configs/alexnet.py:tiny_imagenet')
  config.data.name, config.data.dir = 'ilsvrc/tiny_imagenet_raw', str(tmp_path / 'out')
  (train,) = sources.open_splits(config.data, 64, ['train'])
  for image, label, key in zip(*train.read_batch(range(12)), sorted_keys(tmp_path / 'out'), strict=True):
    wnid = train.class_names[label][:9]
    file = source / 'train' / wnid / 'images' / key
    np.testing.assert_array_equal(image, image_io.read_square(file, 64))


def sorted_keys(data_dir):
  """Returns the file names of the training images in the order of the records."""
  (folder,) = data_dir.glob('ilsvrc/*/1.0.0')
  return [
    tf_example_pb2.Example.FromString(record).features.feature['file_name'].bytes_list.value[0].decode()
    for record in read_records(folder)['ilsvrc-train']
  ]


def test_the_command_line_accepts_every_layout():
  assert [cli.parser().parse_args(['prepare', layout, 'in']).layout for layout in archives.LAYOUTS] == list(
    archives.LAYOUTS
  )


@pytest.mark.parametrize('held_out', ['val', 'test', None])
def test_the_last_line_is_the_command_that_trains(tmp_path, capsys, held_out):
  if held_out:
    _, source, *flags = small_source(tmp_path)
    (source / 'val').rename(source / held_out)
  else:
    source, flags = tmp_path / 'in', ['--workers=1', '--data_dir', tmp_path / 'out']
    miniature.write_class_folders(source, per_class=20)
    shutil.rmtree(source / 'val')
  assert run('folder', source, '--name=flowers', *flags) == 0
  line = capsys.readouterr().out.splitlines()[-1]
  command, config, *fields = line.removeprefix('To train on it: ').replace("'", '').split(' --config')
  assert command == 'python main.py'
  config = config_files.load_config(config.removeprefix('='))
  for field in fields:
    path, value = field.removeprefix('.').split('=')
    config.update_from_flattened_dict({path: value})
  splits = config.data.train_split, config.data.validation_split, config.data.test_split
  assert config.data.dir == str(tmp_path / 'out')
  assert all(len(source) for source in sources.open_splits(config.data, 96, splits))


def test_the_configs_have_every_layout_and_variant():
  assert set(archives.LAYOUTS) < set(prepare.VARIANTS)
  for name, variant in prepare.VARIANTS.items():
    config = config_files.load_config(f'configs/alexnet.py:{variant}')
    assert config.data.name.startswith('imagenette' if name == 'folder' else 'ilsvrc/')


def test_counts_are_verified(tmp_path, capsys):
  miniature.write_ilsvrc2012(tmp_path / 'in')
  assert run('2012', tmp_path / 'in', '--data_dir', tmp_path / 'out') == 2
  assert 'train contains 18 images instead of 1,281,167. Is the archive incomplete?' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_a_preparation_does_not_resume_with_other_settings(tmp_path, capsys):
  arguments = small_source(tmp_path)
  parts = tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0.preparing' / 'parts'
  parts.mkdir(parents=True)
  (parts / 'job.json').write_text(json.dumps({'layout': 'folder', 'quality': 30}))
  assert run(*arguments) == 2
  assert 'was started with other settings' in capsys.readouterr().err


def test_two_processes_cannot_prepare_the_same_dataset(tmp_path, capsys):
  arguments = small_source(tmp_path)
  parts = tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0.preparing' / 'parts'
  parts.mkdir(parents=True)
  with open(parts / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert run(*arguments) == 2
  assert 'is being prepared by another process' in capsys.readouterr().err


def test_a_full_disk_is_an_error_and_leaves_no_shard(tmp_path):
  """A limit on the size of files simulates the full disk."""
  miniature.write_class_folders(tmp_path / 'in', per_class=40)
  (shard,) = writer.plan_shards(
    'train', archives.index_class_folders(tmp_path / 'in').splits['train'], tmp_path, 256, 'raw', 85
  )
  shard.parts.mkdir()
  code = (
    'import pickle, resource, signal, sys\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, 2**21))\n'
    'pickle.loads(sys.stdin.buffer.read()).write()\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    input=pickle.dumps(shard),
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    check=False,
  )
  assert b'RunError' in result.stderr, result.stderr
  assert b'cannot be written' in result.stderr
  assert b'free some space and run the same command to resume' in result.stderr
  assert not shard.is_complete()
  shard.write()
  assert shard.is_complete()


def test_hostile_files_in_an_archive_are_skipped(shared_data, tmp_path):
  from tests.data.test_image_io import UNDECODABLE

  hostile = {path.name: path.read_bytes() for path in (shared_data / 'hostile_images').iterdir()}
  photographs = {f'{i}.JPEG': miniature.make_image(i) for i in range(10)}
  archive = tmp_path / 'fall.tar'
  archive.write_bytes(
    miniature.make_tar({'n1.tar': miniature.make_tar(hostile), 'n2.tar': miniature.make_tar(photographs)})
  )
  assert run('synsets', archive, '--data_dir', tmp_path, '--max_skipped=1') == 3
  folder = tmp_path / 'ilsvrc' / 'synsets' / '1.0.0'
  report = ''.join((folder / f'skipped-{split}.txt').read_text() for split in ('train', 'test'))
  assert sorted(line.split(' in ')[0] for line in report.splitlines()) == sorted(UNDECODABLE)
  assert sum(map(len, read_records(folder).values())) == 28 - len(UNDECODABLE) + 10


def test_the_error_names_a_missing_file(tmp_path):
  images = archives.index_class_folders(miniature.write_class_folders(tmp_path / 'in')).splits['train']
  (shard,) = writer.plan_shards('train', images, tmp_path, 256, 'jpeg', 85)
  shard.parts.mkdir()
  os.remove(images[0].path)
  with pytest.raises(RunError, match=r'cat/0.jpg cannot be read \(No such file'):
    shard.write()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('folder', 'nowhere'), 'nowhere does not exist'),
    (('folder', '.', '--quality=0'), 'must be 1 to 100'),
    (('folder', '.', '--workers=0'), 'must be 1 or more'),
    (('folder', '.', '--max_skipped=2'), 'is a fraction'),
    (('folder', '.', '--name=a/b'), 'may contain only letters, digits'),
    (('synsets', '.', '--seed=-1'), 'must be 0 or more'),
    (('folder', 'README.md'), 'is not a folder'),
    (('2012', '.'), r"contains no 'ILSVRC2012_devkit\*'"),
    (('synsets', '.', '--name=x'), 'is not a file'),
    (('folder', 'IN', '--data_dir=README.md'), 'cannot be written to|cannot be used'),
  ],
)
def test_wrong_usage_gives_an_error_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(ROOT)
  if 'IN' in arguments:
    arguments = [str(miniature.write_class_folders(tmp_path / 'in')) if a == 'IN' else a for a in arguments]
  default = () if any('data_dir' in argument for argument in arguments) else (f'--data_dir={tmp_path}',)
  assert run(*arguments, *default) == 2
  assert re.search(f'error: .*({message})', capsys.readouterr().err)


def test_help_imports_no_heavy_library():
  code = "import sys; sys.argv = ['alexnet', 'prepare', '--help']; import runpy\n"
  code += "try: runpy.run_module('alexnet_jax', run_name='__main__')\nexcept SystemExit as end: print(end.code)\n"
  code += "print([name for name in ('tensorflow', 'tensorflow_datasets', 'jax') if name in sys.modules])"
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert result.stdout.splitlines()[-2:] == ['0', '[]']


def test_the_error_for_a_missing_dataset_contains_the_command_that_prepares_it(config, tmp_path):
  config.data.dir = str(tmp_path)
  for name, command in {
    'ilsvrc/2012': 'prepare 2012 SOURCE',
    'ilsvrc/2010_raw': 'prepare 2010 SOURCE --encoding=raw',
    'ilsvrc/flowers': 'prepare folder SOURCE --name=flowers',
    'ilsvrc': 'prepare 2012 SOURCE',
    'ilsvrc/2012:1.0.0': 'prepare 2012 SOURCE',
  }.items():
    config.data.name = name
    with pytest.raises(UsageError, match=command):
      sources.open_splits(config.data, 256, ['train'])
  (tmp_path / 'ilsvrc' / '2012' / '1.0.0.preparing').mkdir(parents=True)
  config.data.name = 'ilsvrc/2012'
  with pytest.raises(UsageError, match=r'is not prepared: .*, which contains only 1.0.0.preparing; prepare it, or'):
    sources.open_splits(config.data, 256, ['train'])
