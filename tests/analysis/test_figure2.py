import jax
import pytest

from alexnet_jax.analysis import figure2
from configs import alexnet
from tests.conftest import mesh

# Facts, 1.8: parameters with 1000 classes.
PARAMETERS = {'': 60_965_224, 'one_tower': 59_798_312, 'conv6': 61_555_304}
CROSS_TOWER_LAYERS = {  # where Figure 2's arrows cross, and where they do in the variants
  '': ['conv3', 'fc6', 'fc7', 'fc8'],
  'one_tower': [],
  'conv6': ['conv3', 'conv6', 'fc6', 'fc7', 'fc8'],
  'no_communication': ['fc8'],
  'without_conv3': ['conv4', 'fc6', 'fc7', 'fc8'],  # conv4 reads what conv3 would read
  'without_conv5': ['conv3', 'fc6', 'fc7', 'fc8'],
}


def read_layers(variant, shape=(1, 1), num_classes=1000):
  config = alexnet.get_config(variant).model
  return figure2.read_layers(config, num_classes, mesh(*shape)), config


@pytest.mark.parametrize('variant', CROSS_TOWER_LAYERS)
def test_arrows_cross_at_the_cross_tower_layers(variant):
  layers, config = read_layers(variant)
  assert [layer.name for layer in layers if layer.reads_all_towers] == CROSS_TOWER_LAYERS[variant]
  if 'without' not in variant and config.num_towers > 1:
    assert set(CROSS_TOWER_LAYERS[variant]) == set(config.meet)
  figure = figure2.draw_figure2(layers, 224, 1000, mesh(1, 1), config.num_towers)
  arrows = [text.get_gid() for text in figure.axes[0].texts]
  assert arrows.count('crossing') == 2 * len(CROSS_TOWER_LAYERS[variant])
  assert arrows.count('straight') == config.num_towers * (len(layers) + 1)  # from the image, and to the classes
  if variant in PARAMETERS:
    assert sum(layer.num_parameters for layer in layers) == PARAMETERS[variant]
    assert f'{PARAMETERS[variant]:,}' in {text.get_text() for text in figure.axes[0].texts}


def test_the_compact_figure_has_the_arrows_and_names_but_no_notes():
  layers, _ = read_layers('')
  full, compact = (figure2.draw_figure2(layers, 224, 1000, mesh(1, 1), 2, compact=compact) for compact in (False, True))
  texts = [{text.get_text() for text in figure.axes[0].texts} for figure in (full, compact)]
  assert {layer.name for layer in layers} <= texts[1] < texts[0]
  assert not any('pooling' in text or text == '60,965,224' for text in texts[1])
  gids = [sorted(filter(None, (text.get_gid() for text in figure.axes[0].texts))) for figure in (full, compact)]
  assert gids[0] == gids[1]
  assert compact.get_size_inches()[0] < 0.6 * full.get_size_inches()[0]


def test_shapes_are_those_of_figure_2():
  layers, _ = read_layers('')
  assert [(layer.name, layer.shape, layer.kernel[:-1]) for layer in layers] == [
    ('conv1', (55, 55, 48), (11, 11, 3)),
    ('conv2', (27, 27, 128), (5, 5, 48)),
    ('conv3', (13, 13, 192), (3, 3, 256)),
    ('conv4', (13, 13, 192), (3, 3, 192)),
    ('conv5', (13, 13, 128), (3, 3, 192)),
    ('fc6', (2048,), (9216,)),
    ('fc7', (2048,), (4096,)),
    ('fc8', (500,), (4096,)),
  ]
  assert layers[0].notes == ('stride 4', 'normalised', 'max pooling 3 x 3', 'to 27 x 27')
  assert layers[4].notes == ('max pooling 3 x 3', 'to 6 x 6')
  assert layers[6].notes == ('dropout',)


def test_a_unit_without_a_class_is_not_counted():
  layers, _ = read_layers('', num_classes=7)
  assert layers[-1].shape == (4,)
  assert layers[-1].num_parameters == 7 * 4097


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((1, 1), ['tower 0 and tower 1 on cpu:0']),
    ((1, 2), ['tower 0 on cpu:0', 'tower 1 on cpu:1']),
    (
      (2, 2),
      ['tower 0 on cpu:0 and cpu:2, which share each batch', 'tower 1 on cpu:1 and cpu:3, which share each batch'],
    ),
  ],
)
def test_each_tower_is_on_the_devices_that_hold_its_kernels(shape, expected):
  layers, _ = read_layers('', shape)
  figure = figure2.draw_figure2(layers, 224, 1000, mesh(*shape), 2)
  assert [text.get_text() for text in figure.axes[0].texts if ' on cpu' in text.get_text()] == expected
  with jax.set_mesh(mesh(*shape)):  # jax's placement, for comparison
    kernels = jax.device_put(jax.numpy.zeros((2, 3)), jax.P('tower'))
  for tower, text in enumerate(expected if shape[1] == 2 else []):
    devices = [shard.device.id for shard in kernels.addressable_shards if shard.index[0].start == tower]
    assert all(f'cpu:{device}' in text for device in devices)
