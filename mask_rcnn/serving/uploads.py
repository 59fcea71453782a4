"""The images of requests: reading of the request body within limits, and decoding."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive

from mask_rcnn.config.fields import describe_value
from mask_rcnn.io.file_kinds import N_KIND_BYTES
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing import image_io
from mask_rcnn.preprocessing.image_errors import ImageFileError, UnsupportedImageError, image_file_errors, not_an_image
from mask_rcnn.preprocessing.image_formats import N_MAGIC_BYTES, detect_format
from mask_rcnn.preprocessing.image_header import ImageHeader, read_header
from mask_rcnn.preprocessing.jpeg_png import Parts, count_jpeg_scans
from mask_rcnn.serving.errors import ClientDisconnected, RequestError
from mask_rcnn.serving.limits import MIB, Deadline, Limits

#: The field of a form that contains the image.
IMAGE_FIELD = 'image'

#: Maximum number of scans of a JPEG image.  Encoders write about 10.  Each scan of a progressive image changes all its
#: pixels, and takes only a few bytes in a file that is made to occupy the decoder.
MAX_JPEG_SCANS = 100

#: Maximum number of reads in the header of an image.  Readers take a part, or a byte of text, at a time; large files of
#: common programs need a few thousand.  Without the limit, a header of 20 MiB in parts of 2 bytes takes 20 s.
MAX_HEADER_READS = 100_000

_FORM = b'multipart/form-data'
_FORM_OVERHEAD = 4096  # bytes of boundaries and headers
_EXPECTED_TYPE = 'send the bytes of an image with Content-Type: image/jpeg (or another image/ type), or a form'


@dataclass(frozen=True)
class Upload:
    """A request body.

    Args:
        data: The image file, or a form that contains it.
        boundary: The boundary of the form; ``None`` for an image file.
    """

    data: bytes
    boundary: bytes | None = None


async def read_upload(receive: Receive, headers: Headers, limits: Limits, deadline: Deadline) -> Upload:
    """Read the request body into memory.

    Args:
        receive: Receives the parts of the request body.
        headers: The headers of the request.
        limits: Maximum size and times.
        deadline: The end of the request's time.

    Raises:
        RequestError: The request body has another type, or is too large or too slow.
        ClientDisconnected: The client has closed the connection.
    """
    kind, options = parse_options_header(headers.get('content-type'))
    is_form = kind == _FORM
    if not is_form and kind and not kind.startswith(b'image/') and kind != b'application/octet-stream':
        raise RequestError(
            415, f'Content-Type {describe_value(kind.decode("latin-1"))} is not an image; {_EXPECTED_TYPE}'
        )
    max_bytes = limits.max_bytes + (_FORM_OVERHEAD if is_form else 0)
    data = await _read_body(receive, headers.get('content-length'), max_bytes, limits, deadline)
    return Upload(data, options.get(b'boundary', b'') if is_form else None)


async def _read_body(
    receive: Receive, declared: str | None, max_bytes: int, limits: Limits, deadline: Deadline
) -> bytes:
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(limits)
    data, has_more, start = bytearray(), True, time.monotonic()
    while has_more:
        pace = start + limits.idle_timeout + len(data) / limits.min_upload_rate - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(min(limits.idle_timeout, pace, deadline.remaining), 0.0))
        except asyncio.TimeoutError:
            raise RequestError(
                408,
                f'the request body came too slowly: no data for {limits.idle_timeout:g} s, fewer than '
                f'{limits.min_upload_rate:,} bytes per second, or more than {limits.timeout:g} s in total',
            ) from None
        if message['type'] == 'http.disconnect':
            raise ClientDisconnected
        data += message.get('body', b'')
        has_more = message.get('more_body', False)
        if len(data) > max_bytes:
            raise _too_large(limits)
    return bytes(data)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f'the image is larger than {limits.max_bytes / MIB:g} MiB, the limit of this server')


def open_upload(upload: Upload, limits: Limits) -> tuple[bytes, ImageHeader]:
    """Return the image file of a request body, and its header.

    Raises:
        RequestError: There is no image, its header is damaged, or it is too large.
    """
    data = upload.data if upload.boundary is None else parse_form(upload.data, upload.boundary)
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    return data, check_image(data, limits.max_pixels)


def parse_form(data: bytes, boundary: bytes) -> bytes:
    """Return the content of the field ``image`` of a form.

    Args:
        data: The request body, ``multipart/form-data`` (RFC 7578).
        boundary: The parameter of the ``Content-Type``.

    Raises:
        RequestError: The form is damaged or incomplete, or does not have exactly this field.
    """
    if not boundary:
        raise RequestError(400, 'the Content-Type of the form has no boundary')
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(data)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, f'the form is damaged: {error}') from None
    if not form.is_complete:
        raise RequestError(400, 'the form ends before its last boundary')
    return form.image()


class _Form:
    """The fields of a form, filled by the callbacks of the parser."""

    def __init__(self) -> None:
        self.is_complete = False
        self._has_image = False
        self._name, self._value, self._disposition = b'', b'', b''
        self._content = bytearray()

    def callbacks(self) -> Any:
        return {
            'on_part_begin': self._begin,
            'on_header_field': self._collect('_name'),
            'on_header_value': self._collect('_value'),
            'on_header_end': self._end_header,
            'on_headers_finished': self._end_headers,
            'on_part_data': lambda data, start, end: self._content.extend(memoryview(data)[start:end]),
            'on_end': lambda: setattr(self, 'is_complete', True),
        }

    def _collect(self, attribute: str) -> Callable[[bytes, int, int], None]:
        def collect(data: bytes, start: int, end: int) -> None:
            setattr(self, attribute, getattr(self, attribute) + data[start:end])

        return collect

    def _begin(self) -> None:
        if self._has_image:
            raise RequestError(400, f'the form has further fields after {IMAGE_FIELD}, its only one')
        self._disposition = b''

    def _end_header(self) -> None:
        if self._name.lower() == b'content-disposition':
            self._disposition = self._value
        self._name = self._value = b''

    def _end_headers(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b'name', b'').decode('utf-8', 'replace')
        if name != IMAGE_FIELD:
            raise RequestError(
                400,
                f'unknown field {describe_value(name)} of the form; {IMAGE_FIELD} is its only field, '
                'parameters are in the URL',
            )
        self._has_image = True

    def image(self) -> bytes:
        if not self._has_image:
            raise RequestError(400, f'the form has no field {IMAGE_FIELD}')
        return bytes(self._content)


class _HeaderFile(io.BytesIO):
    """A file that ends the reading of a header that is made to occupy the reader."""

    _n_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._n_reads += 1
        if self._n_reads > MAX_HEADER_READS:
            raise ValueError('the header has too many parts')
        return super().read(size)


def check_image(data: bytes, max_pixels: int) -> ImageHeader:
    """Check the header of an image file before it is decoded.

    Args:
        data: The file.
        max_pixels: Maximum number of pixels.

    Raises:
        RequestError: The file is not an image of a supported format, its header is damaged, or it is too large.
    """
    if not data:
        raise RequestError(400, f'the request body is empty; {_EXPECTED_TYPE}')
    try:
        if detect_format(data[:N_MAGIC_BYTES]) is None:
            raise RequestError(415, not_an_image(data[:N_KIND_BYTES]))
    except UnsupportedImageError as error:
        raise RequestError(415, str(error)) from None
    try:
        with image_file_errors('image'):
            header = read_header(_HeaderFile(data))
            structure = header.structure if header.format == 'JPEG' else None
            n_scans = count_jpeg_scans(data, structure) if isinstance(structure, Parts) else 0
    except ImageFileError as error:
        raise RequestError(422, error.reason) from None
    height, width = header.size
    if height * width > max_pixels:
        raise RequestError(
            422, f'the image has {width} x {height} pixels, more than {max_pixels:,}, the limit of this server'
        )
    if n_scans > MAX_JPEG_SCANS:
        raise RequestError(422, f'the image has {counted(n_scans, "scan")}, more than {MAX_JPEG_SCANS}')
    return header


def decode_image(data: bytes, header: ImageHeader, *, apply_orientation: bool) -> np.ndarray:
    """Decode an image file.

    Args:
        data: The file.
        header: The result of :func:`check_image`.
        apply_orientation: Whether to apply the orientation.

    Returns:
        ``(H, W, 3)`` uint8, RGB, the pixels of :func:`mask_rcnn.preprocessing.read_image`.

    Raises:
        RequestError: The image is damaged.
    """
    try:
        return image_io.decode_image(data, 'image', header=header, apply_orientation=apply_orientation)
    except ImageFileError as error:
        raise RequestError(422, error.reason) from None
