"""Name the kind of a file by its first bytes, for errors about a file that was given in the place of another."""

from __future__ import annotations

import re

#: Number of first bytes that :func:`describe_kind` needs.
N_KIND_BYTES = 512

#: Names of kinds that callers treat specially.
WEIGHTS, IMAGE, VIDEO, ARCHIVE = 'a weight file', 'an image', 'a video', 'an archive'
WEB_PAGE = 'a web page (HTML)'
#: Kinds of contents in the place of a file that was not downloaded.
POINTER, REFUSAL = 'a pointer of Git LFS or git-annex', 'the refusal of a server'

#: The continuation of the last two kinds and of web pages, which is the same for all files.
DOWNLOAD_HINTS = {
    WEB_PAGE: '; the download was refused or redirected; download it again',
    POINTER: '; download the file itself (git lfs pull, git annex get)',
    REFUSAL: '; check the address and download it again',
}

#: Beginnings of files and their kinds; the most specific ones first.
_KINDS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(regex, re.DOTALL), kind)
    for regex, kind in (
        # The name of the first member of a zip archive begins at byte 30.
        (rb'PK\x03\x04.{26}[^\0]{0,200}?(?:\.npy|data\.pkl|\.data/)', WEIGHTS),
        (rb'\x89HDF\r\n|\x80[\x02-\x05][}(c\x95\x8a]|.{5}\0\0\0\{"', WEIGHTS),
        (rb'PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd|[^\s{\[].{256}ustar', ARCHIVE),
        (rb'\xff\xd8\xff|\x89PNG|GIF8|BM.{12}[\x0c-\x7c]\0\0\0|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]', IMAGE),
        (rb'.{4}ftyp(?:avi[fs]|hei[cxms]|hev[cx]|mif1|msf1)|.{4}jP  \r\n|\xff\x4f\xff\x51|P[1-6]\s', IMAGE),
        (rb'[\0-\x07].{3}(?:ftyp|moov|mdat|wide)|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01|0&\xb2u', VIDEO),
        (rb'G.{187}G.{187}G', VIDEO),
        (rb'version https://(?:git-lfs|hawser)|(?:\.\./)*(?:\.git)?/annex/objects/', POINTER),
        # Whole texts that GitHub, Hugging Face and object stores send with the status 401, 403, 404 or 429.
        (
            rb'(?i:(?:\d{3}:? ?)?(?:(?:entry|file|repository|model|page) )?(?:not found|forbidden|unauthorized|'
            rb'access denied|too many requests|invalid username or password)\.?)\s*\Z',
            REFUSAL,
        ),
        (rb'\s*\{\s*"(?:error|message|detail)"\s*:\s*"|\s*(?:<\?xml[^>]*>\s*)?<Error>', REFUSAL),
        (rb'%PDF', 'a PDF document'),
        (rb'.{128}DICM', 'a DICOM file'),
        (rb'(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?i:!doctype html|html|head|body)', WEB_PAGE),
        (rb'(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<annotations?\b', 'an XML file of annotations'),
        (rb'(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!.*?>\s*)*<svg\b', 'an SVG drawing'),
        (rb'(?:\xef\xbb\xbf)?\s*<\?xml', 'an XML file'),
        (rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*["}]|\[\s*[\[{\]"\d-])', 'a JSON file'),
    )
)


def describe_kind(start: bytes) -> str:
    """Return the kind of a file with its article, such as ``'a video'``; empty if it is unknown.

    Args:
        start: The first :data:`N_KIND_BYTES` bytes.
    """
    return next((kind for beginning, kind in _KINDS if beginning.match(start)), '')
