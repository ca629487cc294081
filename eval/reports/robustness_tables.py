"""The tables of a robustness report, from the numbers in `metrics.json`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .table import Table

HEADLINE_KEYS = (
    "huge_epsilon_success",
    "filters_asr",
    "cascade_asr",
    "cascade_f1_loss",
    "undefended_robust_accuracy",
    "defended_robust_accuracy",
    "clean_f1_loss",
)
"""Keys of `headline`: the numbers that summarise a run."""
Metrics = Mapping[str, Any]


def tables(metrics: Metrics) -> list[Table]:
    """Each table that the metrics of `recipes/attack.py` have data for, in the order of the report."""
    pixels = metrics["pixels"]
    found = [
        by_epsilon(pixels, metrics["suite"]["ran"]),
        by_attack_table(pixels),
        by_storage(pixels),
        *(
            split_table(pixels, key, title)
            for key, title in (
                ("by_direction", "truth"),
                ("by_source", "source"),
                ("by_category", "category"),
            )
        ),
    ]
    if metrics.get("comparison"):
        found.append(comparison(metrics["comparison"]))
    if metrics.get("deployments"):
        found += [deployments(metrics["deployments"]), static(metrics["deployments"])]
    if metrics.get("texts"):
        found.append(texts(metrics["texts"]))
    if metrics.get("disguises"):
        found.append(disguises(metrics["disguises"]))
    if metrics.get("edits"):
        found.append(edits(metrics["edits"]))
    if metrics.get("transfer"):
        found.append(transfer(metrics["transfer"]))
    found.append(honesty(metrics["honesty"]))
    # What was not measured has a table without lines.
    return [table for table in found if table.lines]


def by_epsilon(pixels: Metrics, ran: str) -> Table:
    """Robust accuracy of each victim against epsilon; `ran` describes the attacks."""
    # All victims were attacked at the same budgets.
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    lines = [
        (
            name,
            [
                summary["rows"],
                summary["clean_f1"],
                summary["misjudged"] + summary["unjudged"],
                *(summary["by_epsilon"][budget]["robust_accuracy"] for budget in budgets),
                summary["interval"],
            ],
        )
        for name, summary in pixels.items()
    ]
    note = (
        "Share of all n rows judged correctly, both clean and after every attack at this epsilon or a smaller one, as "
        "verified on the stored image; a row that is unjudged after an attack counts as an error. "
        f"{ran} No change below one grey level can be stored. 95 % intervals by image."
    )
    heads = ["n", "clean F1", "clean errors", *budgets, "95 %, headline epsilon"]
    return Table("Robust accuracy by epsilon", heads, lines, note)


def by_storage(pixels: Metrics) -> Table:
    """Robust accuracy on the attacks' float images, and on images stored in each way."""
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    # The remaining keys of an epsilon are ways of storage.
    other = ("robust_accuracy", "interval", "unjudged")
    lines = [
        (f"{name}: {entry}", [summary["rows"], *(summary["by_epsilon"][budget][entry] for budget in budgets)])
        for name, summary in pixels.items()
        for entry in summary["by_epsilon"][budgets[0]]
        if entry not in other
    ]
    note = (
        "raw: the attack's float images. The others: images after this storage, judged as in deployment. Attacks do "
        "not adapt to a re-encoding, so robustness by JPEG here is no defence. A row that was broken as bytes at a "
        "smaller epsilon is attacked by the first attack only."
    )
    return Table("Robust accuracy by storage of images", ["n", *budgets], lines, note)


def by_attack_table(pixels: Metrics) -> Table:
    """Robust accuracy against each attack alone, at the headline epsilon."""
    # In order of first appearance; attacks that need gradients are missing for some victims.
    names = list(dict.fromkeys(name for summary in pixels.values() for name in summary["by_attack"]))
    lines = [
        (
            name,
            [
                summary["rows"],
                *(summary["by_attack"].get(attack, {}).get("robust_accuracy") for attack in names),
                summary["robust_accuracy"],
            ],
        )
        for name, summary in pixels.items()
    ]
    return Table("Robust accuracy by attack, headline epsilon", ["n", *names, "worst case"], lines)


def split_table(pixels: Metrics, key: str, title: str) -> Table:
    """Robust accuracy of each part of the rows, such as each source."""
    parts = list(dict.fromkeys(part for summary in pixels.values() for part in summary[key]))
    lines = [
        (
            name,
            [
                value
                for part in parts
                for value in (summary[key].get(part, {}).get(what) for what in ("rows", "robust_accuracy"))
            ],
        )
        for name, summary in pixels.items()
    ]
    heads = [head for part in parts for head in ("n", part)]
    return Table(f"Robust accuracy by {title}, headline epsilon", heads, lines)


