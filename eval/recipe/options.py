"""The options of a recipe: defaults, its own YAML, files of `--config`, the command line, each over the one before.

An option is replaced as a whole, be it a list or a mapping such as `flip`. Unknown names and values of a wrong type
stop the run. What differs from the recipe's own YAML is printed, and kept in `RecipeOptions.changed`, which runs write
into their config.yaml.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

from judge.errors import ConfigError
from prompts.names import nearest
from prompts.printable import printable_lines

RESET_WITH = {
    "held_out": ("taxonomy",),
    "unrelated": ("dataset",),
    "baselines": ("taxonomy",),
    "cascade": ("taxonomy",),
    "categories": ("taxonomy", "dataset"),
    "classifiers": ("taxonomy",),
    "skip_missing": ("classifiers",),
    "policies": ("classifiers",),
    "causes": ("classifiers",),
    "unite": ("classifiers",),
    "defended_cascade": ("taxonomy",),
    "prompts": ("words", "pictures"),
    "max_steps": ("num_train_epochs",),
    "labeller": ("taxonomy",),
    "kinds": ("prompts",),
    "training_pairs": ("prompts",),
    "test_pairs": ("prompts",),
    "learn_at": ("steps", "pipeline"),
    "layers": ("pipeline",),
}
"""What a recipe's own YAML says of the first goes back to its default where the user sets one of the others to
something else: categories held out or chosen, and runs made for a taxonomy, mean nothing under another one, what is in
no image of one data set may be in another's, a corpus has one source of prompts, other prompts are of other kinds and
numbers, steps would overrule epochs, and asking other classifiers more may cost hours or money."""


SAID_BY_THE_USER = ("dataset", "taxonomy", "teacher", "encoder")
"""Where a recipe's YAML, one of several, leaves one of these out, there is no usual value to differ from."""


@dataclass
class RecipeOptions:
    """Base of one group of every recipe's options, so that a run records what its user changed."""

    changed: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    """Option -> `recipe`, what the recipe's own YAML or its default says, and `here`, what this run was given."""


