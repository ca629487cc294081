"""Statistics of a draw, for the run folder and as a table."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from .conditions import Conditional
from .rows import Row


def report(rows: Iterable[Row]) -> dict[str, Any]:
    """Count rows by label, arm, category, focus, policy length, prompt and source; ready for JSON.

    Categories are counted by key, all custom ones together; `called` is the kind of name that an unsafe row's category
    had in the policy. A row without a category (safe) or without focus is not counted there.
    `uses` says how often an image was drawn that was drawn at all; `policies` how many differ in wording or
    order.
    """
    rows = list(rows)
    counts = {
        name: {str(value): number for value, number in sorted(_tally(rows, value_of).items(), key=_order)}
        for name, value_of in _COUNTED.items()
    }
    # Images that were never drawn are not among these.
    uses = Counter(row.example.id for row in rows).values()
    # Rows of a group share one taxonomy object; its hash is computed once and not once a row.
    distinct = {id(row.taxonomy): row.taxonomy for row in rows}.values()
    return {
        "rows": len(rows),
        "policies": len({taxonomy.hash for taxonomy in distinct}),
        "images": len(uses),
        "uses": {"min": min(uses, default=0), "max": max(uses, default=0)},
        **counts,
    }


def format_report(counts: dict[str, Any]) -> str:
    """A report as a table for the terminal: one line per value, with its share of the rows counted."""
    uses = counts["uses"]
    lines = [
        f"{counts['rows']} rows, {counts['policies']} policies, {counts['images']} images "
        f"used {uses['min']} to {uses['max']} times"
    ]
    for name in _COUNTED:
        total = counts["rows"] if name in _SEVERAL else sum(counts[name].values())
        for value, number in counts[name].items():
            lines.append(f"{name:<14} {value:<24} {number:>8} {number / total:>7.1%}")
    return "\n".join(lines)


def _tally(rows: list[Row], value_of: Callable[[Row], Hashable]) -> Counter[Hashable]:
    found: Counter[Hashable] = Counter()
    for value in map(value_of, rows):
        found.update(value if isinstance(value, tuple) else () if value is None else (value,))
    return found


def _order(item: tuple[Hashable, int]) -> tuple[int, str]:
    """Numbers by size, texts by alphabet."""
    value = item[0]
    return (value, "") if isinstance(value, int) else (0, str(value))


def _key(row: Row, name: str) -> str:
    category = row.taxonomy.categories[row.taxonomy.index(name)]
    if isinstance(category, Conditional):
        return category.key.split()[0]  # "no", "and", "without": each combination is rare
    return "custom" if len(category.members) > 1 else category.key


def _called(row: Row) -> str | None:
    """`own` for the name it was loaded with, `renamed`, or `custom`; None for a safe row."""
    if row.category is None:
        return None
    key = _key(row, row.category)
    return key if key == "custom" else "own" if key == row.category else "renamed"


_SEVERAL = ("wording", "prompt form")
"""Of these a row may have more than one value, and each is counted."""
_COUNTED: dict[str, Callable[[Row], Hashable]] = {
    "label": lambda row: "unsafe" if row.unsafe else "safe",
    "arm": lambda row: row.arm,
    "category": lambda row: _key(row, row.category) if row.category else None,
    "called": _called,
    "focus": lambda row: _key(row, row.focus) if row.focus else None,
    "policy length": lambda row: len(row.taxonomy),
    "prompt": lambda row: row.prompt_kind,
    "wording": lambda row: tuple(row.wording.split("+")),
    "prompt form": lambda row: tuple(row.prompt_form.split("+")),
    "source": lambda row: row.example.source,
}
