"""`arbiter train FILE.yaml`: recipes/lora_llava.py with that YAML, in one process or under accelerate's launcher."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.names import nearest

from .exit_codes import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_SAFE

TRAIN_EPILOG = (
    "All options of recipes/lora_llava.py are understood, such as --output_dir, --learning_rate and "
    "--resume_from_checkpoint true; --recipe-help lists them. Exit codes: 0 trained, 2 an error, 130 stopped by Ctrl-C."
)
_LAUNCH = """\
import logging, subprocess, sys
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
try:
    launch_command(launch_command_parser().parse_args())
except (subprocess.CalledProcessError, ChildFailedError):
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
"""
"""`accelerate launch` without its own traceback: the recipe has said already what is wrong."""


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(metavar="FILE.yaml", help="The training, as `arbiter init` writes it.")
    ] = None,
    accelerate: Annotated[
        str | None,
        typer.Option(
            "--accelerate",
            metavar="NAME|FILE",
            help="Several processes: ddp, zero2, zero3, zero3_offload, or a file of `accelerate config`. "
            "By default ddp where there are several GPUs.",
        ),
    ] = None,
    recipe_help: Annotated[
        bool, typer.Option("--recipe-help", help="List the recipe's options and exit.")
    ] = False,
) -> int:
    """Train a judge on your own images and categories."""
    from .recipe_files import recipes_folder, run_recipe

    if recipe_help:
        return run_recipe("lora_llava", ["--help"])
    if config is None or not config.is_file():
        where = "none is given" if config is None else f"there is no {config}{nearest_path(str(config))}"
        raise ConfigError(
            f"`arbiter train` takes a YAML, and {where}; `arbiter init` writes one from your images."
        )
    words = ["--config", str(config), *context.args]
    recipes = recipes_folder()
    processes = 1 if accelerate else _gpus()
    if accelerate is None and processes < 2:
        code = run_recipe("lora_llava", words)
    else:
        profile = _profile(accelerate or "ddp", recipes)
        launcher = [sys.executable, "-c", _LAUNCH, "--config_file", str(profile)]
        launcher += [] if accelerate else ["--num_processes", str(processes)]
        code = subprocess.call([*launcher, str(recipes / "lora_llava.py"), *words])
    return code if code in (EXIT_SAFE, EXIT_INTERRUPTED) else EXIT_ERROR


def _gpus() -> int:
    from torch.cuda import device_count  # seconds to import, which the recipe needs as well

    return device_count()


def _profile(name: str, recipes: Path) -> Path:
    """The file of a profile that ships, or the user's own."""
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        if not Path(name).is_file():
            raise ConfigError(f"--accelerate: there is no {name}{nearest_path(name)}.")
        return Path(name)
    shipped = {path.stem: path for path in sorted((recipes / "configs" / "accelerate").glob("*.yaml"))}
    if name not in shipped:
        raise ConfigError(
            f"--accelerate has no profile {name!r}{nearest(name, list(shipped))}; it has {', '.join(shipped)}."
        )
    return shipped[name]
