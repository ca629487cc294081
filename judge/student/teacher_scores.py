"""A teacher's scores of flipped rows, written once as a data set that others can use too.

A folder of Parquet shards whose columns (`judge.student.lesson_table.COLUMNS`) say everything by name: image, prompt,
policy, labels, and the teacher's probabilities. README.md is its card, `taxonomies.json` holds the policies by hash.

`about.json` names the teacher and what the rows were drawn from. A killed run continues after its last complete shard;
scores of another teacher, taxonomy or draw are refused.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from judge.data.images import open_image
from judge.errors import CheckpointError
from judge.protocol import score_each_category
from judge.runs.files import write_atomically
from prompts.flip.rows import Group, Row
from prompts.taxonomy import Taxonomy

from .lesson_table import (
    CARD,
    FORMAT,
    card,
    common_folder,
    describe_image,
    lesson_rows,
    read_shard,
    write_shard,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from judge.protocol import Classifier, Scores

SHARD = 32
"""Groups in a shard: the most that a killed run loses."""


@dataclass(frozen=True)
class ScoredGroup:
    """Rows under one policy, and the teacher's scores of them."""

    taxonomy: Taxonomy
    rows: tuple[Row, ...]
    unsafe: "NDArray[np.float64]"
    """(N,) probabilities; NaN where the teacher could not judge."""
    categories: "NDArray[np.float64]"
    """(N, K) probabilities of each category on its own; NaN where the teacher could not judge."""


def write_teacher_scores(
    teacher: "Classifier",
    groups: Sequence[Group],
    folder: Path,
    *,
    about: Mapping[str, Any],
    process: int = 0,
    processes: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Score the groups and write the missing shards; several processes take turns by shard.

    Args:
        teacher: any classifier; a `MultiLabelClassifier` scores each category on its own.
        groups: drawn rows; the same ones for every process and for a run that is resumed.
        folder: for the shards; created if it does not exist.
        about: `teacher`, its name, and how the groups were drawn, as JSON values; written to `about.json`.
        process: index of this process.
        processes: number of processes.
        progress: called with the number of groups done, for a progress bar.

    Raises:
        CheckpointError: the folder holds scores of another teacher or of other groups.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _wanted(about, groups)
    _check_about(folder, wanted)
    if _format(folder) != FORMAT:
        if all((folder / _name(start)).exists() for start in range(0, len(groups), SHARD)):
            return  # complete, and readable as it is
        raise CheckpointError(
            f"The teacher scores in {folder} were begun by an earlier version, in columns of other names; delete the "
            "folder and score again."
        )
    taxonomies = {group.taxonomy.hash: group.taxonomy.to_dict() for group in groups}
    if process == 0:
        write_atomically(folder / "taxonomies.json", json.dumps(taxonomies, ensure_ascii=False))
        write_atomically(folder / "about.json", json.dumps(wanted, indent=2, ensure_ascii=False))
        write_atomically(folder / CARD, card(wanted, sum(len(group.rows) for group in groups)))
    home = common_folder(row for group in groups for row in group.rows)
    images: dict[str, dict[str, Any]] = {}
    done = 0
    # By shard, so that processes never write the same file and a resumed run skips complete ones.
    for number, start in enumerate(range(0, len(groups), SHARD)):
        part = groups[start : start + SHARD]
        path = folder / _name(start)
        if number % processes == process and not path.exists():
            rows: list[dict[str, Any]] = []
            for place, group in enumerate(part):
                for row in group.rows:
                    if row.example.id not in images:
                        images[row.example.id] = describe_image(row.example.image, home)
                scores = _score(teacher, group)
                rows += lesson_rows(group, start + place, scores, str(about["teacher"]), images)
            write_shard(path, rows)
        done += len(part)
        if progress is not None:
            progress(done)


def read_teacher_scores(
    folder: Path, groups: Sequence[Group], *, about: Mapping[str, Any]
) -> list[ScoredGroup]:
    """Read what `write_teacher_scores` wrote for the same groups.

    Raises:
        CheckpointError: shards are missing or damaged, or the scores belong to other rows or policies.
    """
    _check_about(folder, _wanted(about, groups))
    by_group: dict[int, list[dict[str, Any]]] = {}
    for start in range(0, len(groups), SHARD):
        for row in read_shard(folder / _name(start)):
            by_group.setdefault(int(row["group"]), []).append(row)
    return [_scored_group(folder, group, by_group.get(number, [])) for number, group in enumerate(groups)]


def _score(teacher: "Classifier", group: Group) -> "Scores":
    return score_each_category(
        teacher,
        [open_image(row.example.image) for row in group.rows],
        [row.prompt for row in group.rows],
        group.taxonomy,
    )


def _name(start: int) -> str:
    """The file of the shard that begins with this group."""
    return f"lessons-{start // SHARD:05d}.parquet"


def _wanted(about: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    # Through JSON, so that tuples compare equal to the lists that are read back.
    return {"format": FORMAT, "groups": len(groups), **json.loads(json.dumps(dict(about)))}


def _scored_group(folder: Path, group: Group, found: Sequence[Mapping[str, Any]]) -> ScoredGroup:
    expected = [(row.example.id, row.prompt, group.taxonomy.hash) for row in group.rows]
    got = [(row["example"], row["prompt"], row["taxonomy"]) for row in found]
    for want, have in zip(expected, got, strict=False):
        if want[2] != have[2]:
            raise CheckpointError(
                f"Teacher scores in {folder} are for the taxonomy {have[2][:16]}, not {want[2][:16]}; "
                "give another folder, or delete this one."
            )
    if expected != got:
        raise CheckpointError(
            f"Teacher scores in {folder} are for other rows than those drawn now; give another folder, or "
            "delete this one."
        )
    unsafe = np.array(
        [np.nan if row["unsafe_probability"] is None else row["unsafe_probability"] for row in found]
    )
    categories = np.array(
        [[np.nan if score is None else score for score in row["category_probabilities"]] for row in found]
    )
    return ScoredGroup(group.taxonomy, group.rows, unsafe, categories)


def _check_about(folder: Path, wanted: Mapping[str, Any]) -> None:
    found = _about(folder)
    if found is None:
        return
    for key in sorted({*wanted, *found} - {"format"}):
        if found.get(key) != wanted.get(key):
            raise CheckpointError(
                f"The teacher scores in {folder} were made with {key} {found.get(key)!r}, not {wanted.get(key)!r}; "
                "give another folder, or delete this one."
            )
    if found.get("format") not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"The teacher scores in {folder} have format {found.get('format')!r}, this version reads up to {FORMAT}; "
            "update arbiter-vision, or delete the folder and score again."
        )


def _format(folder: Path) -> int:
    """The format that the folder was begun in; this version's where it is empty."""
    found = _about(folder)
    return FORMAT if found is None else int(found["format"])


def _about(folder: Path) -> dict[str, Any] | None:
    path = folder / "about.json"
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); delete {folder} and score again.") from None
