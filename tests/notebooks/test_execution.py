"""The notebooks run from the first cell to the last, and their statements hold."""

import re

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from scripts.strip_notebooks import FOLDER
from tests.support.environment import subprocess_environment

#: Limit of a notebook in seconds.
TIMEOUT = 120


@pytest.fixture
def execute(root, tmp_path, monkeypatch):
    """Return a function that runs a notebook and returns the text and the pictures of each cell."""
    scratch = tmp_path / 'scratch'
    scratch.mkdir()
    environment = subprocess_environment(root, TMPDIR=str(scratch), IPYTHONDIR=str(tmp_path / 'ipython'))
    for variable, value in {**environment, 'PYTHONDONTWRITEBYTECODE': '1'}.items():
        monkeypatch.setenv(variable, value)

    def run(name):
        files = set(FOLDER.iterdir())
        notebook = nbformat.read(FOLDER / f'{name}.ipynb', 4)
        resources = {'metadata': {'path': str(FOLDER)}}
        NotebookClient(notebook, timeout=TIMEOUT, kernel_name='python3', resources=resources).execute()
        assert set(FOLDER.iterdir()) == files
        assert list(scratch.iterdir()) == []
        return {cell.id: Outputs(cell.outputs) for cell in notebook.cells if cell.cell_type == 'code'}

    return run


class Outputs:
    """The outputs of a cell.

    Args:
        outputs: The outputs in Jupyter's format.

    Attributes:
        text (str): The standard output.
        n_pictures (int): Number of pictures.
    """

    def __init__(self, outputs):
        self.text = ''.join(o.text for o in outputs if o.output_type == 'stream' and o.name == 'stdout')
        self.n_pictures = sum('image/png' in o.get('data', ()) for o in outputs)

    def numbers(self, pattern):
        """Return the numbers of each match of a pattern with one group, in order."""
        return [float(number) for number in re.findall(pattern, self.text, re.MULTILINE)]


def losses(outputs):
    """Return the losses of the table of a training."""
    return outputs.numbers(r'^ +\d+ +\d+ +\S+e-\d\d +([\d.]+)')


def check_demo(cells):
    (n_objects,) = cells['detect'].numbers(r'Detections\((\d+) in')
    assert n_objects == 7 == cells['table'].text.count('\n')
    (n_nuclei,) = cells['nuclei'].numbers(r'(\d+) nuclei')
    assert 50 <= n_nuclei <= 65


def check_train_shapes(cells):
    first, *_, last = losses(cells['train'])
    assert last < first / 2
    ap, ap50, ap75 = cells['metrics'].numbers(r'([\d.]+)$')
    assert 0.4 < ap < ap75 < ap50


def check_train_your_data(cells):
    assert 'VIA 2: 60 images' in cells['import'].text
    assert 'nothing doubtful' in cells['check'].text
    assert cells['split'].numbers(r'(\d+) images') == [48, 12]
    first, *_, last = losses(cells['train'])
    assert last < first / 4
    assert cells['train'].numbers(r'^masks +([\d.]+)')[-1] > 50


def check_convert_weights(cells):
    assert 'used     177 arrays' in cells['convert'].text and "MindSpore's feature pyramid" in cells['convert'].text
    (shift,) = cells['compare'].numbers(r'^7 objects, boxes shifted by ([\d.]+)')
    assert shift < 0.5
    pixels = cells['dialects'].numbers(r'(\d+) mask pixels differ')
    # Conventions of arithmetic cost a border of a mask; those of the network's input and features cost objects.
    assert max(pixels[:3]) < min(pixels[3:])


def check_inspect_data(cells):
    untrained = cells['random'].numbers(r'untrained +([\d.]+)')
    trained = cells['random'].numbers(r' trained +([\d.]+)')
    assert len(trained) == len(untrained) == 5
    assert all(after < before for before, after in zip(untrained, trained, strict=True))
    assert untrained[2:4] == pytest.approx([np.log(2), np.log(9)], abs=0.01)  # masks and classes


def check_inspect_model(cells):
    (score,) = cells['why'].numbers(r'^detection \d+: \w+ ([\d.]+)')
    assert score > 0.7
    lost = cells['why-not'].numbers(r'is lost at the classification: .*? has the score ([\d.]+)')
    assert lost and max(lost) < 0.7


def check_inspect_weights(cells):
    assert cells['parts'].text == '119 arrays, 4,486,980 numbers\n'
    assert 'extractor/body/conv0/conv: 8 of 32 channels, zero weights' in cells['dead'].text
    (n_equal,) = cells['compare'].numbers(r'(\d+) of 119 arrays are unchanged')
    assert n_equal == 54 + 3  # 27 scales and biases of the normalisation, and the convolutions of two frozen stages


CHECKS = {name.removeprefix('check_'): function for name, function in globals().items() if name.startswith('check_')}


def test_every_notebook_is_executed():
    assert sorted(CHECKS) == sorted(path.stem for path in FOLDER.glob('*.ipynb'))


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(CHECKS))
def test_a_notebook_runs_and_its_statements_hold(name, execute):
    if name == 'demo':
        pytest.importorskip('mahotas', reason='the picture of nuclei is not installed')
    cells = execute(name)
    assert sum(outputs.n_pictures for outputs in cells.values()) >= 2
    CHECKS[name](cells)
