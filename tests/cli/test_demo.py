"""``mask-rcnn demo``: pictures, COCO results, options and errors, with a fake model."""

import json
import os
import subprocess
import sys
import types
import weakref

import cv2
import numpy as np
import pytest
from PIL import Image

import mask_rcnn

# Chainer is importable only after mask_rcnn.
# isort: split
import chainer

from mask_rcnn.cli import demo, network_options, options, pictures
from mask_rcnn.cli import main as console
from mask_rcnn.cli.demo_jobs import detect_frames
from mask_rcnn.config import DENA, Config
from mask_rcnn.inference.detections import Detections
from mask_rcnn.media import sources
from mask_rcnn.media.pipeline import MAX_ITEMS
from mask_rcnn.weights import WeightFileError


class FakeModel:
    """A model that detects two objects, with scores 0.9 and 0.1, in every image; it records the images.

    In DeNA's dialect, it detects the first object twice if the threshold of NMS is above 0.4.
    """

    def __init__(self, score_threshold, dialect='detectron'):
        self.config = Config(score_threshold=score_threshold)
        if dialect == 'dena':
            self.config = self.config.in_dialect(DENA)
        self.seen = []

    def set_thresholds(self, *, nms):
        self.config = self.config.replace(nms_threshold=nms)

    def detect(self, images, *, batch_size=None):
        return list(self.iter_detections(images, batch_size=batch_size))

    def iter_detections(self, images, *, batch_size=None):
        """Read two images ahead of the detections, as the model on a GPU does."""
        pending = []
        for image in images:
            self.seen.append(image)
            pending.append(self._detect_one(image))
            if len(pending) > 2:
                yield pending.pop(0)
        yield from pending

    def _detect_one(self, image):
        if image.max() == 0:
            raise ValueError('a black image')
        size = image.shape[1:]
        detections = Detections(
            boxes=np.array([[10, 20, 50, 70], [30, 40, 59, 79]], np.float32),
            labels=np.array([0, 2]),
            scores=np.array([0.9, 0.1], np.float32),
            size=size,
            class_names=('person', 'dog', 'car'),
            category_ids=(1, 18, 3),
            mask_probs=np.full((2, 14, 14), 0.8, np.float32),
            dialect=self.config.dialect,
        )
        if self.config.dialect == DENA and self.config.nms_threshold > 0.4:
            detections = detections[[0, 0, 1]]
        return detections.above(self.config.score_threshold)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls of a fake ``load``, with the models that it returned."""
    calls = []

    def load(path, *, gpu=-1, bn2affine=False, dialect=None, **changes):
        model = FakeModel(changes.get('score_threshold', 0.05), dialect)
        given = {'path': path, 'gpu': gpu, 'bn2affine': bn2affine, 'dialect': dialect}
        calls.append({**given, 'changes': changes, 'model': model})
        return model

    monkeypatch.setattr(network_options, 'load', load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'model.npz').write_bytes(b'weights')
    return calls


def write_image(path, value=90, size=(60, 80)):
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return str(path)


def call(*arguments):
    return demo.main([*map(str, arguments), '--modelfile', 'model.npz', '--gpu', '-1'])


def test_one_image_gives_the_picture_and_the_results(calls, tmp_path, capsys):
    image = write_image(tmp_path / '000000000139.png')
    assert call('--image', image, '--json', 'found.json') == 0
    drawn = cv2.imread('output.png')
    assert drawn.shape == (60, 80, 3) and (drawn != 90).any()
    results = json.loads((tmp_path / 'found.json').read_text())
    assert [(r['image_id'], r['category_id']) for r in results] == [(139, 1), (139, 3)]
    assert results[0]['bbox'] == [20, 10, 51, 41]
    assert calls[0]['gpu'] == -1 and not calls[0]['bn2affine'] and calls[0]['changes'] == {}
    assert '1 person -> output.png' in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ['000000000139.png', 'found.json', 'model.npz', 'output.png']


def test_the_model_receives_rgb_pixels(calls, tmp_path):
    path = tmp_path / 'image.png'
    pixels = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    cv2.imwrite(str(path), pixels)
    assert call('--image', path) == 0
    np.testing.assert_array_equal(calls[0]['model'].seen[0], pixels[:, :, ::-1].transpose(2, 0, 1))


def test_the_score_thresholds_of_pictures_and_json(calls, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        Detections,
        'draw',
        lambda self, image, **options: (shown.append(self.scores.round(1).tolist()), np.zeros((60, 80, 3), np.uint8))[
            1
        ],
    )
    image = write_image(tmp_path / 'a.png')
    counts = []
    for threshold in ([], ['--score-thresh', '0.05'], ['--score-thresh', '0.5']):
        assert call('--image', image, '--json', 'found.json', *threshold) == 0
        counts.append(len(json.loads((tmp_path / 'found.json').read_text())))
    assert [len(scores) for scores in shown] == [1, 2, 1]
    assert counts == [2, 2, 1]
    assert [c['changes'] for c in calls] == [{}, {'score_threshold': 0.05}, {'score_threshold': 0.5}]


def test_flags_reach_the_model_and_the_drawing(calls, tmp_path, monkeypatch):
    options = {}
    monkeypatch.setattr(
        Detections,
        'draw',
        lambda self, image, **arguments: (options.update(arguments), np.zeros((60, 80, 3), np.uint8))[1],
    )
    image = write_image(tmp_path / 'a.png')
    assert (
        call(
            '--image',
            image,
            '--bn2affine',
            '--no-roialign',
            '--roi_size',
            '7',
            '--extractor',
            'resnet101',
            '--contour',
            '--backdrop',
            'grey',
            '--labels',
            'none',
        )
        == 0
    )
    assert calls[0]['bn2affine']
    assert calls[0]['changes'] == {'roi_align': False, 'roi_size': 7, 'extractor': 'resnet101'}
    style = {'contour': True, 'backdrop': 'grey', 'labels': 'none', 'font': None, 'masks': True, 'boxes': True}
    assert options == style
    assert call('--image', image, '--no-fill', '--no-boxes') == 0
    assert not options['masks'] and not options['boxes'] and not options['contour']
    assert call('--image', image, '--roialign') == 0
    assert calls[2]['changes'] == {'roi_align': True}


@pytest.mark.parametrize('place', ['before', 'after'])
def test_the_flag_for_no_window_has_no_effect(calls, tmp_path, place):
    """The old Chainer port's ``--background``: the picture is the one without the flag."""
    image = write_image(tmp_path / 'a.png')
    assert call('--image', image) == 0
    expected = (tmp_path / 'output.png').read_bytes()
    (tmp_path / 'output.png').unlink()
    assert call(*(['--background', '--image', image] if place == 'before' else ['--image', image, '--background'])) == 0
    assert (tmp_path / 'output.png').read_bytes() == expected


