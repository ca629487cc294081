"""What a recipe prints at its end: commands to run next, with a few images to try the run on."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from judge.data.images import open_image
from judge.runs.folder import RunDir
from judge.runs.references import is_address
from judge.serve.recipe_files import recipes_folder
from prompts.example import Example
from prompts.flip import names_no_category


def command(*words: object) -> str:
    """A command line of these words, quoted for a shell where necessary."""
    return shlex.join(map(str, words))


def recipe_beside(recipe: str | Path, name: str) -> Path:
    """Another recipe's file: the one beside `recipe`, or, beside a copy, the one that is installed.

    Relative to the working folder if it is inside.
    """
    found = Path(recipe).resolve().with_name(f"{name}.py")
    if not found.is_file():
        found = recipes_folder() / found.name
    here = Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


def data_words(dataset: str, taxonomy: Path, held_out: Sequence[str]) -> list[str]:
    """Options that make another recipe use the same data: its source, its taxonomy, and the held-out categories."""
    return ["--dataset", dataset, "--taxonomy", str(taxonomy), "--held_out", *held_out]


def save_examples(run: RunDir, examples: Sequence[Example], count: int = 8) -> list[Path]:
    """Save the first test images to the run folder, named by what they violate; returns their paths."""
    folder = run.path / "examples"
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []
    for example in examples[:count]:
        violated = "-".join(sorted(example.violates)) or "nothing"
        paths.append(folder / f"{len(paths)}-{violated}.png".replace(os.sep, "_").replace(" ", "_"))
        open_image(example.image).save(paths[-1])
    return paths


def try_it(run: RunDir, examples: Sequence[Example], *, categories: int = 0) -> str:
    """Save examples, and return the `arbiter judge` command for the first, with the first `categories` of the run.

    With all of them where no example names its category, as nothing was learned of fewer then.
    """
    shown = save_examples(run, examples)
    categories = 0 if names_no_category(examples) else categories
    # A comma separates categories on the command line, so a name with a comma cannot be given there.
    names = [name for name in run.taxonomy.names if "," not in name][:categories]
    words = ["arbiter", "judge", shown[0] if shown else "IMAGE", "--judge", run.path]
    judge = run.manifest.get("judge")
    named = judge.get("name", "") if isinstance(judge, dict) else ""
    if is_address(named):  # no host is contacted that the command does not name
        words += ["--stage-judge", named]
    return command(*words, *([f"--categories={','.join(names)}"] if names else []))
