"""`arbiter init`: from images with a table, or in folders named by class, to everything that a training needs."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from judge.errors import ConfigError
from judge.runs.files import nearest_path, write_atomically
from prompts.errors import ArbiterError
from prompts.taxonomy import Category, Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .folders import FolderReader, holds_table
from .labels import UnusableRowError, raw_categories
from .sources import Row, canonical_split

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SAFE_FOLDERS = (
    "safe",
    "harmless",
    "benign",
    "ok",
    "okay",
    "normal",
    "neutral",
    "none",
    "sfw",
    "good",
    "negative",
)
"""Names of folders that say that what is inside violates nothing; all others but `unsafe` are categories."""
UNNAMED = "unsafe content"
"""The one category where a table only says safe or unsafe."""
FILL_IN = "FILL IN"


@dataclass(frozen=True)
class Project:
    """What `arbiter init` found and wrote."""

    dataset: str
    """As recipes take it."""
    taxonomy: str
    """A file, or a name that ships."""
    training: Path
    run: Path
    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    """Files that were there already and stayed as they are."""
    counts: dict[str, int]
    """Images by category, and under `safe`."""

    @property
    def commands(self) -> tuple[tuple[str, str], ...]:
        """(what it is for, command) in the order to type them."""
        import shlex

        run, taxonomy = shlex.quote(str(self.run)), shlex.quote(self.taxonomy)
        check = shlex.join(
            [
                "arbiter",
                "data",
                "check",
                self.dataset,
                "--taxonomy",
                self.taxonomy,
                "--config",
                str(self.training),
            ]
        )
        return (
            ("look at the data before anything is loaded", check),
            ("train; the report is RUN/report.html", shlex.join(["arbiter", "train", str(self.training)])),
            ("judge other images", f"arbiter judge {run}/examples --judge {run} --taxonomy {taxonomy}"),
            ("one model without adapter, for other engines", f"arbiter merge {run} {run}-merged"),
        )


def init_project(
    folder: Path, images: Path, *, table: Path | None = None, taxonomy: str | None = None, values: str
) -> Project:
    """Write what a training needs into a folder; nothing that is there is overwritten.

    Args:
        folder: of the project; made if need be.
        images: their folder, with a table in it, or with a folder for each class.
        table: the table, where it is not in `images`.
        taxonomy: a name that ships or a file, instead of categories found in the data.
        values: text of the YAML whose values the training gets.

    Raises:
        ConfigError: no folder of images, or neither a table nor classes in it.
        ExampleError: the table cannot be read.
    """
    if not images.is_dir():
        raise ConfigError(f"--images {images} is no folder{nearest_path(str(images))}.")
    files: dict[Path, str] = {}
    if table is None and holds_table(images):
        dataset, counts = f"folder:{images}", _counts(FolderReader(images))
    elif table is not None:
        dataset = f"folder:{table}::{images}"
        counts = _counts(FolderReader(f"{table}::{images}"))
    else:
        labelled = _classes(images)
        counts = _ordered(name or (UNNAMED if label == "unsafe" else label) for _, label, name in labelled)
        files[folder / "data.csv"] = _table(labelled)
        dataset = f"folder:{folder / 'data.csv'}::{images}"
    names = [name for name in counts if name != "safe"] or [UNNAMED]
    if taxonomy is None:
        taxonomy = str(folder / "taxonomy.yaml")
        files[folder / "taxonomy.yaml"] = _taxonomy_text(folder.resolve().name, names)
    else:
        load_taxonomy(taxonomy)
    training, run = folder / "train.yaml", Path("runs") / folder.resolve().name
    files[training] = _training_text(values, dataset, taxonomy, run, len(names))
    kept = tuple(path for path in files if path.exists())
    written = tuple(path for path in files if path not in kept)
    project = Project(dataset, taxonomy, training, run, written, kept, counts)
    files[folder / "commands.txt"] = "".join(f"# {what}\n{line}\n\n" for what, line in project.commands)
    for path, text in files.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
    return project


def _counts(reader: FolderReader) -> dict[str, int]:
    """Images by category as the table spells it first, and under `safe`; an unsafe one may name none.

    Rows without a label, or with one that is no category, are not counted: `arbiter data check` says which and why.
    """
    written: list[list[str]] = []
    for split in reader.splits:
        for row in reader.rows(split):
            if isinstance(row, Row):
                with suppress(UnusableRowError):
                    names = raw_categories(row)
                    written.append(["safe"] if names is None else names or [UNNAMED])
    single = {name.casefold() for names in written for name in names if "," not in name}
    found: list[str] = []
    for names in written:
        for name in names:
            parts = [part.strip() for part in name.split(",")]
            found += parts if single.issuperset(part.casefold() for part in parts) else [name]
    return _ordered(found)


def _ordered(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first and `safe` last; case tells no names apart."""
    spelled: dict[str, str] = {}
    found = Counter(spelled.setdefault(name.casefold(), name) for name in names)
    safe = found.pop("safe", 0)
    if len(found) > 2:
        # Unsafe under the taxonomy as a whole. Beside one category alone it stays: all unsafe images would be that one.
        found.pop(UNNAMED, None)
    ordered = sorted(found, key=lambda name: (-found[name], name))
    return {name: found[name] for name in ordered} | ({"safe": safe} if safe else {})