@pytest.mark.parametrize('words', [['--background', 'grey'], ['--background=grey'], ['--background', 'b.png']])
def test_a_value_for_no_window_names_the_option_of_the_backdrop(calls, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        call('--image', write_image(tmp_path / 'a.png'), *words)
    line = capsys.readouterr().err.splitlines()[-1]
    value = words[-1].split('=')[-1]
    assert stop.value.code == 2 and not calls
    assert f"argument --background: takes no value, not '{value}'; --backdrop (image, grey, black, white, " in line


@pytest.fixture
def shown(monkeypatch):
    """The scores of the detections in each picture."""
    shown = []

    def draw(self, image, **options):
        shown.append([round(float(score), 1) for score in self.scores])
        return np.zeros((60, 80, 3), np.uint8)

    monkeypatch.setattr(Detections, 'draw', draw)
    return shown


def test_what_is_left_out_of_a_folder_is_a_warning_or_an_error(calls, tmp_path, capsys):
    write_image(tmp_path / 'in' / 'a.png')
    (tmp_path / 'in' / 'b.heic').write_bytes(b'x')
    (tmp_path / 'in' / 'c.png').symlink_to('gone.png')
    left_out = 'in: left out 2 files: 1 in an unsupported format (b.heic), 1 with a dangling link (c.png)\n'
    assert call('--image', 'in', '--strict') == 1  # as with the datasets of the other commands
    assert capsys.readouterr().err == f'error: {left_out[:-1]} (--strict)\n'
    assert not calls
    assert call('--image', 'in') == 0
    assert capsys.readouterr().err == f'warning: {left_out}'


@pytest.mark.parametrize('name', ['gone.png', 'b.heic'])
def test_a_path_without_an_image_stops_a_strict_command(calls, tmp_path, capsys, name):
    image = write_image(tmp_path / 'a.png')
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'b.heic').write_bytes(b'x')
    path = {'gone.png': 'gone.png', 'b.heic': 'in'}[name]
    assert call('--image', image, path, '--strict') == 1 and not calls
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: ') and error.count('\n') == 1
    assert call('--image', image, path) == 1 and calls
    assert error in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['', '.', '.caf\udce9', '.é', '.a\nb'])
