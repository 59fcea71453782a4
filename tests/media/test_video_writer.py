"""Writing of videos with ffmpeg and with OpenCV."""

import os
import subprocess
import sys
import wave
from fractions import Fraction

import numpy as np
import pytest

from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.media import ffmpeg, video_writer
from mask_rcnn.media.video_writer import VideoWriter, can_write_video
from tests.support.videos import SIZE, needs_ffmpeg, numbered_frame, read_video, write_video

PROGRAMS = [pytest.param('ffmpeg', marks=needs_ffmpeg), 'opencv']


@pytest.fixture
def notes():
    return []


@pytest.fixture
def make_writer(monkeypatch, notes):
    """Return a function that makes a writer for one of the programs."""

    def make(program, path, rate=Fraction(30), **options):
        if program == 'opencv':
            monkeypatch.setenv('PATH', '')
        return VideoWriter(path, rate, report=notes.append, **options)

    return make


def write(writer, n_frames, size=SIZE):
    for number in range(n_frames):
        writer.write(numbered_frame(number, size))
    writer.finish()


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi', '.webm', '.MOV'])
def test_frames_rate_and_size(tmp_path, make_writer, notes, capfd, program, suffix):
    path = tmp_path / f'out{suffix}'
    write(make_writer(program, path, Fraction(25, 2)), 12)
    numbers, rate, size = read_video(path)
    assert numbers == list(range(12)) and size == SIZE and rate == pytest.approx(12.5, abs=0.01)
    assert os.listdir(tmp_path) == [path.name]
    lines = [f'{path}: ffmpeg is not on the PATH: OpenCV writes the video, without sound'] * (program == 'opencv')
    assert notes == lines and capfd.readouterr() == ('', '')


@needs_ffmpeg
def test_a_rate_of_ntsc_is_exact(tmp_path, make_writer):
    write(make_writer('ffmpeg', tmp_path / 'out.mp4', Fraction(30000, 1001)), 30)
    assert '29.97 fps' in ffmpeg._ask('ffmpeg', '-i', str(tmp_path / 'out.mp4'))
    assert read_video(tmp_path / 'out.mp4')[1] == pytest.approx(30000 / 1001, abs=1e-6)


@needs_ffmpeg
@pytest.mark.parametrize(('suffix', 'codec'), [('.mp4', 'h264'), ('.mkv', 'h264'), ('.avi', 'mpeg4'), ('.webm', 'vp')])
def test_codecs(tmp_path, make_writer, suffix, codec):
    if ffmpeg.choose_encoder('ffmpeg', suffix)[0] not in ('libx264', 'mpeg4', 'libvpx-vp9', 'libvpx'):
        pytest.skip('this ffmpeg has other encoders')
    path = tmp_path / f'out{suffix}'
    write(make_writer('ffmpeg', path), 3)
    assert f'Video: {codec}' in ffmpeg._ask('ffmpeg', '-i', str(path))


@needs_ffmpeg
@pytest.mark.parametrize('suffix', ['.mp4', '.avi', '.webm'])
def test_odd_sizes_are_kept(tmp_path, make_writer, notes, suffix):
    path, size = tmp_path / f'out{suffix}', (97, 131)
    write(make_writer('ffmpeg', path), 4, size)
    assert read_video(path) == ([0, 1, 2, 3], 30.0, size)
    assert ['131x97' in note and '4:4:4' in note for note in notes] == [True] * (suffix == '.mp4')


def test_opencv_states_a_size_that_it_changes(tmp_path, make_writer, notes):
    write(make_writer('opencv', tmp_path / 'out.mp4'), 4, (97, 131))
    assert read_video(tmp_path / 'out.mp4')[2] == (96, 130)
    assert notes[0].endswith('of 131x97 pixels, the last odd column or row is left out')


def test_an_ffmpeg_without_an_encoder(tmp_path, notes, monkeypatch):
    program = tmp_path / 'bin' / 'ffmpeg'
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho " V..... png x"\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent))
    write(VideoWriter(tmp_path / 'out.mp4', Fraction(30), report=notes.append), 3)
    expected = 'ffmpeg has no encoder for .mp4: OpenCV writes the video, without sound'
    assert notes == [f'{tmp_path}/out.mp4: {expected}'] and read_video(tmp_path / 'out.mp4')[0] == [0, 1, 2]


