"""What routes have in common when they answer: JSON written once, and no work for a client that went away."""

import asyncio
import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Response

from .errors import ApiError

if TYPE_CHECKING:
    from fastapi import Request

CLIENT_GONE = 499
"""Status of a request whose client went away, for the metrics: nobody reads it."""

Result = TypeVar("Result")


def json_answer(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of plain data; NaN in it is a mistake of ours, and an error."""
    return Response(json.dumps(data, allow_nan=False), status, headers, "application/json")


async def unless_gone(request: "Request", work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled when the client closes its connection.

    The body has to be read before: what arrives after it is only the end of the connection.

    Raises:
        ApiError: 499, which nobody reads.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_GONE, "client_gone", "The client closed its connection.")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: "Request") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
