"""The worked examples of docs/extending/: each runs as it is printed, and does what its page states."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mask_rcnn
from mask_rcnn.cli import main
from mask_rcnn.config import DETECTRON, EXTRACTORS
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.weights import WeightFileError, read_weights
from tests.conftest import ROOT
from tests.support.contracts import parser_of
from tests.support.pages import read_blocks
from tests.support.registrations import registrations_removed

PAGES = sorted(path.stem for path in (ROOT / 'docs' / 'extending').glob('*.md'))
BUNDLED = 'modelfiles/shapes_mobilenet_v1_fpn.npz'
MAX_LINES = 40


def python_blocks(page):
    return [block for block in read_blocks(ROOT, f'docs/extending/{page}.md') if block.language == 'python']


def code_of(page):
    """Return the Python code of a page, without the blocks that it marks as not run."""
    return '\n'.join(block.code for block in python_blocks(page) if not block.reason)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A function from a page to the variables of its example, which has run in a new folder of its files."""
    picture = RichShapesDataset(1, size=256, seed=7)[0].image.transpose(1, 2, 0).astype('uint8')
    ran = {}

    def get(page):
        if page not in ran:
            folder = tmp_path_factory.mktemp(page)
            (folder / 'modelfiles').mkdir()
            shutil.copy(ROOT / BUNDLED, folder / BUNDLED)
            (folder / 'output_scenes').mkdir()
            Image.fromarray(picture).save(folder / 'output_scenes' / 'scene_1.png')
            patch.chdir(folder)
            np.random.seed(0)
            ran[page] = {'__name__': page}
            exec(compile(code_of(page), f'docs/extending/{page}.md', 'exec'), ran[page])
        return ran[page]

    with registrations_removed(), pytest.MonkeyPatch.context() as patch:
        yield get


@pytest.mark.parametrize('page', PAGES)
def test_an_example_has_at_most_40_lines_of_code(page):
    lines = [line for line in code_of(page).splitlines() if line.strip()]
    assert 10 < len(lines) <= MAX_LINES
    assert max(map(len, code_of(page).splitlines())) <= 120


def test_every_page_has_a_test():
    assert PAGES == ['backbone', 'dialect', 'format', 'head']


def loss_falls(result):
    return len(result.losses) == 6 and np.isfinite(result.losses).all() and result.losses[-1] < result.losses[0]


def test_a_backbone_of_a_user(run, capsys):
    names = run('backbone')
    model, result = names['model'], names['result']
    assert loss_falls(result)
    assert [features.shape for features in model.extractor.body(np.zeros((1, 3, 96, 64), 'f'))] == [
        (1, 16, 24, 16),
        (1, 32, 12, 8),
        (1, 64, 6, 4),
        (1, 128, 3, 2),
    ]
    assert len(names['detections']) > 0 and names['detections'].size == (64, 64)
    assert names['detections'].has_masks
    capsys.readouterr()
    assert main(['info', str(result.model)]) == 0
    assert 'plain x0.25-FPN Mask R-CNN, 3 classes' in capsys.readouterr().out


def test_the_backbone_is_a_choice_of_the_commands(run):
    run('backbone')
    for command in ('train', 'demo', 'data stats'):
        (extractor,) = (action for action in parser_of(command)._actions if action.dest == 'extractor')
        assert 'plain_fpn' in extractor.choices


def write_script_with_parts(folder):
    (script,) = (block.code for block in python_blocks('backbone') if block.reason)
    (folder / 'my_parts.py').write_text(code_of('backbone').partition('dataset =')[0])
    (folder / 'my_mask_rcnn.py').write_text(script)


@pytest.mark.command
def test_the_commands_with_parts_of_a_user(run, tmp_path):
    """The script of the page, with a module that contains the example up to the registration."""
    path = Path(run('backbone')['result'].model).resolve()
    write_script_with_parts(tmp_path)
    command = [sys.executable, str(tmp_path / 'my_mask_rcnn.py'), 'info', str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}
    )
    assert done.returncode == 0 and 'plain x0.25-FPN Mask R-CNN' in done.stdout, done.stderr


@pytest.mark.slow
def test_the_commands_that_train_the_backbone(tmp_path):
    write_script_with_parts(tmp_path)
    (block,) = (block for block in read_blocks(ROOT, 'docs/extending/backbone.md') if block.language == 'sh')
    train, info = (shlex.split(line)[1:] for line in block.code.splitlines())
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    for command in (train, info):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
    assert 'plain x0.25-FPN Mask R-CNN, 3 classes' in done.stdout


def test_a_file_of_an_unregistered_backbone(run):
    path = run('backbone')['result'].model
    EXTRACTORS.remove('plain_fpn')
    try:
        with pytest.raises(WeightFileError, match="the extractor 'plain_fpn' is not registered in this process"):
            mask_rcnn.load(path)
    finally:
        EXTRACTORS.append('plain_fpn')


