"""The outermost layer of a server: access rules, headers, error answers and metrics of every request."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mask_rcnn.serving.access import SECURITY_HEADERS, AccessRules
from mask_rcnn.serving.errors import RequestError, error_response
from mask_rcnn.serving.metrics import Metrics

_logger = logging.getLogger(__name__)

#: Seconds during which the rest of a refused request body is read and discarded.  Clients read the answer when they
#: have sent their request, and lose it if the connection is closed before.
DISCARD_SECONDS = 5.0

_TIMED_OUT = 408
_OTHER = 'other'


class Guard:
    """An ASGI application around another one.

    Args:
        app: The application.
        rules: The hosts and origins that are answered.
        metrics: Counts the requests.
        paths: The paths in the metrics; those that end with a slash also stand for longer paths.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, metrics: Metrics, paths: tuple[str, ...]):
        self._app, self._rules, self._metrics = app, rules, metrics
        self._paths = tuple(sorted(paths, key=len, reverse=True))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return
        exchange = _Exchange(scope, receive, send)
        try:
            self._rules.check(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except RequestError as error:
            await error_response(error.status, str(error), error.headers)(scope, exchange.receive, exchange.send)
        except Exception:
            _logger.exception('%s %s failed', scope['method'], scope['path'])
            if not exchange.status:
                response = error_response(500, 'the server has failed; its log contains the reason')
                await response(scope, exchange.receive, exchange.send)
        finally:
            method = scope['method'] if scope['method'] in ('GET', 'HEAD', 'POST', 'OPTIONS') else _OTHER
            self._metrics.requests.labels(self._label(scope['path']), method, exchange.status).inc()

    def _label(self, path: str) -> str:
        for name in self._paths:
            if path == name or (name.endswith('/') and name != '/' and path.startswith(name)):
                return name
        return _OTHER


class _Exchange:
    """One request and its answer.

    Args:
        scope: The request.
        receive: Receives its request body.
        send: Sends the answer.

    Attributes:
        status (int): The status of the answer, 0 before it.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.status = 0
        self._headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        has_body = 'transfer-encoding' in self._headers or self._headers.get('content-length', '0') != '0'
        self._is_complete = not has_body

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get('more_body', False):
            self._is_complete = True
        return message

    async def send(self, message: Message) -> None:
        if message['type'] == 'http.response.start':
            await self._start(message)
        await self._send(message)

    async def _start(self, message: Message) -> None:
        """Add headers to an answer, after the rest of the request body is discarded."""
        self.status = message['status']
        headers = MutableHeaders(scope=message)
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        headers.setdefault('Cache-Control', 'no-store')
        if not self._is_complete:
            await self._discard()
        if not self._is_complete or self.status == 503:
            headers['Connection'] = 'close'

    async def _discard(self) -> None:
        if self.status == _TIMED_OUT or self._headers.get('expect', '').lower() == '100-continue':
            return

        async def read() -> None:
            while not self._is_complete:
                await self.receive()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), DISCARD_SECONDS)
