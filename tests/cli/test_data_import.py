"""The command ``mask-rcnn data import``."""

import itertools
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.cli import data
from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.importers import image_copies
from tests.support import labelling_files as files


@pytest.fixture
def source(tmp_path):
    """An export of VIA with two classes and a point."""
    files.write_image(tmp_path / 'my photos' / 'a.png')
    files.write_image(tmp_path / 'my photos' / 'b.png')
    point = files.via_region({'name': 'point', 'cx': 3, 'cy': 4})
    circle = files.via_region({'name': 'circle', 'cx': 50, 'cy': 50, 'r': 20}, {'class': 'dog'})
    images = {**files.via_image([files.via_triangle({'class': 'cat'}), circle, point]), **files.via_image([], 'b.png')}
    return files.write_json(tmp_path / 'my photos' / 'via.json', images)


@pytest.fixture
def run(tmp_path, capsys):
    """A function that runs the command; returns the status, the lines of the output, and those of the errors."""

    def run_command(*arguments, output='out.json'):
        target = ['--output', str(tmp_path / output)] if output else []
        status = data.main(['import', *map(str, arguments), *target])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run_command


def test_the_summary_and_the_options_for_training(run, source, tmp_path):
    status, lines, errors = run(source)
    assert status == 0
    assert lines[:2] == ['VIA 2: 2 images (1 without objects), 2 objects', 'classes: cat (1), dog (1)']
    assert errors == ['warning: left out 1 item: 1 point (region 2 of a.png)']
    _, annotations, _, images = shlex.split(lines[-1])
    assert shlex.split(lines[-1])[::2] == ['--train-annotations', '--train-images']
    dataset = COCODataset(annotations, images)
    assert dataset.class_names == ('cat', 'dog') and len(dataset) == 1 and dataset.warnings == []


