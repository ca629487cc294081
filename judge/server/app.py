"""The application: routes, request ids, errors in OpenAI's form."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from . import chat_routes, health, moderations, page_routes, taxonomy_routes, verdict_routes
from .answers import json_answer
from .bodies import BodyLimit
from .errors import ApiError, RecordsUnavailableError
from .keys import KeyCheck
from .loading import load_judge
from .origins import OriginCheck
from .requests import Requests
from .service import JudgeService
from .settings import ServerSettings
from .taxonomies import Taxonomies

if TYPE_CHECKING:
    from judge.records.records import Records

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(service: JudgeService, settings: ServerSettings, records: "Records | None" = None) -> FastAPI:
    """The application of a service.

    Args:
        service: judges; started with the application, and closed with it.
        settings: limits and keys.
        records: the review queue and decisions; without them their routes do not exist.
    """
    # No /docs: FastAPI's page loads scripts from elsewhere. No redirects: behind a proxy with TLS they would lead to
    # http://, and a client's key with them.
    app = FastAPI(title="Arbiter", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_lifespan)
    app.state.service, app.state.settings, app.state.records = service, settings, records
    app.state.taxonomies = Taxonomies(service, records)
    for module in (health, moderations, chat_routes, verdict_routes, taxonomy_routes):
        app.include_router(module.router)
    if records is not None:
        from .review import router as review

        app.include_router(review)
        service.metrics.watch_disk(records.free_bytes)
    if settings.page:
        app.include_router(page_routes.router)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, settings.max_body_bytes, settings.max_bodies_bytes)
    app.add_middleware(KeyCheck, settings.keys, settings.metrics_keys)
    app.add_middleware(OriginCheck, settings.local_only)
    app.add_middleware(Requests, service.metrics)
    return app


def build_service(settings: ServerSettings) -> JudgeService:
    """The service that `settings` describe; the classifier is loaded when the application starts."""
    return JudgeService(lambda: load_judge(settings), settings)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: JudgeService = app.state.service
    service.start()
    try:
        yield
    finally:
        service.close()


async def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    if isinstance(error, RecordsUnavailableError):
        request.app.state.service.metrics.records_failed()
    return json_answer(error.body, error.status, error.headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """404, 405 and the like of the framework."""
    if not isinstance(error, HTTPException):
        raise error
    message = str(error.detail)
    if error.status_code == 404:
        message = f"There is nothing at {request.method} {request.url.path[:200]}."
    code = _CODES.get(error.status_code, "invalid_request")
    body = ApiError(error.status_code, code, message).body
    return json_answer(body, error.status_code, dict(error.headers or {}))


async def _answer_validation_error(_: Request, error: Exception) -> Response:
    """What FastAPI refuses: a query parameter or form of the wrong type. 400, as 422 is for images here."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    param = ".".join(str(place) for place in first.get("loc", ())[1:]) or None
    problem = ApiError(400, "invalid_value", f"{param}: {first.get('msg')}.", param=param)
    return json_answer(problem.body, problem.status)
