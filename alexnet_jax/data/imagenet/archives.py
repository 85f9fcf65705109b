"""Indexes ImageNet's archives as they are downloaded, without unpacking them.

An archive is scanned once, header by header, to find the offset of every image. The images can then be read in any
order and by any number of processes. Archives that are compressed as a whole do not allow this and are rejected; the
official archives contain JPEGs and are not compressed.
"""

import concurrent.futures
import errno
import gzip
import io
import multiprocessing
import os
import pathlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.io
import tqdm

from alexnet_jax.runtime.errors import RunError, UsageError, first_line

MAX_IMAGE_BYTES = 2**26  # of an image in a zip archive
MAX_KIT_BYTES = 2**26  # of an unpacked development kit; the real ones have a few hundred kilobytes
ZIP_SIGNATURE = b'PK\x03\x04'
GZIP_SIGNATURE = b'\x1f\x8b'
ZIP_HEADER = struct.Struct('<4s22xHH')  # of a file: signature, ..., lengths of the name and of the extra field


class ArchivedImage(NamedTuple):
  """The location of an encoded image: part of an archive, or a separate file.

  Attributes:
    key: name of the image, unique in its split.
    label: class, or -1 if it is unknown.
    path: archive, or image file.
    offset: position of the first byte in `path`.
    size: number of bytes.
    is_deflated: whether these bytes are compressed, as in most zip archives.
  """

  key: str
  label: int
  path: str
  offset: int
  size: int
  is_deflated: bool = False

  def read(self) -> bytes:
    """Reads the encoded image; raises `OSError` if the file cannot be read or decompressed."""
    with open(self.path, 'rb') as file:
      file.seek(self.offset)
      content = file.read(self.size)
    if not self.is_deflated:
      return content
    try:
      return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, MAX_IMAGE_BYTES)
    except zlib.error as error:
      raise OSError(errno.EIO, 'its compressed data is damaged') from error

  def __str__(self) -> str:
    return self.path if self.path.endswith(self.key) else f'{self.key} in {self.path}'


class Contents(NamedTuple):
  """The images and classes of a source.

  Attributes:
    splits: images by split.
    class_names: class names by label; for ImageNet WordNet id and words, such as 'n01440764 tench, Tinca tinca'.
    ilsvrc_ids: class ids in submissions and ground truth, by label; empty if the source defines none.
  """

  splits: dict[str, list[ArchivedImage]]
  class_names: list[str]
  ilsvrc_ids: list[int]


def index_ilsvrc2012(folder: pathlib.Path) -> Contents:
  """Indexes the archives of ILSVRC-2012.

  Args:
    folder: contains ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz and, optionally, the
      test archive, whose labels were never released.

  Raises:
    UsageError: if an archive is missing or belongs to another year.
    RunError: if an archive is damaged.
  """
  kit = _DevelopmentKit(_find_download(folder, 'ILSVRC2012_devkit*'), 'ILSVRC2012')
  splits = {
    'train': _index_nested_tars(_find_download(folder, 'ILSVRC2012_img_train.tar'), kit.label_of_synset),
    'validation': _index_numbered_images(
      _find_download(folder, 'ILSVRC2012_img_val.tar'), 'ILSVRC2012_val', kit.read_ground_truth('validation')
    ),
  }
  if test_archives := sorted(folder.glob('ILSVRC2012_img_test*.tar')):
    splits['test'] = _index_numbered_images(test_archives[0], 'ILSVRC2012_test', None)
  return Contents(splits, kit.class_names, kit.ilsvrc_ids)


