"""Errors as HTTP answers, in the form that clients of OpenAI read: `{"error": {message, type, param, code}}`.

The `openai` client tries 408, 409, 429 and every 5xx again, twice. So nothing that is wrong with an image or a request
has one of these: only what another try can change.
"""

import math
from typing import Any

from judge.errors import ImageError

IMAGE_STATUS_CODES = {
    "too_large": 413,
    "not_an_image": 415,
    "unsupported_format": 415,
    "url_refused": 400,
    "url_failed": 400,
}
"""HTTP status of an image error, by its status; 422 for all others."""


class ApiError(Exception):
    """An answer that is no verdict."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status."""
        self.code = code
        """What went wrong, for programs: `image_required`, `unjudged`, `queue_full`, ..."""
        self.message = message
        """What went wrong, for people: what was got, what is allowed, what to do."""
        self.param = param
        """Which part of the request, such as `input[3]`."""
        self.retry_after = retry_after
        """Seconds after which another try makes sense; None where it does not."""

    @property
    def kind(self) -> str:
        """`error.type` of the body."""
        if self.status >= 500:
            return "server_error"
        return "rate_limit_error" if self.status == 429 else "invalid_request_error"

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """`retry-after` in whole seconds, at least 1."""
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class OverloadedError(ApiError):
    """The queue is full; nothing of the request was judged."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(429, "queue_full", message, retry_after=retry_after)


class DrainingError(ApiError):
    """The server is shutting down, and answers only what it has accepted."""

    def __init__(self) -> None:
        super().__init__(503, "draining", "The server is shutting down; ask again.", retry_after=5)


class LoadingError(ApiError):
    """The classifier is not loaded yet."""

    def __init__(self) -> None:
        super().__init__(503, "loading", "The classifier is being loaded; ask again.", retry_after=2)


class RecordsUnavailableError(ApiError):
    """The database or the folder of images cannot be used now; what is judged without them goes on."""

    def __init__(self) -> None:
        # Nothing of the reason: it names hosts and files of this machine.
        message = "The server's database cannot be used now; its log says why."
        super().__init__(503, "records_unavailable", message, retry_after=5)


def image_problem(error: ImageError, param: str | None = None) -> ApiError:
    """The answer about an image that could not be opened."""
    return ApiError(IMAGE_STATUS_CODES.get(error.status, 422), error.status, str(error), param=param)


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request has another form than it should."""
    return ApiError(400, code, message, param=param)
