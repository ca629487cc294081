"""A run as it is published, put together in a folder of its own: only what belongs to it, and nothing of this machine.

Bases are named by hub id instead of by a path, the card is written for its place, and a cascade takes its stages with
it: their folders, and their fingerprints as they are published.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urldefrag

from judge.errors import CheckpointError, ConfigError
from judge.runs.files import write_atomically
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import fingerprint, is_address, is_hub_id, stored_path
from judge.standins.shipped import SHIPPED

from .card import Facts, write_card
from .contents import CARD, CONTENTS, MERGED, NEEDED, PARTS, files_of, left_out, patterns
from .details import Details, published_base
from .published_metrics import published_metrics
from .repository import is_pinned_id

_EXAMPLES = ("examples/*.png", "examples/*.jpg")
_READ_FOR_PATHS = (".json", ".yaml", ".md", ".jinja")
_NAMED_IN_CARDS = ("teacher", "made_from")
"""Of a manifest, what names other runs of this machine and is needed by nobody."""
_SERVED = "http://the-server-of-the-judge/v1"
"""Stands in a published cascade for the address of a server, which is private."""


@dataclass(frozen=True)
class Staged:
    """What is published, as files below `folder`."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    """(path with `/`, bytes), sorted."""
    left_out: tuple[tuple[str, str], ...]
    """(name, why) of what stays here."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)


def stage(
    run: RunDir, folder: Path, *, details: Details, name: str | None = None, examples: bool = False
) -> Staged:
    """Put together what is published of a run.

    Args:
        run: finished, of a kind that is published.
        folder: empty.
        details: what its user says of it.
        name: of the repository, for the card.
        examples: take the example pictures along.

    Raises:
        CheckpointError: the run is unfinished, damaged, of another kind, or names this machine in a file.
        ConfigError: nobody else would find its base; the message says how to name it.
    """
    taken = _stage_run(run, folder, details, name)
    if examples:
        pictures = files_of(run.path, _EXAMPLES)
        _copy(run.path, folder, pictures)
        taken += pictures
    _check_private(folder, run.path)
    sizes = tuple(
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    return Staged(folder, sizes, tuple(left_out(run.path, taken)))


def _stage_run(run: RunDir, folder: Path, details: Details, name: str | None) -> list[str]:
    """Copy one run without its stages; gives the files that were taken."""
    kind = run.kind
    wanted = patterns(kind, run.path)
    if not (run.path / NEEDED[kind]).is_file():
        raise CheckpointError(f"{run.path} holds no {NEEDED[kind]}; its training did not finish.")
    facts = Facts.of(run, details)
    taken = [file for file in files_of(run.path, wanted) if not _is_part(kind, file)]
    _copy(run.path, folder, [file for file in taken if Path(file).name not in (CARD, MANIFEST)])
    manifest = {key: value for key, value in facts.manifest.items() if key not in _NAMED_IN_CARDS}
    if kind == "cascade":
        manifest |= {part: _stage_part(run, part, folder) for part in PARTS}
        taken += [part for part in PARTS if (run.path / part).exists()]
    else:
        manifest |= _base_entry(run, facts, details)
    _write_json(folder / MANIFEST, manifest)
    adapter = folder / "adapter" / "adapter_config.json"
    if adapter.is_file():
        config = json.loads(adapter.read_text(encoding="utf-8"))
        _write_json(adapter, config | {"base_model_name_or_path": manifest["base"]})
    if facts.metrics:
        _write_json(folder / "metrics.json", published_metrics(facts))
    write_card(run, folder, details=details, name=name)
    return taken


def _base_entry(run: RunDir, facts: Facts, details: Details) -> dict[str, str]:
    """The base or encoder under the name by which others find it."""
    if facts.kind == MERGED:
        return {"base": facts.base} if facts.base else {}
    if facts.kind == "student" and (run.path / "encoder").is_dir():
        return {"encoder": "encoder"}  # its own, which is published with it
    key = "base" if facts.kind == "vlm" else "encoder"
    found = published_base(facts.manifest.get(key), details)
    if found is None:
        raise ConfigError(
            f"{run.path} has the {key} {facts.manifest.get(key)!r}, which nobody else can load. Name where it comes "
            "from on the hub: --base ORGANISATION/MODEL; or merge a judge first, whose weights then hold the base "
            "(`arbiter merge`)."
        )
    return {key: found}


def _stage_part(run: RunDir, part: str, folder: Path) -> dict[str, str] | None:
    """A stage of a cascade, copied beside it, as its manifest names it then."""
    about: Any = run.manifest.get(part)
    if about is None:
        return None
    if not isinstance(about, Mapping):
        raise CheckpointError(f"{run.path} names no {part}; it is damaged.")
    if "name" in about:
        named = _named_part(str(about["name"]), run)
        # Of a run on the hub, which is compared with it when the cascade is loaded.
        return named | ({"sha256": about["sha256"]} if "sha256" in about else {})
    source = stored_path(about.get("path"), run.path)
    if not source.exists() or fingerprint(source) != about.get("sha256"):
        raise CheckpointError(
            f"{source} is missing, or not the {part} that {run.path} was calibrated with; calibrate it again."
        )
    stage_run = RunDir.open(source)
    if stage_run.kind == "cascade" or stage_run.kind not in CONTENTS:
        raise CheckpointError(f"{source} is a run of kind {stage_run.kind!r}, and no stage of a cascade.")
    (folder / part).mkdir()
    try:
        _stage_run(stage_run, folder / part, Details.of(source), None)
    except ConfigError as error:
        raise ConfigError(f"{error} Say it of the stage: arbiter card {source} --base ...") from None
    return {"path": part, "sha256": fingerprint(folder / part)}


def _named_part(name: str, run: RunDir) -> dict[str, str]:
    """A stage that is no folder: a base by name, or a served judge, of which the model's name is kept."""
    if is_address(name):
        model = urldefrag(name)[1]
        if not is_hub_id(model):  # servers name a model by the folder that they read it from
            model = PurePath(model).name
        return {"name": f"{_SERVED}#{model}" if model else _SERVED}
    if name not in SHIPPED and not is_pinned_id(name):
        raise ConfigError(f"{run.path} names the judge {name!r}, which nobody else can load.")
    return {"name": name}


def _is_part(kind: str, file: str) -> bool:
    return kind == "cascade" and file.partition("/")[0] in PARTS


def _copy(source: Path, folder: Path, names: list[str]) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Weights may be tens of gigabytes; they are only read from here.
            if not name.endswith(".safetensors"):
                raise OSError
            os.link((source / name).resolve(), target)
        except OSError:
            shutil.copyfile(source / name, target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _check_private(folder: Path, run: Path) -> None:
    """Refuse to publish a file that holds a path of this machine."""
    # Folders of people and of this run; "/" and the like would be found everywhere.
    paths = {str(Path.home()), str(Path.cwd()), str(run.resolve().parent), tempfile.gettempdir()}
    private = [path + os.sep for path in paths if len(path) > 3]
    for file in sorted(folder.rglob("*")):
        if file.suffix not in _READ_FOR_PATHS or file.name in ("tokenizer.json", "vocab.json"):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for path in private:
            if path in text:
                raise CheckpointError(
                    f"{file.relative_to(folder)} holds the path {path!r} of this machine; take it out of the run's "
                    "file before it is published."
                )
