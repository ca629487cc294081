"""Measure the code of the packages and recipes: lengths, comments, texts with shapes, circles, and what is there twice.

    python scripts/measure_code.py            # the working tree
    python scripts/measure_code.py PATH       # another checkout, to compare with

Lengths are lines without the docstring. A public function is *about tensors* if its signature names `Tensor`, `ndarray`
or an array alias of this project; its docstring has shapes if it holds something like `(B, K)`. Comments are whole
lines that start with `#`, or stand behind code, of all lines that are neither empty nor within a docstring.
"""

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("prompts", "judge", "adversarial", "eval", "recipes", "scripts")
PACKAGES = ("prompts", "judge", "adversarial", "eval")
ARRAYS = re.compile(r"\b(Tensor|ndarray|NDArray|Array|Floats|Booleans|Integers)\b")
SHAPE = re.compile(r"\(\s*[A-Z][A-Za-z_]*\s*(?:,\s*[A-Za-z0-9_.+ ]*)*\)|\(\s*\)|\b[0-9a-z]+-d\b|\bscalar\b")
SMALLEST = 3
"""Statements from which on two equal bodies count as one thing written twice."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--list", action="store_true", help="name what is counted as missing or double")
    options = parser.parse_args()
    trees = dict(read(options.root, FOLDERS))
    lengths = [lines_of(node) for _, tree in trees.values() for node in ast.walk(tree) if is_function(node)]
    files = [len(source.splitlines()) for source, _ in trees.values()]
    tensors, shapeless = tensor_functions(trees)
    circles = find_circles(trees)
    twice = written_twice(trees)
    recipes = [len(source.splitlines()) for path, (source, _) in trees.items() if path.startswith("recipes/")]
    rows = {
        "files": len(files),
        "lines": sum(files),
        "file length, median and 90th percentile": f"{statistics.median(files):.0f}, {ninetieth(files)}",
        "function length, median and 90th percentile": f"{statistics.median(lengths):.0f}, {ninetieth(lengths)}",
        "recipes, and their median length": f"{len(recipes)}, {statistics.median(recipes):.0f}",
        "import circles": len(circles),
        "public functions about tensors, and those without shapes in their text": f"{tensors}, {len(shapeless)}",
        "functions written twice": len(twice),
        "comments, share of code lines": f"{comment_share(trees):.1%}",
    }
    for name, value in rows.items():
        print(f"{name:<72} {value}")
    if options.list:
        for title, found in [
            ("no shapes", shapeless),
            ("twice", twice),
            ("circle", [" <-> ".join(c) for c in circles]),
        ]:
            print("\n".join(f"{title}: {line}" for line in found))


def read(root: Path, folders: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ast.Module]]]:
    """(path below `root`, (source, tree)) of every file."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            yield path.relative_to(root).as_posix(), (source, ast.parse(source))


def is_function(node: ast.AST) -> bool:
    """Whether `node` defines a function or method."""
    return isinstance(node, Function)


def lines_of(node: ast.AST) -> int:
    """Lines of a function without its docstring."""
    assert isinstance(node, Function)
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


def ninetieth(values: list[int]) -> int:
    """The 90th percentile, rounded up to a value that occurs."""
    return sorted(values)[-(-9 * len(values) // 10) - 1]


def tensor_functions(trees: dict[str, tuple[str, ast.Module]]) -> tuple[int, list[str]]:
    """How many public functions and methods of the packages take or return tensors, and which say no shape."""
    count, missing = 0, []
    for path, (_, tree) in trees.items():
        if not path.startswith(PACKAGES):
            continue
        for owner, node in public_functions(tree):
            signature = ast.unparse(node.args) + (ast.unparse(node.returns) if node.returns else "")
            if not ARRAYS.search(signature):
                continue
            count += 1
            if not SHAPE.search(ast.get_docstring(node) or ""):
                missing.append(f"{path}:{node.lineno} {owner}{node.name}")
    return count, missing


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Functions, and methods of public classes, whose names do not start with an underscore."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield f"{node.name}.", inner


def written_twice(trees: dict[str, tuple[str, ast.Module]]) -> list[str]:
    """Functions whose bodies are the same but for names of arguments and variables, in more than one place."""
    homes = defaultdict(list)
    for path, (_, tree) in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if sum(isinstance(inner, ast.stmt) for part in body for inner in ast.walk(part)) >= SMALLEST:
                    homes[normalised(body)].append(f"{path}:{node.name}")
    return [" = ".join(places) for places in homes.values() if len(places) > 1]


def normalised(body: list[ast.stmt]) -> str:
    """A body with its variables numbered in the order in which they appear."""
    numbers: dict[str, str] = {}
    tree = ast.parse(ast.unparse(ast.Module(body=body, type_ignores=[])))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = numbers.setdefault(node.id, f"v{len(numbers)}")
    return ast.dump(tree)


def comment_share(trees: dict[str, tuple[str, ast.Module]]) -> float:
    """Comments of all lines of code."""
    comments = code = 0
    for source, tree in trees.values():
        texts = Counter(
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        )
        lines = source.splitlines()
        code += sum(bool(line.strip()) and number not in texts for number, line in enumerate(lines, 1))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments += sum(
            token.type == tokenize.COMMENT and "type: ignore" not in token.string for token in tokens
        )
    return comments / code


def find_circles(trees: dict[str, tuple[str, ast.Module]]) -> list[list[str]]:
    """Groups of modules of the packages that import one another, imports within functions included."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in trees}
    modules = {name: path for name, path in modules.items() if name.startswith(PACKAGES)}
    arrows = {
        name: set(imported(name, path, trees[path][1], modules)) - {name} for name, path in modules.items()
    }
    reach = {name: reached(name, arrows) for name in arrows}
    found = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in arrows}
    return [list(group) for group in sorted(found) if len(group) > 1]


def imported(name: str, path: str, tree: ast.Module, modules: dict[str, str]) -> Iterator[str]:
    """Modules of ours that a file imports; a package's own `__init__` counts only where it is named itself."""
    home = name.split(".") if path.endswith("__init__.py") else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{full}.{alias.name}"
                if inner in modules:
                    yield inner
                elif full in modules:
                    yield full


def reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    """Everything that `start` imports, directly or through others."""
    seen: set[str] = set()
    left = [start]
    while left:
        for name in arrows[left.pop()]:
            if name not in seen:
                seen.add(name)
                left.append(name)
    return seen


if __name__ == "__main__":
    main()
