"""Take the picture of the page for moderators in docs/serving.md: a real server, pictures of signs, headless Chromium.

    make signs                                                  # the wheels that the pictures come from
    python scripts/shoot_page.py --out docs/page.jpg
    python scripts/shoot_page.py --out dark.png --dark --width 390 --height 844

The server is `arbiter serve` with the shipped student of signs, on a free port, with its state in a folder that is
removed at the end. Some of the pictures are flagged, some are safe, and one is no picture.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASKED = ("Weapons", "Alcohol", "Drugs", "Gambling", "Death", "Dangerous animals", "Hazards", "Religion")
"""Categories of `signs` that the moderator of the picture has ticked."""
PICTURES = 24
"""Scenes to choose from."""
SHOWN = "Alcohol"
"""Category of the picture that is shown."""
RAISED = ("Gambling", "0.92")
"""A category whose threshold was raised, and how far."""


def main() -> None:
    """Start the server, fill its queue, and take the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/page.jpg"), help="a .jpg or .png file")
    parser.add_argument("--judge", default="small-student", help="as of arbiter serve")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=820)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise SystemExit("No Chromium is installed; the picture is taken in it.")
    with serving(options.judge) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        size = {"width": options.width, "height": options.height}
        page = browser.new_page(
            viewport=size, color_scheme="dark" if options.dark else "light", reduced_motion="reduce"
        )
        page.set_default_timeout(120_000)  # the first step waits for the classifier
        review(page, address)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.out, **({"quality": 78} if options.out.suffix == ".jpg" else {}))
        browser.close()
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


@contextmanager
def serving(judge: str) -> Iterator[str]:
    """The address of `arbiter serve`, with a state folder that does not stay."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "judge.serve.cli", "serve", "--judge", judge, "--port", "0"]
        server = subprocess.Popen([*command, "--state", state], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        try:
            said = server.stderr.readline()  # arbiter: http://127.0.0.1:40123/v1 is the API, ...
            if "/v1" not in said:
                raise SystemExit(said + server.stderr.read())
            yield said.split()[1].removesuffix("/v1")
        finally:
            server.terminate()
            server.communicate(timeout=60)


def pictures() -> list[dict[str, Any]]:
    """Scenes as files, with what each was drawn from; and a file that is no picture."""
    from judge.standins.signs.examples import signs_examples

    found = []
    for number, example in enumerate(signs_examples("test", count=PICTURES)):
        written = io.BytesIO()
        example.image.save(written, "PNG")
        file = {"name": f"upload-{2101 + number}.png", "mimeType": "image/png", "buffer": written.getvalue()}
        found.append({"file": file, "prompt": example.prompt or ""})
    broken = {"name": "upload-2177.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff and no more"}
    return [*found[:5], {"file": broken, "prompt": ""}, *found[5:]]


def review(page: Any, address: str) -> None:
    """What a moderator did before the picture was taken."""
    page.add_init_script("localStorage.setItem('arbiter.blur', 'false')")
    page.goto(address)
    page.wait_for_selector("#categories li")
    page.click("#tick-none")
    for name in ASKED:
        page.click(f"#categories label:has-text('{name}')")
    for picture in pictures():
        page.set_input_files("#files", [picture["file"]])
        page.fill("#add-prompt", picture["prompt"])
        page.click("#add-go")
        page.wait_for_selector("#add-dialog", state="hidden")
    page.wait_for_function("() => !document.querySelector('#queue-list .mark.open')")
    # On a narrow screen the list is folded.
    page.locator(f"#queue-list button:has-text('{SHOWN}') >> nth=0").dispatch_event("click")
    page.wait_for_selector(f"#verdict.unsafe:has-text('{SHOWN}')")
    page.locator(f".category:has-text('{RAISED[0]}') input[type=number]").fill(RAISED[1])
    page.keyboard.press("Tab")
    page.wait_for_selector("#what-if:has-text('would change')")
    page.wait_for_selector("#box:visible")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1000)  # the shown image is asked once more, with the raised threshold


if __name__ == "__main__":
    main()
