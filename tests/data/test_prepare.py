"""From archives to a dataset, by the command, by TFDS, and by Beam."""

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


def records(place):
  """Reads {split: [record, ...]} of a prepared dataset, file by file."""
  found = {}
  for path in sorted(place.glob('*.array_record-*')):
    reader = ArrayRecordReader(str(path))
    found.setdefault(path.name.split('.')[0], []).extend(reader.read_all())
    reader.close()
  return found


def in_order(found):
  """TFDS leaves the order of the features in a record to chance."""
  return {
    split: [tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True) for record in of_split]
    for split, of_split in found.items()
  }


def run(*arguments):
  return cli.main(['prepare', *map(str, arguments)])


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
  """The miniatures, prepared by one process; (folder of downloads, data_dir)."""
  root = tmp_path_factory.mktemp('prepared')
  miniature.ilsvrc2012(root / 'in' / '2012')
  miniature.ilsvrc2010(root / 'in' / '2010')
  (root / 'in' / 'fall.tar').write_bytes(miniature.tar(miniature.synset_tars(20)))
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
def test_tfds_reads_what_was_prepared(prepared, name, expected):
  _, data_dir = prepared
  dataset = tfds.builder(f'ilsvrc/{name}', data_dir=data_dir)
  counts = {split: info.num_examples for split, info in dataset.info.splits.items()}
  assert sum(counts.values()) == sum(expected.values())
  if name != 'fall':  # there it depends on chance in which half the broken ones are
    assert counts == expected
    assert dataset.info.features['label'].names == miniature.NAMES
    assert dataset.info.metadata['ilsvrc_ids'] == [2, 3, 1]
  for split in expected:
    for example in tfds.data_source(f'ilsvrc/{name}', data_dir=data_dir, split=split):
      assert example['image'].shape == (256, 256, 3)
      name_of_label = dataset.info.features['label'].names[example['label']] if example['label'] >= 0 else ''
      if split == 'train':
        assert example['file_name'].decode().startswith(name_of_label[:9])


def test_images_are_the_pictures_squared_and_encoded(prepared):
  downloads, data_dir = prepared
  pictures = {p.key: p for p in archives.ilsvrc2012(downloads / '2012').splits['train']}
  examples = tfds.data_source('ilsvrc/2012', data_dir=data_dir, split='train')
  for example in examples:
    picture = pictures[example['file_name'].decode()]
    expected = image_io.resize_and_crop(image_io.decode(picture.read()), 256)
    np.testing.assert_array_equal(example['image'], image_io.decode(image_io.encode_jpeg(expected, 85)))
    assert example['label'] == picture.label


def test_the_report_lists_exactly_what_cannot_be_decoded(prepared):
  downloads, data_dir = prepared
  archive = downloads / '2012' / 'ILSVRC2012_img_train.tar'
  report = (data_dir / 'ilsvrc' / '2012' / '1.0.0' / 'skipped-train.txt').read_text().splitlines()
  assert len(report) == 2
  for line, (name, reason) in zip(report, sorted(miniature.BROKEN.items()), strict=True):
    assert line.startswith(f'n02119789_{name} in {archive}: ')
    assert reason in line
  assert (data_dir / 'ilsvrc' / '2012' / '1.0.0' / 'skipped-validation.txt').read_text() == ''


def test_statistics_are_those_of_a_plain_computation(prepared):
  _, data_dir = prepared
  pixels = np.stack([e['image'] for e in tfds.data_source('ilsvrc/2012', data_dir=data_dir, split='train')])
  kept = pixel_statistics.load(data_dir / 'ilsvrc' / '2012' / '1.0.0' / pixel_statistics.file_name('train', 256))
  np.testing.assert_allclose(kept.mean_image, pixels.mean(0, dtype=np.float64), rtol=1e-12)
  np.testing.assert_allclose(kept.covariance, np.cov(pixels.reshape(-1, 3).T, bias=True), rtol=1e-6)
  assert kept.num_images == 16


