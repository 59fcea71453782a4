"""The results of ``mask-rcnn demo`` for images: JSON lines, tables, masks, transparent pictures and tracks."""

import csv
import json
import os
from pathlib import Path

import cv2
import pytest

from mask_rcnn.cli import demo_results
from mask_rcnn.io.atomic_file import FileError
from tests.cli.test_demo import FakeModel, call, calls, refused, write_image  # noqa: F401  # calls is a fixture


@pytest.fixture
def photos(calls, tmp_path):  # noqa: F811
    """Three images, two of them with the same name in different folders."""
    write_image(tmp_path / 'in' / '7.png')
    write_image(tmp_path / 'in' / 'b.png')
    write_image(tmp_path / 'other' / 'b.png')
    return ['in', 'other/b.png']


def test_files_contain_the_detections_of_the_pictures(photos, tmp_path):
    files = ['--jsonl', 'a.jsonl', '--csv', 'a.csv', '--masks', 'masks', '--instance-masks', 'objects']
    assert call('--image', *photos, *files, '--output', 'out/') == 0
    lines = [json.loads(line) for line in Path('a.jsonl').read_text().splitlines()]
    assert [(line['image'], line['height'], line['width']) for line in lines] == [
        ('in/7.png', 60, 80),
        ('in/b.png', 60, 80),
        ('other/b.png', 60, 80),
    ]
    assert [[found['class'] for found in line['detections']] for line in lines] == [['person']] * 3
    assert all('track' not in found for line in lines for found in line['detections'])
    rows = list(csv.DictReader(Path('a.csv').read_text(encoding='utf-8-sig').splitlines()))
    assert [(row['image'], row['class'], row['score']) for row in rows] == [
        ('in/7.png', 'person', '0.9000'),
        ('in/b.png', 'person', '0.9000'),
        ('other/b.png', 'person', '0.9000'),
    ]
    assert sorted(os.listdir('masks')) == ['7.png', 'b.png', 'b_2.png']
    labels = cv2.imread('masks/7.png', cv2.IMREAD_UNCHANGED)
    assert labels.shape == (60, 80) and set(labels.ravel().tolist()) == {0, 1} and labels[30, 45] == 1
    assert sorted(os.listdir('objects')) == ['7_001_person.png', 'b_001_person.png', 'b_2_001_person.png']


def test_the_score_threshold_holds_for_all_files(photos):
    assert call('--image', 'in/7.png', '--csv', 'a.csv', '--score-thresh', '0.05') == 0
    assert len(Path('a.csv').read_text().splitlines()) == 3


def test_images_can_be_tracked_in_their_order(photos):
    assert call('--image', *photos, '--output', 'out/', '--track', '--jsonl', 'a.jsonl') == 0
    lines = Path('a.jsonl').read_text().splitlines()
    assert [json.loads(line)['detections'][0]['track'] for line in lines] == [1, 1, 1]


@pytest.mark.parametrize('name', ['--jsonl', '--csv'])
def test_results_on_the_standard_output_are_alone_there(photos, capfd, name):
    assert call('--image', 'in/7.png', name, '-') == 0
    out, err = capfd.readouterr()
    assert 'person' in out and '->' not in out and 'in/7.png: 1 person -> output.png' in err


def test_outputs_that_exclude_each_other(photos, calls, tmp_path, capsys):  # noqa: F811
    image = 'in/7.png'
    for first, second in (('--json', '--jsonl'), ('--jsonl', '--csv')):
        error = refused('--image', image, first, '-', second, '-', capsys=capsys)
        assert f'{first} and {second} are both written to the standard output' in error
    error = refused('--image', image, '--csv', '-', '--annotations', '-', capsys=capsys)
    assert '--csv and --annotations are both' in error
    assert 'is the file of --json' in refused('--image', image, '--json', 'a', '--csv', './a', capsys=capsys)
    assert 'that is an image' in refused('--image', image, '--csv', image, capsys=capsys)
    assert 'is the file of --modelfile' in refused('--image', image, '--jsonl', 'model.npz', capsys=capsys)
    for words in (['--masks', 'in'], ['--instance-masks', 'out', '--output', 'out/']):
        error = refused('--image', image, *words, capsys=capsys)
        assert f'{words[0]} {words[1]}: the folder of ' in error and 'name another one' in error
    error = refused('--image', image, '--masks', 'm', '--instance-masks', './m', capsys=capsys)
    assert '--masks and --instance-masks are the same folder' in error
    assert not calls and not Path('m').exists()


def test_a_model_without_masks(photos, capsys, monkeypatch):
    make = FakeModel.__init__

    def make_without_masks(self, *arguments):
        make(self, *arguments)
        self.config = self.config.replace(masks=False)

    monkeypatch.setattr(FakeModel, '__init__', make_without_masks)
    error = refused('--image', 'in/7.png', '--masks', 'masks', capsys=capsys)
    assert error == 'error: --masks: the network of model.npz has no masks\n' and not Path('masks').exists()


@pytest.mark.parametrize(('suffix', 'n_channels'), [('png', 4), ('jpg', 3)])
def test_a_cutout_is_transparent_where_the_format_allows_it(photos, suffix, n_channels):
    assert call('--image', 'in/7.png', '--backdrop', 'cutout', '--labels', 'none', '--output', f'a.{suffix}') == 0
    picture = cv2.imread(f'a.{suffix}', cv2.IMREAD_UNCHANGED)
    assert picture.shape == (60, 80, n_channels)
    corner, inside = picture[0, 0].tolist(), picture[30, 45].tolist()
    assert corner[-1] == (0 if suffix == 'png' else 255) and abs(inside[0] - 90) <= 3


def test_a_file_of_results_on_a_full_disk_is_one_line(photos, capsys, monkeypatch):
    def fail(self, encoded):
        raise FileError(28, 'cannot be written: No space left on device', 'a.csv')

    monkeypatch.setattr(demo_results.CSVTable, 'write', fail)
    assert call('--image', 'in', '--csv', 'a.csv', '--json', 'a.json') == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert errors == ['error: a.csv: cannot be written: No space left on device']
