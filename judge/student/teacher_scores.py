"""A teacher's scores of flipped rows, written once as a data set that others can use too.

A folder of Parquet shards with these columns:

    group       number of the policy within the set; its rows are scored together
    example     id of the example
    prompt      the text shown with the image, or null
    prompt_of   id of the example the prompt belongs to, or null
    taxonomy    hash of the policy; `taxonomies.json` holds each policy under its hash
    unsafe      the teacher's probability in [0, 1] that anything is violated; null where it could not judge
    categories  its probability for each category of the policy on its own, in order; null where it could not judge
    reason      why it could not judge, or null

`about.json` names the teacher and what the rows were drawn from. A killed run continues after its last complete shard;
scores of another teacher, taxonomy or draw are refused.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from judge.protocol import Classifier

FORMAT = 1
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
        about: the teacher and how the groups were drawn, as JSON values; written to `about.json`.
        process: index of this process.
        processes: number of processes.
        progress: called with the number of groups done, for a progress bar.

    Raises:
        CheckpointError: the folder holds scores of another teacher or of other groups.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Through JSON, so that tuples compare equal to the lists that are read back.
    wanted = {"format": FORMAT, "groups": len(groups), **json.loads(json.dumps(dict(about)))}
    _check_about(folder, wanted)
    taxonomies = {group.taxonomy.hash: group.taxonomy.to_dict() for group in groups}
    if process == 0:
        write_atomically(folder / "taxonomies.json", json.dumps(taxonomies, ensure_ascii=False))
        write_atomically(folder / "about.json", json.dumps(wanted, indent=2, ensure_ascii=False))
    done = 0
    # By shard, so that processes never write the same file and a resumed run skips complete ones.
    for number, start in enumerate(range(0, len(groups), SHARD)):
        part = groups[start : start + SHARD]
        path = folder / f"lessons-{number:05d}.parquet"
        if number % processes == process and not path.exists():
            rows = [row for place, group in enumerate(part) for row in _score(teacher, group, start + place)]
            _write(path, rows)
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
    wanted = {"format": FORMAT, "groups": len(groups), **json.loads(json.dumps(dict(about)))}
    _check_about(folder, wanted)
    by_group: dict[int, list[dict[str, Any]]] = {}
    for number in range(-(-len(groups) // SHARD)):  # rounded up: the last shard may be partial
        for row in _read(folder / f"lessons-{number:05d}.parquet"):
            by_group.setdefault(int(row["group"]), []).append(row)
    return [_scored_group(folder, group, by_group.get(number, [])) for number, group in enumerate(groups)]


def _score(teacher: "Classifier", group: Group, number: int) -> Iterable[dict[str, Any]]:
    scores = score_each_category(
        teacher,
        [open_image(row.example.image) for row in group.rows],
        [row.prompt for row in group.rows],
        group.taxonomy,
    )
    for row, unsafe, categories, reason in zip(
        group.rows, scores.unsafe, scores.category_probabilities, scores.reasons, strict=True
    ):
        yield {
            "group": number,
            "example": row.example.id,
            "prompt": row.prompt,
            "prompt_of": row.prompt_of,
            "taxonomy": group.taxonomy.hash,
            # Other tools take null for missing, and NaN for a number.
            "unsafe": None if np.isnan(unsafe) else float(unsafe),
            "categories": [None if np.isnan(score) else float(score) for score in categories],
            "reason": reason,
        }


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
    unsafe = np.array([np.nan if row["unsafe"] is None else row["unsafe"] for row in found])
    categories = np.array(
        [[np.nan if score is None else score for score in row["categories"]] for row in found]
    )
    return ScoredGroup(group.taxonomy, group.rows, unsafe, categories)


def _check_about(folder: Path, wanted: Mapping[str, Any]) -> None:
    path = folder / "about.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); delete {folder} and score again.") from None
    for key in sorted({*wanted, *found}):
        if found.get(key) != wanted.get(key):
            raise CheckpointError(
                f"The teacher scores in {folder} were made with {key} {found.get(key)!r}, not {wanted.get(key)!r}; "
                "give another folder, or delete this one."
            )


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    texts = [(name, text) for name in ("example", "prompt", "prompt_of", "taxonomy", "reason")]
    numbers = [("group", pa.int64()), ("unsafe", number), ("categories", pa.list_(number))]
    schema = pa.schema([*numbers, *texts])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({str(error).splitlines()[0]}); delete it and score again."
        ) from error
    return rows
