"""The table of networks and formats in docs/formats.md: each cell is a test that reads, or writes and reads, a file.

The first network of a cell is tested with few channels (``small``), and all of them as they are (``full``, slow).
"""

import dataclasses
import re

import numpy as np
import pytest

from mask_rcnn.config import (
    DENA,
    DETECTRON,
    DETECTRON2,
    MATTERPORT,
    MINDSPORE,
    PRESETS,
    RESNET_GROUPS,
    TORCHVISION,
    Config,
)
from mask_rcnn.weights import ModelMeta, formats
from mask_rcnn.weights.converters import detectron, detectron2, torchvision
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights, backbone_name, network_name
from mask_rcnn.weights.exporters import array_pickle, torch_file
from mask_rcnn.weights.exporters.compatibility import find_obstacles
from mask_rcnn.weights.exporters.targets import TARGETS, export_weights
from mask_rcnn.weights.readers import safe_pickle
from tests.conftest import ROOT
from tests.support.contracts import parser_of
from tests.support.dena_files import file_arrays
from tests.support.weight_arrays import used_fields, zeros
from tests.weights import test_matterport_file, test_mindspore, test_pytorch

# The table


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: the first cell, and the others by the title of their column."""

    title: str
    cells: dict[str, str]


def read_table(name: str) -> list[Row]:
    """Return the rows of the table of formats in a page."""
    text = (ROOT / name).read_text(encoding='utf-8').replace('、', ', ')
    head = r'^\| (?:network|ネットワーク) \|[^\n]*MindSpore[^\n]*\|\n\| ---[^\n]*\n'
    (table,) = re.findall(rf'({head}(?:\|[^\n]*\n)+)', text, re.MULTILINE)
    titles, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
    return [Row(row[0], dict(zip(titles[1:], row[1:], strict=True))) for row in rows]


def read_page() -> list[Row]:
    """Return the rows of docs/formats.md: formats with the suffixes of their files, and the options of a training."""
    text = (ROOT / 'docs' / 'formats.md').read_text(encoding='utf-8')
    (table,) = re.findall(r'^\| network \| options \|\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)', text, re.MULTILINE)
    options = dict(re.findall(r'^\| (.*?) \| (.*) \|$', table, re.MULTILINE))
    files, *rows = read_table('docs/formats.md')
    titles = [f'{program} {suffixes}' for program, suffixes in files.cells.items()]
    assert [row.title for row in rows] == list(options)
    return [
        Row(row.title, {**dict(zip(titles, row.cells.values(), strict=True)), OPTIONS: options[row.title]})
        for row in rows
    ]


#: The title of the column of options.
OPTIONS = '`--extractor`'
TABLE = read_page()

#: Writers of the files by the title of a column.
WRITERS = {
    'Detectron `.pkl`': ('detectron',),
    'torchvision `.pth`': ('torchvision',),
    'detectron2 `.pkl`, `.pth`': ('detectron2', 'detectron2_pth'),
    'Matterport `.h5`, `.pth`': ('matterport_h5', 'multimodal_pth', 'graph_pth'),
    'MindSpore `.ckpt`': ('mindspore',),
    'old Chainer port `.npz`': ('dena',),
}

#: The dialects of the programs whose files are only read.
DIALECTS = {
    'matterport_h5': MATTERPORT,
    'multimodal_pth': MATTERPORT,
    'graph_pth': MATTERPORT,
    'mindspore': MINDSPORE,
    'dena': DENA,
}

#: Titles of the columns whose formats can be written.
EXPORTED = {
    'detectron': 'Detectron `.pkl`',
    'torchvision': 'torchvision `.pth`',
    'detectron2': 'detectron2 `.pkl`, `.pth`',
}

BACKBONES = {
    'R-50': 'resnet50',
    'R-101': 'resnet101',
    'X-101': 'resnext101_32x8d',
    'X-101-32x8d': 'resnext101_32x8d',
    'X-101-64x4d': 'resnext101_64x4d',
    'X-152-32x8d': 'resnext152_32x8d',
    'MobileNetV1': 'mobilenet_v1',
}

#: ``maskrcnn_resnet50_fpn_v2`` (``torchvision/models/detection/mask_rcnn.py``).
VERSION_2 = {'head_norm': 'bn', 'rpn_convs': 2, 'box_convs': 4, 'box_fcs': 1}

GROUP_NORM = {'norm': 'gn', 'head_norm': 'gn', 'box_convs': 4, 'box_fcs': 1}


def networks_of(row: Row) -> dict[str, Config]:
    """Return the networks of a row in Detectron's dialect by the names in the row, such as ``'R-50-C4'``."""
    kind, names, variant = re.fullmatch(r'(\w+ R-CNN) ([\w\-, ]+?)( v2| with group normalisation|)', row.title).groups()
    changes = {'masks': kind == 'Mask R-CNN', 'n_keypoint': 0, 'n_fg_class': 2}
    if kind == 'Keypoint R-CNN':
        changes |= {'n_keypoint': 17, 'n_fg_class': 1}
    changes |= {' v2': VERSION_2, '': {}}.get(variant, GROUP_NORM)
    networks = {}
    for name in names.split(', '):
        backbone, _, neck = name.rpartition('-')
        config = PRESETS[BACKBONES[backbone] + {'C4': '', 'FPN': '_fpn'}[neck]].replace(**changes)
        if config.norm == 'gn':
            config = config.replace(dialect=config.dialect.replace(backbone={'stride_in_3x3': True}))
        networks[name] = config
    return networks


