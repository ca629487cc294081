"""The verdict on one image, and how scores or free text become one.

"Unjudged" is a verdict of its own, with a reason; it is never safe.
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
"""Scores outside [0, 1] by at most this much are rounded into it; others are refused."""


@dataclass(frozen=True)
class Verdict:
    """Flagged or not, with what probability, for which category, and by which model."""

    status: Status
    unsafe: float | None = None
    """Probability that anything in the taxonomy is violated; None when unjudged."""
    scores: dict[str, float] = field(default_factory=dict)
    """Category name -> score in [0, 1]; categories without a score are missing."""
    category: str | None = None
    """The flagged category with the highest score; None when not flagged, or when no category has a score."""
    decided_by: str = "judge"
    """Which stage of a cascade: `filter`, `student` or `judge`; `door` for an image that could not be opened."""
    model: str = ""
    taxonomy: str = ""
    """Hash of the taxonomy that was judged by."""
    reason: str | None = None
    """Why the image, or a part of the categories, could not be judged."""
    because: str | None = None
    """Why that stage decided; of a cascade, and of an animation."""
    note: str | None = None
    """What a reader of this verdict has to know, such as that the prompt was not read."""
    evidence: str | None = None
    """What is known of this model's answers about the weakest category: `trained`, `measured 0.96` (F1) or `none`; None
    where nobody asked."""
    promise: str | None = None
    """Of a cascade: the miss rate it was calibrated to and for what, or `withdrawn` and why."""

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
    """The verdict on one image from its scores.

    **An image is flagged if and only if the score of a category reaches its threshold.** One number is the threshold of
    every category; categories that a mapping does not name keep 0.5. Scores are on one scale (`judge.protocol`): the
    largest of the categories is `unsafe`. So comparing `unsafe` with one number is the same rule, and 0.5 is the
    threshold for which a cascade's promise holds.

    What is unknown is not safe. If no category is flagged and one has no score, that one may be violated, and the image
    is unjudged. If no category has a score, because the classifier does not tell them apart, `unsafe` is compared with
    every threshold: flagged if it reaches all, safe if it reaches none, else unjudged.

    Args:
        unsafe: probability in [0, 1] that any category is violated; NaN if the classifier could not judge.
        categories: K scores in [0, 1], in the order of the taxonomy; NaN for a category that is not covered.
        taxonomy: the K categories.
        threshold: one number in [0, 1], or category name -> number.
        decided_by: as in `Verdict`.
        model: name and version of the classifier.
        reason: why the classifier could not judge, if it gave one.

    Raises:
        ValueError: scores or thresholds outside [0, 1], not one score a category, or scores that are not on one scale.
        TaxonomyError: a threshold for a category that does not exist.
    """
    if len(categories) != len(taxonomy):
        raise ValueError(f"Got {len(categories)} category scores for {len(taxonomy)} categories; one each.")
    checked = [
        _check_probability(score, f"the score of {name!r}")
        for name, score in zip(taxonomy.names, categories, strict=True)
    ]
    scores = {
        name: score for name, score in zip(taxonomy.names, checked, strict=True) if not math.isnan(score)
    }
    total = _check_probability(unsafe, "the unsafe score")
    limits = _thresholds(threshold, taxonomy)
    _check_scale(total, scores)
    over = {name: score for name, score in scores.items() if score >= limits[name]}
    status, why = _conclude(total, scores, over, limits, reason)
    known: float | None = None if status == "unjudged" else total
    if status == "unsafe" and math.isnan(total):  # the whole was not judged, but a covered category was
        known = max(over.values())
    return Verdict(status, known, scores, _highest(over), decided_by, model, taxonomy.hash, why)


def parse_answer(text: str, taxonomy: Taxonomy, template: str = TEMPLATES[0]) -> Verdict:
    """The verdict from the free text of a model that cannot be scored on closed answers; no text raises.

    Accepted are the template's answers in any case and spacing, with quotes or a full stop; the code of a category
    instead of its name; several categories separated by commas. Everything else is unjudged: truncated answers, two
    verdicts, refusals, explanations, categories outside the taxonomy.

    Text has no probability: `unsafe` and the scores of the named categories are 1, or 0 for safe.

    Raises:
        TemplateError: no such template.
    """
    if template not in TEMPLATES:
        raise TemplateError(f"No template {template!r}. Known: {', '.join(TEMPLATES)}.")
    # "**Unsafe:** `violence`.\n" -> "Unsafe: violence"
    words = " ".join(_DECORATION.sub("", text).split()).rstrip(".!").rstrip()
    if not words:
        return _unjudged("the reply is empty", taxonomy)
    status, listed = (_split_perspective if template == "perspective" else _split_plain)(words)
    if status == "safe" and listed is None:
        return Verdict("safe", 0.0, dict.fromkeys(taxonomy.names, 0.0), taxonomy=taxonomy.hash)
    if status != "unsafe" or (listed is not None and template.startswith("zero_shot")):
        return _unjudged(f"the reply is not one of the allowed answers: {_excerpt(text)}", taxonomy)
    if listed is None:
        return Verdict("unsafe", 1.0, taxonomy=taxonomy.hash)
    named = _parse_names(listed, taxonomy)
    if not named:
        return _unjudged(f"the reply names no category of the taxonomy: {_excerpt(text)}", taxonomy)
    return Verdict("unsafe", 1.0, dict.fromkeys(named, 1.0), named[0], taxonomy=taxonomy.hash)


_DECORATION = re.compile(r"[\"'`*]")
_PLAIN = re.compile(r"(safe|unsafe)(?: ?[:,–—-] ?(.*)| (.+))?", re.IGNORECASE)
_PERSPECTIVE = re.compile(r"safety status ?: ?(safe|unsafe) ?[,;.]? ?unsafe category ?: ?(.+)", re.IGNORECASE)


def _split_plain(words: str) -> tuple[str | None, str | None]:
    """`unsafe: violence, nudity` -> ("unsafe", "violence, nudity"); None for a part that is missing."""
    match = _PLAIN.fullmatch(words)
    if not match:
        return None, None
    status, after_mark, after_space = match.groups()
    return status.lower(), after_space if after_mark is None else after_mark


def _split_perspective(words: str) -> tuple[str | None, str | None]:
    """As `_split_plain`, of `Safety status: unsafe, Unsafe category: violence`."""
    match = _PERSPECTIVE.fullmatch(words)
    if not match:
        return None, None
    status, listed = match[1].lower(), match[2]
    if listed.lower() != "none":
        return status, listed
    return (status, None) if status == "safe" else (None, None)  # "unsafe: none" contradicts itself


def _parse_names(listed: str, taxonomy: Taxonomy) -> list[str]:
    """The names of the listed categories; empty if one of them is unknown."""
    known = {
        " ".join(_DECORATION.sub("", word).split()).rstrip(".!").casefold(): category.name
        for category in taxonomy
        for word in (category.name, category.code or category.name)
    }
    whole = known.get(listed.casefold())  # first: the name of a category may contain a comma
    parts = [known.get(part.strip().casefold()) for part in listed.split(",")] if whole is None else [whole]
    names = [name for name in parts if name is not None]
    return list(dict.fromkeys(names)) if len(names) == len(parts) else []


def _unjudged(reason: str, taxonomy: Taxonomy) -> Verdict:
    return Verdict("unjudged", taxonomy=taxonomy.hash, reason=reason)


def _excerpt(text: str) -> str:
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
    """The rule of `verdict_from_scores`: the status, and the reason if it is unjudged."""
    if over:
        return "unsafe", None
    if math.isnan(total):
        return "unjudged", reason or "the classifier gave no score"
    missing = [name for name in limits if name not in scores]
    # Without any category's score, `unsafe` may be that of any of them: it decides only if all thresholds agree.
    reached = [name for name in missing if total >= limits[name]]
    if not scores and len(reached) in (0, len(limits)):
        return ("unsafe" if reached else "safe"), None
    if not missing:
        return "safe", None
    return "unjudged", reason or f"no score for {', '.join(missing)}, and nothing else is flagged"


def _check_scale(total: float, scores: Mapping[str, float]) -> None:
    """Refuse an `unsafe` that is not the largest score: the rule compares categories only, and could say safe."""
    if scores and not math.isnan(total) and abs(total - max(scores.values())) > _ROUNDING:
        raise ValueError(
            f"The unsafe score is {total:.6g} and the largest of a category {max(scores.values()):.6g}; they must be "
            "one number. Put a classifier's scores on one scale with judge.protocol.on_one_scale first."
        )


def _thresholds(threshold: float | Mapping[str, float], taxonomy: Taxonomy) -> dict[str, float]:
    """Category name -> threshold, for every category of the taxonomy."""
    if not isinstance(threshold, Mapping):
        return dict.fromkeys(taxonomy.names, _check_threshold(threshold, "the threshold"))
    limits = dict.fromkeys(taxonomy.names, DEFAULT_THRESHOLD)
    for name, value in threshold.items():
        limits[taxonomy.names[taxonomy.index(name)]] = _check_threshold(value, f"the threshold of {name!r}")
    return limits


def _check_threshold(value: float, what: str) -> float:
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"Expected a number from 0 to 1 for {what}, got {value!r}.")
    return float(value)


def _check_probability(value: float, what: str) -> float:
    """The value, rounded into [0, 1]; NaN stays."""
    number = float(value)
    if not math.isnan(number) and not -_ROUNDING <= number <= 1.0 + _ROUNDING:
        raise ValueError(f"Expected a number from 0 to 1, or NaN, for {what}, got {value!r}.")
    return number if math.isnan(number) else min(max(number, 0.0), 1.0)
