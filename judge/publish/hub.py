"""A published run, fetched from the Hugging Face hub and checked before anything of it is loaded.

It is a stranger's. Only the files that belong to a run of its kind are downloaded (`judge.publish.contents`): no
pickles, no code. And it names others only as a published run may: bases by hub id, stages inside its own repository.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from judge.errors import CheckpointError, first_line
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import HUB, fingerprint, is_address, is_hub_id
from judge.standins.shipped import SHIPPED, run_path

from .contents import MERGED, PARTS, patterns
from .repository import is_pinned_id, split_revision


def fetch(repository: str, revision: str | None = None) -> Path | None:
    """Download a published run, or find it in the hub's cache.

    Args:
        repository: `organisation/model`.
        revision: branch, tag or commit; None is the main branch.

    Returns:
        Its folder in the cache; None where the repository holds no run, such as a base model's.

    Raises:
        CheckpointError: no such repository or revision, no connection, or a run that is damaged, of a kind that is not
            published, or names what is outside of its repository.
    """
    from huggingface_hub import snapshot_download

    manifest = _manifest(repository, revision)
    if manifest is None:
        return None
    wanted = patterns(RunDir.open(manifest.parent).kind, f"{HUB}{repository}")
    # Of the commit that the manifest is of: the branch may move in between.
    commit = manifest.parent.name
    with _said_in_one_line(repository):
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(wanted)))
    check_references(folder, f"{HUB}{repository}")
    return folder


def run_folder(name: str) -> Path:
    """Where a classifier's name stands on disk: a shipped run, one fetched from the hub, or the name as a path.

    Raises:
        CheckpointError: as `fetch`.
    """
    if name.startswith(HUB):
        return fetch(*split_revision(name)) or Path(name)
    return Path(run_path(name))


def model_hash(name: str) -> str | None:
    """SHA-256 of a classifier that is here: a run, a model folder, an exported student; None of any other.

    Takes a second for every gigabyte or so of weights.
    """
    path = run_folder(name)
    here = path.suffix == ".onnx" or (path / MANIFEST).is_file() or (path / "config.json").is_file()
    return fingerprint(path) if here and path.exists() else None


def _manifest(repository: str, revision: str | None) -> Path | None:
    """The run.json of a repository, in the cache; None where it has none."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    with _said_in_one_line(repository):
        try:
            return Path(hf_hub_download(repository, MANIFEST, revision=revision))
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError as error:
            if isinstance(error.__cause__, HfHubHTTPError):
                raise  # the hub answers, and may have one
            if try_to_load_from_cache(repository, MANIFEST, revision=revision) is _CACHED_NO_EXIST:
                return None  # the hub said so earlier
            # Taken for a base, a judge would answer without the limits of its lessons.
            raise CheckpointError(
                f"The Hugging Face hub is not asked or cannot be reached, and whether {HUB}{repository} is a run or a "
                "base was never seen here. Load it once with a connection, or give the folder of its files."
            ) from None


def check_references(folder: Path, source: str) -> None:
    """Check what a fetched run names: bases by hub id, and stages that were fetched with it.

    Raises:
        CheckpointError: a path, an address, or a stage elsewhere; `source` names the repository.
    """
    run = RunDir.open(folder)
    manifest = run.manifest
    for key in ("base", "encoder"):
        name = manifest.get(key)
        missing = name is None and (run.kind == MERGED or key not in manifest)
        if not missing and not (isinstance(name, str) and (name in SHIPPED or is_hub_id(name))):
            raise CheckpointError(f"{source} names the {key} {name!r}; a published run names a hub id.")
    if run.kind != "cascade":
        return
    for part in PARTS:
        about = manifest.get(part)
        if about is None:
            continue
        if not isinstance(about, dict) or not (_is_inside(about, part) or _is_named(about)):
            raise CheckpointError(
                f"{source} names the {part} {about!r:.100}; a published cascade holds it in the folder {part}, or "
                "names a base by hub id."
            )
        if "path" in about:
            if not (folder / part / MANIFEST).is_file() or RunDir.open(folder / part).kind == "cascade":
                raise CheckpointError(f"{source} holds no {part} that can be loaded; it is damaged.")
            check_references(folder / part, f"{source}/{part}")


def _is_inside(about: dict[str, Any], part: str) -> bool:
    path = about.get("path")
    return isinstance(path, str) and PurePosixPath(path).parts == (part,) and "name" not in about


def _is_named(about: dict[str, Any]) -> bool:
    name = about.get("name")
    if not isinstance(name, str) or "path" in about:
        return False
    # A served judge is never contacted for its name (`judge.cascade.saved`): the caller has to name the server.
    return name in SHIPPED or is_pinned_id(name) or is_address(name)


@contextmanager
def _said_in_one_line(repository: str) -> Iterator[None]:
    """Errors of the hub's client, each in a line that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{HUB}{repository}"
    try:
        yield
    except (RemoteEntryNotFoundError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{name} could not be fetched whole: {first_line(error)}") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: accept its terms on the hub, then run `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no {name} on the hub, or it is private: correct the name, or run `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{name} has no such branch, tag or commit; correct what stands after @."
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{name} could not be fetched: {first_line(error)}") from None
