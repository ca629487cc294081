"""The messages of a chat -> policy, image and prompt. Which is which is said by the role, never by the text.

The system (or developer) message is the operator's: the policy. The user message is a stranger's: the image, and texts
that came with it, which are read as the image's prompt and never as instructions.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .chat_policy import MAX_POLICY_LENGTH
from .errors import ApiError, bad_request
from .questions import check_keys, json_type, read_text

_ROLES = ("system", "developer", "user")
_KEYS = ("role", "content", "name")
_URL = re.compile(r"(?i)data:image/|https?://")
"""How the address of an image begins."""


@dataclass(frozen=True)
class ChatQuestion:
    """What a chat asks."""

    policy: str | None
    """Text of the system message; None without one."""
    policy_param: str
    """Where it stands in the request."""
    image: Any
    """Data URL or address; not checked yet."""
    image_param: str
    prompt: str | None


def read_messages(given: Any) -> ChatQuestion:
    """One policy at most, and one user message with one image.

    Raises:
        ApiError: 400 for anything else; `image_required` without an image, as a text alone is not judged here.
    """
    if not isinstance(given, list) or not given:
        raise bad_request(
            "messages: give a system message with the policy, and a user message.", param="messages"
        )
    policies, questions = dict[str, Any](), dict[str, Any]()
    for number, message in enumerate(given):
        param = f"messages[{number}]"
        if not isinstance(message, dict):
            raise bad_request(f"{param}: expected an object, got a {json_type(message)}.", param=param)
        check_keys(message, _KEYS, param)
        if message.get("role") not in _ROLES:
            raise bad_request(
                f"{param}.role: allowed are {', '.join(_ROLES)}; one question is judged, not a conversation.",
                param=f"{param}.role",
            )
        (questions if message["role"] == "user" else policies)[f"{param}.content"] = message.get("content")
    if len(policies) > 1 or len(questions) != 1:
        raise bad_request(
            f"messages: expected one system or developer message with the policy and one user message with the image, "
            f"got {len(policies)} and {len(questions)}.",
            param="messages",
        )
    where, policy = next(iter(policies.items()), ("messages", None))
    [(param, content)] = questions.items()
    image_param, image, prompt = _question(content, param)
    return ChatQuestion(_policy(policy, where), where, image, image_param, prompt)


def _policy(content: Any, param: str) -> str | None:
    if not isinstance(content, list):
        return read_text(content, param, MAX_POLICY_LENGTH)
    texts = []
    for place, part in _parts(content, param):
        if part.get("type") != "text":
            raise bad_request(
                "A policy has parts of text only; the image belongs into the user message.", param=place
            )
        texts.append(read_text(part.get("text"), place) or "")
    return read_text("\n".join(texts), param, MAX_POLICY_LENGTH)


def _question(content: Any, param: str) -> tuple[str, Any, str | None]:
    """Where the image stands, its URL, and the prompt."""
    if isinstance(content, str):
        # Nothing but an address: what Coop sends of a field that holds one.
        words = content.split(maxsplit=1)
        if len(words) != 1 or not _URL.match(words[0]):
            raise _no_image(param)
        return param, words[0], None
    if not isinstance(content, list):
        raise bad_request(f"{param}: expected an array of parts, got a {json_type(content)}.", param=param)
    urls, texts = dict[str, Any](), []
    for place, part in _parts(content, param):
        if part.get("type") == "image_url":
            holder = part.get("image_url")
            urls[place] = holder.get("url") if isinstance(holder, dict) else holder
        elif part.get("type") == "text":
            texts.append(read_text(part.get("text"), place) or "")
        else:
            raise bad_request(
                'A part is {"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}.',
                param=place,
            )
    if not urls:
        raise _no_image(param)
    if len(urls) > 1:
        raise bad_request(
            f"{len(urls)} images, and an answer is about one; send one each, or ask POST /v1/verdicts.",
            param=param,
            code="too_many_images",
        )
    [(place, url)] = urls.items()
    return place, url, read_text("\n".join(texts), param) if texts else None


def _parts(content: list[Any], param: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, part in enumerate(content):
        place = f"{param}[{number}]"
        if not isinstance(part, dict):
            raise bad_request(f"{place}: expected an object, got a {json_type(part)}.", param=place)
        yield place, part


def _no_image(param: str) -> ApiError:
    return bad_request(
        "The user message has no image, and only images are judged here, never text alone. Send a part "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}, or nothing but the URL.',
        param=param,
        code="image_required",
    )
