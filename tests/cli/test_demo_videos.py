"""``mask-rcnn demo`` with videos: frames, rate, order, selection, sinks, interrupts and the window."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask_rcnn.cli import network_options
from mask_rcnn.inference.detections import Detections
from mask_rcnn.visualization.colors import track_colors
from tests.cli.test_demo import FakeModel, call, refused
from tests.support.videos import (
    SIZE,
    needs_ffmpeg,
    numbered_frame,
    read_number,
    read_video,
    square_left,
    truncate,
    write_video,
)
from tests.support.windows import fake_window  # noqa: F401  # a fixture


class VideoModel(FakeModel):
    """A model that detects the red square of each frame; it records the numbers of the frames."""

    fail_at = interrupt_at = None

    def iter_detections(self, images, *, batch_size=None):
        for image in images:
            number = read_number(image)
            if number == self.interrupt_at:
                raise KeyboardInterrupt
            if number == self.fail_at:
                raise ValueError('a bad frame')
            self.seen.append(number)
            yield self._find(image)

    def _find(self, image):
        rows, columns = np.nonzero(image[:60, :, 0] > 150)
        box = [rows.min(), columns.min(), rows.max(), columns.max()] if len(rows) else [0, 0, 1, 1]
        masks = np.zeros((1, *image.shape[:2]), bool)
        masks[0, box[0] : box[2] + 1, box[1] : box[3] + 1] = True
        return Detections(
            boxes=np.array([box], np.float32),
            labels=np.array([0]),
            scores=np.array([0.9], np.float32),
            size=image.shape[:2],
            masks=masks,
            class_names=('person', 'dog', 'car'),
            category_ids=(1, 18, 3),
            dialect=self.config.dialect,
        )

    def detect(self, images, *, batch_size=None):
        if read_number(images[0]) == self.fail_at:
            raise ValueError('a bad frame')
        return [self._find(image) for image in images]


@pytest.fixture
def models(monkeypatch, tmp_path):
    """The models that the commands have loaded."""
    models = []

    def load(path, *, gpu=-1, bn2affine=False, dialect=None, **changes):
        models.append(VideoModel(changes.get('score_threshold', 0.05), dialect or 'detectron'))
        return models[-1]

    monkeypatch.setattr(network_options, 'load', load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'model.npz').write_bytes(b'weights')
    return models


def call_plain(*arguments):
    """Run the command without texts, which would hide the numbers of the frames."""
    return call(*arguments, '--labels', 'none')


PROGRAMS = [pytest.param('ffmpeg', marks=needs_ffmpeg), 'opencv']


@pytest.mark.parametrize('program', PROGRAMS)
def test_300_frames_in_and_out(models, tmp_path, capsys, monkeypatch, program):
    """The frames, their rate, order and size are equal, and the object keeps its colour."""
    if program == 'opencv':
        monkeypatch.setenv('PATH', '')
    clip = write_video(tmp_path / 'clip.mp4', 300, rate=25.0)
    assert call_plain('--image', clip, '--output', 'out.mp4', '--track') == 0
    assert models[0].seen == list(range(300))
    capture, lines = cv2.VideoCapture('out.mp4'), capsys.readouterr()
    assert capture.get(cv2.CAP_PROP_FPS) == 25 and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 300
    color, numbers = 0.55 * np.array([200, 30, 30]) + 0.45 * track_colors([1])[0], []
    while (frame := capture.read())[0]:
        left = square_left(len(numbers))
        inside = frame[1][15:20, left + 6 : left + 18, ::-1].mean(axis=(0, 1))  # above the trace
        np.testing.assert_allclose(inside, color, atol=20)
        numbers.append(read_number(frame[1][:, :, ::-1]))
    assert numbers == list(range(300))
    assert lines.out == f'{clip}: 300 frames, 300 person -> out.mp4\n' and '300/300' in lines.err
    notes = [line for line in lines.err.splitlines() if 'ffmpeg' in line]
    assert len(notes) == (program == 'opencv')


def test_the_order_of_the_frames(models, tmp_path):
    clip = write_video(tmp_path / 'clip.mp4', 60)
    assert call_plain('--image', clip) == 0
    assert read_video('output.mp4') == (list(range(60)), 30.0, SIZE)


@pytest.mark.parametrize(
    ('words', 'expected', 'rate'),
    [
        (['--every', '10'], [0, 10, 20, 30, 40, 50], 3),
        (['--start', '1', '--end', '0:01.2'], [30, 31, 32, 33, 34, 35], 30),
        (['--max-fps', '6'], [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55], 6),
    ],
)
def test_selected_frames(models, tmp_path, capsys, words, expected, rate):
    clip = write_video(tmp_path / 'clip.mp4', 60)
    assert call_plain('--image', clip, *words) == 0
    assert read_video('output.mp4') == (expected, rate, SIZE)
    assert f'{len(expected)}/{len(expected)}' in capsys.readouterr().err


@pytest.mark.parametrize(('output', 'name'), [('frames/', 'frames/clip_{}.png'), ('frames.jpg', 'frames_{}.jpg')])
def test_frames_as_pictures(models, tmp_path, capsys, output, name):
    clip = write_video(tmp_path / 'clip.mp4', 4)
    assert call_plain('--image', clip, '--output', output) == 0
    for number in range(4):
        assert read_number(cv2.imread(name.format(f'{number + 1:06d}'))[:, :, ::-1]) == number
    assert capsys.readouterr().out == f'{clip}: 4 frames, 4 person -> {name.format("NNNNNN")}\n'


def test_several_videos(models, tmp_path, capsys):
    names = [write_video(tmp_path / f'{name}.mp4', n) for name, n in (('a', 3), ('b', 4))]
    assert call_plain('--image', *names, '--output', 'out.avi', '--track') == 0
    assert [read_video(f'out_{name}.avi')[0] for name in 'ab'] == [[0, 1, 2], [0, 1, 2, 3]]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ['3', '4']


def test_results_of_frames(models, tmp_path):
    clip = write_video(tmp_path / 'clip.mp4', 3)
    files = ['--json', 'a.json', '--jsonl', 'a.jsonl', '--csv', 'a.csv', '--annotations', 'dataset.json']
    assert call('--image', clip, '--track', *files, '--masks', 'masks', '--instance-masks', 'objects') == 0
    results = json.loads(Path('a.json').read_text())
    assert [result['image_id'] for result in results] == ['clip_000001', 'clip_000002', 'clip_000003']
    lines = [json.loads(line) for line in Path('a.jsonl').read_text().splitlines()]
    assert [(line['video'], line['frame'], line['time']) for line in lines] == [
        (clip, 1, 0.0),
        (clip, 2, pytest.approx(1 / 30, abs=1e-3)),
        (clip, 3, pytest.approx(2 / 30, abs=1e-3)),
    ]
    assert [line['detections'][0]['track'] for line in lines] == [1, 1, 1]
    assert len(Path('a.csv').read_text().splitlines()) == 4
    images = json.loads(Path('dataset.json').read_text())['images']
    assert [image['file_name'] for image in images] == [f'clip_00000{i}.png' for i in (1, 2, 3)]
    assert sorted(os.listdir('masks')) == [f'clip_00000{i}.png' for i in (1, 2, 3)]
    assert sorted(os.listdir('objects')) == [f'clip_00000{i}_001_person.png' for i in (1, 2, 3)]


def test_a_truncated_video_gives_its_frames_and_one_line(models, tmp_path, capfd):
    clip = Path(write_video(tmp_path / 'clip.avi', 90, codec='MJPG'))
    truncate(clip)
    assert call_plain('--image', clip, '--output', 'out.mp4', '--json', 'a.json') == 1
    numbers, _, _ = read_video('out.mp4')
    assert 40 < len(numbers) < 70 and numbers[:-1] == list(range(len(numbers) - 1))
    lines = [line.split('\r')[-1].strip() for line in capfd.readouterr().err.splitlines() if 'clip.avi' in line]
    assert lines == [f'error: {clip}: the video ends after {len(numbers)} of 90 frames; it is truncated or damaged']
    assert len(json.loads(Path('a.json').read_text())) == len(numbers)


def test_a_file_that_is_not_a_video(models, tmp_path, capfd):
    (tmp_path / 'a.mp4').write_bytes(b'no video')
    clip = write_video(tmp_path / 'clip.mp4', 3)
    assert call_plain('--image', 'a.mp4', clip, '--output', 'out.mp4') == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if 'error' in line]
    assert errors == [
        'error: a.mp4: OpenCV finds no video in it (damaged, truncated before its index, or of an unknown format)'
    ]
    assert len(read_video('out_clip.mp4')[0]) == 3


def test_a_frame_that_fails_stays_in_the_video(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(VideoModel, 'fail_at', 4)
    clip = write_video(tmp_path / 'clip.mp4', 8)
    assert call_plain('--image', clip) == 1
    assert read_video('output.mp4')[0] == list(range(8))
    captured = capsys.readouterr()
    assert f'error: {clip}, frame 5: a bad frame\n' in captured.err
    assert '8 frames (1 without detections after an error), 7 person' in captured.out


@pytest.mark.parametrize('program', PROGRAMS)
def test_an_interrupt_leaves_a_video(models, tmp_path, capsys, monkeypatch, program):
    if program == 'opencv':
        monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(VideoModel, 'interrupt_at', 40)
    clip = write_video(tmp_path / 'clip.mp4', 90)
    assert call_plain('--image', clip, '--json', 'a.json') == 130
    assert read_video('output.mp4')[0] == list(range(40))
    assert len(json.loads(Path('a.json').read_text())) == 40
    captured = capsys.readouterr()
    assert captured.err.endswith('error: interrupted\n') and 'clip.mp4: 40 frames' in captured.out
    assert sorted(os.listdir()) == ['a.json', 'clip.mp4', 'model.npz', 'output.mp4']


SCRIPT = """
import sys, time
from mask_rcnn.cli import demo, network_options
from tests.cli.test_demo_videos import VideoModel

