"""`arbiter taxonomy`: list, show, check, compare and test taxonomies."""

import json
from pathlib import Path
from typing import Annotated

import typer

from prompts.printable import printable

from .completion import complete_taxonomy
from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, print_stderr
from .options import JsonOption
from .taxonomy_test_command import TEST_EPILOG, judge_cases
from .terminal import Terminal

taxonomy_app = typer.Typer(rich_markup_mode=None, help="List, show, check, compare or test taxonomies.")

NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="One that ships, or a YAML file.", autocompletion=complete_taxonomy),
]


@taxonomy_app.command("list")
def list_taxonomies(as_json: JsonOption = False) -> None:
    """List the taxonomies that ship."""
    from prompts.taxonomy_file import load_taxonomy, shipped_taxonomies

    found = [(name, load_taxonomy(name)) for name in shipped_taxonomies()]
    if as_json:
        rows = [
            {"name": name, "version": one.version, "hash": one.hash, "categories": list(one.names)}
            for name, one in found
        ]
        print(json.dumps(rows))
        return
    Terminal().table(
        ("name", "version", "categories", "hash"),
        [(name, one.version, len(one), one.short_hash) for name, one in found],
        header=False,
    )


@taxonomy_app.command("show")
def show_taxonomy(name: NameArgument, as_json: JsonOption = False) -> None:
    """Print one as YAML, ready to be changed."""
    from prompts.taxonomy_file import load_taxonomy

    taxonomy = load_taxonomy(name)
    if as_json:
        print(json.dumps({**taxonomy.to_dict(), "hash": taxonomy.hash}))
    else:
        print(taxonomy.to_yaml(), end="")


@taxonomy_app.command("check")
def check_taxonomy(
    file: Annotated[Path, typer.Argument(metavar="FILE")], as_json: JsonOption = False
) -> None:
    """Check a YAML file."""
    from judge.runs.files import nearest_path
    from prompts.cautions import cautions
    from prompts.errors import TaxonomyError
    from prompts.taxonomy_file import load_taxonomy

    if not file.is_file():
        raise TaxonomyError(
            f"{file} is no file{nearest_path(str(file))}; `arbiter taxonomy show NAME` prints shipped ones."
        )
    taxonomy = load_taxonomy(file)
    found = [line for category in taxonomy for line in cautions(category)]
    if as_json:
        about = {"name": taxonomy.name, "version": taxonomy.version, "hash": taxonomy.hash}
        print(json.dumps({"file": str(file), **about, "categories": list(taxonomy.names), "cautions": found}))
        return
    print(f"{printable(file)}: {taxonomy.name}, {len(taxonomy)} categories, hash {taxonomy.short_hash}")
    for caution in found:
        print_stderr(f"warning: {caution}")


@taxonomy_app.command("diff")
def diff_taxonomies(
    old: Annotated[str, typer.Argument(metavar="OLD", autocompletion=complete_taxonomy)],
    new: Annotated[str, typer.Argument(metavar="NEW", autocompletion=complete_taxonomy)],
    as_json: JsonOption = False,
) -> int:
    """Show what changed; exit code 0: no category did, 1: some did.

    Categories are added, removed, renamed, reworded word by word, or otherwise changed. A category is the same one by
    its key, else by its name, else by its definition.
    """
    from prompts.taxonomy_file import load_taxonomy

    from .taxonomy_diff import compare_taxonomies, diff_lines

    before, after = load_taxonomy(old), load_taxonomy(new)
    diff = compare_taxonomies(before, after)
    if as_json:
        print(json.dumps(diff.to_dict()))
    elif not diff.same:
        terminal = Terminal()
        for line in diff_lines(diff, before, after):
            terminal.line(line)
    return EXIT_SAFE if diff.same else EXIT_FLAGGED


taxonomy_app.command("test", epilog=TEST_EPILOG)(judge_cases)
