"""The sections of a card: numbers, obedience, shortcuts, evidence, limits, and how the run was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judge.lessons.record import read_record
from judge.runs.folder import RunDir
from judge.runs.references import is_hub_id
from judge.standins.shipped import SHIPPED
from prompts.taxonomy import Taxonomy

from .markdown import escape, table
from .results import Result, by_category, main_summary, obedience, results, robust_accuracy

FEW = 100
"""Rows below which a number is said to be rough."""
_OWN_DATA = "data of whoever made this run"
OPTIONS = {
    "lora_r": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "learning_rate": "learning rate",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch of a process",
    "gradient_accumulation_steps": "batches a step",
    "seed": "seed",
    "promised_miss_rate": "promised miss rate",
}
"""Options of a training that a card names."""


def numbers_lines(kind: str, metrics: Mapping[str, Any]) -> list[str]:
    """What was measured on the run's test questions."""
    summary = main_summary(metrics)
    found = results(summary)
    lines = ["## Numbers", ""]
    if not found:
        return [*lines, "Nothing was measured in this run, so nothing is known of how well it judges.", ""]
    before = metrics.get("before")
    first = (
        {one.key: one for one in results(before)} if isinstance(before, Mapping) and "f1" in before else {}
    )
    images = summary.get("images")
    lines.append(
        "On questions about images that were not trained on"
        + (f" ({summary['rows']} questions about {images} images)" if isinstance(images, int) else "")
        + ", each under a policy of its own; intervals are of 95 %."
        + (f" Threshold {summary['threshold']:g}." if isinstance(summary.get("threshold"), float) else "")
    )
    head = ("", *(("before training",) if first else ()), "value", "95 %", "n")
    rows = []
    for one in found:
        earlier = (_value(first.get(one.key)),) if first else ()
        rows.append((one.label, *earlier, _value(one), _bounds(one), str(one.rows or "")))
    lines += ["", *table(head, rows), ""]
    groups = by_category(summary)
    if groups:
        about = [
            (escape(name), _value(one), _bounds(one), f"{unsafe} of {one.rows}")
            for name, one, unsafe in groups
        ]
        lines += ["By category (`custom` are categories that were made up for a question):", ""]
        lines += [*table(("category", "F1", "95 %", "unsafe questions"), about), ""]
    if kind == "cascade" and isinstance(metrics.get("promised_miss_rate"), float):
        lines += [
            f"Promised: at most {metrics['promised_miss_rate']:.1%} of unsafe images missed, on rows distributed like "
            "those it was calibrated with and under their categories.",
            "",
        ]
    return lines


def obedience_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What other wordings of the policy did."""
    found, lines = obedience(metrics), ["## Other wordings of the policy", ""]
    families = found.get("families")
    if not isinstance(families, Mapping) or not families:
        return [*lines, "Not measured; `arbiter obedience` does it.", ""]
    plain = found.get("references", {}).get("plain", {})
    lines.append(
        f"The same questions ({plain.get('rows', 'a few')}) reworded; as written their F1 is "
        f"{_three(plain.get('f1'))}. So few questions show only what breaks entirely."
    )
    rows = [
        (
            escape(about.get("about", name)),
            "in lessons" if about.get("in_lessons") else "new",
            _three(about.get("f1")),
            _span(about.get("f1_interval")),
            str(about.get("rows", "")),
        )
        for name, about in families.items()
        if isinstance(about, Mapping)
    ]
    return [*lines, "", *table(("wording", "", "F1", "95 %", "n"), rows), ""]


def shortcut_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Whether the training rows gave their labels away."""
    lines = ["## Shortcuts in the training rows", ""]
    text, image = metrics.get("shortcut_auc"), metrics.get("image_shortcut_auc")
    if not isinstance(text, float):
        return [*lines, "Not checked in this run.", ""]
    lines.append(
        "A classifier that sees only the text of a training row, and none of the image, reaches an area under the ROC "
        f"curve of {text:.3f} (0.5 is chance)"
        + (f"; one that sees only facts of the file {image:.3f}." if isinstance(image, float) else ".")
    )
    return [*lines, ""]


def evidence_lines(run: RunDir, taxonomy: Taxonomy) -> list[str]:
    """Which categories lessons showed, which were only measured, and of which nothing is known."""
    evidence = read_record(run).evidence
    if evidence is None:
        return []
    rows = [(escape(one.name), evidence.of_category(one)) for one in taxonomy]
    known = ["## What is known of each category", "", "Trained, only measured (with its F1), or none.", ""]
    return [*known, *table(("category", "evidence"), rows), ""]


