"""Files of at most 400 lines and functions of at most 60 (docstrings aside), in everything that ships."""

import ast
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = ("prompts", "judge", "adversarial", "eval", "recipes", "scripts")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
ALLOWED: dict[str, str] = {}
"""`path` or `path:function` -> why it may be longer."""


def files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def functions(source: str) -> Iterator[tuple[str, int]]:
    """(name, lines without the docstring) of every function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, lines


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long.keys() - ALLOWED.keys(), long


def test_functions_are_short() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in files()
        for name, lines in functions(path.read_text(encoding="utf-8"))
        if lines > LONGEST_FUNCTION
    }
    assert not long.keys() - ALLOWED.keys(), long


def test_every_exception_is_still_needed() -> None:
    for entry in ALLOWED:
        path, _, name = entry.partition(":")
        source = (ROOT / path).read_text(encoding="utf-8")
        if name:
            assert max(lines for found, lines in functions(source) if found == name) > LONGEST_FUNCTION, entry
        else:
            assert len(source.splitlines()) > LONGEST_FILE, entry


def test_the_measure_leaves_docstrings_out() -> None:
    assert dict(functions('def f():\n    """One\n\n    two.\n    """\n    return 1\n')) == {"f": 2}


def test_no_drawers_for_odds_and_ends() -> None:
    names = {path.stem for path in files()}
    assert names.isdisjoint({"utils", "util", "helpers", "common", "misc", "manager"})


@pytest.mark.parametrize(("size", "code"), [(2**20, 0), (2**20 + 1, 1)])
def test_the_large_file_hook_works(tmp_path: Path, size: int, code: int) -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    [hook] = [hook for hook in config["repos"][0]["hooks"] if hook["id"] == "large-files"]
    _, *arguments = shlex.split(hook["entry"])
    (tmp_path / "file").write_bytes(bytes(size))
    done = subprocess.run(
        [sys.executable, *arguments, str(tmp_path / "file")], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("Larger than 1 MB" in done.stderr) == bool(code)


def test_nothing_else_is_tracked() -> None:
    """What a test or a command left at the root by mistake would be committed with the next `git add`."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    known = {
        *FOLDERS,
        "tests",
        "docs",
        "deploy",
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
        "Makefile",
        "LICENSE",
    }
    assert top <= known | {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "pyproject.toml",
        "constraints.txt",
        "mkdocs.yml",
        "CITATION.cff",
    }


def test_no_large_or_pickled_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    limits = {".safetensors": 12 * 2**20}  # the tiny models that ship
    assert not [path for path in paths if path.stat().st_size > limits.get(path.suffix, 2**20)]
    assert not [
        path
        for path in paths
        if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy"}
    ]
