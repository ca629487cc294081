"""What a classifier concluded about one image, and how scores or free text become that conclusion.

"Could not judge" is a conclusion of its own, with a reason; it is never safe.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import TemplateError
from .quoting import quote, shorten
from .taxonomy import Taxonomy
from .template import TEMPLATES

Status = Literal["safe", "unsafe", "unjudged"]
DEFAULT_THRESHOLD = 0.5
_ROUNDING = 1e-6
"""Scores may leave [0, 1] by this much before they count as broken."""


@dataclass(frozen=True)
class Verdict:
    """Flagged or not, how surely, for what, and who said so."""

    status: Status
    unsafe: float | None = None
    """Probability that anything in the taxonomy is violated; None when unjudged."""
    scores: dict[str, float] = field(default_factory=dict)
    """Category name -> score in [0, 1]; categories without a score are missing."""
    category: str | None = None
    """The category the flag is mainly for; None when not flagged, or when none was named."""
    decided_by: str = "judge"
    model: str = ""
    taxonomy: str = ""
    """Hash of the taxonomy that was asked about."""
    reason: str | None = None
    """Why nothing could be judged."""
    because: str | None = None
    """Why the stage that decided did so, where a cascade says it."""

    def __post_init__(self) -> None:
        if self.status not in ("safe", "unsafe", "unjudged"):
            raise ValueError(f"No verdict status {self.status!r}; allowed: safe, unsafe, unjudged.")
        if self.status == "unjudged" and not self.reason:
            raise ValueError("An unjudged verdict needs a reason.")

    @property
    def flagged(self) -> bool | None:
        """True for unsafe, False for safe, None for unjudged."""
        return None if self.status == "unjudged" else self.status == "unsafe"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, `flagged` included."""
        return {"flagged": self.flagged, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """The verdict that `to_dict` described."""
        return cls(**{name: value for name, value in data.items() if name != "flagged"})


def verdict_from_scores(
    unsafe: float,
    categories: Sequence[float],
    taxonomy: Taxonomy,
    *,
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD,
    decided_by: str = "judge",
    model: str = "",
    reason: str | None = None,
) -> Verdict:
    """Turn the scores of one image into a verdict, by one rule.

    **An image is flagged if and only if some category's score reaches its threshold.** One number is the threshold of
    every category; categories that a mapping does not name keep 0.5. As classifiers give scores on one scale, the
    largest category's being `unsafe` (`judge.protocol`), one number is held against `unsafe` just as well, and 0.5 is
    the cutoff that a cascade promises something about, for every category without a threshold of its own.

    What is not known is not safe. Where no category is flagged and one has no score, it might be violated, so the
    image is unjudged. Where no category has a score at all, as the classifier names none, `unsafe` stands for whichever
    it is: flagged where that reaches every threshold, safe where it reaches none, else unjudged.

    Args:
        unsafe: probability that anything is violated; NaN where the classifier could not judge.
        categories: one score for each category of the taxonomy, in order; NaN where it is not covered.
        taxonomy: what was asked.
        threshold: one number in [0, 1], or category name -> number.
        decided_by: `filter`, `student` or `judge`.
        model: name and version of the classifier.
        reason: why the classifier could not judge, if it said so.

    Raises:
        ValueError: scores or thresholds outside [0, 1], not one score a category, or scores that are not on one scale.
        TaxonomyError: a threshold for a category that does not exist.
    """
    if len(categories) != len(taxonomy):
        raise ValueError(f"Got {len(categories)} category scores for {len(taxonomy)} categories; one each.")
    checked = [
        _probability(score, f"the score of {name!r}")
        for name, score in zip(taxonomy.names, categories, strict=True)
    ]
    scores = {
        name: score for name, score in zip(taxonomy.names, checked, strict=True) if not math.isnan(score)
    }
    total = _probability(unsafe, "the unsafe score")
    limits = _limits(threshold, taxonomy)
    _check_scale(total, scores)
    over = {name: score for name, score in scores.items() if score >= limits[name]}
    status, why = _conclude(total, scores, over, limits, reason)
    known: float | None = None if status == "unjudged" else total
    if status == "unsafe" and math.isnan(total):  # flagged by what is covered, which is as sure as that is
        known = max(over.values())
    return Verdict(status, known, scores, _highest(over), decided_by, model, taxonomy.hash, why)


def parse_answer(text: str, taxonomy: Taxonomy, template: str = TEMPLATES[0]) -> Verdict:
    """Read the free text of a model that could not be scored on closed answers; no text raises.

    Accepted: the template's answers, whatever their case, spacing, quotes or final full stop; a category's
    code for its name; several known categories separated by commas. Everything else is unjudged: truncated
    answers, two verdicts, refusals, explanations, categories outside the taxonomy.

    Text carries no probability: `unsafe` and the scores of the categories named are 1, or 0 for safe.

    Raises:
        TemplateError: no such template.
    """
    if template not in TEMPLATES:
        raise TemplateError(f"No template {template!r}. Known: {', '.join(TEMPLATES)}.")
    words = " ".join(_UNDECORATED.sub("", text).split()).rstrip(".!").rstrip()
    if not words:
        return _unread("the reply is empty", taxonomy)
    status, listed = (_split_perspective if template == "perspective" else _split_plain)(words)
    if status == "safe" and listed is None:
        return Verdict("safe", 0.0, dict.fromkeys(taxonomy.names, 0.0), taxonomy=taxonomy.hash)
    if status != "unsafe" or (listed is not None and template.startswith("zero_shot")):
        return _unread(f"the reply is not one of the allowed answers: {_shown(text)}", taxonomy)
    if listed is None:
        return Verdict("unsafe", 1.0, taxonomy=taxonomy.hash)
    named = _named(listed, taxonomy)
    if not named:
        return _unread(f"the reply names no category of the taxonomy: {_shown(text)}", taxonomy)
    return Verdict("unsafe", 1.0, dict.fromkeys(named, 1.0), named[0], taxonomy=taxonomy.hash)


_UNDECORATED = re.compile(r"[\"'`*]")
_PLAIN = re.compile(r"(safe|unsafe)(?: ?[:,–—-] ?(.*)| (.+))?", re.IGNORECASE)
_PERSPECTIVE = re.compile(r"safety status ?: ?(safe|unsafe) ?[,;.]? ?unsafe category ?: ?(.+)", re.IGNORECASE)


def _split_plain(words: str) -> tuple[str | None, str | None]:
    match = _PLAIN.fullmatch(words)
    if not match:
        return None, None
    status, after_mark, after_space = match.groups()
    return status.lower(), after_space if after_mark is None else after_mark


def _split_perspective(words: str) -> tuple[str | None, str | None]:
    match = _PERSPECTIVE.fullmatch(words)
    if not match:
        return None, None
    status, listed = match[1].lower(), match[2]
    if listed.lower() != "none":
        return status, listed
    return (status, None) if status == "safe" else (None, None)  # "unsafe: none" contradicts itself


def _named(listed: str, taxonomy: Taxonomy) -> list[str]:
    """Names of the categories listed, or nothing if a single one is unknown."""
    known = {
        " ".join(_UNDECORATED.sub("", word).split()).rstrip(".!").casefold(): category.name
        for category in taxonomy
        for word in (category.name, category.code or category.name)
    }
    whole = known.get(listed.casefold())
    parts = [known.get(part.strip().casefold()) for part in listed.split(",")] if whole is None else [whole]
    names = [name for name in parts if name is not None]
    return list(dict.fromkeys(names)) if len(names) == len(parts) else []


def _unread(reason: str, taxonomy: Taxonomy) -> Verdict:
    return Verdict("unjudged", taxonomy=taxonomy.hash, reason=reason)


def _shown(text: str) -> str:
    return quote(shorten(text, 120))


def _highest(scores: Mapping[str, float]) -> str | None:
    return max(scores, key=scores.__getitem__) if scores else None


def _conclude(
    total: float,
    scores: Mapping[str, float],
    over: Mapping[str, float],
    limits: Mapping[str, float],
    reason: str | None,
) -> tuple[Status, str | None]:
    """The rule of `verdict_from_scores`: status, and why nothing could be judged."""
    if over:
        return "unsafe", None
    if math.isnan(total):
        return "unjudged", reason or "the classifier gave no score"
    missing = [name for name in limits if name not in scores]
    reached = [name for name in missing if total >= limits[name]]
    if not scores and len(reached) in (0, len(limits)):
        return ("unsafe" if reached else "safe"), None
    if not missing:
        return "safe", None
    return "unjudged", reason or f"no score for {', '.join(missing)}, and nothing else is flagged"


def _check_scale(total: float, scores: Mapping[str, float]) -> None:
    """A whole that no category reaches would be lost on the rule, and an image called safe for it."""
    if scores and not math.isnan(total) and abs(total - max(scores.values())) > _ROUNDING:
        raise ValueError(
            f"The unsafe score is {total:.6g} and the largest of a category {max(scores.values()):.6g}; they must be "
            "one number. Put a classifier's scores on one scale with judge.protocol.on_one_scale first."
        )


def _limits(threshold: float | Mapping[str, float], taxonomy: Taxonomy) -> dict[str, float]:
    if not isinstance(threshold, Mapping):
        return dict.fromkeys(taxonomy.names, _limit(threshold, "the threshold"))
    limits = dict.fromkeys(taxonomy.names, DEFAULT_THRESHOLD)
    for name, value in threshold.items():
        limits[taxonomy.names[taxonomy.index(name)]] = _limit(value, f"the threshold of {name!r}")
    return limits


def _limit(value: float, what: str) -> float:
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"Expected a number from 0 to 1 for {what}, got {value!r}.")
    return float(value)


def _probability(value: float, what: str) -> float:
    number = float(value)
    if not math.isnan(number) and not -_ROUNDING <= number <= 1.0 + _ROUNDING:
        raise ValueError(f"Expected a number from 0 to 1, or NaN, for {what}, got {value!r}.")
    return number if math.isnan(number) else min(max(number, 0.0), 1.0)
