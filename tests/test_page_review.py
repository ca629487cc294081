"""A moderator's day in headless Chromium: one picture, a queue, the image, the log; mouse and keyboard."""

import csv
import io

import pytest
from fixtures_server import animation, picture
from playwright.sync_api import expect


def test_one_picture_with_the_mouse(desk) -> None:
    at = desk()
    at.give(("knife.png", picture(red=230, size=(300, 200))), prompt="a red knife")
    said = at.verdict("unsafe")
    assert said.startswith("Flagged")
    assert "Weapons: a knife or a gun" in said
    assert "Score 0.90 reaches the threshold 0.50." in said
    at.shown("knife.png")
    assert at.page.inner_text("#prompt-text") == "a red knife"
    assert "knife.png: flagged, Weapons, score 0.90" in at.page.inner_text("#announcer")
    assert at.counts() == [1, 0, 0]
    record = at.page.locator("#facts-list")
    at.page.click("#facts summary")
    expect(record).to_contain_text("rule-judge")
    expect(record).to_contain_text("cd" * 32)


def test_an_answer_takes_few_requests(desk) -> None:
    """This is what a moderator feels all day; what a request takes, the benchmark of the server measures."""
    at = desk()
    at.give_reds(10)
    at.verdict("safe")
    asked = []
    at.page.on("request", lambda request: asked.append(request.url.removeprefix(at.address)))
    at.give_reds(240)
    at.verdict("unsafe")
    print(asked)
    assert len(asked) <= 10


def test_a_safe_and_an_unjudged_picture_look_different(desk) -> None:
    at = desk()
    at.give(("safe.png", picture(red=20)))
    assert "Every category was scored below its threshold." in at.verdict("safe")
    safe = at.page.eval_on_selector("#verdict", "card => getComputedStyle(card).backgroundColor")
    at.give(("blue.png", picture(blue=255)))
    said = at.verdict("unjudged")
    assert said.startswith("Could not be judged")
    assert "too blue" in said
    assert "It is not safe by default" in said
    assert "Safe" not in said
    card = "card => getComputedStyle(card).backgroundColor + getComputedStyle(card).borderStyle"
    looks = at.page.eval_on_selector("#verdict", card)
    assert "dashed" in looks
    assert safe not in looks
    expect(at.page.locator("#agree")).to_be_disabled()
    expect(at.page.locator("#overrule")).to_be_enabled()


def test_a_broken_file_is_unjudged_and_can_be_decided(desk) -> None:
    at = desk()
    at.forgiven = ("status of 415", "status of 422")
    at.give(("broken.png", b"\x89PNG\r\n\x1a\n and then nothing"))
    at.verdict("unjudged")
    expect(at.page.locator("#picture-note")).to_contain_text("This image cannot be shown")
    at.page.keyboard.press("o")
    expect(at.page.locator("input[name=status][value=unsafe]")).to_be_checked()
    at.page.keyboard.press("Enter")
    at.name_oneself()
    at.count_is(0, 1, 0)
    [decision] = at.records.decisions()
    assert (decision.ruling.action, decision.ruling.status) == ("overrule", "unsafe")


def test_the_whole_way_by_keyboard_alone(desk) -> None:
    """From an empty queue to the log, without a mouse; the file chooser of the system is answered by Playwright."""
    at = desk()
    keys, page = at.page.keyboard, at.page
    keys.press("u")
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    files = [("a.png", 230), ("b.png", 20), ("c.png", 210)]
    chooser.value.set_files(
        [{"name": name, "mimeType": "image/png", "buffer": picture(red=red)} for name, red in files]
    )
    page.wait_for_selector("#add-go:text-is('Judge 3 images')")
    keys.type("three things")
    keys.press("Enter")
    at.verdict("unsafe")
    keys.press("a")
    keys.type("kim")
    keys.press("Enter")
    at.shown("b.png")
    at.verdict("safe")
    keys.press("o")
    page.wait_for_selector("#overrule-dialog[open]")
    keys.press("Tab")
    keys.press("Space")  # the first category
    keys.press("Enter")
    at.shown("c.png")
    at.verdict("unsafe")
    keys.press("s")
    at.count_is(0, 2, 1)
    keys.press("l")
    page.wait_for_selector("#log-rows tr >> nth=2")
    said = [(one.ruling.action, one.ruling.status, one.ruling.categories) for one in at.records.decisions()]
    assert said == [
        ("agree", "unsafe", ("Weapons",)),
        ("overrule", "unsafe", ("Weapons",)),
        ("skip", None, ()),
    ]
    assert {one.moderator for one in at.records.decisions()} == {"kim"}


