"""`POST /v1/chat/completions`: an image under a policy text, as clients ask a chat model that judges by a policy.

The contract is that of Coop's self-hosted models (roostorg/coop, pull request 806, format `openai_chat`): the system
message is the policy, the user message the content, one token is asked for with its log-probability, and any answer
but "1" counts as safe. So what was not judged is never an answer: it is an error.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from prompts.taxonomy import Taxonomy

from .answers import json_answer, unless_gone
from .chat_answers import completion, events
from .chat_formats import read_format
from .chat_messages import ChatQuestion, read_messages
from .chat_policy import read_policy
from .errors import bad_request
from .moderations import check_model, refuse_unjudged
from .questions import read_asked, read_image, read_json, read_threshold
from .service import JudgeService, Question
from .taxonomies import Taxonomies

router = APIRouter(tags=["chat"])
_HARMLESS = (
    *(
        "temperature",
        "top_p",
        "seed",
        "stop",
        "user",
        "store",
        "metadata",
        "frequency_penalty",
        "presence_penalty",
    ),
    *("service_tier", "safety_identifier", "prompt_cache_key"),
)
"""Keys that say how text is generated, or for whom: a verdict does not depend on them."""
_KEYS = (
    *("model", "messages", "taxonomy", "categories", "thresholds", "answer", "response_format", "n"),
    *("logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "stream", "stream_options"),
    *_HARMLESS,
)
_LONG_POLICY = 2_000
"""Characters from which on a policy is read in a thread: YAML takes its time."""


class _Asked(NamedTuple):
    taxonomy: Taxonomy
    threshold: float | Mapping[str, float]
    form: str
    """How the policy was read; `taxonomy` where one was given."""


@router.post("/v1/chat/completions")
async def complete(request: Request) -> Response:
    """Judge one image under the policy of the system message."""
    state = request.app.state
    service: JudgeService = state.service
    service.check_accepting()
    data = await read_json(request, _KEYS)
    check_model(data.get("model"), service)
    chat = read_messages(data.get("messages"))
    asked = await _asked(data, chat, service, state.taxonomies)
    answer = read_format(data, asked.taxonomy)
    image = await read_image(chat.image, chat.image_param, service)
    question = Question(image, asked.taxonomy, chat.prompt, asked.threshold)
    [judged] = await unless_gone(request, service.judge_all([question]))
    refuse_unjudged([judged], [chat.image_param])
    whole = completion(judged.row, asked.taxonomy, asked.form, answer, service.model_version)
    if not answer.stream:
        return json_answer(whole)
    text = "".join(events(whole, usage=answer.stream_usage))
    return Response(text, media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _asked(
    data: dict[str, Any], chat: ChatQuestion, service: JudgeService, taxonomies: Taxonomies
) -> _Asked:
    """What the image is judged by: the policy, or a taxonomy beside the messages, never both."""
    if chat.policy is None:
        if data.get("taxonomy") is None:
            raise bad_request(
                "Nothing says what counts as unsafe: put the policy into a system message.",
                param="messages",
                code="policy_required",
            )
        found = await read_asked(data, service, taxonomies)
        return _Asked(found.taxonomy, found.threshold, "taxonomy")
    for key in ("taxonomy", "categories"):
        if data.get(key) is not None:
            raise bad_request(f"{key}: the system message holds a policy already; leave one out.", param=key)
    if len(chat.policy) > _LONG_POLICY:
        policy = await asyncio.to_thread(read_policy, chat.policy, chat.policy_param)
    else:
        policy = read_policy(chat.policy, chat.policy_param)
    threshold = read_threshold(data.get("thresholds"), policy.taxonomy, service.default_threshold)
    return _Asked(policy.taxonomy, threshold, policy.form)
