"""The table of a teacher's scores: rows that say by themselves what was asked and answered, for any reader of Parquet.

`COLUMNS` lists them with their meaning; the card beside the table (README.md) is written from it.
"""

import hashlib
import json
import os.path
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from judge.data.images import open_image, pixels_hash, read_bytes
from judge.errors import CheckpointError
from judge.runs.files import write_atomically
from prompts.flip.rows import Group, Row

if TYPE_CHECKING:
    from judge.protocol import Scores

COLUMNS = {
    "group": ("int64", "number of the policy within the set; rows of one group share policy and shard"),
    "example": ("text", "id of the example"),
    "image_path": (
        "text",
        "its file, from the folder that holds all of them; null where the image was no file",
    ),
    "image_sha256": (
        "text",
        "SHA-256 of the encoded image; of one that was never encoded, of its RGB pixels",
    ),
    "split": ("text", "split of the example: `train`, `validation` or `test`"),
    "prompt": ("text", "the text shown with the image, or null"),
    "prompt_of": ("text", "id of the example the prompt belongs to, or null; another one's prompt may lie"),
    "taxonomy": ("text", "hash of the policy as it was worded; `taxonomies.json` holds each in full"),
    "taxonomy_name": ("text", "name of the taxonomy it was drawn from"),
    "taxonomy_version": ("text", "its version"),
    "category_names": ("list of text", "the policy's categories, as it names them"),
    "category_keys": ("list of text", "their keys in the taxonomy, which survive renaming"),
    "category_definitions": ("list of text", "their definitions, as the policy words them"),
    "label": ("bool", "whether the image truly violates the policy"),
    "category_labels": (
        "list of bool",
        "whether it violates each category; null where that was not labelled",
    ),
    "teacher": ("text", "the classifier that was asked"),
    "unsafe_probability": (
        "float64",
        "its probability in [0, 1] that any category is violated; null: unjudged",
    ),
    "category_probabilities": (
        "list of float64",
        "and of each category on its own, in order; null: unjudged",
    ),
    "reason": ("text", "why the teacher could not judge, or null"),
}
"""Column -> its type and its meaning."""
FORMAT = 2
"""Format 1 had the columns `unsafe` and `categories` for the probabilities, and no names; it can be read."""
CARD = "README.md"


def lesson_rows(
    group: Group, number: int, scores: "Scores", teacher: str, images: Mapping[str, Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """A record for each row of a group, with the columns of `COLUMNS`.

    Args:
        group: N rows under one policy.
        number: of the group.
        scores: the teacher's, of N rows.
        teacher: its name.
        images: example id -> `image_path` and `image_sha256`.
    """
    policy = group.taxonomy
    shared = {
        "group": number,
        "taxonomy": policy.hash,
        "taxonomy_name": policy.name,
        "taxonomy_version": str(policy.version),
        "category_names": list(policy.names),
        "category_keys": list(policy.keys),
        "category_definitions": [category.definition for category in policy],
        "teacher": teacher,
    }
    for row, unsafe, categories, reason in zip(
        group.rows, scores.unsafe, scores.category_probabilities, scores.reasons, strict=True
    ):
        yield {
            **shared,
            **images[row.example.id],
            "example": row.example.id,
            "split": row.example.split,
            "prompt": row.prompt,
            "prompt_of": row.prompt_of,
            "label": row.unsafe,
            "category_labels": list(policy.label(row.example)),
            # Other tools take null for missing, and NaN for a number.
            "unsafe_probability": None if np.isnan(unsafe) else float(unsafe),
            "category_probabilities": [None if np.isnan(score) else float(score) for score in categories],
            "reason": reason,
        }


def common_folder(rows: Iterable[Row]) -> Path | None:
    """The folder that holds the image files of all rows; None where none is a file."""
    folders = {Path(row.example.image).absolute().parent for row in rows if _is_file(row.example.image)}
    return Path(os.path.commonpath(folders)) if folders else None


def describe_image(image: Any, folder: Path | None) -> dict[str, Any]:
    """`image_path`, relative to `folder`, and `image_sha256` of an example's image.

    Raises:
        ImageError: it cannot be read.
    """
    path = Path(image).absolute().relative_to(folder).as_posix() if folder and _is_file(image) else None
    if isinstance(image, Image.Image):
        return {"image_path": path, "image_sha256": pixels_hash(open_image(image))}
    return {"image_path": path, "image_sha256": hashlib.sha256(read_bytes(image)).hexdigest()}


def _is_file(image: Any) -> bool:
    return isinstance(image, (str, Path))


def write_shard(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write records as one Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    types |= {f"list of {name}": pa.list_(one) for name, one in types.items()}
    schema = pa.schema([(name, types[kind]) for name, (kind, _) in COLUMNS.items()])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


def read_shard(path: Path) -> list[dict[str, Any]]:
    """The records of a file that `write_shard` wrote, or one of format 1 with its two columns renamed.

    Raises:
        CheckpointError: the file is missing, damaged, or another table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({str(error).splitlines()[0]}); delete it and score again."
        ) from error
    renamed = {"unsafe": "unsafe_probability", "categories": "category_probabilities"}
    rows = [{renamed.get(name, name): value for name, value in row.items()} for row in rows]
    needed = {"group", "example", "prompt", "taxonomy", *renamed.values()}
    if rows and (missing := sorted(needed - rows[0].keys())):
        raise CheckpointError(f"{path} has no columns {', '.join(missing)}; delete it and score again.")
    return rows


def card(about: Mapping[str, Any], rows: int) -> str:
    """The data set's card: how to load it, what it is, and every column.

    Args:
        about: what `about.json` holds.
        rows: of all groups.
    """
    columns = "\n".join(f"| `{name}` | {kind} | {text} |" for name, (kind, text) in COLUMNS.items())
    shown = {name: _without_folders(value) for name, value in about.items()}
    made = "\n".join(f"- {name}: `{json.dumps(value, ensure_ascii=False)}`" for name, value in shown.items())
    return f"""---
license: other
configs:
- config_name: default
  data_files: "*.parquet"
---

# Scores of a teacher

{rows:,} questions under {about["groups"]:,} policies: an image with a prompt and a list of unsafe categories, the true
label, and the probabilities that the teacher gave. Policies and rows are drawn so that the same image is unsafe under
one policy and safe under another.

```python
from datasets import load_dataset

lessons = load_dataset("parquet", data_files="lessons/*.parquet", split="train")
```

or `pandas.read_parquet("lessons/lessons-00000.parquet")`. The images are not in here: `image_path` and `image_sha256`
say which they are. The licence is that of the images' data set; its terms, and those of the teacher's weights, hold
for this table too.

| column | type | meaning |
|---|---|---|
{columns}

Made with:

{made}
"""


def _without_folders(value: Any) -> Any:
    """A data set's name without the folders of this machine: `folder:/home/me/pictures` is `folder:pictures`."""
    kind, sign, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    return f"{kind}:{Path(path).name}" if sign and Path(path).is_absolute() else value
