"""Thresholds and categories on the page: what they would change, and one's own."""

from fixtures_page import rule_service
from fixtures_server import picture
from playwright.sync_api import expect


def test_a_threshold_shows_at_once_and_in_the_queue(desk) -> None:
    at = desk()
    at.give_reds(230, 140, 20)
    at.verdict("unsafe")
    at.page.wait_for_selector("#what-if:has-text('2 of 3 judged images flagged.')")
    slider = at.page.locator("#categories li >> nth=0 >> input[type=range]")
    slider.fill("0.6")
    expect(at.page.locator("#what-if")).to_contain_text(
        "2 of 3 judged images flagged, 1 with these thresholds."
    )
    expect(at.page.locator("#what-if")).to_contain_text("red-140.png → safe")
    at.page.click("#what-if button")
    at.shown("red-140.png")
    assert "threshold" in at.verdict("safe")
    number = at.page.locator("#categories li >> nth=0 >> input[type=number]")
    expect(number).to_have_value("0.60")
    number.fill("0.3")
    number.press("Enter")
    at.verdict("unsafe")
    number.fill("7")
    number.press("Enter")
    expect(number).to_have_value("0.30")
    at.page.reload()
    expect(number).to_have_value("0.30")


def test_a_preview_comes_before_the_server_answers(desk) -> None:
    judge = rule_service()
    at = desk(judge)
    at.give_reds(230)
    at.verdict("unsafe")
    at.page.route("**/verdict", lambda route: None)  # the answer never comes
    at.page.locator("#categories li >> nth=0 >> input[type=range]").fill("0.95")
    expect(at.page.locator("#verdict .preview")).to_have_text("With these thresholds: safe")
    expect(at.page.locator("#agree")).to_be_disabled()
    at.page.unroute("**/verdict")


def test_a_new_threshold_that_the_server_does_not_answer_is_asked_again(desk) -> None:
    at = desk()
    at.forgiven = ("ERR_FAILED",)
    at.give_reds(230)
    at.verdict("unsafe")
    at.page.wait_for_selector("#box:visible")
    asked = []
    at.page.route("**/verdict", lambda route: (asked.append(route.request.url), route.abort()))
    at.page.locator("#categories li >> nth=0 >> input[type=range]").fill("0.95")
    expect(at.page.locator("#banner-text")).to_have_text("The server cannot be reached.")
    expect(at.page.locator("#agree")).to_be_disabled()
    at.page.wait_for_timeout(300)
    assert len(asked) == 1  # and not again and again
    at.page.unroute("**/verdict")
    at.page.click("#banner-retry")
    at.verdict("safe")
    expect(at.page.locator("#agree")).to_be_enabled()


def test_a_region_that_cannot_be_had_is_asked_for_once(desk) -> None:
    at = desk()
    at.forgiven = ("status of 429",)
    asked = []

    def without_region(route):
        if route.request.post_data_json["explain"]:
            asked.append(1)
            route.fulfill(status=429, json={"error": {"message": "Busy."}})
        else:
            route.continue_()

    at.page.route("**/verdict", without_region)
    at.give_reds(230)
    expect(at.page.locator("#banner-text")).to_have_text("Busy.")
    at.page.wait_for_timeout(300)
    assert len(asked) == 1
    assert "Weapons" in at.verdict("unsafe")
    expect(at.page.locator("#agree")).to_be_enabled()


def test_ticking_categories_asks_only_those(desk) -> None:
    at = desk()
    at.give(("both.png", picture(red=230, green=180)))
    assert "Weapons" in at.verdict("unsafe")
    at.page.click("#categories li >> nth=0 >> label")
    at.page.wait_for_selector("#verdict:has-text('Alcohol: beer or wine')")
    assert at.page.inner_text("#ticked") == "2 of 3 categories asked"
    at.page.click("#tick-none")
    expect(at.page.locator("#verdict")).to_contain_text("Tick at least one category")
    at.page.click("#tick-all")
    at.page.wait_for_selector("#verdict:has-text('Weapons: a knife or a gun')")


def test_own_categories_unsaved_and_saved(desk) -> None:
    at = desk()
    at.give_reds(230)
    at.verdict("unsafe")
    at.page.keyboard.press("c")
    for _ in range(2):
        at.page.click("#editor-rows li:last-child button")
    at.page.fill("#editor-rows input", "Sharp things")
    at.page.fill("#editor-rows textarea", "anything but a spoon")
    at.page.fill("#editor-name", "kitchen")
    at.page.click("#editor-use")
    at.page.wait_for_selector("#verdict:has-text('Sharp things: anything but a spoon')")
    expect(at.page.locator("#taxonomy-facts")).to_have_text("Used here, saved nowhere.")
    at.page.keyboard.press("c")
    at.page.click("#editor-save")
    at.name_oneself()
    expect(at.page.locator("#taxonomy")).to_have_value("kitchen")
    expect(at.page.locator("#cautions-title")).to_have_text("One definition is read poorly")
    assert at.records.taxonomy("kitchen").taxonomy.names == ("Sharp things",)
    at.page.select_option("#taxonomy", "rules")
    at.page.wait_for_selector("#verdict:has-text('Weapons')")


def test_what_cannot_be_a_taxonomy_is_said_in_the_editor(desk) -> None:
    at = desk()
    at.forgiven = ("status of 400",)
    at.page.evaluate("localStorage.setItem('arbiter.name', '\"kim\"')")
    at.page.reload()
    at.page.wait_for_selector("#categories li")
    at.page.click("#edit")
    problem = at.page.locator("#editor-error")
    at.page.fill("#editor-rows li >> nth=1 >> input", "weapons")
    at.page.click("#editor-use")
    expect(problem).to_contain_text("Two categories are called")
    at.page.fill("#editor-rows li >> nth=1 >> input", "")
    at.page.click("#editor-use")
    expect(problem).to_contain_text("needs a name and a definition")
    at.page.fill("#editor-rows li >> nth=1 >> input", "Alcohol")
    at.page.fill("#editor-name", "digits")  # one that ships
    at.page.click("#editor-save")
    expect(problem).to_contain_text("digits")
    expect(at.page.locator("#editor")).to_be_visible()
