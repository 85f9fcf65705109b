import tarfile

import pytest

from alexnet_jax.data.imagenet import archives
from alexnet_jax.runtime.errors import RunError, UsageError
from tests import miniature


@pytest.fixture(scope='session')
def downloads(tmp_path_factory):
  """The miniature downloads of both years, which no test changes."""
  root = tmp_path_factory.mktemp('downloads')
  return {
    '2012': miniature.ilsvrc2012(root / '2012'),
    '2010': miniature.ilsvrc2010(root / '2010'),
  }


def labels(pictures):
  return {picture.key: picture.label for picture in pictures}


def test_ilsvrc2012(downloads):
  contents = archives.ilsvrc2012(downloads['2012'])
  assert contents.class_names == miniature.NAMES
  assert contents.ilsvrc_ids == [2, 3, 1]
  assert {split: len(pictures) for split, pictures in contents.splits.items()} == {
    'train': 3 * 5 + 3,
    'validation': 4,
    'test': 2,
  }
  for picture in contents.splits['train']:
    assert picture.key.startswith(miniature.NAMES[picture.label][:9])
  assert [picture.label for picture in contents.splits['validation']] == [1, 2, 0, 2]  # the ids 3, 1, 2, 1
  assert [picture.label for picture in contents.splits['test']] == [-1, -1]
  with tarfile.open(downloads['2012'] / 'ILSVRC2012_img_val.tar') as tar:
    for picture in contents.splits['validation']:
      assert picture.read() == tar.extractfile(picture.key).read()
  found = {picture.key: picture.read() for picture in contents.splits['train']}
  assert found['n01440764_3.JPEG'] == miniature.picture(1003)
  assert contents.expected == {'train': 1_281_167, 'validation': 50_000, 'test': 100_000}


def test_ilsvrc2010_with_its_patch(downloads):
  contents = archives.ilsvrc2010(downloads['2010'])
  assert contents.class_names == miniature.NAMES
  assert [picture.label for picture in contents.splits['validation']] == [0, 0, 2]
  assert [picture.label for picture in contents.splits['test']] == [2, 0, 1, 1, 2]
  found = {picture.key: picture.read() for picture in contents.splits['train']}
  assert found['n02119789_1.JPEG'] == miniature.picture(99)
  assert found['n02119789_2.JPEG'] == miniature.picture(2)
  assert contents.expected == {'train': 1_261_406, 'validation': 50_000, 'test': 150_000}


def test_synsets_are_divided_in_halves_at_random(tmp_path):
  archive = tmp_path / 'fall.tar'
  archive.write_bytes(miniature.tar(miniature.synset_tars(20, broken=False)))
  contents = archives.synsets(archive, seed=3)
  assert contents.class_names == ['n01440764', 'n02100735', 'n02119789']
  train, test = (labels(contents.splits[split]) for split in ('train', 'test'))
  assert len(train) - len(test) in (0, 1)
  assert len(train | test) == 61
  assert {contents.class_names[label] for label in train.values()} == set(contents.class_names)
  assert all(contents.class_names[label] == key[:9] for key, label in (train | test).items())
  assert archives.synsets(archive, seed=3) == contents
  assert labels(archives.synsets(archive, seed=4).splits['train']) != train


def test_a_tree_of_classes(tmp_path):
  contents = archives.folder_of_classes(miniature.tree(tmp_path))
  assert contents.class_names == ['cat', 'dog']
  assert {split: len(pictures) for split, pictures in contents.splits.items()} == {'train': 12, 'validation': 4}
  assert labels(contents.splits['train'])['dog/3.jpg'] == 1
  assert all(picture.read() for picture in contents.splits['train'])


def test_the_photographs_as_a_tree(shared_data):
  contents = archives.folder_of_classes(shared_data / 'imagenette_subset')
  assert {split: len(pictures) for split, pictures in contents.splits.items()} == {'train': 2800, 'validation': 700}
  assert contents.class_names[0] == 'n01440764'


