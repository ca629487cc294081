"""Numbers that others published (`published.yaml`), and how far a run is from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from prompts.errors import ArbiterError

METRICS = frozenset(
    {
        "f1", "covered_f1", "precision", "recall", "accuracy", "balanced_accuracy", "false_positive_rate",
        "false_negative_rate", "robust_accuracy", "policy_exception_score", "pair_score", "safe_to_unsafe",
        "unsafe_to_safe", "mean_of_transitions", "accuracy_level_1", "prompt_f1", "response_f1",
    }
)  # fmt: skip
"""What can be published: shares in [0, 1]."""
OVERALL = "overall"
_AXES = ("category", "dataset", "attack", "metric")
_SECTIONS = frozenset(
    {"sources", "data_sets", "classifiers", "notes", "tables", "numbers", "costs", "statistics", "coverage", "images",
     "test_split"}
)  # fmt: skip


class PublishedError(ArbiterError):
    """A file of published numbers that contradicts itself."""


@dataclass(frozen=True)
class Published:
    """One published number."""

    classifier: str
    dataset: str
    """A key of `data_sets`."""
    metric: str
    """One of `METRICS`."""
    value: float
    """In [0, 1]."""
    source: str
    """Where it stands, in words."""
    where: str
    """The table or section there; empty where it is not known."""
    category: str | None = None
    """Key of the one category that it is of; None for all."""
    images: str = "all"
    """Source of the images: `real`, `generated` or `all`."""
    attack: str | None = None
    """The perturbation, of robust accuracy."""
    deviation: float | None = None
    """Standard deviation, where there is one."""
    splits: tuple[str, ...] = ("test",)
    protocol: str | None = None
    """`paper`, that of UnsafeBench; None where it is not known."""
    notes: tuple[str, ...] = ()
    """What has to be read with it."""

    @property
    def reference(self) -> str:
        """Where it stands, with the table."""
        return f"{self.source}, {self.where}" if self.where else self.source


@dataclass(frozen=True)
class Literature:
    """Everything in the file."""

    numbers: tuple[Published, ...]
    data_sets: Mapping[str, tuple[str, ...]]
    """Key -> what a run may call it."""
    names: Mapping[str, str]
    """Simplified name of a classifier (`simplify`) -> its published name."""
    coverage: Mapping[str, tuple[str, ...] | None]
    """UnsafeBench's Table 3: classifier -> keys of the categories that it covers; None for all."""
    images: Mapping[str, Mapping[str, Mapping[str, int]]]
    """Its Table 9: source -> `safe`, `unsafe` or `total` -> key of a category, or `overall` -> images."""
    test_split: Mapping[str, Mapping[str, int]]
    """`safe` or `unsafe` -> key of a category, or `overall` -> images in the published test split."""
    statistics: Mapping[str, Mapping[str, float]]
    """Its Table 2: source -> column -> number."""
    costs: Mapping[str, Mapping[str, Any]]
    """Classifier -> `dollars` and `minutes` for 1,000 images, and `reference`."""

    def dataset(self, name: str) -> str | None:
        """The key of a data set by its key or by what a run calls it, such as `unsafebench:PATH`; None if unknown."""
        short = name.partition(":")[0].casefold()
        for key, names in self.data_sets.items():
            if short in (key, *names) or name.casefold() in names:
                return key
        return None

    def classifier(self, *names: str) -> str | None:
        """The published name of the first of these names that is known; None if none is."""
        found = (self.names.get(simplify(name)) for name in names)
        return next((name for name in found if name is not None), None)


@cache
def literature() -> Literature:
    """What ships with this package."""
    return read_published(Path(str(files(__package__) / "published.yaml")))


