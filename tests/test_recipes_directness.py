"""Recipes stay files that are read top to bottom: the job in the recipe, what all share in eval/recipe, once."""

import ast
import importlib
import statistics
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.py"))
SHARED = {"parse", "say", "open_run", "create_run", "log", "progress_bar", "write_metrics", "load_splits"}


def functions(path):
    """Name -> body without the docstring, of every function and method of a recipe."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            found[node.name] = "\n".join(map(ast.dump, body))
    return found


def test_no_function_is_written_in_two_recipes():
    places = {}
    for path in RECIPES:
        for name, body in functions(path).items():
            if body:
                places.setdefault(body, []).append(f"{path.name}:{name}")
    assert not [names for names in places.values() if len(names) > 1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_brings_plumbing_of_its_own(path):
    assert not functions(path).keys() & SHARED


def test_lengths():
    lengths = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in RECIPES}
    assert lengths["lora_llava"] < 250
    assert statistics.median(lengths.values()) < 250


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_whatever_a_recipe_imports_of_ours_exists(path):
    """Types are not checked here, and most imports run in slow tests only."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if node.module.split(".")[0] in ("prompts", "judge", "adversarial", "eval"):
            module = importlib.import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_docstring_begins_with_a_command_that_runs_it(path):
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    assert lines[1] == ""
    assert (
        lines[2].strip().startswith((f"accelerate launch recipes/{path.name}", f"python recipes/{path.name}"))
    )
