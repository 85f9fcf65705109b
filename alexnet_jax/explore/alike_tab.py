"""The tab of alike images: the nearest training images in a layer (figure 4), and a map of the training set."""

import functools

import gradio as gr

from alexnet_jax.analysis import training_neighbours
from alexnet_jax.explore import loaded_run
from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.explore.visitors import LONG, TQDM, reported

NUM_NEIGHBOURS = 8


def add(run: LoadedRun, stored: gr.State) -> None:
  """Adds the components of a run to the current tab.

  Args:
    run: the run.
    stored: the stored image of the visitor, [size, size, rgb] uint8.
  """
  gr.Markdown(
    'The training images whose activations are nearest to those of the photograph, with their classes and distances. '
    'The activations of the training set are computed once, and saved to the folder of the run.'
  )
  layer = gr.Dropdown(list(run.model.network.layer_names), value='fc7', label='Layer')
  find = gr.Button('Find the nearest training images')
  nearest = gr.Gallery(label='Nearest training images', show_label=False, columns=4, interactive=False)
  gr.Markdown(
    '### Map of the training set\nTraining images at the first two principal components of their activations. Click an '
    'image to enlarge it.'
  )
  draw = gr.Button('Draw the map')
  with gr.Row():
    picture = gr.Image(label='Map', interactive=False, buttons=[], scale=2)
    clicked = gr.Image(label='Image of the map', interactive=False, buttons=[], scale=1)

  def select(layer, event: gr.SelectData):
    drawn = run.training_map(layer)
    index = drawn.picture.channel_at(*event.index)
    if index < 0:
      return gr.skip()
    (image,), (label,) = drawn.source.read_batch([int(drawn.indices[index])])
    return gr.Image(image, label=run.class_name(label))

  draw.click(reported(functools.partial(_draw_map, run)), layer, picture, **LONG)
  picture.select(select, layer, clicked)
  layer.change(lambda: (None, None), None, [picture, clicked])
  find.click(reported(functools.partial(_find, run)), [stored, layer], nearest, **LONG)


def _draw_map(run, layer, progress=TQDM):
  del progress
  drawn = run.training_map(layer)
  return gr.Image(drawn.picture.pixels, label=f'Map of {layer}, {100 * drawn.explained:.0f} % of the variance')


def _find(run, image, layer, progress=TQDM):
  """Returns the nearest training images with captions."""
  del progress
  queries = loaded_run.require_image(image)[None]
  found = training_neighbours.find(run.model, run.folder, queries, layer, NUM_NEIGHBOURS)
  return [
    (near, f'{run.class_name(label)}, {distance:.3g}')
    for near, label, distance in zip(found.images[0], found.labels[0], found.distances[0], strict=True)
  ]
