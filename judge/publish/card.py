"""The card of a run: README.md with the hub's metadata, filled from what the run recorded and from nothing else.

It says what the run is, how to load it, what was measured with intervals and numbers of rows, and what was not. It
names no path, user or machine: a base in a local folder is named by its hub id, or not at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError
from judge.runs.files import write_atomically
from judge.runs.folder import THRESHOLDS, RunDir
from judge.standins.shipped import SHIPPED
from prompts.taxonomy import Taxonomy

from .card_sections import (
    evidence_lines,
    limit_lines,
    numbers_lines,
    obedience_lines,
    shortcut_lines,
    training_lines,
)
from .contents import CARD, MERGED
from .details import Details, published_base
from .markdown import code, escape, table
from .results import Result, main_summary, results

KINDS = {
    "vlm": "an image-safety judge: a vision-language model with a LoRA adapter",
    MERGED: "an image-safety judge: a vision-language model with its adapter merged in",
    "student": "a small image-safety classifier: a cross-attention head on a frozen image-text encoder",
    "linear_probe": "an image classifier: a linear probe on a frozen encoder, with fixed categories",
    "prompt_learning": "an image classifier: learned prompts on a frozen encoder, with fixed categories",
    "pooled_attention": "an image classifier: pooled attention on a frozen encoder, with fixed categories",
    "cascade": "an image-safety cascade: filters, a student and perhaps a judge, calibrated to a promised miss rate",
}
"""Kind of a run -> what it is, in a sentence."""


@dataclass(frozen=True)
class Facts:
    """What a card is made of."""

    run: RunDir
    kind: str
    manifest: dict[str, Any]
    taxonomy: Taxonomy
    metrics: dict[str, Any]
    environment: dict[str, Any]
    config: dict[str, Any]
    details: Details
    base: str | None
    """Where others find the base or encoder; None where only this machine knows."""

    @classmethod
    def of(cls, run: RunDir, details: Details) -> "Facts":
        """Read a run.

        Raises:
            CheckpointError: it is damaged, or of a kind that has no card.
        """
        kind = run.kind
        if kind not in KINDS:
            raise CheckpointError(f"{run.path} is a run of kind {kind!r}, for which there is no card.")
        manifest = run.manifest
        named = manifest.get("base", manifest.get("encoder"))
        own = kind == "student" and (run.path / "encoder").is_dir()
        metrics = _read(run.path / "metrics.json")
        # A published or merged run keeps of its options and environment what stands here.
        made = metrics.get("made_with")
        made = made if isinstance(made, dict) else {}
        environment = _read(run.path / "environment.json") or made
        config = run.config if (run.path / "config.yaml").is_file() else made.get("options") or {}
        base = None if own else published_base(named, details)
        return cls(run, kind, manifest, run.taxonomy, metrics, environment, config, details, base)


def write_card(
    run: RunDir, folder: Path | None = None, *, details: Details | None = None, name: str | None = None
) -> Path | None:
    """Write README.md into a run's folder and, for a judge, beside its adapter.

    Args:
        run: a run of any kind; of kinds that are not published nothing is written.
        folder: where to; by default the run's own.
        details: what its user says of it; by default what `card.yaml` of the run holds.
        name: of the repository it goes to, such as `user/name`; None while it has none.

    Returns:
        The card at the top of the run; None where there is none.

    Raises:
        CheckpointError: the run is damaged.
    """
    if run.kind not in KINDS or not (run.path / "taxonomy.yaml").is_file():
        return None
    text = card_text(Facts.of(run, details or Details.of(run.path)), name)
    target = folder or run.path
    write_atomically(target / CARD, text)
    if (target / "adapter").is_dir():
        # Whoever takes the adapter alone gets what is known of it, with the metadata that names its base.
        write_atomically(target / "adapter" / CARD, text)
    return target / CARD


def card_text(facts: Facts, name: str | None = None) -> str:
    """The card, Markdown after YAML."""
    title = name or f"{facts.taxonomy.name}, {facts.kind}"
    lines = [
        f"# {escape(title)}",
        "",
        f"This is {KINDS[facts.kind]}. It asks of an image, and of the prompt it was made from, which categories of a "
        "list it violates; the list is chosen at every call. It was made for the list below.",
        "",
        *_sentence(facts),
        "## Use",
        "",
        *_use(facts, name),
        "## Categories",
        "",
        f"Taxonomy {escape(facts.taxonomy.name)}, version {escape(facts.taxonomy.version)}, hash "
        f"`{facts.taxonomy.short_hash}` (`taxonomy.yaml` has all of it):",
        "",
        *table(
            ("category", "definition"),
            [(escape(one.name), escape(one.definition)) for one in facts.taxonomy],
        ),
        "",
        *numbers_lines(facts.kind, facts.metrics),
        *obedience_lines(facts.metrics),
        *shortcut_lines(facts.metrics),
        *evidence_lines(facts.run, facts.taxonomy),
        *limit_lines(facts.run, facts.kind, facts.metrics),
        "## How it was made",
        "",
        *training_lines(facts.kind, facts.manifest, facts.config, facts.base),
        *_licences(facts),
        *_version(facts),
    ]
    return f"---\n{metadata(facts, name)}---\n\n" + "\n".join(lines).rstrip() + "\n"


def metadata(facts: Facts, name: str | None = None) -> str:
    """The hub's metadata: YAML, with the numbers as a model index."""
    from huggingface_hub import EvalResult, ModelCardData

    found = results(main_summary(facts.metrics))
    shown = [
        one
        for one in found
        if one.key in ("f1", "accuracy", "precision", "recall", "pair_score", "miss_rate")
    ]
    judged = facts.kind in ("vlm", MERGED)
    on_hub = facts.base if facts.base not in SHIPPED else None
    about: dict[str, Any] = {
        "license": facts.details.license,
        "base_model": on_hub,
        "library_name": {"vlm": "peft", MERGED: "transformers"}.get(facts.kind, "arbiter"),
        "pipeline_tag": "image-text-to-text" if judged else "zero-shot-image-classification",
        "tags": ["arbiter", "image-safety", "content-moderation", *(["lora"] if facts.kind == "vlm" else [])],
        "metrics": [one.key for one in shown] or None,
    }
    if on_hub is not None:
        about["base_model_relation"] = {"vlm": "adapter", MERGED: "finetune"}.get(facts.kind, "finetune")
    if shown:
        about["model_name"] = name or f"{facts.taxonomy.name} {facts.kind}"
        about["eval_results"] = [
            EvalResult(
                task_type="image-classification",
                dataset_type="arbiter-test-questions",
                dataset_name=f"test questions under the taxonomy {facts.taxonomy.name}",
                metric_type=one.key,
                metric_name=_metric_name(one),
                metric_value=round(one.value, 6),
            )
            for one in shown
        ]
    written: str = ModelCardData(
        **{key: value for key, value in about.items() if value is not None}
    ).to_yaml()
    return written.rstrip("\n") + "\n"


