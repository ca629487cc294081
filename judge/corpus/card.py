"""The data card of a corpus: README.md beside its shards, with the header that `datasets` reads, from the ledger alone.

`datasets.load_dataset(FOLDER)` reads the shards by the card's header. Nothing in it is a judgement of ours: whoever
publishes a corpus says under which licence and for what, and until then the card says that nobody did.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from judge.errors import CorpusError
from judge.runs.files import write_atomically

from .builder import LEDGER, SHARDS
from .ledger import Ledger, Shard
from .rows import FLAGGED_FROM, CorpusRow

CARD = "README.md"
_UNSAID = "Nobody has said yet."
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class CardTexts:
    """What only a person can say of a corpus."""

    title: str = "A corpus of prompts and pictures"
    licence: str = "unknown"
    """As the hub names it, such as `cc-by-nc-4.0`."""
    intended_use: str = _UNSAID
    not_for: str = _UNSAID
    """What it must not be used for."""


@dataclass
class _Counts:
    """What the tables are made of, counted in one pass over the rows."""

    threshold: float
    rows: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    """Rows by split."""
    clusters: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    prompts: set[str | None] = field(default_factory=set)
    seeds: Counter[str | None] = field(default_factory=Counter)
    """Clean rows by prompt."""
    safe: Counter[str] = field(default_factory=Counter)
    shown: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Category key -> rows by split whose picture shows it."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Rows by category key that have no score of it."""
    agreement: dict[str, Counter[tuple[bool, bool]]] = field(default_factory=lambda: defaultdict(Counter))
    """Category key, or `any`, -> rows by whether the prompt's label and the picture's have it."""
    unlabelled_prompts: int = 0
    variants: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by attack and defence."""
    evaded: Counter[tuple[str, str]] = field(default_factory=Counter)
    still_unsafe: Counter[tuple[str, str]] = field(default_factory=Counter)
    duplicates: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    drawn_by: Counter[tuple[str, ...]] = field(default_factory=Counter)
    labelled_by: Counter[str] = field(default_factory=Counter)

    def add(self, row: CorpusRow) -> None:
        """Count one row."""
        self.rows += 1
        if row.failure is not None:
            self.failed[f"{row.failure.stage}: {row.failure.status}"] += 1
        elif row.duplicate_of is not None:
            self.duplicates += 1
        else:
            self._add_kept(row)

    def _add_kept(self, row: CorpusRow) -> None:
        split = row.split or "data"
        self.kept[split] += 1
        if row.cluster is not None:
            self.clusters[split].add(row.cluster)
        violated = row.violates(self.threshold)
        unsafe = bool(violated) or (row.unsafe is not None and row.unsafe >= self.threshold)
        self.safe[split] += not unsafe
        for key, score in row.scores.items():
            self.shown[key][split] += key in violated
            self.unknown[key] += score is None
        self.labelled_by[row.labelled_by or "nobody"] += 1
        drawing = (row.model, row.revision, row.scheduler, row.steps, row.guidance)
        self.drawn_by[("a folder of pictures",) if row.file else tuple(map(str, drawing))] += 1
        if row.variant is not None:
            attack = (row.variant.kind, row.variant.target)
            self.variants[attack] += 1
            self.evaded[attack] += bool(row.variant.outcome.get("evaded"))
            self.still_unsafe[attack] += unsafe
            return
        self.prompts.add(row.prompt)
        self.seeds[row.prompt] += 1
        if row.prompt_label is None:
            self.unlabelled_prompts += 1
            return
        self.agreement["any"][bool(row.prompt_label), unsafe] += 1
        for key, score in row.scores.items():
            if score is not None:
                self.agreement[key][key in row.prompt_label, key in violated] += 1


def write_card(folder: str | Path, texts: CardTexts | None = None) -> Path:
    """Write the card of a corpus that is built; the same ledger and texts give the same bytes.

    Raises:
        CorpusError: the folder holds no corpus that is built to its end.
    """
    folder = Path(folder)
    if not (folder / LEDGER).is_file():
        raise CorpusError(f"{folder} holds no {LEDGER}; give a folder that `arbiter corpus` wrote.")
    with Ledger(folder / LEDGER) as ledger:
        about, shards = ledger.meta("about") or {}, ledger.shards()
        if not shards:
            raise CorpusError(f"{folder} has no shards yet; build it to its end before its card is written.")
        counts = _Counts(float(about.get("plan, threshold", FLAGGED_FROM)))
        for row in ledger.rows():
            counts.add(row)
    path = folder / CARD
    write_atomically(path, card(counts, about, shards, texts or CardTexts()))
    return path


def card(counts: _Counts, about: dict[str, Any], shards: Sequence[Shard], texts: CardTexts) -> str:
    """The card as Markdown with its YAML header."""
    parts = [
        f"---\n{yaml.safe_dump(_header(counts, shards, texts), sort_keys=False, allow_unicode=True)}---",
        f"# {_plain(texts.title)}",
        f"{counts.rows:,} rows were planned or made: {counts.kept.total():,} are in {len(shards)} shards, "
        f"{counts.failed.total():,} failed, {counts.duplicates:,} are near-duplicates of others. `rows.jsonl` has "
        "every row with its seed and settings, `failed.jsonl` those that failed.",
        "`label`, `categories` and `scores` are what a classifier saw on the picture; `prompt_label` is what the list "
        f"of prompts or words says, and no part of them. A category counts from a score of {counts.threshold:g}.",
        "## Uses and licence",
        f"Licence: {_plain(texts.licence)}. Meant for: {_plain(texts.intended_use)} Not for: {_plain(texts.not_for)}",
        *_splits(counts),
        *_labels(counts),
        *_variants(counts),
        *_failures(counts),
        "## How it was made",
        _table(
            ("model", "revision", "scheduler", "steps", "guidance", "rows"),
            ((*(*one, *[""] * 5)[:5], count) for one, count in sorted(counts.drawn_by.items())),
        ),
        _table(("labelled by", "rows"), sorted(counts.labelled_by.items())),
        _seeds(counts),
        _table(("setting", "value"), ((name, json.dumps(value)) for name, value in about.items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(counts: _Counts, shards: Sequence[Shard], texts: CardTexts) -> dict[str, Any]:
    suffix = Path(shards[0].name).suffix
    total = counts.kept.total()
    return {
        "pretty_name": " ".join(texts.title.split()),
        "license": texts.licence,
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in _SIZES if total < most), "n>1M")],
        "tags": ["image-safety", "synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"{SHARDS}/{split}-*{suffix}"} for split in sorted(counts.kept)
                ],
            }
        ],
    }


def _splits(counts: _Counts) -> list[str]:
    rows = [
        (split, counts.kept[split], counts.safe[split], len(counts.clusters[split]) or "")
        for split in sorted(counts.kept)
    ]
    return [
        "## Splits",
        "Near prompts, all seeds of a prompt and all its variants are one cluster, and a cluster is in one split.",
        _table(("split", "rows", "safe", "clusters of prompts"), rows),
    ]


def _labels(counts: _Counts) -> list[str]:
    splits = sorted(counts.kept)
    shown = [
        (key, *(counts.shown[key][split] for split in splits), counts.unknown[key])
        for key in sorted(counts.shown)
    ]
    cases = ((True, True), (True, False), (False, True), (False, False))
    agreement = [(key, *(found[case] for case in cases)) for key, found in sorted(counts.agreement.items())]
    return [
        "## Labels of the pictures",
        _table(("category", *splits, "without a score"), shown),
        "## What prompts say and pictures show",
        f"Of clean rows; of {counts.unlabelled_prompts:,} nobody says what the prompt stands for.",
        _table(("category", "both", "prompt alone", "picture alone", "neither"), agreement),
    ]


def _variants(counts: _Counts) -> list[str]:
    if not counts.variants:
        return []
    rows = [
        (*attack, count, counts.evaded[attack], counts.still_unsafe[attack])
        for attack, count in sorted(counts.variants.items())
    ]
    header = ("attack", "defence", "rows", "evaded it", "labelled unsafe")
    own = sorted({defence for _, defence in counts.variants if defence in counts.labelled_by})
    warning = (
        f"{', '.join(map(_plain, own))} labelled attacks on itself: where it was evaded, `label` is its mistake. The "
        "row that a variant was made from (`variant`, `of`) has the label from before the attack."
    )
    return ["## Adversarial variants", _table(header, rows), warning if own else ""]


def _failures(counts: _Counts) -> list[str]:
    if not counts.failed:
        return []
    return ["## Failed rows", _table(("stage: reason", "rows"), sorted(counts.failed.items()))]


def _seeds(counts: _Counts) -> str:
    if not counts.seeds:
        return ""
    least, most = min(counts.seeds.values()), max(counts.seeds.values())
    several = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{len(counts.prompts):,} different prompts; of each {several} clean pictures are kept."


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else _plain(str(cell)) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """On one line, without what Markdown or HTML would take for markup: names of models come from anywhere."""
    for character in "\\|<>[]`":
        text = text.replace(character, f"&#{ord(character)};")
    return " ".join(text.split())
