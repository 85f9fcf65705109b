"""The page in a browser: what a visitor does, what the page shows, and what it must not do."""

import concurrent.futures
import dataclasses
import importlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import types
import urllib.error
import urllib.request

import jax
import numpy as np
import PIL.Image
import pytest

import alexnet_jax
from alexnet_jax.analysis import training_neighbours
from alexnet_jax.data import cropping
from alexnet_jax.explore import loaded_run, mosaic, training_map, units
from alexnet_jax.runtime.errors import UsageError

sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright opens the page')

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
PACKAGE = pathlib.Path(alexnet_jax.__file__).parent
MAX_GROWTH = 30  # MB; the decoded test split is 10 MB


@pytest.fixture(scope='module')
def page():
  """The module of the page. Gradio takes two seconds to import, which not every process of the tests has to spend."""
  pytest.importorskip('gradio', reason='Gradio serves the page')
  return importlib.import_module('alexnet_jax.explore.page')


@pytest.fixture(scope='module')
def run(run):
  """The small network with another fc8, which distributes the test images over all classes."""
  images, _ = run.test.read_batch(list(range(60)))
  logits = run.model.in_batches(lambda batch: run.model.activations(batch, 'fc8'), images)
  scale = 3 / logits.std(axis=0).mean()
  with jax.set_mesh(run.model.mesh):
    fc8 = run.model.params['fc8']
    bias = scale * (fc8['bias'] - logits.mean(axis=0).reshape(fc8['bias'].shape))
    params = run.model.params | {'fc8': {'kernel': scale * fc8['kernel'], 'bias': bias}}
  return dataclasses.replace(run, model=run.model._replace(params=params))


@pytest.fixture(scope='module')
def address(page, run):
  served = page.make_page([run])
  yield page.serve(served)
  served.close(verbose=False)


@pytest.fixture(scope='module')
def browser():
  if CHROMIUM is None:
    pytest.skip('neither chromium nor google-chrome is installed')
  with sync_api.sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield chromium
    chromium.close()


@pytest.fixture
def visit(browser, address):
  """A function that opens the page as another visitor."""
  contexts = []

  def open_page(url=address):
    contexts.append(browser.new_context(viewport={'width': 1280, 'height': 1000}))
    visitor = contexts[-1].new_page()
    visitor.set_default_timeout(60_000)
    visitor.goto(url)
    visitor.get_by_role('button', name='Random test image').wait_for()
    return visitor

  yield open_page
  for context in contexts:
    context.close()


@pytest.fixture(scope='module')
def photographs(run, tmp_path_factory):
  """The paths of two photographs that the network classifies differently, and their most probable classes."""
  images, _ = run.test.read_batch(list(range(60)))
  by_class = {best_class(run, image): image for image in images}
  folder = tmp_path_factory.mktemp('photographs')
  names = list(by_class)[:2]
  paths = [folder / f'{name}.png' for name in names]
  for path, name in zip(paths, names, strict=True):
    PIL.Image.fromarray(by_class[name]).save(path)
  return paths, names


def best_class(run, image):
  crops = cropping.TEST_TIME_CROPS[cropping.prediction_crop_set(run.config)](run.model.config.border)
  return run.model.class_names[np.asarray(run.model.log_probs(image[None], crops))[0].argmax()]


def drop(visitor, path):
  visitor.locator('input[type=file]').first.set_input_files(path)


def click(visitor, name):
  visitor.get_by_role('button', name=name).click()


def click_tab(visitor, name):
  visitor.get_by_role('tab', name=name).click()


def choose(visitor, label, option):
  """Chooses an option of the visible list with a label."""
  visitor.get_by_label(label, exact=True).filter(visible=True).click()
  visitor.get_by_role('option', name=option, exact=True).click()


def bars(visitor, label):
  """The bars of a component, a class and a percentage each."""
  return visitor.get_by_test_id('label').filter(has_text=label, visible=True).locator('.confidence-set')


