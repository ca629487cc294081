"""How much of requests' bodies is held in memory: a limit for each, and one for all of them together."""

from typing import TYPE_CHECKING

from .answers import json_answer
from .errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: 413 for a body that is too large, 429 where all bodies together would be.

    A body whose length is announced is refused before it is read. One that grows beyond the limits on the way makes
    `receive` raise an `ApiError` in the route that reads it.
    """

    def __init__(self, app: "ASGIApp", max_bytes: int, max_total: int) -> None:
        self.app = app
        self.held = 0
        """Bytes of bodies of requests that are not answered yet."""
        self._max_bytes, self._max_total = max_bytes, max_total

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, counting its bytes, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        problem = self._problem(int(announced) if announced.isdigit() else 0, 0)
        if problem is not None:
            await json_answer(problem.body, problem.status, problem.headers)(scope, receive, send)
            return
        received = 0

        async def counted() -> "Message":
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            found = self._problem(received + size, received)
            if found is not None:
                raise found
            received += size
            self.held += size
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= received

    def _problem(self, size: int, counted: int) -> ApiError | None:
        """What is wrong with a body of `size` bytes, of which `counted` are in `held`."""
        if size > self._max_bytes:
            return ApiError(413, "body_too_large", f"The body has more than {self._max_bytes:,} bytes.")
        if self.held - counted + size > self._max_total:
            return ApiError(
                429, "busy", "The server holds too many bytes of other requests; ask again.", retry_after=1
            )
        return None
