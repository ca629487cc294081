"""Finished stages of a run, kept as JSON, so that a resumed run does not repeat them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, first_line
from judge.runs.files import write_atomically


class Stages:
    """A folder with a file for each finished stage.

    Args:
        folder: made with the first stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, of: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage: the stored one if it was made of the same, else a new one, which is stored.

        Args:
            name: of the stage; may have a folder, as in `overlap/LABEL`.
            of: JSON types; everything that the result depends on.
            make: makes the result, in JSON types.

        Raises:
            CheckpointError: the stored file is damaged.
        """
        found = self.find(name, of)
        return self.keep(name, of, make()) if found is None else found

    def find(self, name: str, of: Any) -> dict[str, Any] | None:
        """The stored result, if it was made of the same.

        Raises:
            CheckpointError: the stored file is damaged.
        """
        path = self._path(name)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            found: dict[str, Any] | None = stored["found"] if stored["of"] == _plain(of) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({first_line(error)}); delete it, and its stage is repeated"
            ) from None
        return found

    def keep(self, name: str, of: Any, found: dict[str, Any]) -> dict[str, Any]:
        """Store a result; gives it back as it will be read."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = _plain(found)
        write_atomically(path, json.dumps({"of": _plain(of), "found": plain}, ensure_ascii=False))
        return dict(plain)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _plain(value: Any) -> Any:
    """JSON's own types: tuples are lists, and keys are text."""
    return json.loads(json.dumps(value))