def classify(visitor, path):
  """Chooses a photograph and waits for its most probable classes."""
  drop(visitor, path)
  bars(visitor, 'most probable classes').first.wait_for()


def expect_class(visitor, label, name):
  best = visitor.get_by_test_id('label').filter(has_text=label, visible=True).get_by_test_id('label-output-value')
  sync_api.expect(best).to_have_text(name, timeout=60_000)


def image(visitor, title):
  """The image below a title, or with a label."""
  return visitor.locator('.column', has_text=title).filter(visible=True).last.locator('img')


def click_channel(shown, channels, channel):
  """Clicks the tile of a channel in an image that the page shows at another scale."""
  rows, columns = np.nonzero(channels == channel)
  box = shown.bounding_box()
  scale = box['width'] / channels.shape[1]
  shown.click(position={'x': (columns.mean() + 0.5) * scale, 'y': (rows.mean() + 0.5) * scale})


def test_a_photograph_has_five_bars_and_the_page_needs_no_internet(address, visit, photographs):
  (path, _), (name, _) = photographs
  visitor = visit()
  requests = []
  visitor.on('request', lambda request: requests.append(request.url))
  visitor.goto(address)
  drop(visitor, path)
  expect_class(visitor, 'most probable classes', name)
  sync_api.expect(bars(visitor, 'most probable classes')).to_have_count(5)
  assert len(requests) > 10
  assert not [url for url in requests if not re.match(rf'{address}|data:|blob:', url)]


@pytest.mark.slow
def test_a_network_without_a_tower_predicts_something_else(run, visit, photographs):
  (path, _), (name, _) = photographs
  visitor = visit()
  drop(visitor, path)
  expect_class(visitor, 'most probable classes', name)
  click_tab(visitor, 'Inside')
  before, after = 'The whole network', 'Without these parts'
  sync_api.expect(bars(visitor, after)).to_have_count(5)
  assert bars(visitor, after).all_inner_texts() == bars(visitor, before).all_inner_texts()
  texts = bars(visitor, before).all_inner_texts()
  visitor.get_by_label('tower 0').check()
  visitor.get_by_label('tower 1').check()
  biases = np.asarray(run.model.params['fc8']['bias']).reshape(-1)  # all that is left
  expect_class(visitor, after, run.model.class_names[biases.argmax()])
  assert bars(visitor, after).all_inner_texts() != texts
  assert bars(visitor, before).all_inner_texts() == texts


@pytest.mark.slow
def test_a_misclassified_test_image_is_drawn(run, visit):
  visitor = visit()
  click(visitor, 'Random misclassified test image')
  description = visitor.get_by_text(re.compile(r'^Image \d+ of digits'))
  index, label = re.search(r'Image (\d+) .*: (.*)', description.inner_text()).groups()
  (image,), (expected,) = run.test.read_batch([int(index)])
  assert label == run.class_name(expected) != best_class(run, image)
  expect_class(visitor, 'most probable classes', best_class(run, image))


@pytest.mark.slow
def test_a_click_selects_the_unit_whose_strongest_images_are_found(run, visit, photographs):
  visitor = visit()
  drop(visitor, photographs[0][0])
  click_tab(visitor, 'Inside')
  shown = image(visitor, 'Maps of the layer')
  shown.wait_for()
  outputs = np.asarray(run.model.activations(np.zeros((1, 96, 96, 3), np.uint8), 'conv1'))[0]
  click_channel(shown, mosaic.draw_maps(outputs, 2).channels, 4)
  unit = visitor.get_by_label('Unit', exact=True).filter(visible=True)
  sync_api.expect(unit).to_have_value('4')
  click_channel(
    image(visitor, 'Kernels of conv1'), mosaic.draw_kernels(run.model.params['conv1']['kernel']).channels, 1
  )
  sync_api.expect(unit).to_have_value('1')
  click(visitor, 'Find them')
  captions = visitor.locator('.thumbnail-item .caption-label')
  sync_api.expect(captions).to_have_count(9, timeout=60_000)
  strongest = run.strongest_images('conv1')
  expected = [caption for _, caption in units.patches(run.model, run.test, 'conv1', 1, strongest)]
  assert captions.all_inner_texts() == expected
  click(visitor, 'Switch the selected unit off')
  sync_api.expect(visitor.get_by_text('conv1 1', exact=True)).to_be_visible()


