"""The errors of requests, and their answers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


class RequestError(Exception):
    """A request that is refused; ``str()`` is one line for the client.

    Args:
        status: The HTTP status.
        message: The reason, one line.
        retry_after: Seconds after which the client may repeat the request, or ``None``.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after is None else {'Retry-After': str(retry_after)}


class ClientDisconnected(RequestError):
    """The client has closed the connection; the status, of nginx, is only that of the metrics."""

    def __init__(self) -> None:
        super().__init__(499, 'the client has closed the connection')


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer to a request that is refused: ``{"error": {"status": 415, "message": "one line"}}``."""
    content = {'error': {'status': status, 'message': ' '.join(message.split())}}
    return JSONResponse(content, status, headers=dict(headers or {}))