def limit_lines(run: RunDir, kind: str, metrics: Mapping[str, Any]) -> list[str]:
    """What was not measured, and where it answers nothing."""
    said = []
    summary = main_summary(metrics)
    rows = summary.get("rows")
    if isinstance(rows, int) and rows < FEW:
        said.append(f"{rows} questions are few: read the intervals, not the numbers.")
    thin = [name for name, _, unsafe in by_category(summary) if unsafe < 20]
    if thin:
        said.append(f"Fewer than 20 unsafe questions about {escape(', '.join(thin))}.")
    learned = metrics.get("learned")
    if isinstance(learned, Mapping):
        said += [escape(limit) for limit in learned.get("limits", ()) if isinstance(limit, str)]
    attacked = robust_accuracy(metrics)
    said.append(
        "Robust accuracy against the attack of its own recipe, and no other: "
        + ", ".join(f"{escape(budget)}: {value:.3f}" for budget, value in attacked)
        + "."
        if attacked
        else "No attack on its pixels or texts was measured; `arbiter attack` does it."
    )
    said.append("Images and prompts of other sources than those it was measured on were not measured.")
    if kind == "merged":
        said.append(
            "Measured before merging, in transformers; other engines and precisions give other scores."
        )
    reach = read_record(run).envelope
    if reach is not None:
        scripts = ", ".join(map(str, reach.policy_scripts)) or "none"
        said.append(
            f"Its lessons had policies of up to {reach.categories} categories and {reach.policy_characters} characters "
            f"(scripts: {escape(scripts)}) and prompts of up to {reach.prompt_characters} characters. With a policy "
            "well beyond that, every image is left unjudged; such a prompt is not read."
        )
    elif kind == "cascade":
        said.append(
            "The promise holds for the categories it was calibrated for. Under others it is withdrawn, and every "
            "reason says so; its stages keep the limits of their own lessons."
        )
    else:
        said.append("It has no record of how far its lessons reached, so it answers outside of them too.")
    said.append("A score is no proof: keep people in the loop where a wrong verdict does harm.")
    return ["## Limits", "", *(f"- {line}" for line in said), ""]


def training_lines(
    kind: str, manifest: Mapping[str, Any], config: Mapping[str, Any], base: str | None
) -> list[str]:
    """Base, data and the options that matter."""
    lines = []
    if kind != "cascade":
        what = "base" if kind in ("vlm", "merged") else "encoder"
        lines.append(f"- {what}: {_base(base)}")
    if manifest.get("template"):
        lines.append(f"- template: {escape(manifest['template'])}")
    if manifest.get("dtype"):
        bits = manifest.get("quantization")
        four = isinstance(bits, Mapping) and bits.get("load_in_4bit")
        lines.append(
            f"- precision: {escape(manifest['dtype'])}" + (", language model in 4 bits" if four else "")
        )
    if config.get("dataset"):
        lines.append(f"- data: {escape(data_words(str(config['dataset'])))}")
    held_out = config.get("held_out")
    if isinstance(held_out, list) and held_out:
        lines.append(f"- categories that no lesson named: {escape(', '.join(map(str, held_out)))}")
    options = [
        f"{label} {escape(config[key])}"
        for key, label in OPTIONS.items()
        if isinstance(config.get(key), int | float) and not (key == "max_steps" and config[key] < 0)
    ]
    if options:
        lines.append(f"- options: {', '.join(options)}")
    return lines or ["- nothing was recorded"]


def _base(base: str | None) -> str:
    if base is None:
        return "not named by whoever made this run"
    return f"`{base}`, which ships with arbiter-vision" if base in SHIPPED else f"`{base}`"


def data_words(spec: str) -> str:
    """A data set by name; of a folder or file only that it was one, as its path is none of the reader's business."""
    kind, colon, rest = spec.partition(":")
    if kind.isalnum() and (not rest or kind == "digits"):
        return kind
    name = rest if kind == "dataset" else spec
    if is_hub_id(name) and not Path(name).exists():
        return name
    return f"{kind} of whoever made this run" if colon and kind.isalnum() else _OWN_DATA


def _value(one: Result | None) -> str:
    return "" if one is None else f"{one.value:.3f}"


def _bounds(one: Result) -> str:
    return "" if one.interval is None else f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"


def _three(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "undefined"


def _span(value: Any) -> str:
    fine = isinstance(value, list) and len(value) == 2 and all(isinstance(one, float) for one in value)
    return f"{value[0]:.3f} to {value[1]:.3f}" if fine else ""