@pytest.mark.slow
def test_a_unit_that_the_chosen_layer_lacks_becomes_its_last(run, visit, photographs):
  visitor = visit()
  classify(visitor, photographs[0][0])
  click_tab(visitor, 'Inside')
  choose(visitor, 'Layer', 'fc6')
  unit = visitor.get_by_label('Unit', exact=True).filter(visible=True)
  unit.fill('200')
  choose(visitor, 'Layer', 'conv1')
  sync_api.expect(unit).to_have_value('5')  # of 6 kernels
  sync_api.expect(bars(visitor, 'The whole network')).to_have_count(5)
  click_tab(visitor, 'Why')
  choose(visitor, 'Class or unit', 'the unit below')
  unit.fill('23')
  choose(visitor, 'Layer of the unit', 'conv1')
  sync_api.expect(unit).to_have_value('5')
  assert not visitor.get_by_test_id('toast-body').count()


@pytest.mark.slow
def test_a_photograph_is_explained_and_an_image_is_optimised(visit, photographs):
  visitor = visit()
  click_tab(visitor, 'Why')
  click(visitor, 'Explain the photograph')
  sync_api.expect(visitor.get_by_test_id('toast-body')).to_contain_text('there is no photograph yet')
  drop(visitor, photographs[0][0])
  click_tab(visitor, 'Predict')
  bars(visitor, 'most probable classes').first.wait_for()
  click_tab(visitor, 'Why')
  figure = visitor.get_by_test_id('matplotlib').locator('img')
  sources = []

  def expect_another_figure(button):
    click(visitor, button)
    figure.wait_for()
    script = 'seen => !seen.includes(document.querySelector("[data-testid=matplotlib] img").src)'
    visitor.wait_for_function(script, arg=sources)
    sources.append(figure.get_attribute('src'))

  for method in ('Grad-CAM', 'Saliency', 'Guided backpropagation', 'Occlusion'):
    visitor.get_by_label(method).check()
    expect_another_figure('Explain the photograph')
  choose(visitor, 'Class or unit', 'the unit below')
  expect_another_figure('Explain the photograph')
  for label in ('3', '4'):
    choose(visitor, 'Class or unit', label)
    expect_another_figure('Explain the photograph')
    expect_another_figure('Optimise an image from noise')


@pytest.mark.slow
def test_neighbours_and_the_map_of_the_training_set_are_shown(run, visit, photographs):
  visitor = visit()
  classify(visitor, photographs[0][0])
  click_tab(visitor, 'Alike')
  click(visitor, 'Find the nearest training images')
  sync_api.expect(visitor.locator('.thumbnail-item')).to_have_count(8, timeout=120_000)
  choose(visitor, 'Layer, or the pixels', 'pixels')
  click(visitor, 'Find the nearest training images')
  photograph = np.asarray(PIL.Image.open(photographs[0][0]))[None]
  found = training_neighbours.find(run.model, run.folder, photograph, 'pixels', 8)
  captions = [
    f'{run.class_name(label)}, {distance:.3g}'
    for label, distance in zip(found.labels[0], found.distances[0], strict=True)
  ]
  sync_api.expect(visitor.locator('.thumbnail-item .caption-label')).to_have_text(captions, timeout=120_000)
  choose(visitor, 'Layer, or the pixels', 'fc7')
  click(visitor, 'Draw the map')
  shown = visitor.locator('.image-frame.selectable img').filter(visible=True)
  shown.wait_for(timeout=120_000)
  drawn = run.training_map('fc7', training_map.PRINCIPAL_COMPONENTS)
  last = int(drawn.picture.channels.max())  # nothing covers the last image
  click_channel(shown, drawn.picture.channels, last)
  _, (label,) = drawn.source.read_batch([int(drawn.indices[last])])
  enlarged = visitor.locator('.block:visible', has=visitor.locator('.image-frame:not(.selectable) img'))
  sync_api.expect(enlarged.last).to_contain_text(run.class_name(label))


