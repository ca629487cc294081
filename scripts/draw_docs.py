"""Draw the two pictures of the README: one image under two policies, and the way from policy and image to a verdict.

    make demo                                            # the run that the image and its verdicts come from
    python scripts/draw_docs.py --run runs/demo --out docs

They are SVG of a few kB, follow the reader's choice of light or dark, and have a ground of their own, so that they can
be read on a page that does not. What `flip.svg` says is in `rows/after.jsonl` of the run: a pair that was judged right,
neither the surest nor the least sure (`eval.reports.flip_pair.choose_pair`).
"""

import argparse
import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from textwrap import shorten

from PIL import Image

from eval.metrics.judged import JudgedRow
from eval.reports.flip_pair import FlipPair, Side, flip_pair
from judge.data.examples import load_examples
from judge.data.images import open_image
from judge.runs.folder import RunDir
from prompts import load_taxonomy
from prompts.printable import printable

WIDTH = 720
LONGEST = 38
"""Characters of a definition that fit into a box."""
STYLE = """
  :root { --ground: #ffffff; --panel: #f4f6f8; --ink: #1d252c; --soft: #56616b; --line: #c9d1d8; --accent: #0b6583;
          --unsafe: #a8322a; --safe: #1f6d4a; }
  @media (prefers-color-scheme: dark) {
    :root { --ground: #12161b; --panel: #1b2129; --ink: #e6eaef; --soft: #a8b2bd; --line: #46525e; --accent: #7cc4e6;
            --unsafe: #ff9d94; --safe: #86d7aa; }
  }
  text { font: 16px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--ink); }
  .ground { fill: var(--ground); } .box { fill: var(--panel); stroke: var(--line); }
  .ours { fill: var(--panel); stroke: var(--accent); stroke-width: 2; }
  .title { font-weight: 700; } .soft { fill: var(--soft); font-size: 13px; } .middle { text-anchor: middle; }
  .unsafe { fill: var(--unsafe); font-weight: 700; } .safe { fill: var(--safe); font-weight: 700; }
  .large { font-size: 21px; } .way { fill: none; stroke: var(--accent); stroke-width: 2; marker-end: url(#head); }
  .way.thin { stroke-dasharray: 5 4; } .head { fill: var(--accent); }
"""


