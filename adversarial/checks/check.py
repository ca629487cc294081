"""What an honesty check says, and what to do with many of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adversarial.errors import AttackError

Measured = float | Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One check and what it found."""

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
    name: str, passed: bool, measured: Measured, limit: float, seen: str, otherwise: str
) -> Check:
    """A check whose message says what was seen and, only where it failed, `otherwise` what that means."""
    return Check(name, bool(passed), measured, limit, seen if passed else f"{seen} {otherwise}")


def require_honest(checks: Sequence[Check]) -> None:
    """Stop where a check failed.

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
    """A table for printing: verdict, name, what was measured, its limit, what it means."""
    rows = [
        (
            "ok" if check.passed else "FAILED",
            check.name,
            _shown(check.measured),
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


def _shown(measured: Measured) -> str:
    if isinstance(measured, Mapping):
        return ", ".join(f"{name} {value:.3g}" for name, value in measured.items())
    return f"{measured:.3g}"
