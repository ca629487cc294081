"""Listening, and the end of it: after SIGTERM or Ctrl-C, what was accepted is answered, and nothing more accepted.

While the server drains it still listens: `/readyz` and new questions get 503, so that a load balancer turns elsewhere.
A second signal, or too much time, ends it at once.
"""

import socket
import time
from typing import TYPE_CHECKING

import uvicorn

from judge.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from .service import JudgeService

_IDLE_SECONDS = 75
"""After which a connection without a request is closed: longer than the minute for which load balancers keep theirs."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before anything is loaded.

    Raises:
        ConfigError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(1024)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}, port {port}: {error.strerror or error}. --port 0 takes a free one."
        ) from error
    return found


def run(app: "FastAPI", service: "JudgeService", listener: socket.socket) -> int:
    """Serve until a signal; returns when everything accepted was answered, or time was up.

    Returns:
        How many accepted images were not answered; 0 unless it was ended before.

    Raises:
        ArbiterError: the classifier could not be loaded.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on who the client is said to be
        lifespan="on",
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(service.settings.drain_seconds)),
    )
    server = _Server(config, service)
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
        listener.close()
    if service.failure is not None:
        raise service.failure
    return server.unanswered


class _Server(uvicorn.Server):
    """uvicorn's server, which ends in two steps: drain, then close."""

    def __init__(self, config: uvicorn.Config, service: "JudgeService") -> None:
        super().__init__(config)
        self._service = service
        self._ends_at: float | None = None
        self.unanswered = 0

    def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
        """The first signal drains, the second ends.

        uvicorn's own handler closes the listener at once, and raises the signal again at the end.
        """
        if self._ends_at is not None:
            self.should_exit = self.force_exit = True
        else:
            self._service.draining = True
            self._ends_at = time.monotonic() + self._service.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        service = self._service
        if service.failure is not None or (self._ends_at is not None and not service.pending):
            self.should_exit = True
        elif self._ends_at is not None and time.monotonic() > self._ends_at:
            self.should_exit = self.force_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close; by force where accepted questions are left."""
        if self.force_exit:
            self.unanswered = self._service.pending
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)
