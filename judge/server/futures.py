"""Between threads and the event loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def complete(
    future: "asyncio.Future[Any]", result: Any = None, *, error: BaseException | None = None
) -> None:
    """Give a future of the event loop its result or error, from another thread; one that was cancelled stays so."""

    def in_loop() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(in_loop)


async def in_daemon_thread(function: Callable[[], Result]) -> Result:
    """As `asyncio.to_thread`, in a thread that nobody waits for when the process ends."""
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            complete(future, function())
        except Exception as error:
            complete(future, error=error)

    threading.Thread(target=run, daemon=True).start()
    return await future


async def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Await some work that goes on if the caller is cancelled."""
    task = asyncio.ensure_future(work)
    # If nobody asks for its error any more, asyncio would log it.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
