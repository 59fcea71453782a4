"""Tests of the orientation in XMP data, which counts where EXIF states none."""

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.preprocessing.image_io import read_image, read_image_size
from mask_rcnn.preprocessing.xmp import xmp_orientation
from tests.preprocessing.image_files import MAKE_UPRIGHT, encode, gradients, png_chunk, with_orientation

FORMATS = ('JPEG', 'PNG', 'compressed PNG', 'TIFF', 'big-endian TIFF', 'WEBP')
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">%s</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
)
TIFF_NAMES = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
ATTRIBUTE = f'<rdf:Description rdf:about="" {TIFF_NAMES} tiff:Orientation="%s"/>'
ELEMENT = (
    f'<rdf:Description {TIFF_NAMES}><tiff:Make>x</tiff:Make><tiff:Orientation>%s</tiff:Orientation></rdf:Description>'
)


def packet(value, description=ATTRIBUTE):
    return (PACKET % (description % value)).encode()


def image_file(image_format, xmp, orientation=None):
    """An image file with XMP data and, unless it is ``None``, an EXIF orientation."""
    image, options = Image.fromarray(gradients()), {}
    if orientation is not None:
        options['exif'] = with_orientation(orientation)
    if image_format == 'WEBP':
        return encode(image, 'WEBP', lossless=True, xmp=xmp, **options)
    if image_format == 'JPEG':
        data = encode(image, 'JPEG', **options)
        segment = b'http://ns.adobe.com/xap/1.0/\0' + xmp
        return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]
    if image_format.endswith('PNG'):
        data = encode(image, 'PNG', **options)
        is_compressed = image_format.startswith('compressed')
        text = zlib.compress(xmp) if is_compressed else xmp
        chunk = png_chunk(b'iTXt', b'XML:com.adobe.xmp\0' + bytes([is_compressed, 0]) + b'en\0key\0' + text)
        return data[:33] + png_chunk(b'iTXt', b'Comment\0\0\0\0\0text') + chunk + data[33:]
    return tiff_file(xmp, orientation, order='>' if image_format.startswith('big') else '<')


def tiff_file(xmp, orientation, order):
    """An RGB TIFF file of one strip, with XMP data."""
    pixels = gradients()
    height, width, _ = pixels.shape
    entries = [(256, width), (257, height), (259, 1), (262, 2), (274, orientation), (277, 3), (278, height)]
    entries = [(tag, 3, 1, struct.pack(f'{order}HH', value, 0)) for tag, value in entries if value is not None]
    start = 8 + 2 + 12 * (len(entries) + 4) + 4
    offsets = {258: start, 273: start + 6, 700: start + 6 + pixels.nbytes}
    entries.append((258, 3, 3, struct.pack(f'{order}I', offsets[258])))
    entries.append((273, 4, 1, struct.pack(f'{order}I', offsets[273])))
    entries.append((279, 4, 1, struct.pack(f'{order}I', pixels.nbytes)))
    entries.append((700, 1, len(xmp), struct.pack(f'{order}I', offsets[700])))
    directory = b''.join(struct.pack(f'{order}HHI', *entry[:3]) + entry[3] for entry in sorted(entries))
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(entries))
    return head + directory + bytes(4) + struct.pack(f'{order}3H', 8, 8, 8) + pixels.tobytes() + xmp


def read_orientation(path):
    """Return the one orientation that turns the stored pixels into those that are read."""
    stored, upright = (read_image(path, apply_orientation=apply).transpose(1, 2, 0) for apply in (False, True))
    assert stored.shape == (37, 53, 3)
    assert read_image_size(path) == upright.shape[:2]
    assert read_image_size(path, apply_orientation=False) == (37, 53)
    (found,) = (number for number, turn in MAKE_UPRIGHT.items() if np.array_equal(turn(stored), upright))
    return found


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('description', [ATTRIBUTE, ELEMENT], ids=['attribute', 'element'])
@pytest.mark.parametrize('image_format', FORMATS)
def test_every_format_and_orientation(tmp_path, image_format, description, orientation):
    (tmp_path / 'a').write_bytes(image_file(image_format, packet(orientation, description)))
    assert read_orientation(tmp_path / 'a') == orientation


@pytest.mark.parametrize('image_format', FORMATS)
def test_exif_comes_first_if_its_value_is_valid(tmp_path, image_format):
    expected = {(1, 6): 1, (3, 6): 3, (0, 6): 6, (9, 6): 6, (0, 0): 1, (9, 17): 1, (8, 'x'): 8}
    for (exif, xmp), orientation in expected.items():
        (tmp_path / 'a').write_bytes(image_file(image_format, packet(xmp), exif))
        assert read_orientation(tmp_path / 'a') == orientation


