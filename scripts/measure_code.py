"""Measure the code of the packages, recipes and scripts: lengths, comments, shapes in docstrings, cycles, duplicates.

    python scripts/measure_code.py            # this checkout
    python scripts/measure_code.py PATH       # another one, to compare with
    python scripts/measure_code.py --list     # also names what is counted as missing or duplicate

- Function lengths are lines without the docstring, nested functions included; file lengths are all lines.
- A public function is about tensors if its signature names `Tensor`, `ndarray`, `ArrayLike` or an alias that the code
  defines of them. Its docstring has shapes if it contains something like `(B, K)`, `(N,)`, `2-d` or `scalar`.
- Two functions are duplicates if their bodies are equal up to the names of their arguments and variables, and have
  `SMALLEST` statements or more.
- Comments are counted per line, of all lines that are neither empty nor within a docstring; directives to tools, such
  as `type: ignore`, are no comments.
"""

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("prompts", "judge", "adversarial", "eval")
FOLDERS = (*PACKAGES, "recipes", "scripts")
TENSORS = ("Tensor", "ndarray", "NDArray", "ArrayLike")
_SIZE = r"(?:\w+(?:\s*[-+*/]\s*\w+)*|\.\.\.)"
SHAPE = re.compile(
    # At least one size is a single capital, which keeps intervals such as (0, 1) and abbreviations out.
    rf"\((?:{_SIZE},\s*)*[A-Z](?:\s*[-+*/]\s*\w+)?(?:,\s*{_SIZE})*,?\)"
    r"|(?<!\w)\(\)|\(\.\.\.\)|\b\w-d\b|\bscalars?\b|\bany shape\b"
)
DIRECTIVE = re.compile(r"#\s*(type:|fmt:|noqa|pragma|ruff:|mypy:|!)")
SMALLEST = 3
"""Statements from which on two equal bodies count as duplicates."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Files = dict[str, tuple[str, ast.Module]]
"""Path below the root -> source and tree."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--list", action="store_true", help="name what is counted as missing or duplicate")
    options = parser.parse_args()
    files = read_files(options.root)
    if not files:
        parser.error(
            f"{options.root} has no Python files in {', '.join(FOLDERS)}; give the root of a checkout."
        )
    lengths = [function_length(node) for _, tree in files.values() for node in functions(tree)]
    sizes = {path: len(source.splitlines()) for path, (source, _) in files.items()}
    recipes = [size for path, size in sizes.items() if path.startswith("recipes/")]
    tensor_functions, shapeless = missing_shapes(files)
    cycles, duplicates = import_cycles(files), find_duplicates(files)
    rows = {
        "files": len(sizes),
        "lines": sum(sizes.values()),
        "file length, median and 90th percentile": median_and_90th(list(sizes.values())),
        "function length, median and 90th percentile": median_and_90th(lengths),
        "recipes, and their median length": f"{len(recipes)}, {statistics.median(recipes or [0]):.0f}",
        "import cycles": len(cycles),
        "public functions about tensors, and those without shapes in the docstring": (
            f"{tensor_functions}, {len(shapeless)}"
        ),
        "duplicate functions": len(duplicates),
        "comments, share of code lines": f"{comment_share(files):.1%}",
    }
    for name, value in rows.items():
        print(f"{name:<75} {value}")
    if options.list:
        listed = {"no shapes": shapeless, "duplicate": duplicates, "cycle": cycles}
        print("\n".join(f"{title}: {line}" for title, lines in listed.items() for line in lines))


