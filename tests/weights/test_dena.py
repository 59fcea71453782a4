"""The weight files of DeNA's Chainer_Mask_R-CNN: names, values, the meaning of ``--bn2affine``, and damaged files."""

import hashlib
import json
import re

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn import cli
from mask_rcnn.config import DENA, DETECTRON
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS
from mask_rcnn.weights import WeightFileError, formats, load_arrays
from mask_rcnn.weights.converters import dena
from mask_rcnn.weights.readers import npz
from tests.support.dena import build_arrays
from tests.support.dena_files import array_shapes, file_arrays, with_counters
from tests.support.models import constant_model

RECIPE = 'recipe_R-50-C4_seed0.npz'


def native_path(name, *, affine=False):
    """Return the path of an array in the native network; ``None`` if it is not used."""
    heads = {
        'rpn/conv1': 'rpn/conv',
        'rpn/score': 'rpn/objectness',
        'rpn/loc': 'rpn/delta',
        'head/score': 'box_head/score',
        'head/cls_loc': 'box_head/delta',
        'head/deconvm1': 'mask_head/deconv',
        'head/convm2': 'mask_head/score',
    }
    layer, _, array = name.rpartition('/')
    if layer in heads:
        return f'{heads[layer]}/{array}'
    if affine:
        array = {'gamma': 'scale', 'beta': 'bias', 'W': 'W'}.get(array)
        if array is None:
            return None
    if layer in ('extractor/conv1', 'extractor/bn1'):
        return f'extractor/conv1/{"conv" if array == "W" else "norm"}/{array}'
    owner, stage, block, kind, number = re.fullmatch(r'(\w+)/(res\d)/(a|b\d+)/(conv|bn)(\d)', layer).groups()
    link = {
        'owner': {'extractor': 'extractor', 'head': 'box_head'}[owner],
        'block': f'block{0 if block == "a" else int(block[1:])}',
        'layer': 'shortcut' if number == '4' else f'conv{number}',
        'kind': {'conv': 'conv', 'bn': 'norm'}[kind],
    }
    return f'{link["owner"]}/{stage}/{link["block"]}/{link["layer"]}/{link["kind"]}/{array}'