@pytest.mark.skipif(os.name == 'nt', reason='there are no process groups')
def test_ctrl_c_of_a_terminal_does_not_reach_questions_to_ffmpeg(tmp_path):
    """The terminal interrupts all processes of its group; the answer was empty then."""
    program = tmp_path / 'ffmpeg'
    program.write_text(f'#!{sys.executable}\nimport os\nprint(os.getpgrp())\n')
    program.chmod(0o755)
    assert int(ffmpeg._ask(str(program))) != os.getpgrp()


@pytest.mark.parametrize('program', PROGRAMS)
def test_an_incomplete_video_leaves_no_file(tmp_path, make_writer, program):
    (tmp_path / 'out.mp4').write_bytes(b'old')
    writer = make_writer(program, tmp_path / 'out.mp4')
    writer.write(numbered_frame(0))
    writer.abort()
    writer.abort()
    assert os.listdir(tmp_path) == ['out.mp4'] and (tmp_path / 'out.mp4').read_bytes() == b'old'


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_video_replaces_a_file_only_when_it_is_complete(tmp_path, make_writer, program):
    path = tmp_path / 'out.mp4'
    path.write_bytes(b'old')
    path.chmod(0o640)
    (tmp_path / 'link.mp4').symlink_to('out.mp4')
    writer = make_writer(program, tmp_path / 'link.mp4')
    writer.write(numbered_frame(0), 5)
    assert path.read_bytes() == b'old'
    writer.finish()
    assert read_video(path)[0] == [0] * 5
    assert path.stat().st_mode & 0o777 == 0o640 and (tmp_path / 'link.mp4').is_symlink()


def test_a_writer_without_frames_writes_nothing(tmp_path, make_writer):
    make_writer('opencv', tmp_path / 'out.mp4').finish()
    assert os.listdir(tmp_path) == []


def test_frames_of_another_size_are_refused(tmp_path, make_writer):
    writer = make_writer('opencv', tmp_path / 'out.mp4')
    writer.write(numbered_frame(0))
    with pytest.raises(ValueError, match=r'the size changes from 128x96 to 140x90 pixels'):
        writer.write(numbered_frame(1, (90, 140)))
    writer.write(numbered_frame(2))
    writer.finish()
    assert read_video(tmp_path / 'out.mp4')[0] == [0, 2]


def test_opencv_frames_that_are_missing_are_an_error(tmp_path, make_writer, monkeypatch):
    """As on a full disk, about which OpenCV says nothing."""
    writer = make_writer('opencv', tmp_path / 'out.mp4')
    writer.write(numbered_frame(0), 9)
    writer._encoder._n_frames += 2
    with pytest.raises(FileError, match=r'out\.mp4: cannot be written: only 9 of 11 frames .*disk full'):
        writer.finish()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('when', ['write', 'finish'])