def index_ilsvrc2010(folder: pathlib.Path) -> Contents:
  """Indexes the archives of ILSVRC-2010, whose test labels are public.

  Args:
    folder: contains ILSVRC2010_images_train.tar, _val.tar and _test.tar, the development kit,
      ILSVRC2010_test_ground_truth.txt and, optionally, patch_images.tar, whose images replace those of the same name.

  Raises:
    UsageError: if an archive is missing or belongs to another year.
    RunError: if an archive is damaged.
  """
  kit = _DevelopmentKit(_find_download(folder, '*devkit-1.0*'), 'ILSVRC2010')
  splits = {
    'train': _index_nested_tars(_find_download(folder, 'ILSVRC2010_images_train.tar'), kit.label_of_synset),
    'validation': _index_numbered_images(
      _find_download(folder, 'ILSVRC2010_images_val.tar'), 'ILSVRC2010_val', kit.read_ground_truth('validation')
    ),
    'test': _index_numbered_images(
      _find_download(folder, 'ILSVRC2010_images_test.tar'), 'ILSVRC2010_test', kit.read_ground_truth('test')
    ),
  }
  if (patch := folder / 'patch_images.tar').exists():
    patches = {
      pathlib.PurePath(name).name: {'path': str(patch), 'offset': offset, 'size': size}
      for name, offset, size in _list_tar(patch)
    }
    splits = {
      split: [image._replace(**patches.get(image.key, {})) for image in images] for split, images in splits.items()
    }
  return Contents(splits, kit.class_names, kit.ilsvrc_ids)


def index_synsets(archive: pathlib.Path, seed: int = 0) -> Contents:
  """Indexes a tar of one tar per synset, such as ImageNet's releases of Fall 2009 and Fall 2011.

  These releases have no test set. A random half of the images is used for training and the other half for testing, as
  in section 6 of the paper for Fall 2009. The paper pre-trains on all images of Fall 2011.

  Args:
    archive: the tar.
    seed: seed of the random split.

  Raises:
    UsageError: if the archive does not exist.
    RunError: if the archive is damaged.
  """
  if not archive.is_file():
    raise UsageError(f'{archive} is not a file; SOURCE must be a tar that contains one tar per synset.')
  class_names = sorted(pathlib.PurePath(name).stem for name, _, _ in _list_tar(archive))
  images = sorted(_index_nested_tars(archive, {name: label for label, name in enumerate(class_names)}))
  order = np.random.default_rng(seed).permutation(len(images))
  half = (len(images) + 1) // 2
  splits = {
    split: [images[index] for index in sorted(indices)]
    for split, indices in (('train', order[:half]), ('test', order[half:]))
  }
  return Contents(splits, class_names, [])


def index_class_folders(folder: pathlib.Path) -> Contents:
  """Indexes a folder tree SPLIT/CLASS/IMAGE.

  Args:
    folder: the tree, with `train` and optionally `val` (or `validation`) and `test`. Hidden files and folders are
      ignored.

  Raises:
    UsageError: if the tree has another layout, or a class has no images or does not occur in `train`.
  """
  split_folders = {('validation' if path.name == 'val' else path.name): path for path in _list_subfolders(folder)}
  if (folder / 'val').is_dir() and (folder / 'validation').is_dir():
    raise UsageError(f'{folder} contains both val and validation, which are the same split; merge them.')
  if unknown := [path for name, path in split_folders.items() if not re.fullmatch(r'\w+', name)]:
    raise UsageError(
      f'{unknown[0]} is no name of a split, which consists of letters, digits and underscores; rename or move it.'
    )
  if 'train' not in split_folders:
    raise UsageError(
      f'{folder} contains no folder train; the expected layout is {folder}/train/CLASS/IMAGE, plus val or test.'
    )
  class_names = [path.name for path in _list_subfolders(split_folders['train'])]
  splits: dict[str, list[ArchivedImage]] = {}
  for split, split_folder in split_folders.items():
    splits[split] = []
    for class_folder in _list_subfolders(split_folder):
      if class_folder.name not in class_names:
        raise UsageError(
          f'{class_folder} is a class that {split_folders["train"]} does not contain; move or rename one of them.'
        )
      splits[split] += _index_class_folder(class_folder, class_names.index(class_folder.name))
    if not splits[split]:
      raise UsageError(f'{split_folder} contains no class folders; the expected layout is {split_folder}/CLASS/IMAGE.')
  return Contents(splits, class_names, [])


