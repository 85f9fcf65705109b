"""What is in the archives of ImageNet as they are downloaded, found without unpacking them.

An archive is read once, header by header, to learn where each picture lies; pictures are then read from there, in any
order and by any number of processes. Archives that are compressed as a whole cannot be read like that and are refused
(the official ones hold JPEGs and are not).
"""

import io
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.io
import tqdm
from scipy.io.matlab import MatReadError

from alexnet_jax.runtime.errors import RunError, UsageError


class Picture(NamedTuple):
  """Where the file of one example lies.

  Attributes:
    key: its name, unique in its split.
    label: class, or -1 where none is known.
    path: of the archive, or of the file itself.
    offset: first byte there.
    size: bytes.
  """

  key: str
  label: int
  path: str
  offset: int
  size: int

  def read(self) -> bytes:
    """Reads the file.

    Raises:
      OSError: if it cannot be read.
    """
    with open(self.path, 'rb') as file:
      file.seek(self.offset)
      return file.read(self.size)

  def __str__(self) -> str:
    return self.path if self.path.endswith(self.key) else f'{self.key} in {self.path}'


class Contents(NamedTuple):
  """What a dataset is made from.

  Attributes:
    splits: pictures by split.
    class_names: in the order of the labels; for ImageNet the WordNet id and its words, 'n01440764 tench, Tinca tinca'.
    ilsvrc_ids: in the order of the labels, the numbers of the classes in submissions and ground truth; or none.
    expected: how many pictures the official archives hold, by split; empty where nobody knows.
  """

  splits: dict[str, list[Picture]]
  class_names: list[str]
  ilsvrc_ids: list[int]
  expected: dict[str, int]


def ilsvrc2012(folder: pathlib.Path, seed: int = 0) -> Contents:
  """Finds the pictures of ILSVRC-2012 in the folder of its downloads.

  These are ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz and, if it is there, the test
  archive, whose labels were never released.

  Args:
    folder: that holds them.
    seed: not used.

  Raises:
    UsageError: if one is missing or of another year.
    RunError: if one is damaged.
  """
  del seed
  kit = _DevelopmentKit(_find(folder, 'ILSVRC2012_devkit*'), 'ILSVRC2012')
  tests = sorted(folder.glob('ILSVRC2012_img_test*.tar'))
  splits = {
    'train': _tar_of_tars(_find(folder, 'ILSVRC2012_img_train.tar'), kit.label_of_synset),
    'validation': _numbered(_find(folder, 'ILSVRC2012_img_val.tar'), 'ILSVRC2012_val', kit.ground_truth('validation')),
  }
  if tests:
    splits['test'] = _numbered(tests[0], 'ILSVRC2012_test', None)
  expected = {'train': 1_281_167, 'validation': 50_000, 'test': 100_000}
  return Contents(splits, kit.class_names, kit.ilsvrc_ids, expected)


def ilsvrc2010(folder: pathlib.Path, seed: int = 0) -> Contents:
  """Finds the pictures of ILSVRC-2010, whose test labels are known, in the folder of its downloads.

  These are ILSVRC2010_images_train.tar, _val.tar and _test.tar, the development kit, ILSVRC2010_test_ground_truth.txt,
  and, if it is there, patch_images.tar, whose pictures replace those of the same name.

  Args:
    folder: that holds them.
    seed: not used.

  Raises:
    UsageError: if one is missing or of another year.
    RunError: if one is damaged.
  """
  del seed
  kit = _DevelopmentKit(_find(folder, '*devkit-1.0*'), 'ILSVRC2010')
  splits = {
    'train': _tar_of_tars(_find(folder, 'ILSVRC2010_images_train.tar'), kit.label_of_synset),
    'validation': _numbered(
      _find(folder, 'ILSVRC2010_images_val.tar'), 'ILSVRC2010_val', kit.ground_truth('validation')
    ),
    'test': _numbered(_find(folder, 'ILSVRC2010_images_test.tar'), 'ILSVRC2010_test', kit.ground_truth('test')),
  }
  if (patch := folder / 'patch_images.tar').exists():
    patched = {pathlib.PurePath(name).name: place for name, *place in _tar(patch)}
    for name, pictures in splits.items():
      splits[name] = [
        p._replace(path=str(patch), offset=patched[p.key][0], size=patched[p.key][1]) if p.key in patched else p
        for p in pictures
      ]
  return Contents(splits, kit.class_names, kit.ilsvrc_ids, {'train': 1_261_406, 'validation': 50_000, 'test': 150_000})