@pytest.mark.parametrize('image_format', FORMATS)
def test_damaged_data_counts_as_absent(tmp_path, image_format):
    for xmp in (b'', b'\0', b'tiff:Orientation="6"', packet(6)[:150], zlib.compress(packet(6)), b'<Orientation/>'):
        (tmp_path / 'a').write_bytes(image_file(image_format, xmp))
        assert read_orientation(tmp_path / 'a') == 1


def test_damaged_places_of_the_data_count_as_absent(tmp_path):
    def replaced(old, new):
        data = tiff_file(packet(6), None, '<')
        assert data.count(old) == 1
        return data.replace(old, new)

    entry = struct.pack('<HHI', 700, 1, len(packet(6)))
    files = [
        replaced(entry, entry[:4] + struct.pack('<I', len(packet(6)) + 1)),
        replaced(entry, struct.pack('<HHI', 700, 99, 5)),
        replaced(entry, struct.pack('<HHI', 700, 1, 0)),
    ]
    png = encode(Image.fromarray(gradients()), 'PNG')
    for content in (b'', b'\0', b'\0\0en', b'\1\0en\0key\0' + packet(6)):
        files.append(png[:33] + png_chunk(b'iTXt', b'XML:com.adobe.xmp\0' + content) + png[33:])
    for data in files:
        (tmp_path / 'a').write_bytes(data)
        assert read_orientation(tmp_path / 'a') == 1


@pytest.mark.parametrize(('kind', 'count'), [(99, 1), (3, 0)])
def test_a_damaged_orientation_of_tiff_counts_as_absent(tmp_path, kind, count):
    data, entry = tiff_file(packet(6), 3, '<'), struct.pack('<HHI', 274, 3, 1)
    assert data.count(entry) == 1
    (tmp_path / 'a').write_bytes(data.replace(entry, struct.pack('<HHI', 274, kind, count)))
    assert read_orientation(tmp_path / 'a') == 6


def test_the_property_is_found_by_its_name_in_its_place():
    assert xmp_orientation(None) is None
    assert xmp_orientation(packet(6)) == 6
    assert xmp_orientation(b'\n' + packet(6) + bytes(2000)) == 6  # padding
    assert xmp_orientation(packet(' 5\n ', ELEMENT)) == 5
    assert xmp_orientation(packet('<![CDATA[7]]>', ELEMENT)) == 7
    assert xmp_orientation(packet(6).replace(b'tiff:', b't:').replace(b':tiff', b':t')) == 6  # another prefix
    assert xmp_orientation(packet(6).replace(b'/tiff/1.0/', b'/exif/1.0/')) is None
    assert xmp_orientation((PACKET % (ATTRIBUTE % 9 + ELEMENT % 4)).encode()) == 4  # the first valid one
    nested = '<rdf:Description xmlns:e="urn:e"><e:of>%s</e:of></rdf:Description>' % (ELEMENT % 6)
    assert xmp_orientation((PACKET % nested).encode()) is None  # the orientation of another image
    for value in ('', '0', '9', '66', '-6', '6.0', 'six', '6' * 10**6):
        assert xmp_orientation(packet(value, ELEMENT)) is None


def test_entities_are_not_expanded_and_files_are_not_read(tmp_path):
    (tmp_path / 'six').write_text('6')
    bomb = '<!ENTITY a0 "6">' + ''.join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 20}">' for k in range(1, 12))
    for declarations, value in (
        (bomb, '&a11;'),
        ('<!ENTITY six "6">', '&six;'),
        (f'<!ENTITY six SYSTEM "{(tmp_path / "six").as_uri()}">', '&six;'),
        ('<!ENTITY % all SYSTEM "http://localhost:9/all.dtd">%all;', '6'),
    ):
        start = time.monotonic()
        assert xmp_orientation(f'<!DOCTYPE x [{declarations}]>'.encode() + packet(value, ELEMENT)) is None
        assert time.monotonic() - start < 1
    assert xmp_orientation(packet('&#54;', ELEMENT)) == 6  # a character, not an entity


@pytest.mark.parametrize('image_format', [name for name in FORMATS if name != 'JPEG'])
def test_only_the_beginning_of_large_data_is_read(tmp_path, image_format):
    history = b'<x:history>' + b'<x:edited/>' * 200_000 + b'</x:history>'
    for xmp, orientation in (
        (packet(6).replace(b'</x:xmpmeta>', history + b'</x:xmpmeta>'), 6),
        (packet(6).replace(b'<rdf:RDF', history + b'<rdf:RDF'), 1),
    ):
        (tmp_path / 'a').write_bytes(image_file(image_format, xmp))  # compressed to 6 KB in one of the formats
        assert read_orientation(tmp_path / 'a') == orientation
