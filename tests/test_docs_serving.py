"""docs/serving.md: its client code runs as it stands, and its tables hold the words of the code."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures_server import colour_service, listening, picture

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
PAGE_TEXT = PAGE.read_text(encoding="utf-8")


def code_block(text: str) -> str:
    """The first block of Python in a page."""
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_the_client_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a real server on a port of its own, with nothing but the port changed."""
    code = code_block(PAGE_TEXT)
    assert "http://127.0.0.1:8080/v1" in code
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(picture(red=255))
    printed, names = io.StringIO(), dict[str, Any]()
    with listening(colour_service()) as url, contextlib.redirect_stdout(printed):
        exec(compile(code.replace("http://127.0.0.1:8080", url), str(PAGE), "exec"), names)
        names["client"].close()
    assert printed.getvalue() == "True 1.0\n"


def test_every_status_of_an_image_is_in_the_table() -> None:
    from typing import get_args

    from judge.errors import ImageStatus
    from judge.server.errors import IMAGE_STATUS_CODES

    rows = {
        line.split("|")[1].strip(): line for line in PAGE_TEXT.splitlines() if re.match(r"\| 4\d\d ", line)
    }
    shown = re.findall(r"`(\w+)`", rows["422"])
    # Animations are judged, and an upload has no path: a server never answers these.
    for status in set(get_args(ImageStatus)) - {"animated", "missing"}:
        code = str(IMAGE_STATUS_CODES.get(status, 422))
        assert f"`{status}`" in rows[code], (status, code)
    assert "unjudged" in shown
