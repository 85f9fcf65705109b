"""Sphinx configuration of the site: `make docs` writes it to build/docs/html."""

import configparser
import pathlib

from docutils import nodes

ROOT = pathlib.Path(__file__).resolve().parents[1]
METADATA = configparser.ConfigParser()
METADATA.read(ROOT / 'setup.cfg')
URL = METADATA['metadata']['url']

project = 'alexnet_jax'
author = copyright = METADATA['metadata']['author']
release = version = METADATA['metadata']['version']

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
exclude_patterns = ['notebooks/README.md', 'notebooks/runs']
nitpicky = True  # report every reference that does not resolve

# Pages and notebooks. Outputs are cached in build/docs, so a second build executes only what changed.
myst_enable_extensions = ['colon_fence', 'deflist', 'attrs_block', 'attrs_inline']
myst_heading_anchors = 3
nb_execution_mode = 'cache'
nb_execution_cache_path = str(ROOT / 'build' / 'docs' / 'notebooks')
nb_execution_in_temp = True  # outputs do not depend on earlier runs
nb_execution_timeout = 1800  # seconds of one cell
nb_execution_raise_on_error = True
nb_merge_streams = True

# Python API: docstrings contain the types, and code in single backquotes.
default_role = 'code'
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_use_ivar = True

html_theme = 'sphinx_book_theme'
html_title = 'alexnet_jax'
html_static_path = ['style']
html_css_files = ['narrow.css']
html_sidebars = {'**': ['navbar-logo', 'search-field', 'sbt-sidebar-nav']}
html_theme_options = {
  'repository_url': URL,
  'use_repository_button': bool(URL),
  'use_fullscreen_button': False,
  'use_download_button': False,
  'show_navbar_depth': 1,
  'navbar_persistent': [],  # the search field is in the sidebar
  'pygments_light_style': 'a11y-high-contrast-light',
  'pygments_dark_style': 'a11y-high-contrast-dark',
}


def source(name, rawtext, text, lineno, inliner, options=None, content=None):
  """The role {source}`path`: a path in the repository, linked once the project has a public address."""
  literal = nodes.literal(rawtext, text)
  if not URL:
    return [literal], []
  return [nodes.reference(rawtext, '', literal, refuri=f'{URL}/blob/main/{text}')], []


def setup(app):
  """Registers the role."""
  app.add_role('source', source)