def test_only_suffixes_in_ascii_reach_opencv(calls, tmp_path, capsys, monkeypatch, suffix):
    """OpenCV crashes with names that are not UTF-8."""
    monkeypatch.setattr(pictures.cv2, 'haveImageWriter', pytest.fail)
    image = write_image(tmp_path / 'a.png')
    assert 'no picture can be written as' in refused('--image', image, '--output', f'x{suffix}', capsys=capsys)
    assert not calls


@pytest.mark.parametrize(
    ('flags', 'picture', 'scores', 'passes'),
    [
        ([], [0.9], [0.9, 0.9, 0.1], 2),
        (['--preset', 'visualize'], [0.9], [0.9], 1),
        (['--preset', 'evaluate'], [0.9, 0.9, 0.1], [0.9, 0.9, 0.1], 1),
        (['--score-thresh', '0.5'], [0.9], [0.9, 0.9], 2),
        (['--score-thresh', '0.05'], [0.9, 0.1], [0.9, 0.9, 0.1], 2),
        (['--score-thresh', '0.05', '--preset', 'visualize'], [0.9, 0.1], [0.9, 0.1], 1),
        (['--score-thresh', '0.5', '--preset', 'evaluate'], [0.9, 0.9], [0.9, 0.9], 1),
    ],
)
def test_presets_of_pictures_and_json(calls, shown, tmp_path, capsys, flags, picture, scores, passes):
    """DeNA's NMS at 0.3 in pictures drops an object that NMS at 0.5 in the JSON file keeps."""
    image = write_image(tmp_path / 'a.png')
    assert call('--image', image, '--dialect', 'dena', '--json', 'found.json', *flags) == 0
    found = [round(result['score'], 1) for result in json.loads((tmp_path / 'found.json').read_text())]
    assert (shown, found, len(calls[0]['model'].seen)) == ([picture], scores, passes)
    assert calls[0]['dialect'] == 'dena'
    assert capsys.readouterr().out.count('->') == 1


@pytest.mark.parametrize(
    ('flags', 'picture'),
    [([], [0.9]), (['--preset', 'visualize'], [0.9]), (['--preset', 'evaluate'], [0.9, 0.9, 0.1])],
)
def test_presets_of_pictures_alone(calls, shown, tmp_path, flags, picture):
    assert call('--image', write_image(tmp_path / 'a.png'), '--dialect', 'dena', *flags) == 0
    assert shown == [picture] and len(calls[0]['model'].seen) == 1


@pytest.mark.parametrize(
    ('flags', 'picture', 'n_results'),
    [([], [0.9], 2), (['--preset=visualize'], [0.9], 1), (['--preset=evaluate'], [0.9, 0.1], 2)],
)
def test_presets_of_other_models_are_thresholds_of_scores(calls, shown, tmp_path, flags, picture, n_results):
    assert call('--image', write_image(tmp_path / 'a.png'), '--json', 'found.json', *flags) == 0
    results = json.loads((tmp_path / 'found.json').read_text())
    assert (shown, len(results), len(calls[0]['model'].seen)) == ([picture], n_results, 1)