def read_published(path: Path) -> Literature:
    """Read and check a file of published numbers.

    Raises:
        PublishedError: it is no YAML, a section or a name is missing or unknown, a line has too many or too few
            numbers, a share lies outside of [0, 1], or a number stands there twice.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PublishedError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or set(data) != _SECTIONS:
        wrong = _SECTIONS ^ set(data if isinstance(data, dict) else ())
        raise PublishedError(f"{path}: missing or unknown sections: {', '.join(sorted(map(str, wrong)))}.")
    try:
        return _literature(data)
    except PublishedError as error:
        raise PublishedError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PublishedError(f"{path} is not built as expected: {type(error).__name__}: {error}.") from error


def _literature(data: Mapping[str, Any]) -> Literature:
    numbers = [*_from_tables(data), *(_number(data, **entry) for entry in data["numbers"])]
    _check(numbers, data)
    names = {simplify(number.classifier): number.classifier for number in numbers}
    for classifier, others in data["classifiers"].items():
        if simplify(classifier) not in names:
            raise PublishedError(f"names are given for {classifier!r}, of which there are no numbers")
        names |= {simplify(other): classifier for other in others}
    counts, split = data["images"], data["test_split"]
    return Literature(
        tuple(numbers),
        {key: tuple(name.casefold() for name in found) for key, found in data["data_sets"].items()},
        names,
        {name: None if keys == "all" else tuple(keys) for name, keys in data["coverage"].items()},
        {
            source: {kind: _columns(counts["columns"], row, source) for kind, row in rows.items()}
            for source, rows in counts["rows"].items()
        },
        {kind: _columns(split["columns"], row, kind) for kind, row in split["rows"].items()},
        {
            source: _columns(data["statistics"]["columns"], row, source)
            for source, row in data["statistics"]["rows"].items()
        },
        {
            entry["classifier"]: {
                "dollars": entry["dollars"],
                "minutes": entry["minutes"],
                "reference": f"{data['sources'][entry['source']]}, {entry['where']}",
            }
            for entry in data["costs"]
        },
    )


def _from_tables(data: Mapping[str, Any]) -> Iterator[Published]:
    for table in data["tables"]:
        axis = table["columns_are"]
        if axis not in _AXES:
            raise PublishedError(f"columns are {axis!r}; allowed are {', '.join(_AXES)}")
        shared = {
            name: table[name]
            for name in ("source", "dataset", "metric", "splits", "protocol")
            if name in table
        }
        for block, lines in table["blocks"].items():
            for classifier, line in lines.items():
                where = f"{table['table']}, {classifier}"
                for column, value in _columns(table["columns"], line, where).items():
                    if value is None:
                        continue
                    mean, deviation = value if isinstance(value, list) else (value, None)
                    fields = shared | {axis: column}
                    if fields.get("category") == OVERALL:
                        del fields["category"]
                    yield _number(
                        data,
                        classifier=classifier,
                        value=mean,
                        deviation=deviation,
                        images=block,
                        where=table["table"],
                        notes=list(_remarks(table, classifier, column)),
                        **fields,
                    )


def _remarks(table: Mapping[str, Any], classifier: str, column: str) -> Iterator[str]:
    for remark in table.get("remarks", ()):
        if remark.get("classifier", classifier) == classifier and remark.get("column", column) == column:
            yield remark["note"]


def _number(
    data: Mapping[str, Any],
    *,
    source: str,
    where: str = "",
    notes: Sequence[str] = (),
    splits: Sequence[str] = ("test",),
    **fields: Any,
) -> Published:
    for kind, name, known in (
        ("source", source, data["sources"]),
        ("data set", fields["dataset"], data["data_sets"]),
        ("metric", fields["metric"], METRICS),
        *(("note", note, data["notes"]) for note in notes),
    ):
        if name not in known:
            raise PublishedError(f"{kind} {name!r} of {fields['classifier']} is not defined")
    return Published(
        source=data["sources"][source],
        where=where,
        notes=tuple(data["notes"][note] for note in notes),
        splits=tuple(splits),
        **fields,
    )


def _check(numbers: Sequence[Published], data: Mapping[str, Any]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for one in numbers:
        if not isinstance(one.value, (int, float)) or not 0 <= one.value <= 1:
            raise PublishedError(
                f"{one.classifier}, {one.metric}, {one.reference}: {one.value!r} is no share"
            )
        # Two ends of a range differ in their notes.
        what = (
            one.classifier,
            one.dataset,
            one.metric,
            one.category,
            one.images,
            one.attack,
            one.reference,
            one.notes,
        )
        if what in seen:
            raise PublishedError(f"{one.classifier}, {one.metric}, {one.reference} stands there twice")
        seen.add(what)
    unused = set(data["notes"].values()) - {note for one in numbers for note in one.notes}
    if unused:
        raise PublishedError(f"the note {sorted(unused)[0]!r} is on no number")


def _columns(columns: Sequence[str], line: Sequence[Any], where: str) -> dict[str, Any]:
    if len(line) != len(columns):
        raise PublishedError(f"{where} has {len(line)} numbers for {len(columns)} columns")
    return dict(zip(columns, line, strict=True))


def simplify(name: str) -> str:
    """A name in small letters and digits alone, so that `gpt_4v` is `GPT-4V*`."""
    return "".join(character for character in name.casefold() if character.isalnum())
