"""The page for everybody: axe-core, the keyboard, narrow screens."""

from fixtures_page import violations
from fixtures_server import picture
from playwright.sync_api import expect

LOOKS = ((390, "light"), (390, "dark"), (1280, "light"), (1280, "dark"))
TWO_LOOKS = LOOKS[1:3]


def check(at, looks, part=None):
    """No violations, however wide and in whichever scheme."""
    for width, scheme in looks:
        at.look(width=width, scheme=scheme)
        assert violations(at, part) == {}, (width, scheme)


def test_review_and_log_have_no_violations(desk) -> None:
    at = desk()
    check(at, TWO_LOOKS)  # an empty queue
    at.give(("knife.png", picture(red=230, size=(300, 200))), prompt="a red knife")
    at.give_reds(20, 140)
    at.give(("blue.png", picture(blue=255)))
    at.verdict("unjudged")
    check(at, LOOKS, "#item, #answer")
    at.page.click("#queue-list button >> nth=1")
    at.verdict("safe")
    check(at, LOOKS, "#verdict")
    at.page.click("#queue-list button >> nth=0")
    at.verdict("unsafe")
    at.page.wait_for_selector("#box:visible")
    at.page.locator("#categories li >> nth=0 >> input[type=range]").fill("0.6")
    at.page.wait_for_selector("#what-if button")
    at.page.click("#facts summary")
    at.look(width=390)
    at.page.click("#queue-toggle")
    check(at, LOOKS)
    at.page.click("#agree")
    at.name_oneself()
    at.page.click("#to-decisions")
    at.page.wait_for_selector("#log-rows tr")
    check(at, LOOKS)


def test_dialogs_have_no_violations(desk) -> None:
    at = desk()
    at.give_reds(20)
    at.verdict("safe")
    for key in ("u", "o", "c", "?"):
        at.page.keyboard.press(key)
        at.page.wait_for_selector("dialog[open]")
        if key == "u":
            at.page.click("#folder-part summary")
        check(at, TWO_LOOKS, "dialog[open]")
        at.escape()
    for button in ("#open-settings", "#remove", "#agree"):
        at.page.click(button)
        at.page.wait_for_selector("dialog[open]")
        check(at, TWO_LOOKS, "dialog[open]")
        at.escape()


def test_axe_is_not_blind(desk) -> None:
    at = desk()
    at.page.evaluate("document.getElementById('add').append(document.createElement('input'))")
    assert violations(at, "#queue")


def test_every_control_is_reached_by_tab_and_shows_it(desk) -> None:
    at = desk()
    at.give_reds(230, 20)
    at.verdict("unsafe")
    at.page.wait_for_selector("#what-if:visible")
    at.page.evaluate("document.activeElement.blur()")
    wanted = at.page.evaluate("""() => {
        const all = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")];
        const seen = all.filter((one) => one.checkVisibility() && !one.disabled);
        seen.forEach((one, n) => { one.dataset.tab = n; });
        return seen.length;
    }""")
    reached = set()
    for _ in range(wanted + 5):
        at.page.keyboard.press("Tab")
        place, looks = at.page.evaluate("""() => {
            const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
            return [document.activeElement.dataset.tab ?? null, `${outlineStyle} ${outlineWidth}`];
        }""")
        if place is not None:
            reached.add(int(place))
            assert looks == "solid 3px"
    assert reached == set(range(wanted))


def test_nothing_is_wider_than_the_screen(desk) -> None:
    at = desk()
    at.give(("a-rather-long-name-without-any-space-in-it.png", picture(red=230, size=(400, 100))))
    at.verdict("unsafe")
    at.page.wait_for_selector("#pixels:visible")
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    for width in (320, 390, 768, 1024):
        at.look(width=width)
        assert at.page.evaluate(fits), width
        for button in ("#agree", "#overrule", "#skip", "#next"):
            expect(at.page.locator(button)).to_be_in_viewport(ratio=1)
    at.look(width=320)
    at.page.keyboard.press("c")
    assert at.page.evaluate("document.getElementById('editor').scrollWidth <= window.innerWidth")


def test_focus_stays_where_it_is_while_answers_come(desk) -> None:
    at = desk()
    at.give_reds(230, 20)
    at.verdict("unsafe")
    at.page.focus("#queue-list li:nth-child(2) button")
    at.page.keyboard.press("Enter")
    at.verdict("safe")
    focused = "document.activeElement.textContent"
    assert "red-20.png" in at.page.evaluate(focused)
    slider = at.page.locator("#categories li >> nth=0 >> input[type=range]")
    slider.focus()
    at.page.keyboard.press("ArrowRight")
    at.page.wait_for_selector("#categories li >> nth=0 >> input[type=range][aria-valuetext^='0.51']")
    assert at.page.evaluate("document.activeElement.type") == "range"
    assert at.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Threshold of Weapons"
