"""Any served vision-language model as a judge: vLLM, SGLang, `transformers serve`, or whatever speaks OpenAI's chat.

The chat is the one a local judge reads, the image travels as PNG (the pixels judged are ours), the answer is sampled
at temperature 0. Where the server returns log-probabilities they become probabilities over the closed set of answers
(`read_log_probabilities`); elsewhere the text is read by `prompts.verdict.parse_answer` and scores are 0 or 1.
A row without a readable answer is NaN with a reason. Engines differ in preprocessing and precision: calibrate for each.
"""

import base64
import io
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from urllib.parse import urldefrag, urlsplit

import numpy as np

from judge.errors import ConfigError, MissingExtraError
from judge.protocol import Scores, on_one_scale
from judge.questions import check_prompts, validate_inputs
from prompts.quoting import quote, shorten
from prompts.taxonomy import Taxonomy
from prompts.template import Answer, Chat, render
from prompts.verdict import Verdict, parse_answer

from .log_probabilities import Step, read_log_probabilities

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray
    from openai import APIStatusError
    from PIL.Image import Image

Constraint = Literal["none", "vllm", "sglang"]
TOP_LOG_PROBABILITIES = 20
"""Alternatives asked for at each token: the most that OpenAI's API and a vLLM with default settings give."""
_REGEX_SIGNS = re.compile(r"([\\.^$*+?{}\[\]|()])")


class RemoteJudge:
    """A classifier behind an OpenAI-compatible chat server.

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
        constrain: let the server allow the closed answers only: `vllm` (0.12 or later) by `structured_outputs`,
            `sglang` by `regex`.

    Raises:
        ConfigError: a URL, key or number that cannot work.
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
    ) -> None:
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        _check_options(base_url, key, timeout, retries, concurrency, constrain)
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError(
                "A remote judge needs openai: pip install 'arbiter-vision[remote]'."
            ) from error
        named_only = openai.DefaultHttpxClient(follow_redirects=False)  # images go to no other server
        self._client = openai.OpenAI(
            base_url=base_url, api_key=key, timeout=timeout, max_retries=retries, http_client=named_only
        )
        self._asked_before = False
        self.base_url = base_url
        self.model, self.template = model, template
        self.timeout, self.retries = timeout, retries
        self.concurrency = concurrency
        self.constrain = constrain
        self.name = name or model or base_url
        self.gives_probabilities: bool | None = None
        """Whether the latest answer came with log-probabilities; None before the first."""
        self._takes_logprobs = True

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
        """Ask which models are served, and settle on one where none was named.

        Returns:
            Their names; empty where the server cannot list them but a model was named.

        Raises:
            ConfigError: nobody answers there, the key or the URL is wrong, or the model is not settled.
        """
        import openai

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
            served = self._listed(body)
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

    def _listed(self, body: str) -> tuple[str, ...]:
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
        """Judge B images under a taxonomy of K categories, one request each.

        `categories` come from the probability that the answer names each category, as for a local judge. Where the
        server's tokens leave some of them open, those count with the most that they can be; where they leave all of
        them open, as after a doubtful safe, all are NaN and the whole stands alone. A row without a readable answer is
        NaN throughout, with the reason.

        Raises:
            ConfigError: at first use no server, or no such model; at any time a refused key, or HTTP 404.
        """
        prompts = check_prompts(len(images), prompts)
        unsafe = np.full(len(images), np.nan)
        categories = np.full((len(images), len(taxonomy)), np.nan)
        reasons: list[str | None] = [None] * len(images)
        if not images:
            return Scores(unsafe, categories, ())
        if not self._asked_before:
            self.ping()
        chats = [render(taxonomy, prompt, template=self.template) for prompt in prompts]
        with ThreadPoolExecutor(self.concurrency) as pool:
            rows = [
                pool.submit(self._judge, image, chat, taxonomy)
                for image, chat in zip(images, chats, strict=True)
            ]
            try:
                for row, future in enumerate(rows):
                    try:
                        unsafe[row], categories[row] = future.result()
                    except _UnjudgedError as error:
                        reasons[row] = str(error)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return on_one_scale(Scores(unsafe, categories, tuple(reasons)))

    def _judge(self, image: "Image", chat: Chat, taxonomy: Taxonomy) -> "tuple[float, NDArray[np.float64]]":
        """P(unsafe), and (K,) probabilities of the categories.

        Raises:
            _UnjudgedError: no readable answer.
        """
        text, steps = _read_reply(self._ask(chat, data_url(image)))
        self.gives_probabilities = steps is not None
        verdict = parse_answer(text, taxonomy, self.template)
        if verdict.unsafe is None:
            raise _UnjudgedError(verdict.reason or "the answer could not be read")
        found = None if steps is None else read_log_probabilities(steps, chat.answers, len(taxonomy))
        if found is None or not _same_answer(found.answer, verdict, taxonomy):
            return verdict.unsafe, _from_text(verdict, taxonomy)
        known = ~np.isnan(found.categories)
        return found.unsafe, np.where(known | ~known.any(), found.categories, found.most)

    def _ask(self, chat: Chat, image_url: str) -> str:
        """The body of the server's reply."""
        import openai

        asked = self._takes_logprobs
        try:
            response = self._client.chat.completions.with_raw_response.create(
                **self._request(chat, image_url, logprobs=asked)
            )
        except openai.APITimeoutError as error:
            raise _UnjudgedError(
                f"the server gave no answer within {self.timeout:g} s ({self.retries + 1} tries)"
            ) from error
        except openai.APIConnectionError as error:
            raise _UnjudgedError(f"the connection to the server failed: {_cause(error)}") from error
        except openai.APIStatusError as error:
            self._raise_config_error(error)
            if asked and error.status_code in (400, 422) and "logprob" in _error_text(error):
                self._takes_logprobs = False
                return self._ask(chat, image_url)
            raise _UnjudgedError(f"the server refused the request: {_error_text(error)}") from error
        return response.http_response.text

    def _request(self, chat: Chat, image_url: str, *, logprobs: bool) -> dict[str, Any]:
        texts = [answer.text for answer in chat.answers]
        request: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(chat, image_url),
            "temperature": 0,
            "seed": 0,
            # A token holds at least a byte; the rest is for the end token and a leading space.
            "max_tokens": max(len(text.encode()) for text in texts) + 8,
        }
        if logprobs:
            request |= {"logprobs": True, "top_logprobs": TOP_LOG_PROBABILITIES}
        if self.constrain == "vllm":
            request["extra_body"] = {"structured_outputs": {"choice": texts}}
        elif self.constrain == "sglang":
            escaped = (_REGEX_SIGNS.sub(r"\\\1", text) for text in texts)
            request["extra_body"] = {"regex": f"({'|'.join(escaped)})"}
        return request

    def _raise_config_error(self, error: "APIStatusError") -> None:
        """Turn what no retry and no other row can mend into a ConfigError."""
        if error.status_code in (401, 403):
            raise ConfigError(
                f"{self.base_url} refuses the key ({_error_text(error)}); set OPENAI_API_KEY, or pass api_key."
            ) from error
        if error.status_code in (404, 405) or 300 <= error.status_code < 400:
            raise ConfigError(
                f"{self.base_url} knows no such address or no model {self.model!r}, or sends requests elsewhere "
                f"({_error_text(error)}); give the URL up to and including /v1, and a name that GET /models lists."
            ) from error


