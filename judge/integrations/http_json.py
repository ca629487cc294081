"""JSON over HTTP to one server: pooled connections, limits of time, and patience only where asking again is harmless.

Redirects are not followed, so images and keys go to the server that was named and to no other. No message of an error
holds a header or a key.
"""

import math
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from judge.errors import ConfigError
from prompts.errors import ArbiterError
from prompts.printable import printable
from prompts.quoting import shorten

if TYPE_CHECKING:
    from types import TracebackType

    import httpx2

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may change."""
_FIRST_WAIT = 0.5
"""Seconds between the first two tries; each further wait is twice as long."""
_LONGEST_WAIT = 30.0
"""Seconds between two tries, at most; a server that asks for more is asked again after these."""
_HEADER = re.compile(r"[\x21-\x7e]+")


class NoAnswerError(ArbiterError, ConnectionError):
    """A server gave no answer; the same request may be answered later."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent
        """Whether the request may have arrived, so that what it asks for may have been done."""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    data: Any
    """The JSON of the body; None where it is none."""
    problem: str
    """`HTTP 404: Not found`, for people, on one printable line."""
    wait: float | None = None
    """Seconds that the server asks to wait, where it does."""

    @property
    def passing(self) -> bool:
        """Whether the same request may be answered otherwise later."""
        return self.status in PASSING


class HttpJson:
    """Sends JSON and reads JSON; threads may share one.

    Args:
        url: of the server, with a path where it stands below one; no query and no password.
        name: of the server in messages, such as `Label Studio`.
        key_name: of the environment variable that holds its key, for messages.
        timeout: seconds for connecting, and for each wait for the next bytes.
        connections: open at a time; more callers wait for one.
        secrets: texts that may stand in no message, whatever the server says.

    Raises:
        ConfigError: no such URL.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        key_name: str,
        timeout: float = 30.0,
        connections: int = 16,
        secrets: tuple[str, ...] = (),
    ) -> None:
        import httpx2

        self.url, self.name, self.key_name = check_url(url), name, key_name
        self.secrets = list(secrets)
        if not 0 < timeout < math.inf or connections < 1:
            raise ConfigError(
                f"timeout {timeout}, connections {connections}: seconds above 0, and at least one."
            )
        self.timeout = timeout
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; nothing can be asked after."""
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        data: Any = None,
    ) -> Answer:
        """One request, sent once; whatever status it is answered with is returned.

        Raises:
            NoAnswerError: no answer in time, or the connection failed.
        """
        import httpx2

        try:
            response = self._client.request(
                method, self.url + path, params=params, json=data, headers=dict(headers)
            )
        except httpx2.HTTPError as error:
            sent = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            if isinstance(error, httpx2.TimeoutException):
                raise NoAnswerError(
                    f"{self.name} at {self.url} gave no answer in {self.timeout:g} s.", sent=sent
                ) from error
            why = printable(shorten(self._without_secrets(str(error)), 200)) or type(error).__name__
            raise NoAnswerError(f"No connection to {self.name} at {self.url}: {why}.", sent=sent) from error
        return self._read(response)

    def _read(self, response: "httpx2.Response") -> Answer:
        try:
            data = response.json()
        except (ValueError, RecursionError):
            data = None
        said = " ".join(self._without_secrets(_message(data) or response.text).split())
        problem = f"HTTP {response.status_code}: {printable(shorten(said, 200)) or 'no text'}"
        return Answer(response.status_code, data, problem, _seconds(response.headers.get("retry-after")))

    def check(self, answer: Answer, path: str) -> Answer:
        """The answer itself, if another question could get another one.

        Raises:
            ConfigError: a refused key, a redirect, or an address that the server does not know.
        """
        where, problem = f"{self.name} at {self.url}", answer.problem
        if answer.status in (401, 403):
            raise ConfigError(f"{where} refuses the key ({problem}); set {self.key_name}.")
        if answer.status in (404, 405):
            raise ConfigError(f"{where} does not know {path} ({problem}); check the address.")
        if 300 <= answer.status < 400:
            raise ConfigError(f"{self.url} sends requests elsewhere; give the URL of {self.name} itself.")
        return answer

    def _without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


@dataclass
class Pause:
    """The wait after a try that failed."""

    seconds: float
    """Set it to what the server asks for."""


def pauses(patience: float) -> Iterator[Pause]:
    """One for each try: the first at once, the others after longer and longer waits, `patience` seconds in all."""
    end, wait = time.monotonic() + patience, _FIRST_WAIT
    while True:
        # Many clients that failed together should not come back together.
        pause = Pause(wait * random.uniform(0.5, 1.0))
        yield pause
        seconds = min(pause.seconds, _LONGEST_WAIT)
        if time.monotonic() + seconds > end:
            return
        time.sleep(seconds)
        wait = min(2 * wait, _LONGEST_WAIT)


def check_url(url: str) -> str:
    """The URL of a server, without the slash at its end.

    Raises:
        ConfigError: it is none, or holds a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"[\s\x00-\x1f]", url):
        raise ConfigError(f"Not the URL of a server: {url!r}; write it like http://localhost:8080.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("Give the URL of a server without password, ? and #; keys go into the environment.")
    return url.rstrip("/")


def check_key(key: str, name: str) -> str:
    """A key that can stand in an HTTP header.

    Raises:
        ConfigError: it cannot; the key is not in the message.
    """
    if not _HEADER.fullmatch(key):
        raise ConfigError(f"{name} holds characters that no HTTP header can, such as a space; check it.")
    return key


def _message(data: Any) -> str:
    """The text of an error in the forms that servers use: `{"error": {"message"}}`, `{"detail"}`, a list of texts."""
    for key in ("error", "detail", "message", "validation_errors"):
        if isinstance(data, dict) and data.get(key):
            data = data[key]
    return str(data) if isinstance(data, str | list) else ""


def _seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds; a date, which few servers send, is not read."""
    return float(text) if text is not None and re.fullmatch(r"\d{1,6}", text.strip()) else None