@pytest.mark.parametrize(
  ('missing', 'sentence'),
  [
    ('ILSVRC2012_img_train.tar', "holds no 'ILSVRC2012_img_train.tar'; download it there"),
    ('ILSVRC2012_img_val.tar', "holds no 'ILSVRC2012_img_val.tar'"),
    ('ILSVRC2012_devkit_t12.tar.gz', r"holds no 'ILSVRC2012_devkit\*'"),
  ],
)
def test_a_missing_download_is_named(tmp_path, missing, sentence):
  (miniature.ilsvrc2012(tmp_path) / missing).unlink()
  with pytest.raises(UsageError, match=sentence):
    archives.ilsvrc2012(tmp_path)


def test_an_unpacked_kit_is_not_taken_for_the_archive(tmp_path):
  (miniature.ilsvrc2012(tmp_path) / 'ILSVRC2012_devkit_t12').mkdir()
  assert archives.ilsvrc2012(tmp_path).class_names == miniature.NAMES
  (tmp_path / 'ILSVRC2012_img_train.tar').unlink()
  (tmp_path / 'ILSVRC2012_img_train.tar').mkdir()
  with pytest.raises(UsageError, match=r"holds no 'ILSVRC2012_img_train.tar'"):
    archives.ilsvrc2012(tmp_path)


@pytest.mark.parametrize('content', [b'', b'no table', b'MATLAB 5.0 MAT-file' + b'\xff' * 300])
def test_a_damaged_class_table_says_so(tmp_path, content, monkeypatch):
  miniature.ilsvrc2012(tmp_path)
  monkeypatch.setattr(archives._DevelopmentKit, '_open', lambda self: {'meta.mat': content})
  with pytest.raises(RunError, match=r'meta.mat of .*devkit_t12.tar.gz is damaged'):
    archives.ilsvrc2012(tmp_path)


def test_the_ground_truth_may_lie_beside_the_kit_and_is_missed_otherwise(tmp_path):
  (miniature.ilsvrc2010(tmp_path) / 'ILSVRC2010_test_ground_truth.txt').unlink()
  with pytest.raises(UsageError, match=r'ILSVRC2010_test_ground_truth.txt is neither in .*devkit.* nor beside it'):
    archives.ilsvrc2010(tmp_path)


def test_archives_of_another_year_are_noticed(tmp_path, downloads):
  folder = miniature.ilsvrc2012(tmp_path)
  kit = folder / 'ILSVRC2012_devkit_t12.tar.gz'
  whole = kit.read_bytes()
  kit.write_bytes((downloads['2010'] / 'ILSVRC2010_devkit-1.0.tar.gz').read_bytes())
  with pytest.raises(UsageError, match='is not the development kit of ILSVRC2012'):
    archives.ilsvrc2012(folder)
  kit.write_bytes(whole)

  validation = folder / 'ILSVRC2012_img_val.tar'
  whole = validation.read_bytes()
  other = {f'val/ILSVRC2010_val_{i:08d}.JPEG': miniature.picture(i) for i in range(1, 5)}
  validation.write_bytes(miniature.tar(other))
  with pytest.raises(UsageError, match=r'ILSVRC2010_val_00000001.JPEG where ILSVRC2012_val_00000001 should be'):
    archives.ilsvrc2012(folder)
  validation.write_bytes(miniature.tar(dict(list(other.items())[:3])))
  with pytest.raises(UsageError, match='holds 3 pictures and the ground truth has 4 labels'):
    archives.ilsvrc2012(folder)
  validation.write_bytes(whole)

  (folder / 'ILSVRC2012_img_train.tar').write_bytes(miniature.tar({'n09999999.tar': miniature.tar({})}))
  with pytest.raises(UsageError, match=r'holds n09999999.tar, which is no tar of a class; is it of another year'):
    archives.ilsvrc2012(folder)


