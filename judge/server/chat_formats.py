"""In which form a caller of `/v1/chat/completions` wants the answer: words of a guard model, a digit, or JSON.

A form is refused before anything is judged if it could not carry every verdict: a caller who reads an answer by a form
that it does not have takes it for safe.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prompts.taxonomy import Taxonomy

from .errors import ApiError, bad_request
from .questions import check_keys, json_type, read_flag

Words = Literal["guard", "digit", "yes_no"]
WORDS: dict[Words, tuple[str, str]] = {
    "guard": ("safe", "unsafe"),
    "digit": ("0", "1"),
    "yes_no": ("No", "Yes"),
}
"""Name of a form -> what it says of a safe and of an unsafe image."""
FIELDS = ("flagged", "label", "score", "confidence", "category", "categories")
"""What an answer in JSON has: a boolean; 1 or 0; P(unsafe); P(label); the worst category or null; all flagged ones."""
_TELLING = ("flagged", "label", "score")
"""Fields that tell an unsafe image from a safe one by themselves; a category may be null although it is unsafe."""
_MOST_ALTERNATIVES = 20
_ANNOTATIONS = {"title", "description", "default", "examples"}
_SCORES = (0.0, 0.123456789, 1.0)
"""What a score may be: no list of numbers holds them all."""
_AROUND = {"type", "properties", "required", "additionalProperties", "$schema", *_ANNOTATIONS}
"""Keywords of the schema itself."""
_DEPTH = 4
"""How deep `anyOf` and `items` may lie in each other."""
_MOST_CHOICES = 4
"""Of `anyOf`; with the depth, how often a value is checked."""
_LONGEST_SCHEMA = 20_000
"""Characters of a schema; it may list 100 names of categories."""


@dataclass(frozen=True)
class AnswerFormat:
    """How to answer."""

    words: Words = "guard"
    fields: tuple[str, ...] = ()
    """Of an answer in JSON, which then takes the place of words."""
    alternatives: int | None = None
    """Tokens listed in `top_logprobs`; None where no log-probabilities are asked for."""
    stream: bool = False
    stream_usage: bool = False
    """Whether the stream ends with a chunk about usage."""


def read_format(data: Mapping[str, Any], taxonomy: Taxonomy) -> AnswerFormat:
    """`response_format`, `answer`, `max_tokens`, `n`, `logprobs`, `top_logprobs` and `stream` of a body.

    Raises:
        ApiError: 400 for values of the wrong form; `unsupported_schema` for one that no verdict would fit.
    """
    if data.get("n") not in (None, 1) or isinstance(data.get("n"), bool):
        raise bad_request("n: there is one answer; leave it out, or give 1.", param="n")
    fields = _fields(data.get("response_format"), taxonomy)
    if fields and data.get("answer") is not None:
        raise bad_request("answer: response_format asks for JSON; leave one of them out.", param="answer")
    options = data.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad_request(
            f"stream_options: expected an object, got a {json_type(options)}.", param="stream_options"
        )
    return AnswerFormat(
        _words(data),
        fields,
        _alternatives(data, in_json=bool(fields)),
        read_flag(data, "stream"),
        read_flag(options or {}, "include_usage"),
    )


def _words(data: Mapping[str, Any]) -> Words:
    given = data.get("answer")
    if given is None:
        # A single token has room for a digit only, and that is what those who ask for one read (Coop's CoPE format).
        single = any(data.get(key) == 1 for key in ("max_tokens", "max_completion_tokens"))
        return "digit" if single else "guard"
    if given not in get_args(Words):
        raise bad_request(f"answer: give one of {', '.join(get_args(Words))}.", param="answer")
    return given  # type: ignore[no-any-return]


def _alternatives(data: Mapping[str, Any], *, in_json: bool) -> int | None:
    wanted, most = read_flag(data, "logprobs"), data.get("top_logprobs")
    if most is not None and (type(most) is not int or not 0 <= most <= _MOST_ALTERNATIVES or not wanted):
        raise bad_request(
            f"top_logprobs: a number from 0 to {_MOST_ALTERNATIVES}, beside logprobs: true.",
            param="top_logprobs",
        )
    if wanted and in_json:
        raise bad_request(
            "logprobs: an answer in JSON has none; it has score and confidence.", param="logprobs"
        )
    return (most or 0) if wanted else None


def _fields(given: Any, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Fields of an answer in JSON; none for plain text."""
    if given is None:
        return ()
    where = "response_format"
    if not isinstance(given, dict):
        raise bad_request(f"{where}: expected an object, got a {json_type(given)}.", param=where)
    check_keys(given, ("type", "json_schema"), where)
    kind = given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_request(f"{where}.type: give text, json_object or json_schema.", param=f"{where}.type")
    if kind != "json_schema":
        return FIELDS if kind == "json_object" else ()
    holder = given.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise bad_request(f"{where}.json_schema.schema: expected an object.", param=f"{where}.json_schema")
    return _fields_of_schema(schema, taxonomy)


