import pathlib
import tarfile
import zipfile

import pytest

from alexnet_jax.data.imagenet import archives
from alexnet_jax.runtime.errors import RunError, UsageError
from tests import miniature


@pytest.fixture(scope='session')
def downloads(tmp_path_factory):
  """The miniature archives of both years, which tests must not change."""
  root = tmp_path_factory.mktemp('downloads')
  return {
    '2012': miniature.write_ilsvrc2012(root / '2012'),
    '2010': miniature.write_ilsvrc2010(root / '2010'),
  }


def labels_by_key(images):
  return {image.key: image.label for image in images}


def test_ilsvrc2012_is_indexed(downloads):
  contents = archives.index_ilsvrc2012(downloads['2012'])
  assert contents.class_names == miniature.CLASS_NAMES
  assert contents.ilsvrc_ids == [2, 3, 1]
  assert {split: len(images) for split, images in contents.splits.items()} == {
    'train': 3 * 5 + 3,
    'validation': 4,
    'test': 2,
  }
  for image in contents.splits['train']:
    assert image.key.startswith(miniature.CLASS_NAMES[image.label][:9])
  assert [image.label for image in contents.splits['validation']] == [1, 2, 0, 2]  # the ids 3, 1, 2, 1
  assert [image.label for image in contents.splits['test']] == [-1, -1]
  with tarfile.open(downloads['2012'] / 'ILSVRC2012_img_val.tar') as tar:
    for image in contents.splits['validation']:
      assert image.read() == tar.extractfile(image.key).read()
  files = {image.key: image.read() for image in contents.splits['train']}
  assert files['n01440764_3.JPEG'] == miniature.make_image(1003)
  assert archives.OFFICIAL_COUNTS['2012'] == {'train': 1_281_167, 'validation': 50_000, 'test': 100_000}


def test_ilsvrc2010_is_indexed_with_its_patch(downloads):
  contents = archives.index_ilsvrc2010(downloads['2010'])
  assert contents.class_names == miniature.CLASS_NAMES
  assert [image.label for image in contents.splits['validation']] == [0, 0, 2]
  assert [image.label for image in contents.splits['test']] == [2, 0, 1, 1, 2]
  files = {image.key: image.read() for image in contents.splits['train']}
  assert files['n02119789_1.JPEG'] == miniature.make_image(99)
  assert files['n02119789_2.JPEG'] == miniature.make_image(2)
  assert archives.OFFICIAL_COUNTS['2010'] == {'train': 1_261_406, 'validation': 50_000, 'test': 150_000}


def test_synsets_are_split_into_random_halves(tmp_path):
  archive = tmp_path / 'fall.tar'
  archive.write_bytes(miniature.make_tar(miniature.make_synset_tars(20, has_undecodable=False)))
  contents = archives.index_synsets(archive, seed=3)
  assert contents.class_names == ['n01440764', 'n02100735', 'n02119789']
  train, test = (labels_by_key(contents.splits[split]) for split in ('train', 'test'))
  assert len(train) - len(test) in (0, 1)
  assert len(train | test) == 61
  assert {contents.class_names[label] for label in train.values()} == set(contents.class_names)
  assert all(contents.class_names[label] == key[:9] for key, label in (train | test).items())
  assert archives.index_synsets(archive, seed=3) == contents
  assert labels_by_key(archives.index_synsets(archive, seed=4).splits['train']) != train


def test_class_folders_are_indexed(tmp_path):
  contents = archives.index_class_folders(miniature.write_class_folders(tmp_path))
  assert contents.class_names == ['cat', 'dog']
  assert {split: len(images) for split, images in contents.splits.items()} == {'train': 12, 'validation': 4}
  assert labels_by_key(contents.splits['train'])['dog/3.jpg'] == 1
  assert all(image.read() for image in contents.splits['train'])


def test_imagenette_is_indexed(shared_data):
  contents = archives.index_class_folders(shared_data / 'imagenette_subset')
  assert {split: len(images) for split, images in contents.splits.items()} == {'train': 2800, 'validation': 700}
  assert contents.class_names[0] == 'n01440764'


