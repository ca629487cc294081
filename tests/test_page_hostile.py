"""Whatever a stranger wrote is text on the page: names, prompts, categories, reasons, errors, however long."""

import json

from fixtures_server import picture
from playwright.sync_api import expect

SHOT = "window.pwned = (window.pwned || 0) + 1"
HOSTILE = (
    f'"><img src=x onerror="{SHOT}"><script>{SHOT}</script><svg onload="{SHOT}"><a href="javascript:{SHOT}">x</a>'
    "{{7*7}}${7*7}&lt;b&gt;"
)
FILE = f'"><img src=x onerror="{SHOT}">.png'
RIGHT_TO_LEFT = "safe \u202egnp.exe\u202c \u200b\u2066hidden\u2069"


def harmless(at) -> None:
    """Nothing ran, nothing became markup, and nothing is wider than the window."""
    assert at.page.evaluate("window.pwned") is None
    assert at.page.locator("script").count() == 1
    assert at.page.locator("img[onerror], svg[onload], a[href^='javascript:']").count() == 0
    assert at.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def change(at, path, edit, asked=None) -> None:
    """Change the JSON of a path's answers, as a server without our checks might send it; `asked` is asked instead."""

    def passed(route):
        response = route.fetch(post_data=asked)
        route.fulfill(response=response, status=200, json=edit(response.json()))

    at.page.route(path, passed)


def test_names_and_prompts_of_images(desk) -> None:
    at = desk()
    at.give((FILE, picture(red=230)), prompt=f"{HOSTILE} {RIGHT_TO_LEFT} " + "long" * 16_000)
    at.verdict("unsafe")
    assert "<script>" in at.page.inner_text("#prompt-text")
    assert "U+202E" in at.page.inner_text("#prompt-text")
    assert at.page.inner_text("#item-name-text").endswith("+ 1%22>.png")
    assert at.page.locator("#prompt-text").bounding_box()["height"] < 200
    for width in (390, 1280):
        at.look(width=width)
        harmless(at)


def test_categories_reasons_and_models_of_a_lax_server(desk) -> None:
    at = desk(opened=False)

    def taxonomy(body):
        body["categories"][0] |= {"name": HOSTILE, "definition": HOSTILE * 100}
        return {**body, "cautions": [HOSTILE]}

    def verdict(body):
        row = body["verdict"]
        row |= {"scores": {HOSTILE: 0.9}, "flags": {HOSTILE: True}, "thresholds": {HOSTILE: 0.5}}
        row |= dict.fromkeys(("category", "because", "note", "evidence", "promise", "decided_by"), HOSTILE)
        row |= {"reason": HOSTILE, "model": {"name": HOSTILE, "sha256": HOSTILE}, "arbiter": HOSTILE}
        where = {
            "method": HOSTILE,
            "category": HOSTILE,
            "grid": [[1.0]],
            "box": [0, 0, 1, 1],
            "note": HOSTILE,
        }
        return {**body, "explanation": where}

    def changes(_):
        changed = [{"verdict_id": 1, "item_id": 1, "name": HOSTILE, "from": "safe", "to": "unsafe"}]
        return {"verdicts": 1, "flagged_before": 0, "flagged_after": 1, "changed": changed}

    def described(body):
        return {**body, "model": {"name": HOSTILE, "sha256": HOSTILE}}

    change(at, "**/v1/taxonomies/*", taxonomy)
    change(at, "**/v1/queue/*/verdict", verdict, "{}")
    change(at, "**/v1/what-if", changes)
    change(at, "**/v1/server", described)
    at.open().give(("a.png", picture(red=230)))
    assert HOSTILE[:40] in at.verdict("unsafe")
    expect(at.page.locator("#what-if")).to_contain_text("<img src=x")
    expect(at.page.locator("#hint")).to_contain_text("<script>")
    expect(at.page.locator("#cautions-list")).to_contain_text("<script>")
    at.page.click("#facts summary")
    at.page.click("#categories li >> nth=0 >> .category-definition")
    harmless(at)
    for key in ("c", "o"):
        at.page.keyboard.press(key)
        at.page.wait_for_selector("dialog[open]")
        harmless(at)
        at.escape()


def test_the_log_of_a_lax_server(desk) -> None:
    at = desk(opened=False)
    row = {
        "status": "unsafe",
        "category": HOSTILE,
        "unsafe": 0.9,
        "model": {"name": HOSTILE, "sha256": HOSTILE},
    }
    row["taxonomy"] = {"name": HOSTILE, "version": HOSTILE, "hash": HOSTILE}
    log = {"id": 1, "verdict": row, "status": "unsafe", "categories": [HOSTILE], "action": "overrule"}
    log |= dict.fromkeys(("time", "name", "note", "moderator"), HOSTILE + "x" * 64_000)
    at.page.route("**/v1/decisions?*", lambda route: route.fulfill(json={"decisions": [log]}))
    for width in (1280, 390):
        at.look(width=width)
        at.page.goto(f"{at.address}/?{width}#decisions")
        at.page.wait_for_selector("#log-rows tr")
        harmless(at)


def test_errors_of_a_lax_server(desk) -> None:
    at = desk(opened=False)
    at.forgiven = ("status of 500",)
    error = {"error": {"message": HOSTILE * 50, "type": HOSTILE, "param": HOSTILE, "code": HOSTILE}}
    at.page.route("**/v1/queue?*", lambda route: route.fulfill(status=500, body=json.dumps(error)))
    at.open()
    expect(at.page.locator("#banner")).to_contain_text("<script>")
    harmless(at)


def test_what_a_moderator_types(desk) -> None:
    """Our own server refuses markup in a taxonomy, and says so with the markup in it."""
    at = desk()
    at.forgiven = ("status of 400",)
    at.give(("a.png", picture(red=230)))
    at.verdict("unsafe")
    at.page.keyboard.press("c")
    at.page.fill("#editor-rows input >> nth=0", HOSTILE[:60])
    at.page.fill("#editor-name", HOSTILE[:60])
    at.page.click("#editor-use")
    expect(at.page.locator("#verdict.failed")).to_contain_text("Not allowed in")
    harmless(at)
    expect(at.page.locator("#agree")).to_be_disabled()


def test_names_that_mean_something_to_javascript(desk) -> None:
    at = desk()
    at.give(("a.png", picture(red=230)))
    at.verdict("unsafe")
    for name in ("constructor", "toString", "__proto__"):
        at.page.keyboard.press("c")
        at.page.fill("#editor-rows input >> nth=0", name)
        at.page.click("#editor-use")
        at.page.wait_for_selector(f"#verdict.unsafe:has-text('{name}: a knife or a gun')")
    at.page.locator("#categories li >> nth=0 >> input[type=range]").fill("0.95")
    at.verdict("safe")
    at.page.locator("#categories li >> nth=1 >> input[type=range]").fill("0")
    at.page.wait_for_selector("#verdict.unsafe:has-text('Alcohol')")
