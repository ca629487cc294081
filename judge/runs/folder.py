"""The run folder: everything that is needed to understand, resume and load a run.

    run.json          manifest: kind, format version, taxonomy hash, base model; read first
    config.yaml       every option after defaults and command line
    taxonomy.yaml     the categories it was trained on
    environment.json  versions, machine, commit
    metrics.json      the numbers
    skipped.jsonl     data that could not be used, with reasons
    rows/*.jsonl      one judged row a line
    plots/*.svg       figures of report.html

Files are written atomically: a run killed at any moment leaves the old content or the new one.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from judge.errors import CheckpointError
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .files import write_atomically
from .machine import environment, now

MANIFEST = "run.json"
THRESHOLDS = "thresholds.yaml"
"""In a run's folder: thresholds that belong to it, loaded and published with it."""
FORMAT = 1
"""Version of the folder's layout; raised when older code could no longer read it."""
_START_FILES = (MANIFEST, "config.yaml", "taxonomy.yaml", "environment.json")
"""What a run writes before it does anything."""


class RunDir:
    """A run folder. `RunDir.create` makes one, `RunDir.open` reads one; the constructor touches no file."""

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self._name = name

    @classmethod
    def create(cls, path: str | Path, *, kind: str = "vlm", resume: bool = False, **about: Any) -> "RunDir":
        """Make the folder and its manifest.

        Args:
            path: a folder that does not exist, or is empty but for what `withdraw` left.
            kind: what loads it again, such as `vlm`.
            resume: continue a run of the same kind that is there already.
            about: further JSON values for the manifest, such as the base model.

        Raises:
            CheckpointError: the folder is in use by another run, or by something that is no run.
        """
        run = cls(path)
        if run._manifest_path.exists():
            found = cls.open(path).kind
            if not resume or found != kind:
                raise CheckpointError(
                    f"{path} already holds a run of kind {found!r}; resume it, or choose another folder "
                    "(--output_dir), or delete this one"
                )
        elif run.path.exists() and not (run.path.is_dir() and all(map(_is_ledger, run.path.iterdir()))):
            raise CheckpointError(
                f"{path} exists and is no run folder; choose another one, or empty it first"
            )
        else:
            run.path.mkdir(parents=True, exist_ok=True)
            # The manifest first: a run that is killed here is still recognised, and can be resumed.
            run._write_json(MANIFEST, {"kind": kind, "format": FORMAT, "created": now()})
        run.update_manifest(**about)
        return run

    def withdraw(self) -> bool:
        """Take the folder away again if all it holds is how the run was started; tells whether it did.

        A list of rows that could not be used stays, for whoever repairs them; it is in no later run's way.
        """
        found = list(self.path.iterdir())
        if not all(path.name in _START_FILES or _is_ledger(path) for path in found):
            return False
        for path in found:
            if path.name in _START_FILES or not path.stat().st_size:
                path.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()
        return True

    def check_resumable(self, taxonomy: Taxonomy, **about: Any) -> None:
        """Check that a resumed run is still the same run; a folder without a run passes.

        Raises:
            CheckpointError: it was started with another taxonomy, or with other values of `about`.
        """
        if not self._manifest_path.exists():
            return
        started = self.manifest
        found = {
            "taxonomy": started.get("taxonomy", {}).get("hash"),
            **{key: started.get(key) for key in about},
        }
        for key, value in {"taxonomy": taxonomy.hash, **about}.items():
            if found[key] not in (None, value):
                raise CheckpointError(
                    f"{self.path} was started with {key} {found[key]!r}, not {value!r}; resume it with the same "
                    "one, or choose another output_dir"
                )

    @classmethod
    def open(cls, path: str | Path, *, kind: str | None = None, name: str | None = None) -> "RunDir":
        """Check that `path` is a run folder this version can read (and of `kind`, where one is asked for).

        `name` is what it is called, if not like its folder.

        Raises:
            CheckpointError: it is not; the message says what was found and what to do.
        """
        run = cls(path, name)
        if not run._manifest_path.is_file():
            what = "does not exist" if not run.path.exists() else f"holds no {MANIFEST}"
            raise CheckpointError(f"{path} {what}; give the folder that a recipe wrote, such as runs/demo")
        manifest = run.manifest
        version = manifest.get("format")
        # Any folder may hold a run.json of another program.
        if not isinstance(version, int) or not isinstance(manifest.get("kind"), str):
            raise CheckpointError(f"{run._manifest_path} names no kind and format version; it is damaged")
        # Older formats stay readable; a newer one may hold what this version would misread.
        if version > FORMAT:
            raise CheckpointError(
                f"{path} has run format {version}, this version reads up to {FORMAT}; update arbiter-vision"
            )
        if kind is not None and manifest["kind"] != kind:
            raise CheckpointError(f"{path} is a run of kind {manifest['kind']!r}, not {kind!r}")
        return run

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of run.json."""
        return self._read_json(MANIFEST)

    @property
    def name(self) -> str:
        """What verdicts and reports call it: its folder's name, or that of the repository it was fetched from."""
        return self._name or self.path.name or self.path.resolve().name

    @property
    def kind(self) -> str:
        """What loads this run again."""
        return str(self.manifest["kind"])

    def update_manifest(self, **about: Any) -> None:
        """Add JSON values to the manifest, or replace them.

        Raises:
            CheckpointError: `about` holds the kind, the format or the date, which are fixed.
        """
        # These identify the run; a caller that changes them has confused two runs.
        fixed = {"kind", "format", "created"} & set(about)
        if fixed:
            raise CheckpointError(f"the manifest's {', '.join(sorted(fixed))} cannot be changed")
        if about:
            self._write_json(MANIFEST, self.manifest | about)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the options after defaults and command line."""
        self.write_text("config.yaml", yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))

    @property
    def config(self) -> dict[str, Any]:
        """The options that `write_config` wrote."""
        # libyaml's parser, where PyYAML was built with it: the hundred options of a training take 30 ms without.
        return dict(
            yaml.load(self._read("config.yaml"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        )

    def write_taxonomy(self, taxonomy: Taxonomy) -> None:
        """Write the taxonomy, and its hash into the manifest."""
        self.write_text("taxonomy.yaml", taxonomy.to_yaml())
        self.update_manifest(
            taxonomy={"name": taxonomy.name, "version": str(taxonomy.version), "hash": taxonomy.hash}
        )

    @property
    def taxonomy(self) -> Taxonomy:
        """The taxonomy that `write_taxonomy` wrote.

        Raises:
            CheckpointError: there is none, or its hash is not the one in the manifest.
        """
        # Read first for the message about a missing file; `load_taxonomy` has one of its own.
        self._read("taxonomy.yaml")
        taxonomy = load_taxonomy(self.path / "taxonomy.yaml")
        # The hash guards against a taxonomy that was edited after training, which would relabel the model's answers.
        about = self.manifest.get("taxonomy")
        expected = about.get("hash") if isinstance(about, dict) else None
        if taxonomy.hash != expected:
            raise CheckpointError(
                f"{self.path / 'taxonomy.yaml'} has hash {taxonomy.short_hash}, but {MANIFEST} names "
                f"{str(expected)[:16]}: the file was edited after the run. To judge by other categories, "
                "leave it and pass your own taxonomy"
            )
        return taxonomy

    def write_environment(self) -> None:
        """Write versions, machine and commit."""
        self._write_json("environment.json", environment())

    @property
    def environment(self) -> dict[str, Any]:
        """What `write_environment` wrote."""
        return self._read_json("environment.json")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the numbers; NaN and infinities, which JSON lacks, become null."""
        self._write_json("metrics.json", metrics)

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers that `write_metrics` wrote."""
        return self._read_json("metrics.json")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write records, such as judged rows, one a line under rows/; returns the file's path."""
        return self._write_lines(f"rows/{name}.jsonl", rows)

    def read_rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The records that `write_rows` wrote under this name."""
        for line in self._read(f"rows/{name}.jsonl").splitlines():
            yield json.loads(line)

    def write_skipped(self, skipped: Iterable[tuple[str, str]]) -> int:
        """Write (id, reason) of data that could not be used, and return their number; the file may be empty."""
        entries = [{"id": name, "reason": reason} for name, reason in skipped]
        self._write_lines("skipped.jsonl", entries)
        return len(entries)

    @property
    def plots(self) -> Path:
        """The folder for figures, created on first use."""
        folder = self.path / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def _manifest_path(self) -> Path:
        return self.path / MANIFEST

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CheckpointError(
                f"the run {self.path} has no {name}; it may not have got that far"
            ) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._read(name))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CheckpointError(f"{self.path / name} is not JSON ({error}); it is damaged") from None
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{self.path / name} holds {type(content).__name__}, not an object; it is damaged"
            )
        return content

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write_text(
            name, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def _write_lines(self, name: str, entries: Iterable[Mapping[str, Any]]) -> Path:
        # allow_nan=False: `NaN` is no JSON, and other readers of the file would refuse it.
        lines = (json.dumps(_plain(entry), ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
        return self.write_text(name, "".join(lines))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the run atomically, and return its path."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        return path


def _is_ledger(path: Path) -> bool:
    return path.name.startswith("skipped") and path.suffix == ".jsonl"


def _plain(value: Any) -> Any:
    """The value in JSON's types: scalars and arrays of numpy or torch as numbers, paths as text, NaN as None."""
    # By what a value can do and not by its class, so that neither numpy nor torch is imported here.
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(entry) for entry in value)
    return str(value)