def test_classes_and_copies(run, source, tmp_path):
    (tmp_path / 'classes.txt').write_text('dog: animal\ncat:\n')
    copies = tmp_path / 'copies'
    status, lines, _ = run(source, '--classes', tmp_path / 'classes.txt', '--copy-images', copies)
    assert status == 0
    assert lines[1:3] == ['classes: animal (1)', 'dropped: cat (1)']
    content = json.loads((tmp_path / 'out.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['a.png', 'b.png']
    assert content['categories'] == [{'id': 1, 'name': 'animal'}]
    assert sorted(path.name for path in copies.iterdir()) == ['a.png', 'b.png']
    assert shlex.split(lines[-1])[-1] == str(copies)


def test_several_sources(run, source, tmp_path):
    shapes = [files.labelme_shape(np.reshape(files.TRIANGLE, (-1, 2)).tolist(), label='rat')]
    files.write_image(tmp_path / 'other' / 'c.png')
    other = files.write_json(tmp_path / 'other' / 'c.json', files.labelme_file(shapes, 'c.png'))
    status, lines, _ = run(source, other)
    assert status == 0 and lines[0] == 'VIA 2, labelme: 3 images (1 without objects), 3 objects'
    names = [image['file_name'] for image in json.loads((tmp_path / 'out.json').read_text())['images']]
    assert names == ['my photos/a.png', 'my photos/b.png', 'other/c.png']


def test_the_standard_output(source, capfd):
    status = data.main(['import', str(source), '--output', '-'])
    captured = capfd.readouterr()
    lines, errors = captured.out.splitlines(), captured.err.splitlines()
    assert status == 0 and len(lines) == 1 and len(json.loads(lines[0])['annotations']) == 2
    assert errors[0].startswith('VIA 2: 2 images')


@pytest.mark.parametrize(
    ('options', 'status', 'message'),
    [
        (['--strict'], 1, 'via.json: left out 1 item: 1 point (region 2 of a.png) (--strict)'),
        (['--attribute', 'kind'], 1, "no region has the attribute 'kind'"),
        (['--format', 'labelme'], 1, 'not a file of labelme'),
        (['--format', 'coco'], 1, 'a project of the VGG Image Annotator'),
        (['--images', 'nowhere'], 2, '--images nowhere: no such folder'),
        (['--classes', 'nowhere.txt'], 1, 'nowhere.txt: no such file'),
    ],
)
def test_errors_write_nothing(run, source, tmp_path, options, status, message):
    before = sorted(tmp_path.rglob('*'))
    found, lines, errors = run(source, *options)
    assert (found, lines, len(errors)) == (status, [], 1) and message in errors[0]
    assert sorted(tmp_path.rglob('*')) == before


def test_the_output_is_not_a_source(run, source):
    before = source.read_bytes()
    status, _, errors = run(source, '--output', source, output=None)
    assert status == 2 and errors == [f'error: --output {source} is a source'] and source.read_bytes() == before


def test_the_copies_are_not_the_images(run, source):
    status, _, errors = run(source, '--images', source.parent, '--copy-images', source.parent)
    assert status == 2 and errors[0].endswith('is the folder of --images')


def test_crowds(run, tmp_path):
    files.write_image(tmp_path / 'a.png')
    path = files.write_json(tmp_path / 'a.json', files.coco_file([files.coco_object(iscrowd=1)]))
    _, _, errors = run(path)
    assert "1 crowd, as all of 'cat' (--crowds objects makes it an object)" in errors[0]
    _, _, errors = run(path, '--crowds', 'objects')
    assert errors == []
    assert json.loads((tmp_path / 'out.json').read_text())['annotations'][0]['iscrowd'] == 0


def test_no_image_remains(run, source):
    for image in source.parent.glob('*.png'):
        image.unlink()
    status, _, errors = run(source, '--skip-broken')
    assert status == 1 and 'no image remains; left out' in errors[0]


@pytest.mark.parametrize('name', ['a.json', 'a.png'])
def test_the_output_replaces_no_file_of_the_source(run, name, tmp_path):
    for stem in 'ab':
        files.write_image(tmp_path / 'photos' / f'{stem}.png')
        shape = files.labelme_shape([[10, 5], [80, 20], [30, 75]])
        files.write_json(tmp_path / 'photos' / f'{stem}.json', files.labelme_file([shape], f'{stem}.png'))
    before = (tmp_path / 'photos' / name).read_bytes()
    status, _, errors = run(tmp_path / 'photos', output=f'photos/{name}')
    assert status == 2 and ('an image of the source' in errors[0] or 'exists in the source' in errors[0])
    assert (tmp_path / 'photos' / name).read_bytes() == before


def test_an_import_into_the_source_can_be_repeated(run, tmp_path):
    files.write_image(tmp_path / 'photos' / 'a.png')
    shape = files.labelme_shape([[10, 5], [80, 20], [30, 75]])
    files.write_json(tmp_path / 'photos' / 'a.json', files.labelme_file([shape]))
    for options in ([], ['--format', 'labelme']):
        assert run(tmp_path / 'photos', *options, output='photos/out.json')[0] == 0
    assert run(tmp_path / 'photos', '--format', 'coco', output='photos/out.json')[0] == 2


def test_a_dataset_without_classes_is_refused(run, tmp_path):
    files.write_image(tmp_path / 'a.png')
    source = files.write_json(tmp_path / 'a.json', files.labelme_file([]))
    status, _, errors = run(source)
    assert status == 1 and errors == [f'error: {source}: has neither objects nor classes; --classes names the classes']
    assert not (tmp_path / 'out.json').exists()
    (tmp_path / 'classes.txt').write_text('cat\n')
    assert run(source, '--classes', tmp_path / 'classes.txt')[0] == 0


def test_class_names_of_folders_with_decomposed_accents(run, tmp_path):
    mask = np.zeros(files.SIZE, bool)
    mask[5:20, 7:30] = True
    files.write_image(tmp_path / 'in' / 'a' / 'images' / 'a.png')
    folder = tmp_path / 'in' / 'a' / 'masks' / 'cafe\N{COMBINING ACUTE ACCENT}'
    folder.mkdir(parents=True)
    Image.fromarray(mask).save(folder / '0.png')
    (tmp_path / 'classes.txt').write_text('caf\N{LATIN SMALL LETTER E WITH ACUTE}\n', encoding='utf-8')
    status, lines, _ = run(tmp_path / 'in', '--classes', tmp_path / 'classes.txt')
    assert status == 0 and lines[1] == 'classes: caf\N{LATIN SMALL LETTER E WITH ACUTE} (1)'


def test_linked_images_above_the_annotations_keep_their_names(run, tmp_path, monkeypatch):
    files.write_image(tmp_path / 'store' / 'hash.png')
    (tmp_path / 'images').mkdir()
    for name in ('a.png', 'b.png'):
        (tmp_path / 'images' / name).symlink_to(tmp_path / 'store' / 'hash.png')
        shape = files.labelme_shape([[10, 5], [80, 20], [30, 75]])
        content = files.labelme_file([shape], f'../images/{name}')
        files.write_json(tmp_path / 'labels' / f'{name}.json', content)
    monkeypatch.chdir(tmp_path)
    status, lines, _ = run('labels')
    assert status == 0 and shlex.split(lines[-1])[-1] == 'images'
    content = json.loads((tmp_path / 'out.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['a.png', 'b.png']


def test_copies_that_fail_leave_no_folders(run, tmp_path, monkeypatch):
    for name in ('a', 'b'):
        files.write_image(tmp_path / 'in' / name / f'{name}.png')
        shape = files.labelme_shape([[10, 5], [80, 20], [30, 75]])
        files.write_json(tmp_path / 'in' / name / f'{name}.json', files.labelme_file([shape], f'{name}.png'))
    copy, n_copies = shutil.copyfileobj, itertools.count()

    def interrupt(*args):
        if next(n_copies):
            raise KeyboardInterrupt
        copy(*args)

    monkeypatch.setattr(image_copies.shutil, 'copyfileobj', interrupt)
    assert run(tmp_path / 'in', '--copy-images', tmp_path / 'new' / 'copies')[0] == 130
    assert next(n_copies) == 2 and not (tmp_path / 'new').exists()
