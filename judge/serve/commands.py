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
from .decisions_command import decisions_app
from .doctor_command import doctor
from .judge_command import JUDGE_EPILOG, judge_images
from .options import JsonOption, quiet_libraries
from .serve_command import SERVE_EPILOG, serve
from .taxonomy_commands import taxonomy_app
from .terminal import Terminal

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
app.command("calibrate", epilog=CALIBRATE_EPILOG, short_help="Fit a threshold for each category.")(
    calibrate_thresholds
)

app.command("serve", epilog=SERVE_EPILOG, short_help="Answer over HTTP, and show a page for moderators.")(
    serve
)


# Options and --help of these are the recipe's: Typer passes on every word as it is.
_ALL_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(
    add_help_option=False,
    context_settings=_ALL_WORDS,
    short_help="Attack classifiers and report their robust accuracy.",
)
def attack(context: typer.Context) -> int:
    """Run recipes/attack.py on `arbiter attack VICTIM... OPTION...`; all options are the recipe's own."""
    return _run_recipe(context, "attack", "--victims")


@app.command(
    add_help_option=False,
    context_settings=_ALL_WORDS,
    short_help="Measure whether a classifier obeys a taxonomy in any wording.",
)
def obedience(context: typer.Context) -> int:
    """Run recipes/obedience.py on `arbiter obedience JUDGE OPTION...`; all options are the recipe's own."""
    return _run_recipe(context, "obedience", "--judge")


@app.command(
    add_help_option=False,
    context_settings=_ALL_WORDS,
    short_help="Benchmark any classifiers on labelled images.",
)
def bench(context: typer.Context) -> int:
    """Run recipes/unsafebench.py on `arbiter bench CLASSIFIER... OPTION...`; all options are the recipe's own."""
    return _run_recipe(context, "unsafebench", "--classifiers")


@app.command(
    add_help_option=False,
    context_settings=_ALL_WORDS,
    short_help="Build a corpus: prompts, pictures drawn from them, labels on the pictures.",
)
def corpus(context: typer.Context) -> int:
    """Run recipes/build_corpus.py on `arbiter corpus OPTION...`; all options are the recipe's own."""
    return _run_recipe(context, "build_corpus", "--prompts")


@app.command(
    add_help_option=False,
    context_settings=_ALL_WORDS,
    short_help="Train a detector inside a diffusion model's loop.",
)
def detector(context: typer.Context) -> int:
    """Run recipes/diffusion_detector.py on `arbiter detector PROMPTS OPTION...`; all options are the recipe's own."""
    return _run_recipe(context, "diffusion_detector", "--prompts")


def _run_recipe(context: typer.Context, name: str, option: str) -> int:
    """Run a recipe on the words after its command; what stands before the first option are values of `option`."""
    from .recipe_files import run_recipe

    words = context.args
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    values = [option, *words[:count]] if count else []
    debug = ["--debug"] if context.find_root().params["debug"] else []
    return run_recipe(name, [*values, *words[count:], *debug])


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
) -> None:
    """Merge a run's adapter into its base, for other engines."""
    quiet_libraries()
    from judge.vlm.adapter import merge_run

    merge_run(run, out)
    print(f"Wrote {printable(out)}")


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


app.command("doctor", short_help="Look for what is missing or broken here.")(doctor)
app.add_typer(taxonomy_app, name="taxonomy")
app.add_typer(decisions_app, name="decisions")
app.add_typer(annotate_app, name="annotate")
app.add_typer(recipes_app, name="recipes")