def main() -> None:
    """Draw both and say how large they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run of recipes/lora_llava.py")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder to write into")
    options = parser.parse_args()
    run = RunDir.open(options.run, kind="vlm")
    rows = [JudgedRow.from_dict(row) for row in run.read_rows("after")]
    pair = flip_pair(rows, run.taxonomy, run.metrics["after"]["threshold"])
    if pair is None:
        raise SystemExit(f"{options.run} has no image under two policies of opposite label.")
    picture = picture_of(run, pair)
    for name, drawn in (("flip.svg", draw_flip(pair, picture)), ("arbiter.svg", draw_overview(picture))):
        path = options.out / name
        path.write_text(drawn, encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1000:.1f} kB")


def picture_of(run: RunDir, pair: FlipPair) -> str:
    """The image of the pair as a `data:` URI."""
    config = run.config
    found = load_examples(config["dataset"], split="test", taxonomy=load_taxonomy(config["taxonomy"]))
    [image] = [open_image(one.image) for one in found.examples if one.id == pair.row.image]
    # Large pixels, as some viewers smooth them and some do not.
    large = image.resize((200, 200 * image.height // image.width), Image.Resampling.BICUBIC)
    saved = BytesIO()
    large.save(saved, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(saved.getvalue()).decode('ascii')}"


def draw_flip(pair: FlipPair, picture: str) -> str:
    """The image between the two policies, each with its verdict below."""
    height = 150 + 42 * max(len(side.policy) for side in pair.sides)
    parts = [
        *_policy(pair.sides[0], "Policy A forbids", 12, height),
        *_policy(pair.sides[1], "Policy B forbids", 454, height),
        f'<image href="{picture}" x="276" y="{height / 2 - 96:g}" width="168" height="168"/>',
        _text(360, height / 2 + 98, "the same image", "soft middle"),
    ]
    left, right = (side.verdict for side in pair.sides)
    return _svg(height, f"The same image is {left} under one policy and {right} under another.", parts)


def _policy(side: Side, title: str, left: int, height: int) -> list[str]:
    parts = [
        f'<rect class="box" x="{left}" y="12" width="254" height="{height - 24}" rx="10"/>',
        _text(left + 14, 40, title, "title"),
    ]
    for number, line in enumerate(side.policy):
        top = 70 + 42 * number
        parts += [
            _text(left + 14, top, line.name, "unsafe" if line.violated else ""),
            _text(left + 14, top + 18, shorten(line.definition, LONGEST, placeholder=" …"), "soft"),
        ]
    category = f": {side.row.category}" if side.verdict == "unsafe" and side.row.category else ""
    return [
        *parts,
        f'<path stroke="var(--line)" d="M{left} {height - 80}h254"/>',
        _text(left + 14, height - 50, side.verdict + category, f"large {side.verdict}"),
        _text(left + 14, height - 27, f"p(unsafe) {side.row.unsafe:.3f}", "soft"),
    ]


def draw_overview(picture: str) -> str:
    """Policy, image and prompt go into the judge; the judge teaches the student; a cascade asks both."""
    parts = [
        *_box((12, 12, 200, 92), "Policy", ["your categories,", "in your words"]),
        *_box((12, 118, 200, 92), "Image", ["any picture"]),
        f'<image href="{picture}" x="128" y="126" width="76" height="76"/>',
        *_box((12, 224, 200, 74), "Prompt", ["if there is one"]),
        *_box(
            (286, 78, 190, 156), "Judge", ["a vision-language", "model, tuned", "to obey the policy"], "ours"
        ),
        *_box((534, 78, 174, 156), "Verdict", ["unsafe, which", "category, how sure;", "safe; or unjudged"]),
        *_box((286, 300, 190, 92), "Student", ["small and fast;", "obeys policies, too"], "ours"),
        *_box((534, 300, 174, 92), "Cascade", ["filters, student and", "judge, in turn"], "ours"),
        '<path class="way" d="M212 58h34v66h36"/>',
        '<path class="way" d="M212 156h70"/>',
        '<path class="way" d="M212 261h34v-72h36"/>',
        '<path class="way" d="M476 156h54"/>',
        '<path class="way thin" d="M381 234v62"/>',
        _text(392, 271, "teaches", "soft"),
        '<path class="way thin" d="M476 346h54"/>',
        '<path class="way thin" d="M464 236c14 44 44 62 66 80"/>',
        '<path class="way" d="M621 300v-62"/>',
    ]
    label = (
        "A policy, an image and its prompt go into the judge, which gives a verdict. The judge teaches a student. A "
        "cascade asks cheap filters, the student and the judge in turn."
    )
    return _svg(404, label, parts)


def _box(place: tuple[int, int, int, int], title: str, lines: Sequence[str], style: str = "box") -> list[str]:
    left, top, width, height = place
    first = top + (height - 20 * len(lines) - 20) / 2 + 15
    return [
        f'<rect class="{style}" x="{left}" y="{top}" width="{width}" height="{height}" rx="10"/>',
        _text(left + 14, first, title, "title"),
        *(_text(left + 14, first + 22 + 20 * number, line, "soft") for number, line in enumerate(lines)),
    ]


def _text(left: float, top: float, words: str, style: str = "") -> str:
    return f'<text x="{left:g}" y="{top:g}" class="{style}">{escape(printable(words))}</text>'


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    """An SVG of this height; the label is read to those who do not see it."""
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">',
        f"<title>{escape(label)}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path class="head" d="M0 0l8 4-8 4z"/></marker></defs>',
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="12"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
