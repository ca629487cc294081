"""A verdict as the row that programs read.

It is one line of `arbiter judge --json`, one entry of the answer to `POST /v1/verdicts`, one record of the decision
log. It says everything that is needed to understand the verdict later: what was asked (taxonomy and thresholds), who
answered (model, stage, version), about which bytes, and what is not known. `docs/verdict_row.schema.json` is its JSON
schema, held by a test. `ROW_FORMAT` rises when a key changes its meaning; new keys may appear at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict

ROW_FORMAT = 1
"""Version of the keys and their meaning."""
_FLAGGED = {"safe": False, "unsafe": True, "unjudged": None}


@dataclass(frozen=True)
class Judging:
    """What a row says of the question and of who answered it; the same for all images of a call."""

    taxonomy: Taxonomy
    threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD
    """One number in [0, 1], or category name -> number; categories that are not named have 0.5."""
    model: str = ""
    """Name of the classifier."""
    model_hash: str | None = None
    """SHA-256 of its weights and settings (`judge.runs.references.fingerprint`); None for a served one."""

    @property
    def thresholds(self) -> dict[str, float]:
        """Category name -> threshold, for every category."""
        names = self.taxonomy.names
        if not isinstance(self.threshold, Mapping):
            return dict.fromkeys(names, float(self.threshold))
        given = {names[self.taxonomy.index(name)]: float(value) for name, value in self.threshold.items()}
        return {name: given.get(name, DEFAULT_THRESHOLD) for name in names}


def verdict_row(
    verdict: Verdict,
    judging: Judging,
    *,
    time: str,
    path: str | None = None,
    image_hash: str | None = None,
    frame: str | None = None,
) -> dict[str, Any]:
    """The row of one verdict: plain data for JSON, without NaN.

    Args:
        verdict: what was decided.
        judging: what was asked, and of whom.
        time: when, as `judge.runs.machine.now` writes it.
        path: the file, or the name that the caller gave the image; None where it has none.
        image_hash: SHA-256 (64 hexadecimal digits) of the encoded image; None where its bytes could not be read.
        frame: of an animation or a transparent image, the view that the verdict is about.
    """
    thresholds = judging.thresholds
    return {
        "row_format": ROW_FORMAT,
        "time": time,
        "image": {"path": path, "sha256": image_hash, "frame": frame or None},
        "status": verdict.status,
        "flagged": verdict.flagged,
        "unsafe": verdict.unsafe,
        "category": verdict.category,
        "scores": dict(verdict.scores),
        "flags": {name: score >= thresholds[name] for name, score in verdict.scores.items()},
        "thresholds": thresholds,
        "taxonomy": {
            "name": judging.taxonomy.name,
            "version": str(judging.taxonomy.version),
            "hash": judging.taxonomy.hash,
        },
        "model": {"name": verdict.model or judging.model, "sha256": judging.model_hash},
        "decided_by": verdict.decided_by,
        "because": verdict.because,
        "reason": verdict.reason,
        "note": verdict.note,
        "evidence": verdict.evidence,
        "promise": verdict.promise,
        "arbiter": package_version(),
    }


def is_verdict_row(row: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether data from elsewhere is a verdict row of this format that does not contradict itself.

    What is read from a file or a server is checked by this before anybody believes it: of another format, keys may mean
    something else, and a score that is no number compares as below every threshold.
    """
    if not isinstance(row, Mapping) or row.get("row_format") != ROW_FORMAT:
        return False
    names = ("image", "scores", "flags", "thresholds", "taxonomy", "model")
    parts = [part for part in map(row.get, names) if isinstance(part, Mapping)]
    if len(parts) < len(names):
        return False
    image, scores, flags, thresholds, taxonomy, model = parts
    status = row.get("status")
    return (
        status in _FLAGGED
        and row.get("flagged") is _FLAGGED[status]
        and all(isinstance(image.get(key), str | None) for key in ("path", "sha256"))
        and all(isinstance(taxonomy.get(key), str) for key in ("name", "version", "hash"))
        and isinstance(model.get("name"), str)
        and isinstance(model.get("sha256"), str | None)
        and bool(thresholds)
        and set(flags) == set(scores) <= set(thresholds)
        and all(isinstance(violated, bool) for violated in flags.values())
        and all(map(_is_probability, (*scores.values(), *thresholds.values())))
        and (status == "unjudged" or _is_probability(row.get("unsafe")))
        and not (status == "safe" and any(flags.values()))
    )


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


@cache
def package_version() -> str:
    """The installed version of Arbiter; `checkout` where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("arbiter-vision")
    except PackageNotFoundError:
        return "checkout"
