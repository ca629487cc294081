"""`/v1/taxonomies`: which there are, one of them in full, and saving a moderator's own."""

from typing import Any

from fastapi import APIRouter, Request, Response

from judge.verdicts.rows import Judging
from prompts.cautions import cautions

from .answers import json_answer
from .questions import read_json, read_taxonomy, read_text
from .service import JudgeService
from .taxonomies import Known, Taxonomies

router = APIRouter(prefix="/v1/taxonomies", tags=["taxonomies"])


@router.get("")
async def list_taxonomies(request: Request) -> dict[str, Any]:
    """Name, version, hash, number of categories and source of each."""
    taxonomies: Taxonomies = request.app.state.taxonomies
    return {
        "default": taxonomies.default.name,
        "taxonomies": [
            {**_title(known), "categories": len(known.taxonomy)} for known in await taxonomies.every()
        ],
    }


@router.get("/{name}")
async def show_taxonomy(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """One taxonomy: categories, thresholds where a request gives none, YAML, and which definitions are read poorly."""
    service: JudgeService = request.app.state.service
    taxonomies: Taxonomies = request.app.state.taxonomies
    known = await taxonomies.find(name if version is None else f"{name}@{version}")
    return {
        **_title(known),
        "categories": [
            {
                "name": category.name,
                "definition": category.definition,
                "examples": list(category.examples),
                "code": category.code,
                "key": category.key,
            }
            for category in known.taxonomy
        ],
        "thresholds": Judging(known.taxonomy, service.default_threshold(known.taxonomy)).thresholds,
        "yaml": known.taxonomy.to_yaml(),
        "versions": list(known.versions),
        "cautions": [line for category in known.taxonomy for line in cautions(category)],
    }


@router.put("/{name}")
async def save_taxonomy(request: Request, name: str) -> Response:
    """Save the next version of a moderator's own taxonomy: 201, or 200 where nothing changed."""
    taxonomies: Taxonomies = request.app.state.taxonomies
    data = await read_json(request, ("categories", "moderator"))
    taxonomy = read_taxonomy(data.get("categories"), "categories", name=name)
    known, new = await taxonomies.save(name, taxonomy, read_text(data.get("moderator"), "moderator"))
    return json_answer(_title(known), 201 if new else 200)


def _title(known: Known) -> dict[str, Any]:
    taxonomy = known.taxonomy
    return {
        "name": taxonomy.name,
        "version": str(taxonomy.version),
        "hash": taxonomy.hash,
        "source": known.source,
    }
