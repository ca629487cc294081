"""The options of a recipe: defaults, its own YAML, files of `--config`, the command line, each over the one before.

An option is replaced as a whole, be it a list or a mapping such as `flip`. Unknown ones stop the run. What differs from
the recipe's own YAML is printed, and kept in `RecipeOptions.changed`, which runs write into their config.yaml.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

import yaml
from trl import TrlParser

from judge.errors import ConfigError
from judge.runs.resume import newest_checkpoint
from prompts.names import nearest
from prompts.printable import printable_lines

GIVES_WAY = {
    "held_out": "taxonomy",
    "baselines": "taxonomy",
    "cascade": "taxonomy",
    "defended_cascade": "taxonomy",
    "max_steps": "num_train_epochs",
}
"""What a recipe's own YAML says of the first goes back to its default where the user sets the second to something else:
categories held out, and runs made for a taxonomy, mean nothing under another one, and steps would overrule epochs."""


@dataclass
class RecipeOptions:
    """What one group of every recipe's options builds on, so that a run remembers what its user changed."""

    changed: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    """Option -> `recipe`, what the recipe's own YAML or its default says, and `here`, what this run was given."""


def parse_options(groups: Sequence[type], own: Path, arguments: Sequence[str]) -> tuple[Any, ...]:
    """Read a recipe's options, and say once what differs from its own YAML.

    Args:
        groups: dataclasses whose fields are the options, one of them a `RecipeOptions`.
        own: the recipe's YAML.
        arguments: the command line without the program; `--config FILE` may stand there any number of times.

    Returns:
        One object of each group.

    Raises:
        ConfigError: an unknown option, a file that is no mapping, or a value of the wrong kind in one.
    """
    files, rest = _config_files(arguments)
    parser = _parser(groups)
    recipe = read_options(own, parser)
    parser.set_defaults_with_config(**recipe)
    usual = vars(parser.parse_known_args([])[0])
    mine: dict[str, Any] = {}
    for path in files:
        mine |= read_options(path, parser)
    said = mine | _said(groups, rest)
    defaults = vars(_parser(groups).parse_known_args([])[0])
    for name, other in GIVES_WAY.items():
        if name in recipe and other in said and name not in said and said[other] != recipe.get(other):
            mine[name] = defaults[name]
    parser.set_defaults_with_config(**mine)
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        raise ConfigError(_unknown(unknown[0].split("=")[0], "the command line", parser))
    # Not `parse_args_into_dataclasses`: it would take words from a file beside the program too.
    given = vars(namespace)
    changed = {
        name: {"recipe": usual[name], "here": value}
        for name, value in given.items()
        if value != usual[name] and name != "resume_from_checkpoint"
    }
    parsed = tuple(
        group(**{one.name: given[one.name] for one in fields(group) if one.init}) for group in groups
    )
    for group in parsed:
        if isinstance(group, RecipeOptions):
            group.changed = changed
    if changed and os.environ.get("RANK", "0") == "0":
        print(printable_lines(_told(changed, own)), flush=True)
    return parsed


def resume_from(args: Any) -> str | None:
    """What to resume from: the folder given, or for `true` the newest whole checkpoint of this run, if any."""
    given = args.resume_from_checkpoint
    if str(given).lower() in ("none", "", "false"):
        return None
    if str(given).lower() != "true":
        return str(given)
    newest = newest_checkpoint(args.output_dir)
    return None if newest is None else str(newest)


def resumes(args: Any) -> bool:
    """Whether a run is to go on where it stopped, from its beginning if it had not got as far as a checkpoint."""
    return str(args.resume_from_checkpoint).lower() not in ("none", "", "false")


def read_options(path: Path, parser: TrlParser) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ConfigError: no such file, no mapping, an option that `parser` does not know, or a value of the wrong kind.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read as YAML: {reason}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path} holds no mapping; write `option: value`, one a line.")
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    for name, value in found.items():
        if name not in known:
            raise ConfigError(_unknown(str(name), str(path), parser))
        kind = _kind(known[name])
        # True is an int to Python; no option takes a number or yes and no.
        if kind and (not isinstance(value, kind[0]) or isinstance(value, bool)):
            raise ConfigError(f"{name} in {path} is {value!r}; write {kind[1]}.")
    return found


def _kind(action: argparse.Action) -> tuple[tuple[type, ...], str] | None:
    """What a YAML may say of an option, where argparse would take anything: types, and words for them."""
    if action.nargs == "*":
        return (list,), "a list, such as [one, two], or [] for none"
    if get_origin(action.type) is dict:
        return (dict,), "a mapping, such as {key: value}, or {} for none"
    if getattr(action.type, "__name__", "") == "int":
        return (int, str, type(None)), "a whole number"
    return None


def _parser(groups: Sequence[type], **options: Any) -> TrlParser:
    parser = TrlParser(
        groups,
        allow_abbrev=False,
        epilog="--config FILE: a YAML with options, which lies over the recipe's own and under the command line.",
        **options,
    )
    for action in parser._actions:
        if action.nargs == "+":
            action.nargs = "*"  # an option without a word is an empty list
    return parser


def _config_files(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files of `--config`, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, action="append", default=[])
    found, rest = parser.parse_known_args(list(arguments))
    return found.config, rest


def _said(groups: Sequence[type], arguments: Sequence[str]) -> dict[str, Any]:
    """What the command line itself says."""
    parser = _parser(groups, add_help=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    said, _ = parser.parse_known_args(list(arguments))
    return dict(vars(said))


def _unknown(name: str, where: str, parser: TrlParser) -> str:
    word = name.lstrip("-")
    if word == "resume_from_checkpoint":
        return "This recipe keeps no checkpoints, so it cannot resume; give another --output_dir and run it again."
    known = [action.dest for action in parser._actions if action.dest != "help"]
    return f"{where} has an unknown option {name!r}{nearest(word, known)}; --help lists them all."


def _told(changed: Mapping[str, Mapping[str, Any]], own: Path) -> str:
    """The changed options, one a line."""
    width = max(map(len, changed))
    lines = [
        f"  {name:{width}}  {_word(one['recipe'])} -> {_word(one['here'])}" for name, one in changed.items()
    ]
    return "\n".join([f"Not as in {own.name}:", *lines])


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