def _metric_name(one: Result) -> str:
    interval = "" if one.interval is None else f", 95 % {one.interval[0]:.3f} to {one.interval[1]:.3f}"
    return f"{one.label.partition(':')[0]}{interval}" + ("" if one.rows is None else f", n = {one.rows}")


def _sentence(facts: Facts) -> list[str]:
    learned = facts.metrics.get("learned")
    sentence = learned.get("sentence") if isinstance(learned, dict) else None
    return [f"**{escape(sentence)}**", ""] if isinstance(sentence, str) and sentence else []


def _use(facts: Facts, name: str | None) -> list[str]:
    where = f"hf:{name}" if name else "."
    lines = [
        "from PIL import Image",
        "",
        "from judge import load_classifier",
        "",
        f'judge = load_classifier("{where}")' + ("" if name else "  # the folder of this card"),
        "taxonomy = judge.default_taxonomy",
        "prompts = [None]  # or the text that the image was made from",
        'scores = judge.score([Image.open("photo.jpg")], prompts, taxonomy)',
        "print(scores.unsafe[0], dict(zip(taxonomy.names, scores.categories[0])), scores.reasons[0])",
    ]
    said = "With Arbiter (the Python package `arbiter-vision`), in a folder with an image `photo.jpg`:"
    after = ["", "A score of NaN means that the image was not judged; it is never safe. Pin a commit with"]
    after[1] += f" `hf:{name}@COMMIT`." if name else " `hf:USER/NAME@COMMIT` once it is on the hub."
    if (facts.run.path / THRESHOLDS).is_file():
        after += [
            "",
            f"`{THRESHOLDS}` holds a threshold for each category; `judge.thresholds` has them, and "
            "`arbiter judge` uses them unless told otherwise.",
        ]
    return [said, "", *code("\n".join(lines), "python"), *after, ""]


def _licences(facts: Facts) -> list[str]:
    said = facts.details
    lines = ["", "## Licences", ""]
    lines.append(
        f"- weights: {escape(said.license) if said.license else 'not stated by whoever made this run'}"
    )
    if facts.base is not None and facts.base not in SHIPPED:
        lines.append(
            f"- base: see [{escape(facts.base)}](https://huggingface.co/{facts.base}), whose licence applies too"
        )
    lines.append(f"- data: {escape(said.data_license) if said.data_license else 'not stated'}")
    if said.data:
        lines.append(f"- where the data come from: {escape(said.data)}")
    return [*lines, ""]


def _version(facts: Facts) -> list[str]:
    git = facts.environment.get("git")
    commit = git.get("commit") if isinstance(git, dict) else None
    changed = ", with local changes" if isinstance(git, dict) and git.get("dirty") else ""
    version = facts.environment.get("arbiter")
    parts = [f"arbiter-vision {escape(version)}" if version else "an unknown version of arbiter-vision"]
    if isinstance(commit, str):
        parts.append(f"commit `{escape(commit)}`{changed}")
    packages = facts.environment.get("packages")
    if isinstance(packages, dict):
        shown = [f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if name in packages]
        parts += [escape(one) for one in shown]
    started = facts.manifest.get("created")
    begun = f", started {escape(str(started)[:10])}" if started else ""
    return ["## Version", "", f"Made with {', '.join(parts)}{begun}.", ""]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); it is damaged") from None
    return found if isinstance(found, dict) else {}