def index_tiny_imagenet(source: pathlib.Path) -> Contents:
  """Indexes Tiny-ImageNet-200: 64 x 64 pixels, 500 training and 50 validation images of each of 200 classes.

  The test images, whose labels were never released, are included if they are there.

  Args:
    source: tiny-imagenet-200.zip, or its unpacked folder tiny-imagenet-200.

  Raises:
    UsageError: if the source has another layout.
    RunError: if the zip archive is damaged.
  """
  files = _list_zip(source) if source.is_file() else _list_folder(source)

  def read_lines(name):
    if name not in files:
      raise UsageError(f'{source} contains no {name}; SOURCE must be tiny-imagenet-200.zip or its unpacked folder.')
    try:
      return files[name].read().decode(errors='replace').splitlines()
    except OSError as error:
      raise RunError(f'{files[name]} cannot be read ({error.strerror}); download it again.') from error

  words = dict(line.split('\t', 1) for line in read_lines('words.txt') if '\t' in line)
  wnids = sorted(line for line in read_lines('wnids.txt') if line)
  label_of_wnid = {wnid: label for label, wnid in enumerate(wnids)}
  label_of_file = {  # rows of val_annotations.txt: file, WordNet id, box
    row[0]: label_of_wnid.get(row[1], -1)
    for line in read_lines('val/val_annotations.txt')
    if len(row := line.split('\t')) > 1
  }
  splits: dict[str, list[ArchivedImage]] = {'train': [], 'validation': [], 'test': []}
  for name, file in sorted(files.items()):
    match pathlib.PurePosixPath(name).parts:
      case ('train', wnid, 'images', key) if wnid in label_of_wnid:
        splits['train'].append(file._replace(key=key, label=label_of_wnid[wnid]))
      case ('val', 'images', key):
        if label_of_file.get(key, -1) < 0:
          raise UsageError(f'val/val_annotations.txt of {source} gives no known class for {key}; download it again.')
        splits['validation'].append(file._replace(key=key, label=label_of_file[key]))
      case ('test', 'images', key):
        splits['test'].append(file._replace(key=key))
  if not splits['test']:
    del splits['test']
  class_names = [f'{wnid} {words[wnid]}' if wnid in words else wnid for wnid in wnids]
  return Contents(splits, class_names, [])


# Each takes the source and the seed of random splits.
LAYOUTS: dict[str, Callable[[pathlib.Path, int], Contents]] = {
  '2012': lambda folder, _: index_ilsvrc2012(folder),
  '2010': lambda folder, _: index_ilsvrc2010(folder),
  'synsets': index_synsets,
  'folder': lambda folder, _: index_class_folders(folder),
  'tiny_imagenet': lambda source, _: index_tiny_imagenet(source),
}
# Number of images in the official archives, by layout and split.
OFFICIAL_COUNTS = {
  '2012': {'train': 1_281_167, 'validation': 50_000, 'test': 100_000},
  '2010': {'train': 1_261_406, 'validation': 50_000, 'test': 150_000},
  'tiny_imagenet': {'train': 100_000, 'validation': 10_000, 'test': 10_000},
}


def _matlab_reader():
  """Returns a process for scipy, which some damaged files crash."""
  return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))


