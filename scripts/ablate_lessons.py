"""Train the judge without each part of its lessons, and show what every part is worth.

    python scripts/ablate_lessons.py --out runs/ablation
    python scripts/ablate_lessons.py --out runs/ablation --parts nonsense distract --steps 150 --rows 120

Each line of the table is a run of recipes/lora_llava.py with one share of `FlipOptions` at 0, measured by
recipes/obedience.py. Both print their own progress; a run whose metrics.json is there already is not repeated. On two
cores a line takes as long as `make demo` and a few minutes more, so about three hours in all.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from prompts.flip.options import POLICY_PARTS, PROMPT_PARTS

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "recipes" / "configs" / "lora_llava.yaml"
WHOLE = "whole"
PARTS = (WHOLE, "restyle", "reprompt", "balance", *POLICY_PARTS, *PROMPT_PARTS)
COLUMNS = {
    "plain F1": ("judge", "after", "f1"),
    "held-out F1": ("judge", "after", "heldout_f1"),
    "lesson families": ("obedience", "lesson_families", "mean_f1"),
    "worst": ("obedience", "lesson_families", "worst_f1"),
    "unseen families": ("obedience", "unseen_families", "mean_f1"),
    "worst unseen": ("obedience", "unseen_families", "worst_f1"),
}
"""Head of a column -> where its number lies."""


def train_without(part: str, folder: Path, steps: int | None) -> None:
    """Train the judge with this share at 0; `whole` with all of them."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    if part != WHOLE:
        config["flip"] = {**config["flip"], part: 0.0}
    if steps is not None:
        config |= {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no"}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "judge.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    _run("lora_llava.py", "--config", path, "--output_dir", folder / "judge")


def measure(folder: Path, rows: int) -> None:
    """Ask the trained judge in every wording."""
    judge, out = folder / "judge", folder / "obedience"
    _run("obedience.py", "--judge", judge, "--output_dir", out, "--rows", rows, "--before", "none")


def numbers(folder: Path) -> dict[str, float]:
    """One line of the table."""
    found: dict[str, Any] = {
        name: json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
        for name in ("judge", "obedience")
    }
    return {head: found[run][group][key] for head, (run, group, key) in COLUMNS.items()}


def format_table(lines: dict[str, dict[str, float]]) -> str:
    """Parts left out, and what is left without each of them."""
    head = f"{'without':14}" + "".join(f"{name:>17}" for name in COLUMNS)
    body = (
        f"{'-' if part == WHOLE else part:14}" + "".join(f"{line[name]:17.3f}" for name in COLUMNS)
        for part, line in lines.items()
    )
    return "\n".join([head, *body])


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="shares to set to 0")
    parser.add_argument("--steps", type=int, help="of training; by default as the demo's")
    parser.add_argument("--rows", type=int, default=240, help="questions of the obedience suite")
    options = parser.parse_args()
    lines: dict[str, dict[str, float]] = {}
    for part in dict.fromkeys((WHOLE, *options.parts)):
        folder = options.out / part
        if not (folder / "judge" / "metrics.json").is_file():
            train_without(part, folder, options.steps)
        if not (folder / "obedience" / "metrics.json").is_file():
            measure(folder, options.rows)
        lines[part] = numbers(folder)
        print(format_table(lines), flush=True)


def _run(recipe: str, *options: object) -> None:
    subprocess.run([sys.executable, ROOT / "recipes" / recipe, *map(str, options)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