def expected_arrays(arrays, *, affine=False):
    """Return the native arrays by path: those of the file, but for the mask head's unused background."""
    expected = {}
    for name, array in arrays.items():
        path = native_path(name, affine=affine)
        if path is not None:
            expected[path] = array[1:] if name.startswith('head/convm2/') else array
    return expected


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope='module')
def random_arrays():
    """The arrays of an R-50 file; the variances are positive."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) for name, shape in array_shapes().items()}
    return with_counters(arrays)


@pytest.fixture(scope='module')
def random_file(random_arrays, tmp_path_factory):
    """The file of ``random_arrays``, in another order of names, as ``numpy.savez`` writes it."""
    path = tmp_path_factory.mktemp('dena') / 'snapshot_model.npz'
    np.savez(path, **dict(reversed(random_arrays.items())))
    yield path
    path.unlink()


@pytest.fixture
def read(monkeypatch, tmp_path):
    """A function that converts arrays as if they came from a file."""
    path = tmp_path / 'snapshot_model.npz'
    path.write_bytes(b'content')

    def read_arrays(arrays, **options):
        monkeypatch.setattr(npz, 'read', lambda _: arrays)
        return dena.read(path, **options)

    return read_arrays


# Names and values


@pytest.mark.parametrize('bn2affine', [False, True])
def test_every_array_is_read_unchanged(random_arrays, random_file, bn2affine):
    file = formats.read(random_file, bn2affine=bn2affine)
    floats = {name: array for name, array in random_arrays.items() if not name.endswith('/N')}
    expected = expected_arrays(floats, affine=bn2affine)
    found = {name: array for name, array in file.arrays.items() if not name.endswith('/N')}
    assert_same_arrays(found, expected)
    assert (file.kind, file.format) == ('model', 'dena-npz')
    assert file.config == mask_rcnn.Config(
        dialect=DENA,
        norm='affine' if bn2affine else 'bn',
        n_fg_class=3,
        sampling_ratio=2,
        rpn_min_size=4.0,
        max_detections=0,
    )
    expected_groups = {'batch counters': {name for name in random_arrays if name.endswith('/N')}}
    if bn2affine:
        expected_groups['statistics'] = {name for name in random_arrays if name.endswith(('/avg_mean', '/avg_var'))}
    assert {group: set(names) for group, names in file.report.skipped.items()} == expected_groups
    assert file.sha256 == hashlib.sha256(random_file.read_bytes()).hexdigest()


@pytest.mark.parametrize('backbone', ['resnet50', 'resnet101'])
def test_the_arrays_fill_the_network(read, backbone):
    """The paths of R-50 and R-101 are those of the networks, which the frozen contract lists."""
    arrays = file_arrays(80, backbone)
    assert len(arrays) == {'resnet50': 332, 'resnet101': 638}[backbone]
    file = read(arrays)
    assert (file.config.extractor, file.config.n_fg_class) == (backbone, 80)
    model = constant_model(file.config)
    load_arrays(model, file.arrays, source='file')
    assert not model.extractor.conv1.conv.W.array.any()


def test_the_number_of_classes(read):
    assert read(file_arrays(7)).config.n_fg_class == 7


def test_eighty_classes_are_those_of_coco_with_its_category_ids(read):
    names, ids = mask_rcnn.models.builder.default_classes(read(file_arrays(80)))
    assert (names[0], names[-1], ids) == ('person', 'toothbrush', COCO_CATEGORY_IDS)
    assert (ids[11], ids[-1], len(ids)) == (13, 90, 80)  # 12 is a gap
    assert mask_rcnn.models.builder.default_classes(read(file_arrays(2))) == (('class_1', 'class_2'), (1, 2))


# The meaning of --bn2affine


@pytest.mark.parametrize(
    ('bn2affine', 'parts'),
    [
        (True, ('read with --bn2affine', 'statistics are ignored', 'omit --bn2affine')),
        (False, ('read without --bn2affine', 'uses the statistics', 'utils/detectron_parser.py, give --bn2affine')),
    ],
)
def test_one_line_names_the_reading_and_when_the_other_is_right(read, bn2affine, parts):
    arrays = file_arrays(**{'extractor/bn1/avg_mean': np.full(64, 0.1, np.float32)})
    (line,) = read(arrays, bn2affine=bn2affine).report.assumptions
    assert all(part in line for part in parts) and line.isprintable()


def test_the_name_of_a_file_suggests_the_reading(tmp_path, monkeypatch):
    arrays = file_arrays(**{'extractor/bn1/avg_mean': np.full(64, 0.1, np.float32)})
    path = tmp_path / 'e2e_mask_rcnn_R-50-C4_1x_d2c.old.npz'
    path.write_bytes(b'content')
    monkeypatch.setattr(npz, 'read', lambda _: arrays)
    (line,) = dena.read(path).report.assumptions
    assert 'as the name suggests, give --bn2affine' in line


@pytest.mark.parametrize(
    ('options', 'name'),
    [
        ({}, 'mask_rcnn_R-50-C4_dena2c.npz'),
        ({'bn2affine': True}, 'mask_rcnn_R-50-C4_dena2c_affine.npz'),
        ({'dialect': DETECTRON}, 'mask_rcnn_R-50-C4_dena2c_detectron.npz'),
        ({'bn2affine': True, 'dialect': DETECTRON}, 'mask_rcnn_R-50-C4_dena2c_affine_detectron.npz'),
    ],
)
def test_each_reading_has_a_default_name_of_its_own(tmp_path, monkeypatch, options, name):
    path = small_archive(tmp_path / 'snapshot_model.npz', {'head/convm2/b': np.zeros(4)})  # names determine the format
    monkeypatch.setattr(npz, 'read', lambda _: file_arrays())
    assert formats.default_name(formats.read(path, **options)) == name


@pytest.mark.parametrize('name', ['extractor/bn1/avg_mean', 'head/res5/b2/bn3/avg_var'])
def test_a_single_statistic_decides_whether_the_readings_differ(read, name):
    arrays = file_arrays()
    for bn2affine in (False, True):
        assert read(arrays, bn2affine=bn2affine).report.assumptions == ()
    changed = arrays[name].copy()
    changed[-1] += np.float32(1e-3)
    for bn2affine in (False, True):
        assert len(read(arrays | {name: changed}, bn2affine=bn2affine).report.assumptions) == 1


def test_other_arrays_named_like_statistics_do_not_matter(read):
    extra = {'other/avg_mean': np.array(['text']), 'other/avg_var': np.float32(7)}
    file = read(file_arrays() | extra)
    assert file.report.assumptions == () and file.report.skipped['unknown'] == ('other/avg_mean', 'other/avg_var')


def test_the_line_is_logged_by_load(read, caplog, monkeypatch, tmp_path):
    path = tmp_path / 'file.npz'
    np.savez(path, **{'head/convm2/b': np.zeros(3)})
    file = read(file_arrays(**{'extractor/bn1/avg_mean': np.full(64, 0.1, np.float32)}))
    monkeypatch.setattr(formats, 'read', lambda *args, **options: file)
    mask_rcnn.load(path)
    (record,) = caplog.records
    assert record.getMessage() == f'{path}: assumed: {file.report.assumptions[0]}'


def test_values_that_are_not_finite_are_reported(read):
    bias = np.array([0, np.nan, 0, 0], np.float32)
    (line,) = read(file_arrays(**{'head/score/b': bias})).report.warnings
    assert line == 'infinite or undefined values in head/score/b: did the training diverge?'


# Dialects


def test_the_same_arrays_in_the_dialect_detectron(random_file):
    before = formats.read(random_file, bn2affine=True)
    after = formats.read(random_file, bn2affine=True, dialect=DETECTRON)
    assert after.config == mask_rcnn.Config(n_fg_class=3)
    assert_same_arrays(after.arrays, before.arrays)


def test_another_epsilon_keeps_the_function(random_arrays, random_file):
    """``gamma * (x - mean) / sqrt(var + eps) + beta`` with 2e-5 and with Detectron's 1e-5."""
    file = formats.read(random_file, dialect=DETECTRON)
    assert (file.config.norm, file.config.dialect) == ('bn', DETECTRON)
    old, new = 'extractor/res2/a/bn2', 'extractor/res2/block0/conv2/norm'
    x = np.float64(0.3)
    gamma, beta, mean, var = (
        random_arrays[f'{old}/{name}'].astype(float) for name in ('gamma', 'beta', 'avg_mean', 'avg_var')
    )
    expected = gamma * (x - mean) / np.sqrt(var + 2e-5) + beta
    gamma, beta, mean, var = (
        file.arrays[f'{new}/{name}'].astype(float) for name in ('gamma', 'beta', 'avg_mean', 'avg_var')
    )
    np.testing.assert_allclose(gamma * (x - mean) / np.sqrt(var + 1e-5) + beta, expected, rtol=0, atol=3e-7)
    assert np.abs(gamma - random_arrays[f'{old}/gamma']).max() > 1e-6


