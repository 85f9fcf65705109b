"""The tab of the network's inside: kernels, maps, what excites a unit, and predictions with parts switched off."""

import functools
from typing import Any

import gradio as gr
import numpy as np

from alexnet_jax.data import cropping
from alexnet_jax.explore import ablation, loaded_run, mosaic, units
from alexnet_jax.explore.ablation import Ablation
from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.explore.visitors import LONG, TQDM, clip_unit, reported
from alexnet_jax.runtime.errors import UsageError

ENLARGED = 330  # side of an enlarged map, pixels


def add(run: LoadedRun, stored: gr.State) -> None:
  """Adds the components of a run to the current tab.

  Args:
    run: the run.
    stored: the stored image of the visitor, [size, size, rgb] uint8.
  """
  num_towers = run.model.network.num_towers
  kernels_of_conv1 = mosaic.draw_kernels(np.asarray(run.model.params['conv1']['kernel']))
  gr.Markdown('One block for each tower. Click a kernel, or a map of the photograph, or enter the number of a unit.')
  with gr.Row():
    layer = gr.Dropdown(list(run.model.network.layer_names), value='conv1', label='Layer')
    unit = gr.Number(0, label='Unit', precision=0, minimum=0)
  with gr.Row():
    with gr.Column(min_width=300):
      gr.Markdown('**Kernels of conv1**')
      kernels = gr.Image(
        kernels_of_conv1.pixels, label='Kernels of conv1', show_label=False, interactive=False, buttons=[]
      )
    with gr.Column(min_width=300):
      gr.Markdown('**Maps of the layer**')
      maps = gr.Image(label='Maps of the layer', show_label=False, interactive=False, buttons=[])
  with gr.Row():
    with gr.Column(min_width=300):
      gr.Markdown('**Map of the unit**')
      enlarged = gr.Image(label='Map of the unit', show_label=False, interactive=False, buttons=[], height=ENLARGED)
    with gr.Column(min_width=300):
      gr.Markdown('**Test images that excite the unit most**, and the patch that it sees')
      find = gr.Button('Find them')
      strongest = gr.Gallery(label='Patches', show_label=False, columns=3, object_fit='contain', interactive=False)
  gr.Markdown('### Switch parts off')
  with gr.Row():
    towers_off = gr.CheckboxGroup([f'tower {tower}' for tower in range(num_towers)], label='Towers without output')
    norms_off = gr.CheckboxGroup(ablation.normalised_layers(run.model), label='Layers without normalisation')
    units_off = gr.Dropdown([], multiselect=True, allow_custom_value=True, label='Units without output, as conv1 7')
    switch_off = gr.Button('Switch the selected unit off')
  with gr.Row():
    before = gr.Label(label='The whole network, centre crop', num_top_classes=loaded_run.NUM_CLASSES)
    after = gr.Label(label='Without these parts', num_top_classes=loaded_run.NUM_CLASSES)

  def select_kernel(event: gr.SelectData):
    channel = kernels_of_conv1.channel_at(*event.index)
    return ('conv1', channel) if channel >= 0 else (gr.skip(), gr.skip())

  def select_map(layer, event: gr.SelectData):
    channel = mosaic.draw_maps(np.zeros(run.model.layer_shape(layer), np.float32), num_towers).channel_at(*event.index)
    return channel if channel >= 0 else gr.skip()

  parts: list[Any] = [towers_off, norms_off, units_off]
  clipped = layer.change(functools.partial(clip_unit, run), [layer, unit], unit)
  show = reported(functools.partial(_show_layer, run))
  shown = [stored, layer, unit, *parts], [maps, enlarged, before, after]
  clipped.then(show, *shown)
  gr.on([stored.change, unit.change, *(part.change for part in parts)], show, *shown)
  kernels.select(select_kernel, None, [layer, unit])
  maps.select(select_map, layer, unit)
  find.click(reported(functools.partial(_find_strongest, run)), [layer, unit], strongest, **LONG)
  switch_off.click(reported(functools.partial(_add_unit, run)), [layer, unit, units_off], units_off)


def _show_layer(run, image, layer, unit, *parts):
  """Returns the maps of the layer, the map of the unit, and the predictions with and without the parts."""
  if image is None:
    return None, None, None, None
  unit = loaded_run.require_unit(run, layer, unit)
  towers_off, norms_off, units_off = parts
  switched_off = Ablation(
    tuple(int(name.split()[1]) for name in towers_off),
    tuple(_parse_unit(run, text) for text in units_off),
    tuple(norms_off),
  )
  model = ablation.apply(run.model, switched_off) if any(switched_off) else run.model
  outputs = np.asarray(model.activations(image[None], layer))[0]
  before = _predict(run.model, image)
  after = before if model is run.model else _predict(model, image)
  return mosaic.draw_maps(outputs, run.model.network.num_towers).pixels, _enlarge(outputs, unit), before, after


def _predict(model, image):
  crops = cropping.centre_crop_only(model.config.border)
  return loaded_run.best_classes(model, loaded_run.probabilities(model, image, crops)[0])


def _enlarge(outputs, unit):
  """Draws the map of a unit; a unit of a fully-connected layer has none."""
  if outputs.ndim == 1:
    return None
  pixels = mosaic.draw_maps(outputs[..., [unit]], num_towers=1).pixels
  return mosaic.magnify(pixels[mosaic.MARGIN : -mosaic.MARGIN, mosaic.MARGIN : -mosaic.MARGIN], ENLARGED)


def _add_unit(run, layer, unit, units_off):
  """Returns the units that are switched off, and another one."""
  text = f'{layer} {loaded_run.require_unit(run, layer, unit)}'
  _parse_unit(run, text)
  return [*units_off, text]


def _parse_unit(run, text):
  layer, _, number = text.partition(' ')
  if layer not in run.model.params or not number.isdecimal():
    raise UsageError(f"'{text}' is no unit; enter a layer with weights and a number, such as conv1 7.")
  return layer, loaded_run.require_unit(run, layer, int(number))


def _find_strongest(run, layer, unit, progress=TQDM):
  """Returns the patches that excite a unit most, with captions."""
  del progress
  channel = loaded_run.require_unit(run, layer, unit)
  return units.patches(run.model, run.test, layer, channel, run.strongest_images(layer))
