"""Console output of the commands: lines that never fail, whatever the streams and the names in the lines are.

A name can contain bytes that are not UTF-8, characters that the stream's encoding lacks, and line breaks; the stream
can be closed, a pipe without a reader or a file on a full disk.  None of these may end a training or lose the results
of a command, so text is escaped and errors of a stream are stored in :class:`ConsoleStream`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO, cast

from tqdm import tqdm

#: Characters that would break a line, control a terminal or reverse the text, and bytes that are not text.
_UNPRINTABLE = re.compile(
    '[\0-\x1f\x7f-\x9f\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\N{ARABIC LETTER MARK}\u200e\u200f\u202a-\u202e'
    '\u2066-\u2069\ud800-\udfff]'
)
#: Number of characters that are written at once: a full pipe that does not block loses more than a buffer.
_CHUNK = 2048


class ProgressBar(tqdm):
    """A progress bar of this process.

    tqdm's own lock also works between processes.  For such a lock, Python 3.14 starts a process, on which the end of a
    notebook's kernel waits.
    """


ProgressBar.set_lock(threading.RLock())


def escape(text: object) -> str:
    r"""Return a text as one printable line: ``'a\nb'`` becomes ``'a\\nb'``.

    Control characters, line separators, marks that change the direction of text, and the surrogates by which Python
    represents bytes of file names that are not UTF-8 are replaced by their escape sequences.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode('unicode_escape').decode('ascii'), str(text))


class ConsoleStream:
    """A text stream that replaces the standard output or error; writing to it never raises an error.

    Characters that the stream's encoding lacks are written as escape sequences.  Other attributes are those of the
    stream.

    Args:
        stream: The stream, or ``None`` if it is closed, as Python represents it.

    Attributes:
        stream: The stream.
        error (Exception or None): The first error of the stream, after which text may be missing.
        is_reported (bool): Whether the error has been reported.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.error: Exception | None = None
        self.is_reported = False

    @classmethod
    def wrap(cls, stream: TextIO | None) -> ConsoleStream:
        """Return the stream if it is a :class:`ConsoleStream`, otherwise a new one for it."""
        return stream if isinstance(stream, cls) else cls(stream)

    @property
    def encoding(self) -> str:
        """The encoding of the stream; UTF-8 for a stream of text in memory."""
        return getattr(self.stream, 'encoding', None) or 'utf-8'

    @property
    def is_broken_pipe(self) -> bool:
        """True if the reader of the stream has ended, as in ``| head -1``."""
        number = getattr(self.error, 'errno', None)
        return number == errno.EPIPE or (os.name == 'nt' and number == errno.EINVAL)

    def write(self, text: str) -> int:
        """Write text, with characters that cannot be encoded as escape sequences; returns the text's length."""
        with self._storing_errors():
            stream = self._open_stream()
            encoded = text.encode(self.encoding, 'backslashreplace').decode(self.encoding)
            for start in range(0, len(encoded), _CHUNK):
                if start:
                    _flush(stream)
                stream.write(encoded[start : start + _CHUNK])
        return len(text)

    def flush(self) -> None:
        """Write the buffer."""
        if self.stream is not None:
            with self._storing_errors():
                _flush(self.stream)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        with contextlib.suppress(Exception):
            return self._open_stream().isatty()
        return False

    def fileno(self) -> int:
        """Return the stream's file descriptor; see :meth:`io.IOBase.fileno`."""
        if self.stream is None:
            raise io.UnsupportedOperation('fileno')
        return self.stream.fileno()

    def finish(self) -> None:
        """Write the buffer at the end of a command.

        The interpreter would write the buffer of a broken stream again when it ends, and report the error in its own
        words with status 120.  The descriptor of such a stream leads to the null device from then.
        """
        self.flush()
        if self.error is not None and self.stream is not None and self.stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(Exception):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)

    def _open_stream(self) -> TextIO:
        if self.stream is None:
            raise OSError(errno.EBADF, 'it is closed')
        return self.stream

    @contextlib.contextmanager
    def _storing_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any type: the caller of a command may replace sys.stdout by any object
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    # tqdm compares its bar's stream to the standard streams, to remove the bar before a line is written.
    def __eq__(self, other: object) -> bool:
        return self.stream is getattr(other, 'stream', other)

    def __hash__(self) -> int:
        return hash(id(self.stream))