# The commands


@pytest.mark.parametrize(
    'flags',
    [
        ('--bn2affine',),
        pytest.param(('--dialect', 'detectron'), marks=pytest.mark.slow),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(('--bn2affine', '--dialect=dena'), marks=pytest.mark.slow),
    ],
)
def test_a_converted_file_is_unambiguous(random_file, tmp_path, capsys, flags):
    output = tmp_path / 'converted.npz'
    assert cli.main(['convert', str(random_file), '--output', str(output), *flags]) == 0
    assert capsys.readouterr().out.count('assumed ') == 1
    dialect = DETECTRON if 'detectron' in flags else DENA
    direct = formats.read(random_file, bn2affine='--bn2affine' in flags, dialect=dialect)
    converted = formats.read(output)
    assert converted.report.assumptions == converted.report.warnings == () and converted.config == direct.config
    assert (converted.config.dialect, converted.config.norm) == (dialect, 'affine' if '--bn2affine' in flags else 'bn')
    assert_same_arrays(converted.arrays, direct.arrays)
    assert cli.main(['info', str(output)]) == 0
    printed = capsys.readouterr().out
    assert 'assumed ' not in printed and 'bn2affine' not in printed


def test_info_names_the_program_the_network_and_the_reading(random_file, capsys):
    assert cli.main(['info', str(random_file)]) == 0
    printed = capsys.readouterr().out
    for part in ("Chainer_Mask_R-CNN's .npz", 'R-50-C4 Mask R-CNN, 3 classes', 'dena', 'give --bn2affine'):
        assert part in printed


