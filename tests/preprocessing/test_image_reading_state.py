"""Tests that reading images leaves the state of the process alone and writes nothing to its streams."""

import ast
import contextlib
import struct
import subprocess
import sys
import threading
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_size
from tests.preprocessing.image_files import encode, gradients, png_chunk, with_orientation


def log_level():
    return getattr(cv2.utils, 'logging', cv2).getLogLevel()


def test_threads_leave_the_log_level_and_the_warning_filters(tmp_path):
    """Another thread sees both unchanged at every moment; before, each read silenced and restored them."""
    names = []
    for image_format in ('JPEG', 'PNG', 'TIFF', 'GIF', 'WEBP'):
        data = encode(Image.fromarray(gradients()), image_format)
        for name, content in (('whole', data), ('cut', data[: len(data) * 3 // 4])):
            names.append(tmp_path / f'{name}.{image_format}')
            names[-1].write_bytes(content)
    stop, seen = threading.Event(), set()

    def read():
        while not stop.is_set():
            for name in names:
                for function in (read_image, read_image_size):
                    with contextlib.suppress(ImageFileError):
                        function(name)

    before, interval = (log_level(), tuple(warnings.filters), warnings.showwarning), sys.getswitchinterval()
    threads = [threading.Thread(target=read) for _ in range(6)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(3000):
            seen.add((log_level(), tuple(warnings.filters), warnings.showwarning))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert seen == {before}


def damaged_metadata():
    """Files with good pixels, whose metadata makes Pillow, libpng or libtiff warn."""
    image = Image.fromarray(gradients())
    bad_exif = b'Exif\0\0II*\0\x08\0\0\0\x02\0' + struct.pack('<HHII', 0x011A, 5, 900, 0xFFFFFF) * 2
    png = encode(image, 'PNG')
    bad_chunks = png_chunk(b'iCCP', b'x\0\0nonsense') + png_chunk(b'acTL', bytes(8)) + png_chunk(b'zTXt', b'a\0\0no')
    jpeg = encode(image, 'JPEG')
    tiff = bytearray(encode(image, 'TIFF', tiffinfo={33000: 'text', 34675: b'profile'}))
    entry = tiff.index(struct.pack('<H', 34675), 8)
    tiff[entry + 4 : entry + 12] = struct.pack('<II', 1 << 20, 1 << 24)
    palette = image.quantize(256)
    palette.info['transparency'] = bytes(range(200))
    return {
        'a.jpg': encode(image, 'JPEG', exif=bad_exif),
        'b.jpg': jpeg[:2] + b'\xff\xe2\0\x0cMPF\0II*\0\xff\xff' + jpeg[2:],
        'c.png': png[:33] + bad_chunks + png[33:],
        'd.tif': bytes(tiff),
        'e.png': encode(palette, 'PNG'),
        'f.jpg': jpeg[:-2] + b'\0\0\0\xff\xd9' + b'trailing',
    }


@pytest.mark.filterwarnings('error')
def test_damaged_metadata_cause_neither_warnings_nor_lines(tmp_path, capfd):
    for name, data in damaged_metadata().items():
        (tmp_path / name).write_bytes(data)
        image = read_image(tmp_path / name).transpose(1, 2, 0)
        assert read_image_size(tmp_path / name) == (37, 53)
        assert np.abs(image - gradients()).mean() < 10
    assert capfd.readouterr() == ('', '')


@pytest.mark.filterwarnings('error')
def test_a_large_image_causes_no_warning(tmp_path, monkeypatch):
    path = tmp_path / 'large.png'
    path.write_bytes(encode(Image.fromarray(gradients()), 'PNG'))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 37 * 53 - 1)
    assert read_image(path).shape == (3, *read_image_size(path)) == (3, 37, 53)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 37 * 53 // 2 - 1)
    for function in (read_image, read_image_size):
        with pytest.raises(ImageFileError, match='the image has more than 1958 pixels'):
            function(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    assert read_image_size(path) == (37, 53)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg', 'group4'])
def test_damaged_tiff_files_cause_no_lines(tmp_path, capfd, compression):
    image = Image.fromarray(gradients()).convert('1' if compression == 'group4' else 'RGB')
    data, path = encode(image, 'TIFF', compression=compression), tmp_path / 'a.tif'
    random = np.random.RandomState(0)
    for _ in range(60):
        damaged = bytearray(data)
        for at in random.randint(0, len(data), 4):
            damaged[at] = random.randint(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ImageFileError):
            read_image(path)
    assert capfd.readouterr() == ('', '')


FUZZ = """
import io, random, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from PIL import Image
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_size
folder, n_files = sys.argv[1], int(sys.argv[2])
files, generator, counts = [], random.Random(0), [0, 0]
image = Image.linear_gradient('L').resize((40, 30))
for mode in ('RGB', 'L', 'RGBA', 'P', '1', 'I;16', 'CMYK'):
    for name in ('JPEG', 'PNG', 'TIFF', 'WEBP', 'GIF', 'BMP', 'PPM', 'JPEG2000'):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        try:
            image.convert(mode).save(buffer, name, exif=exif)
        except (OSError, ValueError, KeyError):
            continue
        files.append(buffer.getvalue())
for _ in range(n_files):
    data = bytearray(generator.choice(files))
    for _ in range(generator.choice((1, 2, 8))):
        at = generator.randrange(min(len(data), generator.choice((40, 400, 4000))))
        data[at] = generator.choice((0, 64, 127, 255))
    if generator.random() < 0.2:
        del data[generator.randrange(1, len(data)) :]
    with open(folder + '/file', 'wb') as file:
        file.write(data)
    size = None
    for k, function in enumerate((read_image_size, read_image)):
        try:
            result = function(folder + '/file')
        except ImageFileError as error:
            assert str(error).isprintable(), error
            continue
        except MemoryError:
            continue
        assert not k or size == result.shape[1:], (size, result.shape)
        size = result if not k else size
        counts[k] += 1
print(counts)
"""


def test_damaged_files_cause_no_crash_and_no_line(tmp_path):
    """In a process of its own, whose memory is limited, with warnings as errors."""
    command = [sys.executable, '-W', 'error', '-c', FUZZ, str(tmp_path), '600']
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (process.returncode, process.stderr) == (0, '')
    n_sizes, n_images = ast.literal_eval(process.stdout)
    assert 600 > n_sizes > n_images > 50


def test_orientation_survives_the_removal_of_metadata(tmp_path):
    path = tmp_path / 'a.jpg'
    exif = with_orientation(6)
    exif[0x010E] = 'a description'
    path.write_bytes(encode(Image.fromarray(gradients()), 'JPEG', exif=exif, icc_profile=b'profile', comment=b'text'))
    assert read_image(path).shape == (3, 53, 37)
