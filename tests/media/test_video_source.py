"""Reading of video files, cameras and addresses."""

import http.server
import socket
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask_rcnn.media.selection import FrameSelection
from mask_rcnn.media.video_source import VideoError, VideoSource, is_address, is_video_file, quiet_opencv
from tests.support.videos import SIZE, needs_ffmpeg, numbered_frame, read_number, truncate, write_video


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """A video of 90 frames at 30 per second."""
    return Path(write_video(tmp_path_factory.mktemp('video') / 'clip.avi', 90, codec='MJPG'))


def read(source):
    """Return the frames of a source, and the error at their end."""
    frames = list(source.read())
    error = frames.pop().error if frames and frames[-1].pixels is None else None
    return frames, error


def test_all_frames_in_rgb(clip):
    source = VideoSource(clip)
    frames, error = read(source)
    assert error is None and [read_number(frame.pixels) for frame in frames] == list(range(90))
    assert [frame.number for frame in frames] == list(range(1, 91))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(90) / 30, atol=1e-3)
    difference = np.abs(frames[7].pixels.astype(int) - numbered_frame(7))
    assert frames[7].pixels.shape == (*SIZE, 3) and difference.mean() < 4  # and 60 with red and blue exchanged
    assert (source.rate, source.n_frames, source.is_live) == (30, 90, False)
    assert frames[11].path.name == 'clip_000012.png' and frames[11].name == f'{clip}, frame 12'


@pytest.mark.parametrize('suffix', ['avi', 'mp4', 'mkv'])
@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({'every': 20}, [0, 20, 40, 60, 80]),
        ({'start': 2.0, 'every': 10}, [60, 70, 80]),
        ({'start': 1.01, 'end': 1.1}, [31, 32]),
        ({'max_rate': Fraction(2)}, [0, 15, 30, 45, 60, 75]),
    ],
)
def test_selected_frames(tmp_path, suffix, options, expected):
    codec = 'MJPG' if suffix == 'avi' else 'mp4v'
    source = VideoSource(Path(write_video(tmp_path / f'a.{suffix}', 90, codec=codec)), FrameSelection(**options))
    frames, error = read(source)
    assert error is None and [read_number(frame.pixels) for frame in frames] == expected
    assert [frame.number - 1 for frame in frames] == expected
    assert source.n_frames == len(expected)


@pytest.mark.parametrize(
    ('options', 'span'),
    [
        ({'start': 99}, 'at or after 99 s'),
        ({'start': 98, 'end': 99}, 'at or after 98 s and before 99 s'),
        ({'start': 0.01, 'end': 0.02}, 'at or after 0.01 s and before 0.02 s'),
    ],
)
def test_a_span_without_a_frame_is_an_error(clip, options, span):
    frames, error = read(VideoSource(clip, FrameSelection(**options)))
    assert not frames and str(error) == f'{clip}: the video has no frame {span}'


def test_a_source_can_be_read_twice(clip):
    source = VideoSource(clip, FrameSelection(every=30))
    assert [len(read(source)[0]) for _ in range(2)] == [3, 3]


def test_a_truncated_video_gives_its_frames_and_one_error(tmp_path):
    path = Path(write_video(tmp_path / 'clip.avi', 90, codec='MJPG'))
    truncate(path)
    with quiet_opencv():
        frames, error = read(VideoSource(path))
    n_frames = len(frames)
    assert 40 < n_frames < 70 and [read_number(frame.pixels) for frame in frames[:-1]] == list(range(n_frames - 1))
    assert str(error) == f'{path}: the video ends after {n_frames} of 90 frames; it is truncated or damaged'


@pytest.mark.parametrize('content', [b'', b'no video', b'\0\0\0\x18ftypmp42' + bytes(99)])
def test_a_file_that_is_not_a_video(tmp_path, content, capfd):
    path = tmp_path / 'a.mp4'
    path.write_bytes(content)
    with quiet_opencv(), pytest.raises(VideoError, match=r'a\.mp4: OpenCV finds no video in it'):
        VideoSource(path)
    assert capfd.readouterr().err == ''


def test_a_camera_that_is_not_there(capfd):
    with quiet_opencv(), pytest.raises(VideoError, match='camera 63: there is no such camera'):
        VideoSource(63)
    assert capfd.readouterr().err == ''


def test_a_name_that_is_not_utf8(tmp_path, clip):
    path = Path(str(tmp_path) + '/caf\udce9.avi')
    path.write_bytes(clip.read_bytes())
    assert len(read(VideoSource(path))[0]) == 90


