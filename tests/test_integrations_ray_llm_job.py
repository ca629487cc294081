"""The code of docs/moderation-tools.md for Ray Data LLM: a whole job on a real local cluster, against a real server."""

import json
import re
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fixtures_server import colour_service, listening, picture
from test_corpus_ray import cannot_start

from judge.errors import CorpusError
from judge.runs.ray_cluster import ClusterOptions, ray_cluster

PAGE = Path(__file__).parents[1] / "docs" / "moderation-tools.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


def code_with(name: str) -> dict[str, Any]:
    """What the block of the page that defines a function leaves."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    [code] = [block for block in blocks if f"def {name}(" in block]
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_every_file_of_a_folder_has_one_verdict(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    files = {f"{red}.png": picture(red=red) for red in (0, 100, 200, 255)}
    files |= {"broken.png": picture()[:40], "empty.png": b"", "blue.png": picture(blue=255)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    judge_folder = code_with("judge_folder")["judge_folder"]
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        address = stack.enter_context(listening(colour_service()))
        try:
            stack.enter_context(ray_cluster(ClusterOptions(object_store=80_000_000), 2, CorpusError))
        except CorpusError as error:
            cannot_start(error)
        judge_folder(str(folder), str(out), address)
    rows = pq.read_table(out).to_pylist()
    assert sorted(Path(row["path"]).name for row in rows) == sorted(files)
    status = {Path(row["path"]).name: row["status"] for row in rows}
    unjudged = {"broken.png", "empty.png", "blue.png"}
    assert status == {
        name: "unjudged" if name in unjudged else "unsafe" if name in ("200.png", "255.png") else "safe"
        for name in files
    }
    for row in rows:
        verdict = json.loads(row["verdict"])
        assert (verdict["status"], verdict["reason"]) == (row["status"], row["reason"])
        assert (row["reason"] is not None) == (row["unsafe"] is None) == (row["status"] == "unjudged")