class _DevelopmentKit:
  """Classes and ground truth of a challenge; a class's label is the rank of its WordNet id."""

  def __init__(self, path: pathlib.Path, challenge: str):
    self._path, self._challenge = path, challenge
    self._members = self._read_members()
    content = self._read('meta.mat')
    try:
      with _matlab_reader() as process:
        file = process.submit(scipy.io.loadmat, io.BytesIO(content), squeeze_me=True).result()
      table = np.atleast_1d(file['synsets'])
    except Exception as error:  # on damaged files scipy raises errors of many types, or crashes
      raise RunError(f'meta.mat of {path} is damaged ({first_line(error)}); download it again.') from error
    try:
      rows = [row for row in table if row['num_children'] == 0]
      rows.sort(key=lambda row: row['WNID'])
      self.ilsvrc_ids = [int(row[f'{challenge}_ID']) for row in rows]
      self.class_names = [f'{row["WNID"]} {row["words"]}' for row in rows]
      self.label_of_synset = {str(row['WNID']): label for label, row in enumerate(rows)}
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
      raise UsageError(f'{path} is not the development kit of {challenge}; put that kit into {path.parent}.') from error

  def read_ground_truth(self, split):
    """Returns the labels of a split in the order of its image numbers."""
    label_of_id = {ilsvrc_id: label for label, ilsvrc_id in enumerate(self.ilsvrc_ids)}
    name = f'{self._challenge}_{split}_ground_truth.txt'
    try:
      return [label_of_id[int(line)] for line in self._read(name).split()]
    except (ValueError, KeyError) as error:
      raise UsageError(
        f'{name} contains the class {error}, which {self._path} does not define; download both again.'
      ) from error

  def _read_members(self):
    try:
      with open(self._path, 'rb') as archive:
        is_compressed = archive.read(2) == GZIP_SIGNATURE
      with gzip.open(self._path) if is_compressed else open(self._path, 'rb') as unpacked:
        content = unpacked.read(MAX_KIT_BYTES + 1)
      if len(content) > MAX_KIT_BYTES:
        raise OSError(f'it is larger than {MAX_KIT_BYTES:,} bytes')
      with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as tar:
        return {
          pathlib.PurePath(member.name).name: file.read()
          for member in tar
          if member.isreg() and not member.issparse() and (file := tar.extractfile(member))
        }
    except (tarfile.TarError, zlib.error, ValueError, OSError, EOFError, OverflowError) as error:
      raise RunError(f'{self._path} is damaged or not an archive ({first_line(error)}); download it again.') from error

  def _read(self, name):
    if name in self._members:
      return self._members[name]
    path = self._path.parent / name
    if not path.is_file():
      raise UsageError(f'{name} is neither in {self._path} nor next to it; put it into {self._path.parent}.')
    return path.read_bytes()


def _find_download(folder, pattern):
  paths = sorted(path for path in folder.glob(pattern) if path.is_file())
  if not paths:
    raise UsageError(f"{folder} contains no '{pattern}'; download it there, or name the folder that contains it.")
  return paths[0]


def _list_subfolders(folder):
  return [path for path in _list_visible(folder) if path.is_dir()]


def _list_visible(folder):
  if not folder.is_dir():
    raise UsageError(f'{folder} is not a folder; SOURCE must be a folder that contains train/CLASS/IMAGE.')
  return sorted(path for path in folder.iterdir() if not _check_name(path.name, folder).startswith('.'))


def _check_name(name, container):
  """Returns the name unchanged; raises `UsageError` if it cannot be written to a record or a list of names."""
  if not name.isprintable():
    raise UsageError(f'{container} contains {name!r}, a name with line breaks or unprintable characters; rename it.')
  return name


def _index_class_folder(folder, label):
  files = list(_list_visible(folder))
  if others := [path for path in files if not path.is_file()]:
    raise UsageError(f'{others[0]} is a folder or a broken link; a class folder may contain only image files.')
  if not files:
    raise UsageError(f'{folder} contains no image; add images, or remove the folder.')
  return [ArchivedImage(f'{folder.name}/{path.name}', label, str(path), 0, path.stat().st_size) for path in files]


def _index_nested_tars(path, label_of_synset):
  """Lists the images of a tar that contains one tar per class, named after the class."""
  images = []
  with tqdm.tqdm(total=os.path.getsize(path), desc=path.name, unit='B', unit_scale=True, leave=False) as bar:
    for class_tar, start, length in _list_tar(path):
      synset = pathlib.PurePath(class_tar).stem
      if not class_tar.endswith('.tar') or synset not in label_of_synset:
        raise UsageError(
          f'{path} contains {class_tar}, which is not the tar of a class; is this another archive, or another year?'
        )
      for name, offset, size in _list_tar(path, start, length):
        images.append(ArchivedImage(pathlib.PurePath(name).name, label_of_synset[synset], str(path), offset, size))
      bar.update(start + length - bar.n)
  return images


