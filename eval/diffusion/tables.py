"""The tables of a report on detectors inside the diffusion loop, from the numbers in `metrics.json`."""

from collections.abc import Mapping
from typing import Any

from eval.reports.table import Table

from .areas import ALL, EQUAL_PROMPT
from .comparison import BOTH, DETECTOR, NAMES

Metrics = Mapping[str, Any]
_HELD_OUT = {
    "held_out": "held out",
    "trained": "trained",
    "held_out_when_trained": "held out, had they been trained",
}
PARTS = {ALL: "all prompts", EQUAL_PROMPT: "pairs of equal prompt and opposite label"}


def tables(metrics: Metrics) -> list[Table]:
    """Every table that a run has numbers for."""
    found = [*area_tables(metrics), gain_table(metrics), category_table(metrics), held_out_table(metrics)]
    found += [promise_table(metrics), overhead_table(metrics), *cost_tables(metrics)]
    found += [attack_table(metrics), family_table(metrics), corpus_table(metrics)]
    return [table for table in found if table.lines]


def part_name(part: str) -> str:
    """A part of the test pictures in words."""
    return PARTS.get(part, f"{part} prompts")


def step_name(metrics: Metrics, step: str) -> str:
    """A step with the log-SNR at which it looks."""
    log_snr = metrics["log_snr"].get(step)
    return f"step {step}" if log_snr is None else f"step {step} ({log_snr:+.1f})"


def area_tables(metrics: Metrics) -> list[Table]:
    """A table for each part of the test pictures: who against step."""
    steps = list(metrics["areas"][DETECTOR])
    heads = [head for step in steps for head in (step_name(metrics, step), "95 %")]
    found = []
    for part, about in metrics["areas"][DETECTOR][steps[0]].items():
        lines = []
        for who, by_step in metrics["areas"].items():
            cells: list[Any] = []
            for step in steps:
                area = by_step.get(step, {}).get(part, {})
                cells += [area.get("auc"), area.get("interval")]
            lines.append((NAMES.get(who, who), cells))
        note = (
            f"{about['prompts']:,} prompts; {about['violating']:,} cells of picture and category that violate, "
            f"{about['clean']:,} that do not; intervals over prompts. In brackets: log-SNR of the latents that entered "
            "the step. A dash: not offered for that step."
        )
        if part == EQUAL_PROMPT:
            note += " Text alone is at 0.5 by construction."
        found.append(Table(f"AUC, {part_name(part)}", heads, lines, note))
    return found


def gain_table(metrics: Metrics) -> Table:
    """By how much the detector is ahead of each other one, by part and step."""
    steps = list(metrics["areas"][DETECTOR])
    lines = []
    for who, by_step in metrics["gains"].items():
        parts = list(next(iter(by_step.values()), {}))
        for place, part in enumerate(parts):
            cells = [_signed(by_step.get(step, {}).get(part)) for step in steps]
            lines.append((NAMES.get(who, who) if place == 0 else "", [part_name(part), *cells]))
    heads = ["", *(step_name(metrics, step) for step in steps)]
    note = "AUC of the detector minus theirs on the same pictures, with paired 95 % intervals over prompts."
    return Table("Lead of the detector", heads, lines, note)


def category_table(metrics: Metrics) -> Table:
    """AUC of each category alone at the last step."""
    steps = list(metrics["areas"][DETECTOR])
    last = steps[-1]
    known = {who: by_step[last] for who, by_step in metrics["categories"].items() if last in by_step}
    lines = [
        (name, [values[place] for values in known.values()])
        for place, name in enumerate(metrics["category_names"])
    ]
    heads = [NAMES.get(who, who) for who in known]
    return Table(f"AUC by category, step {last}", heads, lines, "A dash: no picture violates it, or all do.")


def held_out_table(metrics: Metrics) -> Table:
    """AUC of categories that a training never showed, beside those that it did."""
    lines = []
    for step, found in metrics.get("held_out", {}).items():
        for name, words in _HELD_OUT.items():
            cells = [found[name]["auc"], found[name]["interval"], found[name]["violating"]]
            lines.append((step_name(metrics, step) if name == "held_out" else "", [words, *cells]))
    note = (
        f"Of a second detector that was never shown {', '.join(metrics.get('held_out_names', ()))}: neither words nor "
        "labels. The last line of a step is the first detector on the same cells."
    )
    return Table("Categories held out of training", ["", "AUC", "95 %", "violating"], lines, note)


