"""Remove outputs, execution counts and metadata from notebooks, as they are stored in git.

python scripts/strip_notebooks.py [FILE ...]

Without arguments, all notebooks in ``notebooks/`` are stripped.  Only files that change are written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mask_rcnn.io.atomic_file import open_for_writing

FOLDER = Path(__file__).resolve().parents[1] / 'notebooks'
_METADATA = {'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}}


def main(argv: list[str] | None = None) -> int:
    """Strip notebooks; returns the exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', type=Path, metavar='FILE', help='notebooks (default: all of them)')
    args = parser.parse_args(argv)
    for path in args.notebooks or sorted(FOLDER.glob('*.ipynb')):
        text = path.read_text(encoding='utf-8')
        stripped = strip_notebook(text)
        if stripped != text:
            with open_for_writing(path) as file:
                file.write(stripped.encode())
            print(f'stripped {path}')
    return 0


def strip_notebook(text: str) -> str:
    """Return a notebook without outputs, execution counts and metadata, except the name of its kernel.

    Args:
        text: The contents of a file of Jupyter's format 4.5 or later, in which cells have ids.
    """
    notebook = json.loads(text)
    for cell in notebook['cells']:
        cell['metadata'] = {}
        if cell['cell_type'] == 'code':
            cell |= {'execution_count': None, 'outputs': []}
    stripped = {'cells': notebook['cells'], 'metadata': _METADATA, 'nbformat': 4, 'nbformat_minor': 5}
    return json.dumps(stripped, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


if __name__ == '__main__':
    sys.exit(main())
