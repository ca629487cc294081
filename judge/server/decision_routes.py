"""What moderators decide: adding to the log, reading and exporting it; and what other thresholds would change."""

import asyncio
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import IO, Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from judge.errors import first_line
from judge.records.decision_table import csv_lines
from judge.records.errors import NotFoundError, RecordsError
from judge.records.export import export_training_rows
from judge.records.records import Records
from judge.records.what_if import WhatIf, what_if
from prompts.verdict import DEFAULT_THRESHOLD

from .errors import ApiError, bad_request
from .questions import json_type, read_json, read_text, read_threshold
from .service import JudgeService
from .stored import ask_records, records_errors

router = APIRouter(tags=["decisions"])
MAX_DECISIONS = 1000
"""Decisions in one answer."""
_MAX_ID = 2**63 - 1
_MAX_CATEGORIES = 100
_DECISION = ("verdict_id", "action", "status", "categories", "note", "moderator")
_CHUNK = 2**20
_LINES = 500
_HASH_SECONDS = 120
"""How long an export waits for one image, while others are opened too."""


@router.post("/queue/{item_id}/decision", status_code=201)
async def decide(request: Request, item_id: Annotated[int, Path(ge=0, le=_MAX_ID)]) -> dict[str, Any]:
    """Agree with a verdict on an item, overrule it, or skip the item."""
    data = await read_json(request, _DECISION)
    records: Records = request.app.state.records
    verdict_id = data.get("verdict_id")
    if isinstance(verdict_id, bool) or not isinstance(verdict_id, int) or not 0 <= verdict_id <= _MAX_ID:
        raise bad_request("verdict_id: give the id of the verdict that you saw.", param="verdict_id")
    decision = await ask_records(
        records.decide,
        item_id,
        verdict_id,
        read_text(data.get("action"), "action", 20) or "",
        status=read_text(data.get("status"), "status", 20),
        categories=_categories(data.get("categories")),
        note=read_text(data.get("note"), "note"),
        moderator=read_text(data.get("moderator"), "moderator") or "",
    )
    return decision.to_dict()


def _categories(given: Any) -> list[str] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise bad_request(
            f"categories: expected an array of names, got a {json_type(given)}.", param="categories"
        )
    if len(given) > _MAX_CATEGORIES:
        raise bad_request(f"categories: at most {_MAX_CATEGORIES}.", param="categories")
    return given


@router.post("/what-if")
async def compare_thresholds(request: Request) -> dict[str, Any]:
    """How many stored verdicts under a taxonomy would change with other thresholds, and which."""
    data = await read_json(request, ("taxonomy_hash", "thresholds"))
    taxonomy_hash = read_text(data.get("taxonomy_hash"), "taxonomy_hash", 64)
    if not taxonomy_hash:
        raise bad_request("taxonomy_hash: as verdicts and taxonomies have it.", param="taxonomy_hash")
    found = await ask_records(_what_if, request.app.state.records, taxonomy_hash, data.get("thresholds"))
    return found.to_dict()


def _what_if(records: Records, taxonomy_hash: str, thresholds: Any) -> WhatIf:
    try:
        taxonomy = records.policy(taxonomy_hash)
    except NotFoundError:  # nothing was judged under it yet
        return WhatIf(0, 0, 0, ())
    limits = read_threshold(thresholds, taxonomy, lambda _: DEFAULT_THRESHOLD)
    return what_if(records.latest_verdicts(taxonomy_hash), taxonomy, limits)


@router.get("/decisions")
async def show_decisions(
    request: Request,
    after: Annotated[int, Query(ge=0, le=_MAX_ID)] = 0,
    before: Annotated[int | None, Query(ge=0, le=_MAX_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_DECISIONS)] = 100,
) -> dict[str, Any]:
    """Entries of the log after an id, oldest first; or before an id, newest first."""
    span = {"after": after, "before": before, "limit": limit, "newest_first": before is not None}
    found = await ask_records(request.app.state.records.decisions, **span)
    return {"decisions": [decision.to_dict() for decision in found]}


@router.get("/decisions.csv")
async def export_decisions(request: Request) -> StreamingResponse:
    """The whole log as a table."""
    lines = csv_lines(request.app.state.records.each_decision())
    # Joined, as each piece is a step in another thread; the first one before any answer, which a database that is away
    # would otherwise begin and break off.
    first = await ask_records(lambda: "".join(islice(lines, _LINES)))
    pieces = chain([first], iter(lambda: "".join(islice(lines, _LINES)), ""))
    return StreamingResponse(pieces, media_type="text/csv; charset=utf-8", headers=_download("decisions.csv"))


@router.get("/decisions/training.zip")
async def export_training(request: Request) -> StreamingResponse:
    """The decided images with their labels, as a folder that training and calibration read, zipped."""
    state, loop = request.app.state, asyncio.get_running_loop()
    service: JudgeService = state.service

    def still_hash(data: bytes) -> str:
        # Opened by the workers of the server, where limits of time and memory hold.
        return asyncio.run_coroutine_threadsafe(service.still_hash(data), loop).result(_HASH_SECONDS)

    if getattr(state, "exporting", False):
        raise ApiError(429, "busy", "Another export is being written; ask again.", retry_after=10)
    state.exporting = True
    try:
        with records_errors():
            # In another pool than that of `asyncio.to_thread`, for which `still_hash` may have to wait.
            archive = await run_in_threadpool(_write_archive, state.records, still_hash)
    finally:
        state.exporting = False
    return StreamingResponse(
        _chunks(archive), media_type="application/zip", headers=_download("training.zip")
    )


def _write_archive(records: Records, still_hash: Callable[[bytes], str]) -> IO[bytes]:
    # Closed when the answer is sent; it has no name, so nothing stays behind.
    archive = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with zipfile.ZipFile(archive, "w") as zipped:
            export_training_rows(records, zipped.writestr, still_hash)
    except OSError as error:
        archive.close()
        raise RecordsError(f"The archive cannot be written: {first_line(error)}.") from error
    except BaseException:
        archive.close()
        raise
    archive.seek(0)
    return archive


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _download(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
