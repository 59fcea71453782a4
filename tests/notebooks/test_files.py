"""The notebooks as stored in git: without outputs, in plain English, short, and known to docs/notebooks.md."""

import json
import re

import nbformat
import pytest

from scripts.strip_notebooks import FOLDER, main, strip_notebook
from tests.test_style import _text, parse, violations

NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))

#: Maximum number of lines of a code cell: those of a screen.
MAX_LINES = 40


def cells_of(path, cell_type):
    """Return the ids and sources of the cells of a type."""
    return {
        cell['id']: ''.join(cell['source'])
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']
        if cell['cell_type'] == cell_type
    }


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_the_file_is_a_valid_notebook_without_outputs(notebook):
    text = notebook.read_text(encoding='utf-8')
    content = json.loads(text)
    nbformat.validate(content)
    assert content['metadata'] == {'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}}
    code = [cell for cell in content['cells'] if cell['cell_type'] == 'code']
    assert code and all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)
    assert all(cell['metadata'] == {} for cell in content['cells'])
    assert strip_notebook(text) == text, 'run: python scripts/strip_notebooks.py'


def test_the_ids_of_cells_are_words(notebook):
    """Jupyter draws random ids for new cells; a test or a link cannot name these."""
    ids = [*cells_of(notebook, 'markdown'), *cells_of(notebook, 'code')]
    assert [name for name in ids if not re.fullmatch(r'[a-z]+(-[a-z]+)*', name)] == []
    assert len(set(ids)) == len(ids)


def test_prose_follows_the_style_guide(notebook):
    texts = [_text('comment', 1, text) for text in cells_of(notebook, 'markdown').values()]
    for source in cells_of(notebook, 'code').values():
        texts += parse(re.sub('^%.*', '', source, flags=re.MULTILINE)).texts
    found = [f'"{context}" ({pattern.name}); write {pattern.write}' for _, pattern, context in violations(texts)]
    assert found == []


def test_the_first_cell_is_a_heading_and_code_cells_are_short(notebook):
    first, *_ = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    assert first['cell_type'] == 'markdown' and first['source'][0].startswith('# ')
    lengths = {name: source.count('\n') + 1 for name, source in cells_of(notebook, 'code').items()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_files_are_written_only_to_a_temporary_folder(notebook):
    """The only fixed paths are those of the repository's models, which are read."""
    code = '\n'.join(cells_of(notebook, 'code').values())
    assert re.findall(r'https?:|/tmp|/home', code) == []
    assert set(re.findall(r"'(\.\.?/[^']*)'", code)) <= {
        '../modelfiles/nuclei_mobilenet_v1_fpn.npz',
        '../modelfiles/shapes_mobilenet_v1_fpn.npz',
    }


def test_links_and_named_notebooks_exist(notebook):
    prose = '\n'.join(cells_of(notebook, 'markdown').values())
    named = re.findall(r'\]\(([^)#:]+)\)', prose) + re.findall(r'`(\w+\.(?:ipynb|py))`', prose)
    assert [path for path in named if not (FOLDER / path).exists()] == []


def test_the_page_describes_every_notebook(root):
    page = (root / 'docs' / 'notebooks.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `notebooks/(\w+)\.ipynb` \|', page, re.MULTILINE)
    assert sorted(rows) == [path.stem for path in NOTEBOOKS]


def test_strip_removes_what_jupyter_adds(tmp_path, capsys):
    path = tmp_path / 'executed.ipynb'
    cell = nbformat.v4.new_code_cell('1 + 1', id='sum', execution_count=3, metadata={'collapsed': True})
    cell.outputs = [nbformat.v4.new_output('execute_result', {'text/plain': '2'}, execution_count=3)]
    cells = [nbformat.v4.new_markdown_cell('# Sum ü', id='title'), cell]
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={'language_info': {'name': 'python', 'version': '3.1'}}), path
    )
    assert main([str(path)]) == 0
    stripped = nbformat.read(path, 4)
    assert [(cell.id, cell.source, cell.metadata) for cell in stripped.cells] == [
        ('title', '# Sum ü', {}),
        ('sum', '1 + 1', {}),
    ]
    assert stripped.cells[1].outputs == [] and stripped.cells[1].execution_count is None
    assert set(stripped.metadata) == {'kernelspec'}
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f'stripped {path}\n'
