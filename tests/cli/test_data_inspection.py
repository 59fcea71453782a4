"""``mask-rcnn data check``, ``stats``, ``show`` and ``split``: outputs, exit statuses and errors."""

import argparse
import json
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask_rcnn.cli import main, train_options
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.datasets.inspection import machine
from tests.support.small_dataset import annotation, write_dataset, write_large_dataset

SUBCOMMANDS = ('check', 'stats', 'show', 'split')


@pytest.fixture
def dataset(tmp_path):
    """Four images of 100 x 150 with one cat each, and a dog on the last two; the arguments that name them."""
    objects = [annotation(i, i, (10, 10, 40, 30)) for i in range(4)]
    objects += [annotation(4 + i, i, (70, 50, 60, 40), 2) for i in (2, 3)]
    return [str(write_dataset(tmp_path / 'in', [(100, 150)] * 4, objects)), str(tmp_path / 'in')]


def outputs_in(folder, command):
    """Return an option that writes into a folder, for the subcommands that write."""
    return {'show': ['-o', str(folder / 'sheet.png')], 'split': ['--out', str(folder)]}.get(command, [])


@pytest.mark.parametrize('command', SUBCOMMANDS)
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'no such file'),
        ('{"images": [', 'not a JSON file'),
        ('{"images": [], "annotations": []}', "there is no list 'categories'"),
        ('[{"image_id": 1, "score": 0.5}]', 'a list of detections'),
    ],
)
def test_broken_annotations_are_one_line(command, content, words, tmp_path, capsys):
    path = tmp_path / 'a.json'
    if content is not None:
        path.write_text(content)
    (tmp_path / 'out').mkdir()
    assert main(['data', command, str(path), str(tmp_path), *outputs_in(tmp_path / 'out', command)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('running on the CPU')]
    assert len(lines) == 1 and lines[0].startswith(f'error: {path}: ') and words in lines[0]
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    'words',
    [
        ['check', '--val-annotations', 'a.json'],
        ['check', '--min-size', '100', '--max-size', '50'],
        ['check', '--ignore', 'nothing'],
        ['show', '--n', '0'],
        ['show', '--output', 'a.json'],
        ['show', '--output', 'sheet'],
        ['split', '--fraction', '1'],
        ['split', '--fraction', 'nan'],
        ['split', '--by', '('],
        ['stats', '--memory', '0'],
    ],
)
def test_bad_arguments(words, dataset, capsys):
    try:
        status = main(['data', words[0], *dataset, *words[1:]])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert words[1] in capsys.readouterr().err.splitlines()[-1]


def test_check_of_good_data(dataset, capsys):
    assert main(['data', 'check', *dataset, '--val-annotations', dataset[0], '--val-images', dataset[1], '--fast']) == 1
    assert 'train-val: ' in capsys.readouterr().out
    assert main(['data', 'check', *dataset]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'{dataset[0]}: 4 images, 6 annotations',
        '  nothing doubtful',
    ]


def test_check_lists_and_counts(dataset, tmp_path, capsys):
    for i in (1, 2, 3):
        (tmp_path / 'in' / f'{i}.png').unlink()
    assert main(['data', 'check', *dataset, '--limit', '2']) == 1
    lines = capsys.readouterr().out.splitlines()
    first = tmp_path / 'in' / '1.png'
    assert lines[0] == f'unreadable: {first}: no such file or directory'
    assert lines[2] == 'unreadable: ... and 1 more (--limit 0 lists all)'
    assert lines[-1].split() == ['3', 'unreadable:', 'images', 'that', 'cannot', 'be', 'read']
    assert main(['data', 'check', *dataset, '--ignore', 'unreadable']) == 0
    capsys.readouterr()
    assert main(['data', 'check', *dataset, '--json', '--limit', '1']) == 1
    described = json.loads(capsys.readouterr().out)
    assert described['counts'] == {'unreadable': 3}
    assert described['datasets'] == [{'annotations': dataset[0], 'n_images': 4, 'n_annotations': 6}]
    assert described['findings'][0] == {
        'kind': 'unreadable',
        'file': str(first),
        'place': '',
        'reason': 'no such file or directory',
    }


