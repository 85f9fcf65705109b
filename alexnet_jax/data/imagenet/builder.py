r"""TFDS builder of ImageNet datasets whose images are squares, as the paper stores them (section 2).

    python -m alexnet_jax prepare 2012 FOLDER       # uses all cores; an interrupted preparation resumes
    PYTHONPATH=. tfds build alexnet_jax/data/imagenet/builder.py --config=2012 --manual_dir=FOLDER \
        --file_format=array_record

Both commands write the same records in the same order. `prepare` also computes the statistics of the training set.
`tfds build` is TFDS's own command; it requires apache-beam, mlcroissant and tensorflow.
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
SIZES = {'tiny_imagenet': 64}  # by layout, if the images are stored at another size

_DESCRIPTION = 'Images as in section 2 of the AlexNet paper: shorter side resized to {size} pixels, centre cropped.'


@dataclasses.dataclass(kw_only=True)
class IlsvrcConfig(tfds.core.BuilderConfig):
  """A dataset that the builder can make.

  Attributes:
    layout: layout of the source, a key of `archives.LAYOUTS`.
    encoding: encoding of the images, 'jpeg' or 'raw'; raw pixels take ten times the space and need no decoding.
  """

  layout: str = 'folder'
  encoding: str = 'jpeg'

  @property
  def size(self) -> int:
    """Side of the stored images in pixels."""
    return SIZES.get(self.layout, SIZE)


class Job(NamedTuple):
  """How to prepare a dataset.

  Attributes:
    source: folder of the archives, tar of the synsets, or class folders; None for TFDS's folder of manual downloads.
    quality: JPEG quality, 1 to 100.
    seed: seed of random splits.
    max_skipped: fraction of a split's images that may be undecodable, 0 to 1.
    use_beam: whether to run as an Apache Beam pipeline.
    contents: images and classes of the source, if it is already indexed.
  """

  source: pathlib.Path | None = None
  quality: int = 85
  seed: int = 0
  max_skipped: float = 0.001
  use_beam: bool = False
  contents: archives.Contents | None = None


class SkippedImage(NamedTuple):
  """An image that cannot be decoded.

  Attributes:
    key: name of the image, unique in its split.
    location: file, or name and archive.
    reason: error message of the decoder.
  """

  key: str
  location: str
  reason: str

  def __str__(self) -> str:
    return f'{self.location}: {self.reason}'


class Ilsvrc(tfds.core.GeneratorBasedBuilder):
  """TFDS builder for the ILSVRC challenges, ImageNet's synset archives, and class folders."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put the archives that alexnet_jax/data/imagenet/archives.py lists into this folder.'
  BUILDER_CONFIGS: ClassVar = [
    IlsvrcConfig(name=f'{layout}_raw' if encoding == 'raw' else layout, layout=layout, encoding=encoding)
    for layout in archives.LAYOUTS
    for encoding in ('jpeg', 'raw')
  ]

  def __init__(self, *, job: Job | None = None, **kwargs):
    """Initialises the builder.

    Args:
      job: how to prepare the dataset if it does not exist.
      **kwargs: arguments of every TFDS builder.
    """
    self.job = job or Job()
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    shape = (size, size, 3)
    image = (
      tfds.features.Image(shape=shape, encoding_format='jpeg')
      if self.builder_config.encoding == 'jpeg'
      else tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
    )
    features = {'image': image, 'label': tfds.features.ClassLabel(), 'file_name': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION.format(size=size),
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      metadata=tfds.core.MetadataDict(),
    )

  def recipe(self) -> dict:
    """Returns the settings on which the records depend.

    The source is None for the official archives, of which there is only one version.
    """
    config, job = self.builder_config, self.job
    is_official = config.layout in ('2012', '2010', 'tiny_imagenet')
    return {
      'source': None if is_official or job.source is None else str(job.source.resolve()),
      'layout': config.layout,
      'encoding': config.encoding,
      'quality': job.quality if config.encoding == 'jpeg' else None,
      'seed': job.seed if config.layout == 'synsets' else None,
    }

  def set_metadata(self, contents: archives.Contents) -> None:
    """Adds the class names, the ILSVRC ids and the recipe to the dataset's info."""
    self.info.features['label'].names = contents.class_names
    self.info.metadata.update(ilsvrc_ids=contents.ilsvrc_ids, recipe=self.recipe())

  def _split_generators(self, dl_manager):
    contents = self.job.contents
    if contents is None:
      source = self.job.source or pathlib.Path(dl_manager.manual_dir)
      contents = archives.LAYOUTS[self.builder_config.layout](source, self.job.seed)
    self.set_metadata(contents)
    return {split: self._generate_examples(split, images) for split, images in contents.splits.items()}

  def _generate_examples(self, split, images):
    config = self.builder_config
    make = functools.partial(make_example, size=config.size, encoding=config.encoding, quality=self.job.quality)
    report = functools.partial(
      write_report, self.data_path, split, num_images=len(images), max_skipped=self.job.max_skipped
    )
    return (_generate_on_beam if self.job.use_beam else _generate_serially)(images, make, report)


