"""What was annotated, in numbers, as in UnsafeBench's Table 2 (by source) and Table 9 (by category)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prompts.taxonomy import Taxonomy

from .agreement import measure_agreement
from .votes import STATES, Outcome

UNKNOWN = "not recorded"
"""Name of the source of images without one, and of the category of safe images without one."""


def statistics(outcomes: Sequence[Outcome], taxonomy: Taxonomy) -> dict[str, Any]:
    """JSON values: `sources` and `all` (Table 2, a line each), `categories` (Table 9: images by source and label).

    A line has `all` and each `State` (images), and `agreement` as in `Agreement`. An unsafe image counts in each of its
    categories, a safe one in the category that it was collected for.
    """
    sources = sorted({outcome.ballot.picture.source or UNKNOWN for outcome in outcomes})
    groups = {
        source: [o for o in outcomes if (o.ballot.picture.source or UNKNOWN) == source] for source in sources
    }
    return {
        "taxonomy": {"name": taxonomy.name, "version": taxonomy.version, "hash": taxonomy.hash},
        "sources": {source: _line(members) for source, members in groups.items()},
        "all": _line(outcomes),
        "categories": {source: _by_category(members, taxonomy) for source, members in groups.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """The two tables."""
    return "\n".join(
        [
            "# Annotated images",
            "",
            *_rows(by_source(found)),
            "",
            "Fleiss' kappa of the first two labels of each image, with its 95 % interval. Over all labels it is too "
            "high where a third annotator was asked on disagreement only.",
            "",
            *_rows(by_category(found)),
            "",
            "A safe image counts in the category that it was collected for, an unsafe one in each that it violates.",
            "",
        ]
    )


def by_source(found: dict[str, Any]) -> list[list[str]]:
    """Table 2 as texts, its titles first."""
    titles = ["source", "all", "safe", "unsafe", "N/A", "no category", "unresolved"]
    table = [[*titles, "kappa", "95 % interval", "kappa, all labels"]]
    for name, line in [*found["sources"].items(), ("all", found["all"])]:
        numbers = [str(line[key]) for key in ("all", *STATES)]
        agreement = line["agreement"]
        interval = agreement["first_two_interval"]
        shown = "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
        table.append(
            [name, *numbers, _number(agreement["first_two"]), shown, _number(agreement["all_votes"])]
        )
    return table


def by_category(found: dict[str, Any]) -> list[list[str]]:
    """Table 9 as texts, its titles first; a line for each source and label."""
    groups = found["categories"]
    titles = list(next(iter(groups.values()))["safe"]) if groups else []
    table = [["source", "label", *titles, "images"]]
    for source, labels in groups.items():
        for label, counts in labels.items():
            images = found["sources"][source][label]
            table.append([source, label, *(str(counts[title]) for title in titles), str(images)])
    return table


def _line(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    states = [outcome.state for outcome in outcomes]
    return {
        "all": len(outcomes),
        **{state: states.count(state) for state in STATES},
        "agreement": asdict(measure_agreement([outcome.ballot for outcome in outcomes])),
    }


def _by_category(outcomes: Sequence[Outcome], taxonomy: Taxonomy) -> dict[str, dict[str, int]]:
    """`safe` and `unsafe` -> name of a category -> images."""
    counts = {label: dict.fromkeys((*taxonomy.names, UNKNOWN), 0) for label in ("safe", "unsafe")}
    for outcome in outcomes:
        if outcome.state == "safe":
            counts["safe"][outcome.ballot.picture.collected_for or UNKNOWN] += 1
        elif outcome.state == "unsafe":
            for category in outcome.categories or (UNKNOWN,):
                counts["unsafe"][category] += 1
    return counts


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _rows(table: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(table[0])}", *lines[1:]]
