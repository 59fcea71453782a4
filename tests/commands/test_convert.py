"""``mask-rcnn convert`` and ``utils/detectron_parser.py``."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mask_rcnn.commands import convert
from mask_rcnn.config import Config
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from mask_rcnn.weights import Source, WeightFileError, detectron, read_weights


@pytest.fixture
def source(monkeypatch, tmp_path):
    """Makes the reader return a file of the given kind; returns the path to convert."""
    def make(kind='model', n_fg_class=80, extractor='resnet50', notes=(), warnings=()):
        report = detectron.Report(('conv1_w', 'cls_score_w'), {'momentum': ('a', 'b'), 'unknown': ('x',)},
                                  notes, warnings)
        config = Config(n_fg_class=n_fg_class, extractor=extractor)
        file = detectron.DetectronFile(kind, config, {'a/W': np.ones(3, np.float32)}, report, '0' * 64)
        monkeypatch.setattr(detectron, 'read', lambda path: file)
        return tmp_path / 'in.pkl'
    return make


def test_report_and_metadata(source, tmp_path, capsys):
    path, output = source(notes=('n1',), warnings=('w1',)), tmp_path / 'out.npz'
    assert convert.main(['--input', str(path), '--output', str(output)]) == 0
    printed = capsys.readouterr().out
    for part in ('R-50-C4 Mask R-CNN, 80 classes (person ... toothbrush)', 'took     2 blobs',
                 'left     2 of momentum', 'left     1 of unknown: x', 'missing  nothing', 'note     n1',
                 'WARNING  w1', f'wrote {output}'):
        assert part in printed
    meta = read_weights(output).meta
    assert (meta.class_names, meta.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    assert meta.source == Source('in.pkl', '0' * 64, 'detectron-pickle')
    assert meta.left == {'momentum': 2, 'unknown': 1} and meta.notes == ('n1', 'w1')


@pytest.mark.parametrize('kind, extractor, name', [
    ('model', 'resnet50', 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz'),
    ('model', 'resnet101', 'e2e_mask_rcnn_R-101-C4_1x_d2c.npz'),
    ('backbone', 'resnet50', 'R-50_d2c.npz'), ('backbone', 'resnet101', 'R-101_d2c.npz')])
def test_default_output_follows_the_content(source, tmp_path, kind, extractor, name):
    path = source(kind, extractor=extractor)
    assert convert.main(['--input', str(path)], folder=tmp_path / 'weights') == 0
    assert os.listdir(tmp_path / 'weights') == [name]
    assert read_weights(tmp_path / 'weights' / name).meta.kind == kind


def test_class_names(source, tmp_path, capsys):
    path, output, names = source(n_fg_class=2), tmp_path / 'out.npz', tmp_path / 'names.txt'
    arguments = ['--input', str(path), '--output', str(output)]
    assert convert.main(arguments) == 0
    meta = read_weights(output).meta
    assert (meta.class_names, meta.category_ids) == (('class_1', 'class_2'), (1, 2))
    names.write_text('\ufeffKatze\r\n\n  gro\xdfer Hund \n', encoding='utf-8')
    assert convert.main([*arguments, '--class-names', str(names)]) == 0
    meta = read_weights(output).meta
    assert (meta.class_names, meta.category_ids) == (('Katze', 'gro\xdfer Hund'), (1, 2))
    capsys.readouterr()
    for content, reason in ((b'one\n', 'has 1 class names, but the weights are for 2'),
                            (b'\xff', 'not UTF-8')):
        names.write_bytes(content)
        assert convert.main([*arguments, '--class-names', str(names)]) == 1
        assert reason in capsys.readouterr().err
    assert convert.main([*arguments, '--class-names', str(tmp_path / 'no')]) == 1
    assert capsys.readouterr().err == f'error: {tmp_path / "no"}: No such file or directory\n'


def test_bad_arguments_end_with_2(source, tmp_path, capsys):
    path = source()
    path.write_text('weights')
    assert convert.main(['--input', str(path), '--output', str(path)]) == 2
    assert convert.main(['--input', str(path), '--output', str(tmp_path)]) == 2
    with pytest.raises(SystemExit) as end:
        convert.main(['--no-such-option'])
    assert end.value.code == 2
    assert path.read_text() == 'weights'


def test_failures_end_with_1_and_one_line(source, monkeypatch, tmp_path, capsys):
    path = source()
    assert convert.main(['--input', str(path), '--output', str(tmp_path / 'no' / 'out.npz')]) == 1
    blocked = tmp_path / 'file'
    blocked.touch()
    assert convert.main(['--input', str(path)], folder=blocked) == 1

    def refuse(path):
        raise WeightFileError(path, 'is refused')
    monkeypatch.setattr(detectron, 'read', refuse)
    assert convert.main(['--input', 'x.pkl', '--output', str(tmp_path / 'out.npz')]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith('error: ') for line in lines)
    assert lines[-1] == 'error: x.pkl: is refused'


def test_parser_script_from_any_folder(root, tmp_path):
    """Defaults are the repository's; a damaged file gives one line and leaves nothing."""
    def parse(*arguments):
        return subprocess.run([sys.executable, str(root / 'utils' / 'detectron_parser.py'), *arguments],
                              cwd=tmp_path, capture_output=True, text=True, timeout=60)
    shown = ''.join(parse('--help').stdout.split())
    assert f'default:{root}/modelfiles/model_final.pkl' in shown
    assert 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz' in shown
    (tmp_path / 'x.pkl').write_bytes(b'cos\nsystem\n(S"touch executed"\ntR.')
    done = parse('--input', 'x.pkl', '--output', 'x.npz')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == 'error: x.pkl: is refused: it asks for os.system\n'
    assert os.listdir(tmp_path) == ['x.pkl']


def test_hint_for_the_default_input(tmp_path, capsys):
    assert convert.main([], folder=tmp_path) == 1
    error = capsys.readouterr().err
    for part in (str(tmp_path / 'model_final.pkl'), 'modelfiles/README.md', '--input'):
        assert part in error


def test_coco_categories_are_cocos(shared):
    from chainercv.datasets import coco_instance_segmentation_label_names
    from pycocotools.coco import COCO

    assert COCO_CLASS_NAMES == tuple(coco_instance_segmentation_label_names)
    annotations = next(pathlib.Path(shared / 'coco-mini' / 'annotations').glob('*.json'))
    coco = COCO(annotations)
    assert COCO_CATEGORY_IDS == tuple(sorted(coco.getCatIds()))
    assert COCO_CLASS_NAMES == tuple(c['name'] for c in coco.loadCats(COCO_CATEGORY_IDS))
