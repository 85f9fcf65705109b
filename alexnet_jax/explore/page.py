"""The page of `python -m alexnet_jax explore`, made of Gradio's components."""

import argparse
import contextlib
import functools
import pathlib
import pkgutil
from collections.abc import Sequence

import gradio as gr
import numpy as np

from alexnet_jax.analysis import figures
from alexnet_jax.data import image_io
from alexnet_jax.explore import alike_tab, inside_tab, loaded_run, mosaic, predict_tab, why_tab
from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.explore.visitors import LONG, add_photograph, reported
from alexnet_jax.runtime import host_memory
from alexnet_jax.runtime.errors import UsageError

MAX_UPLOAD = '100mb'
MAX_RUNS = 2
SHOWN_SIDE = 256  # pixels
DELETE_CACHE = (600, 3600)  # seconds from one deletion to the next, and of the age of deleted uploads and images
INTRODUCTION = (
  '# {runs}\nDrop a photograph, paste it or take it with the webcam. Its short side is resized, and its centre is '
  'cropped, as in training.'
)


def command(options: argparse.Namespace) -> int:
  """Runs `explore`: serves the page until it is interrupted, and returns 0.

  Raises:
    UsageError: if a run does not exist or is no AlexNet, there are too many, they read images of different sizes, or
      the port is in use.
    RunError: if a run has no readable checkpoint.
  """
  if not 0 < options.port < 2**16:
    raise UsageError(f'--port={options.port} must be 1 to {2**16 - 1}.')
  if len(options.workdirs) > MAX_RUNS:
    raise UsageError(f'{len(options.workdirs)} runs are too many; name one, or two to compare them.')
  host_memory.trim_after_compiling()
  page = make_page([loaded_run.load(folder) for folder in options.workdirs])
  print(f'{serve(page, options.host, options.port)}  (end with Ctrl-C)', flush=True)
  if link := colab_link(options.port):
    print(f'On Colab: {link}', flush=True)
  page.block_thread()
  return 0


def colab_link(port: int) -> str | None:
  """Returns the link to a port of this computer in Colab's proxy, how to get it, or None if this is not Colab."""
  try:
    output = pkgutil.resolve_name('google.colab:output')  # only Colab has it
  except ImportError:
    return None
  try:
    return output.eval_js(f'google.colab.kernel.proxyPort({port})')
  except AttributeError:  # only the process of the notebook is connected to the browser
    return "for a link, run `from alexnet_jax import __main__; __main__.main(['explore', 'WORKDIR'])` in a cell"


def serve(page: gr.Blocks, host: str = '127.0.0.1', port: int | None = None) -> str:
  """Serves a page from a thread until it is closed.

  Args:
    page: the page.
    host: address to serve on.
    port: port to serve on; None for any that is free.

  Returns:
    The address of the page.

  Raises:
    UsageError: if the port cannot be served on.
  """
  try:
    _, address, _ = page.launch(
      server_name=host,
      server_port=port,
      share=False,
      quiet=True,
      prevent_thread_lock=True,
      max_file_size=MAX_UPLOAD,
      theme=gr.themes.Default(font=['sans-serif'], font_mono=['monospace']),  # the default fonts are on the internet
      footer_links=[],
    )
  except OSError as error:
    raise UsageError(
      f'port {port} of {host} is in use; choose another --port, or another --host if this machine has no such address.'
    ) from error
  return address


def make_page(runs: Sequence[LoadedRun]) -> gr.Blocks:
  """Returns the page for one run, or for two runs that are compared.

  Raises:
    UsageError: if the runs store images of different sizes, or two are the same.
  """
  sizes = [run.model.stored_size for run in runs]
  if len(set(sizes)) > 1:
    raise UsageError(f'the runs read images of {sizes[0]} and {sizes[1]} pixels; compare runs with the same size.')
  by_title = loaded_run.by_title(runs)
  title = ' and '.join(by_title)
  with gr.Blocks(title=f'{title} - AlexNet', analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
    gr.Markdown(INTRODUCTION.format(runs=title))
    stored = gr.State()  # of each visitor: [size, size, rgb] uint8
    with gr.Row():
      with gr.Column(scale=1, min_width=260):
        photograph = add_photograph()
        random_image = gr.Button('Random test image')
        random_error = gr.Button('Random misclassified test image')
        shown = gr.Image(label='Resized and cropped', interactive=False, buttons=[])
        description = gr.Markdown()
      with gr.Column(scale=3, min_width=320):
        with gr.Tab('Predict'):
          predict_tab.add(by_title, stored)
        for name, tab in (('Inside', inside_tab), ('Why', why_tab), ('Alike', alike_tab)):
          with gr.Tab(name):
            for run_title, run in by_title.items():
              with gr.Tab(run_title) if len(runs) > 1 else contextlib.nullcontext():
                tab.add(run, stored)
    image = [stored, shown, description]
    photograph.change(reported(functools.partial(_read, sizes[0])), photograph, image)
    random_image.click(reported(functools.partial(_draw_test_image, runs[0])), None, image)
    random_error.click(reported(functools.partial(_draw_error, runs[0])), None, image, **LONG)
  return page


def _read(size, path):
  """Returns the stored image, for the state and for the eye, and a description."""
  if path is None:
    return None, None, ''
  try:
    image = image_io.read_square(pathlib.Path(path), size, exif=True)  # browsers show it rotated, too
  except ValueError as error:
    raise UsageError(f'the image cannot be read: {error}; choose another image.') from error
  return image, mosaic.magnify(image, SHOWN_SIDE), ''


def _draw_test_image(run):
  return _show_test_image(run, int(np.random.default_rng().integers(len(run.test))))


def _draw_error(run):
  """Classifies the centre crops of test images in random order until one is misclassified."""
  order = np.random.default_rng().permutation(len(run.test))
  errors, _ = figures.find_errors(run.model, run.test, order, 1)
  if not len(errors):
    raise UsageError(f'none of the {len(order):,} test images is known to be misclassified; draw any other.')
  return _show_test_image(run, int(errors[0]))


def _show_test_image(run, index):
  """Returns what `_read` returns, for an image of the test split."""
  (image,), (label,) = run.test.read_batch([index])
  return (
    image,
    mosaic.magnify(image, SHOWN_SIDE),
    f'Image {index} of {run.test.dataset}, {run.test.split}: **{run.class_name(label)}**',
  )
