"""How a recipe ends: a few pictures to try the run on, and commands that can be typed as they are printed."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from judge.data.images import open_image
from judge.runs.folder import RunDir
from judge.runs.references import is_address
from judge.serve.recipe_files import recipes_folder
from prompts.example import Example


def command(*words: object) -> str:
    """The words as a shell takes them, quoted where they have to be."""
    return shlex.join(map(str, words))


def recipe_beside(recipe: str | Path, name: str) -> Path:
    """Another recipe's file: the one beside `recipe`, or, beside a copy, the one that is installed.

    Seen from the working folder, where it lies in there.
    """
    found = Path(recipe).resolve().with_name(f"{name}.py")
    if not found.is_file():
        found = recipes_folder() / found.name
    here = Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


def data_words(dataset: str, taxonomy: Path, held_out: Sequence[str]) -> list[str]:
    """The options of another recipe that shall go on with the same data: its source, categories, and those held out."""
    return ["--dataset", dataset, "--taxonomy", str(taxonomy), "--held_out", *held_out]


def save_examples(run: RunDir, examples: Sequence[Example], count: int = 8) -> list[Path]:
    """A few test images beside the classifier, to try it on."""
    folder = run.path / "examples"
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for example in examples[:count]:
        violated = "-".join(sorted(example.violates)) or "nothing"
        paths.append(folder / f"{len(paths)}-{violated}.png".replace(os.sep, "_").replace(" ", "_"))
        open_image(example.image).save(paths[-1])
    return paths


def try_it(run: RunDir, examples: Sequence[Example], *, categories: int = 0) -> str:
    """`arbiter judge` on a test image, by the run's own taxonomy or only so many categories of it."""
    shown = save_examples(run, examples)
    # A comma parts categories on the command line, so a name that holds one cannot be asked for there.
    names = [name for name in run.taxonomy.names if "," not in name][:categories]
    words = ["arbiter", "judge", shown[0] if shown else "IMAGE", "--judge", run.path]
    judge = run.manifest.get("judge")
    named = judge.get("name", "") if isinstance(judge, dict) else ""
    if is_address(named):  # a run contacts no host that the command does not name
        words += ["--stage-judge", named]
    return command(*words, *([f"--categories={','.join(names)}"] if names else []))
