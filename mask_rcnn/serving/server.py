"""The HTTP server: its socket, its signals and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mask_rcnn.serving.connection import TimedConnection
from mask_rcnn.serving.service import DetectionService

#: Signals after which the server answers the requests that it has taken, and ends.
_STOP_SIGNAL_NAMES = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGBREAK')
_STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_SIGNAL_NAMES if hasattr(signal, name))
_STANDARD_ERROR = 2
_BACKLOG = 512


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: A name or an address of this machine.
        port: The port; 0 for a free one.

    Raises:
        OSError: The name is unknown, or the address is in use or not permitted.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


def address_of(listener: socket.socket) -> str:
    """Return the address of a listening socket as a URL that a browser on this machine opens."""
    host, port = listener.getsockname()[:2]
    host = {'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host)
    return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'


def run_server(app: ASGIApp, service: DetectionService, listener: socket.socket) -> None:
    """Answer requests until a signal, and then those that have been taken.

    Args:
        app: The application.
        service: The service of the application, which is stopped by the signal.
        listener: The listening socket; it is closed.

    Raises:
        KeyboardInterrupt: A second signal ends the server before all requests are answered.
    """
    asyncio.run(make_server(app, service).serve(sockets=[listener]))


def make_server(app: ASGIApp, service: DetectionService) -> uvicorn.Server:
    """Return the server of an application; :func:`run_server` runs it."""
    limits = service.limits
    config = uvicorn.Config(
        app,
        loop='asyncio',
        http=TimedConnection,
        ws='none',
        lifespan='off',
        log_config=None,
        log_level='error',
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_timeout,  # type: ignore[arg-type]  # the event loop takes floats
        timeout_graceful_shutdown=round(limits.timeout + 2 * limits.idle_timeout) + 1,
    )
    return _Server(config, service)


class _Server(uvicorn.Server):
    """A server that ends after a signal without raising it again.

    Args:
        config: The configuration.
        service: The service that the first signal stops.
    """

    def __init__(self, config: uvicorn.Config, service: DetectionService):
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the stop signals within the context, except those that the parent process ignores (``nohup``)."""
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in _STOP_SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) == signal.SIG_DFL:
                    handlers[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop the server; a second signal ends it at once."""
        if self.should_exit:
            logging.getLogger('uvicorn.error').setLevel(logging.CRITICAL)  # it reports each request that is dropped
            raise KeyboardInterrupt
        self.stop()
        line = (
            f'{signal.Signals(sig).name}: the server answers its requests and ends; a second signal ends it at once\n'
        )
        # Not a print: the signal may have interrupted one, and Python's streams cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(_STANDARD_ERROR, line.encode('ascii'))

    def stop(self) -> None:
        """Refuse new requests, answer those that have been taken, and end."""
        self._service.stop()
        self.should_exit = True
