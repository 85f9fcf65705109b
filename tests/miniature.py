"""Small versions of ImageNet's archives, which contain a few undecodable files."""

import io
import pathlib
import tarfile

import numpy as np
import PIL.Image
import scipy.io

# ILSVRC id, WordNet id, words. As in the real kits, the two kinds of ids are in different orders.
SYNSETS = [
  (1, 'n02119789', 'kit fox, Vulpes macrotis'),
  (2, 'n01440764', 'tench, Tinca tinca'),
  (3, 'n02100735', 'setter'),
]
CLASS_NAMES = ['n01440764 tench, Tinca tinca', 'n02100735 setter', 'n02119789 kit fox, Vulpes macrotis']
UNDECODABLE = {'cut.JPEG': 'truncated', 'text.JPEG': 'not an image'}  # name: reason in the report


def make_image(seed: int, file_format: str = 'JPEG') -> bytes:
  """Encodes a smooth random image of random size."""
  rng = np.random.default_rng(seed)
  small = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
  height, width = rng.integers(60, 400, 2)
  file = io.BytesIO()
  small.resize((int(width), int(height)), PIL.Image.Resampling.BICUBIC).save(file, file_format)
  return file.getvalue()


def make_tar(members: dict[str, bytes], mode: str = 'w') -> bytes:
  """Makes a tar of files; the mode of `tarfile.open` selects the compression."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def make_synset_tars(per_class: int, has_undecodable: bool = True) -> dict[str, bytes]:
  """Makes a tar of JPEGs for each synset; the first also contains a PNG named .JPEG and the undecodable files."""
  tars = {}
  for rank, (_, wnid, _) in enumerate(SYNSETS):
    members = {f'{wnid}_{i}.JPEG': make_image(1000 * rank + i) for i in range(per_class)}
    if rank == 0:
      members[f'{wnid}_png.JPEG'] = make_image(7, 'PNG')
      if has_undecodable:
        members[f'{wnid}_cut.JPEG'] = make_image(8)[:700]
        members[f'{wnid}_text.JPEG'] = b'not a picture at all'
    tars[f'{wnid}.tar'] = make_tar(members)
  return tars


def make_development_kit(challenge: str, ground_truth: dict[str, list[int]]) -> bytes:
  """Makes the kit of a challenge, with an inner node of the WordNet hierarchy, as in the real kits."""
  rows = [(i, wnid, words, 0) for i, wnid, words in SYNSETS] + [(4, 'n00001740', 'entity', 3)]
  dtype = [(f'{challenge}_ID', object), ('WNID', object), ('words', object), ('num_children', object)]
  meta = io.BytesIO()
  scipy.io.savemat(meta, {'synsets': np.array(rows, dtype=dtype)})
  members = {'kit/data/meta.mat': meta.getvalue()}
  for split, labels in ground_truth.items():
    text = ''.join(f'{label}\n' for label in labels)
    members[f'kit/data/{challenge}_{split}_ground_truth.txt'] = text.encode()
  return make_tar(members, 'w:gz')


def write_ilsvrc2012(folder: pathlib.Path, per_class: int = 5, has_undecodable: bool = True) -> pathlib.Path:
  """Writes the archives of ILSVRC-2012: 3 classes, 4 validation and 2 test images. Returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'ILSVRC2012_img_train.tar').write_bytes(make_tar(make_synset_tars(per_class, has_undecodable)))
  for split, count in (('val', 4), ('test', 2)):
    members = {f'ILSVRC2012_{split}_{i:08d}.JPEG': make_image(5000 + i) for i in range(count, 0, -1)}
    (folder / f'ILSVRC2012_img_{split}.tar').write_bytes(make_tar(members))
  kit = make_development_kit('ILSVRC2012', {'validation': [3, 1, 2, 1]})
  (folder / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(kit)
  return folder


def write_ilsvrc2010(folder: pathlib.Path) -> pathlib.Path:
  """Writes the archives of ILSVRC-2010, with a patch of one image. Returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'ILSVRC2010_images_train.tar').write_bytes(make_tar(make_synset_tars(3)))
  for split, count in (('val', 3), ('test', 5)):
    members = {f'{split}/ILSVRC2010_{split}_{i:08d}.JPEG': make_image(6000 + i) for i in range(1, count + 1)}
    (folder / f'ILSVRC2010_images_{split}.tar').write_bytes(make_tar(members))
  kit = make_development_kit('ILSVRC2010', {'validation': [2, 2, 1]})
  (folder / 'ILSVRC2010_devkit-1.0.tar.gz').write_bytes(kit)
  (folder / 'ILSVRC2010_test_ground_truth.txt').write_text('1\n2\n3\n3\n1\n')
  (folder / 'patch_images.tar').write_bytes(make_tar({'patch_images/n02119789_1.JPEG': make_image(99)}))
  return folder


def write_tiny_imagenet(folder: pathlib.Path, per_class: int = 6) -> pathlib.Path:
  """Writes the unpacked Tiny-ImageNet-200 with two classes, 3 validation and 2 test images. Returns the folder."""
  names = {'n02119789': 'kit fox, Vulpes macrotis', 'n01440764': 'tench, Tinca tinca'}
  files = {f'train/{wnid}/images/{wnid}_{i}.JPEG': make_image(i) for wnid in names for i in range(per_class)}
  files |= {f'train/{wnid}/{wnid}_boxes.txt': f'{wnid}_0.JPEG\t0\t0\t62\t62\n'.encode() for wnid in names}
  labels = {'val_0.JPEG': 'n02119789', 'val_1.JPEG': 'n01440764', 'val_2.JPEG': 'n02119789'}
  files |= {f'val/images/{name}': make_image(50 + i) for i, name in enumerate(labels)}
  files['val/val_annotations.txt'] = ''.join(f'{key}\t{wnid}\t0\t0\t9\t9\n' for key, wnid in labels.items()).encode()
  files |= {f'test/images/test_{i}.JPEG': make_image(60 + i) for i in range(2)}
  files['wnids.txt'] = '\n'.join(names).encode()
  files['words.txt'] = ''.join(f'{wnid}\t{words}\n' for wnid, words in names.items()).encode()
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return folder


def write_class_folders(folder: pathlib.Path, per_class: int = 6) -> pathlib.Path:
  """Writes folder/SPLIT/CLASS/IMAGE, with a hidden file in every class. Returns the folder."""
  for split, count in (('train', per_class), ('val', 2)):
    for rank, name in enumerate(('cat', 'dog')):
      class_folder = folder / split / name
      class_folder.mkdir(parents=True)
      (class_folder / '.DS_Store').write_text('not an image')
      for i in range(count):
        (class_folder / f'{i}.jpg').write_bytes(make_image(100 * rank + i + (50 if split == 'val' else 0)))
  return folder
