"""API keys: who may ask. One of them, as a Bearer token, on everything but health checks and the page's own files."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from judge.errors import ConfigError

from .answers import json_answer
from .errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ENVIRONMENT = "ARBITER_API_KEYS"
SHORTEST_KEY = 16


class KeyCheck:
    """ASGI middleware: 401 for a request to `/v1` or `/metrics` without one of the keys, before its body is read.

    Args:
        app: what is guarded.
        keys: open everything.
        metrics_keys: open `/metrics` alone.
    """

    def __init__(self, app: "ASGIApp", keys: tuple[str, ...], metrics_keys: tuple[str, ...] = ()) -> None:
        self.app = app
        self._digests = [_digest(key) for key in keys]
        self._metrics_digests = [*self._digests, *map(_digest, metrics_keys)]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, or answer 401."""
        digests = self._accepted(scope["path"]) if scope["type"] == "http" else []
        if digests:
            problem = _problem(scope, digests)
            if problem is not None:
                headers = {**problem.headers, "www-authenticate": "Bearer"}
                await json_answer(problem.body, problem.status, headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _accepted(self, path: str) -> list[bytes]:
        """Digests of the keys for a path; none where it is open."""
        if path == "/metrics":
            return self._metrics_digests
        return self._digests if path == "/v1" or path.startswith("/v1/") else []


def read_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of a file, one a line (`#` starts a comment), and of `ARBITER_API_KEYS`, separated by commas or spaces.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key is too short to be a secret.
    """
    keys = environment.get(ENVIRONMENT, "").replace(",", " ").split()
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the API keys in {path}: {error}.") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"{path} holds no API key; write one a line.")
        keys += found
    for key in keys:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"An API key has at least {SHORTEST_KEY} characters of ASCII without spaces; "
                "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one."
            )
    return tuple(dict.fromkeys(keys))


def _problem(scope: "Scope", digests: list[bytes]) -> ApiError | None:
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, key = header.partition(b" ")
    if kind.lower() != b"bearer" or not key.strip():
        return ApiError(401, "missing_api_key", "Send one of this server's API keys as a Bearer token.")
    given = hashlib.sha256(key.strip()).digest()
    # Every key is compared, each in constant time: neither which one nor how much of it fits can be measured.
    found = [hmac.compare_digest(given, digest) for digest in digests]
    if any(found):
        return None
    return ApiError(401, "invalid_api_key", "This API key is not one of the server's.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
