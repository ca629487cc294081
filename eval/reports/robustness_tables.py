"""The tables of a robustness report, from the numbers in `metrics.json`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .attack_words import KNOWLEDGE, PARTS, attack_name, check_name, storage_name
from .table import Table
from .words import plain

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
        by_size(pixels, metrics["suite"]["ran"]),
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


def by_size(pixels: Metrics, ran: str) -> Table:
    """Robust accuracy of each victim against the size of the change; `ran` describes the attacks."""
    # All victims were attacked at the same budgets.
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    lines = [
        (
            name,
            [
                KNOWLEDGE[summary.get("knowledge", "white_box")],
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
        "Robust accuracy: the share of all n questions judged right, both clean and after every attack that changes a "
        "colour value by at most so much, as verified on the stored image; what is unjudged after an attack counts as "
        f"an error. {ran} No change below one grey level can be stored. 95 % intervals by image, at the main size."
    )
    heads = ["attacked by", "n", "F1, clean", "wrong when clean", *budgets, "95 %"]
    return Table("Robust accuracy by size of the change", heads, lines, note)


def by_storage(pixels: Metrics) -> Table:
    """Robust accuracy on the attacks' float images, and on images stored in each way."""
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    # The remaining keys of an epsilon are ways of storage.
    other = ("robust_accuracy", "interval", "unjudged")
    lines = [
        (
            f"{name}: {storage_name(entry)}",
            [summary["rows"], *(summary["by_epsilon"][budget][entry] for budget in budgets)],
        )
        for name, summary in pixels.items()
        for entry in summary["by_epsilon"][budgets[0]]
        if entry not in other
    ]
    note = (
        "As floats: the attack's own images. The others: images after this storage, judged as in deployment. Attacks "
        "do not adapt to a re-encoding, so robustness by JPEG here is no defence. A question that was broken as bytes "
        "at a smaller size is attacked by the first attack only."
    )
    return Table("Robust accuracy by storage of images", ["n", *budgets], lines, note)


def by_attack_table(pixels: Metrics) -> Table:
    """Robust accuracy against each attack alone, at the main size of the change."""
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
    return Table("Robust accuracy by attack", ["n", *map(attack_name, names), "worst case"], lines)


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
    heads = [head for part in parts for head in ("n", plain(part))]
    return Table(f"Robust accuracy by {title}", heads, lines)


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
        "95 %",
        "McNemar p",
        "loss of clean F1",
    ]
    note = (
        "Robust accuracy of both on the same n questions. The interval is a paired bootstrap over images, McNemar's "
        "test counts single questions."
    )
    return Table("Undefended and defended", heads, lines, note)


def deployments(found: Metrics) -> Table:
    """Success rates of adaptive attacks on filters and cascades."""
    lines = [
        (
            f"{name}: {PARTS.get(part, part)}, {budget}",
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
        for budget, parts in deployment["adaptive"].items()
        for part, rates in parts.items()
    ]
    heads = ["n", "first attempt passes", "any attempt passes", "95 %", "attempts", "n unsafe"]
    heads += ["passed, of all unsafe", "n safe", "false alarms", "false alarms with attack texts"]
    note = (
        "Unsafe questions. Of the n that are flagged when clean, the share that an attacker who knows all stages gets "
        "past all of them. False alarms: on safe questions under the same policies, without and with the attack texts."
    )
    return Table("Attacks on filters and cascades", heads, lines, note)


def static(found: Metrics) -> Table:
    """Success rates of attacks that are transferred from the filters."""
    lines = [
        (f"{name}, {budget}", [entry["rows"], entry["rate"], entry["interval"], entry["successes"]])
        for name, deployment in found.items()
        for budget, entry in deployment["static"].items()
    ]
    note = "Made against image and text of the undefended filters and shown unchanged to each, as most papers report."
    return Table(
        "The same attacks, made for the filters alone",
        ["n", "share that passes", "95 %", "passed"],
        lines,
        note,
    )


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
        "Share of the n questions judged right when clean whose verdict a prompt of the kind changes, either way. "
        "Where prompts only add suspicion, unsafe images that are flagged without one are not attacked: none can "
        "change. Definitions: orders in the policy."
    )
    heads = ["n", *map(plain, names), "any", "95 %", "definitions"]
    return Table("Attacks by text alone: verdicts changed", heads, lines, note)


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
        "prompts only add suspicion nothing can be lost; the lines named use are the same classifiers without this "
        "rule, reading each picture with its prompt only. Text filters: of the n harmful prompts flagged in plain "
        "text, the share no longer flagged, at the cutoff that 5 % of harmless prompts of 60 characters reach; their "
        "false alarms are the share of harmless texts flagged."
    )
    heads = ["n", *map(plain, names), "any", "95 %"]
    return Table("Long and disguised prompts: flags lost", heads, lines, note)


def edits(found: Metrics) -> Table:
    """Accuracy under edits, corruptions and writing, of the rows judged correctly when clean."""
    lines = [
        (
            f"{name}: {victim}",
            [
                entry[name]["rows"],
                sum(entry[name]["held"].values()) / len(entry[name]["held"]),
                plain(min(entry[name]["held"], key=entry[name]["held"].get)),
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
    return Table(f"Edits as platforms make them (severities {severities} of 5)", heads, lines)


def transfer(found: Metrics) -> Table:
    """The transfer matrix: attacked on one victim, evaluated on another."""
    # Victims are columns, sources are lines.
    names = list(dict.fromkeys(name for row in found["matrix"].values() for name in row))
    lines = [
        (
            f"made for {source}",
            [value for name in names for value in (row[name]["rows"], row[name]["success"])],
        )
        for source, row in found["matrix"].items()
    ]
    note = (
        f"Success rate of {attack_name(found['attack'])} at {found['epsilon']}: images made for one classifier, shown "
        "to that of the column. n counts the questions that the latter judges right when clean."
    )
    return Table(
        "Images made for another classifier", [head for name in names for head in ("n", name)], lines, note
    )


def honesty(found: Mapping[str, Iterable[Metrics]]) -> Table:
    """Each honesty check of each victim's attacks."""
    lines = [
        (
            f"{victim}: {check_name(check['name'])}",
            ["passed" if check["passed"] else "FAILED", check["limit"], check["message"]],
        )
        for victim, checks in found.items()
        for check in checks
    ]
    note = "An attack that is broken makes any classifier look robust. These checks look for signs of that."
    return Table("Checks of the attacks themselves", ["", "limit", "finding"], lines, note)


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
        f"{victim}: {check_name(check['name'])}: {check['message']}"
        for victim, checks in found.items()
        for check in checks
        if not check["passed"]
    ]
