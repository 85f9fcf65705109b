import matplotlib.text
import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import same_color

from alexnet_jax.analysis import plots
from alexnet_jax.analysis.measures import NOISE_COLOUR_FRACTION, colour_fractions
from alexnet_jax.runtime.errors import RunError, UsageError

NAMES = [f'n0000000{i} name {i}, other name' for i in range(8)]


def kernels(num_towers=2, count=20):
  return np.random.default_rng(0).standard_normal((num_towers, 11, 11, 3, count)).astype(np.float32)


def pixels(count, size=8):
  return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def test_the_colour_of_a_kernel_does_not_respond_to_grey_images():
  grey = np.repeat(np.random.default_rng(0).standard_normal((1, 11, 11, 1, 4)), 3, axis=3)
  opponent = grey * np.array([1, -1, 0])[:, None]
  np.testing.assert_allclose(colour_fractions(grey), 0, atol=1e-12)
  np.testing.assert_allclose(colour_fractions(opponent), 1)
  np.testing.assert_allclose(colour_fractions(grey + opponent), 2 / 5)  # 3 parts grey, 2 parts colour
  np.testing.assert_array_equal(colour_fractions(0 * grey), 0)
  assert abs(colour_fractions(kernels(count=500)).mean() - NOISE_COLOUR_FRACTION) < 0.01


def test_the_towers_of_a_network_trained_on_imagenet_differ_in_colour(shared_data):
  weights = np.load(shared_data / 'bvlc_alexnet_conv1.npz')['weights']
  fractions = colour_fractions(np.stack(np.split(weights, 2, axis=3))).mean(axis=1)
  assert fractions.max() > 0.7
  assert fractions.min() < 0.2


@pytest.mark.parametrize('common_scale', [False, True])
def test_kernels_are_drawn_in_order_and_scaled_by_their_largest_weight(common_scale):
  weights = kernels()
  weights[1, ..., 18] *= 100
  figure = plots.draw_kernels(weights, common_scale=common_scale)
  mosaics = [axes for axes in figure.axes if axes.images]
  assert [axes.get_title('left') for axes in mosaics] == ['tower 0', 'tower 1']
  for tower, axes in enumerate(mosaics):
    drawn = axes.images[0].get_array()
    assert drawn.shape == (23, 16 * 12 - 1, 3)  # 16 kernels a row, a gap between them
    np.testing.assert_array_equal(drawn[12:, 4 * 12 :], 1)  # 20 kernels fill a row of 16 and a row of 4
    for index in range(20):
      top, left = index // 16 * 12, index % 16 * 12
      kernel = weights[tower, ..., index]
      largest = np.abs(weights if common_scale else kernel).max()
      np.testing.assert_allclose(drawn[top : top + 11, left : left + 11], 0.5 + kernel / (2 * largest), atol=1e-6)


def test_a_kernel_of_zeros_is_grey():
  drawn = plots.draw_kernels(np.zeros((1, 11, 11, 3, 2))).axes[0].images[0].get_array()
  np.testing.assert_array_equal(drawn[:, :11], 0.5)


def bars_of(figure):
  """Yields the bars of each image, [(width, whether hatched, whether in the colour of the true class)]."""
  for axes in [axes for axes in figure.axes if axes.patches]:
    yield [
      (bar.get_width(), bool(bar.get_hatch()), same_color(bar.get_facecolor(), plots.ORANGE)) for bar in axes.patches
    ]


def test_the_five_most_probable_classes_are_drawn_and_the_true_one_is_marked():
  probabilities = np.array([[0.3, 0.25, 0.2, 0.1, 0.08, 0.04, 0.02, 0.01]] * 3)
  labels = [2, 7, -1]  # the third most probable; not among the first five; unknown
  figure = plots.draw_predictions(pixels(3), np.log(probabilities), NAMES, labels)
  bars_by_image = list(bars_of(figure))
  for bars in bars_by_image:
    np.testing.assert_allclose([width for width, *_ in bars], [30, 25, 20, 10, 8], rtol=1e-6)
  assert [[is_hatched for _, is_hatched, _ in bars] for bars in bars_by_image] == [
    [i == 2 for i in range(5)],
    [False] * 5,
    [False] * 5,
  ]
  assert all(is_hatched == is_orange for bars in bars_by_image for _, is_hatched, is_orange in bars)
  image_axes = [axes for axes in figure.axes if axes.images]
  assert [axes.get_xlabel() for axes in image_axes] == ['name 2', 'name 7', '']
  for axes, image in zip(image_axes, pixels(3), strict=True):
    np.testing.assert_array_equal(axes.images[0].get_array(), image)
  texts = [text.get_text() for text in next(axes for axes in figure.axes if axes.patches).texts]
  assert texts == ['name 0', '30 %', 'name 1', '25 %', 'name 2', '20 %', 'name 3', '10 %', 'name 4', '8 %']


