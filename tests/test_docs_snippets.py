"""Every snippet of README, CONTRIBUTING and docs/ runs as it stands, or is parsed by the parser of what it calls.

Python runs (that of docs/diffusion.md on diffusers). Commands that are quick run; those that train, serve, or need a GPU or the hub are parsed by the real
parsers, so an option that does not exist fails. Nothing is skipped silently: a block in a language that is not known
here, a program that is not, and a command outside of a block are failures.
"""

import ast
import contextlib
import csv
import io
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures_snippets import (
    OUTPUT,
    PAGES,
    ROOT,
    Block,
    blocks,
    commands,
    inline_commands,
    is_command,
    make_workspace,
    prose,
)

from eval.recipe import parse_options
from judge.errors import MissingExtraError
from judge.serve import cli
from judge.serve.commands import _RECIPE_COMMANDS
from prompts.taxonomy_file import parse_taxonomy

RUN = ("judge", "calibrate", "data", "doctor", "init", "label", "merge", "taxonomy", "recipes")
"""Commands of `arbiter` that run here; the others are parsed."""
ELSEWHERE = re.compile(r"https?://|hf:|s3:|--decisions|^--help$|my_pipeline|student\.onnx")
"""Words of commands that need a server, the hub or what a longer command would have written."""
OF_THE_SYSTEM = {
    *("find", "kill", "break", "cd", "curl", "cat"),
    *("ruff", "mypy", "pre-commit", "mkdocs"),  # pinned tools, whose own options are theirs
    *(
        "mkdir",
        "chmod",
        "cp",
        "install",
        "systemctl",
        "systemd-run",
        "docker",
        "pg_dump",
        "runuser",
    ),  # docs/operations.md
    *("vllm", "sglang", "transformers", "hf"),  # other engines, and the hub's client
}
"""Programs that are not ours."""
RUN_BY = {"serving.md": "test_docs_serving.py"}
"""Page -> the test that runs its Python, against a server."""
PROFILES = {
    "--help",
    "--accelerate",
    *(path.stem for path in (ROOT / "recipes/configs/accelerate").glob("*.yaml")),
}
"""Words of `arbiter train` that are not the recipe's."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("COLUMNS", "100")
    return workspace


def in_language(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


# --- nothing is left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_in_a_language_that_is_tried_here(page: Path) -> None:
    found = blocks(page)
    assert {block.language for block in found} <= {"python", "sh", "yaml", "csv", "json", OUTPUT}
    hidden = [
        f"{block}: {line}"
        for block in found
        if block.language == OUTPUT
        for line in block.text.splitlines()
        if is_command(line)
    ]
    hidden += [line for line in prose(page).splitlines() if line.startswith("    ") and is_command(line)]
    assert not hidden, "commands belong into a block of `sh`"


def test_there_is_something_to_try() -> None:
    assert len(in_language("python")) >= 7
    assert len(in_language("sh")) >= 30
    assert sum(len(list(commands(block.text))) for block in in_language("sh")) >= 70


# --- Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", in_language("python"), ids=str)
def test_python_runs(block: Block, inside: Path) -> None:
    if block.page.name in RUN_BY:
        other = (ROOT / "tests" / RUN_BY[block.page.name]).read_text(encoding="utf-8")
        assert block.page.name in other
        assert [one.language for one in blocks(block.page)].count("python") == 1
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(block.text, str(block), "exec"), {"__name__": "snippet"})
        except MissingExtraError as error:
            pytest.skip(str(error))
    assert printed.getvalue().strip() or "print" not in block.text


# --- commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", in_language("sh"), ids=str)
def test_commands_run_or_parse(
    block: Block, inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = 0
    for pipeline in commands(block.text):
        before: list[str] | None = None
        for words in pipeline:
            tried += 1
            try_command(words, before, monkeypatch)
            before = words
    assert tried, "a block of commands without a command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_inside_of_sentences_parse(
    page: Path, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence names a command without its images and folders: `--help` behind it stands for these."""
    for text in inline_commands(page):
        for pipeline in commands(text):
            for words in pipeline:
                more = ["--help"] if words[0] == "arbiter" and words[1] not in _RECIPE_COMMANDS else []
                parse([*words, *more], monkeypatch)