def test_an_encoder_that_fails_leaves_one_line_and_no_file(tmp_path, monkeypatch, when):
    """A program in the place of ffmpeg that reads nothing, or everything, and finds the disk full."""
    program = tmp_path / 'bin' / 'ffmpeg'
    program.parent.mkdir()
    read = 'cat > /dev/null' if when == 'finish' else 'exec <&-'
    program.write_text(
        '#!/bin/sh\ncase "$*" in *-encoders*) echo " V....D libx264 x"; exit;; esac\n'
        f'{read}\necho "av_interleaved_write_frame(): No space left on device" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(video_writer, 'find_ffmpeg', lambda: str(program))
    writer = VideoWriter(tmp_path / 'out.mp4', Fraction(30))
    with pytest.raises(FileError) as caught:
        write(writer, 200 if when == 'write' else 3, (480, 640))
    assert str(caught.value) == f'{tmp_path}/out.mp4: cannot be written: No space left on device'
    assert os.listdir(tmp_path) == ['bin']


@pytest.mark.parametrize(
    ('message', 'reason'),
    [
        ('Error writing trailer of file:a.mp4: No space left on device', 'No space left on device'),
        (
            'Error closing file file:a.mp4: Input/output error',
            'ffmpeg: Error closing file file:a.mp4: Input/output error',
        ),
    ],
)
def test_the_status_of_ffmpeg_does_not_hide_an_incomplete_file(tmp_path, monkeypatch, message, reason):
    """Version 5.1 exits with status 0 if it cannot write the last part of a file."""
    program = tmp_path / 'ffmpeg'
    program.write_text(
        '#!/bin/sh\ncase "$*" in *-encoders*) echo " V....D libx264 x"; exit;; esac\n'
        f'cat > /dev/null\necho "{message}" >&2\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(video_writer, 'find_ffmpeg', lambda: str(program))
    writer = VideoWriter(tmp_path / 'out.mp4', Fraction(30))
    with pytest.raises(FileError) as caught:
        write(writer, 3)
    assert str(caught.value) == f'{tmp_path}/out.mp4: cannot be written: {reason}'
    assert os.listdir(tmp_path) == ['ffmpeg']
    with pytest.raises(ffmpeg.FFmpegError):
        ffmpeg.add_sound(str(program), tmp_path, tmp_path, tmp_path, '.mp4', start=0.0, duration=1.0)


def write_sound(path, loud):
    """Write two seconds of sound, of which one is loud."""
    times = np.arange(32000) / 16000
    samples = np.sin(2 * np.pi * 440 * times) * np.where((times >= loud) & (times < loud + 1), 12000, 0)
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.astype('<i2').tobytes())


def loudness(path):
    """Return the loudness of each quarter of a second of a video's sound."""
    command = ['ffmpeg', '-v', 'error', '-i', str(path), '-f', 's16le', '-ac', '1', '-ar', '16000', '-']
    samples = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, '<i2').astype(float)
    return [np.abs(samples[start : start + 4000]).mean() for start in range(0, len(samples) - 1999, 4000)]


@needs_ffmpeg
@pytest.mark.parametrize('suffix', ['.mp4', '.avi', '.webm'])
def test_the_sound_is_kept_in_step(tmp_path, make_writer, notes, suffix):
    """Of a span of a video: 1.5 s, of which the second half second is loud until the end."""
    write_video(tmp_path / 'silent.mp4', 60)
    write_sound(tmp_path / 'sound.wav', loud=1.0)
    command = ['ffmpeg', '-v', 'error', '-i', 'silent.mp4', '-i', 'sound.wav', '-c:v', 'copy', 'clip.mkv']
    subprocess.run(command, cwd=tmp_path, check=True)
    path = tmp_path / f'out{suffix}'
    writer = make_writer('ffmpeg', path, sound=tmp_path / 'clip.mkv', start=0.5)
    for number in range(15, 60):
        writer.write(numbered_frame(number))
    writer.finish()
    assert read_video(path)[0] == list(range(15, 60)) and notes == []
    quarters = loudness(path)
    assert len(quarters) == 6 and max(quarters[:2]) < 300 and min(quarters[2:]) > 4000


@needs_ffmpeg
def test_a_video_without_sound_stays_so(tmp_path, make_writer, notes):
    write_video(tmp_path / 'silent.mp4', 5)
    write(make_writer('ffmpeg', tmp_path / 'out.mp4', sound=tmp_path / 'silent.mp4'), 5)
    assert read_video(tmp_path / 'out.mp4')[0] == list(range(5)) and notes == []
    assert 'Audio' not in ffmpeg._ask('ffmpeg', '-i', str(tmp_path / 'out.mp4'))


@needs_ffmpeg
def test_a_sound_that_cannot_be_kept_is_a_note(tmp_path, make_writer, notes, monkeypatch):
    def fail(*arguments, **options):
        raise ffmpeg.FFmpegError('ffmpeg: no such codec')

    monkeypatch.setattr(video_writer, 'has_sound', lambda program, path: True)
    monkeypatch.setattr(video_writer, 'add_sound', fail)
    write(make_writer('ffmpeg', tmp_path / 'out.mp4', sound=tmp_path / 'gone.mp4'), 5)
    assert read_video(tmp_path / 'out.mp4')[0] == list(range(5))
    assert notes == [f'{tmp_path}/out.mp4: the sound is left out (ffmpeg: no such codec)']
    assert os.listdir(tmp_path) == ['out.mp4']


def test_suffixes():
    assert all(map(can_write_video, ['.mp4', '.MP4', '.avi', '.mkv', '.webm', '.mov']))
    assert not any(map(can_write_video, ['', '.png', '.gif', '.wmv']))
