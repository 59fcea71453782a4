"""``mask-rcnn convert`` and ``utils/*_parser.py``."""

import dataclasses
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mask_rcnn.cli import convert
from mask_rcnn.config import DENA, DIALECTS, Config
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from mask_rcnn.weights import ModelMeta, Source, WeightFileError, formats, read_weights, write_weights
from mask_rcnn.weights.converters import detectron, detectron2_cfg, matterport_cfg
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from mask_rcnn.weights.exporters import targets


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A function that makes the reader return weights of the given kind, and returns the path to convert."""

    def make(kind='model', n_fg_class=80, extractor='resnet50', notes=(), warnings=(), **more):
        report = ConversionReport(
            ('conv1_w', 'cls_score_w'), {'momentum': ('a', 'b'), 'unknown': ('x',)}, notes, warnings
        )
        config = Config(n_fg_class=n_fg_class, extractor=extractor)
        arrays = {'a/W': np.ones(3, np.float32)}
        file = ConvertedWeights(kind, detectron.FORMAT, config, arrays, report, '0' * 64, **more)
        read_as(monkeypatch, lambda path: file)
        path = tmp_path / 'in.pkl'
        path.write_bytes(b'weights')
        return path

    return make


def read_as(monkeypatch, read, **changes):
    """Let every file be a Detectron file, which the function ``read`` reads."""
    format = dataclasses.replace(formats.BY_NAME[detectron.FORMAT], read=read, **changes)
    monkeypatch.setattr(formats, 'detect_format', lambda path: format)


def test_report_and_metadata(source, tmp_path, capsys):
    path, output = source(notes=('n1',), warnings=('w1',)), tmp_path / 'out.npz'
    assert convert.main(['--input', str(path), '--output', str(output)]) == 0
    printed = capsys.readouterr().out
    for part in (
        'R-50-C4 Mask R-CNN, 80 classes (person ... toothbrush)',
        'used     2 arrays',
        'skipped  2 of momentum',
        'skipped  1 of unknown: x',
        'note     n1',
        'SHA-256  000000',
        'WARNING  w1',
        f'wrote {output}',
    ):
        assert part in printed
    meta = read_weights(output).meta
    assert (meta.class_names, meta.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    assert meta.source == Source('in.pkl', '0' * 64, 'detectron-pickle')
    assert meta.skipped == {'momentum': 2, 'unknown': 1} and meta.notes == ('n1', 'w1')


@pytest.mark.parametrize(
    ('kind', 'extractor', 'name'),
    [
        ('model', 'resnet50', 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz'),
        ('model', 'resnet101', 'e2e_mask_rcnn_R-101-C4_1x_d2c.npz'),
        ('backbone', 'resnet50', 'R-50_d2c.npz'),
        ('backbone', 'resnet101', 'R-101_d2c.npz'),
    ],
)
def test_default_output_follows_the_content(source, tmp_path, kind, extractor, name):
    path = source(kind, extractor=extractor)
    assert convert.main(['--input', str(path)], folder=tmp_path / 'weights') == 0
    assert os.listdir(tmp_path / 'weights') == [name]
    assert read_weights(tmp_path / 'weights' / name).meta.kind == kind


def test_an_old_file_of_the_default_name_is_kept(source, tmp_path, capsys):
    """The old Chainer port gave the same name to Detectron's model."""
    path, folder = source(), tmp_path / 'weights'
    old = folder / 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz'
    folder.mkdir()
    old.write_bytes(b'old')
    assert convert.main(['--input', str(path)], folder=folder) == 0
    kept = folder / 'e2e_mask_rcnn_R-50-C4_1x_d2c.old.npz'
    assert kept.read_bytes() == b'old' and read_weights(old).meta.kind == 'model'
    assert f'the earlier {old} is kept as {kept}\n' in capsys.readouterr().out


def test_an_old_file_keeps_its_name_if_the_new_one_cannot_be_written(source, monkeypatch, tmp_path, capsys):
    path, output = source(), tmp_path / 'out.npz'
    output.write_bytes(b'old')

    def fail(*arguments):
        raise WeightFileError(output, 'cannot be written: No space left on device')

    monkeypatch.setattr(targets, 'write_weights', fail)
    assert convert.main(['--input', str(path), '--output', str(output)]) == 1
    assert output.read_bytes() == b'old' and not list(tmp_path.glob('*.old*'))
    assert capsys.readouterr().err.count('\n') == 1