def test_a_queue_keeps_its_place(desk) -> None:
    at = desk()
    at.give_reds(230, 20, 210, 200)
    at.verdict("unsafe")
    at.page.keyboard.press("n")
    at.shown("red-20.png")
    at.page.keyboard.press("j")
    at.shown("red-210.png")
    at.page.reload()
    at.shown("red-210.png")
    assert at.page.inner_text("#position") == "3 of 4 open"
    at.page.keyboard.press("p")
    at.shown("red-20.png")
    at.page.click("#skip")
    at.name_oneself()
    at.shown("red-210.png")
    at.count_is(3, 0, 1)
    at.page.click("#filters button:has-text('Skipped')")
    at.shown("red-20.png")
    at.verdict("safe")
    at.page.click("#agree")
    at.count_is(3, 1, 0)
    expect(at.page.locator("#queue-empty")).to_have_text("Nothing was skipped.")


def test_a_place_on_a_later_page_is_found_again(desk) -> None:
    from judge.records.entries import NewItem

    at = desk()
    at.records.add_items([NewItem(picture(), f"{number}.png") for number in range(130)])
    at.page.reload()
    at.shown("0.png")
    assert at.page.locator("#queue-list li").count() == 100
    at.page.click("#queue-more")
    at.page.click("#queue-list button >> nth=-1")
    at.shown("129.png")
    at.page.reload()
    at.shown("129.png")
    assert at.page.inner_text("#position") == "130 of 130 open"


def test_the_last_decision_leaves_an_empty_queue(desk) -> None:
    at = desk()
    at.give_reds(230)
    at.verdict("unsafe")
    at.page.click("#agree")
    at.name_oneself()
    expect(at.page.locator("#empty")).to_be_visible()
    expect(at.page.locator("#queue-empty")).to_contain_text("Nothing is waiting.")
    expect(at.page.locator("#verdict")).to_be_hidden()


def test_an_image_is_removed_only_after_a_yes(desk) -> None:
    at = desk()
    at.give_reds(230, 20)
    at.verdict("unsafe")
    at.page.click("#remove")
    at.page.click("#confirm-dialog [data-close]")
    at.count_is(2, 0, 0)
    at.page.click("#remove")
    at.page.click("#confirm-go")
    at.shown("red-20.png")
    at.count_is(1, 0, 0)
    assert [item.name for item in at.records.items()] == ["red-20.png"]


def test_the_image_is_blurred_until_held(desk) -> None:
    at = desk()
    at.give(("knife.png", picture(red=230, size=(300, 200))))
    at.page.wait_for_selector("#pixels:visible")
    look = "image => getComputedStyle(image).filter"
    blurred = lambda: "blur" in at.page.eval_on_selector("#pixels", look)  # noqa: E731
    assert blurred()
    at.page.hover("#picture")
    at.page.mouse.down()
    assert not blurred()
    at.page.mouse.up()
    assert blurred()
    at.page.keyboard.down("b")
    assert not blurred()
    at.page.keyboard.up("b")
    assert blurred()
    at.page.focus("#hold")
    at.page.keyboard.down("Space")
    assert not blurred()
    at.page.keyboard.up("Space")
    assert blurred()
    at.page.keyboard.press("g")
    assert "grayscale" in at.page.eval_on_selector("#pixels", look)
    at.page.click("#tool-blur")
    assert not blurred()
    at.page.reload()  # kept in this browser
    at.page.wait_for_selector("#pixels:visible")
    assert not blurred()


def test_the_next_image_is_never_shown_unblurred(desk) -> None:
    at = desk()
    at.give_reds(230, 20)
    at.page.wait_for_selector("#pixels:visible")
    at.page.keyboard.down("b")
    at.page.keyboard.press("n")
    at.shown("red-20.png")
    assert at.page.locator("#stage.blurred").count() == 1
    at.page.keyboard.up("b")