def synsets(archive: pathlib.Path, seed: int = 0) -> Contents:
  """Finds the pictures in a tar of one tar a synset, such as ImageNet's releases of Fall 2009 and Fall 2011.

  They have no held-out part: as in section 6 of the paper one half, drawn at random, is for training and the other for
  testing.

  Args:
    archive: the tar.
    seed: of the draw.

  Raises:
    UsageError: if it is not there.
    RunError: if it is damaged.
  """
  if not archive.is_file():
    raise UsageError(f'{archive} is not a file; name the tar that holds one tar for each synset.')
  names = sorted(pathlib.PurePath(name).stem for name, _, _ in _tar(archive))
  pictures = _tar_of_tars(archive, {name: label for label, name in enumerate(names)})
  pictures.sort()
  order = np.random.default_rng(seed).permutation(len(pictures))
  half = (len(pictures) + 1) // 2
  splits = {'train': order[:half], 'test': order[half:]}
  return Contents({name: [pictures[i] for i in sorted(chosen)] for name, chosen in splits.items()}, names, [], {})


def folder_of_classes(folder: pathlib.Path, seed: int = 0) -> Contents:
  """Finds the pictures in a tree split/class/picture; 'val' is called validation.

  Args:
    folder: the tree. Files and folders whose names begin with a dot do not count.
    seed: not used.

  Raises:
    UsageError: if there is no such tree, a class without pictures, or one that was not in training.
  """
  del seed
  splits = {('validation' if path.name == 'val' else path.name): path for path in _inside(folder) if path.is_dir()}
  if (folder / 'val').is_dir() and (folder / 'validation').is_dir():
    raise UsageError(f'{folder} has val and validation, which are one split; put them together.')
  if 'train' not in splits:
    raise UsageError(f'{folder} has no folder train; what is wanted is {folder}/train/CLASS/PICTURE, and val or test.')
  class_names = [path.name for path in _inside(splits['train']) if path.is_dir()]
  labels = {name: label for label, name in enumerate(class_names)}
  found = {}
  for split, root in splits.items():
    found[split] = []
    for class_folder in (path for path in _inside(root) if path.is_dir()):
      if class_folder.name not in labels:
        raise UsageError(f'{class_folder} is a class that {splits["train"]} does not have; move or rename one of them.')
      files = list(_inside(class_folder))
      if strange := [path for path in files if not path.is_file()]:
        raise UsageError(f'{strange[0]} is a folder or a link to nothing; a folder of a class is for pictures alone.')
      if not files:
        raise UsageError(f'{class_folder} holds no picture; put some there, or remove the folder.')
      found[split] += [
        Picture(f'{path.parent.name}/{path.name}', labels[path.parent.name], str(path), 0, path.stat().st_size)
        for path in files
      ]
    if not found[split]:
      raise UsageError(f'{root} holds no folder of pictures; what is wanted is {root}/CLASS/PICTURE.')
  return Contents(found, class_names, [], {})


LAYOUTS: dict[str, Callable[[pathlib.Path, int], Contents]] = {
  '2012': ilsvrc2012,
  '2010': ilsvrc2010,
  'synsets': synsets,
  'folder': folder_of_classes,
}


class _DevelopmentKit:
  """What the kit of a challenge says of its classes; labels are the ranks of the WordNet ids."""

  def __init__(self, path: pathlib.Path, challenge: str):
    self._path, self._challenge = path, challenge
    self._files = self._open()
    try:
      table = np.atleast_1d(scipy.io.loadmat(io.BytesIO(self._file('meta.mat')), squeeze_me=True)['synsets'])
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError, MatReadError) as error:
      raise RunError(f'meta.mat of {path} is damaged ({error}); download it again.') from error
    try:
      rows = [row for row in table if row['num_children'] == 0]
      rows.sort(key=lambda row: row['WNID'])
      self.ilsvrc_ids = [int(row[f'{challenge}_ID']) for row in rows]
    except (KeyError, ValueError, IndexError) as error:
      raise UsageError(f'{path} is not the development kit of {challenge}; put that one into {path.parent}.') from error
    self.class_names = [f'{row["WNID"]} {row["words"]}' for row in rows]
    self.label_of_synset = {str(row['WNID']): label for label, row in enumerate(rows)}

  def _open(self):
    try:
      with tarfile.open(self._path, 'r:*') as tar:  # a few hundred kilobytes, compressed
        return {pathlib.PurePath(member.name).name: tar.extractfile(member).read() for member in tar if member.isreg()}
    except (tarfile.TarError, OSError, EOFError) as error:
      raise RunError(f'{self._path} is damaged or no archive ({error}); download it again.') from error

  def _file(self, name):
    beside = self._path.parent / name
    if name not in self._files and not beside.is_file():
      raise UsageError(f'{name} is neither in {self._path} nor beside it; put it into {self._path.parent}.')
    return self._files[name] if name in self._files else beside.read_bytes()

  def ground_truth(self, split):
    """Returns the labels of a split in the order of its pictures' numbers."""
    label_of_id = {ilsvrc_id: label for label, ilsvrc_id in enumerate(self.ilsvrc_ids)}
    name = f'{self._challenge}_{split}_ground_truth.txt'
    try:
      return [label_of_id[int(line)] for line in self._file(name).split()]
    except (ValueError, KeyError) as error:
      raise UsageError(
        f'{name} names the class {error}, which {self._path} does not have; download both again.'
      ) from error


