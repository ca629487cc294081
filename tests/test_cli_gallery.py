"""The page of `arbiter judge --html` in a browser: blurred until held, sorted, filtered, and deaf to hostile names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_page import PATIENCE
from PIL import Image

import judge
from judge.protocol import Scores
from judge.serve.cli import main
from prompts import Taxonomy, load_taxonomy

DIGITS = load_taxonomy("digits").select(["one", "two", "three"])
HOSTILE = '"><img src=x onerror=alert(1)>\u202e<script>alert(2)</script>{{7*7}}.png'


class ColourJudge:
    """Red is one, green is two; blue is not judged."""

    name = "<b>colours</b>"
    default_taxonomy = DIGITS

    def score(self, images: Sequence[Image.Image], prompts: Any, taxonomy: Taxonomy) -> Scores:
        scores = np.array([image.getpixel((0, 0)) for image in images], dtype=float).reshape(-1, 3) / 255
        blue = scores[:, 2] > 0.5
        scores[:, 2] = 0
        scores[blue] = np.nan
        return Scores(
            scores.max(axis=1), scores, tuple("</main><script>alert(3)</script>" if b else None for b in blue)
        )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    colours = {"10.png": (230, 0, 0), "9.png": (200, 250, 0), "safe.png": (90, 0, 0), "blue.png": (0, 0, 200)}
    for name, colour in colours.items():
        Image.new("RGB", (1200, 40), colour).save(folder / name)
    Path(folder / HOSTILE.replace("/", "\u2215")).write_bytes((folder / "10.png").read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load_classifier", lambda *_, **__: ColourJudge(), raising=False)
        out = folder / "page.html"
        words = ["judge", *map(str, sorted(folder.iterdir())), "--judge", "r", "--html", str(out), "--quiet"]
        assert main([*words, "--threshold", "two=0.99"]) == 1
    return out


def test_the_page_is_one_file_of_small_harmless_pictures(page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert text.count("<img ") == 5, "the broken file has no picture"
    assert "{{7*7}}" in text
    assert len(text) < 60_000


def test_moderators_look_through_the_page(page_file: Path, chromium: Any) -> None:
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: said.append(request.url) if request.url[:4] not in ("file", "data") else None,
    )
    page.goto(page_file.as_uri())

    def names() -> list[str]:
        return [name.rsplit("/", 1)[-1] for name in page.locator("article:visible .path").all_text_contents()]

    assert page.locator("output").inner_text() == "6 of 6 shown"
    assert page.locator("header b").first.inner_text() == "<b>colours</b>"
    page.select_option("[name=status]", "unsafe")
    assert sorted(names())[1:] == ["10.png", "9.png"]
    page.select_option("[name=sort]", "score")
    assert names()[0] == "9.png"
    page.select_option("[name=category]", "one")
    page.fill("[name=name]", "9.P")
    assert names() == ["9.png"]
    assert page.locator("output").inner_text() == "1 of 6 shown"
    page.fill("[name=name]", "")
    page.select_option("[name=category]", "")
    page.select_option("[name=status]", "")
    assert set(names()[:2]) == {"blue.png", "broken.jpg"}, "what was not judged comes first"
    page.select_option("[name=sort]", "name")
    assert names().index("9.png") < names().index("10.png")

    picture = page.locator("article", has_text="safe.png").locator("button")

    def blurred() -> bool:
        return "blur" in picture.locator("img").evaluate("one => getComputedStyle(one).filter")

    assert blurred()
    picture.scroll_into_view_if_needed()
    picture.hover()
    assert blurred(), "pointing at it is not holding it"
    page.mouse.down()
    assert not blurred()
    page.mouse.up()
    assert blurred()
    picture.focus()
    page.keyboard.press("Enter")
    assert not blurred()
    page.keyboard.press("Enter")
    assert blurred()
    page.keyboard.press("Space")
    page.locator("[name=name]").focus()
    assert blurred(), "whoever goes on leaves nothing open"
    assert said == []
    page.close()


def test_the_page_is_accessible(page_file: Path, chromium: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for scheme in ("light", "dark"):
        page = chromium.new_page(color_scheme=scheme)
        page.goto(page_file.as_uri())
        page.locator("summary").first.click()
        found = axe.Axe().run(page)
        assert found.response["violations"] == [], found.generate_report()
        page.close()


def test_light_and_dark(page_file: Path, chromium: Any) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page = chromium.new_page(
            color_scheme=scheme, java_script_enabled=False, viewport={"width": 320, "height": 600}
        )
        page.goto(page_file.as_uri())
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, "it fits a phone"
        assert page.locator("article:visible").count() == 6, "and needs no script"
        page.close()
    assert colours == ["rgb(246, 247, 248)", "rgb(20, 24, 28)"]
