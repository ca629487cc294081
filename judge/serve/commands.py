"""The commands of `arbiter`, in Typer: what each takes, and the function that does it.

Everything heavy is imported inside the command that needs it, so `arbiter --help` is immediate.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from prompts.printable import printable

from .annotate_commands import annotate_app
from .calibrate_command import CALIBRATE_EPILOG, calibrate_thresholds
from .completion import complete_recipe
from .data_commands import data_app
from .decisions_command import decisions_app
from .doctor_command import doctor
from .init_command import INIT_EPILOG, init
from .judge_command import JUDGE_EPILOG, judge_images
from .label_command import LABEL_EPILOG, label
from .options import JsonOption, quiet_libraries
from .publish_commands import PUSH_EPILOG, merge, push_run, write_run_card
from .serve_command import SERVE_EPILOG, serve
from .taxonomy_commands import taxonomy_app
from .terminal import Terminal
from .train_command import TRAIN_EPILOG, train

# No rich markup: importing rich would double the time of `--help`, and it draws boxes into logs.
app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
recipes_app = typer.Typer(rich_markup_mode=None, help="List the recipes, or copy one to change it.")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version  # slow to import and to read

    try:
        print(f"arbiter {version('arbiter-vision')}")
    except PackageNotFoundError:
        print("arbiter, from a checkout that is not installed")
    raise typer.Exit


@app.callback()
def arbiter(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="On an error, print where it happened; also allowed after the command."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Judge images by your own list of unsafe categories."""


app.command("judge", epilog=JUDGE_EPILOG, short_help="Judge files, folders, or paths from standard input.")(
    judge_images
)
app.command(
    "label", epilog=LABEL_EPILOG, short_help="Label millions of images: Parquet out, safe to run again."
)(label)
app.command("calibrate", epilog=CALIBRATE_EPILOG, short_help="Fit a threshold for each category.")(
    calibrate_thresholds
)

app.command("serve", epilog=SERVE_EPILOG, short_help="Answer over HTTP, and show a page for moderators.")(
    serve
)

app.command("init", epilog=INIT_EPILOG, short_help="Start a project from a folder of labelled images.")(init)
app.command(
    "train",
    epilog=TRAIN_EPILOG,
    short_help="Train a judge on your own images and categories.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},  # the recipe's own options
)(train)

_RECIPE_COMMANDS = {
    "attack": ("attack", "--victims", "Attack classifiers and report their robust accuracy."),
    "obedience": (
        "obedience",
        "--judge",
        "Measure whether a classifier obeys a taxonomy in any wording.",
    ),
    "bench": ("unsafebench", "--classifiers", "Benchmark any classifiers on labelled images."),
    "table": ("results_table", "--runs", "Put the numbers of runs in one table, for a paper."),
    "report": ("run_report", "--runs", "Write the report of a finished run anew."),
    "corpus": (
        "build_corpus",
        "--prompts",
        "Build a corpus: prompts, pictures drawn from them, labels on the pictures.",
    ),
    "detector": (
        "diffusion_detector",
        "--prompts",
        "Train a detector inside a diffusion model's loop.",
    ),
}
"""Command -> its recipe, the option that words before the first option are values of, and the help."""


def _add_recipe_command(command: str, recipe: str, option: str, about: str) -> None:
    """`arbiter COMMAND WORD... OPTION...` runs a recipe; options and --help are the recipe's own."""

    def run(context: typer.Context) -> int:
        return _run_recipe(context, recipe, option)

    # Typer passes on every word as it is.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(command, add_help_option=False, context_settings=settings, short_help=about)(run)


for _command, _about in _RECIPE_COMMANDS.items():
    _add_recipe_command(_command, *_about)


def _run_recipe(context: typer.Context, name: str, option: str) -> int:
    """Run a recipe on the words after its command; what stands before the first option are values of `option`."""
    from .recipe_files import run_recipe

    words = context.args
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    values = [option, *words[:count]] if count else []
    debug = ["--debug"] if context.find_root().params["debug"] else []
    return run_recipe(name, [*values, *words[count:], *debug])


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/student.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="File to write; others go beside it.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights in 8 bits: smaller, and often faster.")
    ] = False,
) -> None:
    """Write a student as ONNX, which needs no torch to judge."""
    quiet_libraries()
    from judge.student.export import export_student

    written = export_student(run, out, int8=int8)
    print(
        f"Wrote {printable(', '.join(map(str, written.files)))} ({written.megabytes:.1f} MB); largest difference of a "
        f"probability from PyTorch's on noise: {written.difference:.1e}"
    )


@recipes_app.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes and what they do."""
    from .recipe_files import recipe_names

    found = recipe_names()
    if as_json:
        print(json.dumps([{"name": name, "about": text} for name, text in found.items()]))
    else:
        Terminal().table(("name", "what it does"), list(found.items()), header=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_recipe)],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to copy into.")] = Path("."),
) -> None:
    """Copy a recipe and the configurations; never overwrites."""
    from . import recipe_files

    for path in recipe_files.copy_recipe(name, destination):
        print(printable(path))


app.command("card", short_help="Write the model card of a run.")(write_run_card)
app.command("push", epilog=PUSH_EPILOG, short_help="Publish a run on the Hugging Face hub.")(push_run)
app.command("merge", short_help="Merge a judge's adapter into its base, for other engines.")(merge)
app.command("doctor", short_help="Look for what is missing or broken here.")(doctor)
app.add_typer(taxonomy_app, name="taxonomy")
app.add_typer(data_app, name="data")
app.add_typer(decisions_app, name="decisions")
app.add_typer(annotate_app, name="annotate")
app.add_typer(recipes_app, name="recipes")
