"""Names of repositories on the hub: `user/name`, and `hf:user/name@revision` where something is loaded."""

import re

from judge.errors import CheckpointError, ConfigError
from judge.runs.references import HUB, is_hub_id

_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)


def check_repository(name: str) -> str:
    """The name, if a run can be pushed to it.

    Raises:
        ConfigError: it is none.
    """
    if not is_hub_id(name) or name.count("/") != 1 or len(name) > 96 or name.endswith((".git", ".ipynb")):
        raise ConfigError(
            f"{name!r} is no name of a repository; write it like user/name (letters, digits, '-', '_', '.'), or "
            "folder:PATH for a folder."
        )
    return name


def split_revision(name: str) -> tuple[str, str | None]:
    """`hf:user/name@revision` -> name and revision; None where none is given.

    Raises:
        CheckpointError: not of that form.
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    if not is_hub_id(repository) or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise CheckpointError(
            f"{name!r} names nothing on the hub; write {HUB}ORGANISATION/MODEL, with @ and a branch, tag or commit "
            "to pin it."
        )
    return repository, revision or None


def is_pinned_id(name: str) -> bool:
    """Whether a name, with or without `hf:`, is one of the hub, perhaps with a revision."""
    try:
        split_revision(name)
    except CheckpointError:
        return False
    return True