@pytest.mark.parametrize('share', [0.05, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_archive_is_noticed_wherever_it_ends(tmp_path, share):
  train = miniature.ilsvrc2012(tmp_path) / 'ILSVRC2012_img_train.tar'
  whole = train.read_bytes().rstrip(b'\0')
  train.write_bytes(whole[: int(share * len(whole))])
  with pytest.raises(RunError, match=r'ILSVRC2012_img_train.tar (ends in the middle of|is damaged, cut short)'):
    archives.ilsvrc2012(tmp_path)


def test_a_damaged_header_is_noticed(tmp_path):
  train = miniature.ilsvrc2012(tmp_path) / 'ILSVRC2012_img_train.tar'
  content = bytearray(train.read_bytes())
  second = content.index(b'n01440764_1.JPEG')
  content[second : second + 200] = b'\xa5' * 200
  train.write_bytes(content)
  with pytest.raises(RunError, match='is damaged, cut short, unreadable or no plain tar'):
    archives.ilsvrc2012(tmp_path)


@pytest.mark.parametrize('content', [b'', b'no tar', b'\x1f\x8b\x08 compressed' * 100])
def test_what_is_no_tar_says_so(tmp_path, content):
  (miniature.ilsvrc2012(tmp_path) / 'ILSVRC2012_img_val.tar').write_bytes(content)
  with pytest.raises(RunError, match=r'ILSVRC2012_img_val.tar is damaged, cut short, unreadable or no plain tar'):
    archives.ilsvrc2012(tmp_path)
  (tmp_path / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(content)
  with pytest.raises(RunError, match=r'ILSVRC2012_devkit_t12.tar.gz is damaged or no archive'):
    archives.ilsvrc2012(tmp_path)


@pytest.mark.parametrize('name', ['../../etc/n.JPEG', '/etc/n.JPEG'])
def test_members_that_point_outside_are_refused(tmp_path, name):
  archive = tmp_path / 'fall.tar'
  archive.write_bytes(miniature.tar({'n01440764.tar': miniature.tar({name: miniature.picture(0)})}))
  with pytest.raises(UsageError, match='a link or a path that leads outside'):
    archives.synsets(archive)


def test_links_are_refused(tmp_path):
  archive = tmp_path / 'fall.tar'
  with tarfile.open(archive, 'w') as tar:
    link = tarfile.TarInfo('n01440764.tar')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    tar.addfile(link)
  with pytest.raises(UsageError, match='a link or a path that leads outside'):
    archives.synsets(archive)


def test_trees_that_are_none_say_so(tmp_path):
  folder = miniature.tree(tmp_path / 'tree')
  with pytest.raises(UsageError, match='is not a folder'):
    archives.folder_of_classes(folder / 'train' / 'cat' / '1.jpg')
  with pytest.raises(UsageError, match='has no folder train'):
    archives.folder_of_classes(folder / 'val')
  (folder / 'val' / 'cow').mkdir()
  with pytest.raises(UsageError, match=r'cow is a class that .*train does not have'):
    archives.folder_of_classes(folder)
  (folder / 'train' / 'cow').mkdir()
  with pytest.raises(UsageError, match=r'train/cow holds no picture'):
    archives.folder_of_classes(folder)
  (folder / 'train' / 'cow' / 'calf').mkdir()
  with pytest.raises(UsageError, match='calf is a folder or a link to nothing'):
    archives.folder_of_classes(folder)
  (folder / 'train' / 'cow' / 'calf').rmdir()
  (folder / 'train' / 'cow' / 'lost.jpg').symlink_to('nowhere')
  with pytest.raises(UsageError, match=r'lost.jpg is a folder or a link to nothing'):
    archives.folder_of_classes(folder)
  (folder / 'train' / 'cow').rename(folder / 'train' / 'co\nw')
  with pytest.raises(UsageError, match='a name with a line break'):
    archives.folder_of_classes(folder)
  (folder / 'validation').mkdir()
  with pytest.raises(UsageError, match='has val and validation'):
    archives.folder_of_classes(folder)
  (tmp_path / 'bare' / 'train').mkdir(parents=True)
  with pytest.raises(UsageError, match='holds no folder of pictures'):
    archives.folder_of_classes(tmp_path / 'bare')