def test_a_native_file_of_the_name_is_replaced(tmp_path):
    path = tmp_path / 'new.npz'
    write_weights(path, {'a/W': np.ones(3, np.float32)}, ModelMeta('backbone', Config()))
    for existing_or_missing in (path, tmp_path / 'missing.npz'):
        with formats.keep_source_file(existing_or_missing) as kept:
            assert kept is None
    assert path.exists()


def test_the_roi_pooling_of_c4_networks(source, tmp_path, capsys):
    path, output = source(), tmp_path / 'out.npz'
    words = ['--input', str(path), '--output', str(output), '--no-roialign', '--roi-size', '7']
    assert convert.main(words) == 0
    config = read_weights(output).meta.config
    assert (config.roi_align, config.roi_size) == (False, 7)
    source(extractor='resnet50_fpn')
    assert convert.main(words) == 2
    assert 'for C4 networks' in capsys.readouterr().err


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
    for content, reason in ((b'one\n', 'has 1 class name, but the weights are for 2 classes'), (b'\xff', 'not UTF-8')):
        names.write_bytes(content)
        assert convert.main([*arguments, '--class-names', str(names)]) == 1
        assert reason in capsys.readouterr().err
    assert convert.main([*arguments, '--class-names', '/dev/zero']) == 1
    assert capsys.readouterr().err == 'error: /dev/zero: is not a regular file\n'
    names.write_bytes(b'a\n' * (1 << 21) + b'a')
    assert convert.main([*arguments, '--class-names', str(names)]) == 1
    assert 'has 4194305 bytes, too many' in capsys.readouterr().err
    assert convert.main([*arguments, '--class-names', str(tmp_path / 'no')]) == 1
    assert capsys.readouterr().err == f'error: {tmp_path / "no"}: No such file or directory\n'


def test_class_names_in_the_file_are_kept(source, tmp_path):
    path, output = source(n_fg_class=1, class_names=('person',), category_ids=(17,)), tmp_path / 'out.npz'
    assert convert.main([str(path), '--output', str(output)]) == 0
    meta = read_weights(output).meta
    assert (meta.class_names, meta.category_ids) == (('person',), (17,))


def test_settings_of_the_command_line(source, tmp_path):
    path, output = source(), tmp_path / 'out.npz'
    assert (
        convert.main(
            [
                str(path),
                '--output',
                str(output),
                '--min-size',
                '300',
                '--max-size',
                '500',
                '--anchor-sizes',
                '16',
                '32',
                '--score-threshold',
                '0.2',
            ]
        )
        == 0
    )
    assert read_weights(output).meta.config == Config(
        min_size=300, max_size=500, anchor_sizes=(16.0, 32.0), score_threshold=0.2
    )