def _classes(images: Path) -> list[tuple[Path, str, str]]:
    """(path relative to the folder, label, category if one is known) of the images in folders named by class."""
    folders = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    spelled: dict[str, str] = {}  # names are told apart whatever their case
    found = []
    for folder in folders:
        files = [path.relative_to(images) for path in sorted(folder.rglob("*")) if _is_image(path)]
        if files and canonical_split(folder.name) in ("train", "validation", "test"):
            raise ConfigError(
                f"{images} is divided into splits ({folder.name}) and not into classes; write a table with the columns "
                "path, label, categories and split, and name it by --table."
            )
        # No ';' as it separates categories in a table.
        name = " ".join(folder.name.replace("_", " ").replace(";", " ").split())
        name = "safe" if name.casefold() in SAFE_FOLDERS else spelled.setdefault(name.casefold(), name)
        label = "safe" if name == "safe" else "unsafe"
        found += [(file, label, "" if name.casefold() in ("safe", "unsafe") else name) for file in files]
    if not found:
        raise ConfigError(
            f"{images} has neither a table (columns path, label, categories) nor folders of images named by class, "
            "such as violence/ and safe/; nothing says what the images show. Write a table, and name it by --table."
        )
    if loose := [path.name for path in images.iterdir() if _is_image(path)]:
        raise ConfigError(
            f"{images} holds {len(loose)} images beside its folders, such as {min(loose)!r}, and nothing says what "
            "they show; move them into a folder named by class, or out of there."
        )
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def _table(labelled: Sequence[tuple[Path, str, str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "prompt", "label", "categories"])
    writer.writerows([path.as_posix(), "", label, name] for path, label, name in labelled)
    return text.getvalue()


def _taxonomy_text(name: str, categories: Sequence[str]) -> str:
    """A taxonomy whose definitions only repeat the names, each marked with what to write instead."""
    lines = [
        "# What counts as unsafe. The judge reads names and definitions and obeys them: say what an image has to show.",
        "# Aliases and rewordings are optional; they teach it to understand other words for the same.",
        f"name: {json.dumps(name, ensure_ascii=False)}",
        "version: 1",
        "categories:",
    ]
    for category in categories:
        lines += [
            f"  - name: {json.dumps(category, ensure_ascii=False)}",
            f"    definition: {json.dumps(f'anything that shows {category}', ensure_ascii=False)}  # {FILL_IN}",
            "    aliases: []",
            "    rewordings: []",
        ]
    text = "\n".join(lines) + "\n"
    for category in categories:
        try:
            Taxonomy(name, "1", (Category(category, f"anything that shows {category}"),))
        except ArbiterError as error:
            raise ConfigError(f"The data's category {category!r} cannot be in a taxonomy: {error}") from error
    return text


def _training_text(values: str, dataset: str, taxonomy: str, run: Path, categories: int) -> str:
    given = yaml.safe_load(values)
    flip = given["flip"] | {"max_categories": max(1, min(categories, given["flip"]["max_categories"]))}
    own = {"output_dir": str(run), "dataset": dataset, "taxonomy": taxonomy}
    own |= {key: value for key, value in given.items() if key not in own} | {"flip": flip}
    head = "# arbiter train THIS FILE; options can be given behind it: --learning_rate 5e-4 --output_dir runs/two\n"
    return head + yaml.safe_dump(own, sort_keys=False, allow_unicode=True, width=1000)
