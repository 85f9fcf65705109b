"""The tab of explanations: the pixels on which a class or a unit depends, and images that are optimised for it."""

import functools

import gradio as gr

from alexnet_jax.analysis import explain, plots
from alexnet_jax.explore import loaded_run
from alexnet_jax.explore.loaded_run import LoadedRun
from alexnet_jax.explore.visitors import LONG, clip_unit, reported

MOST_PROBABLE = 'the most probable class'
A_UNIT = 'the unit below'
NARROW = 320  # pixels; on a phone, components of this width are below each other
METHODS = {  # title on the page: name of the method
  'Saliency': 'saliency',
  'Guided backpropagation': 'guided_backpropagation',
  'Grad-CAM': 'grad_cam',
  'Occlusion': 'occlusion',
}


def add(run: LoadedRun, stored: gr.State) -> None:
  """Adds the components of a run to the current tab.

  Args:
    run: the run.
    stored: the stored image of the visitor, [size, size, rgb] uint8.
  """
  gr.Markdown('On which pixels does a class or a unit depend? Occlusion takes the longest.')
  with gr.Row():
    method = gr.Radio(list(METHODS), value='Grad-CAM', label='Method', min_width=NARROW)
    labels = ((title, label) for label, title in enumerate(loaded_run.class_titles(run.model)))
    targets: list[str | tuple[str, int]] = [MOST_PROBABLE, A_UNIT, *labels]
    target = gr.Dropdown(targets, value=MOST_PROBABLE, label='Class or unit', min_width=NARROW)
  with gr.Row(visible=False) as layer_and_unit:
    layers = list(run.model.network.layer_names)
    last_conv = max(name for name in layers if name.startswith('conv'))
    layer = gr.Dropdown(layers, value=last_conv, label='Layer of the unit')
    unit = gr.Number(0, label='Unit', precision=0, minimum=0)
  with gr.Row():
    explain_button = gr.Button('Explain the photograph')
    maximise_button = gr.Button('Optimise an image from noise')
  figure = gr.Plot(label='Explanation')
  layer.change(functools.partial(clip_unit, run), [layer, unit], unit)
  target.change(lambda target: gr.Row(visible=target == A_UNIT), target, layer_and_unit)
  choice = [target, layer, unit]
  explain_button.click(reported(functools.partial(_explain, run)), [stored, method, *choice], figure, **LONG)
  maximise_button.click(reported(functools.partial(_maximise, run)), choice, figure, **LONG)


def _explain(run, image, method, *choice):
  image = loaded_run.require_image(image)
  (explanation,) = explain.explain(run.model, image[None], METHODS[method], _target(run, *choice))
  in_colour = METHODS[method] == 'guided_backpropagation'
  return plots.draw_explanations([explanation.image], [explanation.values], [_title(explanation)], in_colour=in_colour)


def _maximise(run, *choice):
  target = _target(run, *choice)
  if target is None:
    raise gr.Error(f'Choose a class or a unit instead of {MOST_PROBABLE}.', print_exception=False)
  optimised = explain.maximise(run.model, target)
  return plots.draw_images([optimised.image], [_title(optimised)])


def _title(explanation):
  return f'{plots.short_name(explanation.name)}: {explanation.score:.2f}'


def _target(run, target, layer, unit):
  if target == MOST_PROBABLE:
    return None
  return (layer, loaded_run.require_unit(run, layer, unit)) if target == A_UNIT else target