@pytest.mark.parametrize(
  ('layout', 'source', 'name'), [('2012', '2012', '2012'), ('2010', '2010', '2010'), ('synsets', 'fall.tar', 'fall')]
)
def test_two_processes_make_the_same(prepared, tmp_path, layout, source, name):
  downloads, data_dir = prepared
  options = ('--data_dir', tmp_path, f'--name={name}', '--any_count', '--max_skipped=0.2')
  assert run(layout, downloads / source, *options, '--workers=2') == 3
  ours, theirs = (folder / 'ilsvrc' / name / '1.0.0' for folder in (tmp_path, data_dir))
  assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
  for path in ours.iterdir():
    if path.suffix != '.npz':  # which notes the time
      assert path.read_bytes() == (theirs / path.name).read_bytes(), path.name
  stats = pixel_statistics.file_name('train', 256)
  for one, other in zip(pixel_statistics.load(ours / stats), pixel_statistics.load(theirs / stats), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  ('layout', 'source', 'name'), [('2012', '2012', '2012'), ('2010', '2010', '2010'), ('synsets', 'fall.tar', 'fall')]
)
def test_tfds_itself_makes_the_same_records_in_the_same_order(prepared, tmp_path, layout, source, name):
  """What `tfds build` does."""
  downloads, data_dir = prepared
  config = name if name == layout else IlsvrcConfig(name=name, layout=layout)
  job = Job(source=downloads / source, max_skipped=0.2)
  dataset = Ilsvrc(config=config, job=job, data_dir=tmp_path, file_format='array_record')
  dataset.download_and_prepare()
  assert in_order(records(tmp_path / 'ilsvrc' / name / '1.0.0')) == records(data_dir / 'ilsvrc' / name / '1.0.0')
  skipped = 'skipped-train.txt'
  places = [folder / 'ilsvrc' / name / '1.0.0' / skipped for folder in (tmp_path, data_dir)]
  assert places[0].read_text() == places[1].read_text()


def on_beam(*arguments):
  """Runs the command in the environment of requirements-beam.txt, which `make test-all` sets up."""
  python = ROOT / '.venv-beam' / 'bin' / 'python'
  if not python.exists():
    pytest.skip('Apache Beam wants an environment of its own, .venv-beam: `make test-all` makes it')
  command = [str(python), '-m', 'alexnet_jax', 'prepare', *map(str, arguments), '--beam=DirectRunner']
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_beam_makes_the_same_records_in_the_same_order(prepared, tmp_path):
  downloads, data_dir = prepared
  arguments = ('2012', downloads / '2012', '--data_dir', tmp_path, '--any_count')
  refused = on_beam(*arguments)
  assert refused.returncode == 1
  assert 'error: the pipeline on DirectRunner failed: ' in refused.stderr
  assert '2 of 18 pictures in train cannot be decoded' in refused.stderr
  result = on_beam(*arguments, '--max_skipped=0.2')
  assert result.returncode == 3, result.stderr
  ours, theirs = (folder / 'ilsvrc' / '2012' / '1.0.0' for folder in (tmp_path, data_dir))
  assert in_order(records(ours)) == records(theirs)
  assert (ours / 'skipped-train.txt').read_text() == (theirs / 'skipped-train.txt').read_text()


def test_raw_pixels_are_those_before_encoding(prepared, tmp_path):
  downloads, _ = prepared
  options = ('--data_dir', tmp_path, '--any_count', '--max_skipped=0.2', '--encoding=raw', '--workers=1')
  assert run('2012', downloads / '2012', *options) == 3
  pictures = {p.key: p for p in archives.ilsvrc2012(downloads / '2012').splits['train']}
  examples = tfds.data_source('ilsvrc/2012_raw', data_dir=tmp_path, split='train')
  assert len(examples) == 16
  for example in examples:
    expected = image_io.resize_and_crop(image_io.decode(pictures[example['file_name'].decode()].read()), 256)
    np.testing.assert_array_equal(example['image'], expected)


@pytest.mark.parametrize('name', ['2012', '2012_raw'])
def test_the_pipeline_reads_both_encodings(prepared, tmp_path, config, name):
  downloads, data_dir = prepared
  if name == '2012_raw':
    data_dir = tmp_path
    options = ('--data_dir', tmp_path, '--any_count', '--max_skipped=0.2', '--encoding=raw', '--workers=1')
    assert run('2012', downloads / '2012', *options) == 3
  config.data.name, config.data.dir, config.model.image_size = f'ilsvrc/{name}', str(data_dir), 224
  (train,) = sources.open_splits(config.data, 256, ['train'])
  assert train.class_names == tuple(miniature.NAMES)
  stats = pixel_statistics.load_or_compute(train)
  batch = next(pipeline.training_batches(train, stats.covariance, config, first_step=0, colour_steps=9, share=(0, 1)))
  assert batch['image'].shape == (8, 224, 224, 3)
  stored = [train[i]['image'].copy() for i in range(len(train))]
  for crop, (top, left), label in zip(batch['image'], batch['mean_offset'], batch['label'], strict=True):
    crops = [image[top : top + 224, left : left + 224] for image in stored]
    assert any(np.array_equal(crop, other) and label == train[i]['label'] for i, other in enumerate(crops))


