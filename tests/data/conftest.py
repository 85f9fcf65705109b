"""Records that cannot be read, for the tests of sources and of the pipeline."""

import pytest
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import sources


def encode_example(image, label):
  example = tf_example_pb2.Example()
  example.features.feature['image'].bytes_list.value.append(image)
  example.features.feature['label'].int64_list.value.append(label)
  return example.SerializeToString()


@pytest.fixture
def damaged_sources(config):
  """Training and test split that skip unreadable records; images 5, 6 and the last one are unreadable."""
  config.data.unreadable = 'skip'
  train, test = sources.open_splits(config.data, 96, ['train', 'test'])
  for source in (train, test):
    source._records = list(source._records)
    source._records[5], source._records[6], source._records[-1] = encode_example(b'no image', 3), b'\xff' * 20, b''
  return train, test
