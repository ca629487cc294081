"""Reports in headless Chromium: narrow and wide, light and dark; what a person sees, and what the page does not do."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures_page import violations
from fixtures_reports import cascade_run, judge_run
from PIL import Image

LOOKS = ((390, "light"), (390, "dark"), (1440, "light"), (1440, "dark"))
TWO_LOOKS = LOOKS[1:3]
"""For axe-core, a run of which takes a second."""
BUILDERS = {"judge": judge_run, "cascade": cascade_run}

CONTRASTS = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const ground = light(rgb(getComputedStyle(document.body).backgroundColor));
  return [...document.querySelectorAll("svg.chart text")].map(text => {
    const ink = light(rgb(getComputedStyle(text).fill));
    return [text.textContent, (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05)];
  });
}"""
"""Contrast of each text in a figure with the page behind it."""
CROWDED = """() => [...document.querySelectorAll("th, figcaption, .card, li, dd, p, label")].filter(one => {
  const text = one.innerText.trim(), line = parseFloat(getComputedStyle(one).lineHeight) || 20;
  const box = one.getBoundingClientRect();
  return text.length > 8 && box.width && box.width < 60 && box.height / line > text.length / 4;
}).map(one => one.innerText.slice(0, 60))"""
"""Texts that stand a few letters a line."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name of a kind of report -> its file."""
    return {name: build(tmp_path_factory.mktemp("reports") / name) for name, build in BUILDERS.items()}


@pytest.fixture(params=list(BUILDERS))
def report(request, pages, window):
    """`report(width, scheme)` shows a report; at its end, nothing was loaded and nothing complained."""
    path = pages[request.param]
    asked, said = [], []

    def hear_request(one):
        asked.append(one.url)

    def hear_console(one):
        said.append(one.text)

    window.on("request", hear_request)
    window.on("console", hear_console)

    def show(width=1440, scheme="light"):
        return show_file(window, path, width, scheme)

    show.name = request.param
    yield show
    window.remove_listener("request", hear_request)
    window.remove_listener("console", hear_console)
    window.goto("about:blank")
    assert {url for url in asked if not url.startswith("data:")} <= {path.as_uri(), "about:blank"}
    assert said == []


def test_it_can_be_read_in_every_look(report):
    check_looks(report)


def show_file(window, path, width=1440, scheme="light"):
    """Show a file, as a window of this width and scheme does."""
    window.set_viewport_size({"width": width, "height": 900})
    window.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    if window.url != path.as_uri():
        window.goto(path.as_uri())
    return window


def check_looks(report):
    """A report that `report(width, scheme)` shows can be read on narrow and wide, light and dark screens."""
    grounds = {}
    for width, scheme in LOOKS:
        page = report(width, scheme)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CROWDED) == []
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 20
        assert [text for text, contrast in contrasts if contrast < 4.5] == []
        if (width, scheme) in TWO_LOOKS:
            assert violations(SimpleNamespace(page=page)) == {}, (width, scheme)
    assert grounds["light"] != grounds["dark"]


def test_no_figure_is_blank(report):
    charts = report(390, "dark").locator("svg.chart").all()
    assert len(charts) == 5
    for chart in charts:
        with Image.open(io.BytesIO(chart.screenshot())) as seen:
            pixels = np.asarray(seen.convert("RGB"), dtype=np.int16)
        drawn = np.abs(pixels - pixels[0, 0]).max(axis=2) > 40
        assert 0.005 < drawn.mean() < 0.6
        # Something is drawn in each quarter: axes, lines or letters.
        height, width = (side // 2 for side in drawn.shape)
        for half in (drawn[:height], drawn[height:]):
            assert half[:, :width].any()
            assert half[:, width:].any()


def test_the_verdict_is_first_and_the_origin_last(report):
    page = report()
    main, footer = page.locator("main").bounding_box(), page.locator("footer").bounding_box()
    verdict, pair = page.locator(".verdict").bounding_box(), page.locator(".pair").bounding_box()
    assert verdict["y"] < 200
    assert verdict["y"] < pair["y"] < 900, "both on the first screen"
    assert footer["y"] >= main["y"] + main["height"] - 1
    said = page.locator("footer").inner_text()
    for part in ("command", "recipes/", "seed", "commit"):
        assert part in said


def test_pictures_are_blurred_until_asked_for_and_cards_filtered(report):
    page = report(1440)
    blurs = "[...document.querySelectorAll('.card .picture img')].map(one => getComputedStyle(one).filter)"
    page.mouse.move(2, 2)
    assert all("blur(" in one for one in page.evaluate(blurs))
    page.focus(".card .picture >> nth=0")
    assert page.evaluate(blurs)[0] == "none"
    page.check("#sharp")
    assert set(page.evaluate(blurs)) == {"none"}
    page.uncheck("#sharp")
    everything = page.locator(".card:visible").count()
    names = page.locator("label:has(input[name=category])").all_inner_texts()
    page.check("#category-1")
    shown = page.locator(".card:visible").count()
    assert 0 < shown < everything
    assert names[1].strip().endswith(f"({shown})")
    page.check("#kind-flagged")
    assert page.locator(".card:visible").count() == page.locator(".card.flagged.of-1").count() < shown
    page.check("#category-all")
    page.check("#kind-all")
    assert page.locator(".card:visible").count() == everything
