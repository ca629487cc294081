"""When the server asks for a key, is gone, is busy or is not ready: the page says so, and how to go on."""

from fixtures_page import rule_service
from fixtures_server import picture
from playwright.sync_api import expect

KEY = "a-key-of-this-server"
BUSY = {
    "error": {
        "message": "256 images are waiting; ask again.",
        "type": "rate_limit_error",
        "code": "overloaded",
    }
}


def refuse(at, path, status, seconds="0.1"):
    """Answer a path with an error, until it is unrouted."""
    at.page.route(
        path, lambda route: route.fulfill(status=status, json=BUSY, headers={"retry-after": seconds})
    )


def test_a_key_is_asked_for_and_kept_as_long_as_the_tab(desk) -> None:
    at = desk(rule_service(keys=(KEY,)), opened=False)
    at.forgiven = ("status of 401",)
    at.page.goto(at.address)
    dialog = at.page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    at.page.fill("#key", "a wrong key")
    at.page.keyboard.press("Enter")
    expect(at.page.locator("#key-said")).to_contain_text("refused")
    at.page.fill("#key", KEY)
    at.page.keyboard.press("Enter")
    at.page.wait_for_selector("#categories li")
    at.give(("a.png", picture(red=230)))
    at.verdict("unsafe")
    at.page.wait_for_selector("#pixels:visible")  # images are behind the key too
    at.page.reload()
    at.verdict("unsafe")
    expect(dialog).to_be_hidden()
    assert KEY not in at.page.evaluate("JSON.stringify(localStorage)")
    with at.page.expect_download() as file:
        at.page.keyboard.press("l")
        at.page.click("#csv")
    assert file.value.path().stat().st_size > 0


def test_without_a_key_there_is_a_way_to_try_again(desk) -> None:
    at = desk(rule_service(keys=(KEY,)), opened=False)
    at.forgiven = ("status of 401",)
    at.page.goto(at.address)
    at.page.click("#key-dialog [data-close]")
    expect(at.page.locator("#banner-text")).to_contain_text("API key")
    at.page.click("#banner-retry")
    at.page.fill("#key", KEY)
    at.page.keyboard.press("Enter")
    at.page.wait_for_selector("#categories li")
    expect(at.page.locator("#banner")).to_be_hidden()


def test_a_server_that_is_gone(desk) -> None:
    at = desk()
    at.forgiven = ("ERR_FAILED",)
    at.give(("a.png", picture(red=230)))
    at.verdict("unsafe")
    at.page.route("**/v1/**", lambda route: route.abort())
    at.page.click("#agree")
    at.name_oneself()
    expect(at.page.locator("#banner-text")).to_have_text("The server cannot be reached.")
    at.shown("a.png")  # nothing was lost
    at.page.click("#tick-none")
    at.page.click("#categories li >> nth=1 >> label")
    assert "The server cannot be reached." in at.verdict("failed")
    at.page.unroute("**/v1/**")
    at.page.click("#retry")
    at.verdict("unsafe")
    at.page.click("#agree")
    at.count_is(0, 1, 0)


def test_no_answer_is_no_verdict(desk) -> None:
    at = desk()
    at.forgiven = ("status of 429",)
    refuse(at, "**/verdict", 429, "7")
    at.give(("a.png", picture(red=10)))
    said = at.verdict("failed")
    assert said.startswith("No answer")
    assert "256 images are waiting" in said
    assert "wait 7 s" in said
    for button in ("#agree", "#overrule", "#skip"):
        expect(at.page.locator(button)).to_be_disabled()
    assert at.page.locator("#queue-list .mark.safe").count() == 0


def test_a_busy_server_is_asked_again_for_those_that_wait(desk) -> None:
    at = desk()
    at.forgiven = ("status of 429",)
    refused = []

    def once(route):
        if route.request.url in refused:
            return route.continue_()
        refused.append(route.request.url)
        return route.fulfill(status=429, json=BUSY, headers={"retry-after": "0.1"})

    at.page.route("**/verdict", once)
    at.give_reds(230, 20, 210)
    judged = "document.querySelectorAll('#queue-list .mark.unsafe, #queue-list .mark.safe').length"
    at.wait_until(lambda: len(refused) == 3)
    at.page.wait_for_function(f"() => {judged} >= 2")
    assert len(refused) == 3


