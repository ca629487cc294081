"""Merge a judge's adapter into its base: one plain checkpoint that transformers and other engines load.

Beside the weights stand the processor and the chat template that the engines read; the taxonomy, what is known of the
lessons, and the thresholds, with which `load_classifier` opens the folder as the judge it is; a card; and `serve.md`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError
from judge.runs.files import share_files, write_atomically
from judge.runs.folder import MANIFEST, THRESHOLDS, RunDir
from judge.vlm.adapter import load_adapter
from judge.vlm.load import BaseOptions, load_base

from .card import Facts, write_card
from .contents import MERGED
from .details import Details
from .published_metrics import published_metrics
from .serve_guide import GUIDE, START_TEMPLATE, serve_guide, start_text

_COPIED = ("taxonomy.yaml", "measured.json", THRESHOLDS)
_KEPT = ("format", "created", "dtype", "template", "taxonomy", "lessons")
"""Of the run's manifest, what says how the merged judge is asked."""


def merge_run(run: str | Path, out: str | Path, *, details: Details | None = None) -> Path:
    """Write base and adapter of a run as one plain checkpoint that any engine can serve.

    A run on a 4-bit base (QLoRA) is merged into the dequantised weights, because it was trained and measured on those;
    the original weights would give other scores.

    Args:
        run: a judge's folder.
        out: a folder that does not exist, or is empty.
        details: what its user says of it, for the card; by default what was said before.

    Raises:
        CheckpointError: not a run of this kind, or `out` is in use.
    """
    folder = RunDir.open(run, kind="vlm")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} is not empty; choose another folder.")
    options = BaseOptions.from_run(folder)
    model, processor = load_base(options)
    if options.load_in_4bit:
        model = model.dequantize()
    # Merged in place of the adapter's layers; the result is a plain transformers model.
    merged = load_adapter(model, folder.path / "adapter").merge_and_unload()
    merged.config.name_or_path = ""  # a path of this machine, else
    try:
        merged.save_pretrained(target)
        processor.save_pretrained(target)
        _write_run(folder, target, details or Details.of(folder.path))
        _write_guide(folder, target, processor)
        share_files(target)
    except BaseException:  # half a model is in the way of the next try; nothing else was in this folder
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def _write_run(run: RunDir, target: Path, details: Details) -> None:
    """What makes the checkpoint a judge again: manifest, taxonomy, records, numbers, card and the guide to serve it."""
    facts = Facts.of(run, details)
    manifest: dict[str, Any] = {"kind": MERGED}
    manifest |= {key: facts.manifest[key] for key in _KEPT if key in facts.manifest}
    if facts.base is not None:
        manifest["base"] = facts.base
    _write_json(target / MANIFEST, manifest)
    for name in _COPIED:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target / name)
    if facts.metrics:
        _write_json(target / "metrics.json", published_metrics(facts))
    said = Details(
        base=facts.base, license=details.license, data_license=details.data_license, data=details.data
    )
    said.save(target)
    merged = RunDir.open(target, kind=MERGED)
    write_card(merged, details=said)


def _write_guide(run: RunDir, target: Path, processor: Any) -> None:
    """serve.md, and the chat template that it needs."""
    manifest = run.manifest
    template, dtype = str(manifest["template"]), str(manifest.get("dtype", "float32"))
    start = start_text(processor, run.taxonomy, template)
    if start:
        write_atomically(target / START_TEMPLATE, start + str(processor.chat_template))
    write_atomically(target / GUIDE, serve_guide(run.taxonomy, template, dtype, start=start))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