def parse_options(
    groups: Sequence[type],
    config: Path | Callable[[Mapping[str, Any]], Path],
    arguments: Sequence[str] | None = None,
) -> tuple[Any, ...]:
    """Read a recipe's options, and print what differs from its own YAML.

    Args:
        groups: dataclasses whose fields are the options, one of them a `RecipeOptions`.
        config: the recipe's own YAML, or a function that picks one of several by the options the user gave.
        arguments: the command line without the program, by default this process's; `--config FILE` may be repeated.

    Returns:
        One object of each group.

    Raises:
        ConfigError: an unknown option, a file that is no mapping, or a value of the wrong type in one.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    files, rest = _config_files(arguments)
    parser = _parser(groups)
    types = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    read = partial(read_options, parser=parser, types=types)

    mine: dict[str, Any] = {}
    for path in files:
        mine |= read(path)
    given = mine | _command_line(groups, rest)
    own = config if isinstance(config, Path) else config(given)
    recipe = read(own)
    parser.set_defaults_with_config(**recipe)
    usual = vars(parser.parse_known_args([])[0])

    no_usual = () if isinstance(config, Path) else set(SAID_BY_THE_USER) - recipe.keys()
    defaults = vars(_parser(groups).parse_known_args([])[0])
    # Where the run's own file takes the place of the recipe's, nothing of the recipe's is left to reset.
    goes_on = not isinstance(config, Path) and str(given.get("resume")).lower() == "true"
    for name, others in () if goes_on else RESET_WITH.items():
        elsewhere = any(other in given and given[other] != recipe.get(other) for other in others)
        if name in recipe and name not in given and elsewhere:
            mine[name] = defaults[name]
    parser.set_defaults_with_config(**mine)
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        raise ConfigError(_unknown(unknown[0].split("=")[0], "the command line", parser))
    # Not `parse_args_into_dataclasses`: it would take words from a file beside the program too.
    values = vars(namespace)
    changed = {
        name: {"recipe": usual[name], "here": value}
        for name, value in values.items()
        if value != usual[name] and name not in ("resume_from_checkpoint", *no_usual)
    }
    parsed = tuple(
        group(**{one.name: values[one.name] for one in fields(group) if one.init}) for group in groups
    )
    for options in parsed:
        if isinstance(options, RecipeOptions):
            options.changed = changed
    # RANK and not PartialState: that would pick a device before TrainingArguments do.
    if changed and os.environ.get("RANK", "0") == "0":
        print(printable_lines(_changes(changed, own)), flush=True)
    return parsed


def read_options(path: Path, parser: TrlParser, types: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a YAML file.

    Args:
        path: the file.
        parser: knows the names.
        types: the type hint of each option.

    Raises:
        ConfigError: no such file, no mapping, an option that `parser` does not know, or a value of the wrong type.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read as YAML: {reason}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path} holds no mapping; write `option: value`, one a line.")
    known = _known(parser)
    for recorded in {"changed", "processes"} - set(
        known
    ):  # in a run's own config.yaml, which can be given back
        found.pop(recorded, None)
    for name, value in found.items():
        if name not in known:
            raise ConfigError(_unknown(str(name), str(path), parser))
        # transformers declares text there, and takes `true` for the newest checkpoint.
        if name != "resume_from_checkpoint":
            check_type(f"{name} in {path}", value, types[name])
    return found


def check_mapping(option: str, given: Mapping[str, Any], group: type, *, without: Sequence[str] = ()) -> None:
    """Check an option that is a mapping, such as `flip`, against the dataclass that it fills.

    Args:
        option: its name, for the message.
        given: its value.
        group: the dataclass.
        without: fields that are options of their own.

    Raises:
        ConfigError: a name that is no field, or a value of the wrong type.
    """
    types = {one.name: get_type_hints(group)[one.name] for one in fields(group) if one.name not in without}
    for name, value in given.items():
        if name not in types:
            raise ConfigError(
                f"{option} has an unknown field {name!r}{nearest(str(name), list(types))}; it has {', '.join(types)}."
            )
        check_type(f"{option}.{name}", value, types[name])


def check_type(name: str, value: Any, hint: Any) -> None:
    """Check a value from a YAML against an option's type hint; a number may be written as text, such as 2e-4.

    Raises:
        ConfigError: it does not fit; the message says what to write.
    """
    if not _fits(value, hint):
        raise ConfigError(f"{name} is {value!r}; write {_description(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if (origin or hint) is dict:
        return isinstance(value, dict)
    if (origin or hint) in (list, tuple, frozenset):
        elements = inner[0] if inner else Any
        return isinstance(value, list | tuple) and all(_fits(one, elements) for one in value)
    if hint is bool:  # YAML 1.1 also reads yes, no, on and off as booleans; text is left to the parser
        return isinstance(value, bool | str)
    if hint in (int, float):
        return _is_number(value, hint)
    if hint is str:
        return isinstance(value, str)
    if hint is type(None):
        return value is None
    return not (isinstance(hint, type) and issubclass(hint, Enum))


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is an `int` or a `float`, or text that says one; True is an int to Python, and not meant."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        # int(2.5) would cut silently, so a float goes through text, which int refuses.
        kind(str(value))
    except ValueError:
        return False
    return True


def _description(hint: Any) -> str:
    """What to write for a type hint; of a union, its first type."""
    if get_origin(hint) in (Union, UnionType):
        first = next(one for one in get_args(hint) if one is not type(None))
        return _description(first) + (", or null" if type(None) in get_args(hint) else "")
    kind = get_origin(hint) or hint
    words = {
        list: "a list, such as [one, two], or [] for none",
        dict: "a mapping, such as {key: value}, or {} for none",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    words |= {tuple: words[list], frozenset: words[list]}
    return words.get(kind, "text (in quotes if it is a number, yes or no)")


class _Parser(TrlParser):  # type: ignore[misc]
    """One that raises where argparse prints every option of transformers and exits."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists all options.")


def _parser(groups: Sequence[type], **options: Any) -> TrlParser:
    parser = _Parser(
        groups,
        allow_abbrev=False,
        epilog="--config FILE: a YAML with options, which lies over the recipe's own and under the command line.",
        **options,
    )
    for action in parser._actions:
        if action.nargs == "+":
            action.nargs = "*"  # an option without a word is an empty list
        if action.type is Any:
            action.type = str  # of what may also be a mapping in a YAML
    return parser


def _known(parser: TrlParser) -> list[str]:
    """The names of all options."""
    return [action.dest for action in parser._actions if action.dest != "help"]


def _config_files(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files of `--config`, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, action="append", default=[])
    found, rest = parser.parse_known_args(list(arguments))
    return found.config, rest


def _command_line(groups: Sequence[type], arguments: Sequence[str]) -> dict[str, Any]:
    """The options that stand on the command line itself."""
    parser = _parser(groups, add_help=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    found, _ = parser.parse_known_args(list(arguments))
    return dict(vars(found))


def _unknown(name: str, where: str, parser: TrlParser) -> str:
    word = name.lstrip("-")
    if word == "resume_from_checkpoint":
        return "This recipe keeps no checkpoints, so it cannot resume; give another --output_dir and run it again."
    return f"{where} has an unknown option {name!r}{nearest(word, _known(parser))}; --help lists them all."


def _changes(changed: Mapping[str, Mapping[str, Any]], own: Path) -> str:
    """The changed options, one a line."""
    width = max(map(len, changed))
    lines = [
        f"  {name:{width}}  {_shown(one['recipe'])} -> {_shown(one['here'])}" for name, one in changed.items()
    ]
    return "\n".join([f"Options that differ from {own.name}:", *lines])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
