"""The JSON of a request -> what is asked: taxonomy, thresholds, images. Everything in it is a stranger's.

Read by hand rather than by a model of pydantic: the bodies are megabytes of base64, and each error should say what was
got, what is allowed, and where.
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from judge.data.images import DEFAULT_LIMITS
from judge.errors import ImageError
from judge.intake.data_urls import bytes_of_text
from prompts.errors import TaxonomyError
from prompts.names import nearest
from prompts.taxonomy import Taxonomy, taxonomy_from_data

from .errors import ApiError, bad_request

if TYPE_CHECKING:
    from fastapi import Request

    from .service import JudgeService
    from .taxonomies import Taxonomies

MAX_CATEGORIES = 100
"""Categories of a taxonomy in a request."""
MAX_EXAMPLES = 20
"""Examples of one of its categories."""
MAX_EXPLAINED = 8
"""Images of one request that may be explained: each costs as much as up to 50 to judge."""
MAX_PROMPT_LENGTH = 100_000
"""Characters of a prompt; far more than any classifier reads."""
_LARGE = 2**18
"""Bytes from which on JSON and base64 are read in a thread, so that others are not kept waiting."""
_ADDRESS = re.compile(r"(?i)https?:")


@dataclass(frozen=True)
class Asked:
    """What a request asks about each of its images."""

    taxonomy: Taxonomy
    threshold: float | Mapping[str, float]
    explain: bool


async def read_json(request: "Request", allowed: Collection[str]) -> dict[str, Any]:
    """The body of a request: an object with no other keys than these.

    Raises:
        ApiError: 400 for anything else, naming the unknown keys; 408 for a body that takes too long; 413 and 429 of
            `judge.server.bodies`.
    """
    try:
        async with asyncio.timeout(request.app.state.settings.body_seconds):
            body = await request.body()
    except TimeoutError:
        raise ApiError(408, "body_timeout", "The body took too long to arrive; send it again.") from None
    data = await asyncio.to_thread(_parse, body) if len(body) > _LARGE else _parse(body)
    if not isinstance(data, dict):
        raise bad_request(f"The body is a JSON {json_type(data)}; send an object.", code="invalid_json")
    check_keys(data, allowed, "")
    return data


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in which every key of an object stands once.

    Raises:
        ValueError: it is none, or a key is given twice: readers differ in which one they take, and a policy or a
            threshold would be dropped unseen.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        left = set[str]()
        twice = next(key for key, _ in pairs if key in left or left.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:60]!r} is given twice in one object")
    return found


def _parse(body: bytes) -> Any:
    try:
        return parse_json(body)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad_request(f"The body is not valid JSON: {what}.", code="invalid_json") from None


def json_type(value: object) -> str:
    """What JSON calls a value."""
    names: dict[type, str] = {
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def check_keys(data: Mapping[str, Any], allowed: Collection[str], where: str) -> None:
    """Refuse keys that are not allowed: a misspelt `threshold` must not go unnoticed."""
    unknown = [key for key in data if key not in allowed]
    if unknown:
        shown = ", ".join(repr(key[:60]) for key in unknown[:5])
        raise bad_request(
            f"Unknown: {shown}{nearest(unknown[0][:60], allowed)}. Allowed: {', '.join(allowed)}.",
            param=f"{where}.{unknown[0][:60]}".lstrip("."),
            code="unknown_parameter",
        )


async def read_asked(data: Mapping[str, Any], service: "JudgeService", taxonomies: "Taxonomies") -> Asked:
    """`taxonomy`, `categories`, `thresholds` and `explain` of a body.

    Raises:
        ApiError: 400 for values of the wrong form, 404 for a taxonomy that does not exist.
    """
    taxonomy = await _taxonomy(data.get("taxonomy"), taxonomies)
    categories = data.get("categories")
    if categories is not None:
        taxonomy = _select(taxonomy, categories)
    return Asked(
        taxonomy,
        read_threshold(data.get("thresholds"), taxonomy, service.default_threshold),
        read_flag(data, "explain"),
    )


def check_explained(asked: Asked, images: int) -> None:
    """Refuse to explain more images than `MAX_EXPLAINED`.

    Raises:
        ApiError: 400 `too_many_images`.
    """
    if asked.explain and images > MAX_EXPLAINED:
        raise bad_request(
            f"explain: at most {MAX_EXPLAINED} images in a request are explained, and it has {images}.",
            param="explain",
            code="too_many_images",
        )


def _select(taxonomy: Taxonomy, names: Any) -> Taxonomy:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise bad_request("categories: give an array of names of the taxonomy.", param="categories")
    if len(names) > MAX_CATEGORIES:
        raise bad_request(f"categories: at most {MAX_CATEGORIES}.", param="categories")
    try:
        return taxonomy.select(names)
    except TaxonomyError as error:
        raise bad_request(str(error), param="categories", code="unknown_category") from None


async def _taxonomy(given: Any, taxonomies: "Taxonomies") -> Taxonomy:
    if given is None:
        return taxonomies.default
    if isinstance(given, str):
        return (await taxonomies.find(given)).taxonomy
    return read_taxonomy(given, "taxonomy")


def read_taxonomy(given: Any, where: str, name: str = "custom", version: str = "1") -> Taxonomy:
    """A taxonomy in a request: a list of categories, or an object with them and a name.

    Raises:
        ApiError: 400 where it is none, or a text may not stand in a policy.
    """
    data: dict[str, Any] = {"name": name, "version": version, "categories": given}
    if isinstance(given, dict):
        check_keys(given, ("name", "version", "categories"), where)
        data |= given
    entries = data["categories"]
    if not isinstance(entries, list) or not entries:
        raise bad_request(
            f"{where}: give the name of a taxonomy, or an array of {{name, definition}}.", param=where
        )
    if len(entries) > MAX_CATEGORIES:
        raise bad_request(f"{where}: {len(entries)} categories, at most {MAX_CATEGORIES}.", param=where)
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise bad_request(f"{where}: give {{name, definition}}.", param=f"{where}[{number}]")
        check_keys(entry, ("name", "definition", "examples", "code", "key"), f"{where}[{number}]")
        examples = entry.get("examples")
        if isinstance(examples, list) and len(examples) > MAX_EXAMPLES:
            raise bad_request(f"{where}: at most {MAX_EXAMPLES} examples.", param=f"{where}[{number}]")
    try:
        return taxonomy_from_data(data, where)
    except TaxonomyError as error:
        raise bad_request(str(error), param=where, code="invalid_taxonomy") from None


def read_threshold(
    given: Any, taxonomy: Taxonomy, default: Callable[[Taxonomy], float | dict[str, float]]
) -> float | dict[str, float]:
    """`thresholds` of a body: one number, or category name -> number, in the taxonomy's own spelling.

    Raises:
        ApiError: 400 for another value, or a category that the taxonomy lacks.
    """
    if given is None:
        return default(taxonomy)
    if isinstance(given, dict):
        most = max(MAX_CATEGORIES, len(taxonomy))
        if len(given) > most:  # a name can be spelt in thousands of ways, and each would be looked up
            raise bad_request(f"thresholds: {len(given)} entries, at most {most}.", param="thresholds")
        try:
            # The taxonomy's own names, so that two spellings of one category cannot contradict each other.
            names = [taxonomy.names[taxonomy.index(name)] for name in given]
        except TaxonomyError as error:
            raise bad_request(str(error), param="thresholds", code="unknown_category") from None
        if len(set(names)) < len(names):
            raise bad_request("thresholds: a category is given twice.", param="thresholds")
        return {name: _limit(value) for name, value in zip(names, given.values(), strict=True)}
    return _limit(given)


def _limit(value: Any) -> float:
    """A number in [0, 1]; JSON's `true` is none, and NaN is not in it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        shown = value if isinstance(value, int | float) and math.isfinite(value) else json_type(value)
        raise bad_request(
            f"thresholds: expected a number from 0 to 1, or an object of category names and such numbers; got {shown}.",
            param="thresholds",
        )
    return float(value)