@pytest.mark.slow
def test_two_runs_are_compared(page, run, visit, photographs, tmp_path):
  other = loaded_run.load(shutil.copytree(run.folder, tmp_path / 'other' / 'small'))
  titles = [f'{run.folder.parent.name}/small', 'other/small']
  (path, _), (name, _) = photographs
  other_name = best_class(other, np.asarray(PIL.Image.open(path)))
  served = page.make_page([run, other])
  visitor = visit(page.serve(served))
  try:
    drop(visitor, path)
    expect_class(visitor, f'{titles[0]}: most probable', name)
    expect_class(visitor, 'other/small: most probable', other_name)
    agreement = f'Both runs predict {name}.' if name == other_name else f'The runs differ: {name}, {other_name}.'
    sync_api.expect(visitor.get_by_text(agreement)).to_be_visible()
    tabs = ['Predict', 'Inside', 'Why', 'Alike']
    assert visitor.get_by_role('tab').filter(visible=True).all_inner_texts() == tabs
    for tab in tabs[1:]:
      click_tab(visitor, tab)
      assert visitor.get_by_role('tab').filter(visible=True).all_inner_texts() == [*tabs, *titles]
  finally:
    served.close(verbose=False)


@pytest.mark.slow
def test_a_hostile_image_is_classified_or_refused_in_one_sentence(visit, shared_data, photographs):
  paths = sorted((shared_data / 'hostile_images').iterdir())
  assert len(paths) == 28
  outcomes = {}
  for path in paths:
    visitor = visit()
    drop(visitor, path)
    message = visitor.get_by_test_id('toast-body')
    bars(visitor, 'most probable classes').first.or_(message.first).wait_for()
    outcomes[path.name] = message.first.inner_text() if message.count() else ''
    if outcomes[path.name]:
      assert 'the image cannot be read: ' in outcomes[path.name]
      assert outcomes[path.name].endswith('choose another image.')
      assert 'Traceback' not in outcomes[path.name]
    visitor.context.close()
  assert not outcomes['hopper.webp'] + outcomes['hopper_gray.jpg'] + outcomes['1_trns.png']
  assert outcomes['broken.png']
  assert outcomes['decompression_bomb.gif']
  visitor = visit()
  drop(visitor, photographs[0][0])
  expect_class(visitor, 'most probable classes', photographs[1][0])


@pytest.mark.slow
def test_visitors_do_not_affect_each_other(visit, photographs):
  first, second = visit(), visit()
  drop(first, photographs[0][0])
  drop(second, photographs[0][1])
  for visitor, name in zip((first, second), photographs[1], strict=True):
    expect_class(visitor, 'most probable classes', name)
  click_tab(first, 'Inside')
  first.get_by_label('tower 0').check()
  click_tab(second, 'Inside')
  for visitor, name in zip((first, second), photographs[1], strict=True):
    click_tab(visitor, 'Predict')
    expect_class(visitor, 'most probable classes', name)
  click_tab(second, 'Inside')
  assert not second.get_by_label('tower 0').is_checked()
  assert bars(second, 'Without these parts').all_inner_texts() == bars(second, 'The whole').all_inner_texts()


@pytest.mark.slow
def test_the_keyboard_alone_reaches_the_tabs_and_the_buttons(visit):
  visitor = visit()

  def tab_to(text):
    for _ in range(60):
      visitor.keyboard.press('Tab')
      if visitor.evaluate('document.activeElement.innerText') == text:
        return
    raise AssertionError(f'{text} is not reached')

  tab_to('Random test image')
  visitor.keyboard.press('Enter')
  sync_api.expect(bars(visitor, 'most probable classes')).to_have_count(5, timeout=60_000)
  for tab, button in (('Inside', 'Find them'), ('Why', 'Explain the photograph'), ('Alike', 'Draw the map')):
    tab_to(tab)
    visitor.keyboard.press('Enter')
    tab_to(button)
    visitor.evaluate('document.activeElement.blur()')
  visitor.reload()
  tab_to('Inside')
  visitor.keyboard.press('Enter')
  tab_to('Find them')
  visitor.keyboard.press('Enter')
  sync_api.expect(visitor.locator('.thumbnail-item')).to_have_count(9, timeout=60_000)


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def post(url, data):
  request = urllib.request.Request(url, json.dumps(data).encode(), {'Content-Type': 'application/json'})
  return urllib.request.urlopen(request, timeout=30).read().decode()