def test_the_backbone_is_not_written_for_other_programs(run, capsys, tmp_path):
    path = str(run('backbone')['result'].model)
    for target in ('detectron', 'detectron2'):
        assert main(['convert', path, '--to', target, '-o', str(tmp_path / 'x.pkl')]) == 1
        assert 'does not have plain x0.25-FPN Mask R-CNN' in capsys.readouterr().err
    pytest.importorskip('onnx')
    assert main(['export', path, '--onnx', str(tmp_path / 'x.onnx')]) == 1
    assert 'its backbone is a PlainNet' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_head_of_a_user(run):
    names = run('head')
    result, detections = names['result'], names['detections']
    assert loss_falls(result)
    assert detections.mask_probs.shape == (len(detections), 56, 56) and len(detections) > 0
    assert detections.masks.shape == (len(detections), 64, 64)


def test_the_gradient_reaches_the_new_layer_of_the_head(run):
    """The trained weight differs from the initial one, which the seed of :func:`run` determines."""
    names = run('head')
    np.random.seed(0)
    initial, trained = (model.mask_head.deconv2 for model in (names['build'](names['config']), names['model']))
    assert trained.W.shape == (32, 32, 2, 2)
    assert 0 < np.abs(trained.W.array - initial.W.array).max() < 0.5 * np.abs(initial.W.array).max()


def test_a_file_of_the_head_without_its_builder(run, capsys, tmp_path):
    path = run('head')['result'].model
    with pytest.raises(WeightFileError, match='unexpected mask_head/deconv2/[Wb], mask_head/deconv2/[Wb]$'):
        mask_rcnn.load(path)
    pytest.importorskip('onnx')
    from mask_rcnn.onnx_export.export import UnknownLayersError, export_model

    with pytest.raises(UnknownLayersError, match='its mask head is a FineMaskHead; only'):
        export_model(run('head')['model'])


def test_a_format_of_a_user(run, capsys):
    names = run('format')
    (expected,) = names['bundled'].detect(['output_scenes/scene_1.png'])
    found = names['detections']
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.masks, expected.masks)
    capsys.readouterr()
    assert main(['info', 'zoo.npz']) == 0
    assert "format   the zoo's .npz" in capsys.readouterr().out
    assert main(['convert', 'zoo.npz', '-o', 'native.npz']) == 0
    original, converted = read_weights(BUNDLED), read_weights('native.npz')
    assert converted.meta.source.format == 'zoo-npz' and converted.meta.config == original.meta.config
    for name in original.arrays.keys() - {name for name in original.arrays if name.endswith('/N')}:
        np.testing.assert_array_equal(converted.arrays[name], original.arrays[name])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'box_head.fc6.W': None}, 'missing arrays: box_head.fc6.W'),
        ({'box_head.fc6.W': np.zeros((2, 3), 'f')}, r'box_head.fc6.W is float32 \(2, 3\), expected float32'),
        ({'zoo_settings': np.frombuffer(b'{"extractor": 7}', 'u1')}, 'damaged file of the zoo: extractor must be one'),
        ({'zoo_settings': np.frombuffer(b'[', 'u1')}, 'damaged file of the zoo: Expecting value'),
        ({'box_head.fc6.W': np.array([{}])}, 'damaged file of the zoo: .*allow_pickle'),
    ],
)
def test_damaged_files_of_the_format(run, tmp_path, change, message):
    run('format')
    with np.load('zoo.npz') as source:
        arrays = {**{name: source[name] for name in source.files}, **change}
    np.savez(tmp_path / 'bad.npz', **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(WeightFileError, match=message) as error:
        mask_rcnn.load(tmp_path / 'bad.npz')
    assert '\n' not in str(error.value)


def test_a_dialect_of_a_user(run):
    """The numbers of the page, computed by hand: pixels in -1 ... 1, and boxes whose width is x2 - x1."""
    names = run('dialect')
    assert names['loaded'].config.dialect == names['MINE']
    red, green = 1.0, (128 - 127.5) / 127.5
    np.testing.assert_allclose(names['inputs']['mine'], [red, green, -1.0], rtol=0, atol=1e-6)
    detectron = [0 - 102.9801, 128 - 115.9465, 255 - 122.7717]
    np.testing.assert_allclose(names['inputs']['detectron'], detectron, rtol=0, atol=1e-4)
    np.testing.assert_allclose(names['boxes']['mine'], [20, 35, 60, 55], rtol=0, atol=1e-4)
    np.testing.assert_allclose(names['boxes']['detectron'], [19.5, 34.5, 60.5, 55.5], rtol=0, atol=1e-4)


def test_masks_of_the_dialect(run):
    """A mask of the probability 0.45 everywhere covers its box with the threshold 0.4, and nothing with 0.5."""
    mine = run('dialect')['MINE']
    arrays = {
        'boxes': np.float32([[10, 20, 30, 60]]),
        'labels': np.int32([0]),
        'scores': np.float32([0.9]),
        'mask_probs': np.full((1, 28, 28), 0.45, 'f'),
    }
    areas = [
        mask_rcnn.Detections(**arrays, size=(80, 80), dialect=dialect).masks[0].sum() for dialect in (mine, DETECTRON)
    ]
    assert abs(int(areas[0]) - 20 * 40) < 2 * (20 + 40) and areas[1] == 0


def test_a_variant_without_a_name_needs_no_registration(run, tmp_path):
    variant = DETECTRON.replace(boxes={'offset': 0.0})
    model = mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=1, width=0.25, head_channels=16, dialect=variant)
    mask_rcnn.save(tmp_path / 'variant.npz', model)
    assert mask_rcnn.load(tmp_path / 'variant.npz').config.dialect.boxes.offset == 0