def test_settings_that_matterports_files_lack(source, monkeypatch, tmp_path, capsys):
    path, output, settings = source(), tmp_path / 'out.npz', tmp_path / 'config.json'
    file, given = formats.read(path), []

    def read(path, settings):
        given.append(settings)
        return file

    read_as(monkeypatch, read, settings=matterport_cfg.FILE_SETTINGS)
    settings.write_text(json.dumps({'IMAGE_MAX_DIM': 512, 'IMAGE_MIN_DIM': 256}))
    arguments = [str(path), '--output', str(output)]
    assert convert.main([*arguments, '--config', str(settings), '--min-size', '300']) == 0
    assert given == [{'IMAGE_MAX_DIM': 512, 'IMAGE_MIN_DIM': 300}]
    source()
    assert convert.main([*arguments, '--config', str(settings)]) == 1
    assert 'takes no settings (--config)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('settings', 'options', 'is_in_file', 'error'),
    [
        ('MODEL: {RPN: {NMS_THRESH: 3}}', '', True, 'MODEL.RPN.NMS_THRESH must be a number from 0 to 1, not 3'),
        ('INPUT: {MAX_SIZE_TEST: -1}', '--min-size 9', True, 'INPUT.MAX_SIZE_TEST must be a positive integer, not -1'),
        ('INPUT: {MAX_SIZE_TEST: 64}', '--min-size 300', True, 'need 0 < min_size <= max_size, got 300 and 64'),
        ('INPUT: {MIN_SIZE_TEST: 9}', '--anchor-sizes 1e9', False, 'MODEL.ANCHOR_GENERATOR.SIZES must be a list of'),
        ('', '--anchor-sizes 1e9', False, 'MODEL.ANCHOR_GENERATOR.SIZES must be a list of positive numbers'),
        ('', '--min-size 4000', False, 'need 0 < min_size <= max_size, got 4000 and 1333'),
    ],
)
def test_errors_name_the_file_of_invalid_settings(
    source, monkeypatch, tmp_path, capsys, settings, options, is_in_file, error
):
    path, file = source(), tmp_path / 'config.yaml'
    weights = formats.read(path)

    def read(path, settings):
        return dataclasses.replace(weights, config=detectron2_cfg.apply(settings, weights.config)[0])

    read_as(monkeypatch, read, settings=detectron2_cfg.FILE_SETTINGS)
    arguments = [str(path), '--output', str(tmp_path / 'out.npz'), *options.split()]
    if settings:
        file.write_text(settings)
        arguments += ['--config', str(file)]
    assert convert.main(arguments) == (1 if is_in_file else 2)
    message = capsys.readouterr().err.splitlines()[-1]
    assert f'error: {f"{file}: " if is_in_file else ""}{error}' in message


def test_native_files_need_no_conversion(source, monkeypatch, tmp_path, capsys):
    path = source()
    read_as(monkeypatch, formats.read, suffix=None)
    assert convert.main([str(path), '--output', str(tmp_path / 'out.npz')]) == 1
    assert 'which needs no conversion' in capsys.readouterr().err


def test_bad_arguments_end_with_2(source, tmp_path, capsys):
    path = source()
    path.write_text('weights')
    assert convert.main([str(path), '--input', str(path)]) == 2
    assert convert.main([str(path), '--min-size', '5000', '--output', str(tmp_path / 'out.npz')]) == 2
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

    read_as(monkeypatch, refuse)
    assert convert.main(['--input', 'x.pkl', '--output', str(tmp_path / 'out.npz')]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith('error: ') for line in lines)
    assert lines[-1] == 'error: x.pkl: is refused'


@pytest.mark.parametrize('spelling', ['in.pkl', 'link.pkl', 'hard_link.pkl', 'folder/../in.pkl', 'folder/in.pkl'])
def test_the_output_must_not_be_the_input(source, tmp_path, capsys, monkeypatch, spelling):
    """The input is recognised through symbolic and hard links, through ``..``, and through a link to its folder."""
    path = source()
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link.pkl').symlink_to(path)
    (tmp_path / 'hard_link.pkl').hardlink_to(path)
    (tmp_path / 'folder').symlink_to(tmp_path) if spelling == 'folder/in.pkl' else (tmp_path / 'folder').mkdir()
    assert convert.main(['--input', str(path), '--output', spelling]) == 2
    assert capsys.readouterr().err == f'error: --output {spelling} is the input file\n'
    assert convert.main(['--input', spelling, '--output', str(path)]) == 2
    assert path.read_bytes() == b'weights'


