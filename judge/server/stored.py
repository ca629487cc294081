"""Calls of the records from routes: in a thread, as databases block, and with their errors as HTTP answers."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import ParamSpec, TypeVar

from judge.records.errors import EntryError, NotFoundError, RecordsError
from prompts.errors import TaxonomyError

from .errors import ApiError, RecordsUnavailableError, bad_request

LOG = logging.getLogger("arbiter")
THREADS = 16
"""Calls of the records at a time; further ones wait. These threads do nothing else, so a database that does not answer
holds up no image and no `/metrics`."""
Given = ParamSpec("Given")
Result = TypeVar("Result")


async def ask_records(method: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Result:
    """The result of a method of `judge.records.records.Records`.

    Raises:
        ApiError: as `records_errors`.
    """
    call = partial(method, *given, **named)
    with records_errors():
        # Shielded: a client that goes away must not leave it open whether something was stored.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(_threads(), call))


@contextmanager
def records_errors() -> Iterator[None]:
    """Errors of the records as answers.

    Raises:
        ApiError: 404 for what does not exist, 400 for what cannot be stored, 503 where the database fails.
    """
    try:
        yield
    except NotFoundError as error:
        raise ApiError(404, "not_found", str(error)) from None
    except (EntryError, TaxonomyError) as error:
        code = "unknown_category" if isinstance(error, TaxonomyError) else "invalid_entry"
        raise bad_request(str(error), code=code) from None
    except RecordsError as error:
        LOG.error("records: %s", error)
        raise RecordsUnavailableError from None


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "arbiter-records")
