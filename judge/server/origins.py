"""Requests that another web site makes a moderator's browser send.

A browser sends forms and simple requests anywhere, to a server on this machine too. So a request that names the site
it comes from (`Origin`) has to come from this server's own page. A name that a stranger points to 127.0.0.1 (DNS
rebinding) would pass as our own; so a server that is open to its machine alone also has to be asked by a name of it.
"""

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .answers import json_answer
from .errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OriginCheck:
    """ASGI middleware: 403 for requests of other sites, and with `local_only` for other names than this machine's."""

    def __init__(self, app: "ASGIApp", local_only: bool) -> None:
        self.app = app
        self._local_only = local_only

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, or answer 403."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await json_answer(problem.body, problem.status)(scope, receive, send)

    def _problem(self, scope: "Scope") -> ApiError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._local_only and not is_local(_name(f"//{host}")):
            return ApiError(
                403, "wrong_host", "This server is for its own machine; ask it as 127.0.0.1 or localhost."
            )
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return ApiError(
                403,
                "wrong_origin",
                "This request comes from another web site. (A proxy in front has to keep the Host header.)",
            )
        return None


def is_local(name: str) -> bool:
    """Whether a host's name or address means this machine alone."""
    if name.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name(address: str) -> str:
    """The host of an address; empty where it is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
