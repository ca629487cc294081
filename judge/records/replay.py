"""Past decisions as a test of a new wording: what the judge says under it, beside what moderators decided.

Categories of the taxonomy that a decision was made under are found in the new one by a mapping of the caller's. Nobody
decided about the others, so they say neither right nor wrong.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prompts.taxonomy import Taxonomy

from .entries import Decision
from .records import Records

Agreement = Literal["agrees", "disagrees", "unjudged"]


@dataclass(frozen=True)
class PastDecision:
    """What a moderator decided of an image, in the words of a new taxonomy."""

    decision: Decision
    decided_about: frozenset[str]
    """The new categories that the moderator had before them; never empty."""
    expected: frozenset[str] | None
    """Those that the image violates; None for "some category"."""
    before: frozenset[str]
    """Those that the verdict of the time flagged."""

    @property
    def agreed_before(self) -> Agreement:
        """Whether the verdict of the time was what the moderator decided."""
        return _agreement(self, self.decision.verdict, self.before)


@dataclass(frozen=True)
class Replayed:
    """A past decision and the row of the new verdict."""

    past: PastDecision
    row: Mapping[str, Any]

    @property
    def flagged(self) -> frozenset[str]:
        """The categories that are flagged now, of those that the moderator decided about."""
        return _flagged(self.row) & self.past.decided_about

    @property
    def agrees_now(self) -> Agreement:
        """Whether the new verdict is what the moderator decided."""
        return _agreement(self.past, self.row, self.flagged)

    @property
    def changed(self) -> bool:
        """Whether the new verdict is another one, as far as somebody decided about it."""
        before = self.past.decision.verdict
        return (_status(self.row, self.flagged), self.flagged) != (
            _status(before, self.past.before),
            self.past.before,
        )

    @property
    def change(self) -> str:
        """`fixed`, `broken`, `unjudged` (now), or `changed` otherwise."""
        if self.agrees_now == "unjudged":
            return "unjudged"
        right = self.past.agreed_before == "agrees", self.agrees_now == "agrees"
        return {(False, True): "fixed", (True, False): "broken"}.get(right, "changed")


def past_decisions(
    records: Records, taxonomy: Taxonomy, names: Callable[[Taxonomy, Taxonomy], Mapping[str, str]]
) -> list[PastDecision]:
    """The decisions that say something of a new taxonomy, oldest first.

    Of several about one image with one prompt the latest counts. Left out are skipped images, those that were deleted,
    and decisions under taxonomies that have no category in common with the new one.

    Args:
        records: what was decided.
        taxonomy: the new one.
        names: (old, new) -> name of an old category -> name of the same one in the new taxonomy.
    """
    latest: dict[tuple[str, str | None], Decision] = {}
    for decision in records.each_decision():
        if decision.item.state != "deleted":
            about = (decision.item.sha256, decision.item.prompt)
            latest.pop(about, None)  # so that the latest comes last
            latest[about] = decision
    renamed: dict[str, Mapping[str, str]] = {}
    found = []
    for decision in latest.values():
        policy = decision.verdict["taxonomy"]["hash"]
        if policy not in renamed:
            renamed[policy] = names(records.policy(policy), taxonomy)
        if decision.ruling.status is not None and renamed[policy]:
            found.append(_in_new_words(decision, renamed[policy]))
    return found


def summary(replayed: Sequence[Replayed]) -> dict[str, int]:
    """How many there are, agree before and now, are not judged now, and changed for the better or worse."""
    changed = [one.change for one in replayed if one.changed]
    return {
        "decisions": len(replayed),
        "agreed_before": sum(one.past.agreed_before == "agrees" for one in replayed),
        "agree_now": sum(one.agrees_now == "agrees" for one in replayed),
        "unjudged_now": sum(one.agrees_now == "unjudged" for one in replayed),
        **{kind: changed.count(kind) for kind in ("fixed", "broken", "changed")},
    }


def other_judges(past: Sequence[PastDecision], model_hash: str | None) -> Iterator[str]:
    """Names of the judges, other than this one, that verdicts of the time came from, each once."""
    models = (one.decision.verdict["model"] for one in past)
    yield from dict.fromkeys(
        model["name"] for model in models if model_hash is None or model["sha256"] != model_hash
    )


def _in_new_words(decision: Decision, names: Mapping[str, str]) -> PastDecision:
    ruling = decision.ruling
    some = ruling.status == "unsafe" and not ruling.categories
    return PastDecision(
        decision,
        frozenset(names.values()),
        None if some else frozenset(names[name] for name in ruling.categories if name in names),
        frozenset(names[name] for name in _flagged(decision.verdict) if name in names),
    )


def _agreement(past: PastDecision, row: Mapping[str, Any], flagged: frozenset[str]) -> Agreement:
    status = _status(row, flagged)
    if status == "unjudged":
        return "unjudged"
    if past.expected is None:  # some category, whichever it was
        return "agrees" if row["status"] == "unsafe" else "disagrees"
    if status == "unsafe" and not flagged:  # a judge that does not tell categories apart
        return "agrees" if past.expected else "disagrees"
    return "agrees" if flagged == past.expected else "disagrees"


def _status(row: Mapping[str, Any], flagged: frozenset[str]) -> str:
    """The status of a row; safe where nothing is flagged but categories that nobody decided about."""
    return "safe" if _flagged(row) and not flagged else str(row["status"])


def _flagged(row: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, flag in row["flags"].items() if flag)
