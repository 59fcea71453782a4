"""Console output: lines beside a progress bar, names that cannot be printed, and streams that cannot be written."""

import contextlib
import errno
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mask_rcnn.io.console import (
    escape,
    print_error,
    print_line,
    print_lines,
    print_warning,
    progress_bar,
    protected_streams,
    report_lost_output,
    stdout_is_broken,
)


class Unwritable(io.StringIO):
    """A stream that raises an error when it is written or flushed."""

    def __init__(self, error):
        super().__init__()
        self._error = error

    def flush(self):
        raise self._error


def encoded(encoding):
    """Return a strict text stream of an encoding."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors='strict', newline='')


def test_lines_go_to_their_streams(capsys):
    print_line('a line')
    print_lines('two\nlines')
    print_line('a note', file=sys.stderr)
    print_warning('a warning')
    print_error('an error')
    captured = capsys.readouterr()
    assert captured.out == 'a line\ntwo\nlines\n'
    assert captured.err == 'a note\nwarning: a warning\nerror: an error\n'


@pytest.mark.parametrize('protected', [False, True])
def test_a_line_interrupts_the_progress_bar(capsys, protected):
    with protected_streams() if protected else contextlib.nullcontext(), progress_bar(3, unit='image') as bar:
        bar.update()
        print_error('an error')
        bar.update(2)
    text = capsys.readouterr().err
    assert '\rerror: an error\n' in text and text.rstrip().split('\r')[-1].startswith('100%') and '3/3' in text


def test_lines_and_bars_need_no_lock_between_processes():
    """Python 3.14 starts a process for such a lock."""
    code = (
        'import sys; from mask_rcnn.io.console import print_line, progress_bar; print_line("a")\n'
        'with progress_bar(3, unit="image") as bar: bar.update()\n'
        'print("multiprocessing.synchronize" in sys.modules)'
    )
    out = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    assert out == 'a\nFalse\n'


def test_a_single_step_has_no_progress_bar(capsys):
    with progress_bar(1, unit='image') as bar:
        bar.update()
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('a\nb\r\tc', r'a\nb\r\tc'),
        ('\x1b[31mred\x07\x7f\x9b', r'\x1b[31mred\x07\x7f\x9b'),
        (os.fsdecode(b'caf\xe9.png'), r'caf\udce9.png'),
        ('a\u2028b\u2029c\x85d', r'a\u2028b\u2029c\x85d'),
        ('photo\u202egnp.exe', r'photo\u202egnp.exe'),
        ('café 魚\u3000👩\u200d🚒 C:\\new', 'café 魚\u3000👩\u200d🚒 C:\\new'),
    ],
)
def test_a_name_is_one_printable_line(capsys, text, line):
    assert escape(text) == line and escape(line) == line
    print_error(text)
    print_line(text)
    assert capsys.readouterr() == (f'{line}\n', f'error: {line}\n')


@pytest.mark.parametrize(
    ('encoding', 'line'),
    [
        ('ascii', rb'caf\xe9 \u9b5a \U0001f41f'),
        ('cp1252', b'caf\xe9 \\u9b5a \\U0001f41f'),
        ('shift_jis', b'caf\\xe9 \x8b\x9b \\U0001f41f'),
        ('utf-8', 'café 魚 🐟'.encode()),
    ],
)
def test_characters_that_a_stream_lacks_are_escaped(monkeypatch, encoding, line):
    for name, write in (('stdout', print_line), ('stderr', print_error)):
        stream = encoded(encoding)
        monkeypatch.setattr(sys, name, stream)
        write('café 魚 🐟')
        assert stream.buffer.getvalue() == (b'error: ' if name == 'stderr' else b'') + line + b'\n'


def test_all_writers_are_protected_in_a_command(monkeypatch):
    """For example argparse, and a progress bar, whose blocks no old code page has."""
    streams = encoded('ascii'), encoded('ascii')
    monkeypatch.setattr(sys, 'stdout', streams[0])
    monkeypatch.setattr(sys, 'stderr', streams[1])
    with protected_streams():
        print('魚')
        sys.stderr.write('\udce9\n')
        with progress_bar(2, unit='魚') as bar:
            bar.update(2)
    assert (sys.stdout, sys.stderr) == streams
    assert streams[0].buffer.getvalue() == b'\\u9b5a\n'
    assert streams[1].buffer.getvalue().startswith(b'\\udce9\n') and b'2/2' in streams[1].buffer.getvalue()


FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize(
    ('stream', 'reason'),
    [
        (Unwritable(FULL), 'No space left on device'),
        (Unwritable(RuntimeError('reentrant call')), 'reentrant call'),
        (None, 'it is closed'),
        (object(), "'object' object has no attribute 'write'"),
    ],
)
def test_a_standard_output_that_cannot_be_written_fails_at_the_end(monkeypatch, capsys, stream, reason):
    monkeypatch.setattr(sys, 'stdout', stream)
    print_line('outside of a command')
    with protected_streams():
        print_line('魚')
        print_lines('more\nlines')
        assert stdout_is_broken()
        assert [report_lost_output(status) for status in (0, 1, 2, 130)] == [1, 1, 2, 130]
    assert capsys.readouterr().err == f'error: standard output: cannot be written: {reason}\n'


def test_closed_and_detached_streams_cannot_be_written(monkeypatch, capsys):
    closed, detached = encoded('utf-8'), encoded('utf-8')
    closed.close()
    detached.detach()
    for stream in (closed, detached):
        monkeypatch.setattr(sys, 'stdout', stream)
        with protected_streams():
            print_line('a line')
            assert report_lost_output(0) == 1
        assert capsys.readouterr().err.count('\n') == 1


def test_a_reader_that_has_ended_is_not_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdout', Unwritable(BrokenPipeError(errno.EPIPE, 'Broken pipe')))
    with protected_streams():
        print_line('a line')
        assert stdout_is_broken() and report_lost_output(0) == 0
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('stream', [None, Unwritable(FULL)])
def test_nothing_fails_without_a_standard_error(monkeypatch, capsys, stream):
    monkeypatch.setattr(sys, 'stderr', stream)
    print_warning('outside of a command')
    with protected_streams(), progress_bar(3, unit='image') as bar:
        print_error('an error')
        bar.update(3)
        assert report_lost_output(0) == 0
    assert capsys.readouterr() == ('', '')


def end_like_argparse(status):
    print('the help')
    raise SystemExit(status)


def test_the_status_of_argparse_is_1_if_the_help_is_lost(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdout', Unwritable(FULL))
    for status, expected in ((0, 1), (2, 2)):
        with pytest.raises(SystemExit) as stop, protected_streams():
            end_like_argparse(status)
        assert stop.value.code == expected


def test_a_closed_standard_output_is_an_error_only_if_it_is_written(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdout', None)
    with protected_streams():
        assert report_lost_output(0) == 0
        print_line('a line')
        assert report_lost_output(0) == 1
    assert capsys.readouterr().err == 'error: standard output: cannot be written: it is closed\n'


def read_slowly(descriptor):
    """Return the bytes of a pipe."""
    blocks = []
    with open(descriptor, 'rb', buffering=0) as file:
        while block := file.read(5000):
            blocks.append(block)
            time.sleep(0.001)
    return b''.join(blocks)


def test_a_full_pipe_that_does_not_block_loses_nothing(monkeypatch):
    """Another program can set the flag on a terminal or a pipe that it shares with this one."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = 'x' * 100_000  # more than the pipe holds
    with ThreadPoolExecutor(1) as executor:
        received = executor.submit(read_slowly, reading)
        with open(writing, 'w', encoding='utf-8') as stream:
            monkeypatch.setattr(sys, 'stdout', stream)
            print_line(text)
    assert received.result() == text.encode() + b'\n'