class SlowModel(VideoModel):
    def iter_detections(self, images, *, batch_size=None):
        for found in super().iter_detections(images):
            if self.seen[-1] == 20:
                print('ready', flush=True)
            time.sleep(0.02)
            yield found

network_options.load = lambda path, **options: SlowModel(0.05)
sys.exit(demo.main(sys.argv[1:]))
"""


@pytest.mark.slow
@needs_ffmpeg
def test_ctrl_c_of_a_terminal_leaves_a_video(root, tmp_path):
    """A terminal sends the signal to the whole group of processes, to which ffmpeg must not belong."""
    clip = write_video(tmp_path / 'clip.mp4', 900)
    (tmp_path / 'model.npz').write_bytes(b'weights')
    words = ['--image', clip, '--modelfile', 'model.npz', '--gpu', '-1', '--labels', 'none']
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, *words],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == 'ready\n'
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith('error: interrupted\n') and '-> output.mp4' in out
    numbers = read_video(tmp_path / 'output.mp4')[0]
    assert 15 < len(numbers) < 100 and numbers == list(range(len(numbers)))
    assert sorted(os.listdir(tmp_path)) == ['clip.mp4', 'model.npz', 'output.mp4']


def test_a_full_disk_stops_the_command_with_one_line(models, tmp_path, capsys, monkeypatch):
    from mask_rcnn.media import video_writer

    def fail(self, frame):
        raise OSError(28, 'No space left on device')

    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(video_writer._OpenCVEncoder, 'write', fail)
    clip = write_video(tmp_path / 'clip.mp4', 300)
    assert call_plain('--image', clip) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert errors == ['error: output.mp4: cannot be written: No space left on device']
    assert sorted(os.listdir()) == ['clip.mp4', 'model.npz'] and len(models[0].seen) < 40


def test_two_passes_over_a_video(models, tmp_path, capsys):
    clip = write_video(tmp_path / 'clip.mp4', 5)
    assert call_plain('--image', clip, '--dialect', 'dena', '--json', 'a.json') == 0
    assert models[0].seen == [0, 1, 2, 3, 4] * 2
    assert read_video('output.mp4')[0] == [0, 1, 2, 3, 4] and len(json.loads(Path('a.json').read_text())) == 5
    assert '5/5' in capsys.readouterr().err


class FakeCamera:
    """A camera of OpenCV with ten frames per second, of which the model can process one of three."""

    def __init__(self, *arguments):
        self.number = -1
        self.begin = time.monotonic()

    def isOpened(self):
        return True

    def get(self, name):
        return {cv2.CAP_PROP_FPS: 50.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}.get(name, 0.0)

    def grab(self):
        self.number += 1
        time.sleep(0.02)
        return self.number < 40

    def retrieve(self):
        return True, np.ascontiguousarray(numbered_frame(self.number)[:, :, ::-1])

    def release(self):
        """Do nothing."""


def connect_camera(monkeypatch):
    """Replace the cameras of the source; the writer without ffmpeg opens files with the same class of OpenCV."""
    view = types.SimpleNamespace(**{**vars(cv2), 'VideoCapture': FakeCamera})
    monkeypatch.setattr('mask_rcnn.media.video_source.cv2', view)


def test_a_camera_is_recorded_at_its_speed(models, tmp_path, capsys, monkeypatch):
    """Frames are skipped so as to stay live, and the video repeats those that it has."""
    connect_camera(monkeypatch)
    find = VideoModel._find
    monkeypatch.setattr(VideoModel, '_find', lambda self, image: (time.sleep(0.08), find(self, image))[1])
    assert call_plain('--camera', '0', '--output', 'out.avi') == 0
    monkeypatch.undo()
    seen = models[0].seen
    assert 3 <= len(seen) < 25 and seen == sorted(set(seen)) and seen[-1] >= 25
    numbers, rate, _ = read_video(tmp_path / 'out.avi')
    assert rate == 50 and list(dict.fromkeys(numbers)) == seen
    assert 25 <= len(numbers) <= 80  # 0.8 s, on a slow machine longer
    assert f'camera 0: {len(seen)} frames' in capsys.readouterr().out


def test_a_live_source_has_one_pass(models, capsys, monkeypatch):
    connect_camera(monkeypatch)
    assert 'can be read only once' in refused('--camera', '0', '--dialect', 'dena', '--json', 'a.json', capsys=capsys)


def test_a_window_shows_the_frames_without_a_file(models, tmp_path, capsys, fake_window):  # noqa: F811
    clip = write_video(tmp_path / 'clip.mp4', 20)
    assert call_plain('--image', clip, '--show') == 0
    assert sorted(os.listdir()) == ['clip.mp4', 'model.npz'] and fake_window.is_destroyed
    numbers = [read_number(picture[:, :, ::-1]) for picture in fake_window.shown]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 19
    assert capsys.readouterr().out == f'{clip}: 20 frames, 20 person\n'


def test_a_key_closes_the_window_and_completes_the_video(models, tmp_path, fake_window):  # noqa: F811
    clip = write_video(tmp_path / 'clip.mp4', 90)
    fake_window.keys = [-1] * 9 + [ord('q')]
    assert call_plain('--image', clip, '--show', '--output', 'out.mp4') == 0
    assert read_video('out.mp4')[0] == list(range(10))


def test_the_window_of_an_image_waits_for_a_key(models, tmp_path, fake_window):  # noqa: F811
    cv2.imwrite('a.png', numbered_frame(7)[:, :, ::-1])
    fake_window.keys = [-1, -1, -1, 27]
    model_input = lambda image: image.transpose(1, 2, 0).astype(np.uint8)  # noqa: E731
    find = VideoModel._find
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('tests.cli.test_demo_videos.read_number', lambda image: 0)
        patch.setattr(VideoModel, '_find', lambda self, image: find(self, model_input(image)))
        assert call_plain('--image', 'a.png', '--show') == 0
    assert len(fake_window.shown) == 1 and fake_window.keys == []


def test_no_window_is_a_bad_argument(models, tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise cv2.error('not implemented')

    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(cv2, 'namedWindow', fail)
    clip = write_video(tmp_path / 'clip.mp4', 3)
    assert 'pip install opencv-python' in refused('--image', clip, '--show', capsys=capsys)
    assert not models


@pytest.mark.slow
def test_memory_stays_flat_over_3000_frames(models, tmp_path, monkeypatch):
    """With all results except the COCO dataset, which lists its images."""
    sizes = {}
    find = VideoModel._find

    def measure(self, image):
        if len(self.seen) in (500, 3000):
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            sizes[len(self.seen)] = pages * os.sysconf('SC_PAGE_SIZE') / 2**20
        return find(self, image)

    monkeypatch.setattr(VideoModel, '_find', measure)
    clip = write_video(tmp_path / 'clip.mp4', 3000, size=(240, 320))
    files = ['--json', 'a.json', '--jsonl', 'a.jsonl', '--csv', 'a.csv']
    assert call_plain('--image', clip, '--track', *files) == 0
    assert sizes[3000] - sizes[500] < 15, sizes
