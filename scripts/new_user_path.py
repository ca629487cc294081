"""From the wheel and 60 labelled images to a trained, reported, merged judge, by the commands of docs/own-data.md.

    python scripts/new_user_path.py                # minutes, and F1 on the data's test split; at most 10 on two cores
    python scripts/new_user_path.py --quick        # the same commands with three steps of training

The commands are parsed out of the page, so a page that is wrong fails here. The wheel is built from this checkout and
installed without its dependencies into a fresh environment that sees those of this one; nothing is downloaded. The
images are handwritten digits on grounds of their own, saved as PNG, with categories that are in no taxonomy of ours and
glyphs that the base was not trained on. The last line is JSON.
"""

import argparse
import csv
import json
import os
import re
import shlex
import site
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "own-data.md"
IMAGES = "my_images"
CATEGORIES = {"closed loops": (0, 8), "straight lines": (1, 7), "open curves": (3, 5)}
"""The user's categories -> the digits that violate them; the others are safe."""
QUICK = [
    "--max_steps",
    "3",
    "--test_rows",
    "8",
    "--eval_strategy",
    "no",
    "--obedience_rows",
    "0",
    "--least_groups",
    "50",
]
_TOGETHER = """\
import json, sys
from judge.serve import cli
for words in json.loads(sys.argv[1]):
    code = cli.main(words)
    if code > 1:
        sys.exit(f"{words} ended with {code}")
"""
"""Several commands in one process, where starting each would take most of the time."""


def main() -> None:
    """Draw the images, install the wheel, type the commands, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="three steps of training, all commands in few processes"
    )
    parser.add_argument("--images", type=int, default=60, help="how many images (default 60)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(walk(Path(folder), options.images, quick=options.quick)))


def walk(folder: Path, images: int = 60, *, quick: bool = False) -> dict[str, Any]:
    """Go the whole way in a folder; returns minutes and numbers.

    Raises:
        subprocess.CalledProcessError: a command of the page failed.
    """
    draw_images(folder / IMAGES, images)
    python = install(folder)
    started, printed = time.monotonic(), ""
    *_, init, check, train, judge, merge = page_commands()
    seconds = {}
    groups = (
        [[init], [check, train + QUICK, judge, merge]]
        if quick
        else [[one] for one in (init, check, train, judge, merge)]
    )
    for group in groups:
        before = time.monotonic()
        printed += run(python, group, folder)
        seconds[group[0][1]] = time.monotonic() - before
        if group[0] == init:
            define_categories(folder / init[2] / "taxonomy.yaml")
    print(printed, file=sys.stderr)
    result = Path(folder, judge[judge.index("--judge") + 1])
    metrics = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    for path in (result / "report.html", folder / merge[-1] / "config.json"):
        if not path.is_file():
            raise SystemExit(f"{path} was not written")
    return {
        "minutes": (time.monotonic() - started) / 60,
        "seconds": seconds,
        "images": images,
        "f1": metrics["after"]["f1"],
        "f1_interval": metrics["after"]["intervals"]["f1"],
        "test_images": metrics["after"]["images"],
        "f1_before": metrics["before"]["f1"],
        "learned": metrics["learned"]["sentence"],
    }


def page_commands() -> list[list[str]]:
    """The `arbiter` commands of the page's first section, in order."""
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[1]
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words and words[0] == "arbiter"]


def draw_images(folder: Path, count: int) -> None:
    """Pictures with a table: path, prompt, label, categories; a quarter of them is safe."""
    import numpy as np

    from judge.standins.digits import caption, compose

    folder.mkdir()
    rng = np.random.default_rng(20260)
    safe = [digit for digit in range(10) if not any(digit in digits for digits in CATEGORIES.values())]
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "prompt", "label", "categories"])
        for number in range(count):
            category = [*CATEGORIES, ""][number % 4]
            digit = int(rng.choice(CATEGORIES.get(category, safe)))
            source = ("real", "generated")[int(rng.random() < 0.4)]
            compose([digit], source, "test", rng).save(folder / f"{number:05}.png")
            label = "unsafe" if category else "safe"
            table.writerow([f"{number:05}.png", caption([digit], rng), label, category])


def define_categories(path: Path) -> None:
    """What the page asks the user to do by hand: say in the taxonomy what each category means."""
    text = path.read_text(encoding="utf-8")
    for name, (one, other) in CATEGORIES.items():
        text = text.replace(
            f'"anything that shows {name}"  # FILL IN', f"the digit {one} or the digit {other}"
        )
    if "FILL IN" in text:
        raise SystemExit(f"{path} has categories that the images have not:\n{text}")
    path.write_text(text, encoding="utf-8")


def install(folder: Path) -> Path:
    """The Python of a fresh environment with the wheel of this checkout."""
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, stdout=quiet)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    # Dependencies are those of this environment; what is installed here comes first.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, str(wheel)], check=True, env=clean_environment())
    found = subprocess.run(
        [python, "-c", "import judge; print(judge.__file__)"],
        check=True, text=True, capture_output=True, cwd=folder, env=clean_environment(),
    ).stdout  # fmt: skip
    if str(packages) not in found:
        raise SystemExit(f"The wheel is not what is imported: {found}")
    return python


def run(python: Path, commands: list[list[str]], folder: Path) -> str:
    """Run `arbiter` commands in the folder; what they print. An exit code of 1 is a verdict, not an error."""
    if len(commands) == 1:
        line: list[Any] = [python.with_name("arbiter"), *commands[0][1:]]
    else:
        line = [python, "-c", _TOGETHER, json.dumps([words[1:] for words in commands])]
    done = subprocess.run(
        line, cwd=folder, env=clean_environment(), text=True, capture_output=True, check=False
    )
    if done.returncode > 1 or done.returncode < 0 or (len(commands) > 1 and done.returncode):
        raise SystemExit(
            f"{shlex.join(map(str, line))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-6000:]
        )
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This process's, without what would lead to this checkout or to the hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