def comparison(found: Metrics) -> Table:
    """Robust accuracy without and with a defence."""
    lines = [
        (
            f"{name}: {entry['epsilon']}",
            [
                entry["rows"], entry["undefended"], entry["defended"], entry["lead"], entry["interval"],
                entry["p_value"], entry["clean_f1_loss"],
            ],
        )
        for name, entries in found.items()
        for entry in entries
    ]  # fmt: skip
    heads = [
        "n",
        "undefended",
        "defended",
        "difference",
        "95 % (paired bootstrap)",
        "McNemar p",
        "clean F1 loss",
    ]
    note = (
        "Robust accuracy of both on the same n rows. The bootstrap draws images, McNemar's test single rows."
    )
    return Table("Undefended and defended", heads, lines, note)


def deployments(found: Metrics) -> Table:
    """Success rates of adaptive attacks on filters and cascades."""
    lines = [
        (
            f"{name}, {arm}, {budget}",
            [
                rates["asr_n"]["total"],
                rates["asr_1"]["rate"],
                rates["asr_n"]["rate"],
                (rates["asr_n"]["low"], rates["asr_n"]["high"]),
                rates["attempts"],
                rates["passed_n"]["total"],
                rates["passed_n"]["rate"],
                rates["false_alarms"]["total"],
                rates["false_alarms_clean"]["rate"],
                rates["false_alarms"]["rate"],
            ],
        )
        for name, deployment in found.items()
        for budget, arms in deployment["adaptive"].items()
        for arm, rates in arms.items()
    ]
    heads = ["n", "ASR-1", "ASR-N", "95 %", "attempts", "n unsafe", "passed, of all unsafe"]
    heads += ["n benign", "false alarms", "false alarms with attack texts"]
    note = (
        "Rows that are unsafe by truth. ASR: of the n rows flagged when clean, the share that passes all stages. "
        "False alarms: on benign rows under the same policies, without and with the attack texts."
    )
    return Table("Attack success rate, adaptive attacks on filters and cascades", heads, lines, note)


def static(found: Metrics) -> Table:
    """Success rates of attacks that are transferred from the filters."""
    lines = [
        (f"{name}, {budget}", [entry["rows"], entry["rate"], entry["interval"], entry["successes"]])
        for name, deployment in found.items()
        for budget, entry in deployment["static"].items()
    ]
    note = (
        "Attacks on image and text of the undefended filters, transferred unchanged: what most papers report."
    )
    return Table("Attack success rate, static transfer", ["n", "ASR", "95 %", "passed"], lines, note)


def texts(found: Metrics) -> Table:
    """Success rates of attacks on the text alone."""
    names = list(dict.fromkeys(name for entry in found.values() for name in entry["families"]))
    lines = [
        (
            victim,
            [
                entry["any"]["rows"],
                *(entry["families"].get(name, {}).get("asr_n") for name in names),
                entry["any"]["rate"],
                entry["any"]["interval"],
                entry["definitions"]["rate"],
            ],
        )
        for victim, entry in found.items()
    ]
    note = (
        "Share of the n rows judged correctly when clean whose verdict a text of the family changes, either way. "
        "Where prompts only add suspicion, unsafe rows that are flagged without one are not attacked: none can change."
    )
    heads = ["n", *names, "any", "95 %", "definitions"]
    return Table("Text attacks: ASR-N by family", heads, lines, note)


def disguises(found: Metrics) -> Table:
    """Flags that length and character attacks take away from classifiers, and from text filters."""
    filters = found["text_filters"]
    entries = {**found["classifiers"], **{f"text filter of {name}": entry for name, entry in filters.items()}}
    names = list(dict.fromkeys(name for entry in entries.values() for name in entry["lost"]))
    lines: list[tuple[str, Sequence[Any]]] = [
        (
            name,
            [entry["rows"], *(entry["lost"].get(key) for key in names), entry["any"], entry["interval"]],
        )
        for name, entry in entries.items()
    ]
    lines += [
        (
            f"text filter of {name}: false alarms",
            [entry["rows"], *map(entry["false_alarms"].get, names), None, None],
        )
        for name, entry in filters.items()
    ]
    note = (
        "Classifiers: of the n unsafe pictures flagged without a prompt, the share called safe with one. Where "
        "prompts only add suspicion nothing can be lost; the lines `use` are the same classifiers without this rule, "
        "reading each picture with its prompt only. Text filters: of the n harmful prompts flagged in plain text, the "
        "share no longer flagged, at the cutoff that 5 % of harmless prompts of 60 characters reach; their false "
        "alarms are the share of harmless texts flagged."
    )
    return Table("Length and character attacks: flags lost", ["n", *names, "any", "95 %"], lines, note)