def test_the_region_is_drawn_where_it_is_and_called_a_hint(desk) -> None:
    at = desk()
    at.give(("knife.png", picture(red=230, size=(300, 200))))
    at.page.wait_for_selector("#box:visible")
    image, box = at.page.locator("#pixels").bounding_box(), at.page.locator("#box").bounding_box()
    scale = at.page.eval_on_selector("#stage", "s => getComputedStyle(s.querySelector('img')).transform")
    assert scale.startswith("matrix(1.08")  # the blurred image is a little larger than its place
    at.page.keyboard.down("b")
    image = at.page.locator("#pixels").bounding_box()
    assert box["x"] == pytest.approx(image["x"] + image["width"] / 2, abs=2)
    assert box["y"] == pytest.approx(image["y"] + image["height"] / 2, abs=2)
    assert box["width"] == pytest.approx(image["width"] / 2, abs=2)
    at.page.keyboard.up("b")
    expect(at.page.locator("#hint")).to_contain_text(
        "What drove “Weapons”, by occlusion (rules). A hint, not proof."
    )
    at.page.keyboard.press("e")
    expect(at.page.locator("#box")).to_be_hidden()
    expect(at.page.locator("#hint")).to_be_hidden()


def test_every_frame_of_an_animation_can_be_seen(desk) -> None:
    at = desk()
    at.give(("three.gif", animation(10, 240, 30)))
    assert "frame 2 of 3" in at.verdict("unsafe")
    expect(at.page.locator("#frame-text")).to_have_text("1 of 3 frames")
    at.page.keyboard.press("]")
    expect(at.page.locator("#frame-text")).to_have_text("2 of 3 frames")
    at.page.wait_for_selector("#pixels:visible")
    at.page.click("#frame-on")
    expect(at.page.locator("#frame-on")).to_be_disabled()


def test_the_log_says_what_was_decided_and_can_be_exported(desk) -> None:
    at = desk()
    at.give_reds(230, 20)
    at.verdict("unsafe")
    at.page.click("#overrule")
    at.page.fill("#overrule-note", "a toy")
    at.page.click("#overrule-dialog .primary")
    at.name_oneself("kim")
    at.shown("red-20.png")
    at.page.click("#agree")
    at.count_is(0, 2, 0)
    at.page.click("#to-decisions")
    expect(at.page.locator("#log-rows tr >> nth=0")).to_contain_text("red-20.png")  # the newest first
    row = at.page.locator("#log-rows tr", has_text="red-230.png")
    for text in ("Flagged", "Weapons", "0.90", "overrule: safe", "a toy", "kim", "rules", "rule-judge"):
        expect(row).to_contain_text(text)
    with at.page.expect_download() as file:
        at.page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(file.value.path().read_text(encoding="utf-8"))))
    assert len(rows) == 2
    with at.page.expect_download() as file:
        at.page.click("#training")
    assert file.value.path().read_bytes().startswith(b"PK")


def test_without_records_a_single_picture_is_judged(desk) -> None:
    at = desk(records=False)
    at.give(("knife.png", picture(red=230)), prompt="a knife")
    assert "Weapons" in at.verdict("unsafe")
    for part in ("#queue", "#decide", "#to-decisions", "#remove"):
        expect(at.page.locator(part)).to_be_hidden()
    at.page.locator("#categories li >> nth=0 >> input[type=range]").fill("0.95")
    at.verdict("safe")
    at.page.click("#another")
    at.page.click("#add-dialog [data-close]")
    at.page.keyboard.press("l")
    expect(at.page.locator("#review")).to_be_visible()


def test_an_image_may_be_dropped_or_pasted(desk) -> None:
    at = desk()
    give = """([kind, bytes]) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
        const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
        const name = kind === "paste" ? "clipboardData" : "dataTransfer";
        document.body.dispatchEvent(new Kind(kind, { [name]: carried, bubbles: true, cancelable: true }));
    }"""
    for kind, red in (("drop", 230), ("paste", 20)):
        at.page.evaluate(give, [kind, list(picture(red=red))])
        at.page.wait_for_selector("#add-dialog[open]")
        at.page.keyboard.press("Enter")
        at.shown(f"{kind}.png")
    at.verdict("safe")
    at.count_is(2, 0, 0)


def test_keys_can_be_turned_off_and_help_lists_them(desk) -> None:
    at = desk()
    at.page.keyboard.press("?")
    expect(at.page.locator("#help")).to_be_visible()
    expect(at.page.locator("#help-keys")).to_contain_text("Agree with the verdict")
    at.escape()
    at.page.click("#open-settings")
    at.page.uncheck("#set-keys")
    at.escape()
    at.page.keyboard.press("?")
    expect(at.page.locator("#help")).to_be_hidden()