@pytest.mark.parametrize(
    ('script', 'default'),
    [('detectron', 'model_final.pkl'), ('pytorch', 'mask_rcnn_coco.pth'), ('mindspore', 'maskrcnn.ckpt')],
)
def test_parser_scripts_have_their_default_input(root, tmp_path, script, default, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['parser', '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(root / 'utils' / f'{script}_parser.py'), run_name='__main__')
    shown = ''.join(capsys.readouterr().out.split())
    assert f'default:{root}/modelfiles/{default}' in shown and 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz' in shown


def test_parser_script_from_any_folder(root, tmp_path):
    """A file that is refused gives one error line and no output file."""
    (tmp_path / 'x.pkl').write_bytes(b'cos\nsystem\n(S"touch executed"\ntR.')
    command = [sys.executable, str(root / 'utils' / 'detectron_parser.py'), '--input', 'x.pkl', '--output', 'x.npz']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == 'error: x.pkl: is refused: it refers to os.system\n'
    assert os.listdir(tmp_path) == ['x.pkl']


def test_a_missing_default_input_has_a_hint(tmp_path, capsys):
    assert convert.main([], folder=tmp_path) == 1
    error = capsys.readouterr().err
    for part in (str(tmp_path / 'model_final.pkl'), '"mask-rcnn convert FILE"'):
        assert part in error


def test_class_names_and_category_ids_are_those_of_coco(shared):
    from chainercv.datasets import coco_instance_segmentation_label_names
    from pycocotools.coco import COCO

    assert tuple(coco_instance_segmentation_label_names) == COCO_CLASS_NAMES
    annotations = next(Path(shared / 'coco-mini' / 'annotations').glob('*.json'))
    coco = COCO(annotations)
    assert tuple(sorted(coco.getCatIds())) == COCO_CATEGORY_IDS
    assert tuple(c['name'] for c in coco.loadCats(COCO_CATEGORY_IDS)) == COCO_CLASS_NAMES


def write_native(path, **changes):
    """Write a native file with one normalisation."""
    arrays = {
        'a/conv/W': np.ones((2, 2), np.float32),
        'a/norm/gamma': np.full(2, 3, np.float32),
        'a/norm/beta': np.ones(2, np.float32),
        'a/norm/avg_mean': np.full(2, 0.5, np.float32),
        'a/norm/avg_var': np.full(2, 4, np.float32),
    }
    config = Config(n_fg_class=2, norm='bn').replace(**changes)
    write_weights(path, arrays, ModelMeta('model', config, ('cat', 'dog'), (17, 18), notes=('a note',)))
    return path


def test_native_files_change_their_normalisation_and_dialect(tmp_path, capsys):
    path, output = write_native(tmp_path / 'in.npz'), tmp_path / 'out.npz'
    flags = ['--bn2affine', '--dialect', 'dena', '--min-size', '300', '--output', str(output)]
    assert convert.main([str(path), *flags]) == 0
    assert capsys.readouterr().err == ''
    weights = read_weights(output)
    config = Config(n_fg_class=2, dialect=DENA, sampling_ratio=2, rpn_min_size=4.0, max_detections=0, min_size=300)
    assert weights.meta.config == config
    assert (weights.meta.class_names, weights.meta.category_ids) == (('cat', 'dog'), (17, 18))
    assert weights.meta.notes == ('a note',)
    assert (weights.meta.source.file, weights.meta.source.format) == ('in.npz', 'mask-rcnn-npz')
    assert set(weights.arrays) == {'a/conv/W', 'a/norm/scale', 'a/norm/bias'}
    np.testing.assert_allclose(weights.arrays['a/norm/scale'], 3 / np.sqrt(4 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(weights.arrays['a/norm/bias'], 1 - 0.5 * 3 / np.sqrt(4 + 1e-5), rtol=1e-6)
    back = tmp_path / 'back.npz'
    assert convert.main([str(output), '--dialect', 'detectron', '--output', str(back)]) == 0
    assert read_weights(back).meta.config == Config(n_fg_class=2, min_size=300)


@pytest.mark.parametrize(
    ('changes', 'flags', 'status', 'message'),
    [
        ({}, [], 1, "is this program's .npz, which needs no conversion"),
        ({}, ['--min-size', '300'], 1, 'which needs no conversion'),
        ({}, ['--dialect', 'dena', '--config', 'c.json'], 1, 'takes no settings (--config)'),
        ({'extractor': 'resnet50_fpn'}, ['--dialect', 'dena'], 2, "in.npz: resnet50_fpn of the dialect 'detectron'"),
        ({'extractor': 'resnet50_fpn'}, ['--dialect=dena'], 2, 'only C4 networks can change between'),
        ({'dialect': 'matterport'}, ['--dialect', 'detectron'], 2, "of the dialect 'matterport' cannot run in"),
    ],
)
def test_refused_changes_of_native_files(tmp_path, monkeypatch, capsys, changes, flags, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'c.json').write_text('{"IMAGE_MAX_DIM": 512}')
    if 'dialect' in changes:
        changes = {'dialect': DIALECTS[changes['dialect']], 'max_size': 1344}
    write_native(tmp_path / 'in.npz', **changes)
    assert convert.main(['in.npz', '--output', 'out.npz', *flags]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: in.npz') and message in line
    assert not (tmp_path / 'out.npz').exists()


def test_a_native_file_needs_a_name_for_the_output(tmp_path, capsys):
    path = write_native(tmp_path / 'in.npz')
    assert convert.main([str(path), '--bn2affine'], folder=tmp_path) == 2
    assert 'name the file to write with --output' in capsys.readouterr().err
    assert convert.main([str(path), '--bn2affine', '--output', str(path)]) == 2
    assert os.listdir(tmp_path) == ['in.npz']


@pytest.mark.parametrize(('option', 'title'), [('--config', 'config'), ('--class-names', 'class-names')])
@pytest.mark.parametrize('link', ['symlink_to', 'hardlink_to', None])
def test_the_output_must_not_be_a_file_of_another_option(source, tmp_path, capsys, option, title, link):
    path, output, text = source(), tmp_path / 'out.npz', tmp_path / 'file.txt'
    text.write_text('{}')
    if link is None:
        output = text
    else:
        getattr(output, link)(text)
    assert convert.main([str(path), option, str(text), '--output', str(output)]) == 2
    assert capsys.readouterr().err == f'error: --output {output} is the file of --{title}\n'
    assert text.read_text() == output.read_text() == '{}'


def test_an_output_that_cannot_be_written_is_found_before_the_input_is_read(monkeypatch, tmp_path, capsys):
    (tmp_path / 'file').touch()
    (tmp_path / 'loop').symlink_to('loop')
    monkeypatch.setattr(formats, 'detect_format', lambda path: pytest.fail('the input is read'))
    for output in ('no/out.npz', 'file/out.npz', 'loop'):
        assert convert.main(['in.pkl', '--output', str(tmp_path / output)]) == 1
        assert capsys.readouterr().err.startswith(f'error: {tmp_path / output}: ')
    assert convert.main(['in.pkl'], folder=tmp_path / 'file') == 1
    assert sorted(os.listdir(tmp_path)) == ['file', 'loop']


def test_the_target_of_a_link_is_written(source, tmp_path):
    path, target, link = source(), tmp_path / 'target.npz', tmp_path / 'link.npz'
    link.symlink_to(target)
    assert convert.main([str(path), '--output', str(link)]) == 0
    assert link.is_symlink() and read_weights(target).meta.kind == 'model'


@pytest.mark.parametrize('name', ['-', '/dev/stdout'])
def test_weights_on_the_standard_output_are_alone_there(source, tmp_path, capfdbinary, name):
    """``capfdbinary`` redirects the standard output to a file, which is neither replaced nor renamed."""
    path = source()
    assert convert.main([str(path), '--output', name]) == 0
    out, err = capfdbinary.readouterr()
    (tmp_path / 'out.npz').write_bytes(out)
    assert read_weights(tmp_path / 'out.npz').arrays['a/W'].tolist() == [1, 1, 1]
    assert err.endswith(b'wrote /dev/stdout\n') and os.path.lexists('/dev/stdout')
    assert not [name for name in os.listdir('/dev') if '.old' in name]
    assert convert.main([str(path), '--output', str(tmp_path / 'file.npz')]) == 0
    assert capfdbinary.readouterr().out.endswith(b'file.npz\n')


@pytest.mark.parametrize(
    ('make_stream', 'status', 'reason'),
    [
        (lambda: None, 1, 'standard output: cannot be written: it is closed'),
        (_Terminal, 2, '--output /dev/stdout is the terminal; redirect the weights to a file or a pipe'),
    ],
)
def test_weights_are_not_written_to_a_terminal_or_a_closed_stream(
    source, monkeypatch, capsys, make_stream, status, reason
):
    path = source()
    monkeypatch.setattr(sys, 'stdout', make_stream())
    assert convert.main([str(path), '--output', '-']) == status
    assert capsys.readouterr().err == f'error: {reason}\n'
