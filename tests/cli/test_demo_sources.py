"""The sources of ``mask-rcnn demo``: folders, patterns, lists, the standard input, videos and cameras."""

import io
import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mask_rcnn.cli import demo
from tests.cli.test_demo import call, calls, refused, write_image  # noqa: F401  # calls is a fixture
from tests.support.contracts import parser_of
from tests.support.videos import write_video


def found(capsys):
    """Return the images of which a command has written a line."""
    return [line.split(': ')[0] for line in capsys.readouterr().out.splitlines()]


def test_subfolders_on_request(calls, tmp_path, capsys):  # noqa: F811
    for name in ('b.png', 'x/c.png', 'x/y/d.png', 'a/e.png', '.hidden/f.png'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / 'in' / name)
    (tmp_path / 'in' / 'x' / 'loop').symlink_to('..')
    (tmp_path / 'in' / 'x' / 'g.heic').write_bytes(b'x')
    assert call('--image', 'in', '--recursive', '--output', 'out/') == 0
    captured = capsys.readouterr()
    names = [line.split(': ')[0] for line in captured.out.splitlines()]
    assert names == ['in/b.png', 'in/a/e.png', 'in/x/c.png', 'in/x/y/d.png']
    assert captured.err.startswith('warning: in: left out 1 file: 1 in an unsupported format (x/g.heic)\n')
    assert call('--image', 'in', '--output', 'out/') == 0
    assert found(capsys) == ['in/b.png']


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        ('in/*.png', ['in/a.png', 'in/b.png']),
        ('in/**/*.png', ['in/a.png', 'in/b.png', 'in/x/c.png']),
        ('in/[bc].*', ['in/b.png']),
        ('in/?.png', ['in/a.png', 'in/b.png']),
    ],
)
def test_patterns(calls, tmp_path, capsys, pattern, expected):  # noqa: F811
    (tmp_path / 'in' / 'x').mkdir(parents=True)
    for name in ('b.png', 'a.png', 'x/c.png'):
        write_image(tmp_path / 'in' / name)
    assert call('--image', pattern, '--output', 'out/') == 0
    assert found(capsys) == expected
    assert sorted(os.listdir('out')) == sorted(Path(name).name for name in expected)


def test_a_pattern_names_pictures_after_the_images(calls, tmp_path):  # noqa: F811
    """Also if only one image matches, so that the names do not depend on the number of images."""
    write_image(tmp_path / 'in' / 'a.png')
    assert call('--image', 'in/*') == 0 and (tmp_path / 'output_a.png').exists()


def test_a_file_whose_name_is_a_pattern(calls, tmp_path, capsys):  # noqa: F811
    write_image(tmp_path / 'a[1].png')
    write_image(tmp_path / 'a1.png')
    assert call('--image', 'a[1].png') == 0
    assert found(capsys) == ['a[1].png']


def test_a_pattern_without_a_file(calls, tmp_path, capsys):  # noqa: F811
    image = write_image(tmp_path / 'a.png')
    assert call('--image', 'in/*.png', image) == 1
    assert 'error: in/*.png: no file matches this pattern\n' in capsys.readouterr().err
    assert call('--image', 'in/*.png', image, '--strict') == 1
    assert capsys.readouterr().err == 'error: in/*.png: no file matches this pattern\n'


def test_a_list(calls, tmp_path, capsys):  # noqa: F811
    """Its paths are relative to its folder."""
    (tmp_path / 'in' / 'deep').mkdir(parents=True)
    for name in ('b.png', 'a.png', 'deep/c.png', 'deep/d.png', 'ü.png'):
        write_image(tmp_path / 'in' / name)
    absolute = write_image(tmp_path / 'e.png')
    lines = ['\ufeff# a comment', '*.gone', 'b.png', '', '  deep  ', 'gone.png', 'ü.png', '[a].png', absolute]
    (tmp_path / 'in' / 'list.txt').write_bytes('\r\n'.join(lines).encode())
    assert call('--image', '@in/list.txt', '--output', 'out/') == 1
    captured = capsys.readouterr()
    expected = ['in/b.png', 'in/deep/c.png', 'in/deep/d.png', 'in/ü.png', 'in/a.png', absolute]
    assert [line.split(': ')[0] for line in captured.out.splitlines()] == expected
    assert 'error: in/gone.png: no such file or folder\n' in captured.err
    assert 'error: in/*.gone: no file matches this pattern\n' in captured.err


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, 'the list cannot be read: no such file or directory'),
        (b'# only\n\n', 'the list names no image'),
        (
            'a.png\r\n'.encode('utf-16'),
            'is not a list (a text in UTF-8 with a file, folder, pattern or address in each line)',
        ),
    ],
)
def test_a_list_without_images(calls, tmp_path, capsys, content, reason):  # noqa: F811
    if content is not None:
        (tmp_path / 'list.txt').write_bytes(content)
    assert call('--image', '@list.txt') == 1
    assert capsys.readouterr().err == f'error: list.txt: {reason}\n'


def test_an_image_whose_name_begins_like_a_list(calls, tmp_path, capsys):  # noqa: F811
    write_image(tmp_path / '@a.png')
    assert call('--image', '@a.png') == 0
    assert found(capsys) == ['@a.png']