def call(address, name, *data):
  """Calls a function of the page through its API; returns the response, in which an error is an event."""
  event = json.loads(post(f'{address}gradio_api/call/{name}', {'data': data}))['event_id']
  return urllib.request.urlopen(f'{address}gradio_api/call/{name}/{event}', timeout=60).read().decode()


def is_refused(address, name, data):
  try:
    return call(address, name, data).startswith('event: error')
  except urllib.error.HTTPError as error:
    return error.code == 403


def test_only_uploaded_files_can_be_read(address, photographs):
  def file(path):
    return {'path': str(path), 'meta': {'_type': 'gradio.FileData'}}

  for path in ('/etc/hostname', photographs[0][0]):
    for name, data in (('read', file(path)), ('predict_files', [file(path)])):
      assert is_refused(address, name, data)
    with pytest.raises(urllib.error.HTTPError) as refused:
      urllib.request.urlopen(f'{address}gradio_api/file={path}', timeout=30)
    assert refused.value.code == 403


def test_no_file_is_written_to_the_package(address):
  call(address, 'draw_test_image')
  written = {path.name for path in PACKAGE.rglob('*') if not path.name.endswith(('.py', '.pyc'))}
  assert not {name for name in written if 'gradio' in name or name.endswith(('.webp', '.png', '.pem', '.csv'))}


def test_errors_name_what_to_do(page, run, address):
  with pytest.raises(UsageError, match=r'port \d+ of 127.0.0.1 is in use; choose another --port'):
    page.serve(page.make_page([run]), port=int(address.strip('/').rpartition(':')[2]))
  with pytest.raises(UsageError, match='is named twice'):
    page.make_page([run, run])


@pytest.mark.parametrize(
  ('folders', 'titles'),
  [
    (['/runs/digits', '/runs/tanh'], ['digits', 'tanh']),
    (['/a/runs/digits', '/b/runs/digits'], ['a/runs/digits', 'b/runs/digits']),
    (['/digits', '/old/digits'], ['/digits', 'old/digits']),
    (['/runs/digits'], ['digits']),
  ],
)
def test_titles_of_runs_differ(run, folders, titles):
  runs = [dataclasses.replace(run, folder=pathlib.Path(folder)) for folder in folders]
  assert list(loaded_run.by_title(runs).items()) == list(zip(titles, runs, strict=True))


def test_photographs_of_phones_are_upright(page, run, tmp_path):
  """The camera stores the image on its side, and its EXIF orientation is 6."""
  predict_tab = importlib.import_module('alexnet_jax.explore.predict_tab')
  upright, exif = PIL.Image.fromarray(run.test[3]['image']), PIL.Image.Exif()
  exif[0x0112] = 6
  upright.save(tmp_path / 'upright.png')
  upright.transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / 'phone.png', exif=exif)
  shown, expected = (page._read(run.model.stored_size, tmp_path / f'{name}.png')[0] for name in ('phone', 'upright'))
  np.testing.assert_array_equal(shown, expected)
  rows = predict_tab._predict_files([run], [tmp_path / 'phone.png', tmp_path / 'upright.png'])
  assert rows[0][1:] == rows[1][1:]


@pytest.mark.parametrize('port', [0, -1, 70_000])
def test_a_port_that_does_not_exist_is_a_usage_error(page, port):
  with pytest.raises(UsageError, match=f'--port={port} must be 1 to 65535'):
    page.command(types.SimpleNamespace(workdirs=[], host='127.0.0.1', port=port))


