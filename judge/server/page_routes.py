"""The page for moderators: `/`, and its static files under `/static/`."""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from .page_headers import PAGE_HEADERS

PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    return _answer(request, "index.html")


@router.get("/static/{name}")
async def static_file(request: Request, name: str) -> Response:
    """A script, the style sheet or the icon; 404 for anything that is no file of the page's folder."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    body, tag = _files().get(name, (None, ""))
    if body is None:
        raise HTTPException(404)
    headers = {**PAGE_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=_TYPES[Path(name).suffix])


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Name -> content and its tag. Read once: a name in a request never becomes a path."""
    read = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in _TYPES}
    return {name: (body, f'"{hashlib.sha256(body).hexdigest()[:32]}"') for name, body in read.items()}
