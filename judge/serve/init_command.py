"""`arbiter init`: write everything that a training on one's own images needs."""

from pathlib import Path
from typing import Annotated

import typer

from prompts.printable import printable_lines

from .completion import complete_taxonomy

INIT_EPILOG = (
    "Nothing is overwritten: a file that is there stays as it is, and is read by the commands that follow."
)


def init(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder to write into.")],
    images: Annotated[
        Path,
        typer.Option("--images", metavar="DIR", help="Images, with a table or in folders named by class."),
    ],
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="FILE", help="The table, if it is elsewhere."),
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            "--taxonomy",
            metavar="NAME|FILE",
            help="Your categories; by default those found in the data.",
            autocompletion=complete_taxonomy,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="HUB_ID|DIR",
            help="A real model, on a GPU; by default tiny-llava.",
        ),
    ] = None,
) -> None:
    """Write taxonomy, table, training and commands for your own images."""
    from judge.data.project import init_project

    made = init_project(project, images, table=table, taxonomy=taxonomy, values=_values(base))
    print(printable_lines("Images: " + ", ".join(f"{count:,} {name}" for name, count in made.counts.items())))
    for path in made.written:
        print(printable_lines(f"Wrote {path}"))
    for path in made.kept:
        print(printable_lines(f"Kept {path}, which was there"))
    if Path(made.taxonomy).is_file():
        print(printable_lines(f"\nSay in {made.taxonomy} what each category means (marked FILL IN). Then:"))
    else:
        print("\nThen:")
    for what, line in made.commands:
        print(printable_lines(f"  # {what}\n  {line}"))


def _values(base: str | None) -> str:
    """The training's values: recipes/configs/own_data.yaml, and over it own_data_7b.yaml for a real base."""
    import yaml

    from judge.standins.shipped import SHIPPED

    from .recipe_files import recipes_folder

    configs = recipes_folder() / "configs"
    values = yaml.safe_load((configs / "own_data.yaml").read_text(encoding="utf-8"))
    if base is not None and base not in SHIPPED:
        values |= yaml.safe_load((configs / "own_data_7b.yaml").read_text(encoding="utf-8"))
    return yaml.safe_dump(values | ({"model_name_or_path": base} if base else {}), sort_keys=False)
