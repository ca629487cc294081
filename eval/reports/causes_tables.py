"""Tables about why classifiers fail, from the record of `eval.causes.explain.explain_failures`."""

from collections.abc import Mapping, Sequence
from typing import Any

from .causes_figures import KINDS
from .table import Table

Record = Mapping[str, Any]
Lines = list[tuple[str, Sequence[Any]]]


def cause_tables(record: Record) -> list[Table]:
    """The tables of the parts that were made, and last which were not, and why."""
    found = []
    if record["shift"]:
        found.append(shift_table(record["shift"], record["separation"], record["unreadable"]))
    if record["case_study"]:
        found.append(case_study_table(record["case_study"]))
    if record["clusters"]:
        found += [failure_counts(record["clusters"]), cluster_table(record["clusters"])]
    if record["confidence"]:
        found.append(confidence_table(record["confidence"]))
    if record["attack_loss"]:
        found.append(attack_loss_table(record["attack_loss"]))
    if record["not_made"]:
        lines: Lines = [(part.replace("_", " "), [why]) for part, why in record["not_made"].items()]
        found.append(Table("Not made", ["why"], lines))
    return [table for table in found if table.lines]


def shift_table(shift: Record, separation: Record | None, unreadable: Record) -> Table:
    """Medians by source, and each source against the reference."""
    sources = list(shift["sources"])
    heads = [f"median, {source}" for source in sources]
    for source in sources[1:]:
        heads += [f"Cliff's delta, {source}", "95 %", "Kolmogorov-Smirnov"]
    lines: Lines = []
    for one in shift["statistics"].values():
        cells = [_median(one["sources"][source]) for source in sources]
        for effect in one["against_reference"].values():
            cells += [effect["cliffs_delta"], effect["interval"], effect["ks"]]
        lines.append((one["label"], cells))
    for source, one in (separation or {"sources": {}})["sources"].items():
        blank = [None] * len(sources)
        cells = [
            cell
            for other in sources[1:]
            for cell in ([one["auc"], one["interval"], None] if other == source else [None] * 3)
        ]
        lines.append(("AUC of a line between the embeddings (0.5: alike)", [*blank, *cells]))
    notes = [
        f"Images: {', '.join(f'{source} {count:,}' for source, count in shift['sources'].items())}. "
        "Cliff's delta is positive where that source has more; 0 is no difference."
    ]
    if any(shift["enlarged"].values()):
        shares = ", ".join(f"{source} {share:.0%}" for source, share in shift["enlarged"].items())
        notes.append(f"Smaller than what they were measured at, and so smoother: {shares}.")
    if shift["left_out"]:
        notes.append(f"Not compared: {', '.join(f'{s} {n:,}' for s, n in shift['left_out'].items())}.")
    if unreadable["images"]:
        notes.append(f"{unreadable['images']:,} images could not be opened and are in no number.")
    return Table("Shift between sources", heads, lines if sources else [], " ".join(notes))


def case_study_table(case: Record) -> Table:
    """Share judged right of every variation, for each classifier and all together."""
    rows = dict(case["classifiers"])
    if case["together"] and len(rows) > 1:
        rows["all together"] = case["together"]
    lines: Lines = []
    heads: list[str] = []
    for label, one in rows.items():
        if one["original"] is None:
            continue
        cells = [one["original"], *one["style"], *one["grid"]]
        heads = [
            "images", "original", *(f"style {cell['level']:g}" for cell in one["style"]),
            *(f"{cell['level']:g} x {cell['level']:g}" for cell in one["grid"]), "not judged",
        ]  # fmt: skip
        shares = [None if cell["share"] is None else f"{cell['share']:.0%}" for cell in cells]
        lines.append((label, [one["images"], *shares, sum(cell["unjudged"] for cell in cells)]))
    notes = [f"Style: {case['style']['said']}.", f"Review: {case['review']['said']}."]
    if case["dropped"]:
        notes.append(f"Dropped, as they lost what they showed: {len(case['dropped'])}.")
    if case["left_out"]:
        why = "; ".join(f"{label}: {reason}" for label, reason in case["left_out"].items())
        notes.append(f"Not asked: {why}.")
    notes.append(f"Drawn from {case['candidates']:,} images that all of these classifiers judge right.")
    return Table("Case study of style and layout: share judged right", heads, lines, " ".join(notes))