def read_files(root: Path) -> Files:
    """Every Python file below the `FOLDERS` of `root`; folders that an older checkout lacks are skipped."""
    files: Files = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")) if (root / folder).is_dir() else ():
            source = path.read_text(encoding="utf-8")
            files[path.relative_to(root).as_posix()] = source, ast.parse(source, str(path))
    return files


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def function_length(node: Function) -> int:
    """Lines of a function without its docstring and decorators."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return lines


def median_and_90th(values: list[int]) -> str:
    """Median and 90th percentile; the latter is rounded up to a value that occurs."""
    rank = -(-9 * len(values) // 10)  # rounded up
    return f"{statistics.median(values):.0f}, {sorted(values)[rank - 1]}"


def missing_shapes(files: Files) -> tuple[int, list[str]]:
    """The number of public functions of the packages about tensors, and those whose docstring has no shape."""
    about_tensors = re.compile(rf"\b({'|'.join([*TENSORS, *tensor_aliases(files)])})\b")
    count, missing = 0, []
    for path, (_, tree) in files.items():
        if path.split("/")[0] not in PACKAGES:
            continue
        for owner, node in public_functions(tree):
            signature = f"{ast.unparse(node.args)} -> {ast.unparse(node.returns) if node.returns else None}"
            if about_tensors.search(signature):
                count += 1
                if not SHAPE.search(ast.get_docstring(node) or ""):
                    missing.append(f"{path}:{node.lineno} {owner}{node.name}")
    return count, missing


def tensor_aliases(files: Files) -> set[str]:
    """Names of type aliases such as `Floats = NDArray[np.float64]`, in all files."""
    alias = re.compile(rf"(\w+\.)*({'|'.join(TENSORS)})(\[.*\])?")
    return {
        target.id
        for _, tree in files.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and alias.fullmatch(ast.unparse(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Owner ("" or "Class.") and node of public functions, and of public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield f"{node.name}.", inner


def find_duplicates(files: Files) -> list[str]:
    """Groups of functions with the same body, as "path:name = path:name"."""
    places = defaultdict(list)
    for path, (_, tree) in files.items():
        for node in functions(tree):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if sum(isinstance(inner, ast.stmt) for part in body for inner in ast.walk(part)) >= SMALLEST:
                places[normalised(node, body)].append(f"{path}:{node.name}")
    return [" = ".join(group) for group in places.values() if len(group) > 1]


def normalised(node: Function, body: list[ast.stmt]) -> str:
    """The body with arguments and variables numbered in order of appearance; other names, such as calls, stay."""
    # A copy, as numbering changes the tree; parsing the text again also drops formatting.
    tree = ast.parse(ast.unparse(ast.Module(body=body, type_ignores=[])))
    local = {inner.arg for inner in ast.walk(node.args) if isinstance(inner, ast.arg)}
    local |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    numbers: dict[str, str] = {}
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Name) and inner.id in local:
            inner.id = numbers.setdefault(inner.id, f"v{len(numbers)}")
    return ast.dump(tree)


def comment_share(files: Files) -> float:
    """Number of comments over the number of lines that are neither empty nor within a docstring."""
    comments = code = 0
    for source, tree in files.values():
        docstrings = {
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = enumerate(source.splitlines(), 1)
        code += sum(bool(line.strip()) and number not in docstrings for number, line in lines)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments += sum(
            token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string) for token in tokens
        )
    return comments / code


def import_cycles(files: Files) -> list[str]:
    """Groups of modules of the packages that import one another, imports within functions included."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    modules = {name: path for name, path in modules.items() if name.split(".")[0] in PACKAGES}
    imports = {
        name: set(imported(name, path, files[path][1], modules)) - {name} for name, path in modules.items()
    }
    reach = {name: reachable(name, imports) for name in imports}
    # A module in a cycle reaches itself, and its cycle is all modules that it reaches and that reach it.
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in imports}
    return [" <-> ".join(group) for group in sorted(groups) if len(group) > 1]


def imported(name: str, path: str, tree: ast.Module, modules: dict[str, str]) -> Iterator[str]:
    """Modules of the packages that a file imports; a package's own `__init__` counts only if it is named itself."""
    home = name.split(".") if path.endswith("__init__.py") else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package of the file, each further dot its parent.
            base = home[: len(home) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from judge import runs` imports the module judge.runs, `from judge import Scores` the package.
                inner = f"{full}.{alias.name}"
                if inner in modules:
                    yield inner
                elif full in modules:
                    yield full


def reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    """Everything that `start` imports, directly or through others."""
    seen: set[str] = set()
    stack = [start]
    while stack:
        for name in imports[stack.pop()]:
            if name not in seen:
                seen.add(name)
                stack.append(name)
    return seen


if __name__ == "__main__":
    main()