def _index_numbered_images(path, prefix, labels):
  """Lists the images of a tar that are numbered from 1: prefix_00000001.JPEG and so on; without labels, all have -1."""
  files = sorted((pathlib.PurePath(name).name, offset, size) for name, offset, size in _list_tar(path))
  if labels is None:
    labels = [-1] * len(files)
  if len(files) != len(labels):
    raise UsageError(
      f'{path} contains {len(files):,} images, but the ground truth has {len(labels):,} labels; is one of them '
      'incomplete, or from another year?'
    )
  for number, (name, _, _) in enumerate(files, 1):
    if pathlib.PurePath(name).stem != (expected := f'{prefix}_{number:08d}'):
      raise UsageError(f'{path} contains {name} instead of {expected}; is it incomplete, or from another year?')
  return [
    ArchivedImage(name, label, str(path), offset, size)
    for (name, offset, size), label in zip(files, labels, strict=True)
  ]


def _list_folder(folder):
  """Returns the files of a folder with the label -1, by their names relative to it."""
  files = {}
  for path in folder.rglob('*'):
    name = _check_name(path.relative_to(folder).as_posix(), folder)
    if path.is_file() and not any(part.startswith('.') for part in pathlib.PurePath(name).parts):
      files[name] = ArchivedImage(name, -1, str(path), 0, path.stat().st_size)
  return files


def _list_zip(path):
  """Returns the files of a zip archive with the label -1, by their names without the folder that contains all."""
  files = {}
  try:
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
      for member in archive.infolist():
        name = _check_name(member.filename, path).partition('/')[2]
        if member.is_dir() or not name:
          continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
          raise UsageError(f'{path} contains {member.filename}, which is encrypted or compressed otherwise; unpack it.')
        file.seek(member.header_offset)
        signature, name_length, extra_length = ZIP_HEADER.unpack(file.read(ZIP_HEADER.size))
        if signature != ZIP_SIGNATURE:
          raise zipfile.BadZipFile(f'the header of {member.filename} is missing')
        offset = member.header_offset + ZIP_HEADER.size + name_length + extra_length
        if offset + member.compress_size > path.stat().st_size:
          raise zipfile.BadZipFile(f'it ends in the middle of {name}')
        is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
        files[name] = ArchivedImage(name, -1, str(path), offset, member.compress_size, is_deflated)
  except (zipfile.BadZipFile, struct.error, OSError) as error:
    raise RunError(f'{path} is damaged or no zip archive ({error}); download it again.') from error
  return files


def _list_tar(path: pathlib.Path, start: int = 0, length: int | None = None) -> Iterator[tuple[str, int, int]]:
  """Lists the files of a tar.

  Args:
    path: the tar, or the tar that contains it.
    start: position of the first byte of the tar in `path`.
    length: number of bytes of the tar; by default it ends with `path`.

  Yields:
    Name, offset in `path` and size in bytes of each file.

  Raises:
    RunError: if the tar is damaged, truncated or compressed.
    UsageError: if it contains links, or paths outside the archive.
  """
  try:
    with open(path, 'rb') as file:
      end = os.path.getsize(path) if length is None else start + length
      file.seek(start)
      tar = tarfile.TarFile(fileobj=file)
      while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # TarFile would hold a million of them in memory
        name = _check_name(member.name, path)
        is_outside = os.path.isabs(name) or '..' in pathlib.PurePath(name).parts
        if is_outside or not (member.isreg() or member.isdir()):
          raise UsageError(f"{path} contains '{name}', a link or a path outside the archive, which is not supported.")
        if member.offset_data + member.size > end:
          raise RunError(f'{path} ends in the middle of {name}; download it again.')
        if member.isreg():
          yield name, member.offset_data, member.size
      file.seek(tar.offset)
      if tar.offset + tarfile.BLOCKSIZE > end or file.read(tarfile.BLOCKSIZE).strip(b'\0'):
        raise tarfile.ReadError('the end-of-archive marker is missing')
  except (tarfile.TarError, OSError, EOFError) as error:
    part = f', in the tar that starts at byte {start:,}' if start else ''
    raise RunError(
      f'{path} is damaged, truncated, unreadable or not an uncompressed tar ({error}{part}); download it again.'
    ) from error