def test_a_name_like_a_pattern_of_frames(tmp_path, clip):
    path = tmp_path / 'frame_%03d.avi'
    path.write_bytes(clip.read_bytes())
    assert len(read(VideoSource(path))[0]) == 90


class FakeCamera:
    """A camera of OpenCV whose frames come at a rate that the test's clock determines."""

    clock = 0.0

    def __init__(self, *arguments):
        self.number = 0

    def isOpened(self):
        return True

    def get(self, name):
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}.get(name, 0.0)

    def grab(self):
        FakeCamera.clock += 0.1
        self.number += 1
        return self.number <= 100

    def retrieve(self):
        return True, np.ascontiguousarray(numbered_frame(self.number)[:, :, ::-1])

    def release(self):
        """Do nothing."""


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, list(range(1, 101))),
        ({'every': 25}, [1, 26, 51, 76]),
        ({'start': 9.85}, [100]),
        ({'end': 0.35}, [1, 2, 3, 4]),
        ({'max_rate': Fraction(1, 2)}, [1, 21, 41, 61, 81]),
    ],
)
def test_frames_of_a_camera_by_the_clock(monkeypatch, options, expected):
    monkeypatch.setattr('mask_rcnn.media.video_source.cv2.VideoCapture', FakeCamera)
    monkeypatch.setattr('mask_rcnn.media.video_source.time.perf_counter', lambda: round(FakeCamera.clock, 3))
    source = VideoSource(0, FrameSelection(**options))
    frames, error = read(source)
    assert source.is_live and source.n_frames is None and error is None
    assert [read_number(frame.pixels) for frame in frames] == expected


@pytest.fixture
def server(tmp_path):
    """The address of a web server of a folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *arguments):
            """Print nothing."""

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{web.server_port}'
        web.shutdown()
        thread.join()


def test_a_video_at_an_address(tmp_path, server):
    write_video(tmp_path / 'a clip.mkv', 30)
    source = VideoSource(f'{server}/a%20clip.mkv?x=1')
    frames, error = read(source)
    assert error is None and [read_number(frame.pixels) for frame in frames] == list(range(30))
    assert frames[0].path.name == 'a_20clip_000001.png' and not source.is_live


def test_an_address_without_a_video(server, capfd):
    with quiet_opencv(), pytest.raises(VideoError, match='/none.mp4: no video from this address'):
        VideoSource(f'{server}/none.mp4')
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('scheme', ['http', 'rtsp'])
def test_an_address_that_does_not_answer(scheme, capfd):
    with socket.create_server(('127.0.0.1', 0)) as silent, quiet_opencv():
        address = f'{scheme}://127.0.0.1:{silent.getsockname()[1]}/live'
        with pytest.raises(VideoError, match=r'no video from this address .*no answer within 0\.3 s'):
            VideoSource(address, timeout=0.3)
    assert capfd.readouterr().err == ''


def test_the_kinds_of_names(tmp_path, clip):
    assert all(map(is_address, ['rtsp://camera/1', 'HTTPS://host/a.mp4', 'http://host']))
    assert not any(map(is_address, ['a.mp4', 'file:///a.mp4', '/a/b', 'http:/a', 'c:/a']))
    (tmp_path / 'video').write_bytes(clip.read_bytes())
    (tmp_path / 'image.mp4.png').write_bytes(b'x')
    assert is_video_file(tmp_path / 'video') and not is_video_file(tmp_path / 'image.mp4.png')
    assert not is_video_file(tmp_path) and not is_video_file(tmp_path / 'none.mp4')


@needs_ffmpeg
def test_a_rotated_video_is_upright(tmp_path):
    write_video(tmp_path / 'a.mp4', 5)
    command = ['ffmpeg', '-v', 'error', '-i', 'a.mp4', '-c', 'copy', '-metadata:s:v', 'rotate=90', 'b.mp4']
    subprocess.run(command, cwd=tmp_path, check=True)
    capture = cv2.VideoCapture(str(tmp_path / 'b.mp4'))
    if not capture.get(cv2.CAP_PROP_ORIENTATION_META):
        pytest.skip('this ffmpeg writes no rotation')
    frames, _ = read(VideoSource(tmp_path / 'b.mp4'))
    assert {frame.pixels.shape for frame in frames} == {(*SIZE[::-1], 3)}
