"""Small copies of the archives of ImageNet, with files mixed in that are no pictures."""

import io
import pathlib
import tarfile

import numpy as np
import PIL.Image
import scipy.io

# ILSVRC id, WordNet id, words: as in the real kits, the ids are in another order than the WordNet ids.
SYNSETS = [
  (1, 'n02119789', 'kit fox, Vulpes macrotis'),
  (2, 'n01440764', 'tench, Tinca tinca'),
  (3, 'n02100735', 'setter'),
]
NAMES = ['n01440764 tench, Tinca tinca', 'n02100735 setter', 'n02119789 kit fox, Vulpes macrotis']
BROKEN = {'cut.JPEG': 'truncated', 'text.JPEG': 'it is no image'}  # name: what the report says of it


def picture(number: int, form: str = 'JPEG') -> bytes:
  """A smooth picture that is another for every number; sizes differ, too."""
  rng = np.random.default_rng(number)
  small = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
  height, width = rng.integers(60, 400, 2)
  file = io.BytesIO()
  small.resize((int(width), int(height)), PIL.Image.Resampling.BICUBIC).save(file, form)
  return file.getvalue()


def tar(members: dict[str, bytes], mode: str = 'w') -> bytes:
  """A tar of files; plain, or compressed where the mode says so."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def synset_tars(per_class: int, broken: bool = True) -> dict[str, bytes]:
  """A tar of JPEGs for each synset; in the first also what is broken, and a PNG called JPEG."""
  tars = {}
  for rank, (_, wnid, _) in enumerate(SYNSETS):
    members = {f'{wnid}_{i}.JPEG': picture(1000 * rank + i) for i in range(per_class)}
    if rank == 0:
      members[f'{wnid}_png.JPEG'] = picture(7, 'PNG')
      if broken:
        members[f'{wnid}_cut.JPEG'] = picture(8)[:700]
        members[f'{wnid}_text.JPEG'] = b'not a picture at all'
    tars[f'{wnid}.tar'] = tar(members)
  return tars


def development_kit(challenge: str, ground_truth: dict[str, list[int]]) -> bytes:
  """The kit of a challenge, with the internal nodes of the hierarchy that the real ones have, too."""
  rows = [(i, wnid, words, 0) for i, wnid, words in SYNSETS] + [(4, 'n00001740', 'entity', 3)]
  kinds = [(f'{challenge}_ID', object), ('WNID', object), ('words', object), ('num_children', object)]
  meta = io.BytesIO()
  scipy.io.savemat(meta, {'synsets': np.array(rows, dtype=kinds)})
  members = {'kit/data/meta.mat': meta.getvalue()}
  for split, labels in ground_truth.items():
    text = ''.join(f'{label}\n' for label in labels)
    members[f'kit/data/{challenge}_{split}_ground_truth.txt'] = text.encode()
  return tar(members, 'w:gz')


def ilsvrc2012(folder: pathlib.Path, per_class: int = 5, broken: bool = True) -> pathlib.Path:
  """The downloads of ILSVRC-2012: 3 classes, 4 validation and 2 test pictures."""
  folder.mkdir(parents=True, exist_ok=True)
  truth = [3, 1, 2, 1]
  (folder / 'ILSVRC2012_img_train.tar').write_bytes(tar(synset_tars(per_class, broken)))
  for split, count in (('val', 4), ('test', 2)):
    members = {f'ILSVRC2012_{split}_{i:08d}.JPEG': picture(5000 + i) for i in range(count, 0, -1)}
    (folder / f'ILSVRC2012_img_{split}.tar').write_bytes(tar(members))
  (folder / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(development_kit('ILSVRC2012', {'validation': truth}))
  return folder


def ilsvrc2010(folder: pathlib.Path) -> pathlib.Path:
  """The downloads of ILSVRC-2010, one picture patched."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'ILSVRC2010_images_train.tar').write_bytes(tar(synset_tars(3)))
  for split, count in (('val', 3), ('test', 5)):
    members = {f'{split}/ILSVRC2010_{split}_{i:08d}.JPEG': picture(6000 + i) for i in range(1, count + 1)}
    (folder / f'ILSVRC2010_images_{split}.tar').write_bytes(tar(members))
  (folder / 'ILSVRC2010_devkit-1.0.tar.gz').write_bytes(development_kit('ILSVRC2010', {'validation': [2, 2, 1]}))
  (folder / 'ILSVRC2010_test_ground_truth.txt').write_text('1\n2\n3\n3\n1\n')
  (folder / 'patch_images.tar').write_bytes(tar({'patch_images/n02119789_1.JPEG': picture(99)}))
  return folder


def tree(folder: pathlib.Path, per_class: int = 6) -> pathlib.Path:
  """split/class/picture."""
  for split, count in (('train', per_class), ('val', 2)):
    for rank, name in enumerate(('cat', 'dog')):
      place = folder / split / name
      place.mkdir(parents=True)
      (place / '.DS_Store').write_text('no picture, and none of our business')
      for i in range(count):
        (place / f'{i}.jpg').write_bytes(picture(100 * rank + i + (50 if split == 'val' else 0)))
  return folder
