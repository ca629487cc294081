"""`POST /v1/verdicts`: some images under a taxonomy -> a row for each, as `arbiter judge --json` prints it."""

import asyncio
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from .answers import json_answer, unless_gone
from .errors import bad_request
from .questions import (
    Asked,
    check_explained,
    check_keys,
    json_type,
    read_asked,
    read_image,
    read_json,
    read_text,
)
from .service import Judged, JudgeService, Question

router = APIRouter(tags=["verdicts"])
_KEYS = ("images", "taxonomy", "categories", "thresholds", "explain")
_IMAGE_KEYS = ("data", "url", "prompt", "name")
_MAX_NAME = 500


@router.post("/v1/verdicts")
async def judge_images(request: Request) -> Response:
    """Judge images; one that cannot be judged is a row with the status `unjudged`."""
    state = request.app.state
    service: JudgeService = state.service
    service.check_accepting()
    data = await read_json(request, _KEYS)
    asked = await read_asked(data, service, state.taxonomies)
    images = _images(data.get("images"), service.settings.images_per_request)
    check_explained(asked, len(images))
    questions = await asyncio.gather(
        *(_question(image, asked, f"images[{number}]", service) for number, image in enumerate(images))
    )
    judged: list[Judged] = await unless_gone(request, service.judge_all(questions))
    rows = [{**one.row, "explanation": one.explanation} for one in judged]
    return json_answer({"id": f"verdicts-{uuid4().hex}", "model": service.model_version, "verdicts": rows})


def _images(given: Any, most: int) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise bad_request(
            'images: give an array of {"data": base64 or data URL} or {"url": ...}.',
            param="images",
            code="image_required",
        )
    if len(given) > most:
        raise bad_request(
            f"images: {len(given)} of them, at most {most}; send the others in another request.",
            param="images",
            code="too_many_images",
        )
    for number, image in enumerate(given):
        if not isinstance(image, dict):
            raise bad_request(
                f"images: expected an object, got a {json_type(image)}.", param=f"images[{number}]"
            )
        check_keys(image, _IMAGE_KEYS, f"images[{number}]")
    return given


async def _question(image: dict[str, Any], asked: Asked, param: str, service: JudgeService) -> Question:
    data, url = image.get("data"), image.get("url")
    if (data is None) == (url is None):
        raise bad_request(f"{param}: give either data or url.", param=param)
    return Question(
        await read_image(data or url, f"{param}.{'data' if url is None else 'url'}", service),
        asked.taxonomy,
        prompt=read_text(image.get("prompt"), f"{param}.prompt"),
        threshold=asked.threshold,
        explain=asked.explain,
        name=read_text(image.get("name"), f"{param}.name", _MAX_NAME),
    )
