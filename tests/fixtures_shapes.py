"""Fixtures: data as a user would bring it, with a taxonomy of its own, and classifiers trained on it."""

import pytest

SHAPES = {
    "ring": ("Ring", "a round outline, a circle drawn with a line; a hoop"),
    "bars": ("Bars, upright", "upright bars side by side; a fence"),
    "cross": ("Painter's cross", "two lines that cross; an X"),
    "corner": ("Corner", "one filled corner of the picture"),
}
"""Categories of the pictures in `shapes`: key -> name and definition; names that command lines have to quote."""


def draw_shapes(keys, rng):
    """A picture of 32 x 32 with the shapes in `keys`, each in ink and at a place of its own, on a ground with noise."""
    import numpy as np
    from PIL import Image, ImageDraw

    ground = rng.integers(150, 250, 3) + rng.integers(-12, 6, (32, 32, 3))
    picture = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for key in keys:
        ink = tuple(int(value) for value in rng.integers(0, 90, 3))
        x, y, size = (int(value) for value in (*rng.integers(0, 16, 2), rng.integers(10, 16)))
        if key == "ring":
            draw.ellipse((x, y, x + size, y + size), outline=ink, width=2)
        elif key == "bars":
            for place in range(x, x + size, 5):
                draw.rectangle((place, y, place + 1, y + size), fill=ink)
        elif key == "cross":
            draw.line((x, y, x + size, y + size), fill=ink, width=2)
            draw.line((x, y + size, x + size, y), fill=ink, width=2)
        else:
            draw.polygon(((0, 0), (size, 0), (0, size)), fill=ink)
    return picture


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Data that is not digits, as a user would bring it: a folder of pictures with a CSV, and a taxonomy file.

    `dataset` (`folder:PATH`) and `taxonomy` (a path) are what recipes take; both paths hold spaces. A third of the
    pictures is harmless, every third prompt is missing, and no prompt says what its picture shows.
    """
    import csv
    from types import SimpleNamespace

    import numpy as np
    import yaml

    home = tmp_path_factory.mktemp("shapes")
    folder = home / "my pictures"
    (folder / "files").mkdir(parents=True)
    rng, keys = np.random.default_rng(3), list(SHAPES)
    lines = []
    for split, count in (("train", 72), ("validation", 72), ("test", 48)):
        for number in range(count):
            shown = [str(key) for key in rng.choice(keys, size=number % 3, replace=False)]
            path = folder / "files" / f"{split} {number}.png"
            draw_shapes(shown, rng).save(path)
            line = {
                "path": f"files/{path.name}",
                "prompt": ("", "a picture", f"drawing number {number}, in colour")[number // 3 % 3],
                "label": "unsafe" if shown else "safe",
                "categories": ";".join(shown),
                "split": split,
            }
            lines.append(line)
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, lines[0].keys())
        table.writeheader()
        table.writerows(lines)
    taxonomy = home / "my taxonomy.yaml"
    categories = [{"name": name, "key": key, "definition": text} for key, (name, text) in SHAPES.items()]
    about = {"name": "shapes of ours", "version": 1, "categories": categories}
    taxonomy.write_text(yaml.safe_dump(about, sort_keys=False))
    return SimpleNamespace(dataset=f"folder:{folder}", taxonomy=str(taxonomy), folder=folder)


def save_in_brief(figure, file, **_):
    """An SVG of what a figure says and its plots hold: laying out and drawing it is a quarter of a short recipe."""
    from html import escape

    held = []
    for axes in figure.axes:
        held += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        held += [text.get_text() for text in axes.texts]
        held += [(line.get_label(), line.get_xydata().tolist()) for line in axes.lines]
        held += [(group.get_label(), group.get_offsets().tolist()) for group in axes.collections]
        held += [patch.get_extents().bounds for patch in axes.patches]
    text = escape("\n".join(map(repr, held)))
    file.write(f'<svg xmlns="http://www.w3.org/2000/svg"><desc>{text}</desc></svg>'.encode())


@pytest.fixture(scope="session")
def run_recipe():
    """`run_recipe(name, *words, rows=8, ...)` runs a recipe in this process and gives back what it prints.

    Its figures are `save_in_brief`, unless `drawn` is true.
    """
    import importlib.util
    import io
    import sys
    from contextlib import redirect_stdout
    from pathlib import Path

    recipes = Path(__file__).resolve().parent.parent / "recipes"

    def run(name, *given, drawn=False, **options):
        words = [f"{name}.py", *map(str, given)]
        for option, value in options.items():
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.setattr(sys, "argv", words)
            if not drawn:
                patch.setattr("matplotlib.figure.Figure.savefig", save_in_brief)
            spec = importlib.util.spec_from_file_location(f"recipe_{name}", recipes / words[0])
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)  # checkpoints pickle the class of its arguments
            spec.loader.exec_module(module)
            module.main()
        return printed.getvalue()

    return run


TRAINER_OPTIONS = {
    "max_steps": 2,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "obedience_rows": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def shapes_judge(shapes, run_recipe, base_folder, tmp_path_factory):
    """A judge of `shapes` after two steps: `run`, its folder, and `printed`."""
    from types import SimpleNamespace

    home = tmp_path_factory.mktemp("judge of shapes")
    (home / "small.yaml").write_text("flip: {group_size: 4, max_categories: 2}\n")
    printed = run_recipe(
        "lora_llava",
        config=home / "small.yaml",
        model_name_or_path=base_folder(),
        dataset=shapes.dataset,
        taxonomy=shapes.taxonomy,
        held_out="corner",
        output_dir=home / "a judge",
        groups_per_epoch=50,
        test_rows=16,
        judge_batch_size=32,
        **TRAINER_OPTIONS,
    )
    return SimpleNamespace(run=home / "a judge", printed=printed)


@pytest.fixture(scope="session")
def shapes_student(shapes, shapes_judge, run_recipe, tmp_path_factory):
    """A student of `shapes_judge` after two steps: `run`, its folder, and `printed`."""
    from types import SimpleNamespace

    home = tmp_path_factory.mktemp("student of shapes")
    printed = run_recipe(
        "distill_cross_attention",
        teacher=shapes_judge.run,
        encoder="tiny-clip",
        dataset=shapes.dataset,
        taxonomy=shapes.taxonomy,
        held_out="corner",
        output_dir=home / "a student",
        cache=home / "features",
        inner=32,
        heads=2,
        rank=8,
        lessons=6,
        eval_rows=16,
        test_rows=16,
        **TRAINER_OPTIONS,
    )
    return SimpleNamespace(run=home / "a student", printed=printed)
