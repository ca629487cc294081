"""Predictions of one classifier on one data set: a row an image, in one Parquet file that explains itself.

A row holds the truth too, so tables and reports need neither the data set nor the classifier, and anyone can compute
other numbers from the file. What was asked, of whom and how stands in the file's own metadata (`About`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from eval.classifiers import Group
from judge.errors import first_line
from judge.runs.files import write_atomically
from prompts.errors import ArbiterError
from prompts.example import UNSPECIFIED
from prompts.taxonomy import Taxonomy

VERSION = 1
"""Of the file; raised when older code could misread it."""
SUFFIX = ".parquet"
_METADATA = b"arbiter"

Protocol = Literal["default", "paper"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


class PredictionsError(ArbiterError):
    """A file of predictions that cannot be read, or that another version wrote."""


@dataclass(frozen=True)
class About:
    """What a file of predictions is: who was asked what, on which images."""

    label: str
    """What tables call the classifier; unique within a run."""
    classifier: str
    """The name or path that was loaded."""
    group: Group
    taxonomy: Taxonomy
    """All categories of the benchmark, K of them, whether the classifier covers them or not."""
    covers: tuple[str, ...]
    """Keys of those that it claims to find."""
    dataset: str
    splits: tuple[str, ...]
    protocol: Protocol = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    """What it was loaded with."""
    fingerprint: str | None = None
    """Of its files, where it has any."""
    price_per_1000: float | None = None
    """US dollars for 1,000 images, where they cost money."""
    machine: str = ""
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """As JSON types. `from_dict` is the inverse."""
        return {**asdict(self), "taxonomy": self.taxonomy.to_dict(), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "About":
        """Inverse of `to_dict`."""
        lists = {name: tuple(values[name]) for name in ("covers", "splits")}
        return cls(**{**values, **lists, "taxonomy": Taxonomy.from_dict(values["taxonomy"])})


@dataclass(frozen=True)
class Prediction:
    """What a classifier said of one image, and what is true."""

    id: str
    """Unique within one file."""
    violates: frozenset[str]
    """Keys of the categories that the image violates, as of `Example`; `UNSPECIFIED` if it violates one of the
    taxonomy's, and the data set does not say which."""
    unknown: frozenset[str]
    """Keys that were not labelled, as of `Example`."""
    unsafe: float
    """Probability in [0, 1] that any category of `asked` is violated; NaN if unjudged."""
    categories: tuple[float, ...]
    """K scores in [0, 1], in the taxonomy's order; NaN where it was not asked, not covered, or not judged."""
    asked: frozenset[str]
    """Keys of the categories in the policy that it was asked about."""
    source: str = "real"
    split: str = "test"
    collected_for: str | None = None
    severity: int | None = None
    reason: str | None = None
    """Why it is unjudged."""
    note: str | None = None
    """A remark on a row that was judged."""
    seconds: float = math.nan
    """Of the classifier on this image: its share of a batch."""

    @property
    def truth(self) -> bool | None:
        """Whether the image violates any category that was asked about; None where the labels do not say."""
        if self.violates & self.asked or (UNSPECIFIED in self.violates and self.unknown <= self.asked):
            return True
        return None if self.unknown & self.asked else False


@dataclass(frozen=True)
class Predictions:
    """A file of predictions."""

    about: About
    rows: tuple[Prediction, ...]


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("violates", pa.list_(pa.string())),
        ("unknown", pa.list_(pa.string())),
        ("unsafe", pa.float64()),
        ("categories", pa.list_(pa.float64())),
        ("asked", pa.list_(pa.string())),
        ("source", pa.string()),
        ("split", pa.string()),
        ("collected_for", pa.string()),
        ("severity", pa.int64()),
        ("reason", pa.string()),
        ("note", pa.string()),
        ("seconds", pa.float64()),
    ]
)
_SETS = ("violates", "unknown", "asked")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a file atomically; NaN is stored as null."""
    columns = {
        name: [_stored(name, getattr(row, name)) for row in predictions.rows] for name in _SCHEMA.names
    }
    about = json.dumps(predictions.about.to_dict(), ensure_ascii=False).encode()
    table = pa.Table.from_pydict(columns, _SCHEMA).replace_schema_metadata({_METADATA: about})
    written = pa.BufferOutputStream()
    pq.write_table(table, written, compression="zstd")
    write_atomically(path, written.getvalue().to_pybytes())


def read_predictions(path: Path) -> Predictions:
    """Read a file that `write_predictions` wrote.

    Raises:
        PredictionsError: it cannot be read, is no such file, another version wrote it, or its rows contradict it.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise PredictionsError(f"{path} cannot be read as Parquet: {first_line(error)}.") from error
    about = _read_about(path, table.schema)
    if table.schema.remove_metadata() != _SCHEMA:
        raise PredictionsError(
            f"{path} has the columns {', '.join(table.schema.names)}; expected {', '.join(_SCHEMA.names)}."
        )
    columns = table.to_pydict()
    rows = tuple(
        Prediction(**{name: _read(name, value) for name, value in zip(columns, values, strict=True)})
        for values in zip(*columns.values(), strict=True)
    )
    _check_rows(path, about, rows)
    return Predictions(about, rows)


def _read_about(path: Path, schema: pa.Schema) -> About:
    try:
        values = json.loads((schema.metadata or {})[_METADATA])
        version = values["version"]
    except (KeyError, ValueError, TypeError):
        raise PredictionsError(
            f"{path} is no file of predictions: it does not say of which classifier. `arbiter bench` writes them."
        ) from None
    if version != VERSION:
        raise PredictionsError(
            f"{path} has version {version!r}, and this Arbiter reads version {VERSION}; predict again, or use the "
            "Arbiter that wrote it."
        )
    known = {one.name for one in fields(About)}
    if set(values) != known:
        raise PredictionsError(
            f"{path} says {', '.join(sorted(set(values) ^ known))}, which is not as expected."
        )
    return About.from_dict(values)


def _check_rows(path: Path, about: About, rows: Sequence[Prediction]) -> None:
    ids: set[str] = set()
    size = len(about.taxonomy)
    for row in rows:
        if row.id in ids:
            raise PredictionsError(f"{path} has two rows of the image {row.id!r}.")
        ids.add(row.id)
        scores = (row.unsafe, *row.categories)
        if len(row.categories) != size or not all(math.isnan(p) or 0 <= p <= 1 for p in scores):
            raise PredictionsError(
                f"{path}: the image {row.id!r} has the scores {scores}; expected the whole and {size} categories, "
                "each in [0, 1] or null."
            )


def _stored(name: str, value: Any) -> Any:
    if name in _SETS:
        return sorted(value)
    if name == "categories":
        return [_stored("", one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _read(name: str, value: Any) -> Any:
    if name in _SETS:
        return frozenset(value)
    if name == "categories":
        return tuple(_read("unsafe", one) for one in value)
    if name in ("unsafe", "seconds"):
        return math.nan if value is None else float(value)
    return value
