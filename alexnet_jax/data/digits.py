"""TFDS dataset of the handwritten digits that are distributed with scikit-learn; it needs no network.

1,797 digits of 8 x 8 pixels written by 13 people: the test part of the UCI 'Optical Recognition of Handwritten Digits'
(E. Alpaydin and C. Kaynak, 1998). The dataset is small and real, and the full network learns it.
"""

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

_DESCRIPTION = """\
1,797 grey images of handwritten digits, 8 x 8 pixels, as distributed with scikit-learn; the grey levels 0-16 are
scaled to 0-255, with bright ink on a dark ground. Every fifth image is in the test split. The same 13 people wrote
both splits, so the test error does not measure generalisation to new writers.
"""

_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
}
"""


class Digits(tfds.core.GeneratorBasedBuilder):
  """Builds `digits`: 1,437 training and 360 test images."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
      ),
      supervised_keys=('image', 'label'),
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    return {'train': self._generate_examples(test=False), 'test': self._generate_examples(test=True)}

  def _generate_examples(self, test):
    from sklearn import datasets  # needed only to prepare the dataset

    digits = datasets.load_digits()
    for index, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True)):
      if (index % 5 == 0) == test:
        pixels = np.rint(ink * (255 / 16)).astype(np.uint8)
        yield index, {'image': PIL.Image.fromarray(pixels), 'label': int(label)}  # TFDS encodes arrays with TensorFlow
