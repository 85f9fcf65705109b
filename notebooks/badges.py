"""Writes the project's address, `url` in setup.cfg, into the notebooks.

    python notebooks/badges.py

On Colab, the first code cell of a notebook installs the project from this address.
For an address on GitHub, every notebook has a badge that opens it on Colab. With an
empty `url`, the command removes both.
"""

import configparser
import json
import pathlib
import re

FOLDER = pathlib.Path(__file__).resolve().parent


def read_url(setup: pathlib.Path) -> str:
  """Returns the address of the project, which is empty if it has none."""
  parser = configparser.ConfigParser()
  parser.read(setup)
  return parser['metadata']['url']


def fill_in(text: str, name: str, url: str) -> str:
  """Returns the text of a notebook with an address and, if possible, a badge.

  Args:
    text: contents of the notebook.
    name: file name of the notebook.
    url: address of the project.
  """
  notebook = json.loads(text)
  heading, *body = notebook['cells'][0]['source']
  if body[1].startswith('[![Open in Colab]'):
    del body[:2]
  project = re.fullmatch(r'https://github\.com/([^/]+/[^/]+?)(\.git)?/?', url)
  if project:
    page = f'github/{project[1]}/blob/main/notebooks/{name}'
    link = f'https://colab.research.google.com/{page}'
    body = ['\n', f'[![Open in Colab](colab.svg)]({link})\n', *body]
  notebook['cells'][0]['source'] = [heading, *body]
  code = next(cell for cell in notebook['cells'] if cell['cell_type'] == 'code')
  code['source'][0] = f"REPOSITORY = '{url}'\n"
  return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


def main() -> None:
  """Rewrites all notebooks."""
  url = read_url(FOLDER.parent / 'setup.cfg')
  for path in sorted(FOLDER.glob('*.ipynb')):
    path.write_text(fill_in(path.read_text(), path.name, url))


if __name__ == '__main__':
  main()
