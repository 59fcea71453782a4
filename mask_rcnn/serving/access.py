"""The requests that a server refuses by their headers and paths: other hosts and origins, and tricks with paths.

A page of another site can send requests to a server on the user's machine.  It cannot read the answers, because these
have no ``Access-Control`` headers, but it could occupy the model: requests that change or compute something must
come from the server's own page, or from a program that is not a browser.  A site whose name leads to the address of
this machine (DNS rebinding) would be the same origin for the browser; therefore the header ``Host`` must contain a name
of this server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from mask_rcnn.config.fields import describe_value
from mask_rcnn.serving.errors import RequestError

#: Names of the machine itself.
LOOPBACK_HOSTS = ('127.0.0.1', 'localhost', '::1')

#: Response headers of every answer.
SECURITY_HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(self), microphone=(), geolocation=()',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
}

_SAFE_METHODS = ('GET', 'HEAD')
_OWN_SITES = ('same-origin', 'none')  # none: the user has entered the address
_DEFAULT_PORTS = {'http': ':80', 'https': ':443'}
_ENCODED_SEPARATOR = re.compile(rb'%(?:2f|5c|00)', re.IGNORECASE)  # slash, backslash, NUL


class AccessRules:
    """The hosts and origins whose requests a server answers.

    Args:
        host: The address or name to which the server is bound.  For all addresses of the machine (``0.0.0.0``, ``::``),
            clients may name any of them.
        allowed: Other names of the server, such as that of a reverse proxy.
    """

    def __init__(self, host: str, allowed: Iterable[str] = ()):
        self._allowed = frozenset(map(_normalize, allowed))
        self._hosts = self._allowed | {_normalize(name) for name in (*LOOPBACK_HOSTS, host)}
        self._any_address = is_wildcard(host)

    def check(self, scope: Scope) -> None:
        """Check the request of an ASGI scope.

        Raises:
            RequestError: The request is refused.
        """
        raw_path = scope.get('raw_path') or scope['path'].encode()
        if _ENCODED_SEPARATOR.search(raw_path) or '\0' in scope['path']:
            raise RequestError(404, 'no such page')
        headers = Headers(scope=scope)
        host = headers.get('host', '')
        if not self._accepts_host(host):
            raise RequestError(
                403,
                f'the host {describe_value(host)} is not a name of this server; --allow-host allows other names',
            )
        if scope['method'] not in _SAFE_METHODS:
            self._check_origin(headers, host)

    def _accepts_host(self, header: str) -> bool:
        name = _host_name(header)
        return name in self._hosts or (self._any_address and _is_address(name))

    def _check_origin(self, headers: Headers, host: str) -> None:
        origin, site = headers.get('origin'), headers.get('sec-fetch-site', 'none')
        if origin is not None and not self._is_own(origin, host):
            raise RequestError(403, f'requests of pages of {describe_value(origin)} are refused')
        if site not in _OWN_SITES:
            raise RequestError(403, 'requests of pages of other sites are refused')

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
            name = parts.hostname or ''
        except ValueError:
            return False
        if parts.scheme not in _DEFAULT_PORTS or not name:
            return False
        place = parts.netloc.removesuffix(_DEFAULT_PORTS[parts.scheme])
        return place == host.lower().removesuffix(_DEFAULT_PORTS[parts.scheme]) or _normalize(name) in self._allowed


def is_wildcard(host: str) -> bool:
    """Return whether a host is that of all addresses of the machine."""
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine reach a host."""
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else _normalize(host) == 'localhost'


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_name(header: str) -> str:
    """Return the name in a ``Host`` header without the port, as :func:`_normalize` does; empty if it is malformed."""
    match = re.fullmatch(r'(\[[^\[\]]+\]|[^\[\]:]+)(?::\d*)?', header)
    return _normalize(match[1]) if match else ''


def _normalize(name: str) -> str:
    """Return a name in lower case, without brackets and the final dot; an address in its usual form."""
    name = name.strip().lower().removeprefix('[').removesuffix(']').removesuffix('.')
    return str(ipaddress.ip_address(name)) if _is_address(name) else name
