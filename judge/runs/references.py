"""References from a run folder to models and other runs; an untrusted run's are checked before anything is loaded.

- **No host.** A run sends nothing anywhere and fetches from no address. A served judge that it names is used only if
  the caller names it too. A base model or encoder may be named by hub id, as adapters must name their base: its
  safetensors are loaded from the hub or its cache, no remote code runs, and a warning is logged.
- **The same content.** A fingerprint covers everything that changes a stage's answers. It guards against mistakes, not
  against an attacker who writes the whole run, and can make it judge as he likes.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from judge.errors import CheckpointError
from prompts.printable import printable

from .files import file_hash
from .folder import MANIFEST, RunDir

HUB = "hf:"
"""Before an id of the Hugging Face hub, where a caller names a classifier; manifests hold the id alone."""
LOG = logging.getLogger("arbiter")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_WEIGHTS = ("*.safetensors", "adapter/*.safetensors", "encoder/*.safetensors")
_SHAPES = (
    "head.json",
    "taxonomy.yaml",
    "config.yaml",
    "adapter/adapter_config.json",
    "encoder/*.json",
    "encoder/*.txt",
)
"""Files of a run, of any kind, that are loaded with its weights; intermediate checkpoints and metrics are not."""
_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_MERGED = ("config.json", "tokenizer*.json", "*processor_config.json", "*.jinja", "*.txt", "*.model")
"""Files beside the weights of a run that is a whole model."""
_EXPORTED = (".onnx", ".text.onnx", ".taxonomy.onnx", ".head.onnx", ".tokenizer.json", ".json")
"""Files of an exported student (`judge.student.onnx`)."""


def is_address(name: str) -> bool:
    """Whether a name is a URL, whatever its scheme, or a share on another machine."""
    return "://" in name or name.lower().startswith(("//", "\\\\", "http:", "https:"))


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a repository on the hub: `organisation/model`, or an older one's single word."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def stored_model(name: object, source: Path) -> str:
    """Check the base model or encoder that a run names: a shipped model, a folder, or a hub id.

    Args:
        name: as the run's manifest holds it.
        source: the run, for messages.

    Raises:
        CheckpointError: an address, a folder that holds an adapter and no base, or no name at all.
    """
    from judge.standins.shipped import SHIPPED

    if not isinstance(name, str) or not name or is_address(name):
        raise CheckpointError(
            f"{source} names the model {name!r}; a run may name a folder or a hub id such as "
            "llava-hf/llava-1.5-7b-hf, never an address. Correct its run.json if you trust it."
        )
    if Path(name).is_dir():
        if (Path(name) / "adapter_config.json").exists():
            raise CheckpointError(
                f"{source} names {name!r} as its model, which is an adapter and would load whatever it names itself."
            )
    elif name not in SHIPPED:
        if not is_hub_id(name):
            raise CheckpointError(
                f"{source} names the model {name!r}, which is neither a folder nor a hub id."
            )
        LOG.warning(
            "%s names the model %s, which is no folder here: it is loaded from the Hugging Face hub or its cache",
            printable(source),
            name,
        )
    return name


def stored_path(path: object, source: Path) -> Path:
    """The path of another run that a run refers to: relative, so that both can be moved together.

    Raises:
        CheckpointError: an address, or a path that does not start at the run.
    """
    if not isinstance(path, str) or not path or is_address(path) or "\0" in path:
        raise CheckpointError(f"{source} names no path to another run but {path!r}; it is damaged.")
    # Both kinds of path, whatever this machine is: a run may come from the other one.
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
        raise CheckpointError(f"{source} names the run {path!r}; a path from one run to another is relative.")
    return source / path


def fingerprint(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of all that changes the answers of a run, a model folder or an exported student.

    For a run: weights, shapes, taxonomy, options, adapter settings, its own encoder, and run.json without its date,
    which holds the names of base and encoder, dtype, template and the encoder's own fingerprint. Also the files of a
    base that is named by its folder; one named by hub id is not downloaded to be hashed.
    """
    digest = hashlib.sha256()
    if path.suffix == ".onnx":
        stem = path.with_suffix("")
        _add(digest, path.parent, [stem.with_name(stem.name + suffix) for suffix in _EXPORTED])
    elif (path / MANIFEST).is_file():
        # The date is left out: a student that is trained again to the same weights is the same student.
        about = {key: value for key, value in RunDir.open(path).manifest.items() if key != "created"}
        digest.update(json.dumps(about, sort_keys=True).encode())
        whole = _MERGED if (path / "config.json").is_file() else ()
        _add(digest, path, [file for pattern in (*_WEIGHTS, *_SHAPES, *whole) for file in path.glob(pattern)])
        base = about.get("base")
        # A base in a folder may change under the same name.
        if isinstance(base, str) and Path(base).is_dir():
            _add(digest, Path(base), _model_files(Path(base)))
    else:
        _add(digest, path, _model_files(path))
    return digest.hexdigest()


def teacher_identity(name_or_path: str | Path) -> str:
    """A name that changes with a teacher's weights, stored with its lessons.

    For a folder: its own name and 16 digits of a SHA-256 over its safetensors, without intermediate checkpoints. For
    anything else: the name as it is.
    """
    folder = Path(name_or_path)
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    # Intermediate checkpoints may be deleted at any time, and are never loaded as the teacher.
    files = [file for file in files if not any(part.startswith("checkpoint-") for part in file.parts)]
    if not files:
        return str(name_or_path)
    digest = hashlib.sha256(b"".join(bytes.fromhex(file_hash(file)) for file in files))
    return f"{folder.name}@{digest.hexdigest()[:16]}"


def _model_files(folder: Path) -> list[Path]:
    """The files that a model is loaded from: weights, configurations, templates, vocabularies."""
    return [file for pattern in _MODEL for file in folder.glob(pattern)]


def _add(digest: "hashlib._Hash", folder: Path, files: Iterable[Path]) -> None:
    # Sorted, and each with its name: neither the order of a folder nor a renamed file may go unnoticed.
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"\n{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(bytes.fromhex(file_hash(file)))