def test_a_server_that_still_loads_is_asked_until_it_is_ready(desk) -> None:
    at = desk(opened=False)
    at.forgiven = ("status of 503",)
    refuse(at, "**/v1/server", 503)
    at.page.goto(at.address)
    expect(at.page.locator("#banner-text")).to_contain_text("It is asked again on its own.")
    at.page.unroute("**/v1/server")
    at.page.wait_for_selector("#categories li")
    expect(at.page.locator("#banner")).to_be_hidden()


def test_a_refused_upload_stays_in_its_dialog(desk) -> None:
    at = desk()
    at.forgiven = ("status of 413",)
    at.page.route(
        "**/v1/queue", lambda route: route.fulfill(status=413, json={"error": {"message": "Too large."}})
    )
    files = [{"name": "a.png", "mimeType": "image/png", "buffer": picture(red=230)}]
    at.page.set_input_files("#files", files)
    at.page.fill("#add-prompt", "words that took long to write")
    at.page.click("#add-go")
    expect(at.page.locator("#add-error")).to_have_text("Too large.")
    assert at.page.input_value("#add-prompt") == "words that took long to write"
    at.page.unroute("**/v1/queue")
    at.page.click("#add-go")
    at.verdict("unsafe")


def test_a_folder_that_is_not_allowed(desk) -> None:
    at = desk()
    at.forgiven = ("status of 403",)
    at.page.keyboard.press("u")
    at.page.click("#folder-part summary")
    at.page.fill("#folder", "inbox")
    at.page.click("#folder-go")
    expect(at.page.locator("#add-error")).to_contain_text("--queue-folder")


def test_a_folder_of_the_server(desk, tmp_path) -> None:
    folder = tmp_path / "drop" / "inbox"
    folder.mkdir(parents=True)
    for name, red in (("a.png", 230), ("b.png", 20)):
        (folder / name).write_bytes(picture(red=red))
    at = desk(rule_service(queue_folder=tmp_path / "drop"))
    at.page.keyboard.press("u")
    at.page.click("#folder-part summary")
    at.page.fill("#folder", "inbox")
    at.page.click("#folder-go")
    at.verdict("unsafe")
    at.count_is(2, 0, 0)
    (folder / "c.png").symlink_to(tmp_path / "elsewhere.png")
    at.page.keyboard.press("u")
    at.page.click("#folder-go")
    expect(at.page.locator("#add-error")).to_contain_text("0 images added. 2 images in the queue already.")


def test_what_is_added_while_the_list_is_fetched_is_not_lost(desk) -> None:
    at = desk(opened=False)
    late = []
    at.page.route("**/v1/queue?*", lambda route: late.append((route, route.fetch())))
    at.open()
    at.wait_until(lambda: late)
    at.page.set_input_files(
        "#files", [{"name": "a.png", "mimeType": "image/png", "buffer": picture(red=230)}]
    )
    at.page.click("#add-go")
    at.page.wait_for_timeout(200)  # a page that did not wait for the list would upload now
    [(route, known_before)] = late
    route.fulfill(response=known_before)
    at.verdict("unsafe")
    at.count_is(1, 0, 0)


def test_an_answer_that_comes_late_does_not_replace_another_image(desk) -> None:
    at = desk()
    held = []
    at.page.route("**/queue/1/verdict", lambda route: held.append(route))
    at.give_reds(230, 20)
    at.page.keyboard.press("n")
    at.shown("red-20.png")
    at.verdict("safe")
    held[0].continue_()
    at.page.wait_for_selector("#queue-list li:first-child .mark.unsafe")
    assert at.verdict("safe").startswith("Safe")