@pytest.mark.parametrize(('count', 'num_classes'), [(1, 2), (5, 3), (8, 10)])
def test_predictions_for_any_number_of_images_and_classes_are_drawn(count, num_classes, tmp_path):
  log_probs = np.log(np.full((count, num_classes), 1 / num_classes))
  figure = plots.draw_predictions(pixels(count), log_probs, [str(i) for i in range(num_classes)])
  assert [len(bars) for bars in bars_of(figure)] == [min(5, num_classes)] * count
  plots.save(figure, tmp_path / 'figure.png')


def test_neighbours_are_in_the_row_of_their_query_and_marked_if_their_class_differs():
  nearest = np.stack([pixels(3), pixels(3)[::-1]])
  figure = plots.draw_neighbours(pixels(2), nearest, ['cat', 'dog'], [['cat', 'dog', 'cat'], ['cat', 'dog', 'dog']])
  image_axes = [axes for axes in figure.axes if axes.images]
  assert len(image_axes) == 2 * (1 + 3)
  assert [axes.get_xlabel() for axes in image_axes] == ['cat', 'cat', '≠ dog', 'cat', 'dog', '≠ cat', 'dog', 'dog']
  for row in range(2):
    np.testing.assert_array_equal(image_axes[4 * row].images[0].get_array(), pixels(2)[row])
    for column in range(3):
      np.testing.assert_array_equal(image_axes[4 * row + 1 + column].images[0].get_array(), nearest[row, column])


def test_curves_of_runs_differ_in_colour_and_in_style():
  epochs = np.arange(5.0)
  panels = {'training error, %': {'relu': (epochs, 80 - epochs), 'tanh': (epochs, 90 - epochs)}}
  panels['training loss, nats'] = {'tanh': (epochs, 2 - epochs / 10)}
  figure = plots.draw_curves(panels)
  error, loss = figure.axes
  np.testing.assert_array_equal(error.lines[0].get_xydata(), np.stack([epochs, 80 - epochs], 1))
  assert [line.get_label() for line in error.lines] == ['relu', 'tanh']
  assert error.lines[0].get_linestyle() != error.lines[1].get_linestyle()
  assert error.lines[0].get_color() != error.lines[1].get_color() == loss.lines[0].get_color()
  assert (error.get_xlabel(), error.get_ylabel(), error.get_ylim()[0]) == ('epochs', 'training error, %', 0)


def test_maps_are_drawn_tower_by_tower():
  maps = np.random.default_rng(0).random((5, 5, 12)).astype(np.float32)
  maps[..., 3] = 0
  figure = plots.draw_maps(pixels(1)[0], maps, 'conv4', 2)
  image, *towers = [axes for axes in figure.axes if axes.images]
  np.testing.assert_array_equal(image.images[0].get_array(), pixels(1)[0])
  for tower, axes in enumerate(towers):
    drawn = np.asarray(axes.images[0].get_array())
    for index in range(6):
      top, left = index // 4 * 6, index % 4 * 6
      tower_map = maps[..., 6 * tower + index]
      expected = (tower_map - tower_map.min()) / (np.ptp(tower_map) or 1)
      np.testing.assert_allclose(drawn[top : top + 5, left : left + 5], expected, atol=1e-6)


def test_weak_gradients_are_set_to_zero():
  gradient = np.random.default_rng(0).standard_normal((20, 20, 3))
  gradient[3, 4, 1] = -9
  std = gradient.std()
  strong = plots.strong_gradients(gradient, 3)
  assert strong[3, 4] == 9
  np.testing.assert_array_equal(strong > 0, (np.abs(gradient) >= 3 * std).any(2))
  np.testing.assert_array_equal(plots.strong_gradients(gradient, 0), np.abs(gradient).max(2))
  assert not plots.strong_gradients(0 * gradient, 3).any()
  plots.draw_saliency(pixels(2, 20), np.stack([gradient, 0 * gradient]), ['a', 'b'])


def test_class_names_are_shortened():
  assert plots.short_name('n02119789 kit fox, Vulpes macrotis') == 'kit fox'
  assert plots.short_name('n02119789') == 'n02119789'
  assert plots.short_name('a' * 30, 10) == 'aaaaaaaaa…'


def test_the_suffix_selects_the_format_and_files_are_reproducible(tmp_path):
  for name in ('a.png', 'a.svg', 'b.svg', 'c.SVG'):
    plots.save(plots.draw_kernels(kernels()), tmp_path / name)
  assert PIL.Image.open(tmp_path / 'a.png').width > 1500
  assert b'<svg' in (tmp_path / 'a.svg').read_bytes()
  assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()
  figure = plots.draw_kernels(kernels())
  for name in ('a.gif', 'a'):
    with pytest.raises(UsageError, match=r'does not end in \.png, \.svg or \.pdf'):
      plots.save(figure, tmp_path / name)
  with pytest.raises(RunError, match='cannot be written'):
    plots.save(figure, tmp_path / 'nowhere' / 'a.png')


def test_names_are_not_mathematics(tmp_path):
  figure = plots.draw_predictions(pixels(1), np.log([[0.5, 0.5]]), ['US$ vs CA$', '$_$'])
  plots.save(figure, tmp_path / 'predictions.png')
  assert any('US$ vs CA$' in text.get_text() for text in figure.findobj(matplotlib.text.Text))
