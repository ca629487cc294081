"""`/healthz`, `/readyz`, `/metrics`, and what this server is: `/v1/server`, `/v1/models`."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from judge.verdicts.rows import package_version

from .answers import json_answer
from .errors import DrainingError, LoadingError
from .service import JudgeService

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """200 while the process lives, also while it loads or drains."""
    return {"status": "alive"}


@router.get("/readyz")
async def ready(request: Request) -> Response:
    """200 while questions are accepted; 503 while the classifier is loaded or the server drains."""
    service: JudgeService = request.app.state.service
    if service.draining:
        raise DrainingError
    if not service.ready:
        raise LoadingError
    return json_answer({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    service: JudgeService = request.app.state.service
    # In a thread: the disk, whose free space is asked for, may be one of another machine.
    text = await asyncio.to_thread(service.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/server")
async def about(request: Request) -> dict[str, Any]:
    """The model, the default taxonomy, and the limits."""
    from judge.data.images import DEFAULT_LIMITS, FORMATS

    service: JudgeService = request.app.state.service
    settings = service.settings
    return {
        "model": {"name": service.model_name, "sha256": service.model_hash},
        "default_taxonomy": service.default_taxonomy.name,
        "arbiter": package_version(),
        "limits": {
            "max_bytes": DEFAULT_LIMITS.max_bytes,
            "max_pixels": DEFAULT_LIMITS.max_pixels,
            "max_body_bytes": settings.max_body_bytes,
            "max_images": settings.images_per_request,
            "queue_images": settings.queue_images,
            "formats": list(FORMATS),
            "image_hosts": list(settings.image_hosts),
        },
        "records": request.app.state.records is not None,
        "explains": True,
    }


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model, as OpenAI lists models."""
    service: JudgeService = request.app.state.service
    entry = {"id": service.model_version, "object": "model", "created": 0, "owned_by": "arbiter"}
    return {"object": "list", "data": [entry]}
