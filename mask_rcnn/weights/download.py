"""Download of weight files: resumable, checked by size, and atomic."""

from __future__ import annotations

import http.client
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO, TypeAlias

from mask_rcnn.io.atomic_file import removing_empty_folder
from mask_rcnn.io.console import ConsoleStream, ProgressBar, print_error
from mask_rcnn.io.errors import OneLineError
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import to_printable_ascii

#: Detectron's model zoo, "R-50-C4 Mask, 1x" (model 35858791, December 2017).
DETECTRON_R50_C4_MASK = (
    'https://dl.fbaipublicfiles.com/detectron/35858791/12_2017_baselines/'
    'e2e_mask_rcnn_R-50-C4_1x.yaml.01_45_57.ZgkA7hPB/output/train/'
    'coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl'
)

_BLOCK = 1 << 18

#: A response of :mod:`urllib`; error responses are ``HTTPError`` objects.
_Response: TypeAlias = http.client.HTTPResponse | urllib.error.HTTPError


class DownloadError(OneLineError):
    """A file cannot be downloaded; the message is one line with the address and the reason."""


def fetch(
    url: str, path: str | os.PathLike, *, attempts: int = 3, timeout: float = 30.0, pause: float = 1.0
) -> pathlib.Path:
    """Download a file unless it exists.

    The bytes are written to ``path`` + ``'.part'``, which is renamed to ``path`` when it has the size that the server
    announced.  A partial file of an interrupted run is resumed.  A progress bar is shown if the standard error is a
    terminal.

    Args:
        url: Address, ``http`` or ``https``.
        path: File to write; its folder is created if necessary.
        attempts: Maximum number of connections; each one continues where the previous one ended.
        timeout: Timeout of a connection or read in seconds.
        pause: Seconds between attempts.

    Returns:
        ``path``.

    Raises:
        DownloadError: The server cannot be reached, refuses or sends something other than the file, or the file cannot
            be written.
    """
    path = pathlib.Path(path)
    if urllib.parse.urlsplit(url).scheme not in ('http', 'https'):
        raise DownloadError(f'{url}: is not an http or https address')
    if path.exists():
        return path
    part = path.with_name(path.name + '.part')
    try:
        with removing_empty_folder(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            for attempt in range(attempts):
                try:
                    _fetch_rest(url, part, timeout)
                    break
                except _Interrupted as error:
                    if attempt == attempts - 1:
                        raise DownloadError(f'{url}: {error}') from error
                    time.sleep(pause)
            os.replace(part, path)
    except OSError as error:
        raise DownloadError(f'{error.filename or path}: cannot be written: {error.strerror}') from error
    return path


class _Interrupted(Exception):
    """The connection failed in a way that another attempt may overcome."""


def _fetch_rest(url: str, part: pathlib.Path, timeout: float) -> None:
    """Append the missing bytes to ``part`` and return when it is complete."""
    start = part.stat().st_size if part.exists() else 0
    response = _open(url, start, timeout)
    if response.status == 416:  # the server has no bytes at `start` or later
        response.close()
        if response.headers.get('Content-Range') == f'bytes */{start}':
            return  # the file ends there
        part.unlink()
        start, response = 0, _open(url, 0, timeout)
    with response:
        start, total = _range_of(url, response, start)
        with open(part, 'r+b' if start else 'wb') as file:
            file.truncate(start)
            file.seek(start)
            size = start + _copy(response, file, start, total, label=part.stem)
    if size != total:
        raise _Interrupted(f'the connection ended after {size} of {counted(total, "byte")}; run again to continue')


def _open(url: str, start: int, timeout: float) -> _Response:
    """Request the bytes after the first ``start`` ones; the status is 200, 206 or, if ``start`` is not 0, 416."""
    headers = {'User-Agent': 'mask-rcnn', 'Accept-Encoding': 'identity'}
    if start:
        headers['Range'] = f'bytes={start}-'
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:
            return error
        error.close()
        reason = f'the server answers {error.code} {to_printable_ascii(str(error.reason))}'
        if error.code >= 500:
            raise _Interrupted(reason) from error
        raise DownloadError(f'{url}: {reason}') from error
    except urllib.error.URLError as error:
        cause = getattr(error.reason, 'strerror', None) or error.reason
        raise _Interrupted(f'cannot be reached: {to_printable_ascii(str(cause))}') from error
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(f'cannot be reached: {to_printable_ascii(str(error)) or type(error).__name__}') from error


def _range_of(url: str, response: _Response, start: int) -> tuple[int, int]:
    """Return the position of the response's first byte in the file, and the size of the file."""
    if response.headers.get_content_type() == 'text/html':
        raise DownloadError(f'{url}: the server sends a web page instead of the file')
    if response.status == 206:
        match = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', response.headers.get('Content-Range', ''))
        if not match or int(match[1]) != start:
            raise DownloadError(f'{url}: the server sends another part of the file than requested')
        return start, int(match[2])
    length = response.headers.get('Content-Length', '')
    if not re.fullmatch(r'\d{1,15}', length):
        raise DownloadError(f'{url}: the server does not announce the size of the file')
    return 0, int(length)  # a server without ranges sends everything again


def _copy(response: _Response, file: BinaryIO, start: int, total: int, label: str) -> int:
    """Copy at most the announced bytes and return the number of bytes received."""
    count = 0
    stderr = ConsoleStream.wrap(sys.stderr)
    # `disable=None`: no bar if the standard error is not a terminal.
    bar = ProgressBar(total=total, initial=start, unit='B', unit_scale=True, desc=label, disable=None, file=stderr)
    with bar:
        while start + count < total:
            try:
                block = response.read(min(_BLOCK, total - start - count))
            except (http.client.HTTPException, OSError):
                break
            if not block:
                break
            file.write(block)
            count += len(block)
            bar.update(len(block))
    return count


def main(folder: str | os.PathLike, url: str = DETECTRON_R50_C4_MASK, **options: Any) -> int:
    """Download Detectron's R-50-C4 Mask R-CNN into a folder as ``model_final.pkl``.

    Args:
        folder: The folder.
        url: Address of the file.
        **options: Arguments of :func:`fetch`.

    Returns:
        The exit status: 0, or 1 after one line on the standard error that names the file to download by other means
        and its target path.
    """
    path = pathlib.Path(folder) / 'model_final.pkl'
    try:
        fetch(url, path, **options)
    except DownloadError as error:
        print_error(f'{error}; download the file by other means and put it at {path}')
        return 1
    return 0
