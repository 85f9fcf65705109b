"""The pictures of ImageNet as the network takes them, 256 x 256, as a TFDS dataset (section 2).

    python -m alexnet_jax prepare 2012 FOLDER       # with all cores, and goes on after it was stopped
    PYTHONPATH=. tfds build alexnet_jax/datasets/ilsvrc.py --config=2012 --manual_dir=FOLDER --file_format=array_record

Both make the same records in the same order; the first also makes the statistics of the training set. (The second is
TFDS's own command, which wants apache-beam, mlcroissant and tensorflow to be installed.)
"""

import dataclasses
import functools
import pathlib
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data import image_io
from alexnet_jax.data.imagenet import archives
from alexnet_jax.runtime.errors import RunError

SIZE = 256  # section 2

_DESCRIPTION = """\
Pictures brought to 256 x 256 pixels as in section 2 of the AlexNet paper: the short side to 256, the centre cut out.
"""


@dataclasses.dataclass(kw_only=True)
class IlsvrcConfig(tfds.core.BuilderConfig):
  """Which dataset it is.

  Attributes:
    layout: '2012', '2010', 'synsets' or 'folder': what it is made from; see `archives.py`.
    encoding: of the images, 'jpeg', or 'raw' for plain pixels, ten times as large and without decoding.
  """

  layout: str = 'folder'
  encoding: str = 'jpeg'


class Job(NamedTuple):
  """How to make it.

  Attributes:
    source: folder of the archives, tar of the synsets, or tree of classes; None for TFDS's folder of manual downloads.
    quality: of JPEGs, 1 to 100.
    seed: of what is drawn at random, the halves of the synsets.
    max_skipped: share of the pictures that may be undecodable before the job stops.
    beam: whether to run as an Apache Beam pipeline.
    contents: what is in the source, where that is known already.
  """

  source: pathlib.Path | None = None
  quality: int = 85
  seed: int = 0
  max_skipped: float = 0.001
  beam: bool = False
  contents: archives.Contents | None = None


class Skipped(NamedTuple):
  """A picture that could not be decoded, where it lies and why."""

  key: str
  place: str
  reason: str

  def __str__(self) -> str:
    return f'{self.place}: {self.reason}'


class Ilsvrc(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of ImageNet's challenges, of its synset archives, and of any folder of classes."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put the archives that alexnet_jax/datasets/archives.py names into this folder.'
  BUILDER_CONFIGS: ClassVar = [
    IlsvrcConfig(name=f'{layout}_raw' if encoding == 'raw' else layout, layout=layout, encoding=encoding)
    for layout in archives.LAYOUTS
    for encoding in ('jpeg', 'raw')
  ]

  def __init__(self, *, job: Job | None = None, **kwargs):
    """Takes what every TFDS builder takes, and how to make the dataset if it is not there."""
    self.job = job or Job()
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=features(self.builder_config.encoding),
      supervised_keys=('image', 'label'),
      metadata=tfds.core.MetadataDict(),
    )

  def recipe(self) -> dict:
    """Returns what the records depend on. Of official archives there is one, of folders and synsets there are many."""
    config, job = self.builder_config, self.job
    is_official = config.layout in ('2012', '2010')
    return {
      'source': None if is_official or job.source is None else str(job.source.resolve()),
      'layout': config.layout,
      'encoding': config.encoding,
      'quality': job.quality if config.encoding == 'jpeg' else None,
      'seed': job.seed if config.layout == 'synsets' else None,
    }

  def describe(self, contents: archives.Contents) -> None:
    """Adds to the dataset's info what only the archives know: names, ILSVRC ids, and how it was made."""
    self.info.features['label'].names = contents.class_names
    self.info.metadata.update(ilsvrc_ids=contents.ilsvrc_ids, recipe=self.recipe())

  def _split_generators(self, dl_manager):
    contents = self.job.contents
    if contents is None:
      source = self.job.source or pathlib.Path(dl_manager.manual_dir)
      contents = archives.LAYOUTS[self.builder_config.layout](source, self.job.seed)
    self.describe(contents)
    return {split: self._generate_examples(split, pictures) for split, pictures in contents.splits.items()}

  def _generate_examples(self, split, pictures):
    make = functools.partial(example, encoding=self.builder_config.encoding, quality=self.job.quality)
    report = functools.partial(
      write_report, self.data_path, split, num_pictures=len(pictures), max_skipped=self.job.max_skipped
    )
    return (_on_beam if self.job.beam else _in_turn)(pictures, make, report)


def _in_turn(pictures, make, report):
  skipped = []
  for picture in pictures:
    made = make(picture)
    if isinstance(made, Skipped):
      skipped.append(made)
    else:
      yield picture.key, made
  report(skipped)


def _on_beam(pictures, make, report):
  import apache_beam as beam

  def process(collection):
    made = (
      collection | beam.Create(pictures) | beam.Reshuffle() | beam.Map(lambda picture: (picture.key, make(picture)))
    )
    skipped = made | beam.Values() | beam.Filter(lambda example: isinstance(example, Skipped))
    _ = skipped | beam.combiners.ToList() | beam.Map(report)
    return made | 'Decoded' >> beam.Filter(lambda keyed: not isinstance(keyed[1], Skipped))

  return beam.ptransform_fn(process)()


def features(encoding: str) -> tfds.features.FeaturesDict:
  """Returns the features of an example: image [256, 256, rgb] uint8 in an encoding, label, file_name."""
  shape = (SIZE, SIZE, 3)
  image = (
    tfds.features.Image(shape=shape, encoding_format='jpeg')
    if encoding == 'jpeg'
    else tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
  )
  return tfds.features.FeaturesDict(
    {'image': image, 'label': tfds.features.ClassLabel(), 'file_name': tfds.features.Text()}
  )


def example(picture: archives.Picture, encoding: str, quality: int) -> dict | Skipped:
  """Makes the example of a picture, or says why there is none.

  Raises:
    RunError: if the archive cannot be read.
  """
  try:
    encoded = picture.read()
  except OSError as error:
    raise RunError(f'{picture} cannot be read ({error.strerror}); is the archive still there?') from error
  try:
    image = image_io.resize_and_crop(image_io.decode(encoded), SIZE)
  except ValueError as error:
    return Skipped(picture.key, str(picture), str(error))
  stored = image_io.encode_jpeg(image, quality) if encoding == 'jpeg' else np.ascontiguousarray(image)
  return {'image': stored, 'label': picture.label, 'file_name': picture.key}


def write_report(
  folder: pathlib.Path, split: str, skipped: list[Skipped], *, num_pictures: int, max_skipped: float
) -> None:
  """Writes which pictures of a split could not be decoded, a line each: `skipped-SPLIT.txt`.

  Raises:
    RunError: if they are more than the share `max_skipped`.
  """
  lines = [f'{one}\n' for one in sorted(skipped)]
  (pathlib.Path(folder) / f'skipped-{split}.txt').write_text(''.join(lines))
  if len(skipped) > max_skipped * num_pictures:
    raise RunError(
      f'{len(skipped):,} of {num_pictures:,} pictures in {split} cannot be decoded, more than max_skipped='
      f'{max_skipped:g} allows; the first is {min(skipped)}. Download the archive again, or allow more.'
    )