def promise_table(metrics: Metrics) -> Table:
    """Promised and measured miss rates over all looks, and what they cost."""
    records = metrics.get("promises", ())
    steps = next((list(record["stopped_by"]) for record in records if record["splits"]), [])
    lines = []
    for record in records:
        if record["splits"]:
            early = [record["stopped_by"][step] for step in steps]
            cells = [record["miss_rate"], record["worst"], record["false_alarms"], *early]
        else:
            cells = [None] * (3 + len(steps))
        lines.append((f"{record['promise']:.0%} missed", cells))
    heads = ["missed", "95th percentile", "false alarms", *(f"stopped by step {step}" for step in steps)]
    reasons = [record["reason"] for record in records if not record["splits"]]
    note = (
        "Cutoffs for all looks together, calibrated on half of the test prompts and measured on the other half, mean "
        "over random halves. Missed: share of the unsafe pictures that pass every look. The promise is about the mean."
    )
    return Table("Promise over all looks", heads, lines, " ".join([note, *reasons[:1]]))


def overhead_table(metrics: Metrics) -> Table:
    """What watching costs."""
    lines = [
        (f"{record['pictures']} pictures a call", [record["step_ms"], record["look"], record["idle"]])
        for record in metrics.get("overheads", ())
    ]
    note = "As shares of one denoising step, guidance included; a look with its scores, and hooks without a look."
    return Table("Overheads", ["step, ms", "a look", "idle hooks"], lines, note)


def cost_tables(metrics: Metrics) -> list[Table]:
    """What stopping early saves, a table for each promised miss rate."""
    found = metrics.get("cost") or {}
    heads = ["steps", "saves", "95 %", "missed", "false alarms", "stopped early", "looking"]
    fields = ("steps", "saving", "saving", "missed", "false_alarms", "early", "looking")
    tables = []
    for promise, designs in found.get("designs", {}).items():
        lines = []
        for name, one in designs.items():
            cells = [one[field] for field in fields]
            cells[2] = one["intervals"]["saving"]
            lines.append((name, cells))
        note = (
            f"Per picture asked for, of which {found['unsafe_share']:.0%} would come out unsafe; at most "
            f"{found['false_alarm_budget']:.0%} of the safe ones may be stopped early. Steps: cost of everything, in "
            "steps of the denoiser. Saves: against the first line, which draws everything and filters it. Looking: "
            "what the looks at all pictures cost, as a share of the first line."
        )
        tables.append(Table(f"Cost at {float(promise):.0%} missed", heads, lines, note))
    return tables


def attack_table(metrics: Metrics) -> Table:
    """What gets past the prompt filter, the detector and both."""
    found = metrics.get("attacks") or {}
    fields = ("passed", "unsafe", "through", "through_interval", "missed", "goals_plain", "goals_families")
    lines = [
        (name, [*(one[field] for field in fields), one["goals_all"], one["goals_all_interval"]])
        for name, one in found.get("defences", {}).items()
    ]
    heads = ["pass", "unsafe", "both", "95 %", "missed", "goals: plain", "families", "all", "95 %"]
    note = (
        f"{found.get('goals')} goals; for each {found.get('families_budget')} pictures of families, the same for every "
        f"defence, and {found.get('queries')} of a search that adapts to it. Defences have equal false alarms. An "
        "attempt succeeds if it passes and its picture is unsafe. Without gradients through the denoiser, shares "
        "against detectors are lower bounds."
    )
    return Table("Adversarial prompts", heads, lines, note)


def family_table(metrics: Metrics) -> Table:
    """What each family of attacks gets past each defence."""
    found = metrics.get("attacks") or {}
    names = list(found.get("defences", {}))
    lines = []
    for family, one in found.get("families", {}).items():
        unsafe = next(iter(one["unsafe"].values()))
        lines.append((family, [unsafe, *(one["through"].get(name) for name in names)]))
    return Table("Adversarial prompts by family", ["unsafe", *(f"past {name}" for name in names)], lines)


def corpus_table(metrics: Metrics) -> Table:
    """Rows of the corpus, where one was built."""
    found = metrics.get("corpus") or {}
    numbers = [(name, [value]) for name, value in found.items() if isinstance(value, int | float | str)]
    return Table("Corpus", [""], numbers)


def headline(metrics: Metrics) -> Table:
    """What to read first: the detector and the baselines at each step."""
    steps = list(metrics["areas"][DETECTOR])
    lines = []
    for part in metrics["areas"][DETECTOR][steps[0]]:
        for who in (DETECTOR, *(who for who in metrics["areas"] if who not in (DETECTOR, BOTH))):
            cells = [metrics["areas"][who].get(step, {}).get(part, {}).get("auc") for step in steps]
            lines.append((part_name(part) if who == DETECTOR else "", [NAMES.get(who, who), *cells]))
    return Table("AUC", ["", *(step_name(metrics, step) for step in steps)], lines)


def _signed(gain: tuple[float, float, float] | None) -> str | None:
    return None if gain is None else f"{gain[0]:+.3f} ({gain[1]:+.3f} – {gain[2]:+.3f})"
