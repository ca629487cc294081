"""The result of an honesty check, and functions for lists of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adversarial.errors import AttackError

Measured = float | Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    passed: bool
    measured: Measured
    limit: float
    message: str
    """What was measured; where it failed, what that means and what to do."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        measured = dict(self.measured) if isinstance(self.measured, Mapping) else self.measured
        return {**asdict(self), "measured": measured}


def build_check(
    name: str, passed: bool, measured: Measured, limit: float, finding: str, advice: str
) -> Check:
    """A check whose message is the finding and, only where it failed, the advice."""
    return Check(name, bool(passed), measured, limit, finding if passed else f"{finding} {advice}")


def require_honest(checks: Sequence[Check]) -> None:
    """Raise if a check failed.

    Raises:
        AttackError: names every check that failed, and why.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        lines = "\n".join(f"- {check.name}: {check.message}" for check in failed)
        raise AttackError(
            f"{len(failed)} of {len(checks)} honesty checks failed, so no robustness may be claimed:\n{lines}"
        )


def format_checks(checks: Sequence[Check]) -> str:
    """A table for printing: result, name, measured value, limit, message."""
    rows = [
        (
            "ok" if check.passed else "FAILED",
            check.name,
            _format(check.measured),
            f"{check.limit:g}",
            check.message,
        )
        for check in checks
    ]
    rows.insert(0, ("", "check", "measured", "limit", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def _format(measured: Measured) -> str:
    if isinstance(measured, Mapping):
        return ", ".join(f"{name} {value:.3g}" for name, value in measured.items())
    return f"{measured:.3g}"
