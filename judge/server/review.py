"""The review queue: images that wait for a moderator, the pixels that are judged, verdicts, decisions."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from judge.errors import ImageError
from judge.records.records import Records

from .answers import json_answer, unless_gone
from .decision_routes import router as decision_router
from .errors import ApiError, bad_request, image_problem
from .questions import read_asked, read_json, read_text
from .service import JudgeService, Question
from .stored import ask_records
from .uploads import import_folder, read_form

router = APIRouter(prefix="/v1", tags=["review"])
router.include_router(decision_router)

MAX_PAGE = 200
"""Items in one answer."""
_MAX_ID = 2**63 - 1
ItemId = Annotated[int, Path(ge=0, le=_MAX_ID)]


@router.post("/queue", status_code=201)
async def add_to_queue(request: Request) -> dict[str, Any]:
    """Put the images of a form at the end of the queue: all of them, or none."""
    service: JudgeService = request.app.state.service
    new = await read_form(request, service.settings.max_images)
    items = await ask_records(_records(request).add_items, new)
    return {"items": [item.to_dict() for item in items]}


@router.post("/queue/folder", status_code=201)
async def add_folder_to_queue(request: Request) -> dict[str, Any]:
    """Put the images below a folder of the server into the queue, if it was started to allow that."""
    root = request.app.state.settings.queue_folder
    if root is None:
        raise ApiError(
            403, "folders_not_allowed", "This server imports no folders; start it with --queue-folder."
        )
    path = read_text((await read_json(request, ("path",))).get("path"), "path", 4096)
    if not path:
        raise bad_request("path: name a folder below the server's queue folder.", param="path")
    imported = await ask_records(import_folder, _records(request), root, path)
    return {
        "items": [item.to_dict() for item in imported.items],
        "known": imported.known,
        "refused": imported.refused,
    }


@router.get("/queue")
async def show_queue(
    request: Request,
    state: Literal["open", "decided", "skipped"] | None = None,
    after: Annotated[int, Query(ge=0, le=_MAX_ID)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
) -> dict[str, Any]:
    """Items after an id, each with its latest verdict, and how many there are in each state."""
    records = _records(request)
    items = await ask_records(records.items, state, after=after, limit=limit)
    return {"items": [item.to_dict() for item in items], "counts": await ask_records(records.counts)}


@router.get("/queue/{item_id}")
async def show_item(request: Request, item_id: ItemId) -> dict[str, Any]:
    """One item with its latest verdict."""
    return (await ask_records(_records(request).item, item_id)).to_dict()


@router.delete("/queue/{item_id}")
async def delete_item(request: Request, item_id: ItemId) -> dict[str, Any]:
    """Take an item out of the queue and remove its image; decisions about it stay in the log."""
    await ask_records(_records(request).delete_item, item_id)
    return {"deleted": item_id}


@router.get("/queue/{item_id}/image")
async def show_image(
    request: Request, item_id: ItemId, frame: Annotated[int, Query(ge=0, le=1000)] = 0
) -> Response:
    """The pixels that are judged, of one frame, as a PNG that was encoded here."""
    records, service = _records(request), request.app.state.service
    item = await ask_records(records.item, item_id)
    try:
        frames = await service.view(await ask_records(records.image, item.sha256))
    except ImageError as error:
        raise image_problem(error) from None
    if frame >= len(frames):
        raise ApiError(
            404, "frame_not_found", f"The image has {len(frames)} frames, counted from 0.", param="frame"
        )
    # No copies of what may be harmful in the caches of browsers and proxies.
    headers = {"x-frames": str(len(frames)), "cache-control": "no-store"}
    return Response(frames[frame], media_type="image/png", headers=headers)


@router.post("/queue/{item_id}/verdict")
async def judge_item(request: Request, item_id: ItemId) -> Response:
    """Judge an item under a taxonomy, and store the verdict."""
    state = request.app.state
    service: JudgeService = state.service
    service.check_accepting()
    data = await read_json(request, ("taxonomy", "categories", "thresholds", "explain"))
    asked = await read_asked(data, service, state.taxonomies)
    records = _records(request)
    item = await ask_records(records.item, item_id)
    question = Question(
        await ask_records(records.image, item.sha256),
        asked.taxonomy,
        prompt=item.prompt,
        threshold=asked.threshold,
        explain=asked.explain,
        name=item.name,
    )
    judged = await unless_gone(request, service.judge(question))
    stored = await ask_records(records.add_verdict, item_id, judged.row, asked.taxonomy)
    return json_answer({"verdict_id": stored.id, "verdict": stored.row, "explanation": judged.explanation})


def _records(request: Request) -> Records:
    found: Records = request.app.state.records
    return found