def failure_counts(clusters: Record) -> Table:
    """How many images each classifier, and each group of them, gets wrong in which way."""
    columns = list(
        dict.fromkeys(
            (kind, source)
            for group in clusters["groups"].values()
            for kind, parts in group["failures"].items()
            for source in parts
        )
    )
    columns.sort(key=lambda column: list(KINDS).index(column[0]))  # stable: sources stay in their order
    heads = [f"{KINDS[kind]}, {source}" for kind, source in columns]
    lines: Lines = []
    for name, group in clusters["groups"].items():
        cells: list[Any] = []
        for kind, source in columns:
            part = group["failures"][kind].get(source)
            cells.append(None if part is None else f"{part['images']:,} of {part['of']:,}")
        lines.append((name, [*cells, group["mixed"] if len(group["labels"]) > 1 else None]))
    note = "A group fails where all of its classifiers do alike; mixed: all wrong, but not alike."
    return Table("Failures by kind and source", [*heads, "mixed"], lines, note)


def cluster_table(clusters: Record) -> Table:
    """The clusters of the groups; of single classifiers only where there is no group."""
    groups = clusters["groups"]
    shown = {name: group for name, group in groups.items() if len(group["labels"]) > 1} or groups
    lines: Lines = []
    notes = []
    for name, group in shown.items():
        for kind, parts in group["failures"].items():
            for source, part in parts.items():
                where = f"{name}: {KINDS[kind]}, {source}"
                if part["note"]:
                    notes.append(f"{where}: {part['note']}.")
                if part["without_embedding"]:
                    notes.append(f"{where}: {part['without_embedding']} could not be opened.")
                for number, one in enumerate(part["clusters"], start=1):
                    violates = ", ".join(f"{key} ({count})" for key, count in one["violates"].items())
                    lines.append((f"{where}, {number}", [one["size"], violates or None, one["nearest"][0]]))
    return Table(
        "Clusters of failures", ["images", "violates most", "nearest to the centre"], lines, " ".join(notes)
    )


def confidence_table(found: Record) -> Table:
    """Medians of confidence and loss by source, and each source against the reference."""
    return _effects(
        "Confidence and loss",
        {label: (one, "all") for label, one in found["classifiers"].items()},
        {"confidence": "confidence", "loss": "loss"},
        "Of judged images whose truth is known. Cliff's delta is of that source against the first one.",
    )


def attack_loss_table(found: Record) -> Table:
    """Medians of the loss before an attack and of its rise, by source."""
    rows = {
        f"{victim}, {attack}": (one, None)
        for victim, attacks in found["victims"].items()
        for attack, one in attacks.items()
    }
    return _effects(
        f"Loss under attack at {found['epsilon']}",
        rows,
        {"clean": "loss before", "increase": "rise"},
        f"Of images judged right before the attack, by the run {found['run']}.",
    )


def _effects(
    title: str, rows: Mapping[str, tuple[Record, str | None]], columns: Mapping[str, str], note: str
) -> Table:
    """A line for each of `rows`: medians by source and effects against the reference, of each of `columns`."""
    sources = list(dict.fromkeys(source for one, _ in rows.values() for source in one["sources"]))
    heads = []
    for name in columns.values():
        heads += [f"{name}, {source}" for source in sources]
        heads += [head for source in sources[1:] for head in (f"Cliff's delta, {source}", "95 %")]
    lines: Lines = []
    for label, (one, side) in rows.items():
        cells: list[Any] = []
        for column in columns:
            for source in sources:
                part = one["sources"].get(source)
                cells.append(None if part is None else _median((part[side] if side else part)[column]))
            for source in sources[1:]:
                effect = one["against_reference"].get(source, {}).get(column)
                cells += [effect["cliffs_delta"], effect["interval"]] if effect else [None, None]
        lines.append((label, cells))
    return Table(title, heads, lines if sources else [], note)


def _median(distribution: Record) -> float | None:
    return None if distribution["quantiles"] is None else float(distribution["quantiles"][2])
