"""Imports go one way: prompts and adversarial at the bottom, then judge, then eval, then recipes."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"prompts", "judge", "adversarial", "eval"}
MAY_IMPORT: dict[str, set[str]] = {
    "prompts": set(),
    "adversarial": set(),
    "judge": {"prompts"},
    "eval": {"prompts", "judge", "adversarial"},
    "recipes": PACKAGES,
    "scripts": PACKAGES,
    "tests": PACKAGES,
}
TOO_HEAVY_FOR_PROMPTS = {
    "torch",
    "transformers",
    "numpy",
    "sklearn",
    "datasets",
    "PIL",
    "accelerate",
    "peft",
    "trl",
}


def imports(source: str, package: list[str]) -> Iterator[tuple[str, bool]]:
    """(full dotted name, written relatively) for every import, those inside functions included.

    `package` is the dotted home of the file, as a list: ["judge", "vlm"] for judge/vlm/score.py.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module or "", False
            else:
                parent = package[: len(package) - node.level + 1] or ["outside"]
                yield ".".join([*parent, node.module or ""]).rstrip("."), True
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), False


def violations(path: Path, source: str) -> list[str]:
    """What a file of ours, at `path` below the root, imports against the rules."""
    folder, home = path.parts[0], list(path.parts[:-1])
    found = []
    for name, relative in imports(source, home):
        top = name.split(".")[0]
        if top in MAY_IMPORT and top != folder and top not in MAY_IMPORT[folder]:
            found.append(f"{path}: {folder} must not import {name}")
        if top in {"recipes", "scripts", "tests", "outside"}:
            found.append(f"{path}: nobody imports {name}")
        if relative and top != folder:
            found.append(f"{path}: relative import leaves the folder: {name}")
        if not relative and top == folder and folder in PACKAGES and name.split(".")[: len(home)] == home:
            found.append(f"{path}: write the import of {name} relatively, it is in the same folder")
        if folder == "prompts" and top in TOO_HEAVY_FOR_PROMPTS:
            found.append(f"{path}: prompts must stay light, without {top}")
    return found


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among `sources` (path -> text) that it imports, at any depth of its code."""
    homes = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    found: dict[str, set[str]] = {}
    for name, path in homes.items():
        package = path.split("/")[:-1]
        named = set()
        for node in ast.walk(ast.parse(sources[path])):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parent = package[: len(package) - node.level + 1] if node.level else []
                full = ".".join([*parent, *filter(None, [node.module])])
                # `from judge import runs` imports the module judge.runs, `from judge import Scores` the package.
                named |= {f"{full}.{a.name}" if f"{full}.{a.name}" in homes else full for a in node.names}
        found[name] = (named & homes.keys()) - {name}
    return found


def circles(arrows: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Groups of modules of which each leads back to itself through the others."""
    reach = {name: set(targets) for name, targets in arrows.items()}
    for through in arrows:  # Warshall's transitive closure
        for name in arrows:
            if through in reach[name]:
                reach[name] |= reach[through]
    return {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in arrows
        if name in reach[name]
    }


def rooms(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between folders; a file that stands directly in a package is a room of its own."""

    def room(module: str) -> str:
        parts = module.split(".")
        return module if len(parts) < 3 else ".".join(parts[:-1])

    found: dict[str, set[str]] = {}
    for name, targets in arrows.items():
        found.setdefault(room(name), set()).update({room(target) for target in targets} - {room(name)})
    return found


def our_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [Path(line) for line in listed.stdout.splitlines()]
    else:  # an unpacked source archive
        paths = [path.relative_to(ROOT) for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in set(paths) if path.parts[0] in MAY_IMPORT and (ROOT / path).is_file())


def test_there_are_files_in_every_package() -> None:
    assert {path.parts[0] for path in our_files()} >= PACKAGES | {"tests"}
    assert len(our_files()) > 30


def test_nobody_imports_upwards() -> None:
    found = [v for path in our_files() for v in violations(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_no_circles() -> None:
    """Neither between files nor between rooms, imports within functions included."""
    sources = {
        path.as_posix(): (ROOT / path).read_text(encoding="utf-8")
        for path in our_files()
        if path.parts[0] in PACKAGES
    }
    found = arrows(sources)
    assert len(found) > 100
    assert circles(found) == set()
    assert circles(rooms(found)) == set()


def test_circles_are_found() -> None:
    sources = {
        "judge/__init__.py": "",
        "judge/a.py": "def f():\n    from .b import g",
        "judge/b.py": "import judge.vlm.c",
        "judge/vlm/__init__.py": "",
        "judge/vlm/c.py": "from judge import a\nfrom .d import x",
        "judge/vlm/d.py": "from judge import Scores",
    }
    assert circles(arrows(sources)) == {("judge.a", "judge.b", "judge.vlm.c")}
    assert circles(rooms(arrows(sources))) == {("judge.a", "judge.b", "judge.vlm")}


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("judge/serve/cli.py", "import eval.metrics.judged", "judge must not import eval"),
        ("judge/a.py", "def f():\n    from adversarial import pgd", "judge must not import adversarial"),
        ("prompts/a.py", "from judge.errors import ImageError", "prompts must not import judge"),
        ("prompts/a.py", "import numpy.linalg as n", "without numpy"),
        ("adversarial/a.py", "from prompts import Taxonomy", "adversarial must not import prompts"),
        ("eval/a.py", "import recipes.lora_llava", "eval must not import recipes"),
        ("recipes/a.py", "from scripts import build", "recipes must not import scripts"),
        ("tests/a.py", "from tests.conftest import x", "nobody imports tests"),
        ("judge/a.py", "from judge.errors import ImageError", "relatively"),
        ("judge/a.py", "from ..prompts import Taxonomy", "relative import leaves"),
        ("judge/a.py", "import importlib\nimportlib.import_module('eval')", "judge must not import eval"),
    ],
)
def test_the_guard_catches(path: str, source: str, message: str) -> None:
    found = violations(Path(path), source)
    assert any(message in violation for violation in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "judge/vlm/score.py",
            "from judge.errors import ImageError\nfrom .load import x\nfrom prompts import Taxonomy",
        ),
        ("eval/a.py", "from judge import Scores\nfrom prompts import Verdict\nimport torch"),
        ("recipes/a.py", "import judge, eval, prompts, adversarial"),
    ],
)
def test_the_guard_lets_pass(path: str, source: str) -> None:
    assert violations(Path(path), source) == []
