"""The tab of alike images: the nearest training images in a layer (figure 4), and a map of the training set."""

import functools

import gradio as gr

from alexnet_jax.analysis import training_neighbours
from alexnet_jax.explore import loaded_run, training_map
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
    'The training images whose activations, or whose pixels, are nearest to those of the photograph, with their '
    'classes and distances. The activations of the training set are computed once, and saved to the folder of the run.'
  )
  layers = [training_neighbours.PIXELS, *run.model.network.layer_names]
  layer = gr.Dropdown(layers, value='fc7', label='Layer, or the pixels')
  find = gr.Button('Find the nearest training images')
  nearest = gr.Gallery(label='Nearest training images', show_label=False, columns=3, interactive=False)
  gr.Markdown(
    '### Map of the training set\nTraining images with similar activations, or pixels, are near each other. Click an '
    'image to enlarge it.'
  )
  names = training_map.projections()
  projection = gr.Radio(names, value=names[0], label='Projection', visible=len(names) > 1)
  draw = gr.Button('Draw the map')
  with gr.Row():
    picture = gr.Image(label='Map', interactive=False, buttons=[], scale=2)
    clicked = gr.Image(label='Image of the map', interactive=False, buttons=[], scale=1)

  def select(layer, projection, event: gr.SelectData):
    drawn = run.training_map(layer, projection)
    index = drawn.picture.channel_at(*event.index)
    if index < 0:
      return gr.skip()
    (image,), (label,) = drawn.source.read_batch([int(drawn.indices[index])])
    return gr.Image(image, label=run.class_name(label))

  choice = [layer, projection]
  draw.click(reported(functools.partial(_draw_map, run)), choice, picture, **LONG)
  picture.select(select, choice, clicked)
  gr.on([layer.change, projection.change], lambda: (None, None), None, [picture, clicked])
  find.click(reported(functools.partial(_find, run)), [stored, layer], nearest, **LONG)


def _draw_map(run, layer, projection, progress=TQDM):
  del progress
  drawn = run.training_map(layer, projection)
  label = f'Map of {layer}: {projection}, {100 * drawn.explained:.0f} % of the variance'
  return gr.Image(drawn.picture.pixels, label=label)


def _find(run, image, layer, progress=TQDM):
  """Returns the nearest training images with captions."""
  del progress
  queries = loaded_run.require_image(image)[None]
  found = training_neighbours.find(run.model, run.folder, queries, layer, NUM_NEIGHBOURS)
  return [
    (near, f'{run.class_name(label)}, {distance:.3g}')
    for near, label, distance in zip(found.images[0], found.labels[0], found.distances[0], strict=True)
  ]