def read_flag(data: Mapping[str, Any], key: str) -> bool:
    """A boolean that is false where it is not given."""
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{key}: expected true or false, got a {json_type(value)}.", param=key)
    return bool(value)


def read_text(value: Any, param: str, most: int = MAX_PROMPT_LENGTH) -> str | None:
    """A text of limited length, or None.

    Raises:
        ApiError: 400 for another type, or for more characters.
    """
    if value is None or (isinstance(value, str) and len(value) <= most):
        return value
    got = f"{len(value):,} characters" if isinstance(value, str) else f"a {json_type(value)}"
    raise bad_request(f"{param}: expected a text of at most {most:,} characters, got {got}.", param=param)


async def read_image(given: Any, param: str, service: "JudgeService") -> bytes | ImageError:
    """The encoded image behind a data URL, base64 or an address; or why there is none, which is about it alone.

    Raises:
        ApiError: 400 for what is no text.
    """
    if not isinstance(given, str):
        raise bad_request(f"{param}: expected a data URL, got a {json_type(given)}.", param=param)
    try:
        if _ADDRESS.match(given.lstrip()):
            return await service.fetch(given.strip())
        if len(given) > _LARGE:
            return await asyncio.to_thread(bytes_of_text, given, DEFAULT_LIMITS.max_bytes)
        return bytes_of_text(given, DEFAULT_LIMITS.max_bytes)
    except ImageError as error:
        return error