def try_command(words: list[str], before: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command, if it is quick, on what the one before it in a pipeline prints; else parse it."""
    if words[0] != "arbiter" or words[1] not in RUN or any(ELSEWHERE.search(word) for word in words):
        parse(words, monkeypatch)
        return
    with monkeypatch.context() as patch:
        if before is not None:
            found = subprocess.run(before, capture_output=True, check=True).stdout
            assert found, before
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(found)))
        assert cli.main(words[1:]) in {0, 1, 3}, words


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the real parser of a program read its words, which have to name what exists."""
    program, *rest = words
    if program in OF_THE_SYSTEM:
        return
    assert program in PARSERS, f"{program} is not known here: {' '.join(words)}"
    PARSERS[program](rest, monkeypatch)


def parse_arbiter(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words and words[0] in _RECIPE_COMMANDS:
        recipe, option, _ = _RECIPE_COMMANDS[words[0]]
        values = next((i for i, word in enumerate(words[1:], 1) if word.startswith("-")), len(words))
        parse_recipe(recipe, [*([option] if values > 1 else []), *words[1:]])
        return
    options = [word for word in words[1:] if word not in PROFILES]
    if words[0] == "train" and options:
        parse_recipe("lora_llava", ["--config", *options])
        return
    from typer.core import TyperCommand

    with monkeypatch.context() as patch:
        patch.setattr(TyperCommand, "invoke", lambda self, context: 0)
        assert cli.main(words) == 0, words


def parse_accelerate(words: list[str], _: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import launch_command_parser

    found = launch_command_parser().parse_args(words[1:])
    assert words[0] == "launch"
    assert found.config_file is None or (ROOT / found.config_file).is_file()
    parse_script(found.training_script, found.training_script_args)


def parse_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "-m":
        module, *rest = words[1:]
        known: dict[str, Callable[[], None]] = {
            "pip": lambda: parse_pip(rest, monkeypatch),
            "venv": lambda: None,
            "sglang.launch_server": lambda: None,
            "pytest": lambda: assert_files(word for word in rest if word.endswith(".py")),
        }
        known[module]()
    elif words[0] != "-c":
        parse_script(words[0], words[1:])


def parse_script(path: str, words: list[str]) -> None:
    """A recipe's own parser; of another script, the options that its code names."""
    assert (ROOT / path).is_file(), path
    if path.startswith("recipes/"):
        parse_recipe(Path(path).stem, words)
        return
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    assert options <= texts, (path, options - texts)


@cache
def recipe(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))


def parse_recipe(name: str, words: list[str]) -> None:
    found = recipe(name)
    if "OPTIONS" not in found:  # a recipe with a parser of its own
        found["read_arguments"](words)
        return
    # What goes on with a run reads the options of that run, and there is none here.
    config = found["CONFIG"] if "--resume" in words else found.get("own_config", found["CONFIG"])
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        patch.setattr("eval.recipe.run.check_trackers", lambda names: None)  # packages that are not here
        parse_options(found["OPTIONS"], config, words)


def parse_pip(words: list[str], _: pytest.MonkeyPatch) -> None:
    from packaging.requirements import Requirement
    from pip._internal.commands import create_command

    project = load_project()
    options, targets = create_command(words[0]).parse_args(words[1:])
    targets = [*targets, *(getattr(options, "editables", None) or [])]
    assert targets, words
    for target in targets:
        extras = re.search(r"\[(.*)\]$", target)
        local = target.startswith((".", "dist/"))
        name = "arbiter-vision" if local else Requirement(target).name
        if name == "arbiter-vision":
            asked = set(extras[1].split(",")) if extras else set()
            assert asked <= set(project["optional-dependencies"]), target
            assert not target.startswith("dist/") or f"arbiter_vision-{project['version']}-" in target
        else:
            every = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
            assert name in {Requirement(one).name for one in every} | {"mutmut", "torchvision"}, target


def load_project() -> dict[str, Any]:
    import tomllib

    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def parse_make(words: list[str], _: pytest.MonkeyPatch) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets, words


def assert_files(paths: Iterator[str]) -> None:
    assert not [path for path in paths if not (ROOT / path).is_file()]


PARSERS: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "arbiter": parse_arbiter,
    "accelerate": parse_accelerate,
    "python": parse_python,
    "python3": parse_python,
    "pip": parse_pip,
    "make": parse_make,
}


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [*in_language("yaml"), *in_language("csv"), *in_language("json")], ids=str)
def test_files_are_what_they_say(block: Block, inside: Path, tmp_path: Path) -> None:
    """A YAML is a taxonomy or options of a recipe; a table has as many cells in every row."""
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "csv":
        rows = list(csv.reader(io.StringIO(block.text)))
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1
    elif "categories" in yaml.safe_load(block.text):
        assert len(parse_taxonomy(block.text, str(block)))
    else:
        path = tmp_path / "options.yaml"
        path.write_text(block.text)
        parse_recipe("lora_llava", ["--config", str(path)])


# --- words of ours -----------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [message for message in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) if " " in message]
    assert len(messages) > 15
    code = "\n".join(
        texts_of(path) for folder in ("judge", "prompts", "eval") for path in (ROOT / folder).rglob("*.py")
    )
    assert not [message for message in messages if message not in code]


def texts_of(path: Path) -> str:
    """The code of a file with texts of several lines in one, and … where a value stands."""
    joined = re.sub(r"['\"]\s*\n\s*f?['\"]", "", path.read_text(encoding="utf-8"))
    return re.sub(r"\{[^{}]*\}", "…", joined)
