"""`arbiter data`: look at a data set before anything is trained on it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prompts.printable import printable_lines

from .completion import complete_taxonomy
from .exit_codes import EXIT_FLAGGED, EXIT_SAFE
from .options import JsonOption, quiet_libraries

data_app = typer.Typer(rich_markup_mode=None, help="Look at a data set before training on it.")

CHECK_EPILOG = (
    "Exit codes: 0 no errors, 1 errors that would stop a training, 2 the question itself cannot be understood. Images "
    "are opened once each, which takes minutes for tens of thousands."
)


@data_app.command("check", epilog=CHECK_EPILOG)
def check(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="folder:PATH, folder:TABLE::IMAGES, or another that recipes take."
        ),
    ],
    taxonomy: Annotated[
        str,
        typer.Option(
            "--taxonomy",
            metavar="NAME|FILE",
            help="The categories it is to be used with.",
            autocompletion=complete_taxonomy,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="The training's YAML; own_data.yaml lies under it."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Say what is wrong with labelled images: rows, splits, categories, copies, what gives labels away."""
    quiet_libraries()
    from judge.data.check import check_data
    from prompts.taxonomy_file import load_taxonomy

    found = check_data(dataset, load_taxonomy(taxonomy), **_options(config))
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        print(printable_lines(found.to_text()))
    return EXIT_FLAGGED if found.errors else EXIT_SAFE


def _options(config: Path | None) -> dict[str, Any]:
    """The options of a training that decide what its data have to hold: those for own data, and a YAML's over them."""
    from judge.errors import ConfigError
    from prompts.flip import FlipOptions

    from .recipe_files import recipes_folder

    given = _read(recipes_folder() / "configs" / "own_data.yaml") | ({} if config is None else _read(config))
    numbers = ("held_out", "groups_per_epoch", "least_groups", "max_failures")
    try:
        flip = FlipOptions(**(given.get("flip") or {}))
    except TypeError as error:
        raise ConfigError(f"{config}, flip: {error}; its fields are those of prompts.FlipOptions.") from None
    return {"flip": flip, **{name: given[name] for name in numbers if given.get(name) is not None}}


def _read(config: Path) -> dict[str, Any]:
    import yaml

    from judge.errors import ConfigError
    from judge.runs.files import nearest_path

    try:
        read = yaml.safe_load(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{config}: no such file{nearest_path(str(config))}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{config} cannot be read as YAML: {error}") from error
    if not isinstance(read, Mapping):
        raise ConfigError(f"{config} holds no options (NAME: VALUE, one a line).")
    return dict(read)