def test_stats(dataset, tmp_path, capsys):
    picture = tmp_path / 'stats.png'
    assert main(['data', 'stats', *dataset, '--gpu', '-1', '--memory', '16', '-o', str(picture)]) == 0
    printed = capsys.readouterr().out
    assert 'objects  6 in 2 classes' in printed and 'on a CPU with 16 GiB' in printed
    command = printed.splitlines()[-1]
    assert command.startswith(f'mask-rcnn train --train-annotations {dataset[0]} --train-images {dataset[1]}')
    assert '--clip-gradient 10' in command and '--lr-initialchange 1' in command
    assert cv2.imread(str(picture)).shape == (960, 1320, 3)


def suggested_arguments(capsys, dataset, *options):
    """Return the arguments of the suggested command, as mask-rcnn train checks them."""
    assert main(['data', 'stats', *dataset, '--memory', '16', *options]) == 0
    program, command, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (program, command) == ('mask-rcnn', 'train')
    parser = argparse.ArgumentParser()
    train_options.configure(parser)
    return TrainArguments.from_namespace(parser.parse_args(words))


@pytest.mark.parametrize('extractor', ['resnet50', 'mobilenet_v1_fpn'])
def test_train_accepts_the_suggested_command(extractor, dataset, capsys):
    args = suggested_arguments(capsys, dataset, '--gpu', '-1', '--extractor', extractor)
    assert (args.extractor, args.gpu, args.validation) == (extractor, -1, 0)
    assert len(args.data.open('train', size=0)) == 4


@pytest.mark.parametrize('n_broken', [0, 1])
def test_the_suggested_command_skips_what_is_broken(n_broken, dataset, tmp_path, capsys):
    for i in range(n_broken):
        (tmp_path / 'in' / f'{i}.png').unlink()
    args = suggested_arguments(capsys, dataset)
    assert args.data.skip_broken == (n_broken > 0) and args.gpu is None
    assert len(args.data.open('train', size=0)) == 4 - n_broken


def test_stats_as_json_leave_broken_images_out(dataset, tmp_path, capsys):
    (tmp_path / 'in' / '0.png').write_bytes(b'GIF89a')
    assert main(['data', 'stats', *dataset, '--gpu', '-1', '--json', '--extractor', 'mobilenet_v1_fpn']) == 0
    printed = capsys.readouterr()
    described = json.loads(printed.out)
    assert described['n_images'] == 3 and described['settings']['extractor'] == 'mobilenet_v1_fpn'
    assert 'warning: left out 1 item: 1 unusable image' in printed.err


def test_memory_of_a_container(tmp_path, monkeypatch):
    limit, unlimited = tmp_path / 'limit', tmp_path / 'unlimited'
    limit.write_text('1000000\n')
    unlimited.write_text('max\n')
    monkeypatch.setattr(machine, '_LIMIT_FILES', (str(unlimited), str(tmp_path / 'none')))
    whole = machine.find_machine(-1)
    assert whole.memory > 1e8 and not whole.has_gpu
    monkeypatch.setattr(machine, '_LIMIT_FILES', (str(unlimited), str(limit)))
    assert machine.find_machine(-1).memory == 1000000


def test_show(dataset, tmp_path):
    sheets = [tmp_path / name for name in ('a.png', 'b.png', 'c.png', 'd.jpg')]
    options = [['--n', '2'], ['--n', '2'], ['--class', 'dog', '--columns', '1', '--size', '200'], []]
    for sheet, words in zip(sheets, options, strict=True):
        assert main(['data', 'show', *dataset, '-o', str(sheet), *words]) == 0
    first, second, dogs, all_images = (cv2.imread(str(sheet)) for sheet in sheets)
    np.testing.assert_array_equal(first, second)
    assert dogs.shape[1] == 200 + 24 and dogs.shape[0] > 2 * 133  # the two images with dogs, in one column
    assert all_images.shape[1] == 4 * 372 + 12


