"""Predictions as they come: small Parquet files in a folder, so that a killed run goes on where it was."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from judge.errors import ConfigError

from .predictions import SUFFIX, About, Prediction, Predictions, read_predictions, write_predictions

MAY_DIFFER = ("machine", "price_per_1000", "label")
"""Fields of `About` that change no prediction."""


class PartFolder:
    """The finished rows of one classifier. A part is a whole file of predictions, written atomically.

    Args:
        path: the folder; made with the first rows.
        about: whose predictions; parts that are there already have to be of the same.

    Raises:
        ConfigError: parts are of another classifier, or of other options or data.
        PredictionsError: a part cannot be read.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about
        parts = {file: read_predictions(file) for file in sorted(path.glob(f"*{SUFFIX}"))}
        for found in parts.values():
            check_same(path, found.about, about)
        self._files = {file: [row.id for row in found.rows] for file, found in parts.items()}
        self._rows = {row.id: row for found in parts.values() for row in found.rows}

    def done(self) -> set[str]:
        """Ids of the images that need not be asked about again."""
        return set(self._rows)

    @property
    def rows(self) -> Mapping[str, Prediction]:
        """The stored rows, by id."""
        return self._rows

    def append(self, rows: Sequence[Prediction]) -> None:
        """Store further rows, in a part of their own; when this returns they are on disk."""
        if not rows:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        last = max((int(file.stem) for file in self._files), default=0)
        self._write(self.path / f"{last + 1:06}{SUFFIX}", rows)
        self._rows |= {row.id: row for row in rows}

    def forget(self, ids: Collection[str]) -> None:
        """Remove rows, so that these images are asked about again."""
        gone = set(ids)
        for file, stored in list(self._files.items()):
            if gone.isdisjoint(stored):
                continue
            kept = [self._rows[one] for one in stored if one not in gone]
            if kept:
                self._write(file, kept)
            else:
                file.unlink()
                del self._files[file]
        self._rows = {one: row for one, row in self._rows.items() if one not in gone}

    def remove(self) -> None:
        """Delete the folder, once its rows stand elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._files, self._rows = {}, {}

    def _write(self, file: Path, rows: Sequence[Prediction]) -> None:
        write_predictions(file, Predictions(self.about, tuple(rows)))
        self._files[file] = [row.id for row in rows]


def check_same(path: Path, stored: About, about: About) -> None:
    """Check that stored predictions are of the same classifier, options and data.

    Raises:
        ConfigError: they are not; the message names what differs, with both values.
    """
    before, now = _compared(stored), _compared(about)
    differing = [
        f"{name} {_shown(before[name])}, not {_shown(now[name])}"
        for name in before
        if before[name] != now[name]
    ]
    if differing:
        raise ConfigError(
            f"{path} holds predictions with {'; '.join(differing)}. Go on with what it was started with, choose "
            "another output_dir, or delete these predictions."
        )


def _compared(about: About) -> dict[str, Any]:
    values = {name: value for name, value in about.to_dict().items() if name not in MAY_DIFFER}
    return values | {"taxonomy": f"{about.taxonomy.name} ({about.taxonomy.short_hash})"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
