"""The report of a benchmark in headless Chromium: everything is there, readable in grey, on a phone, by everybody."""

import io

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from fixtures_page import desk_at, violations
from PIL import Image

from eval.benchmark.compare import compare_published
from eval.benchmark.effectiveness import measure
from eval.benchmark.report.page import write_benchmark_report

LOOKS = ((390, "light"), (390, "dark"), (1280, "light"), (1280, "dark"))
COVERS = ("Sexual", "Shocking")
LABELS = ("Q16", "a-name-of-64-characters-" + "x" * 40, "nudity-only")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of three classifiers; the first has an F1 of 0, 0.1, ... 1 in the eleven categories."""
    predictions = [
        synthetic_predictions(label, taxonomy="unsafebench", covers=covers, skill=skill)
        for label, covers, skill in zip(LABELS, (None, None, COVERS), (0.4, 0.2, 0.3), strict=True)
    ]
    metrics = measure(predictions)
    cells = metrics["classifiers"][LABELS[0]]["cells"]
    for step, category in enumerate(metrics["categories"]):
        cells[category["key"]]["all"]["f1"] = step / 10
    metrics["overlap"] = {
        LABELS[0]: {
            "tested": 60, "trained": 100, "exact": 1, "near": 2, "share": 0.05, "ids": [], "pairs": [],
            "unreadable": 0, "not_known": ["its base"], "reason": None,
        }
    }  # fmt: skip
    metrics["published"] = compare_published(metrics, "unsafebench")

    def image(name):
        if name.endswith("7"):
            raise OSError("truncated")
        return Image.effect_noise((90, 60), 80)

    return write_benchmark_report(tmp_path_factory.mktemp("report"), metrics, predictions, images=image)


@pytest.fixture
def page(window, report):
    """The report as a browser shows it; at the end its console has to be clean."""
    with desk_at(window, report.as_uri()) as at:
        at.page.goto(at.address)
        yield at


def picture(at, part=None):
    """(H, W, 3) pixels of the page, or of an element."""
    shot = at.page.locator(part).screenshot() if part else at.page.screenshot(full_page=True)
    with Image.open(io.BytesIO(shot)) as image:
        return np.asarray(image.convert("RGB"))


def test_every_part_is_drawn(page) -> None:
    assert page.page.locator("h2").count() >= 8
    assert picture(page).std() > 10
    sizes = page.page.evaluate(
        "[...document.images].map(one => [one.complete, one.naturalWidth, one.width, one.height])"
    )
    assert len(sizes) > 20
    assert all(
        complete and natural >= 40 and width >= 40 and height >= 30
        for complete, natural, width, height in sizes
    )
    plots = page.page.locator(".plots svg")
    assert plots.count() == 2 * len(LABELS)
    for number in (0, len(LABELS)):
        with Image.open(io.BytesIO(plots.nth(number).screenshot())) as plot:
            assert np.asarray(plot.convert("L")).std() > 15
    assert page.page.locator(".picture:has-text('cannot be opened: truncated')").count() >= 1


def test_nothing_is_wider_than_the_screen(page) -> None:
    for width in (320, 390, 768, 1280):
        page.look(width=width)
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), width


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_there_are_no_violations(page, width, scheme) -> None:
    page.look(width=width, scheme=scheme)
    assert violations(page) == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_heat_map_is_readable_in_grey(page, scheme) -> None:
    page.look(width=1280, scheme=scheme)
    pixels = picture(page, "#heat-map")
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=float)
    boxes = page.page.evaluate("""() => {
        const from = document.querySelector("#heat-map").getBoundingClientRect();
        return [...document.querySelectorAll("#heat-map tbody tr")].map((row) => [...row.cells].map((cell) => {
            const { left, top, right, bottom } = cell.getBoundingClientRect();
            return [cell.className, cell.innerText, left - from.left, top - from.top, right - from.left, bottom - from.top];
        }));
    }""")
    heads = page.page.locator("#heat-map thead th").all_inner_texts()
    [place] = [number for number, head in enumerate(heads, start=1) if head.startswith(LABELS[0])]
    lights, texts = [], []
    for row in boxes:
        _, text, *box = row[place]
        left, top, right, bottom = (round(edge) for edge in box)
        cell = grey[top:bottom, left:right]
        ground = cell[4:7, 4:12].mean()  # a corner without digits
        lights.append(ground)
        texts.append(text)
        # The digits are at least as far from their ground as WCAG's 4.5 : 1 is on white.
        assert np.abs(cell - ground).max() > 90
    assert texts == [f"{step / 10:.3f}" for step in range(11)]
    assert (np.diff(lights) < -8).all(), lights
    hatched = [box for row in boxes for name, _, *box in row if name == "hatched"]
    assert len(hatched) == 9
    for left, top, _, bottom in hatched[:2]:
        assert grey[round(top) : round(bottom), round(left) : round(left) + 20].std() > 4


def test_it_prints_in_light_colours(page) -> None:
    page.look(width=794, scheme="dark")
    page.page.emulate_media(media="print", color_scheme="dark")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.page.emulate_media(media="screen")


def test_tables_that_scroll_are_reached_by_the_keyboard(page) -> None:
    page.look(width=390)
    page.page.locator(".scroll").first.focus()
    assert page.page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    assert page.page.evaluate("document.activeElement.scrollWidth > document.activeElement.clientWidth")