def test_show_of_an_unknown_class(dataset, tmp_path, capsys):
    assert main(['data', 'show', *dataset, '--class', 'cow', '-o', str(tmp_path / 'a.png')]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {dataset[0]}: there is no class 'cow'"
    assert not (tmp_path / 'a.png').exists()


def test_split(dataset, tmp_path, capsys):
    assert main(['data', 'split', *dataset, '--fraction', '0.5']) == 0
    files = [tmp_path / 'in' / f'data_{part}.json' for part in ('train', 'val')]
    train, val = (json.loads(file.read_text()) for file in files)
    source = json.loads((tmp_path / 'in' / 'data.json').read_text())
    for part in (train, val):
        assert part['info'] == source['info'] and part['categories'] == source['categories']
        assert len(part['images']) == 2 and {a['category_id'] for a in part['annotations']} == {1, 2}
    for key in ('images', 'annotations'):
        assert sorted([*train[key], *val[key]], key=lambda entry: entry['id']) == source[key]
    assert capsys.readouterr().out.splitlines()[0] == f'{files[0]}: 2 images, 3 annotations'


def test_split_keeps_copies_and_groups_together(dataset, tmp_path):
    shutil.copy(tmp_path / 'in' / '0.png', tmp_path / 'in' / '3.png')
    for i in range(5):
        words = ['--out', str(tmp_path / 'new' / 'out'), '--seed', str(i), '--by', '^[12]()']
        assert main(['data', 'split', *dataset, *words]) == 0
        parts = [json.loads((tmp_path / 'new' / 'out' / f'data_{p}.json').read_text()) for p in ('train', 'val')]
        names = [{image['file_name'] for image in part['images']} for part in parts]
        assert sorted(map(sorted, names)) == [['0.png', '3.png'], ['1.png', '2.png']]


def test_split_needs_the_images(dataset, tmp_path, capsys):
    (tmp_path / 'in' / '2.png').unlink()
    assert main(['data', 'split', *dataset]) == 1
    assert capsys.readouterr().err.startswith(f'error: {tmp_path / "in" / "2.png"}: No such file')
    assert not list((tmp_path / 'in').glob('data_*'))


@pytest.mark.parametrize('command', ['check', 'stats'])
def test_real_data(command, shared, capsys):
    folder = shared / 'coco-mini'
    if not folder.is_dir():
        pytest.skip(f'no {folder}')
    files = [str(folder / 'annotations' / 'instances_val2017.json'), str(folder / 'val2017')]
    assert main(['data', command, *files, '--json', *(['--gpu', '-1'] if command == 'stats' else ['--fast'])]) in (0, 1)
    described = json.loads(capsys.readouterr().out)
    if command == 'check':
        assert not {'unreadable', 'malformed', 'size', 'doubtful'} & set(described['counts'])
    else:
        assert described['n_objects'] + described['n_crowds'] == 712


@pytest.mark.slow
@pytest.mark.parametrize('words', [['check'], ['check', '--fast', '--ignore', 'same-image'], ['stats', '--gpu', '-1']])
def test_10000_images_take_less_than_a_minute(words, tmp_path_factory, root):
    """And 2 GB, with 200,000 objects.  CPU seconds are compared, because other processes may run."""
    folder = tmp_path_factory.getbasetemp() / 'large'
    path = folder / 'data.json'
    if not path.exists():
        write_large_dataset(folder, 10_000, 200_000)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, '-m', 'mask_rcnn.cli', 'data', words[0], str(path), str(folder), *words[1:]]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert '10000 images, 200000 annotations' in done.stdout or 'images   10000 with objects' in done.stdout, (
        done.stderr
    )
    assert '100%' in done.stderr  # the progress bar
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 60 and after.ru_maxrss * 1024 < 2e9, f'{seconds:.0f} s, {after.ru_maxrss} KiB'


@pytest.mark.parametrize('command', ['stats', 'show'])
def test_a_picture_replaces_no_image_of_the_dataset(command, dataset, capsys):
    image = Path(dataset[1]) / '3.png'
    before = image.read_bytes()
    assert main(['data', command, *dataset, '--output', str(image)]) == 2
    assert f'--output {image} is an image of the dataset' in capsys.readouterr().err
    assert image.read_bytes() == before


def test_the_histograms_are_a_png_file(dataset, tmp_path, capsys):
    assert main(['data', 'stats', *dataset, '--output', str(tmp_path / 'sizes.jpg')]) == 2
    assert 'does not end with .png' in capsys.readouterr().err


def test_a_contact_sheet_of_missing_images_names_them(dataset, tmp_path, capsys):
    (tmp_path / 'other').mkdir()
    assert main(['data', 'show', dataset[0], str(tmp_path / 'other'), '--output', str(tmp_path / 'sheet.png')]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert 'no image remains; left out' in line and 'unusable image' in line and 'other' in line
    assert not (tmp_path / 'sheet.png').exists()