def edits(found: Metrics) -> Table:
    """Accuracy under edits, corruptions and writing, of the rows judged correctly when clean."""
    lines = [
        (
            f"{name}: {victim}",
            [
                entry[name]["rows"],
                sum(entry[name]["held"].values()) / len(entry[name]["held"]),
                min(entry[name]["held"], key=entry[name]["held"].get),
                min(entry[name]["held"].values()),
                entry[name]["worst"],
            ],
        )
        for name in ("edits", "corruptions", "writing")
        for victim, entry in found.items()
        if name in entry
    ]
    heads = ["n", "accuracy, mean", "hardest edit", "accuracy under it", "accuracy under all"]
    severities = ", ".join(map(str, next(iter(found.values()))["severities"]))
    return Table(f"Edits without a budget (severities {severities})", heads, lines)


def transfer(found: Metrics) -> Table:
    """The transfer matrix: attacked on one victim, evaluated on another."""
    # Victims are columns, sources are lines.
    names = list(dict.fromkeys(name for row in found["matrix"].values() for name in row))
    lines = [
        (
            f"source: {source}",
            [value for name in names for value in (row[name]["rows"], row[name]["success"])],
        )
        for source, row in found["matrix"].items()
    ]
    note = (
        f"Success rate of {found['attack']} at {found['epsilon']}: attacked on the source, evaluated on the victim "
        "of the column. n counts the rows that this victim judges correctly when clean."
    )
    return Table("Transfer", [head for name in names for head in ("n", name)], lines, note)


def honesty(found: Mapping[str, Iterable[Metrics]]) -> Table:
    """Each honesty check of each victim's attacks."""
    lines = [
        (
            f"{victim}: {check['name']}",
            ["passed" if check["passed"] else "FAILED", check["limit"], check["message"]],
        )
        for victim, checks in found.items()
        for check in checks
    ]
    return Table("Honesty checks", ["", "limit", "message"], lines)


def headline(
    metrics: Metrics, pair: tuple[str, str] | None, small: str, large: str
) -> dict[str, float | None]:
    """The numbers of `HEADLINE_KEYS`; None where the attacks that give one were not run.

    Args:
        metrics: those of `recipes/attack.py`; deployments in the order filters, cascade, defended cascade.
        pair: an undefended victim and its defended version.
        small: the headline budget as a key of the tables, for the success rate on the defended cascade.
        large: the largest budget, for the success rate on the filters alone.
    """
    deployments, clean = metrics["deployments"], metrics["clean"]
    first, second = (name if name in metrics["pixels"] else None for name in pair or (None, None))
    # Filters, cascade, defended cascade; without a defence there are only two.
    names = list(deployments)

    def success(name: str, budget: str) -> float:
        return float(deployments[name]["adaptive"][budget]["both"]["asr_n"]["rate"])

    return {
        # The least of all victims: an attack that fails at a huge epsilon is broken.
        "huge_epsilon_success": min(
            check["measured"]
            for checks in metrics["honesty"].values()
            for check in checks
            if check["name"] == "huge_epsilon"
        ),
        "filters_asr": success(names[0], large) if names else None,
        "cascade_asr": success(names[2], small) if len(names) > 2 else None,
        "cascade_f1_loss": deployments[names[1]]["clean_f1"] - deployments[names[2]]["clean_f1"]
        if len(names) > 2
        else None,
        "undefended_robust_accuracy": metrics["pixels"][first]["robust_accuracy"] if first else None,
        "defended_robust_accuracy": metrics["pixels"][second]["robust_accuracy"] if second else None,
        "clean_f1_loss": clean[first] - clean[second] if first and second else None,
    }


def failed_checks(found: Mapping[str, Iterable[Metrics]]) -> list[str]:
    """One line for each failed check."""
    return [
        f"{victim}: {check['name']}: {check['message']}"
        for victim, checks in found.items()
        for check in checks
        if not check["passed"]
    ]
