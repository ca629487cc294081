"""Draw a sheet of example scenes of the data `signs`, with the groups that each shows.

    python scripts/draw_signs.py --out docs/signs.jpg

The last row is of the split `new_styles`, drawn in styles that nothing here is trained on.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from judge.standins.signs.examples import signs_examples
from judge.standins.signs.scenes import CANVAS
from prompts import Example

GAP, LINE = 8, 30


def sheet(rows: list[list[Example]]) -> Image.Image:
    """The pictures in rows, what each violates written below it."""
    columns = max(map(len, rows))
    drawn = Image.new("RGB", (columns * (CANVAS + GAP) + GAP, len(rows) * (CANVAS + LINE) + GAP), "white")
    pen = ImageDraw.Draw(drawn)
    for y, row in enumerate(rows):
        for x, example in enumerate(row):
            left, top = GAP + x * (CANVAS + GAP), GAP + y * (CANVAS + LINE)
            drawn.paste(example.image, (left, top))
            below = ", ".join(sorted(example.violates)) or "nothing"
            pen.text(
                (left, top + CANVAS + 2), below.replace(", ", "\n", 1) if len(below) > 18 else below, "black"
            )
    return drawn


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/signs.jpg"))
    parser.add_argument("--columns", type=int, default=7)
    options = parser.parse_args()
    known = signs_examples("test", count=3 * options.columns)
    rows = [known[start : start + options.columns] for start in range(0, len(known), options.columns)]
    sheet([*rows, signs_examples("new_styles", count=options.columns)]).save(
        options.out, quality=85, optimize=True
    )


if __name__ == "__main__":
    main()
