"""The orientation in XMP data (XMP specification, part 1, sections 7.4 and 7.5, and part 2, section 3.3)."""

from __future__ import annotations

import contextlib
from xml.parsers import expat

#: Number of first bytes that are read.  A photo has some kilobytes; thumbnails and histories, which follow, have more.
MAX_XMP_SIZE = 1 << 20

_RDF = 'http://www.w3.org/1999/02/22-rdf-syntax-ns#'
_DESCRIPTION = [f'{_RDF} RDF', f'{_RDF} Description']
_ORIENTATION = 'http://ns.adobe.com/tiff/1.0/ Orientation'
_MAX_NUMBER_LENGTH = 16  # characters, with white space


class _Stop(Exception):
    """The rest of the data is not necessary, or not allowed."""


class _Handler:
    """Search the elements that expat reports for the orientation of the image, and stop at the first valid one."""

    def __init__(self) -> None:
        self.orientation: int | None = None
        self._path: list[str] = []
        self._text = ''

    def start_element(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        self._text = ''
        if self._path[-2:] == _DESCRIPTION:
            self._read(attributes.get(_ORIENTATION, ''))

    def characters(self, text: str) -> None:
        if len(self._text) <= _MAX_NUMBER_LENGTH:
            self._text += text

    def end_element(self, name: str) -> None:
        if self._path[-3:] == [*_DESCRIPTION, _ORIENTATION]:
            self._read(self._text)
        self._path.pop()
        self._text = ''

    def start_document_type(self, *_: object) -> None:
        raise _Stop

    def _read(self, text: str) -> None:
        text = text.strip()
        if text in tuple('12345678'):
            self.orientation = int(text)
            raise _Stop


def xmp_orientation(xmp: bytes | None) -> int | None:
    """Return the orientation that XMP data states, 1 to 8.

    The property is ``tiff:Orientation``, as an attribute or as an element of ``rdf:Description``.  Nothing is loaded,
    and a document type declaration, which XMP does not contain, ends the search before it can declare entities.

    Args:
        xmp: The XML text; UTF-8, as in all image files.

    Returns:
        ``None`` if the data is missing, is damaged before the property, or has no valid orientation in its first
        :data:`MAX_XMP_SIZE` bytes.
    """
    xmp = (xmp or b'')[:MAX_XMP_SIZE]
    if b'Orientation' not in xmp:
        return None
    handler, parser = _Handler(), expat.ParserCreate('utf-8', namespace_separator=' ')
    parser.StartElementHandler = handler.start_element
    parser.EndElementHandler = handler.end_element
    parser.CharacterDataHandler = handler.characters
    parser.StartDoctypeDeclHandler = handler.start_document_type
    with contextlib.suppress(_Stop, expat.ExpatError):
        parser.Parse(xmp.strip(b'\0 \t\r\n'), True)
    return handler.orientation