class _UnjudgedError(Exception):
    """Why one row has no score, on one line."""


def parse_remote(text: str, **options: Any) -> RemoteJudge:
    """`http://host:8000/v1#model` -> the judge served there; without `#model` the only one served.

    Raises:
        ConfigError: not such a URL.
    """
    url, model = urldefrag(text)
    return RemoteJudge(url, model or None, **options)


def load_remote(spec: str, *, template: str | None = None, batch_size: int = 8) -> RemoteJudge:
    """What `load_classifier` calls for a URL; `batch_size` requests are in flight at a time."""
    return parse_remote(spec, template=template or "policy_first", concurrency=batch_size)


def chat_messages(chat: Chat, image_url: str) -> list[dict[str, Any]]:
    """The chat in OpenAI's form, its image part replaced by `image_url`."""
    picture = {"type": "image_url", "image_url": {"url": image_url}}
    return [
        {
            "role": message["role"],
            "content": [picture if part["type"] == "image" else dict(part) for part in message["content"]],
        }
        for message in chat.messages
    ]


def data_url(image: "Image") -> str:
    """The RGB pixels, and nothing else that came with them, as a PNG data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _read_reply(body: str) -> tuple[str, list[Step] | None]:
    """The answer's text, and its tokens where the server gave usable log-probabilities."""
    try:
        choice = json.loads(body)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _UnjudgedError(
            f"the server's reply is no chat completion: {quote(shorten(body, 120))}"
        ) from error
    if refusal:
        raise _UnjudgedError(f"the model refused: {quote(shorten(str(refusal), 120))}")
    if finish in ("length", "content_filter"):
        cause = "was cut off" if finish == "length" else "was withheld by the server's content filter"
        raise _UnjudgedError(f"the answer {cause}: {quote(shorten(str(text or ''), 120))}")
    if not isinstance(text, str) or not text.strip():
        raise _UnjudgedError("the answer is empty")
    try:
        return text, [_read_step(entry) for entry in choice["logprobs"]["content"]] or None
    except (ValueError, LookupError, TypeError, AttributeError):
        return text, None


def _read_step(entry: dict[str, Any]) -> Step:
    token, chance = _read_pair(entry)
    others = [_read_pair(other) for other in entry["top_logprobs"]]
    if (token, chance) in others:
        others.remove((token, chance))
    return Step(token, chance, tuple(others))


def _read_pair(entry: dict[str, Any]) -> tuple[str, float]:
    token, chance = entry["token"], float(entry["logprob"])
    if not isinstance(token, str) or math.isnan(chance) or chance > 1e-3:
        raise ValueError("no log-probability")
    return token, chance


def _same_answer(answer: Answer, verdict: Verdict, taxonomy: Taxonomy) -> bool:
    """Whether the tokens followed are what the whole text says."""
    if not answer.unsafe or answer.category is None:
        return verdict.flagged == answer.unsafe
    return verdict.flagged is True and set(verdict.scores) == {taxonomy.names[answer.category]}


def _from_text(verdict: Verdict, taxonomy: Taxonomy) -> "NDArray[np.float64]":
    """1 for categories that the answer names and 0 for the others; NaN if it is a bare unsafe."""
    missing = 0.0 if verdict.scores else math.nan
    return np.array([verdict.scores.get(name, missing) for name in taxonomy.names])


def _error_text(error: "APIStatusError") -> str:
    """HTTP status and the server's own words, on one line."""
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
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
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