def _find(folder, pattern):
  found = sorted(path for path in folder.glob(pattern) if path.is_file())
  if not found:
    raise UsageError(f"{folder} holds no '{pattern}'; download it there, or name the folder that has it.")
  return found[0]


def _inside(folder):
  if not folder.is_dir():
    raise UsageError(f'{folder} is not a folder; name the one that holds train/CLASS/PICTURE.')
  return sorted(path for path in folder.iterdir() if not _check_name(path.name, folder).startswith('.'))


def _check_name(name, place):
  """Passes a name on, unless a record or a list of names could not hold it."""
  if not name.isprintable():
    raise UsageError(f'{place} holds {name!r}, a name with a line break or no text at all; rename it.')
  return name


def _tar_of_tars(path, labels):
  """Lists the pictures of a tar that holds one tar for each class, named by it."""
  pictures = []
  with tqdm.tqdm(total=os.path.getsize(path), desc=path.name, unit='B', unit_scale=True, leave=False) as bar:
    for name, offset, size in _tar(path):
      synset = pathlib.PurePath(name).stem
      if not name.endswith('.tar') or synset not in labels:
        raise UsageError(
          f'{path} holds {name}, which is no tar of a class; is it of another year, or not this archive?'
        )
      for inner, place, length in _tar(path, offset, size):
        pictures.append(Picture(pathlib.PurePath(inner).name, labels[synset], str(path), place, length))
      bar.update(offset + size - bar.n)
  return pictures


def _numbered(path, prefix, labels):
  """Lists the pictures of a tar that are numbered from 1: prefix_00000001.JPEG and so on."""
  places = sorted((pathlib.PurePath(name).name, offset, size) for name, offset, size in _tar(path))
  if labels is None:
    labels = [-1] * len(places)
  if len(places) != len(labels):
    raise UsageError(
      f'{path} holds {len(places):,} pictures and the ground truth has {len(labels):,} labels; '
      'is one of them of another year, or not whole?'
    )
  for number, (name, _, _) in enumerate(places, 1):
    if pathlib.PurePath(name).stem != (expected := f'{prefix}_{number:08d}'):
      raise UsageError(f'{path} holds {name} where {expected} should be; is it of another year, or not whole?')
  return [
    Picture(name, label, str(path), offset, size) for (name, offset, size), label in zip(places, labels, strict=True)
  ]


def _tar(path: pathlib.Path, start: int = 0, length: int | None = None) -> Iterator[tuple[str, int, int]]:
  """Lists the files of a tar, or of one that lies inside another, as (name, offset in the file, size).

  Raises:
    RunError: if it is damaged or ends too soon.
    UsageError: if it is compressed, or holds what such an archive does not.
  """
  try:
    with open(path, 'rb') as file:
      end = os.path.getsize(path) if length is None else start + length
      file.seek(start)
      tar = tarfile.TarFile(fileobj=file)
      while (member := tar.next()) is not None:
        tar.members.clear()  # or a million of them would stay in memory
        name = _check_name(member.name, path)
        outside = os.path.isabs(name) or '..' in pathlib.PurePath(name).parts
        if outside or not (member.isreg() or member.isdir()):
          raise UsageError(f"{path} holds '{name}', a link or a path that leads outside; such an archive is not used.")
        if member.offset_data + member.size > end:
          raise RunError(f'{path} ends in the middle of {name}; download it again.')
        if member.isreg():
          yield name, member.offset_data, member.size
      file.seek(tar.offset)
      if tar.offset + tarfile.BLOCKSIZE > end or file.read(tarfile.BLOCKSIZE).strip(b'\0'):
        raise tarfile.ReadError('no end mark')
  except (tarfile.TarError, OSError, EOFError) as error:
    inside = f' in the part that begins at byte {start:,}' if start else ''
    raise RunError(
      f'{path} is damaged, cut short, unreadable or no plain tar{inside} ({error}); download it again.'
    ) from error
