"""The files of the page."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from mask_rcnn.serving.errors import RequestError

if TYPE_CHECKING:
    from importlib.abc import Traversable

#: Suffix of a file -> its media type.  The tables of operating systems differ, and browsers refuse scripts of others.
_MEDIA_TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.css': 'text/css; charset=utf-8',
    '.js': 'text/javascript; charset=utf-8',
    '.json': 'application/json',
    '.webmanifest': 'application/manifest+json',
    '.svg': 'image/svg+xml',
    '.png': 'image/png',
    '.jpg': 'image/jpeg',
    '.ico': 'image/x-icon',
    '.woff2': 'font/woff2',
}


class StaticFiles:
    """The files of a folder, read once; requests for other names have status 404.

    Args:
        folder: The folder; ``None`` for the folder ``static`` of the package.
    """

    def __init__(self, folder: Traversable | None = None) -> None:
        self._files: dict[str, tuple[bytes, str, str]] = {}
        folder = resources.files('mask_rcnn.serving') / 'static' if folder is None else folder
        for file in folder.iterdir() if folder.is_dir() else ():
            suffix = file.name[file.name.rfind('.') :]
            if file.is_file() and suffix in _MEDIA_TYPES:
                data = file.read_bytes()
                self._files[file.name] = data, _MEDIA_TYPES[suffix], f'"{hashlib.sha256(data).hexdigest()[:20]}"'

    def answer(self, name: str, request: Request) -> Response:
        """Return a file, or status 304 if the client has it.

        Raises:
            RequestError: There is no file of this name.
        """
        if name not in self._files:
            raise RequestError(404, 'no such page')
        data, media_type, tag = self._files[name]
        headers = {'ETag': tag, 'Cache-Control': 'no-cache', 'Content-Type': media_type}
        if request.headers.get('if-none-match') == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers)