@pytest.mark.usefixtures('page')
def test_only_units_of_layers_with_weights_are_switched_off(run):
  inside_tab = importlib.import_module('alexnet_jax.explore.inside_tab')
  assert inside_tab._add_unit(run, 'conv3', 2, ['conv1 0']) == ['conv1 0', 'conv3 2']
  for layer, unit, message in (('pool1', 0, "'pool1 0' is no unit"), ('conv3', None, 'enter one of them')):
    with pytest.raises(UsageError, match=message):
      inside_tab._add_unit(run, layer, unit, [])


def test_classes_with_the_same_name_have_a_bar_each():
  model = types.SimpleNamespace(class_names=['crane', 'dog', 'crane'])
  bars = loaded_run.best_classes(model, np.array([0.6, 0.1, 0.3]))
  assert list(bars.items()) == [('crane (0)', 0.6), ('crane (2)', 0.3), ('dog', 0.1)]


@pytest.mark.parametrize('names', [['conv1', 'conv4', 'pool5', 'fc6'], ['conv1', 'pool5', 'conv6', 'fc8']])
@pytest.mark.usefixtures('page')
def test_the_layer_whose_units_are_explained_first_exists(names):
  assert why_components(names, ['cat'])['Layer of the unit'].value in names


@pytest.mark.usefixtures('page')
def test_classes_with_the_same_name_are_explained_by_label():
  choices = why_components(['conv5', 'fc8'], ['crane', 'dog', 'crane'])['Class or unit'].choices
  assert choices[2:] == [('crane (0)', 0), ('dog', 1), ('crane (2)', 2)]


def why_components(layer_names, class_names):
  """Returns the labelled components of the tab of explanations."""
  import gradio as gr

  from alexnet_jax.explore import why_tab

  network = types.SimpleNamespace(layer_names=layer_names)
  run = types.SimpleNamespace(model=types.SimpleNamespace(network=network, class_names=class_names))
  with gr.Blocks() as blocks:
    why_tab.add(run, gr.State())
  return {block.label: block for block in blocks.blocks.values() if getattr(block, 'label', '')}


def test_colab_prints_a_link_of_its_proxy(page, monkeypatch):
  assert page.colab_link(7860) is None
  colab = types.ModuleType('google.colab')
  colab.output = types.SimpleNamespace()
  monkeypatch.setitem(sys.modules, 'google.colab', colab)
  links = {'google.colab.kernel.proxyPort(7860)': 'https://7860.googleusercontent.com/'}
  colab.output.eval_js = links.__getitem__
  assert page.colab_link(7860) == 'https://7860.googleusercontent.com/'
  colab.output.eval_js = lambda script: None.kernel  # as in a process that the notebook starts
  assert 'in a cell' in page.colab_link(7860)


@pytest.mark.soak
def test_five_hundred_predictions_by_two_visitors_leave_memory_as_it_was(run):
  """Reads the resident memory of the command while two visitors classify random test images."""
  gradio_client = pytest.importorskip('gradio_client')
  command = [sys.executable, '-m', 'alexnet_jax', 'explore', str(run.folder), '--port', str(free_port())]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      address = process.stdout.readline().split()[0]

      def classify(num_images):
        visitor = gradio_client.Client(address, verbose=False, download_files=False)
        for _ in range(num_images):
          visitor.predict(api_name='/draw_test_image')
          (_, best, *_) = visitor.predict(api_name='/predict')
          assert best['label'] in run.model.class_names

      megabytes = []
      for _ in range(5):
        with concurrent.futures.ThreadPoolExecutor(2) as visitors:
          list(visitors.map(classify, [50, 50]))
        status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
        megabytes.append(int(re.search(r'VmRSS:\s+(\d+)', status)[1]) / 1024)
      print('resident memory after 100, 200, ... 500 predictions, MB:', megabytes)
      assert megabytes[-1] - megabytes[0] < MAX_GROWTH
    finally:
      process.terminate()
