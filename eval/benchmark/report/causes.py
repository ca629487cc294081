"""Why the classifiers fail: the tables and figures of `eval.causes` in the page of a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.reports.causes_figures import KINDS, draw_causes
from eval.reports.causes_tables import cause_tables
from eval.reports.table import Table

from .contact_sheet import Thumbnails
from .figures import Plot, plot_of

CAUSES = "Causes of failures"
"""Heading of the part."""


@dataclass(frozen=True)
class Cluster:
    """The failure nearest to the centre of one cluster."""

    id: str
    size: int
    """Images in the cluster."""
    violates: str
    """What they violate, the most frequent first."""
    picture: str | None
    """As a `data:` URI."""
    missing: str | None
    """Why there is no picture."""


@dataclass(frozen=True)
class Causes:
    """What a page says of them."""

    tables: list[Table]
    plots: dict[str, tuple[str, list[Plot]]]
    """Heading -> what its plots show, and the plots."""
    clusters: dict[str, dict[str, list[Cluster]]]
    """Classifier, or group of them -> kind of failure and source -> its clusters."""


def explain_causes(record: Mapping[str, Any] | None, thumbnails: Thumbnails) -> Causes:
    """Tables, figures and pictures of a record of `explain_failures`; none without one."""
    if not record:
        return Causes([], {}, {})
    plots = {
        heading: (about, [plot_of(heading, one.label, one.caption, one.svg) for one in found])
        for heading, (about, found) in draw_causes(record).items()
    }
    groups = (record["clusters"] or {"groups": {}})["groups"]
    clusters = {name: _clusters(group, thumbnails) for name, group in groups.items()}
    return Causes(cause_tables(record), plots, {name: found for name, found in clusters.items() if found})


def _clusters(group: Mapping[str, Any], thumbnails: Thumbnails) -> dict[str, list[Cluster]]:
    return {
        f"{KINDS[kind]}, {source}: {part['images']:,} of {part['of']:,}": [
            _cluster(one, thumbnails) for one in part["clusters"]
        ]
        for kind, parts in group["failures"].items()
        for source, part in parts.items()
        if part["clusters"]
    }


def _cluster(one: Mapping[str, Any], thumbnails: Thumbnails) -> Cluster:
    nearest = one["nearest"][0]
    violates = ", ".join(f"{key} ({count})" for key, count in one["violates"].items())
    return Cluster(nearest, one["size"], violates, *thumbnails.embed(nearest))
