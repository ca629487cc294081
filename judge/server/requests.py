"""Every request: its id, how it is counted, and 500 in JSON for what nobody caught."""

import logging
import re
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.requests import ClientDisconnect

from .answers import CLIENT_GONE, json_answer
from .errors import ApiError
from .metrics import OTHER, Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("arbiter")
_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,100}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})


class Requests:
    """ASGI middleware, the outermost one: `x-request-id` on every answer, the caller's own where it is a plain word."""

    def __init__(self, app: "ASGIApp", metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer the request with its id, and an exception that nobody caught with 500."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        name = given if _PLAIN.fullmatch(given) else f"req_{uuid4().hex}".encode()
        extra = [(b"x-request-id", name), (b"x-content-type-options", b"nosniff")]

        async def with_id(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            await self.app(scope, receive, with_id)
        except ClientDisconnect:  # in the middle of its body: there is nobody to answer
            status = CLIENT_GONE
        except Exception:
            LOG.exception("request %s failed", name.decode())
            if status:
                raise
            problem = ApiError(
                500, "internal_error", f"Something went wrong; see the log for {name.decode()}."
            )
            await json_answer(problem.body, problem.status)(scope, receive, with_id)
        finally:
            route = getattr(scope.get("route"), "path", None) or OTHER
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._metrics.answered(route, method, status, time.perf_counter() - started)
