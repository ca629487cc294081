"""Record the loss curve and scores that `tests/test_golden_lora.py` compares with.

    python scripts/record_golden.py

Trains `tiny-llava` for a few steps through `recipes/lora_llava.py`, scores fixed images with the shipped base, and
writes `tests/data/golden_lora.json` with versions and commit. A checkout with changes is refused, as the file names
the commit. Takes about a minute on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden_lora.json"
OPTIONS = {
    "max_steps": 6,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "limit": 200,
    "eval_rows": 16,
    "test_rows": 32,
    "obedience_rows": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "seed": 7,
}


def measure() -> dict[str, Any]:
    """Run the recipe in a new process and score a few images, in float32 on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--{name}={value}" for name, value in OPTIONS.items()]
        command = [sys.executable, "recipes/lora_llava.py", f"--output_dir={folder}/run", *flags]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        lines = (Path(folder) / "run" / "rows" / "history.jsonl").read_text().splitlines()
    return {
        "losses": [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry],
        "scores": base_scores(),
    }


def base_scores() -> list[list[float]]:
    """P(unsafe) of the shipped base on four test images under two policies."""
    import torch

    from judge import load_classifier
    from judge.standins.digits import digits_examples
    from prompts import load_taxonomy

    # Other numbers of threads add in another order, which changes the last digits.
    torch.set_num_threads(1)
    judge = load_classifier("tiny-llava", device="cpu")
    examples = digits_examples("test", count=4)
    digits = load_taxonomy("digits")
    return [
        judge.score([e.image for e in examples], [e.prompt for e in examples], policy).unsafe.tolist()
        for policy in (digits, digits.select(["three", "seven"]))
    ]


def main() -> None:
    """Measure, and write the numbers with versions and commit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    from judge.runs.machine import environment

    about = environment()
    if about["git"] is None or about["git"]["dirty"]:
        raise SystemExit("Commit first: golden numbers are recorded from a clean checkout.")
    made_by = {key: about[key] for key in ("machine", "packages", "git")}
    GOLDEN.write_text(json.dumps({"options": OPTIONS, **measure(), **made_by}, indent=2) + "\n")
    print(f"Wrote {GOLDEN.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