def test_a_broken_image_is_reported_once_in_two_passes(calls, tmp_path, capsys):
    write_image(tmp_path / 'in' / 'black.png', value=0)
    write_image(tmp_path / 'in' / 'good.png')
    (tmp_path / 'in' / 'broken.jpg').write_bytes(b'no image')
    assert call('--image', 'in', '--dialect', 'dena', '--json', 'found.json') == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert errors == ['error: in/black.png: a black image', 'error: in/broken.jpg: not an image of a known format']
    results = json.loads((tmp_path / 'found.json').read_text())
    assert [result['image_id'] for result in results] == ['good'] * 3


@pytest.mark.parametrize(('dialect', 'size'), [('dena', (60, 80)), ('detectron', (80, 60))])
def test_the_orientation_of_an_image(calls, tmp_path, dialect, size):
    """DeNA's program ignores the EXIF orientation, in its detections and in its picture."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / 'a.jpg', exif=exif)
    assert call('--image', 'a.jpg', '--dialect', dialect, '--json', 'found.json') == 0
    assert {image.shape for image in calls[0]['model'].seen} == {(3, *size)}
    assert cv2.imread('output.png').shape == (*size, 3)
    sizes = [result['segmentation']['size'] for result in json.loads((tmp_path / 'found.json').read_text())]
    assert sizes and all(found == list(size) for found in sizes)


@pytest.mark.parametrize('dialect', ['dena', 'detectron'])
def test_no_detections_give_an_empty_list(calls, tmp_path, capsys, dialect):
    """Where the old program ended with an error."""
    image = write_image(tmp_path / 'a.png')
    flags = ['--json', 'found.json', '--score-thresh', '0.95', '--contour']
    assert call('--image', image, '--dialect', dialect, *flags) == 0
    assert json.loads((tmp_path / 'found.json').read_text()) == []
    assert 'a.png: nothing found -> output.png' in capsys.readouterr().out
    assert cv2.imread('output.png').shape == (60, 80, 3)


def test_several_images_and_folders(calls, tmp_path, capsys):
    write_image(tmp_path / 'in' / 'b.png')
    write_image(tmp_path / 'in' / 'a.jpg')
    single = write_image(tmp_path / 'other' / 'b.jpg')
    assert call('--image', 'in', '--image', single, '--output', 'result.jpg') == 0
    assert {'result_a.jpg', 'result_b.jpg', 'result_b_2.jpg'} <= set(os.listdir(tmp_path))
    assert 'output.png' not in os.listdir(tmp_path)
    captured = capsys.readouterr()
    assert '3/3' in captured.err and captured.out.count('->') == 3


def test_a_folder_for_the_pictures(calls, tmp_path):
    image = write_image(tmp_path / 'a.jpg')
    assert call('--image', image, '--output', 'new/') == 0
    assert os.listdir(tmp_path / 'new') == ['a.png']
    (tmp_path / 'old').mkdir()
    assert call('--image', image, image, '--output', 'old') == 0
    assert sorted(os.listdir(tmp_path / 'old')) == ['a.png', 'a_2.png']


def test_pictures_have_the_same_names_where_case_does_not_count(calls, tmp_path):
    """The file systems of Windows and macOS."""
    images = [write_image(tmp_path / name) for name in ('1/a.jpg', '2/A.jpg', '3/b.jpg')]
    assert call('--image', *images, '--output', 'out/') == 0
    assert sorted(os.listdir(tmp_path / 'out')) == ['A_2.png', 'a.png', 'b.png']


def test_a_broken_image_is_reported_and_the_others_are_processed(calls, tmp_path, capsys):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'broken.jpg').write_bytes(b'no image')
    write_image(tmp_path / 'in' / 'black.png', value=0)
    write_image(tmp_path / 'in' / 'good.png')
    assert call('--image', 'missing.jpg', 'in', '--json', 'found.json') == 1
    errors = capsys.readouterr().err
    assert 'error: missing.jpg: no such file or folder\n' in errors
    assert 'error: in/broken.jpg: not an image of a known format\n' in errors
    assert 'error: in/black.png: a black image\n' in errors
    assert 'Traceback' not in errors
    assert {r['image_id'] for r in json.loads((tmp_path / 'found.json').read_text())} == {'good'}
    assert (tmp_path / 'output_good.png').exists() and not (tmp_path / 'output_broken.png').exists()


def test_failures_among_images_that_are_detected_together(calls, tmp_path, capsys):
    """Each failure is reported in order, and the other images get their own pictures."""
    kinds = ['good', 'broken', 'good', 'good', 'black', 'broken', 'good', 'good', 'good', 'broken', 'broken']
    for i, kind in enumerate(kinds):
        path = tmp_path / 'in' / f'{i:02}_{kind}.png'
        write_image(path, value=100 + i if kind == 'good' else 0)
        if kind == 'broken':
            path.write_bytes(b'no image')
    assert call('--image', 'in', '--json', 'found.json', '--backdrop', 'image') == 1
    captured = capsys.readouterr()
    good = [f'{i:02}_good' for i, kind in enumerate(kinds) if kind == 'good']
    assert [line.split(':')[0] for line in captured.out.splitlines()] == [f'in/{name}.png' for name in good]
    failed = [line.split(': ')[1] for line in captured.err.splitlines() if line.startswith('error: ')]
    assert failed == [f'in/{i:02}_{kind}.png' for i, kind in enumerate(kinds) if kind != 'good']
    assert '11/11' in captured.err
    assert [r['image_id'] for r in json.loads((tmp_path / 'found.json').read_text())] == [
        name for name in good for _ in range(2)
    ]
    for name in good:  # the pixels of the same image
        assert abs(int(cv2.imread(f'output_{name}.png')[-1, 0, 0]) - 100 - int(name[:2])) <= 1


def test_few_images_are_in_memory(calls, tmp_path, monkeypatch):
    """Images are read a little ahead of the model, and freed when their pictures are written."""

    class Pixels(np.ndarray):
        pass

    references, counts, read_image = [], [], sources.read_image

    def read(path, **options):
        pixels = read_image(path, **options).view(Pixels)
        references.append(weakref.ref(pixels))
        counts.append(sum(reference() is not None for reference in references))
        return pixels

    def read_one_ahead(self, images):
        last = None
        for image in images:
            if last is not None:
                yield last
            last = self._detect_one(image)
            del image
        yield last

    monkeypatch.setattr(sources, 'read_image', read)
    monkeypatch.setattr(FakeModel, 'iter_detections', read_one_ahead)
    monkeypatch.setattr(Detections, 'draw', lambda self, image, **options: np.zeros((60, 80, 3), np.uint8))
    for i in range(60):
        write_image(tmp_path / 'in' / f'{i}.png')
    assert call('--image', 'in') == 0
    assert len(counts) == 60 and max(counts) <= 2 * MAX_ITEMS + 8  # two queues, the model and the threads


def test_no_image_at_all(calls, tmp_path, capsys):
    assert call('--image', 'missing.jpg') == 1
    assert not calls and capsys.readouterr().err == 'error: missing.jpg: no such file or folder\n'


def refused(*arguments, capsys):
    """Run with bad arguments and return the error line."""
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    return error


def test_impossible_outputs_are_refused_before_the_model_is_loaded(calls, tmp_path, capsys):
    image = write_image(tmp_path / 'a.png')
    twin = write_image(tmp_path / 'other' / 'a.jpg')
    assert 'is one of the images' in refused('--image', image, '--output', 'a.png', capsys=capsys)
    assert '.xyz' in refused('--image', image, '--output', 'picture.xyz', capsys=capsys)
    assert 'without a suffix' in refused('--image', image, '--output', 'picture', capsys=capsys)
    assert 'existing folder' in refused('--image', image, '--json', 'no/where.json', capsys=capsys)
    assert 'existing folder' in refused('--image', image, '--json', 'other', capsys=capsys)
    assert 'is an image' in refused('--image', image, '--json', 'output.png', capsys=capsys)
    assert "2 images have the image_id 'a'" in refused('--image', image, twin, '--json', 'found.json', capsys=capsys)
    assert 'be read as a font' in refused('--image', image, '--font', 'model.npz', capsys=capsys)
    assert not calls and not (tmp_path / 'output.png').exists()


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['--image'],
        ['--image', 'a', '--roi_size', '8'],
        ['--image', 'a', '--extractor', 'vgg'],
        ['--image', 'a', '--backdrop', 'pink'],
        ['--image', 'a', '--labels', 'few'],
        ['--image', 'a', '--score-thresh', '7'],
        ['--image', 'a', '--score-thresh', 'nan'],
        ['--image', 'a', '--score-thresh', 'x'],
        ['--image', 'a', '--gpu', '-2'],
        ['--image', 'a', '--gpu', 'x'],
        ['--image', 'a', '--nonsense'],
    ],
)
def test_bad_arguments_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(arguments)
    assert stop.value.code == 2
    assert 'usage: ' in capsys.readouterr().err


def test_missing_weights_have_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = write_image(tmp_path / 'a.png')
    assert demo.main(['--image', image]) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: modelfiles/e2e_mask_rcnn_R-50-C4_1x_d2c.npz: no such file')
    assert '"make demo-coco"' in error and 'without a checkout, save https://' in error
    assert 'mask-rcnn convert modelfiles/model_final.pkl writes e2e_mask_rcnn_R-50-C4_1x_d2c.npz' in error
    assert '--modelfile' in error and error.count('\n') == 1


@pytest.mark.parametrize(
    ('error', 'line', 'status'),
    [
        (WeightFileError('model.npz', 'is not a weight file'), 'model.npz: is not a weight file', 1),
        (PermissionError(13, 'Permission denied', 'model.npz'), 'model.npz: Permission denied', 1),
        (ValueError("model.npz: its extractor is 'resnet50'"), "model.npz: its extractor is 'resnet50'", 2),
    ],
)
def test_weights_that_cannot_be_used(calls, tmp_path, monkeypatch, capsys, error, line, status):
    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr(network_options, 'load', load)
    assert call('--image', write_image(tmp_path / 'a.png')) == status
    assert capsys.readouterr().err == f'error: {line}\n'


def test_an_interrupt_leaves_no_partial_file(calls, tmp_path, monkeypatch, capsys):
    write_image(tmp_path / 'in' / 'a.png')
    write_image(tmp_path / 'in' / 'b.png')

    def interrupted(self, images, *, batch_size=None):
        for image in images:
            if self.seen:
                raise KeyboardInterrupt
            self.seen.append(image)
            yield self._detect_one(image)

    monkeypatch.setattr(FakeModel, 'iter_detections', interrupted)
    assert call('--image', 'in', '--json', 'found.json') == 130
    assert sorted(os.listdir(tmp_path)) == ['found.json', 'in', 'model.npz', 'output_a.png']
    assert {result['image_id'] for result in json.loads((tmp_path / 'found.json').read_text())} == {'a'}
    note = 'found.json contains the results of 1 of 2 images\nerror: interrupted\n'
    assert capsys.readouterr().err.endswith(note)


def test_a_picture_that_cannot_be_written(calls, tmp_path, capsys):
    image = write_image(tmp_path / 'a.png')
    (tmp_path / 'output.png').mkdir()
    (tmp_path / 'output.png' / 'a.png').mkdir()
    assert call('--image', image) == 1
    assert 'output.png/a.png' in capsys.readouterr().err


@pytest.mark.parametrize('dialect', ['detectron', 'dena'])
def test_results_of_an_image_whose_picture_cannot_be_written_are_kept(calls, tmp_path, capsys, monkeypatch, dialect):
    """One pass over the images, or one for the pictures and one for the results."""
    write_image(tmp_path / 'in' / 'a.png')
    write_image(tmp_path / 'in' / 'b.png')
    (tmp_path / 'out').mkdir()
    load = network_options.load

    def load_and_make_folder(*args, **options):
        (tmp_path / 'out' / 'a.png').mkdir()  # after the outputs were checked
        return load(*args, **options)

    monkeypatch.setattr(network_options, 'load', load_and_make_folder)
    assert call('--image', 'in', '--output', 'out', '--json', 'found.json', '--dialect', dialect) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
    assert len(errors) == 1 and errors[0].endswith('out/a.png: is a folder, not a file')
    assert {result['image_id'] for result in json.loads((tmp_path / 'found.json').read_text())} == {'a', 'b'}


@pytest.mark.parametrize('name', ['-', '/dev/stdout'])
def test_results_on_the_standard_output_are_alone_there(calls, tmp_path, capfd, name):
    image = write_image(tmp_path / 'a.png')
    assert call('--image', image, '--json', name) == 0
    out, err = capfd.readouterr()
    assert [result['image_id'] for result in json.loads(out)] == ['a', 'a']
    assert 'a.png: 1 person -> output.png' in err and os.path.lexists('/dev/stdout')
    assert call('--image', image, '--json', './-') == 0
    assert (tmp_path / '-').is_file() and '->' in capfd.readouterr().out


def test_outputs_that_would_replace_an_input_are_refused(calls, tmp_path, capsys):
    image = write_image(tmp_path / 'a.png')
    (tmp_path / 'link.json').symlink_to('model.npz')
    (tmp_path / 'hard.json').hardlink_to('model.npz')
    (tmp_path / 'hard.png').hardlink_to(image)
    for name in ('model.npz', 'link.json', 'hard.json', './x/../model.npz'):
        (tmp_path / 'x').mkdir(exist_ok=True)
        assert 'is the file of --modelfile' in refused('--image', image, '--json', name, capsys=capsys)
    assert 'is one of the images' in refused('--image', image, '--output', 'hard.png', capsys=capsys)
    assert 'that is an image' in refused('--image', image, '--json', 'hard.png', capsys=capsys)
    assert not calls and (tmp_path / 'model.npz').read_bytes() == b'weights'


def test_places_that_cannot_be_written_are_known_before_the_model_is_loaded(calls, tmp_path, capsys):
    image = write_image(tmp_path / 'a.png')
    for words in (['--json', '/proc/found.json'], ['--output', '/proc/'], ['--output', f'{image}/x.png']):
        assert call('--image', image, *words) == 1
        line = capsys.readouterr().err
        assert 'cannot be written: ' in line and line.count('\n') == 1
    assert not calls


def test_links_that_cannot_be_written_are_known_before_the_model_is_loaded(calls, tmp_path, capsys):
    image = write_image(tmp_path / 'a.png')
    (tmp_path / 'loop.png').symlink_to('loop.png')
    (tmp_path / 'gone.png').symlink_to('gone/x.png')
    for flag in ('--output', '--json'):
        for name, reason in (
            ('loop.png', 'is a symbolic link that leads to itself'),
            ('gone.png', 'cannot be written: No such file or directory'),
        ):
            assert call('--image', image, flag, name) == 1
            assert capsys.readouterr().err == f'error: {name}: {reason}\n'
    assert not calls


def test_a_name_that_is_not_utf8_is_written_everywhere(calls, tmp_path, capsys):
    name = os.fsdecode(b'caf\xe9\n') + '魚'
    write_image(tmp_path / 'a.png')
    (tmp_path / 'a.png').rename(tmp_path / f'{name}.png')
    assert call('--image', f'{name}.png', '--output', 'out/', '--json', 'found.json') == 0
    assert capsys.readouterr().out == 'caf\\udce9\\n魚.png: 1 person -> out/caf\\udce9\\n魚.png\n'
    assert json.loads((tmp_path / 'found.json').read_text())[0]['image_id'] == name
    assert os.listdir(tmp_path / 'out') == [f'{name}.png']


def test_device_selection(monkeypatch, tmp_path, calls, capsys):
    image = write_image(tmp_path / 'a.png')
    arguments = ['--image', image, '--modelfile', 'model.npz']
    monkeypatch.setattr(options, 'gpu_error', lambda gpu: None if gpu < 2 else 'there are only 2 CUDA devices')
    assert demo.main(arguments) == 0
    assert demo.main([*arguments, '--gpu', '1']) == 0
    assert demo.main([*arguments, '--gpu', '-1']) == 0
    assert [c['gpu'] for c in calls] == [0, 1, -1] and capsys.readouterr().err == ''
    assert demo.main([*arguments, '--gpu', '2']) == 2
    assert capsys.readouterr().err == 'error: --gpu 2: there are only 2 CUDA devices\n'
    monkeypatch.setattr(options, 'gpu_error', lambda gpu: 'CuPy is not installed')
    assert demo.main(arguments) == 0
    assert calls[-1]['gpu'] == -1
    assert capsys.readouterr().err == 'running on the CPU: CuPy is not installed\n'
    assert demo.main([*arguments, '--gpu', '0']) == 2
    assert len(calls) == 4


def test_a_gpu_that_does_not_exist_is_an_error():
    assert options.gpu_error(99)


def test_a_cupy_that_chainer_cannot_use_is_an_error(monkeypatch):
    """CuPy runs kernels without cuBLAS; Chainer needs it, and states that CUDA is not available."""

    class Device:
        def __init__(self, gpu):
            self.id = gpu

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime, Device=Device), arange=np.arange)
    monkeypatch.setitem(sys.modules, 'cupy', cupy)
    monkeypatch.setattr(chainer.backends.cuda, 'available', False)
    monkeypatch.setattr(chainer.backends.cuda, '_resolution_error', ImportError('no\nlibcublas'), raising=False)
    assert options.gpu_error(0) == 'CuPy lacks a library (no libcublas); "mask-rcnn doctor" states what is missing'
    assert options.gpu_error(1) == 'there is only 1 CUDA device'
    monkeypatch.setattr(chainer.backends.cuda, 'available', True)
    assert options.gpu_error(0) is None
    cupy.arange = lambda n: fail(MemoryError('Out of memory allocating 512 bytes'))
    reason = options.gpu_error(0)
    assert reason.startswith('its memory is full (Out of memory allocating 512 bytes); nvidia-smi lists the programs')


def fail(error):
    raise error


class FullModel(FakeModel):
    """A model whose memory is full as long as the arrays of a failed batch or of a failed image exist."""

    def __init__(self):
        super().__init__(0.05)
        self.arrays = []

    def iter_detections(self, images, *, batch_size=None):
        features = np.zeros(3)
        self.arrays.append(weakref.ref(features))
        n_images = sum(1 for _ in images)
        if n_images:
            raise MemoryError(f'{n_images} images do not fit')
        yield from ()

    def detect(self, images, *, batch_size=None):
        assert all(array() is None for array in self.arrays)
        features = np.zeros(3)
        if images[0].max() == 0:
            self.arrays.append(weakref.ref(features))
            raise MemoryError('too large')
        return [self._detect_one(image) for image in images]


def test_images_of_a_failed_batch_have_its_memory():
    frames = [sources.Frame(None, np.full((3, 60, 80), value, np.float32)) for value in (0, 90, 0, 90)]
    jobs = [*detect_frames(FullModel(), frames)]  # as long as jobs wait to be written
    assert [str(job.error) for job in jobs] == ['too large', 'None', 'too large', 'None']
    assert [len(jobs[i].detections) for i in (1, 3)] == [2, 2]


def test_the_console_command(calls, tmp_path, capsys):
    image = write_image(tmp_path / 'a.png')
    assert console(['demo', '--image', image, '--modelfile', 'model.npz', '--gpu', '-1']) == 0
    capsys.readouterr()
    for arguments, words in (
        (['--help'], ['demo', 'convert']),
        (['--version'], [mask_rcnn.__version__]),
        (['demo', '--help'], ['--contour', 'mask-rcnn demo']),
    ):
        with pytest.raises(SystemExit) as stop:
            console(arguments)
        out = capsys.readouterr().out
        assert stop.value.code == 0 and all(word in out for word in words)
    for arguments in ([], ['nonsense'], ['demo']):
        with pytest.raises(SystemExit) as stop:
            console(arguments)
        assert stop.value.code == 2


def test_demo_py_works_in_any_folder(root, tmp_path):
    image = write_image(tmp_path / 'a.png')
    command = [sys.executable, str(root / 'demo.py'), '--image', image, '--modelfile', 'none.npz']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith('error: none.npz: no such file'), done.stderr