@pytest.fixture
def stdin(monkeypatch):
    """A function that gives bytes to the standard input."""
    return lambda data: monkeypatch.setattr('sys.stdin', SimpleNamespace(buffer=io.BytesIO(data)))


def test_an_image_on_the_standard_input(calls, tmp_path, capsys, stdin):  # noqa: F811
    pixels = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    stdin(cv2.imencode('.png', pixels)[1].tobytes())
    assert call('--image', '-', '--json', 'found.json') == 0
    np.testing.assert_array_equal(calls[0]['model'].seen[0].transpose(1, 2, 0), pixels[:, :, ::-1])
    assert capsys.readouterr().out == 'standard input: 1 person -> output.png\n'
    assert '"image_id": "stdin"' in (tmp_path / 'found.json').read_text()


def test_a_file_with_the_name_of_the_standard_input(calls, tmp_path, capsys):  # noqa: F811
    write_image(tmp_path / 'a.png')
    (tmp_path / 'a.png').rename(tmp_path / '-')
    assert call('--image', './-') == 0
    assert capsys.readouterr().out == '-: 1 person -> output.png\n'


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'is empty; an image was expected'),
        (b'no image', 'not an image of a known format'),
        (b'\x1aE\xdf\xa3', 'is a video; an image was expected (write the video to a file)'),
    ],
)
def test_a_standard_input_without_an_image(calls, capsys, stdin, data, reason):  # noqa: F811
    stdin(data)
    assert call('--image', '-') == 1
    assert f'error: standard input: {reason}\n' in capsys.readouterr().err


def test_the_standard_input_is_one_image(calls, tmp_path, capsys):  # noqa: F811
    assert 'is given twice' in refused('--image', '-', '-', capsys=capsys)


def test_a_camera_that_is_not_there(calls, capfd):  # noqa: F811
    assert call('--camera', '63') == 1 and not calls
    assert capfd.readouterr().err == 'error: camera 63: there is no such camera, or another program uses it\n'


def test_a_camera_takes_the_place_of_images(calls, tmp_path, capsys):  # noqa: F811
    image = write_image(tmp_path / 'a.png')
    assert 'cannot be used together' in refused('--image', image, '--camera', '0', capsys=capsys)
    with pytest.raises(SystemExit) as stop:
        demo.main(['--modelfile', 'model.npz'])
    assert stop.value.code == 2 and '--image' in capsys.readouterr().err


@pytest.mark.parametrize('words', [['--every', '2'], ['--start', '1'], ['--end', '0:01'], ['--max-fps', '5']])
def test_frames_are_selected_only_in_videos(calls, tmp_path, capsys, words):  # noqa: F811
    image = write_image(tmp_path / 'a.png')
    assert f'{words[0]} selects frames of videos' in refused('--image', image, *words, capsys=capsys)


@pytest.mark.parametrize(
    'words',
    [
        *(['--every', '0'], ['--start', 'x'], ['--end', '1:60'], ['--camera', '-1']),
        *(['--max-fps', '0'], ['--max-fps', '1e-4'], ['--max-fps', 'nan']),
    ],
)
def test_bad_values_of_the_selection(capsys, words):
    with pytest.raises(SystemExit) as stop:
        demo.main(['--image', 'a.mp4', *words])
    assert stop.value.code == 2 and f'argument {words[0]}: ' in capsys.readouterr().err


def test_a_span_that_ends_before_its_start(calls, tmp_path, capsys):  # noqa: F811
    assert '--end 1 s is not after' in refused('--image', 'a.mp4', '--start', '2', '--end', '1', capsys=capsys)


def test_a_video_and_images_together(calls, tmp_path, capsys):  # noqa: F811
    image = write_image(tmp_path / 'a.png')
    video = write_video(tmp_path / 'clip.mp4', 3)
    error = refused('--image', image, video, '--output', 'out.mp4', capsys=capsys)
    assert f'--output out.mp4: {image} is not a video' in error
    assert 'is one of the videos' in refused('--image', video, '--output', 'clip.mp4', capsys=capsys)
    error = refused('--image', image, video, '--annotations', 'labels/', capsys=capsys)
    assert 'clip.mp4 is a video; name a file' in error
    assert not calls


@pytest.mark.parametrize('words', [['--output', 'out/'], ['--show', '--masks', 'm'], ['--show', '--json', 'a.json']])
def test_an_image_with_the_name_of_a_frame(calls, tmp_path, capsys, words):  # noqa: F811
    """The picture of the frame would be replaced without a word; other numbers are free."""
    (tmp_path / 'in').mkdir()
    image = write_image(tmp_path / 'in' / 'clip_000001.png')
    video = write_video(tmp_path / 'clip.mp4', 3)
    error = refused('--image', image, video, *words, capsys=capsys)
    assert f'{words[-2]} {words[-1]}: {image} and a frame of {video} have the name clip_000001' in error
    assert not calls


def test_the_commands_of_the_page_are_accepted(root):
    """Each example of docs/video.md, with the files that exist in a checkout."""
    text = (root / 'docs' / 'video.md').read_text(encoding='utf-8')
    commands = [line for line in text.splitlines() if line.startswith('mask-rcnn demo ')]
    assert len(commands) >= 4
    for command in commands:
        args = parser_of('demo').parse_args(shlex.split(command.replace('$M', 'model.npz'), comments=True)[2:])
        assert (args.image is None) == (args.camera is not None)
