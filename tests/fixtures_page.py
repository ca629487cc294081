"""Fixtures: the page of a moderator in headless Chromium, before a real server with records."""

import os
import shutil
import time
from contextlib import ExitStack, contextmanager

import pytest
from fixtures_server import ColourJudge, listening, picture

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "ARBITER_REQUIRE_BROWSER"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""Of axe-core."""
PATIENCE = 60_000
"""Milliseconds after which a step on the page has failed; a busy machine takes its time."""


def three_rules():
    """A taxonomy of three categories; the second and the third never score with `ColourJudge`."""
    from prompts.taxonomy import Category, Taxonomy

    rules = {"Weapons": "a knife or a gun", "Alcohol": "beer or wine", "Gambling": "dice or a poker chip"}
    return Taxonomy("rules", "1", tuple(Category(name, text) for name, text in rules.items()))


class RuleJudge(ColourJudge):
    """Red is the score of the first category; green, up to 200, that of the second."""

    def score(self, images, prompts, taxonomy):
        import numpy as np

        from judge.protocol import Scores

        scores = super().score(images, prompts, taxonomy)
        categories = scores.categories.copy()
        green = [image.getpixel((0, 0))[1] / 255 for image in images]
        if len(taxonomy) > 1:
            categories[:, 1] = np.where(np.isnan(scores.unsafe), np.nan, green)
        return Scores(categories.max(axis=1), categories, scores.reasons)


def rule_service(classifier=None, **settings):
    """A service that explains, under three rules."""
    import dataclasses

    from judge.server.service import JudgeService, LoadedJudge
    from judge.server.settings import ServerSettings

    class Explains(JudgeService):
        explains = True

        async def judge(self, question):
            judged = await super().judge(dataclasses.replace(question, explain=False))
            if not question.explain or judged.row["status"] == "unjudged":
                return judged
            grid = [[0.0, 0.2], [0.1, 1.0]]
            where = {"method": "occlusion", "category": judged.row["category"], "grid": grid, "by": "rules"}
            where |= {
                "box": [0.5, 0.5, 1.0, 1.0],
                "score": 0.9,
                "alone": None,
                "note": "a hint, not proof: x",
            }
            return dataclasses.replace(judged, explanation=where)

    judge = classifier or RuleJudge(three_rules())
    loaded = LoadedJudge(judge, judge.default_taxonomy, "rule-judge", "cd" * 32)
    return Explains(lambda: loaded, ServerSettings(**{"decode_workers": 0, **settings}))


@pytest.fixture(scope="module")
def chromium():
    """A headless browser, which files that stand one behind the other share; each of them has a `window` of its own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"no Chromium found (looked for {', '.join(NAMES)})"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason}, and {REQUIRED}=1")
        pytest.skip(reason)
    from playwright.sync_api import expect, sync_playwright

    if "browser" not in OPEN or not OPEN["browser"].is_connected():
        close_browser()  # one that a test has crashed is not the others' end
        expect.set_options(timeout=PATIENCE)
        OPEN["driver"] = sync_playwright().start()
        arguments = ["--no-sandbox", "--disable-gpu"]
        OPEN["browser"] = OPEN["driver"].chromium.launch(executable_path=path, args=arguments)
    return OPEN["browser"]


OPEN = {}
"""The browser that is open, and what drives it."""


def close_browser():
    if browser := OPEN.pop("browser", None):
        browser.close()
    if driver := OPEN.pop("driver", None):
        driver.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Close the browser where files without one follow: Playwright's event loop would stop their `asyncio.run`."""
    try:
        return (yield)
    finally:
        goes_on = nextitem is not None and (nextitem.path == item.path or "chromium" in nextitem.fixturenames)
        if OPEN and not goes_on:
            close_browser()


