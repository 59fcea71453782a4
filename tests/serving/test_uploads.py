"""Images that are refused: wrong kinds, damaged and truncated files, bombs, and forms."""

import io
import struct
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from mask_rcnn.preprocessing.image_header import read_header
from mask_rcnn.preprocessing.jpeg_png import count_jpeg_scans
from mask_rcnn.serving import uploads
from mask_rcnn.serving.errors import RequestError
from mask_rcnn.serving.uploads import MAX_JPEG_SCANS, check_image, parse_form
from tests.support.serving import GatedModel, RunningServer, gray_png, read_answer, request_bytes

PNG = {'Content-Type': 'image/png'}


def png_chunk(name, content):
    """Return a chunk of a PNG file."""
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png_file(width, height, pixels):
    """Return a greyscale PNG file that declares a size."""
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    chunks = (png_chunk(b'IHDR', header), png_chunk(b'IDAT', pixels), png_chunk(b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def jpeg_file(progressive=False, size=(40, 60)):
    """Return a JPEG file of noise."""
    file = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, 'JPEG', progressive=progressive)
    return file.getvalue()


def error_of(response):
    """Return the status and the message of an error, which is one line."""
    error = response.json()['error']
    assert error['status'] == response.status_code and '\n' not in error['message']
    return response.status_code, error['message']


@pytest.fixture(scope='module')
def limited():
    """A server with low limits, and its client."""
    with (
        RunningServer(GatedModel(), max_bytes=20_000, max_pixels=10_000) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        client.server = server
        yield client


@pytest.mark.parametrize(
    ('content', 'status', 'message'),
    [
        (b'', 400, 'the request body is empty'),
        (b'hello, this is text', 415, 'not an image of a known format'),
        (b'PK\x03\x04' + bytes(40), 415, 'not an image of a known format: it is'),
        (b'\x00\x00\x00\x18ftypheic' + bytes(40), 415, 'HEIC images are not supported'),
        (gray_png(9)[:40], 422, 'the image is damaged'),
        (gray_png(9)[:-30], 422, 'the image is damaged'),
        (jpeg_file()[:1500], 422, 'the image is damaged'),
        (b'\xff\xd8\xff\xe0', 422, 'the image is damaged'),
        (png_file(0, 5, zlib.compress(b'')), 422, 'the image is damaged'),
        # Files that are small and whose pixels would fill the memory.
        (png_file(100_000, 100_000, zlib.compress(bytes(1000))), 422, 'pixels'),
        (png_file(3000, 3000, zlib.compress(bytes(3001 * 3000), 9)), 422, 'more than 10,000, the limit of this server'),
        (gray_png(9, (101, 100)), 422, '100 x 101 pixels, more than 10,000'),
    ],
)
def test_files_that_are_refused(limited, content, status, message):
    found = error_of(limited.post('v1/detect', content=content, headers=PNG))
    assert found[0] == status and message in found[1]
    assert limited.server.service.model.images == []


def test_an_image_at_the_limit_is_accepted(limited):
    try:
        assert limited.post('v1/detect', content=gray_png(9, (100, 100)), headers=PNG).status_code == 200
    finally:
        limited.server.service.model.images.clear()


def test_a_picture_that_does_not_fit_into_a_jpeg_file(server, client):
    """The encoder refused it after the detection, with status 500."""
    headers = {**PNG, 'Accept': 'image/jpeg'}
    found = error_of(client.post('v1/detect', content=gray_png(9, (1, 65_501)), headers=headers))
    assert found[0] == 406 and found[1].startswith('65501 x 1 pixels do not fit into a JPEG file')
    assert client.post('v1/detect', content=gray_png(9, (1, 65_501)), headers=PNG).status_code == 200


@pytest.mark.parametrize('progressive', [False, True])
def test_scans_are_counted(progressive):
    data = jpeg_file(progressive)
    count = count_jpeg_scans(data, read_header(io.BytesIO(data)).structure)
    assert count == (10 if progressive else 1)  # of libjpeg's standard script
    parts = read_header(io.BytesIO(data + data)).structure
    assert count_jpeg_scans(data + data, parts) == count  # a second image follows


def test_a_jpeg_file_with_very_many_scans_is_refused(limited):
    data = jpeg_file(progressive=True, size=(8, 8))
    last = data.rindex(b'\xff\xda')
    comment = b'\xff\xfe\x00\x04\xff\xd9'  # contains the code of the end marker
    bomb = data[:-2] + (comment + data[last:-2]) * MAX_JPEG_SCANS + data[-2:]
    found = error_of(limited.post('v1/detect', content=bomb, headers={'Content-Type': 'image/jpeg'}))
    assert found == (422, f'the image has {MAX_JPEG_SCANS + 10} scans, more than {MAX_JPEG_SCANS}')


TOO_MANY_PARTS = 'the image is damaged (the header has too many parts)'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\xff\xd8' + b'\xff\xfe\x00\x02' * 120_000, TOO_MANY_PARTS),  # comments of JPEG
        (b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', bytes(13)) + png_chunk(b'tEXt', b'') * 120_000, TOO_MANY_PARTS),
        (b'P6\n' + b'#\n' * 120_000, TOO_MANY_PARTS),
        (b'GIF89a' + bytes(7) + b'!\xfe\x00' * 120_000, TOO_MANY_PARTS),
        (
            jpeg_file()[:-2] + b'\xff\xfe\x00\x02' * 120_000 + b'\xff\xd9',
            'the image is damaged (more than 20,000 segments follow the header)',
        ),
    ],
)
def test_headers_that_are_made_to_occupy_the_server(content, message):
    """Each part takes a few bytes and some microseconds; 20 MiB of them took up to 20 s."""
    with pytest.raises(RequestError) as error:
        check_image(content, 10_000)
    assert (error.value.status, str(error.value)) == (422, message)


def test_a_form_of_very_many_fields_is_refused_at_the_first():
    """Each field takes 8 bytes; 20 MiB of them took 15 s."""
    start = time.process_time()
    with pytest.raises(RequestError, match='unknown field'):
        parse_form(b'--b\r\n\r\n\r\n' * 60_000, b'b')
    assert time.process_time() - start < 1


def test_the_server_answers_while_it_reads_a_header(limited, monkeypatch):
    """The event loop is free: another request is answered."""
    answers = []

    def check(data, max_pixels):
        answers.append(httpx.get(f'{limited.server.url}healthz', timeout=10).status_code)
        return check_image(data, max_pixels)

    monkeypatch.setattr(uploads, 'check_image', check)
    content = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + gray_png(9) + b'\r\n--b--\r\n'
    headers = {'Content-Type': 'multipart/form-data; boundary=b'}
    try:
        assert limited.post('v1/detect', content=content, headers=headers).status_code == 200
    finally:
        limited.server.service.model.images.clear()
    assert answers == [200]


@pytest.mark.parametrize('kind', ['text/plain', 'application/x-www-form-urlencoded', 'video/mp4', 'multipart/mixed'])
def test_other_content_types(limited, kind):
    status, message = error_of(limited.post('v1/detect', content=gray_png(9), headers={'Content-Type': kind}))
    assert status == 415 and message.startswith(f'Content-Type {kind!r} is not an image; send the bytes of an image')


@pytest.mark.parametrize('is_form', [False, True])
@pytest.mark.parametrize('is_chunked', [False, True])
def test_a_large_upload(limited, is_form, is_chunked):
    content = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + bytes(30_000) + b'\r\n--b--\r\n'
    headers = {'Content-Type': 'multipart/form-data; boundary=b' if is_form else 'image/png'}
    sent = iter([content[:15_000], content[15_000:]]) if is_chunked else content
    status, message = error_of(limited.post('v1/detect', content=sent, headers=headers))
    assert status == 413 and message == f'the image is larger than {20_000 / 2**20:g} MiB, the limit of this server'


def test_a_large_upload_is_refused_before_it_is_sent(limited):
    """The client waits for the answer to its header, as curl does."""
    with limited.server.connect() as connection:
        head = request_bytes(Content_Length='10000000000', Expect='100-continue')
        connection.sendall(head)
        status, data = read_answer(connection)
    assert status == 413 and b'connection: close' in data.lower()


def form(*parts, end=b'--b--\r\n'):
    """Return the request body of a form."""
    fields = (f'--b\r\nContent-Disposition: form-data; {options}\r\n\r\n'.encode() + value for options, value in parts)
    return b''.join(field + b'\r\n' for field in fields) + end


@pytest.mark.parametrize(
    ('content', 'status', 'message'),
    [
        (form(('name="image"; filename="a.png"', gray_png(9)), end=b''), 400, 'the form ends before its last boundary'),
        (form(('name="image"; filename="a.png"', gray_png(9)))[:200], 400, 'the form ends before its last boundary'),
        (form(('name="photo"', gray_png(9))), 400, "unknown field 'photo' of the form; image is its only field"),
        (form(('name="score"', b'0.5'), ('name="image"', gray_png(9))), 400, "unknown field 'score' of the form"),
        (form(('name="image"', gray_png(9)), ('name="image"', gray_png(8))), 400, 'the form has further fields after'),
        (form(('filename="image"', gray_png(9))), 400, "unknown field '' of the form"),
        (form(), 400, 'the form has no field image'),
        (form(('name="image"', b'')), 400, 'the request body is empty'),
        (form(('name="image"', b'text')), 415, 'not an image'),
        (b'no boundary at all', 400, 'the form is damaged'),
        (b'', 400, 'the form ends before its last boundary'),
    ],
)
def test_forms_that_are_refused(limited, content, status, message):
    headers = {'Content-Type': 'multipart/form-data; boundary=b'}
    found = error_of(limited.post('v1/detect', content=content, headers=headers))
    assert found[0] == status and message in found[1]


def test_a_form_without_a_boundary(limited):
    status, message = error_of(limited.post('v1/detect', content=b'x', headers={'Content-Type': 'multipart/form-data'}))
    assert status == 400 and message == 'the Content-Type of the form has no boundary'
