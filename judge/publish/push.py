"""Push a run to the Hugging Face hub, or into a folder that is laid out as a repository would be.

One commit holds all of it, so that a repository never has the weights of one run and the taxonomy of another.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judge.errors import ConfigError, first_line
from judge.runs.files import share_files
from judge.runs.folder import MANIFEST, RunDir
from judge.standins.shipped import run_path

from .contents import CARD, CONTENTS, belongs
from .details import Details
from .repository import check_repository
from .staging import Staged, stage

FOLDER = "folder:"
"""Before a path: lay the repository out there and contact nobody."""


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be."""

    repository: str
    files: tuple[tuple[str, int], ...]
    """(path with `/`, bytes)."""
    left_out: tuple[tuple[str, str], ...]
    """(name, why) of what stayed here."""
    url: str | None = None
    """Of the commit; None for a dry run and a folder."""
    commit: str | None = None


def push(
    run: str | Path,
    repository: str,
    *,
    details: Details | None = None,
    dry_run: bool = False,
    private: bool = False,
    update: bool = False,
    revision: str | None = None,
    examples: bool = False,
    api: Any = None,
) -> Pushed:
    """Publish what belongs to a run.

    Args:
        run: its folder.
        repository: `user/name` on the hub, or `folder:PATH` for a folder that does not exist or is empty.
        details: what its user says of it (`arbiter card`); by default what was said before.
        dry_run: put it together and change nothing.
        private: make a new repository private.
        update: push into a repository that exists, in place of the run that it holds; its other files stay.
        revision: branch, made if it does not exist; by default the main one.
        examples: publish the example pictures too.
        api: a `huggingface_hub.HfApi`; by default one with the token of `hf auth login` or HF_TOKEN.

    Raises:
        CheckpointError: no such run, or one that cannot be published (`judge.publish.staging.stage`).
        ConfigError: a name that is none, a repository that exists, nobody logged in, or a hub that refuses.
    """
    folder = RunDir.open(run_path(str(run)))
    target = None if repository.startswith(FOLDER) else check_repository(repository)
    with tempfile.TemporaryDirectory(prefix="arbiter-push-") as place:
        said = details or Details.of(folder.path)
        staged = stage(folder, Path(place), details=said, name=target, examples=examples)
        pushed = Pushed(repository, staged.files, staged.left_out)
        if dry_run:
            return pushed
        if target is None:
            _write_folder(staged, Path(repository.removeprefix(FOLDER)))
            return pushed
        url, commit = _upload(staged, target, private, update, revision, api)
        return replace(pushed, url=url, commit=commit)


def _write_folder(staged: Staged, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not empty; choose another folder, or empty it first.")
    for name, _ in staged.files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((staged.folder / name).read_bytes())
    share_files(target)


def _upload(
    staged: Staged, repository: str, private: bool, update: bool, revision: str | None, api: Any
) -> tuple[str, str]:
    """(URL, hash) of the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    hub = api or HfApi()
    with _said_in_one_line(hub, repository):
        hub.whoami()
        new = not hub.repo_exists(repository)
        if not new and not update:
            raise ConfigError(
                f"{repository} exists on the hub; push an update into it with --update, or choose another name."
            )
        if new:
            hub.create_repo(repository, private=private)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        names = {name for name, _ in staged.files}
        old = _ours(repository, hub.list_repo_files(repository, revision=revision), names)
        operations: list[Any] = [CommitOperationDelete(path_in_repo=name) for name in old]
        operations += [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=staged.folder / name)
            for name in sorted(names)
        ]
        info = hub.create_commit(
            repository, operations, commit_message="Push with arbiter", revision=revision
        )
    return str(info.commit_url), str(info.oid)


def _ours(repository: str, found: Sequence[str], new: set[str]) -> list[str]:
    """Files of an earlier run in a repository: what would be loaded beside the new one. Files of other names stay."""
    every = sorted({pattern for patterns in CONTENTS.values() for pattern in patterns})
    ours = sorted(name for name in found if belongs(name, every) and name != CARD)
    if ours and MANIFEST not in found:
        raise ConfigError(
            f"{repository} holds {', '.join(ours[:3])}, and no run; an update would take their place. Choose another "
            "repository."
        )
    return [name for name in ours if name not in new]


@contextmanager
def _said_in_one_line(hub: Any, repository: str) -> Iterator[None]:
    """Errors of the hub in one line each, without the token."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except LocalTokenNotFoundError:
        raise ConfigError("Nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN.") from None
    except OfflineModeIsEnabled:
        raise ConfigError(
            "HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or use --dry-run."
        ) from None
    except HFValidationError as error:
        raise ConfigError(
            f"{repository!r} is no name of a repository: {_without_token(error, hub)}"
        ) from None
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = {
            401: "the token is not valid; run `hf auth login`, or set HF_TOKEN",
            403: "the token may not write there; use one with write access, and a name of yours",
        }.get(status or 0, _without_token(error, hub))
        raise ConfigError(f"The hub refused to take {repository} (HTTP {status}): {what}") from None
    except OSError as error:  # no connection, a full disk
        raise ConfigError(f"{repository} could not be pushed: {_without_token(error, hub)}") from None


def _without_token(error: BaseException, hub: Any) -> str:
    line = first_line(error)
    for token in (getattr(hub, "token", None), os.environ.get("HF_TOKEN")):
        if isinstance(token, str) and token:
            line = line.replace(token, "...")
    return line
