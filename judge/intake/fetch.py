"""Images at web addresses, from hosts that the operator names. Off without such a list.

A server that fetches what a stranger names can be made to ask its own network (server-side request forgery). So:

- One strict reading of the address. What it finds is what is checked and what is requested; no second parser sees the
  text. User names, addresses in place of host names, backslashes and everything outside of ASCII are refused.
- The host is on the list, exactly or by its ending; the port is the scheme's own or on a list.
- The name is resolved once, by us. If *any* of its addresses is not a public one, nothing is connected to; otherwise
  the connection goes to one of these addresses, whatever the name resolves to later. TLS is verified for the name.
- No redirects, no proxies of the environment, no cookies, no decompression; a limit on bytes and one on the whole time.
- Callers learn that it failed. What failed goes to the log, since it would describe the network behind the server.

An egress firewall should stand behind all this, as behind every server that fetches.
"""

import asyncio
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

import httpcore2

from judge.errors import ConfigError, ImageError, first_line

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port -> all its addresses, as text."""

SECONDS = 5.0
"""By the clock, from the look-up of the name to the last byte."""
MAX_URL = 2048
MAX_ADDRESSES = 3
"""How many addresses of a host are tried."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The last label has a letter in front: all ways to write an address as a number end in a number.
_HOST = rf"(?:{_LABEL}\.)+(?=[a-z]){_LABEL}"
# RFC 3986: unreserved, sub-delims, ":" and "@", and whole percent-encodings.
_CHARACTER = r"[A-Za-z0-9._~!$&'()*+,;=:@/{}-]|%[0-9A-Fa-f]{{2}}"
_PATH, _QUERY = (f"(?:{_CHARACTER.format(more)})*" for more in ("", "?"))
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<target>(?:/{_PATH})?(?:\?{_QUERY})?)(?:#[!-~]*)?",
    re.IGNORECASE,
)
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # of the IETF
            "192.88.99.0/24",  # 6to4 relays
            "2001::/23",  # of the IETF; Teredo holds an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4 holds an IPv4 address
            "3fff::/20",
        ),
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_HEADERS = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "arbiter")]
_log = logging.getLogger(__name__)


class ImageFetcher:
    """Fetches images from allowed hosts; to be used from one event loop."""

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        seconds: float = SECONDS,
        connections: int = 8,
        ports: Sequence[int] = (),
        resolve: Resolve | None = None,
        may_connect: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            hosts: "images.example.com" for this host, ".example.com" for all hosts below. None at all: nothing is
                ever fetched.
            max_bytes: largest image.
            seconds: for a whole image, by the clock; waiting for a free connection counts.
            connections: images that are fetched at a time.
            ports: allowed beside 80 for http and 443 for https.
            resolve: name and port -> addresses; the system's resolver if None.
            may_connect: whether an address may be connected to; `is_public` if None.
            tls: the system's certificate authorities if None.

        Raises:
            ConfigError: an entry of `hosts` that is no host name.
        """
        self.hosts = tuple(_host_entry(host) for host in hosts)
        self._max_bytes, self._seconds, self._ports = max_bytes, seconds, tuple(ports)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=connections,
            max_keepalive_connections=0,  # each image is resolved and checked anew
            network_backend=_PinnedBackend(resolve or _resolve, may_connect or is_public),
        )

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an address; whether they are an image is not looked at.

        Raises:
            ImageError: `url_refused`: an address that is not allowed, whatever answers there;
                `url_failed`: nothing usable came from it in time, or its host is not a public one;
                `too_large`: more than `max_bytes`.
        """
        address = self._allowed(url)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._request(address)
        except ImageError:
            raise
        except Exception as error:  # on malformed answers, libraries raise errors of any class
            _log.warning("image from %s: %s: %s", address.host, type(error).__name__, first_line(error))
            # Nothing more: what is open behind this server is nobody's business.
            raise ImageError("url_failed", "the image could not be fetched") from None

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    def _allowed(self, url: str) -> "_Address":
        if not self.hosts:
            raise ImageError(
                "url_refused", "this server fetches no images; send the image itself, as a data URL"
            )
        address = read_url(url)
        if not any(
            address.host == host or (host[0] == "." and address.host.endswith(host)) for host in self.hosts
        ):
            raise ImageError(
                "url_refused", "images from this host are not allowed here; send the image itself"
            )
        if address.port not in (_PORTS[address.scheme], *self._ports):
            raise ImageError("url_refused", f"port {address.port} is not allowed here")
        return address

    async def _request(self, address: "_Address") -> bytes:
        url = httpcore2.URL(
            scheme=address.scheme, host=address.host, port=address.port, target=address.target
        )
        async with self._pool.stream("GET", url, headers=_HEADERS) as response:
            if response.status != 200:
                raise _NotUsableError(f"status {response.status}")
            encoding = b",".join(
                value for name, value in response.headers if name.lower() == b"content-encoding"
            )
            if encoding.strip().lower() not in (b"", b"identity"):
                raise _NotUsableError(f"content encoding {encoding[:40]!r}")
            body = bytearray()
            async for part in response.aiter_stream():
                body += part
                # Counted here, as Content-Length may say anything.
                if len(body) > self._max_bytes:
                    raise ImageError("too_large", f"more than {self._max_bytes:,} bytes")
            return bytes(body)


class _NotUsableError(Exception):
    """An answer or an address that is not what it should be; goes to the log."""


class _Address(NamedTuple):
    scheme: str
    host: str
    """In lower case."""
    port: int
    target: str
    """Path and query."""


_PORTS = {"http": 80, "https": 443}


def read_url(url: str) -> _Address:
    """The parts of an http(s) address, by a grammar that leaves nothing to interpret.

    Raises:
        ImageError: `url_refused`.
    """
    found = _URL.fullmatch(url) if len(url) <= MAX_URL and url.isascii() else None
    if found is None:
        raise ImageError(
            "url_refused",
            f"not a plain http(s) address of at most {MAX_URL} characters: https://HOST/PATH, the host as a name "
            "in ASCII, without a user",
        )
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"]) if found["port"] else _PORTS[scheme]
    target = found["target"]
    return _Address(scheme, host, port, target if target.startswith("/") else f"/{target}")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and holds no other address inside."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # with a zone, such as fe80::1%eth0, or no address
        return False
    if found.version == 6 and found not in _GLOBAL_UNICAST:
        return False  # mapped and compatible IPv4, NAT64, unique local, link-local, multicast ...
    special = any(found.version == network.version and found in network for network in _NOT_PUBLIC)
    return found.is_global and not found.is_multicast and not special


def _host_entry(text: str) -> str:
    host = text.strip().lower()
    if not re.fullmatch(rf"\.?{_HOST}", host) and not re.fullmatch(rf"\.{_LABEL}", host):
        raise ConfigError(
            f"{text!r} is no host to fetch images from; write images.example.com, or .example.com for all hosts below."
        )
    return host


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(where[0]) for *_, where in found]


class _PinnedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only; the name of the host stays what TLS verifies."""

    def __init__(self, resolve: Resolve, may_connect: Callable[[str], bool]) -> None:
        self._resolve, self._may_connect = resolve, may_connect
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        addresses = list(dict.fromkeys(await self._resolve(host, port)))
        refused = [address for address in addresses if not self._may_connect(address)]
        if refused or not addresses:
            raise _NotUsableError(f"resolves to {refused or 'nothing'}")
        failed: Exception = _NotUsableError("no address")
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._network.connect_tcp(address, port, *args, **options)
            except httpcore2.ConnectError as error:
                failed = error
        raise failed

    async def connect_unix_socket(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        raise _NotUsableError("no sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)