def _generate_serially(images, make, report):
  skipped = []
  for image in images:
    example = make(image)
    if isinstance(example, SkippedImage):
      skipped.append(example)
    else:
      yield image.key, example
  report(skipped)


def _generate_on_beam(images, make, report):
  import apache_beam as beam  # optional: requirements-beam.txt

  def process(collection):
    examples = collection | beam.Create(images) | beam.Reshuffle() | beam.Map(lambda image: (image.key, make(image)))
    skipped = examples | beam.Values() | beam.Filter(lambda example: isinstance(example, SkippedImage))
    _ = skipped | beam.combiners.ToList() | beam.Map(report)
    return examples | 'Decoded' >> beam.Filter(lambda keyed: not isinstance(keyed[1], SkippedImage))

  return beam.ptransform_fn(process)()


def make_example(image: archives.ArchivedImage, size: int, encoding: str, quality: int) -> dict | SkippedImage:
  """Decodes, resizes, crops and encodes an image.

  Args:
    image: location of the image.
    size: side of the stored image in pixels.
    encoding: 'jpeg' or 'raw'.
    quality: JPEG quality, 1 to 100.

  Returns:
    {'image': JPEG bytes or [size, size, rgb] uint8, 'label': int, 'file_name': str}, or a `SkippedImage` if the image
    cannot be decoded.

  Raises:
    RunError: if the archive cannot be read.
  """
  try:
    encoded = image.read()
  except OSError as error:
    raise RunError(f'{image} cannot be read ({error.strerror}); does the archive still exist?') from error
  try:
    pixels = image_io.resize_and_crop(image_io.decode(encoded), size)
  except ValueError as error:
    return SkippedImage(image.key, str(image), str(error))
  stored = image_io.encode_jpeg(pixels, quality) if encoding == 'jpeg' else np.ascontiguousarray(pixels)
  return {'image': stored, 'label': image.label, 'file_name': image.key}


def write_report(
  folder: pathlib.Path, split: str, skipped: list[SkippedImage], *, num_images: int, max_skipped: float
) -> None:
  """Writes `skipped-SPLIT.txt`, which lists the undecodable images of a split, one per line.

  Args:
    folder: folder of the dataset.
    split: name of the split.
    skipped: the undecodable images.
    num_images: number of images in the split, including those.
    max_skipped: fraction of the images that may be undecodable, 0 to 1.

  Raises:
    RunError: if more images than that are undecodable.
  """
  (pathlib.Path(folder) / f'skipped-{split}.txt').write_text(''.join(f'{image}\n' for image in sorted(skipped)))
  if len(skipped) > max_skipped * num_images:
    raise RunError(
      f'{len(skipped):,} of {num_images:,} images in {split} cannot be decoded, more than max_skipped={max_skipped:g} '
      f'allows; the first is {min(skipped)}. Download the archive again, or raise max_skipped.'
    )