class Desk:
    """A page in front of a server, and what a moderator does there."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.said = []
        """Errors and warnings of the console, uncaught exceptions."""
        self.forgiven = ()
        """Parts of messages that a test means to provoke."""
        self._ears = {
            "console": lambda message: self._hear(message.type, message.text),
            "pageerror": lambda error: self._hear("error", str(error)),
            "dialog": lambda dialog: self._hear("error", f"a dialog of the browser: {dialog.message}"),
        }
        for event, ear in self._ears.items():
            page.on(event, ear)

    def _hear(self, kind, text):
        if kind in ("error", "warning"):
            self.said.append(text)

    def leave(self):
        """Make the page ready for the next test."""
        for event, ear in self._ears.items():
            self.page.remove_listener(event, ear)
        self.page.unroute_all(behavior="ignoreErrors")
        self.page.goto("about:blank")

    def complaints(self):
        return [text for text in self.said if not any(part in text for part in self.forgiven)]

    def open(self, path="/"):
        self.page.goto(self.address + path)
        self.page.wait_for_selector("#categories li")
        return self

    def look(self, *, width=1280, height=800, scheme="light"):
        """A window of this size, in this scheme."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def give(self, *files, prompt=""):
        """Choose files, (name, bytes) each, and have them judged."""
        chosen = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
        self.page.set_input_files("#files", chosen)
        self.page.fill("#add-prompt", prompt)
        self.page.click("#add-go")
        self.page.wait_for_selector("#add-dialog", state="hidden")

    def give_reds(self, *reds):
        """One image of each of these reds, named after it; 0 is safe, 255 flagged."""
        self.give(*((f"red-{red}.png", picture(red=red)) for red in reds))

    def verdict(self, kind):
        """Wait for a verdict of this kind: safe, unsafe, unjudged, failed. Its text."""
        return self.page.wait_for_selector(f"#verdict.{kind}").inner_text()

    def shown(self, name):
        """Wait until the image with this name is shown."""
        self.page.wait_for_selector(f"#item-name-text:text-is('{name}')")

    def name_oneself(self, name="maria"):
        self.page.wait_for_selector("#name-dialog[open]")
        self.page.fill("#name", name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#name-dialog", state="hidden")

    def escape(self):
        """Close the dialog that is open."""
        self.page.keyboard.press("Escape")
        self.page.wait_for_selector("dialog[open]", state="detached")

    def wait_until(self, done):
        """Wait for something that happens in this process, while the page goes on."""
        end = time.monotonic() + PATIENCE / 1000
        while not done():
            assert time.monotonic() < end, "waited too long"
            self.page.wait_for_timeout(5)

    def counts(self):
        """How many are open, decided and skipped, as the page says."""
        return [int(text) for text in self.page.locator("#filters b").all_inner_texts()]

    def count_is(self, *counts):
        """Wait until the page says so."""
        script = (
            "want => [...document.querySelectorAll('#filters b')].map(b => +b.textContent).join() === want"
        )
        self.page.wait_for_function(script, arg=",".join(map(str, counts)))


def violations(at, part=None):
    """What axe-core finds wrong: rule and elements."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": RULES}}
    found = Axe().run(at.page, context=part, options=options).response["violations"]
    return {one["id"]: [node["html"][:200] for node in one["nodes"]] for one in found}


@pytest.fixture(scope="module")
def window(chromium):
    """One page for all tests of a file, as each costs a second; storage is apart, by the ports of their servers."""
    with chromium.new_context(reduced_motion="reduce") as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        # Asked for from the beginning: Chromium does not always tell a page that asks later.
        page.on("filechooser", lambda _: None)
        yield page


@contextmanager
def desk_at(window, address, *, width=1280, height=800, scheme="light"):
    """A desk before a server; at its end, the console has to be clean."""
    desk = Desk(window, address)
    desk.look(width=width, height=height, scheme=scheme)
    try:
        yield desk
    finally:
        desk.leave()
    assert desk.complaints() == []


@pytest.fixture
def desk(window, tmp_path):
    """`desk(service=None, records=True, ...)` -> a Desk on a server of its own, opened."""
    from judge.records.records import Records

    with ExitStack() as stack:

        def make(service=None, *, records=True, opened=True, **looks):
            kept = Records.in_folder(tmp_path / "state") if records else None
            if kept is not None:
                stack.callback(kept.close)
            address = stack.enter_context(listening(service or rule_service(), kept))
            made = stack.enter_context(desk_at(window, address, **looks))
            made.records = kept
            return made.open() if opened else made

        yield make