def zip_folder(folder, path, compression=zipfile.ZIP_DEFLATED):
  """Writes a folder to a zip archive that contains it, as Tiny-ImageNet-200 is distributed."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for file in [folder, *folder.rglob('*')]:
      archive.write(file, pathlib.PurePath('tiny-imagenet-200', file.relative_to(folder)))
  return path


@pytest.mark.parametrize('compression', [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_tiny_imagenet_is_indexed_as_a_folder_and_as_a_zip_archive(tmp_path, compression):
  source = folder = miniature.write_tiny_imagenet(tmp_path / 'in')
  if compression is not None:
    source = zip_folder(folder, tmp_path / 'tiny.zip', compression)
  contents = archives.index_tiny_imagenet(source)
  assert contents.class_names == ['n01440764 tench, Tinca tinca', 'n02119789 kit fox, Vulpes macrotis']
  assert {split: len(images) for split, images in contents.splits.items()} == {'train': 12, 'validation': 3, 'test': 2}
  assert all(contents.class_names[image.label][:9] == image.key[:9] for image in contents.splits['train'])
  assert labels_by_key(contents.splits['validation']) == {'val_0.JPEG': 1, 'val_1.JPEG': 0, 'val_2.JPEG': 1}
  assert {image.label for image in contents.splits['test']} == {-1}
  for image in contents.splits['validation']:
    assert image.read() == (folder / 'val' / 'images' / image.key).read_bytes()
  for image in contents.splits['train']:
    assert image.read() == (folder / 'train' / image.key[:9] / 'images' / image.key).read_bytes()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('wnids.txt', None, 'contains no wnids.txt; SOURCE must be tiny-imagenet-200.zip or its unpacked folder'),
    ('val/val_annotations.txt', None, 'contains no val/val_annotations.txt'),
    ('val/val_annotations.txt', b'val_0.JPEG\tn02119789\n', 'gives no known class for val_1.JPEG'),
    ('val/val_annotations.txt', b'\xff\x00\t\n\n\tn\n', 'gives no known class for val_0.JPEG'),
  ],
)
def test_an_incomplete_tiny_imagenet_is_a_usage_error(tmp_path, name, content, message):
  folder = miniature.write_tiny_imagenet(tmp_path / 'in')
  (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
  with pytest.raises(UsageError, match=message):
    archives.index_tiny_imagenet(folder)


def test_a_damaged_zip_archive_is_a_run_error(tmp_path):
  path = zip_folder(miniature.write_tiny_imagenet(tmp_path / 'in'), tmp_path / 'tiny.zip')
  content = path.read_bytes()
  for damaged in (b'', content[: len(content) // 2], content.replace(b'PK\3\4', b'PK\0\0')):
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=r'is damaged or no zip archive .*; download it again'):
      archives.index_tiny_imagenet(path)


def test_damaged_compressed_data_is_named(tmp_path):
  path = zip_folder(miniature.write_tiny_imagenet(tmp_path / 'in'), tmp_path / 'tiny.zip')
  image = archives.index_tiny_imagenet(path).splits['train'][0]
  content = bytearray(path.read_bytes())
  content[image.offset] = 0xFF  # a block type that does not exist
  path.write_bytes(content)
  with pytest.raises(OSError, match='its compressed data is damaged'):
    image.read()


@pytest.mark.parametrize(
  ('missing', 'message'),
  [
    ('ILSVRC2012_img_train.tar', "contains no 'ILSVRC2012_img_train.tar'; download it there"),
    ('ILSVRC2012_img_val.tar', "contains no 'ILSVRC2012_img_val.tar'"),
    ('ILSVRC2012_devkit_t12.tar.gz', r"contains no 'ILSVRC2012_devkit\*'"),
  ],
)
def test_the_error_names_a_missing_archive(tmp_path, missing, message):
  (miniature.write_ilsvrc2012(tmp_path) / missing).unlink()
  with pytest.raises(UsageError, match=message):
    archives.index_ilsvrc2012(tmp_path)


def test_folders_named_like_the_archives_are_ignored(tmp_path):
  (miniature.write_ilsvrc2012(tmp_path) / 'ILSVRC2012_devkit_t12').mkdir()
  assert archives.index_ilsvrc2012(tmp_path).class_names == miniature.CLASS_NAMES
  (tmp_path / 'ILSVRC2012_img_train.tar').unlink()
  (tmp_path / 'ILSVRC2012_img_train.tar').mkdir()
  with pytest.raises(UsageError, match=r"contains no 'ILSVRC2012_img_train.tar'"):
    archives.index_ilsvrc2012(tmp_path)


@pytest.mark.parametrize('content', [b'', b'no table', b'MATLAB 5.0 MAT-file' + b'\xff' * 300])
def test_a_damaged_class_table_is_an_error(tmp_path, content, monkeypatch):
  miniature.write_ilsvrc2012(tmp_path)
  monkeypatch.setattr(archives._DevelopmentKit, '_read_members', lambda self: {'meta.mat': content})
  with pytest.raises(RunError, match=r'meta.mat of .*devkit_t12.tar.gz is damaged'):
    archives.index_ilsvrc2012(tmp_path)


def test_a_missing_ground_truth_is_an_error(tmp_path):
  (miniature.write_ilsvrc2010(tmp_path) / 'ILSVRC2010_test_ground_truth.txt').unlink()
  with pytest.raises(UsageError, match=r'ILSVRC2010_test_ground_truth.txt is neither in .*devkit.* nor next to it'):
    archives.index_ilsvrc2010(tmp_path)


def test_archives_of_another_year_are_rejected(tmp_path, downloads):
  folder = miniature.write_ilsvrc2012(tmp_path)
  kit = folder / 'ILSVRC2012_devkit_t12.tar.gz'
  complete = kit.read_bytes()
  kit.write_bytes((downloads['2010'] / 'ILSVRC2010_devkit-1.0.tar.gz').read_bytes())
  with pytest.raises(UsageError, match='is not the development kit of ILSVRC2012'):
    archives.index_ilsvrc2012(folder)
  kit.write_bytes(complete)

  validation = folder / 'ILSVRC2012_img_val.tar'
  complete = validation.read_bytes()
  other_year = {f'val/ILSVRC2010_val_{i:08d}.JPEG': miniature.make_image(i) for i in range(1, 5)}
  validation.write_bytes(miniature.make_tar(other_year))
  with pytest.raises(UsageError, match=r'contains ILSVRC2010_val_00000001.JPEG instead of ILSVRC2012_val_00000001'):
    archives.index_ilsvrc2012(folder)
  validation.write_bytes(miniature.make_tar(dict(list(other_year.items())[:3])))
  with pytest.raises(UsageError, match='contains 3 images, but the ground truth has 4 labels'):
    archives.index_ilsvrc2012(folder)
  validation.write_bytes(complete)

  (folder / 'ILSVRC2012_img_train.tar').write_bytes(miniature.make_tar({'n09999999.tar': miniature.make_tar({})}))
  with pytest.raises(
    UsageError, match=r'contains n09999999.tar, which is not the tar of a class; is this another archive'
  ):
    archives.index_ilsvrc2012(folder)


@pytest.mark.parametrize('fraction', [0.05, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_archive_is_an_error_wherever_it_ends(tmp_path, fraction):
  train = miniature.write_ilsvrc2012(tmp_path) / 'ILSVRC2012_img_train.tar'
  complete = train.read_bytes().rstrip(b'\0')
  train.write_bytes(complete[: int(fraction * len(complete))])
  with pytest.raises(RunError, match=r'ILSVRC2012_img_train.tar (ends in the middle of|is damaged, truncated)'):
    archives.index_ilsvrc2012(tmp_path)


def test_a_damaged_header_is_an_error(tmp_path):
  train = miniature.write_ilsvrc2012(tmp_path) / 'ILSVRC2012_img_train.tar'
  content = bytearray(train.read_bytes())
  header = content.index(b'n01440764_1.JPEG')
  content[header : header + 200] = b'\xa5' * 200
  train.write_bytes(content)
  with pytest.raises(RunError, match='is damaged, truncated, unreadable or not an uncompressed tar'):
    archives.index_ilsvrc2012(tmp_path)


@pytest.mark.parametrize('content', [b'', b'no tar', b'\x1f\x8b\x08 compressed' * 100])
def test_files_that_are_not_tars_are_an_error(tmp_path, content):
  (miniature.write_ilsvrc2012(tmp_path) / 'ILSVRC2012_img_val.tar').write_bytes(content)
  with pytest.raises(
    RunError, match=r'ILSVRC2012_img_val.tar is damaged, truncated, unreadable or not an uncompressed tar'
  ):
    archives.index_ilsvrc2012(tmp_path)
  (tmp_path / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(content)
  with pytest.raises(RunError, match=r'ILSVRC2012_devkit_t12.tar.gz is damaged or not an archive'):
    archives.index_ilsvrc2012(tmp_path)


@pytest.mark.parametrize('name', ['../../etc/n.JPEG', '/etc/n.JPEG'])
def test_members_with_paths_outside_the_archive_are_rejected(tmp_path, name):
  archive = tmp_path / 'fall.tar'
  archive.write_bytes(miniature.make_tar({'n01440764.tar': miniature.make_tar({name: miniature.make_image(0)})}))
  with pytest.raises(UsageError, match='a link or a path outside the archive'):
    archives.index_synsets(archive)


def test_links_are_rejected(tmp_path):
  archive = tmp_path / 'fall.tar'
  with tarfile.open(archive, 'w') as tar:
    link = tarfile.TarInfo('n01440764.tar')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    tar.addfile(link)
  with pytest.raises(UsageError, match='a link or a path outside the archive'):
    archives.index_synsets(archive)


def test_folders_with_another_layout_are_rejected(tmp_path):
  folder = miniature.write_class_folders(tmp_path / 'tree')
  with pytest.raises(UsageError, match='is not a folder'):
    archives.index_class_folders(folder / 'train' / 'cat' / '1.jpg')
  with pytest.raises(UsageError, match='contains no folder train'):
    archives.index_class_folders(folder / 'val')
  (folder / 'val' / 'cow').mkdir()
  with pytest.raises(UsageError, match=r'cow is a class that .*train does not contain'):
    archives.index_class_folders(folder)
  (folder / 'train' / 'cow').mkdir()
  with pytest.raises(UsageError, match=r'train/cow contains no image'):
    archives.index_class_folders(folder)
  (folder / 'train' / 'cow' / 'calf').mkdir()
  with pytest.raises(UsageError, match='calf is a folder or a broken link'):
    archives.index_class_folders(folder)
  (folder / 'train' / 'cow' / 'calf').rmdir()
  (folder / 'train' / 'cow' / 'lost.jpg').symlink_to('nowhere')
  with pytest.raises(UsageError, match=r'lost.jpg is a folder or a broken link'):
    archives.index_class_folders(folder)
  (folder / 'train' / 'cow').rename(folder / 'train' / 'co\nw')
  with pytest.raises(UsageError, match='a name with line breaks or unprintable characters'):
    archives.index_class_folders(folder)
  (folder / 'val old').mkdir()
  with pytest.raises(UsageError, match='val old is no name of a split'):
    archives.index_class_folders(folder)
  (folder / 'validation').mkdir()
  with pytest.raises(UsageError, match='contains both val and validation'):
    archives.index_class_folders(folder)
  (tmp_path / 'bare' / 'train').mkdir(parents=True)
  with pytest.raises(UsageError, match='contains no class folders'):
    archives.index_class_folders(tmp_path / 'bare')