def small_archive(path, arrays):
    np.savez(path, **arrays)
    return path


class Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


#: Damaged files and files of other programs: the arrays, and what the error names.
SCORE = {'head/score/W': np.zeros((4, 2048), np.float32)}
BAD_FILES = {
    'most arrays missing': (SCORE | {'head/convm2/b': np.zeros(4, np.float32)}, 'missing arrays: '),
    'no box head': ({'head/convm2/b': np.zeros(4, np.float32)}, 'missing arrays: head/score/W'),
    'a layer with a bias': (
        SCORE | {'head/convm2/b': np.zeros(4), 'extractor/conv1/b': np.zeros(64)},
        'before 2018-05-30 (extractor/conv1/b exists)',
    ),
    'pairs of scores': (
        SCORE | {'head/convm2/b': np.zeros(4), 'rpn/score/W': np.zeros((30, 8, 1, 1))},
        'before 2018-05-30 (rpn/score/W has the shape (30, 8, 1, 1))',
    ),
    'another mask head': (
        SCORE | {'head/convm2/W': np.zeros((4, 8, 3, 3))},
        'before 2018-05-30 (head/convm2/W has the shape (4, 8, 3, 3))',
    ),
    'too many blocks': (
        SCORE | {'head/convm2/b': np.zeros(4)} | {f'extractor/res4/b{i}/conv1/W': np.zeros(1) for i in range(36)},
        'has 36 blocks in extractor/res4, expected 6 or 23',
    ),
    'a score of one class': (
        {'head/convm2/b': np.zeros(4), 'head/score/W': np.zeros((1, 2048), np.float32)},
        'head/score/W has the shape (1, 2048)',
    ),
    'Faster R-CNN of ChainerCV': (
        {name: np.zeros(2) for name in ('rpn/loc/W', 'head/cls_loc/W', 'extractor/conv1_1/conv/W')},
        'is not a zip archive of weights in a supported format',
    ),
}

COMMANDS = {
    'info': 'info {file}',
    'convert': 'convert {file}',
    'demo': 'demo --gpu -1 --image {image} --modelfile {file}',
    'evaluate': 'evaluate --gpu -1 --dataset shapes --modelfile {file}',
    'resume': 'train --gpu -1 --dataset shapes --resume {file}',
    'pretrained': 'train --gpu -1 --dataset shapes --pretrained {file}',
}