IMAGENET = next(row for row in TABLE if row.title.startswith('ImageNet'))
DETECTORS = [row for row in TABLE if row is not IMAGENET]


def is_in(name: str, cell: str) -> bool:
    """Return whether a cell contains a network: a check mark, or the beginning of the network's name."""
    return cell == '✓' or (cell != '' and name.startswith(cell))


CLAIMS = [
    (row, name, writer)
    for row in DETECTORS
    for column, writers in WRITERS.items()
    for writer in writers
    for name in networks_of(row)
    if is_in(name, row.cells[column])
]


def claims_as_parameters(*, full: bool, exported: bool) -> list:
    """Return ``(config, writer)`` of all claims, or of the first network of each cell."""
    parameters = {}
    for row, name, writer in CLAIMS:
        if (writer in DIALECTS) == exported:
            continue
        if writer == 'detectron2_pth' and not full and name != 'R-50-FPN':  # the arrays are those of the .pkl
            continue
        if writer in DIALECTS and writer not in ('dena', 'matterport_h5') and not full:  # tests of their own read them
            continue
        config = networks_of(row)[name]
        parameter = pytest.param(config, writer, id=f'{network_name(config)} {writer}')
        parameters.setdefault((row.title, writer, name if full else None), parameter)
    return list(parameters.values())


@pytest.mark.parametrize('readme', ['README.md', 'README_JP.md'])
def test_the_readmes_have_the_same_table(readme):
    """Except the last column; the suffixes of the files are in a row."""
    files, *rows = read_table(readme)
    for title, suffixes in zip(list(TABLE[0].cells)[:-1], files.cells.values(), strict=True):
        assert re.findall(r'`[^`]+`', title) == re.findall(r'`[^`]+`', suffixes)
    pattern = r'(?:Mask|Faster|Keypoint) R-CNN|[RX]-[\w-]+|v2|MobileNet\w+'
    for row, other in zip(TABLE, rows, strict=True):
        assert list(row.cells.values())[:-1] == list(other.cells.values())
        assert sorted(re.findall(pattern, row.title)) == sorted(re.findall(pattern, other.title))


def test_the_readme_has_the_same_columns():
    titles = [title.partition(' `')[0] for title in list(TABLE[0].cells)[:-1]]
    assert list(read_table('README.md')[0].cells) == titles


def test_every_column_has_a_writer():
    assert list(WRITERS) == list(TABLE[0].cells)[:-1]
    assert {cell for row in TABLE for cell in list(row.cells.values())[:-1]} <= {'', '✓', 'R-50', 'X-101'}