def _flush(stream: TextIO) -> None:
    while True:
        try:
            return stream.flush()
        except BlockingIOError:  # a pipe that another program has made non-blocking is full
            select.select([], [stream], [])


@contextlib.contextmanager
def protected_streams() -> Iterator[None]:
    """Replace the standard output and error by instances of :class:`ConsoleStream`.

    argparse, logging, warnings and progress bars write to the same streams, so that their text is also escaped.  The
    status of a ``SystemExit``, by which argparse ends a process, passes through :func:`report_lost_output`.
    """
    if isinstance(sys.stdout, ConsoleStream) and isinstance(sys.stderr, ConsoleStream):
        yield
        return
    _occupy_closed_descriptors()
    originals = sys.stdout, sys.stderr
    streams = [ConsoleStream(stream) for stream in originals]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            stop.code = report_lost_output(stop.code or 0)
        raise
    finally:
        sys.stdout, sys.stderr = originals
        for stream in streams:
            stream.finish()


def _occupy_closed_descriptors() -> None:
    """Open the null device for closed standard streams.

    The next files that are opened would get their descriptors, and C libraries, which write messages to descriptor 2,
    would write into these files.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def stdout_is_broken() -> bool:
    """Return whether an earlier line could not be written to the standard output of a command."""
    return isinstance(sys.stdout, ConsoleStream) and sys.stdout.error is not None


def stdout_is_closed() -> bool:
    """Return whether the process was started without a standard output, as by ``>&-``."""
    return sys.stdout is None or (isinstance(sys.stdout, ConsoleStream) and sys.stdout.stream is None)


def report_lost_output(status: int) -> int:
    """Write an error line if lines are missing in the standard output of a command; returns the exit status.

    A reader that has ended, as in ``| head -1``, has what it needs and is not an error.

    Args:
        status: The exit status of the command's work, which is done.

    Returns:
        The status, or 1 instead of 0 if lines are missing.
    """
    stream = sys.stdout
    if not isinstance(stream, ConsoleStream):
        return status
    stream.flush()
    if stream.error is None or stream.is_broken_pipe:
        return status
    if not stream.is_reported:
        reason = getattr(stream.error, 'strerror', None) or str(stream.error)
        print_error(f'standard output: cannot be written: {reason}')
        stream.is_reported = True
    return status or 1


def print_line(line: str, *, file: TextIO | None = None) -> None:
    """Write a line and flush it; never raises an error of the stream.

    Args:
        line: The text without the newline; see :func:`escape`.
        file: The stream; ``None`` for the standard output.
    """
    stream = ConsoleStream.wrap(sys.stdout if file is None else file)
    with ProgressBar.external_write_mode(file=stream):
        stream.write(f'{escape(line)}\n')
        stream.flush()


def print_lines(text: str, *, file: TextIO | None = None) -> None:
    """Write a text of several lines, such as a table; see :func:`print_line`."""
    for line in text.split('\n'):
        print_line(line, file=file)


def print_note(line: str) -> None:
    """Write a line about the work, not a result, to the standard error."""
    if sys.stderr is not None:
        print_line(line, file=sys.stderr)


def print_warning(message: str) -> None:
    """Write ``warning: message`` to the standard error."""
    print_note(f'warning: {message}')


def print_error(message: str) -> None:
    """Write ``error: message`` to the standard error."""
    print_note(f'error: {message}')


def progress_bar(total: int | None, *, unit: str) -> ProgressBar:
    """Return a progress bar on the standard error, a context manager; it is disabled for a single step.

    Args:
        total: The number of steps; ``None`` if it is unknown, for a bar without the time left.
        unit: The singular of the steps' name.
    """
    is_disabled = total is not None and total < 2
    return ProgressBar(total=total, unit=unit, disable=is_disabled, file=ConsoleStream.wrap(sys.stderr))
