"""A verdict row -> a chat completion, or its stream."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from prompts.taxonomy import Taxonomy

from .chat_formats import WORDS, AnswerFormat

LEAST_LOG_PROBABILITY = -9999.0
"""Stands for log(0), as in OpenAI's answers: JSON has no infinity."""
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
"""Nothing is generated, so no token is counted."""


def completion(
    row: Mapping[str, Any], taxonomy: Taxonomy, form: str, answer: AnswerFormat, model: str
) -> dict[str, Any]:
    """The answer about an image that was judged.

    Args:
        row: a verdict row, safe or unsafe.
        taxonomy: what the policy was read as.
        form: how it was read (`chat_policy.Form`), or `taxonomy` where it was given as one.
        answer: how to answer.
        model: name of the model.
    """
    content = _content(row, taxonomy, answer)
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": _log_probabilities(row, answer, content)}
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice | {"finish_reason": "stop"}],
        "usage": _USAGE,
        "arbiter": dict(row),
        "policy": {"form": form, "categories": [category.to_dict() for category in taxonomy]},
    }


def events(whole: Mapping[str, Any], *, usage: bool) -> Iterator[str]:
    """A completion as server-sent events: its text, its end with the verdict row, perhaps its usage, and `[DONE]`."""
    [choice] = whole["choices"]
    head = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    delta = {key: choice["message"][key] for key in ("role", "content")}
    said = {"index": 0, "delta": delta, "logprobs": choice["logprobs"], "finish_reason": None}
    ended = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    chunks = [
        head | {"choices": [said]},
        head | {"choices": [ended], "arbiter": whole["arbiter"], "policy": whole["policy"]},
        *([head | {"choices": [], "usage": whole["usage"]}] if usage else []),
    ]
    for chunk in chunks:
        yield f"data: {json.dumps(chunk, allow_nan=False)}\n\n"
    yield "data: [DONE]\n\n"


def _content(row: Mapping[str, Any], taxonomy: Taxonomy, answer: AnswerFormat) -> str:
    flagged = _not_cleared(row)
    if answer.fields:
        return json.dumps(
            {name: value for name, value in _json(row, flagged).items() if name in answer.fields}
        )
    word = WORDS[answer.words][row["flagged"]]
    if answer.words != "guard" or not flagged:
        return word
    codes = [taxonomy.categories[taxonomy.index(name)].code or name for name in flagged]
    return f"{word}\n{','.join(codes)}"


def _not_cleared(row: Mapping[str, Any]) -> list[str]:
    """Names of the flagged categories, the highest score first; of an unsafe image then those without a score.

    As in `/v1/moderations`: whoever asks for one category only, and does not find it, takes it for not violated.
    """
    flagged = sorted(
        (name for name, is_over in row["flags"].items() if is_over), key=lambda name: -row["scores"][name]
    )
    unknown = [name for name in row["thresholds"] if name not in row["scores"]] if row["flagged"] else []
    return flagged + unknown


def _json(row: Mapping[str, Any], flagged: list[str]) -> dict[str, Any]:
    return {
        "flagged": row["flagged"],
        "label": int(row["flagged"]),
        "score": row["unsafe"],
        "confidence": row["unsafe"] if row["flagged"] else 1.0 - row["unsafe"],
        "category": row["category"],
        "categories": flagged,
    }


def _log_probabilities(row: Mapping[str, Any], answer: AnswerFormat, content: str) -> dict[str, Any] | None:
    """The first token is the verdict, with the logarithm of its probability; what follows from it is certain."""
    if answer.alternatives is None:
        return None
    safe, unsafe = WORDS[answer.words]
    both = [_token(unsafe, row["unsafe"]), _token(safe, 1.0 - row["unsafe"])]
    said = both[0 if row["flagged"] else 1]
    listed = sorted(both, key=lambda token: -token["logprob"])
    if answer.alternatives < len(listed):
        listed = [said][: answer.alternatives]  # who reads the first one alone must not read the other answer
    rest = content.removeprefix(said["token"])
    tokens = [said | {"top_logprobs": listed}]
    if rest:
        tokens.append(_token(rest, 1.0) | {"top_logprobs": []})
    return {"content": tokens, "refusal": None}


def _token(text: str, probability: float) -> dict[str, Any]:
    # The score of a verdict may be 0 although it is unsafe: its threshold may be 0.
    logprob = math.log(probability) if probability > 0 else LEAST_LOG_PROBABILITY
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
