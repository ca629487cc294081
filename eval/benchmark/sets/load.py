"""`load_policy_set("policyshiftbench:PATH")`: which policy sets there are, and how one is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from judge.data.examples import check_failures, write_skipped_rows
from judge.data.images import DEFAULT_LIMITS, ImageLimits, open_image
from judge.data.labels import UnusableRowError
from judge.data.layouts import Layout, Record, Records, open_records, parse_spec, requested_splits
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

    hub: str
    """Its name on the hub."""
    access: str
    """How a copy is had, for the message where there is none."""
    layout: Layout
    read: Callable[[Record, Form], PolicyRow]
    parts: Mapping[str, Sequence[str]]
    """Splits that stand for several."""
    whole: bool = True
    """Whether the hub holds everything, images included, so that its name alone can be read."""


POLICY_SETS: Mapping[str, PolicySource] = {
    "policyshiftbench": PolicySource(
        "PolicyShiftGuard/PolicyShiftBench",
        "non-commercial research; accept its terms on the hub if it asks for them",
        policyshift.LAYOUT,
        policyshift.read_row,
        policyshift.PARTS,
    ),
    "safeeditbench": PolicySource(
        "tyodd/SafeEditBench",
        "gated: accept its terms on the hub, research only",
        safeedit.LAYOUT,
        lambda record, form: safeedit.read_row(record),
        {},
    ),
    "llavaguard": PolicySource(
        "AIML-TUDA/LlavaGuard",
        "gated: accept its terms on the hub; it lists addresses of images, which you have to fetch into `images/`",
        llavaguard.LAYOUT,
        lambda record, form: llavaguard.read_row(record),
        llavaguard.PARTS,
        whole=False,
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
    table = _open(kind, where, source, renamed)
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


def _open(kind: str, where: str | None, source: PolicySource, renamed: Mapping[str, str]) -> Records:
    advice = (
        f"Access to {kind} ({source.hub} on the hub): {source.access}. Then `hf auth login` and `hf download "
        f"{source.hub} --repo-type dataset --local-dir DIR`, and give {kind}:DIR."
    )
    if where is None and not source.whole:
        raise ExampleError(f"{kind} cannot be read from the hub alone. {advice}")
    if where is not None and not Path(where).exists():
        raise ExampleError(f"{kind}: there is nothing at {where}. {advice}")
    try:
        return open_records(where or source.hub, source.layout, name=kind, renamed=renamed)
    except ExampleError as error:
        if where is not None:
            raise
        raise ExampleError(f"{error} {advice}") from error


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
