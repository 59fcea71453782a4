"""Connections with time limits for clients that send or read slowly.

uvicorn limits the time between two requests of a connection, but not that of the first request, of a request's header,
and of a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mask_rcnn.serving.access import SECURITY_HEADERS
from mask_rcnn.serving.answers import JSON
from mask_rcnn.serving.errors import error_response

#: Maximum number of open connections; further ones are closed.
MAX_CONNECTIONS = 500

_PHRASES = {400: 'Bad Request', 408: 'Request Timeout'}


class TimedConnection(H11Protocol):
    """A connection of HTTP/1.1.

    The time limit is uvicorn's ``timeout_keep_alive``: for the header of a request, and for a part of the answer.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _has_data = False

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; its header must be complete in time."""
        self._has_data = True
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._has_data = False
        super().on_response_complete()

    def _watch_header(self) -> None:
        """Start the timer of a header, or stop it if the header is complete."""
        if not self._is_waiting:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.timeout_keep_alive, self._end_header)

    @property
    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end_header(self) -> None:
        self._header_timer = None
        if self._is_waiting and not self.transport.is_closing():
            if self._has_data:
                self._send_error(408, f'the request header was not complete within {self.timeout_keep_alive:g} s')
            else:
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        self._send_error(400, 'this is not a valid HTTP request')

    def _send_error(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = bytes(error_response(status, message).body)
            headers = {'Content-Type': JSON, 'Content-Length': str(len(content)), 'Connection': 'close'}
            fields = [(name.encode(), value.encode()) for name, value in (headers | SECURITY_HEADERS).items()]
            response = h11.Response(status_code=status, headers=fields, reason=_PHRASES[status].encode())
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b'')
        self.transport.close()

    def pause_writing(self) -> None:
        """Begin to wait for a client that reads slowly."""
        super().pause_writing()
        self._watch_writing(None)

    def resume_writing(self) -> None:
        """Stop waiting for the client."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_writing(self, n_left: int | None) -> None:
        """Close the connection if the client has read nothing since ``n_left`` bytes were left."""
        n_now = self.transport.get_write_buffer_size()
        if n_now == n_left:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.timeout_keep_alive, self._watch_writing, n_now)
