"""Requests to a chat server and its replies, without the network: messages, images, answers and their tokens."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prompts.quoting import quote, shorten
from prompts.taxonomy import Taxonomy
from prompts.template import Answer, Chat
from prompts.verdict import Verdict, parse_answer

from .log_probabilities import Step, read_log_probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

Constraint = Literal["none", "vllm", "sglang"]
TOP_LOG_PROBABILITIES = 20
"""Alternatives requested for each token: the most that OpenAI's API and a vLLM with default settings give."""
_REGEX_SIGNS = re.compile(r"([\\.^$*+?{}\[\]|()])")


class UnjudgedError(Exception):
    """Why one row has no score, on one line."""


class NoAnswerError(UnjudgedError):
    """The server gave no answer, after all tries; it may give one later."""


class RefusedRequestError(UnjudgedError):
    """The server refused one request, with an HTTP status and perhaps a code of its own."""

    def __init__(self, reason: str, status: int, code: str) -> None:
        super().__init__(reason)
        self.status, self.code = status, code


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
    """The RGB pixels, without metadata, as a PNG data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image.convert("RGB"))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def completion_request(
    chat: Chat, image_url: str, *, model: str | None, logprobs: bool, constrain: Constraint
) -> dict[str, Any]:
    """Arguments of the client's `chat.completions.create`, at temperature 0."""
    texts = [answer.text for answer in chat.answers]
    request: dict[str, Any] = {
        "model": model,
        "messages": chat_messages(chat, image_url),
        "temperature": 0,
        "seed": 0,
        # A token covers at least one byte; the rest is for the end token and a leading space.
        "max_tokens": max(len(text.encode()) for text in texts) + 8,
    }
    if logprobs:
        request |= {"logprobs": True, "top_logprobs": TOP_LOG_PROBABILITIES}
    if constrain == "vllm":
        request["extra_body"] = {"structured_outputs": {"choice": texts}}
    elif constrain == "sglang":
        escaped = (_REGEX_SIGNS.sub(r"\\\1", text) for text in texts)
        request["extra_body"] = {"regex": f"({'|'.join(escaped)})"}
    return request


def reply_scores(
    body: str, chat: Chat, taxonomy: Taxonomy, template: str
) -> "tuple[float, NDArray[np.float64]]":
    """Scores from the body of a chat completion.

    Args:
        body: JSON as the server sent it.
        chat: the question, with its closed answers.
        taxonomy: of K categories.
        template: that of the chat.

    Returns:
        P(unsafe), and (K,) probabilities of the categories.

    Raises:
        UnjudgedError: no readable answer.
    """
    text, steps = _read_reply(body)
    verdict = parse_answer(text, taxonomy, template)
    if verdict.unsafe is None:
        raise UnjudgedError(verdict.reason or "the answer could not be read")
    found = None if steps is None else read_log_probabilities(steps, chat.answers, len(taxonomy))
    # Where tokens and text disagree (two categories in one answer, say), the text decides.
    if found is None or not _same_answer(found.answer, verdict, taxonomy):
        return verdict.unsafe, _from_text(verdict, taxonomy)
    known = ~np.isnan(found.categories)
    # Open categories count with their upper bound, unless all are open.
    categories = np.where(known | ~known.any(), found.categories, found.upper_bounds)
    return found.unsafe, categories


@dataclass(frozen=True)
class Choice:
    """What a chat completion holds, as the server sent it."""

    text: Any
    """The message's text; a string, or anything else where the server is none."""
    refusal: Any
    """The refusal of a model that was taught to give one; else None."""
    finish: Any
    """Why the answer ends: `stop`, `length`, `content_filter`."""
    data: Mapping[str, Any]
    """The whole choice."""


def read_choice(body: str) -> Choice:
    """The first choice of a chat completion.

    Raises:
        UnjudgedError: the body is none.
    """
    try:
        choice = json.loads(body)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        return Choice(message.get("content"), message.get("refusal"), finish, choice)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnjudgedError(
            f"the server's reply is no chat completion: {quote(shorten(body, 120))}"
        ) from error


def _read_reply(body: str) -> tuple[str, list[Step] | None]:
    """The answer's text, and its tokens if the server gave usable log-probabilities."""
    choice = read_choice(body)
    text, refusal, finish = choice.text, choice.refusal, choice.finish
    if refusal:
        raise UnjudgedError(f"the model refused: {quote(shorten(str(refusal), 120))}")
    if finish in ("length", "content_filter"):
        cause = "was cut off" if finish == "length" else "was withheld by the server's content filter"
        raise UnjudgedError(f"the answer {cause}: {quote(shorten(str(text or ''), 120))}")
    if not isinstance(text, str) or not text.strip():
        raise UnjudgedError("the answer is empty")
    try:
        return text, [_read_step(entry) for entry in choice.data["logprobs"]["content"]] or None
    except (ValueError, LookupError, TypeError, AttributeError):
        return text, None


def _read_step(entry: dict[str, Any]) -> Step:
    token, log_probability = _read_pair(entry)
    others = [_read_pair(other) for other in entry["top_logprobs"]]  # most servers list the token itself too
    if (token, log_probability) in others:
        others.remove((token, log_probability))
    return Step(token, log_probability, tuple(others))


def _read_pair(entry: dict[str, Any]) -> tuple[str, float]:
    token, log_probability = entry["token"], float(entry["logprob"])
    # Rounding may lift the log-probability of a certain token above 0.
    if not isinstance(token, str) or math.isnan(log_probability) or log_probability > 1e-3:
        raise ValueError("no log-probability")
    return token, log_probability


def _same_answer(answer: Answer, verdict: Verdict, taxonomy: Taxonomy) -> bool:
    """Whether the answer found along the tokens is that of the text."""
    if not answer.unsafe or answer.category is None:
        return verdict.flagged == answer.unsafe
    return verdict.flagged is True and set(verdict.scores) == {taxonomy.names[answer.category]}


def _from_text(verdict: Verdict, taxonomy: Taxonomy) -> "NDArray[np.float64]":
    """(K,) 1 for categories that the answer names and 0 for the others; NaN if it names none."""
    missing = 0.0 if verdict.scores else math.nan
    return np.array([verdict.scores.get(name, missing) for name in taxonomy.names])
