"""Any served vision-language model as a judge: vLLM, SGLang, `transformers serve`, or another OpenAI-compatible server.

The chat is that of a local judge, the image is sent as PNG (so the server decodes nothing else), the answer is
generated at temperature 0. Log-probabilities, if the server returns them, become probabilities over the closed set of
answers (`read_log_probabilities`); otherwise `prompts.verdict.parse_answer` reads the text and scores are 0 or 1.
A row without a readable answer is NaN with a reason. Engines differ in preprocessing and precision: calibrate for each.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, get_args
from urllib.parse import urldefrag, urlsplit

import numpy as np

from judge.errors import ConfigError, MissingExtraError
from judge.inputs import check_prompts, validate_inputs
from judge.protocol import Scores, on_one_scale
from judge.readings import combine_readings, read_prompts
from prompts.quoting import quote, shorten
from prompts.reading import PromptMode, check_prompt_mode
from prompts.taxonomy import Taxonomy
from prompts.template import Chat, render

from .replies import (
    Constraint,
    NoAnswerError,
    RefusedRequestError,
    UnjudgedError,
    completion_request,
    data_url,
    reply_scores,
)

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray
    from openai import APIStatusError
    from PIL.Image import Image

_RETRIED = (408, 409, 429)
"""Statuses under 500 after which the client tries again."""


class RemoteJudge:
    """A classifier on an OpenAI-compatible chat server.

    Args:
        base_url: up to and including the version, such as `http://localhost:8000/v1`.
        model: its name on the server; None takes the only one served.
        template: one of `prompts.TEMPLATES`; for a tuned judge the one it was trained with.
        api_key: by default the environment's OPENAI_API_KEY, or `none`.
        timeout: seconds to wait for the server's next bytes before a try counts as failed.
        retries: further tries after a timeout, a lost connection, HTTP 408, 409, 429 or 5xx, with growing pauses or
            those that Retry-After asks for.
        concurrency: requests in flight at a time.
        name: what verdicts and reports call it; by default the model.
        constrain: restrict the server to the closed answers: `vllm` (0.12 or later) by `structured_outputs`,
            `sglang` by `regex`.
        prompt_mode: `max` asks about the image alone and with each window of its prompt, and takes the higher: a prompt
            can only add suspicion, at the price of a second request. `use` and `ignore` ask once.

    Raises:
        ConfigError: an invalid URL, key or number.
        MissingExtraError: the client library is not installed.
    """

    why_no_gradients: ClassVar[str] = "it answers over HTTP"

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        template: str = "policy_first",
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 8,
        name: str | None = None,
        constrain: Constraint = "none",
        prompt_mode: PromptMode = "max",
    ) -> None:
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        _check_options(base_url, key, timeout, retries, concurrency, constrain)
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError(
                "A remote judge needs openai: pip install 'arbiter-vision[remote]'."
            ) from error
        no_redirects = openai.DefaultHttpxClient(follow_redirects=False)  # images go to no other server
        # The client retries by itself, with exponential backoff.
        self._client = openai.OpenAI(
            base_url=base_url, api_key=key, timeout=timeout, max_retries=retries, http_client=no_redirects
        )
        self._asked_before = False
        self.base_url = base_url
        self.model, self.template = model, template
        self.timeout, self.retries = timeout, retries
        self.concurrency = concurrency
        self.constrain = constrain
        self.prompt_mode: PromptMode = check_prompt_mode(prompt_mode)
        self.name = name or model or base_url
        self._supports_logprobs = True  # until the server refuses a request for them

    def __enter__(self) -> "RemoteJudge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the judge cannot be used after."""
        self._client.close()

    def ping(self) -> tuple[str, ...]:
        """List the served models, and select the only one if none was named.

        Returns:
            Their names; empty where the server cannot list them but a model was named.

        Raises:
            ConfigError: no server, a wrong key or URL, or no model named where several are served.
        """
        import openai

        # Fewer retries than for rows: a missing server should show soon.
        models = self._client.with_options(max_retries=min(self.retries, 2)).models
        try:
            body = models.with_raw_response.list().http_response.text
        except openai.APIConnectionError as error:
            raise ConfigError(
                f"No server answers at {self.base_url}: {_cause(error)}. Start it, or correct the URL."
            ) from error
        except openai.APIStatusError as error:
            self._raise_config_error(error)
            if self.model is None:
                raise ConfigError(
                    f"{self.base_url} cannot list its models ({_error_text(error)}); "
                    "wait until it is ready, or name one."
                ) from error
            served: tuple[str, ...] = ()
        else:
            served = self._parse_models(body)
        if self.model is None:
            if len(served) != 1:
                names = f": {', '.join(served)}" if served else ""
                raise ConfigError(
                    f"{self.base_url} serves {len(served)} models{names}; name one, as in URL#model."
                )
            if self.name == self.base_url:
                self.name = served[0]
            self.model = served[0]
        self._asked_before = True
        return served

    def _parse_models(self, body: str) -> tuple[str, ...]:
        try:
            return tuple(str(entry["id"]) for entry in json.loads(body)["data"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{self.base_url} does not answer like an OpenAI-compatible server: {quote(shorten(body, 120))}. "
                "Give the URL up to and including /v1."
            ) from error

    @validate_inputs
    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images under a taxonomy of K categories, one request for each reading of an image.

        A category's score is the probability that the answer names it, as for a local judge. Categories that the
        server's log-probabilities leave open get their upper bound; if all are open, as after an uncertain safe, all
        are NaN and only P(unsafe) is known. A row without a readable answer is NaN, with the reason.

        Raises:
            ConfigError: at first use no server or no such model; at any time a refused key, or HTTP 404.
        """
        readings = read_prompts(check_prompts(len(images), prompts), self.prompt_mode)
        unsafe = np.full(len(readings), np.nan)
        categories = np.full((len(readings), len(taxonomy)), np.nan)
        reasons: list[str | None] = [None] * len(readings)
        unanswered = [False] * len(readings)
        if not images:
            return Scores(unsafe, categories, ())
        # Once: a wrong URL or model should stop the run, not fail row by row.
        if not self._asked_before:
            self.ping()
        with ThreadPoolExecutor(self.concurrency) as pool:
            rows = [
                pool.submit(
                    self._judge, images[row], render(taxonomy, text, template=self.template), taxonomy
                )
                for row, text in zip(readings.rows, readings.texts, strict=True)
            ]
            try:
                for row, future in enumerate(rows):
                    try:
                        unsafe[row], categories[row] = future.result()
                    except UnjudgedError as error:
                        reasons[row], unanswered[row] = str(error), isinstance(error, NoAnswerError)
            except BaseException:  # an interrupt as well: do not wait for the queued requests
                pool.shutdown(cancel_futures=True)
                raise
        silent = tuple(unanswered) if any(unanswered) else None
        scores = Scores(unsafe, categories, tuple(reasons), unanswered=silent)
        return combine_readings(on_one_scale(scores), readings)

    def _judge(self, image: "Image", chat: Chat, taxonomy: Taxonomy) -> "tuple[float, NDArray[np.float64]]":
        """P(unsafe), and (K,) probabilities of the categories.

        Raises:
            UnjudgedError: no readable answer.
        """
        reply = self._ask(chat, data_url(image))
        return reply_scores(reply, chat, taxonomy, self.template)

    def _ask(self, chat: Chat, image_url: str) -> str:
        """The body of the server's reply."""
        logprobs = self._supports_logprobs
        try:
            return self.complete(
                **completion_request(
                    chat, image_url, model=self.model, logprobs=logprobs, constrain=self.constrain
                )
            )
        except RefusedRequestError as error:
            if logprobs and error.status in (400, 422) and "logprob" in str(error):
                self._supports_logprobs = False
                return self._ask(chat, image_url)
            raise

    def complete(self, **request: Any) -> str:
        """The body of the server's reply to a chat completion with these arguments of the client.

        Raises:
            NoAnswerError: no reply after all tries.
            RefusedRequestError: the server refuses this one request.
            ConfigError: a refusal that concerns all requests: of the key, the address or the model.
        """
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(**request)
        except openai.APITimeoutError as error:
            raise NoAnswerError(
                f"the server gave no answer within {self.timeout:g} s ({self.retries + 1} tries)"
            ) from error
        except openai.APIConnectionError as error:
            raise NoAnswerError(f"the connection to the server failed: {_cause(error)}") from error
        except openai.APIStatusError as error:
            self._raise_config_error(error)
            what = f"the server refused the request: {_error_text(error)}"
            if error.status_code in _RETRIED or error.status_code >= 500:
                raise NoAnswerError(what) from error
            raise RefusedRequestError(what, error.status_code, str(error.code)) from error
        return response.http_response.text

    def _raise_config_error(self, error: "APIStatusError") -> None:
        """Raise a ConfigError for a response that concerns all rows and that no retry changes."""
        if error.status_code in (401, 403):
            raise ConfigError(
                f"{self.base_url} refuses the key ({_error_text(error)}); set OPENAI_API_KEY, or pass api_key."
            ) from error
        if error.status_code in (404, 405) or 300 <= error.status_code < 400:
            raise ConfigError(
                f"{self.base_url} has no such address or no model {self.model!r}, or redirects requests "
                f"({_error_text(error)}); give the URL up to and including /v1, and a name that GET /models lists."
            ) from error


def parse_remote(text: str, **options: Any) -> RemoteJudge:
    """`http://host:8000/v1#model` -> the judge served there; without `#model` the only one served.

    Raises:
        ConfigError: not such a URL.
    """
    url, model = urldefrag(text)
    return RemoteJudge(url, model or None, **options)


def load_remote(spec: str, *, template: str | None = None, batch_size: int = 8) -> RemoteJudge:
    """Called by `load_classifier` for a URL; `batch_size` requests are in flight at a time."""
    return parse_remote(spec, template=template or "policy_first", concurrency=batch_size)


def _error_text(error: "APIStatusError") -> str:
    """HTTP status and the server's message, on one line."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return f"HTTP {error.status_code}: {quote(shorten(str(body or ''), 200))}"


def _cause(error: BaseException) -> str:
    root = error.__cause__ or error
    return " ".join(str(root).split()) or type(root).__name__


def _check_options(
    base_url: str, key: str, timeout: float, retries: int, concurrency: int, constrain: str
) -> None:
    try:
        parts = urlsplit(base_url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"Not the URL of a server: {base_url!r}; write it like http://localhost:8000/v1.")
    if parts.username or parts.password:
        raise ConfigError("The URL holds a user name or password; set OPENAI_API_KEY, or pass api_key.")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("The API key holds characters that no HTTP header can; check OPENAI_API_KEY.")
    if not timeout > 0 or retries < 0 or concurrency < 1:
        raise ConfigError(
            f"timeout {timeout}, retries {retries}, concurrency {concurrency}: expected seconds above 0, "
            "retries from 0, and at least one request at a time."
        )
    if constrain not in get_args(Constraint):
        raise ConfigError(f"No constraint {constrain!r}; allowed: {', '.join(get_args(Constraint))}.")
