"""The Python examples of the README and of docs/ run; README_JP.md has the same code (test_readme.py)."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.cli import convert, export
from mask_rcnn.config import DENA, DETECTRON, TORCHVISION
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.inference.save import save
from tests.conftest import ROOT
from tests.support.models import constant_model
from tests.support.pages import read_blocks
from tests.support.small_resnet import use_narrow_resnet

BUNDLED = 'modelfiles/shapes_mobilenet_v1_fpn.npz'


#: Pages whose Python blocks a test of this module runs.
DETECTIONS = ('README.md', 'docs/index.md', 'docs/demo.md')
EXECUTED = (
    *DETECTIONS,
    'docs/coming-from/matterport.md',
    'docs/conversion.md',
    'docs/formats.md',
    'docs/onnx.md',
    'docs/troubleshooting.md',
    'docs/your-own-data.md',
)


def test_every_python_block_runs_or_states_why_not():
    """The blocks of docs/extending/ run in tests/test_extending.py, which checks its list of pages."""
    pages = ['README.md', *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').rglob('*.md'))]
    blocks = [block for page in pages for block in read_blocks(ROOT, page) if block.language == 'python']
    places = {block.page for block in blocks if block.reason is None}
    assert {page for page in places if not page.startswith('docs/extending/')} == set(EXECUTED)


def code_blocks(name):
    """Return the Python blocks of a Markdown file, except the training, which tests/test_api.py runs."""
    blocks = [block.code for block in read_blocks(ROOT, name) if block.language == 'python']
    return [code for code in blocks if 'mask_rcnn.train(' not in code]


@pytest.fixture
def names(request, root, tmp_path, monkeypatch):
    """The variables of the examples of a file, after they have run in a folder with the files that they read."""
    for folder in ('modelfiles', 'result', 'output_scenes'):
        (tmp_path / folder).mkdir()
    shutil.copy(root / BUNDLED, tmp_path / BUNDLED)
    use_narrow_resnet(monkeypatch)
    save(tmp_path / 'result' / 'snapshot_model.npz', constant_model('resnet50', n_fg_class=3, dialect=DENA))
    picture = RichShapesDataset(1, size=256, seed=7)[0].image.transpose(1, 2, 0).astype('uint8')
    Image.fromarray(picture).save(tmp_path / 'photo.jpg', quality=95)
    Image.fromarray(picture).save(tmp_path / 'output_scenes' / 'scene_1.png')
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in code_blocks(request.param):
        exec(code.replace('RichShapesDataset(60,', 'RichShapesDataset(2,'), names)
    return names


@pytest.mark.parametrize('names', DETECTIONS, indirect=True)
def test_the_examples_of_a_detection(names, capsys):
    model, detections = names['model'], names['detections']
    assert len(detections) > 0 and set(detections.names) <= set(model.class_names)
    if 'results' in names:
        assert len(names['results']) == len(detections) and names['results'][0]['image_id'] == 1
        assert names['picture'].shape == (256, 256, 3)


@pytest.mark.parametrize('names', ['docs/demo.md'], indirect=True)
def test_the_other_examples_of_the_demo(names, capsys):
    detections = names['detections']
    assert [len(part) for part in (names['masks'][0], names['labels'][0], names['scores'][0])] == [len(detections)] * 3
    assert names['new'].class_names == ('cat', 'dog', 'hamster')
    assert names['old'].config.dialect == DETECTRON


@pytest.mark.parametrize('names', ['docs/troubleshooting.md'], indirect=True)
def test_the_example_of_objects_that_are_found_twice(names):
    detections, best = names['detections'], names['best']
    assert 0 < len(best) <= len(detections) and best.scores.tolist() == sorted(best.scores, reverse=True)
    tops, bottoms = np.split(best.boxes, 2, axis=1)
    sides = (np.minimum(bottoms[:, None], bottoms) - np.maximum(tops[:, None], tops)).clip(0)
    areas = (bottoms - tops).prod(axis=1)
    overlaps = sides.prod(axis=2) / (areas[:, None] + areas - sides.prod(axis=2))
    assert (np.triu(overlaps, 1) <= 0.7).all()


def test_the_dataset_of_a_user_of_matterports_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in read_blocks(ROOT, 'docs/coming-from/matterport.md') if block.language == 'python']
    (code,) = (block.code for block in blocks if block.reason is None)
    names = {}
    exec(code, names)
    assert len(names['result'].losses) == 4 and np.isfinite(names['result'].losses).all()
    assert capsys.readouterr().out.splitlines()[-1] == str(names['result'].model)


@pytest.mark.parametrize('names', ['docs/formats.md'], indirect=True)
def test_the_example_of_a_dialect(names, capsys):
    assert names['other'] == DETECTRON.replace(name='other', boxes={'offset': 0.0}) != DETECTRON


@pytest.mark.parametrize('names', ['docs/your-own-data.md'], indirect=True)
def test_the_example_of_generated_scenes(names, tmp_path):
    sizes = {path.name: Image.open(path).size for path in (tmp_path / 'scenes').iterdir()}
    assert sizes == {'000.png': (256, 256), '001.png': (256, 256)}


@pytest.mark.slow
def test_a_new_network_in_the_dialect_of_torchvision_is_converted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = (
        block.code
        for block in read_blocks(ROOT, 'docs/conversion.md')
        if block.language == 'python' and block.reason is None
    )
    exec(code, {})
    exec(code.replace(', dialect=mask_rcnn.config.TORCHVISION', '').replace('new.npz', 'plain.npz'), {})
    capsys.readouterr()
    assert convert.main(['new.npz', '--to', 'torchvision', '-o', 'new.pth']) == 0
    assert convert.main(['plain.npz', '--to', 'torchvision', '-o', 'plain.pth']) == 1
    assert 'stride of a block in the 1x1 convolution' in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_a_conversion(tmp_path, monkeypatch):
    pytest.importorskip('torchvision.models.detection')
    monkeypatch.chdir(tmp_path)
    native = constant_model('resnet50_fpn', n_fg_class=3, dialect=TORCHVISION, norm='bn')
    native.box_head.score.b.array[...] = np.arange(4)
    save('mine.npz', native)
    assert convert.main(['mine.npz', '--to', 'torchvision', '-o', 'mine.pth']) == 0
    names = {}
    for block in read_blocks(ROOT, 'docs/conversion.md'):
        if block.language == 'python' and block.reason is not None:  # needs torchvision
            exec(block.code, names)
    assert names['model'].state_dict()['roi_heads.box_predictor.cls_score.bias'].tolist() == [0, 1, 2, 3]


def test_the_example_of_an_onnx_file(root, tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    picture = RichShapesDataset(1, size=256, seed=7)[0].image.transpose(1, 2, 0).astype('uint8')
    Image.fromarray(picture).save('photo.jpg', quality=95)
    assert export.main([str(root / BUNDLED), '--onnx', 'shapes.onnx']) == 0
    capsys.readouterr()
    for code in code_blocks('docs/onnx.md'):
        exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and all(re.fullmatch(r'\w+ [01]\.\d\d \[.*\], \d+ pixels', line) for line in lines)