def run_command(command, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = tmp_path / 'image.ppm'
    image.write_bytes(b'P6 8 8 255\n' + bytes(192))
    return cli.main(COMMANDS[command].format(file=path, image=image).split())


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_refuses_bad_files_in_one_line(command, tmp_path, monkeypatch, capsys):
    for name, (arrays, reason) in BAD_FILES.items():
        path = small_archive(tmp_path / 'bad.npz', arrays)
        assert run_command(command, path, tmp_path, monkeypatch) == 1, name
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line and reason in line, name


@pytest.mark.parametrize('command', COMMANDS)
def test_objects_are_not_unpickled(command, tmp_path, monkeypatch, capsys):
    objects = np.empty(1, object)
    objects[0] = Payload(tmp_path / 'executed')
    path = small_archive(tmp_path / 'bad.npz', SCORE | {'head/convm2/b': objects})
    assert run_command(command, path, tmp_path, monkeypatch) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{path}: head/convm2/b is not a plain array of numbers' in line
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('bn2affine', [False, True])
@pytest.mark.parametrize(
    ('name', 'array', 'message'),
    [
        ('rpn/loc/b', None, 'missing arrays: rpn/loc/b'),
        ('extractor/bn1/avg_mean', None, 'missing arrays: extractor/bn1/avg_mean'),
        ('head/res5/a/bn4/avg_var', np.zeros(3, np.float32), 'avg_var is float32 (3,), expected float32 (2048,)'),
        ('head/deconvm1/W', np.zeros((256, 2048, 2, 2), np.float32), '(256, 2048, 2, 2), expected float32 (2048, 256,'),
        ('head/cls_loc/b', np.zeros(16, np.int64), 'head/cls_loc/b is int64 (16,), expected float32 (16,)'),
        ('extractor/bn1/avg_var', np.array(['a'] * 64), 'extractor/bn1/avg_var is str32 (64,), expected float32 (64,)'),
        ('extractor/res4/b5/bn1/gamma', np.zeros((), np.float32), 'expected float32 (256,)'),
        ('head/score/W', np.zeros(4, np.float32), 'head/score/W has the shape (4,), expected (classes + 1, 2048)'),
    ],
)
def test_a_missing_or_misshapen_array_is_named(read, name, array, message, bn2affine):
    with pytest.raises(WeightFileError) as caught:
        read(file_arrays(**{name: array}), bn2affine=bn2affine)
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_a_missing_block_is_listed(read):
    arrays = {name: array for name, array in file_arrays().items() if '/res4/b5/' not in name}
    with pytest.raises(WeightFileError, match='missing arrays: extractor/res4/b5/conv1/W, extractor/res4/b5/bn1/gamma'):
        read(arrays)


def test_the_settings_of_matterport_are_refused(tmp_path, capsys):
    path = small_archive(tmp_path / 'file.npz', {'head/convm2/b': np.zeros(4)})
    settings = tmp_path / 'config.json'
    settings.write_text('{"IMAGE_MAX_DIM": 512}')
    assert cli.main(['convert', str(path), '--config', str(settings)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "takes no settings (--config): it is Chainer_Mask_R-CNN's .npz" in line


# The files of the original program


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'seed'),
    [('snapshot', 7), ('detectron', 50), ('affine', 7)],
)
def test_the_files_of_the_original_program(dena_golden, tmp_path, capsys, kind, seed):
    """Every array survives ``convert`` bit for bit, apart from the counters and the mask of the background."""
    entries = json.loads((dena_golden / 'dena' / f'names_{kind}_R-50-C4_seed0.json').read_text())
    hashes = {name: digest for name, _, _, digest in entries}
    arrays = build_arrays(dena_golden, kind, RECIPE, seed)
    assert {name: sha256(array) for name, array in arrays.items()} == hashes
    path, output = tmp_path / 'source.npz', tmp_path / 'converted.npz'
    np.savez(path, **arrays)
    assert cli.main(['convert', str(path), '--output', str(output)]) == 0
    assert capsys.readouterr().out.count('assumed ') == (kind != 'affine')
    file = formats.read(output)
    for name, array in arrays.items():
        if name.endswith('/N'):
            continue
        found = file.arrays[native_path(name)]
        if name.startswith('head/convm2/'):
            found = np.concatenate([array[:1], found])
        assert sha256(found) == hashes[name], name
    affine = formats.read(path, bn2affine=True)
    for name in hashes:
        if name.endswith(('/gamma', '/beta')):
            assert sha256(affine.arrays[native_path(name, affine=True)]) == hashes[name], name


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
