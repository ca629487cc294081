"""What must be immediate: importing the packages and asking for help, in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "sklearn",
    "numpy",
    "PIL",
    "peft",
    "trl",
    "accelerate",
    "matplotlib",
)
_REPORT = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{_REPORT}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import judge, prompts",
        "import prompts.taxonomy, prompts.template, prompts.verdict, prompts.flip",
        "import judge.serve.cli, judge.serve.commands, judge.errors",
        "from prompts import load_taxonomy; load_taxonomy('digits')",
        "from judge.serve.cli import main; main(['--help'])",
        "from judge.serve.cli import main; main(['taxonomy', 'list'])",
        "from judge.serve.cli import main\nmain(['recipes', 'list'])",
    ],
)
def test_light_imports(code: str) -> None:
    assert loaded_by(code).isdisjoint(HEAVY)


def test_images_need_no_torch() -> None:
    assert loaded_by("from judge import open_image, load_examples, check_splits").isdisjoint(
        {"torch", "transformers"}
    )


def test_importing_the_packages_needs_no_environment_and_changes_none() -> None:
    code = "import os; before = dict(os.environ)\nimport judge, prompts, eval, adversarial\nassert dict(os.environ) == before"
    assert "judge" in loaded_by(code)


def cpu_seconds_of_children() -> float:
    used = os.times()
    return used.children_user + used.children_system


def test_help_is_immediate() -> None:
    """0.3 seconds of a core; the best of several runs, since other work may share the machine."""
    seconds = []
    for _ in range(5):
        start = cpu_seconds_of_children()
        done = subprocess.run(
            [sys.executable, "-m", "judge.serve.cli", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(cpu_seconds_of_children() - start)
        assert "Judge files, folders" in done.stdout
    assert min(seconds) < 0.3
