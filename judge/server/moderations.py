"""`POST /v1/moderations` as OpenAI's clients know it, for images and with the caller's own taxonomy.

Those clients fail open: a category that is missing from the answer is None, which is falsy. So the 13 standard keys are
always there, and whatever was asked and has no score of its own is true unless the image is safe. An image that could
not be judged is an error that they do not try again; with `on_unjudged: "flag"` it is flagged.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from .answers import json_answer, unless_gone
from .errors import ApiError, bad_request, image_problem
from .questions import check_explained, json_type, read_asked, read_image, read_json, read_text
from .service import Judged, JudgeService, Question

router = APIRouter(tags=["moderations"])
STANDARD_KEYS = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Categories that clients of OpenAI expect in every answer."""
_KEYS = ("input", "model", "taxonomy", "categories", "thresholds", "explain", "on_unjudged")
_MODEL_PREFIXES = ("omni-moderation-", "text-moderation-")
_NO_IMAGE = (
    "The input has no image, and only images are judged here, never text alone. Send an array of parts with at least "
    'one {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}.'
)


@router.post("/v1/moderations")
async def moderate(request: Request) -> Response:
    """Judge the images of the input; one result for each, in order."""
    state = request.app.state
    service: JudgeService = state.service
    service.check_accepting()
    data = await read_json(request, _KEYS)
    check_model(data.get("model"), service)
    flag_unjudged = _flag_unjudged(data.get("on_unjudged"))
    asked = await read_asked(data, service, state.taxonomies)
    urls, prompt = _parts(data.get("input"), service.settings.images_per_request)
    check_explained(asked, len(urls))
    images = await asyncio.gather(*(read_image(url, param, service) for param, url in urls.items()))
    questions = [Question(image, asked.taxonomy, prompt, asked.threshold, asked.explain) for image in images]
    judged: list[Judged] = await unless_gone(request, service.judge_all(questions))
    if not flag_unjudged:
        refuse_unjudged(judged, list(urls))
    results = [result_of(one, prompted=prompt is not None) for one in judged]
    return json_answer({"id": f"modr-{uuid4().hex}", "model": service.model_version, "results": results})


def check_model(name: Any, service: JudgeService) -> None:
    """Accept the names that clients send by default, and this server's own.

    Raises:
        ApiError: 404 `model_not_found` for another.
    """
    own = (service.model_name, service.model_version)
    if name is None or name in own or (isinstance(name, str) and name.startswith(_MODEL_PREFIXES)):
        return
    shown = repr(name[:100]) if isinstance(name, str) else f"a {json_type(name)}"
    raise ApiError(
        404,
        "model_not_found",
        f"No model {shown}. This server has {own[1]}; leave the model out, or name it.",
        param="model",
    )


def _flag_unjudged(given: Any) -> bool:
    if given not in (None, "error", "flag"):
        raise bad_request('on_unjudged: give "error" or "flag".', param="on_unjudged")
    return bool(given == "flag")


def _parts(given: Any, most: int) -> tuple[dict[str, Any], str | None]:
    """Path in the request -> URL for each image, and the texts of all parts as one prompt."""
    if isinstance(given, str) or (
        isinstance(given, list) and given and all(isinstance(p, str) for p in given)
    ):
        raise bad_request(_NO_IMAGE, param="input", code="image_required")
    if not isinstance(given, list):
        raise bad_request(f"input: expected an array of parts, got a {json_type(given)}.", param="input")
    urls: dict[str, Any] = {}
    texts = []
    for number, part in enumerate(given):
        param = f"input[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url":
            holder = part.get("image_url")
            urls[param] = holder.get("url") if isinstance(holder, dict) else None
        elif kind == "text":
            texts.append(read_text(part.get("text"), param) or "")
        else:
            raise bad_request(
                'input: a part is {"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}.',
                param=param,
            )
    if not urls:
        raise bad_request(_NO_IMAGE, param="input", code="image_required")
    if len(urls) > most:
        raise bad_request(
            f"Number of images ({len(urls)}) exceeds maximum of {most}.",
            param="input",
            code="too_many_images",
        )
    return urls, read_text("\n".join(texts), "input") if texts else None


def refuse_unjudged(judged: Sequence[Judged], params: Sequence[str]) -> None:
    """Do not answer about images of which one was not judged.

    Raises:
        ApiError: none of the statuses after which clients of OpenAI try again; `params` say where the image stands.
    """
    for one, param in zip(judged, params, strict=True):
        if one.error is not None:
            raise image_problem(one.error, param)
        if one.row["status"] == "unjudged":
            raise ApiError(422, "unjudged", f"Not judged, and not safe: {one.row['reason']}", param=param)


def result_of(judged: Judged, *, prompted: bool) -> dict[str, Any]:
    """One entry of `results`.

    A category that was asked and has no score of its own is false only in a safe verdict, with the score of the whole;
    else it is true.
    """
    row = judged.row
    flags, scores = _categories(row)
    asked = list(row["thresholds"])
    by_standard = {name.casefold(): name for name in asked}
    names = [*STANDARD_KEYS, *(name for name in asked if name not in STANDARD_KEYS)]
    source = {name: name if name in flags else by_standard.get(name) for name in names}
    types = ["image", "text"] if prompted else ["image"]
    return {
        "flagged": row["status"] != "safe",
        "categories": {name: flags.get(source[name] or "", False) for name in names},
        "category_scores": {name: scores.get(source[name] or "", 0.0) for name in names},
        "category_applied_input_types": {name: types if source[name] else [] for name in names},
        "unjudged": row["reason"] if row["status"] == "unjudged" else None,
        "verdict": row,
        "explanation": judged.explanation,
    }


def _categories(row: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, float]]:
    """Flag and score of every category that was asked."""
    safe = row["status"] == "safe"
    rest = 1.0 if row["unsafe"] is None else row["unsafe"]
    flags = {name: row["flags"].get(name, not safe) for name in row["thresholds"]}
    return flags, {name: row["scores"].get(name, rest) for name in row["thresholds"]}