def start(tmp_path, name, *, pipe=None):
  """Begins to prepare the tree in tmp_path/in into tmp_path/name, in a process of its own."""
  command = [sys.executable, '-m', 'alexnet_jax', 'prepare', 'folder', str(tmp_path / 'in'), '--workers=2']
  return subprocess.Popen(
    [*command, f'--data_dir={tmp_path / name}'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE if pipe else subprocess.DEVNULL,
    stderr=subprocess.PIPE if pipe else subprocess.DEVNULL,
    text=True,
  )


def test_training_ends_with_a_submission_for_images_without_labels(prepared, tmp_path, config):
  config.data.name, config.data.dir, config.data.test_split = 'ilsvrc/2012', str(prepared[1]), 'test'
  config.data.train_split, config.data.validation_split = 'train', 'validation'
  config.num_steps, config.eval.submission, config.eval.ten_view = 1, True, False
  results = loop.train_and_evaluate(config, tmp_path)
  assert not results['centre']  # nothing to count
  best = [line.split() for line in (tmp_path / 'submission.txt').read_text().splitlines()]
  assert [len(ids) for ids in best] == [3, 3]  # there are three classes


@pytest.mark.parametrize('num_kills', [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_preparation_goes_on_to_the_same_dataset(tmp_path, num_kills):
  miniature.tree(tmp_path / 'in', per_class=300)
  began = time.monotonic()
  assert start(tmp_path, 'whole').wait(timeout=300) == 0
  seconds = time.monotonic() - began
  place = pathlib.Path('ilsvrc', 'folder', '1.0.0')
  whole = records(tmp_path / 'whole' / place)
  assert sum(map(len, whole.values())) == 604
  stats = pixel_statistics.file_name('train', 256)

  def is_the_same():
    kept = [pixel_statistics.load(tmp_path / name / place / stats) for name in ('killed', 'whole')]
    same_statistics = all(np.array_equal(one, other) for one, other in zip(*kept, strict=True))
    return same_statistics and records(tmp_path / 'killed' / place) == whole

  dice = random.Random(num_kills)
  kills = 0
  while kills < num_kills:  # at any moment: of a preparation that begins, goes on, or ends
    process = start(tmp_path, 'killed')
    try:
      process.wait(timeout=dice.uniform(0.1, 1.0) * seconds)
      assert process.returncode == 0
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      kills += 1
      time.sleep(1)  # its workers notice, and end themselves
    if (tmp_path / 'killed' / place).exists():  # what looks whole is whole; another one is begun
      assert is_the_same()
      shutil.rmtree(tmp_path / 'killed')
  assert start(tmp_path, 'killed').wait(timeout=300) == 0
  assert is_the_same()


def test_being_told_to_stop_is_status_75_and_keeps_what_is_done(tmp_path):
  miniature.tree(tmp_path / 'in', per_class=300)
  working = tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0.preparing'
  process = start(tmp_path, 'out', pipe=True)
  while not list(working.glob('parts/*-of-*.json')):
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
  assert 'going on: ' in stdout


def plain(tmp_path):
  """Makes a small tree; returns the command line that prepares it."""
  miniature.tree(tmp_path / 'in')
  return ['folder', tmp_path / 'in', '--data_dir', tmp_path / 'out', '--workers=1']


def test_what_is_there_is_left_alone_unless_it_was_made_otherwise(tmp_path, capsys):
  arguments = plain(tmp_path)
  assert run(*arguments) == 0
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')}
  assert run(*arguments) == 0
  assert 'is there and whole; nothing to do' in capsys.readouterr().out
  assert run(*arguments, '--quality=50') == 2
  assert 'was made otherwise' in capsys.readouterr().err
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*')} == before


def test_too_many_undecodable_pictures_stop_the_job_and_leave_nothing_that_looks_whole(tmp_path, capsys):
  arguments = plain(tmp_path)
  (tmp_path / 'in' / 'train' / 'cat' / '9.jpg').write_bytes(b'garbage')
  assert run(*arguments) == 1
  error = capsys.readouterr().err
  assert '1 of 13 pictures in train cannot be decoded, more than max_skipped=0.001' in error
  assert 'cat/9.jpg: it is no image' in error
  assert not (tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0').exists()
  assert run(*arguments, '--max_skipped=0.5') == 3  # and what was done is not done again
  assert 'going on: 17 of 17' in capsys.readouterr().out


def test_another_source_or_something_else_in_its_place_is_not_taken_for_it(tmp_path, capsys):
  arguments = plain(tmp_path)
  assert run(*arguments) == 0
  other = miniature.tree(tmp_path / 'other')
  assert run('folder', other, *arguments[2:]) == 2
  assert 'was made otherwise' in capsys.readouterr().err
  strange = tmp_path / 'out' / 'ilsvrc' / 'strange' / '1.0.0'
  strange.mkdir(parents=True)
  (strange / 'junk').write_text('')
  assert run(*arguments, '--name=strange') == 2
  assert 'holds something else' in capsys.readouterr().err
  (strange / 'dataset_info.json').write_text('{"half')
  assert run(*arguments, '--name=strange') == 2
  assert 'cannot be read' in capsys.readouterr().err


def test_a_preparation_that_another_process_finished_meanwhile_leaves_it_alone(tmp_path, capsys, monkeypatch):
  arguments = plain(tmp_path)
  original = archives.folder_of_classes

  def slowly(folder, seed):
    monkeypatch.setitem(archives.LAYOUTS, 'folder', original)
    assert run(*arguments) == 0
    return original(folder, seed)

  monkeypatch.setitem(archives.LAYOUTS, 'folder', slowly)
  assert run(*arguments) == 2
  assert 'holds something else' in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_is_a_sentence(tmp_path, capsys, monkeypatch):
  arguments = plain(tmp_path)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(prepare, 'write_report', full)
    assert run(*arguments) == 1
  assert 'cannot be finished (No space left on device); what is done is kept' in capsys.readouterr().err
  assert not (tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0').exists()
  assert run(*arguments) == 0
  assert 'going on: 16 of 16' in capsys.readouterr().out


def test_an_archive_without_pictures_says_so(tmp_path, capsys):
  (tmp_path / 'fall.tar').write_bytes(miniature.tar({'n1.tar': miniature.tar({'a.JPEG': miniature.picture(0)})}))
  assert run('synsets', tmp_path / 'fall.tar', '--data_dir', tmp_path) == 2
  assert 'test has no picture at all' in capsys.readouterr().err


def test_the_command_line_knows_every_layout():
  assert [cli.parser().parse_args(['prepare', layout, 'in']).layout for layout in archives.LAYOUTS] == list(
    archives.LAYOUTS
  )


@pytest.mark.parametrize('held_out', ['val', 'test'])
def test_at_the_end_it_says_how_to_train(tmp_path, capsys, held_out):
  _, source, *flags = plain(tmp_path)
  (source / 'val').rename(source / held_out)
  assert run('folder', source, '--name=flowers', *flags) == 0
  line = capsys.readouterr().out.splitlines()[-1]
  command, config, *fields = line.removeprefix('train on it: ').split(' --config')
  assert command == 'python main.py'
  config = config_files.load_config(config.removeprefix('='))
  for field in fields:
    path, value = field.removeprefix('.').split('=')
    config.update_from_flattened_dict({path: value})
  splits = config.data.train_split, config.data.validation_split, config.data.test_split
  assert config.data.dir == str(tmp_path / 'out')
  assert all(len(source) for source in sources.open_splits(config.data, 96, splits))


def test_every_layout_and_variant_is_known_to_the_configs():
  assert set(archives.LAYOUTS) < set(prepare.VARIANTS)
  for name, variant in prepare.VARIANTS.items():
    config = config_files.load_config(f'configs/alexnet.py:{variant}')
    assert config.data.name.startswith('imagenette' if name == 'folder' else 'ilsvrc/')


def test_counts_are_verified(tmp_path, capsys):
  miniature.ilsvrc2012(tmp_path / 'in')
  assert run('2012', tmp_path / 'in', '--data_dir', tmp_path / 'out') == 2
  assert 'train has 18 pictures and should have 1,281,167; is the archive whole?' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_a_preparation_begun_otherwise_is_not_mixed(tmp_path, capsys):
  arguments = plain(tmp_path)
  parts = tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0.preparing' / 'parts'
  parts.mkdir(parents=True)
  (parts / 'job.json').write_text(json.dumps({'layout': 'folder', 'quality': 30}))
  assert run(*arguments) == 2
  assert 'was begun otherwise' in capsys.readouterr().err


def test_two_preparations_of_one_dataset_do_not_meet(tmp_path, capsys):
  arguments = plain(tmp_path)
  parts = tmp_path / 'out' / 'ilsvrc' / 'folder' / '1.0.0.preparing' / 'parts'
  parts.mkdir(parents=True)
  with open(parts / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert run(*arguments) == 2
  assert 'is being prepared by another process' in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_leaves_nothing_that_looks_whole(tmp_path):
  """A limit on the size of files stands in for the disk."""
  miniature.tree(tmp_path / 'in', per_class=40)
  (shard,) = writer.plan('train', archives.folder_of_classes(tmp_path / 'in').splits['train'], tmp_path, 'raw', 85)
  shard.parts.mkdir()
  code = (
    'import pickle, resource, signal, sys\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, 2**21))\n'
    'pickle.loads(sys.stdin.buffer.read()).make()\n'
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
  assert b'make room and start again' in result.stderr
  assert not shard.is_made()
  shard.make()
  assert shard.is_made()


def test_hostile_files_in_an_archive_do_not_stop_the_job(shared_data, tmp_path):
  from tests.data.test_image_io import UNDECODABLE

  hostile = {path.name: path.read_bytes() for path in (shared_data / 'hostile_images').iterdir()}
  photographs = {f'{i}.JPEG': miniature.picture(i) for i in range(10)}
  archive = tmp_path / 'fall.tar'
  archive.write_bytes(miniature.tar({'n1.tar': miniature.tar(hostile), 'n2.tar': miniature.tar(photographs)}))
  assert run('synsets', archive, '--data_dir', tmp_path, '--max_skipped=1') == 3
  place = tmp_path / 'ilsvrc' / 'synsets' / '1.0.0'
  report = ''.join((place / f'skipped-{split}.txt').read_text() for split in ('train', 'test'))
  assert sorted(line.split(' in ')[0] for line in report.splitlines()) == sorted(UNDECODABLE)
  assert sum(map(len, records(place).values())) == 28 - len(UNDECODABLE) + 10


def test_an_archive_that_vanishes_is_named(tmp_path):
  pictures = archives.folder_of_classes(miniature.tree(tmp_path / 'in')).splits['train']
  (shard,) = writer.plan('train', pictures, tmp_path, 'jpeg', 85)
  shard.parts.mkdir()
  os.remove(pictures[0].path)
  with pytest.raises(RunError, match=r'cat/0.jpg cannot be read \(No such file'):
    shard.make()


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (('folder', 'nowhere'), 'nowhere does not exist'),
    (('folder', '.', '--quality=0'), 'must be 1 to 100'),
    (('folder', '.', '--workers=0'), 'must be 1 or more'),
    (('folder', '.', '--max_skipped=2'), 'is a share'),
    (('folder', '.', '--name=a/b'), 'letters, digits'),
    (('synsets', '.', '--seed=-1'), 'must be 0 or more'),
    (('folder', 'README.md'), 'is not a folder'),
    (('2012', '.'), r"holds no 'ILSVRC2012_devkit\*'"),
    (('synsets', '.', '--name=x'), 'is not a file'),
    (('folder', 'IN', '--data_dir=README.md'), 'cannot be written to|cannot be used'),
  ],
)
def test_wrong_usage_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, arguments, sentence):
  monkeypatch.chdir(ROOT)
  if 'IN' in arguments:
    arguments = [str(miniature.tree(tmp_path / 'in')) if a == 'IN' else a for a in arguments]
  default = () if any('data_dir' in argument for argument in arguments) else (f'--data_dir={tmp_path}',)
  assert run(*arguments, *default) == 2
  assert re.search(f'error: .*({sentence})', capsys.readouterr().err)


def test_help_is_there_at_once():
  code = "import sys; sys.argv = ['alexnet', 'prepare', '--help']; import runpy\n"
  code += "try: runpy.run_module('alexnet_jax', run_name='__main__')\nexcept SystemExit as end: print(end.code)\n"
  code += "print([name for name in ('tensorflow', 'tensorflow_datasets', 'jax') if name in sys.modules])"
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert result.stdout.splitlines()[-2:] == ['0', '[]']


def test_the_pipeline_says_how_to_prepare_what_is_not_there(config, tmp_path):
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
  with pytest.raises(
    UsageError, match=r'is not prepared in .*; what is there is 1.0.0.preparing; make it, or finish it'
  ):
    sources.open_splits(config.data, 256, ['train'])