def _fields_of_schema(schema: Mapping[str, Any], taxonomy: Taxonomy) -> tuple[str, ...]:
    if len(json.dumps(schema)) > _LONGEST_SCHEMA:
        raise _no_schema(f"it has more than {_LONGEST_SCHEMA:,} characters")
    properties, required = schema.get("properties"), schema.get("required", [])
    if schema.get("type") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        raise _no_schema("it is no object with properties")
    # Also what is not required: a field "violates" that is missing would read as false.
    for what, unknown in (
        ("requires", set(map(str, required)) - set(FIELDS)),
        ("has", set(properties) - set(FIELDS)),
        ("uses", set(schema) - _AROUND),
    ):
        if unknown:
            raise _no_schema(f"it {what} {', '.join(sorted(unknown))[:200]}")
    fields = tuple(name for name in FIELDS if name in properties or name in required)
    if not set(fields) & set(_TELLING):
        raise _no_schema(f"it has none of {', '.join(_TELLING)}")
    names = list(taxonomy.names)
    possible: dict[str, Sequence[Any]] = {
        "flagged": (False, True),
        "label": (0, 1),
        "score": _SCORES,
        "confidence": _SCORES,
        "category": (None, *names),
        "categories": ([], names),
    }
    for name in fields:
        wrong = [value for value in possible[name] if not _allows(properties.get(name, {}), value)]
        if wrong:
            raise _no_schema(f"{name} may be {str(wrong[0])[:80]!r}, which it does not allow")
    return fields


def _no_schema(why: str) -> ApiError:
    return bad_request(
        f"No verdict fits the schema: {why}. Fields are flagged (boolean), label (1 or 0), score and confidence "
        "(numbers), category (string or null), categories (array of strings).",
        param="response_format.json_schema",
        code="unsupported_schema",
    )


def _allows(schema: Any, value: Any, depth: int = 0) -> bool:
    """Whether a schema allows a value; never for keywords that are not known here."""
    if not isinstance(schema, dict) or depth > _DEPTH:
        return False
    checks: dict[str, Callable[[Any], bool]] = {
        "type": lambda given: any(
            _is_of(kind, value) for kind in (given if isinstance(given, list) else [given])
        ),
        "enum": lambda given: isinstance(given, list) and any(_same(one, value) for one in given),
        "const": lambda given: _same(given, value),
        "anyOf": lambda given: (
            isinstance(given, list)
            and len(given) <= _MOST_CHOICES
            and any(_allows(one, value, depth + 1) for one in given)
        ),
        "items": lambda given: (
            not isinstance(value, list) or all(_allows(given, one, depth + 1) for one in value)
        ),
        "minimum": lambda given: isinstance(given, int | float) and value >= given,
        "maximum": lambda given: isinstance(given, int | float) and value <= given,
    }
    return all(key in _ANNOTATIONS or (key in checks and checks[key](given)) for key, given in schema.items())


def _is_of(kind: object, value: Any) -> bool:
    """Whether JSON schema calls a value so; its booleans are no numbers."""
    kinds: dict[type, tuple[str, ...]] = {
        bool: ("boolean",),
        int: ("integer", "number"),
        float: ("number",),
        str: ("string",),
        list: ("array",),
        type(None): ("null",),
    }
    return kind in kinds[type(value)]


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
