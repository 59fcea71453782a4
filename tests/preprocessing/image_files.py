"""Image files that the tests write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

#: The rotation or reflection that each orientation states.
MAKE_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def gradients(height=37, width=53):
    """A smooth RGB image (JPEG hardly changes it) without symmetry and with three different channels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    channels = [200 * y / height + 20, 220 * x / width + 10, 120 + 100 * np.sin((x + 2 * y) / 9)]
    return np.stack(channels, axis=2).astype(np.uint8)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(folder, name, image, image_format, **options):
    path = folder / name
    path.write_bytes(encode(image, image_format, **options))
    return path


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def deep_png(samples):
    """A PNG file with 16 bits per sample: grey, grey and alpha, RGB or RGBA."""
    height, width, channels = samples.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in samples)
    header = struct.pack('>IIBBBBB', width, height, 16, color_type, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(png_chunk(*chunk) for chunk in chunks)


def tiff(pixels, *, order='<', photometric=None, planar=False, tags=()):
    """An uncompressed TIFF file.

    Args:
        pixels: ``(H, W, C)`` of any integer or float dtype.
        order: Byte order, ``'<'`` or ``'>'``.
        photometric: 0 white is zero, 1 black is zero, 2 RGB (the default for 3 channels or more).
        planar: Store one plane for each channel.
        tags: More tags, ``(tag, values)`` of type SHORT.
    """
    height, width, channels = pixels.shape
    photometric = (2 if channels > 2 else 1) if photometric is None else photometric
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    planes = [stored[:, :, k].tobytes() for k in range(channels)] if planar else [stored.tobytes()]
    sizes = [len(plane) for plane in planes]
    shorts = {
        256: [width],
        257: [height],
        258: [8 * pixels.dtype.itemsize] * channels,
        259: [1],
        262: [photometric],
        277: [channels],
        278: [height],
        284: [2 if planar else 1],
    }
    shorts |= {tag: list(values) for tag, values in tags}
    entries = {tag: struct.pack(f'{order}{len(v)}H', *v) for tag, v in shorts.items()}
    entries |= {tag: struct.pack(f'{order}{len(sizes)}I', *sizes) for tag in (273, 279)}
    start = 8 + 2 + 12 * len(entries) + 4
    first_plane = start + sum(len(value) for value in entries.values() if len(value) > 4)
    entries[273] = struct.pack(f'{order}{len(sizes)}I', *first_plane + np.cumsum([0, *sizes[:-1]]))
    directory, values = struct.pack(f'{order}H', len(entries)), b''
    for tag, value in sorted(entries.items()):
        kind, size = (4, 4) if tag in (273, 279) else (3, 2)
        place = value.ljust(4, b'\0') if len(value) <= 4 else struct.pack(f'{order}I', start + len(values))
        values += value if len(value) > 4 else b''
        directory += struct.pack(f'{order}HHI', tag, kind, len(value) // size) + place
    magic = b'II*\0' if order == '<' else b'MM\0*'
    return magic + struct.pack(f'{order}I', 8) + directory + bytes(4) + values + b''.join(planes)
