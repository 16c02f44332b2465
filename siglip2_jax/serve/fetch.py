"""Images from links: off unless hosts are allowed, and then from those alone.

A host's name is resolved once, every address that it has is checked, and the connection goes to a
checked one. So neither a name that points into the server's network nor one that changes between
check and use leads there.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

from siglip2_jax.serve.errors import ApiError, bad

_REDIRECTS = 3
_CHUNK = 1 << 16
_MOVED = (301, 302, 303, 307, 308)
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")

Resolve = Callable[[str], Sequence[str]]
Connect = Callable[[str, float], socket.socket]


def resolve(host: str) -> list[str]:
    """Addresses of a host."""
    return [str(x[4][0]) for x in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def connect(address: str, seconds: float) -> socket.socket:
    """Opens a connection to the HTTPS port of an address."""
    return socket.create_connection((address, 443), seconds)


def is_public(address: str) -> bool:
    """Tells if an address is one of the open internet, whatever it may stand for.

    IPv6 addresses that carry an IPv4 one (mapped, 6to4, Teredo, NAT64) are not.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip not in _PUBLIC_IPV6 or ip.sixtofour is not None or ip.teredo is not None
    ):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


class Fetcher:
    """Fetches images over HTTPS; called from threads.

    Attributes:
      hosts: the only ones that it asks, in lower case.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        max_bytes: int,
        seconds: float,
        *,
        resolve: Resolve = resolve,
        connect: Connect = connect,
        context: ssl.SSLContext | None = None,
    ):
        """Sets the limits.

        Args:
          hosts: that may be asked; none turns fetching off.
          max_bytes: of an image.
          seconds: for an image, with all redirects.
          resolve: gives the addresses of a host.
          connect: opens a connection to an address.
          context: which certificates are trusted.
        """
        self.hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._resolve, self._connect = resolve, connect
        self._context = context or ssl.create_default_context()

    def fetch(self, url: str, param: str) -> bytes:
        """Content of a link.

        Args:
          url: the link.
          param: part of the request, for errors.

        Raises:
          ApiError: it leads where this server does not go, fails, is too large or too slow.
        """
        end = time.monotonic() + self._seconds
        try:
            for _ in range(_REDIRECTS + 1):
                answer = self._get(url, param, end)
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
        except TimeoutError:
            raise _refusal("it takes too long", param) from None
        except (OSError, http.client.HTTPException, UnicodeError):
            raise _refusal("it cannot be fetched", param) from None
        raise _refusal(f"it redirects more than {_REDIRECTS} times", param)

    def _get(self, url: str, param: str, end: float) -> bytes | str:
        """The content, or where it has moved."""
        host, target = self._parse(url, param)
        addresses = self._resolve(host)
        if not addresses or not all(map(is_public, addresses)):
            raise _refusal("its host is not on the open internet", param)
        left = _left(end)
        with self._connect(addresses[0], left) as plain:
            plain.settimeout(left)
            with self._context.wrap_socket(plain, server_hostname=host) as secure:
                connection = http.client.HTTPConnection(host)
                connection.sock = secure
                headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
                connection.request("GET", target, headers=headers | {"Connection": "close"})
                with connection.getresponse() as response:
                    return self._read(response, secure, param, end)

    def _parse(self, url: str, param: str) -> tuple[str, str]:
        """Host and target of a link that may be followed."""
        if not self.hosts:
            raise bad(
                "this server fetches no links; send the image as base64", param, "links_not_allowed"
            )
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError:
            raise _refusal("it is no URL", param) from None
        if parts.scheme != "https" or parts.username is not None or port not in (None, 443):
            raise _refusal("expected https://, no user and no port", param)
        if host not in self.hosts:
            raise _refusal("its host is not one of those that this server asks", param)
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        if not target.isascii() or any(x <= " " or x == "\x7f" for x in target):
            raise _refusal("it holds characters that must be escaped", param)
        return host, target

    def _read(
        self, response: http.client.HTTPResponse, secure: socket.socket, param: str, end: float
    ) -> bytes | str:
        location = response.getheader("Location")
        if response.status in _MOVED and location:
            return location
        if response.status != 200:
            raise _refusal(f"its host answers with status {response.status}", param)
        parts, size = [], 0
        while chunk := response.read1(_CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > self._max_bytes:
                raise bad(
                    f"the image behind {param} has more than {self._max_bytes} bytes, the limit",
                    param,
                    "image_too_large",
                )
            secure.settimeout(_left(end))
        return b"".join(parts)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _refusal(reason: str, param: str) -> ApiError:
    return bad(f"the link in {param} is not followed: {reason}", param, "link_not_followed")
