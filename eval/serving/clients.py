"""Clients of a server in a process of their own, so that they do not share an interpreter with what they measure."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from .asked import HOST

PATIENCE = 60.0
"""Seconds after which an answer counts as lost."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Clients:
    """A process that runs `closed_loop`, `open_loop` and `besiege`."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve_jobs, args=(there,), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    def run(self, job: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        """What one of the three returns, run in the process.

        Raises:
            RuntimeError: it failed.
        """
        self._connection.send((job.__name__, arguments))
        found: dict[str, Any] = self._connection.recv()
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


@contextmanager
def client_process() -> Iterator[Clients]:
    """`Clients`, ended afterwards."""
    clients = Clients()
    try:
        yield clients
    finally:
        clients.close()


def _serve_jobs(connection: Connection) -> None:
    jobs = {job.__name__: job for job in (closed_loop, open_loop, besiege)}
    while True:
        name, arguments = connection.recv()
        try:
            connection.send(asyncio.run(jobs[name](**arguments)))
        except Exception as error:
            connection.send({"error": repr(error)})


async def exchange(streams: Streams, data: bytes) -> tuple[int, bytes]:
    """Send a request over a connection; the status and body of its answer."""
    reader, writer = streams
    writer.write(data)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Each client sends its next request when it has the answer to the last."""
    answers, end = 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal answers
        streams = await asyncio.open_connection(HOST, port)
        while time.perf_counter() < end:
            number += 1
            status, _ = await asyncio.wait_for(exchange(streams, requests[number % len(requests)]), PATIENCE)
            if status != 200:
                raise RuntimeError(f"HTTP {status}")
            answers += 1
        streams[1].close()

    started = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    return {"answers": answers, "seconds": time.perf_counter() - started}


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Requests at random times, whatever became of earlier ones; seconds from when each was due to its answer."""
    rng, taken = random.Random(0), list[float]()
    idle: list[Streams] = []

    async def ask(due: float, number: int) -> None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        streams = idle.pop() if idle else await asyncio.open_connection(HOST, port)
        status, _ = await asyncio.wait_for(exchange(streams, requests[number % len(requests)]), PATIENCE)
        if status != 200:
            raise RuntimeError(f"HTTP {status}")
        taken.append(time.perf_counter() - due)
        idle.append(streams)

    due, tasks = time.perf_counter() + 0.1, list[asyncio.Task[None]]()
    end = due + seconds
    while due < end:
        tasks.append(asyncio.ensure_future(ask(due, len(tasks))))
        due += rng.expovariate(rate)
    await asyncio.gather(*tasks)
    return {"taken": taken}


async def besiege(
    port: int, requests: list[bytes], hostile: list[bytes], clients: int, seconds: float, share: float
) -> dict[str, Any]:
    """As `closed_loop`, with a share of hostile requests, each on a connection that is closed after it."""
    statuses: Counter[str] = Counter()
    end, rng = time.perf_counter() + seconds, random.Random(1)

    async def client() -> None:
        streams = await asyncio.open_connection(HOST, port)
        while time.perf_counter() < end:
            if rng.random() < share:
                await attack(rng.choice(hostile))
                continue
            try:
                status, body = await asyncio.wait_for(exchange(streams, rng.choice(requests)), PATIENCE)
                statuses["lost" if status == 200 and b'"verdicts"' not in body else str(status)] += 1
            except (OSError, EOFError, TimeoutError):
                statuses["lost"] += 1
                streams = await asyncio.open_connection(HOST, port)
        streams[1].close()

    async def attack(data: bytes) -> None:
        streams = await asyncio.open_connection(HOST, port)
        patience = 0.05 if len(data) < 1000 or rng.random() < 0.2 else PATIENCE
        try:
            status, _ = await asyncio.wait_for(exchange(streams, data), patience)
            statuses[f"hostile {status}"] += 1
        except TimeoutError:
            statuses["went away"] += 1
        except (OSError, EOFError):
            statuses["hostile, closed"] += 1
        finally:
            streams[1].close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return dict(statuses)