@pytest.mark.parametrize('row', DETECTORS, ids=lambda row: row.title)
def test_the_last_column_has_the_options_of_a_new_network(row):
    networks, cell = list(networks_of(row).values()), row.cells[OPTIONS]
    extractors = re.findall(r'`(?:--extractor )?(\w+)`', cell)
    assert extractors == [config.extractor for config in networks[: len(extractors)]] != []
    (fields,) = re.findall(r'--set ([^`]+)', cell) or ['']
    arguments = parser_of('train').parse_args(['--set', *fields.split()] if fields else [])
    assert all(getattr(networks[0], name) == value for name, value in arguments.fields)
    assert ('--norm gn' in cell) == (networks[0].norm == 'gn')
    assert ('--keypoints' in cell) == (networks[0].n_keypoint > 0)


# Files


@pytest.fixture
def _narrow(monkeypatch):
    """Give ResNets, feature pyramids and heads few channels."""
    for name, (groups, width) in RESNET_GROUPS.items():
        monkeypatch.setitem(RESNET_GROUPS, name, (groups // 8, width // 4) if groups > 1 else (1, 8))
    for name, preset in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, preset.replace(**narrow(preset)))


def narrow(config: Config) -> dict[str, int]:
    """Return fewer channels of the heads."""
    if not config.has_fpn:
        return {}
    return {'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 12, 'mask_channels': 8}


def in_program(config: Config, writer: str) -> Config:
    """Return a network with the settings that its program uses for such networks."""
    if writer == 'detectron':
        return config if config.norm == 'gn' else config.replace(norm='affine')
    norm = 'gn' if config.norm == 'gn' else 'bn'
    if writer == 'torchvision':
        dialect = TORCHVISION.replace(training={'freeze_norms': False})  # the written file counts batches
        return config.replace(dialect=dialect, norm=norm, rpn_min_size=1e-3)
    changes = {'backbone': {'stride_in_3x3': config.dialect.backbone.stride_in_3x3}}
    if config.backbone.startswith('resnext'):
        changes['input'] = {'pixel_std': (57.375, 57.12, 58.395)}
    if config.n_keypoint:
        changes |= {'losses': {'box_smooth_l1_beta': 0.5}, 'training': {'fpn_proposals': 1500}}
    return config.replace(dialect=DETECTRON2.replace(**changes), norm=norm, sampling_ratio=0)


def numbered_arrays(config: Config) -> dict[str, np.ndarray]:
    """Return arrays that are filled with their index; they take no memory."""
    table = detectron if config.norm == 'affine' else torchvision if config.has_fpn else detectron2
    arrays = {}
    for i, mapping in enumerate(table.param_mappings(config)):
        shape = mapping.apply(zeros(mapping.inputs)).shape
        arrays[mapping.path] = np.broadcast_to(np.float32(i * bool(shape)), shape)  # batch counters are not written
    return arrays


def export(path, config, writer):
    """Write arrays with the exporter of a format, and return them."""
    arrays = numbered_arrays(config)
    if writer == 'detectron2':
        for name in ('box_head/delta/W', 'box_head/delta/b'):
            arrays[name] = np.array(arrays[name])
            arrays[name][:4] = 0  # those of the background, which are never used
    file = ConvertedWeights('model', formats.NATIVE, config, arrays, ConversionReport((), {}), '')
    names = tuple(f'class_{i}' for i in range(config.n_fg_class))
    meta = ModelMeta('model', config, names, tuple(range(1, len(names) + 1)))
    export_weights('source.npz', path, file, meta, TARGETS[writer])
    return arrays


def write_zeros(path, config, writer):
    """Write zeros under the names of another program, from tables of names and shapes."""
    depth = {'resnet50': 6, 'resnet101': 23}.get(config.backbone)
    if writer == 'matterport_h5':
        shapes = test_matterport_file.keras_shapes(config.backbone)
        kinds = {(layer, kind): shape for layer, arrays in shapes.items() for kind, shape in arrays.items()}
        test_matterport_file.write(path, zeros(kinds))
    elif writer in ('multimodal_pth', 'graph_pth'):
        table = getattr(test_pytorch, writer.removesuffix('_pth'))
        torch_file.write(path, zeros(table(4, depth)))
    elif writer == 'mindspore':
        table = test_mindspore.resnet50 if depth else test_mindspore.mobilenet
        path.write_bytes(test_mindspore.checkpoint(zeros(table(4))))
    else:
        np.savez(path, **file_arrays(3, config.backbone))


def check_round_trip(folder, config, writer):
    """Write and read a network, and compare the configuration and the arrays."""
    program = writer.removesuffix('_pth')
    config = in_program(config, program)
    path = folder / f'model{TARGETS[program].suffixes[0]}'
    arrays = export(path, config, program)
    if writer == 'detectron2_pth':
        state = safe_pickle.load(path)['model']
        path = path.with_suffix('.pth')
        torch_file.write(path, state)
    file = formats.read(path)
    assert used_fields(file.config) == used_fields(config)
    assert (file.kind, file.report.warnings) == ('model', ())
    assert set(file.arrays) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.arrays[name], array, err_msg=name)


@pytest.mark.parametrize(('config', 'writer'), claims_as_parameters(full=False, exported=True))
@pytest.mark.usefixtures('_narrow')
def test_small_networks_are_written_and_read(tmp_path, config, writer):
    check_round_trip(tmp_path, config.replace(**narrow(config)), writer)


@pytest.mark.slow
@pytest.mark.parametrize(('config', 'writer'), claims_as_parameters(full=True, exported=True))
def test_full_networks_are_written_and_read(tmp_path, config, writer):
    check_round_trip(tmp_path, config, writer)


def check_reading(folder, config, writer):
    """Read a file of zeros, whose names and shapes determine the network."""
    path = folder / 'model.npz'
    write_zeros(path, config, writer)
    file = formats.read(path)
    assert network_name(file.config) == network_name(config)
    assert (file.kind, file.config.dialect, file.config.n_fg_class) == ('model', DIALECTS[writer], 3)
    assert 'unknown' not in file.report.skipped


@pytest.mark.parametrize(('config', 'writer'), claims_as_parameters(full=False, exported=False))
def test_networks_of_programs_that_are_only_read(tmp_path, config, writer):
    check_reading(tmp_path, config, writer)


@pytest.mark.slow
@pytest.mark.parametrize(('config', 'writer'), claims_as_parameters(full=True, exported=False))
def test_all_networks_of_programs_that_are_only_read(tmp_path, config, writer):
    check_reading(tmp_path, config, writer)


# The ImageNet files


@pytest.mark.parametrize('name', IMAGENET.title.partition(' backbones ')[2].split(', '))
@pytest.mark.usefixtures('_narrow')
def test_imagenet_files(tmp_path, name):
    config = PRESETS[BACKBONES[name.removesuffix('-GN')]].replace(norm='gn' if name.endswith('-GN') else 'affine')
    blobs = TARGETS['detectron'].arrays('source.npz', config, numbered_arrays(config))
    backbone = {name: blob for name, blob in blobs.items() if re.match(r'(res_)?conv1_|res\d_', name)}
    path = tmp_path / f'{name}.pkl'
    with path.open('wb') as file:
        array_pickle.ArrayPickle(file, python2=True).write(backbone)
    weights = formats.read(path)
    assert (weights.kind, weights.format, weights.config) == ('backbone', detectron.FORMAT, config)
    assert backbone_name(weights.config) == name and len(weights.arrays) == len(backbone)
    for mapping in detectron.param_mappings(config):
        if mapping.path in weights.arrays:
            np.testing.assert_array_equal(weights.arrays[mapping.path], backbone[next(iter(mapping.inputs))])


# Empty cells


@pytest.mark.parametrize('row', DETECTORS, ids=lambda row: row.title)
@pytest.mark.parametrize('writer', EXPORTED)
def test_exactly_the_networks_of_a_program_are_claimed(row, writer):
    program, cell = TARGETS[writer].program, row.cells[EXPORTED[writer]]
    for name, config in networks_of(row).items():
        assert (find_obstacles(with_stride_of(config, writer), program) == []) == is_in(name, cell), name


def with_stride_of(config: Config, writer: str) -> Config:
    """Return a network with the stride in the layer that the program supports; torchvision supports one."""
    in_3x3 = writer == 'torchvision' or config.dialect.backbone.stride_in_3x3
    dialect = DETECTRON if config.backbone.startswith('res') else config.dialect
    return config.replace(dialect=dialect.replace(backbone={'stride_in_3x3': in_3x3}))
