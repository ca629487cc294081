"""`load_policy_set("policyshiftbench:PATH")`: which policy sets there are, and how one is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from judge.data.examples import check_failures, write_skipped_rows
from judge.data.images import DEFAULT_LIMITS, ImageLimits, open_image
from judge.data.labels import UnusableRowError
from judge.data.layouts import Layout, Record, parse_spec, requested_splits
from judge.data.published import Origin, open_copy
from judge.data.sources import Skipped
from judge.errors import ImageError
from prompts.errors import ExampleError
from prompts.names import nearest

from . import llavaguard, policyshift, safeedit
from .policyshift import Form
from .rows import PolicyRow, PolicySet, policy_set


@dataclass(frozen=True)
class PolicySource:
    """A published policy set: where it is kept and how its rows are read."""

    origin: Origin
    layout: Layout
    read: Callable[[Record, Form], PolicyRow]
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Splits that stand for several."""


POLICY_SETS: Mapping[str, PolicySource] = {
    "policyshiftbench": PolicySource(
        policyshift.ORIGIN, policyshift.LAYOUT, policyshift.read_row, policyshift.PARTS
    ),
    "safeeditbench": PolicySource(
        safeedit.ORIGIN, safeedit.LAYOUT, lambda record, form: safeedit.read_row(record)
    ),
    "llavaguard": PolicySource(
        llavaguard.ORIGIN,
        llavaguard.LAYOUT,
        lambda record, form: llavaguard.read_row(record),
        llavaguard.PARTS,
    ),
}
"""Policy sets that can be read, by the name that a spec begins with."""


def load_policy_set(
    spec: str,
    split: str = "test",
    *,
    form: Form = "policy",
    max_failures: float = 0.01,
    ledger: Path | None = None,
    verify: bool = True,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> PolicySet:
    """Read the questions of a policy set.

    Args:
        spec: `NAME:PATH` for a local copy (Parquet files, a saved data set, or CSV or JSON beside images), or `NAME`
            alone for the hub; names are those of `POLICY_SETS`. Where a copy names a column differently,
            `NAME:PATH?ours=COLUMN` says so.
        split: `test`, another that the set declares, or `all`.
        form: of PolicyShiftBench: each row under its own `policy` alone, or under the `bundle` of all risk areas, as
            published. The other sets have one form.
        max_failures: largest share of rows, 0 to 1, that may be unusable.
        ledger: JSON-lines file to list skipped rows in, written even where loading stops.
        verify: decode each image once now, so that a broken one is found before the run.
        limits: passed to `open_image`.

    Raises:
        ExampleError: unknown set, split or column, or no copy; the message says how to get one.
        UnusableRowsError: more rows are unusable than allowed, or none is usable.
    """
    kind, where, renamed = parse_spec(spec)
    if kind not in POLICY_SETS:
        raise ExampleError(
            f"No policy set {spec!r}{nearest(kind, list(POLICY_SETS))}. Use one of {', '.join(POLICY_SETS)}, "
            "with ':PATH' for a local copy."
        )
    if form not in get_args(Form):
        raise ExampleError(f"form is {form!r}; use {' or '.join(map(repr, get_args(Form)))}.")
    source = POLICY_SETS[kind]
    table = open_copy(kind, where, source.origin, source.layout, renamed)
    rows: list[PolicyRow] = []
    skipped: list[Skipped] = []
    for part in requested_splits(table, split, source.parts, kind):
        for record in table.records(part):
            if isinstance(record, Skipped):
                skipped.append(record)
                continue
            try:
                rows.append(source.read(record, form))
            except UnusableRowError as error:
                skipped.append(Skipped(record.place, error.status, error.reason))
    if verify:
        rows, broken = _verified(rows, limits)
        skipped += broken
    found = policy_set(rows, skipped, f"{spec}/{split}")
    if ledger is not None:
        write_skipped_rows(ledger, found.skipped)
    check_failures(found.name, len(found.questions), found.skipped, max_failures, ledger)
    return found


def _verified(rows: list[PolicyRow], limits: ImageLimits) -> tuple[list[PolicyRow], list[Skipped]]:
    """Rows whose image can be opened, and the others; each picture is opened once."""
    reasons: dict[str, ImageError | None] = {}
    kept, broken = [], []
    for row in rows:
        if row.image_id not in reasons:
            try:
                open_image(row.image, limits)
                reasons[row.image_id] = None
            except ImageError as error:
                reasons[row.image_id] = error
        problem = reasons[row.image_id]
        if problem is None:
            kept.append(row)
        else:
            broken.append(Skipped(row.id, problem.status, problem.reason))
    return kept, broken
