"""Which classifiers a benchmark asks: one a word, `NAME,option=value`, or a mapping in a YAML."""

import hashlib
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import yaml

from eval.classifiers import CLASSIFIERS, GROUPS, Found, Group, find
from eval.own_classifier import is_own, source_file
from judge.errors import ConfigError
from judge.runs.files import file_hash
from judge.runs.references import HUB, fingerprint
from judge.standins.shipped import SHIPPED, base_path, run_path
from prompts.names import nearest

from .predictions import Protocol

if TYPE_CHECKING:
    from judge.protocol import Classifier

ELSEWHERE = "predictions:"
"""Before a file of predictions that were made elsewhere (`eval.benchmark.elsewhere`)."""
OURS = ("name", "label", "group", "price_per_1000")
"""What is said of a classifier and is no option of its loader."""
_LABEL = re.compile(r"[\w()+][\w .,()+@=-]{0,79}", re.ASCII)


@dataclass(frozen=True)
class Choice:
    """A classifier to ask."""

    name: str
    """A name of `eval.classifiers`, a path, `python:...` or `predictions:FILE.csv`."""
    label: str
    """What tables and files call it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its loader is given."""
    group: Group = "other"
    price_per_1000: float | None = None
    """US dollars for 1,000 images."""

    @property
    def file(self) -> Path | None:
        """The file with its predictions, where they were made elsewhere."""
        return Path(self.name.removeprefix(ELSEWHERE)) if self.name.startswith(ELSEWHERE) else None

    def find(self, protocol: Protocol) -> Found:
        """Look it up and check its options, before anything heavy is imported or read.

        Args:
            protocol: under `paper`, what can draw an uncertain answer at random does so.

        Raises:
            ConfigError: no such classifier or option, or one that is needed is missing.
            CheckpointError: no such run or model folder.
        """
        found = find(self.name, self.options)
        if self.group != "zero_shot" or not found.takes("protocol"):
            return found
        given = self.options.get("protocol", "strict")
        if protocol == "default" and given != "strict":
            raise ConfigError(
                f"{self.label}: with protocol={given} uncertain answers are drawn at random, and the benchmark's own "
                "protocol never gambles; leave it out, or run everything with --protocol paper."
            )
        return find(self.name, {"protocol": "paper" if protocol == "paper" else "strict", **self.options})

    def load(self, protocol: Protocol) -> "Classifier":
        """Load it; raises what `find` does and what its loader raises."""
        return self.find(protocol).load()

    def fingerprint(self) -> str | None:
        """SHA-256 (64 hexadecimal digits) of all files that its name and options name; None where there are none.

        Of a function of one's own it is the file with its code: its options may name files that it writes. Reading the
        weights of a model of 7 billion parameters takes about half a minute.
        """
        if is_own(self.name):
            own = source_file(self.name)
            return None if own is None else file_hash(own)
        if self.file is not None:
            return file_hash(self.file)
        names = [self.name, *(value for value in self.options.values() if isinstance(value, str | Path))]
        paths = [path for name in names if (path := _local(str(name))) is not None]
        hashes = [file_hash(path) if path.is_file() else fingerprint(path) for path in paths]
        return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None


def parse_choices(given: Sequence[str | Mapping[str, Any]]) -> list[Choice]:
    """Read a list of classifiers.

    Args:
        given: `runs/demo`, `q16,weights=q16.safetensors,label=Q16`, or `{name: q16, weights: q16.safetensors}`; beside
            the loader's options each may say `label`, `group` and `price_per_1000`.

    Raises:
        ConfigError: none at all, one that cannot be understood, or two with one label.
    """
    if not given:
        raise ConfigError("There is no classifier to ask; name one, such as --classifiers tiny-student.")
    choices = [_choice(one) for one in given]
    labels: dict[str, Choice] = {}
    for choice in choices:
        other = labels.setdefault(choice.label.casefold(), choice)
        if other is not choice:
            raise ConfigError(
                f"{other.name} and {choice.name} would both be called {choice.label!r}; give one another name, as in "
                f"{choice.name},label=NAME."
            )
    return choices


def _choice(given: str | Mapping[str, Any]) -> Choice:
    values = _split(given) if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    name = values.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{given!r} names no classifier; write NAME, NAME,option=value, or a mapping with a `name`."
        )
    label, group, price = (values.pop(key, None) for key in OURS[1:])
    label = _default_label(name) if label is None else str(label)
    if not _LABEL.fullmatch(label):
        raise ConfigError(
            f"The label {label!r} cannot be the name of a file; give another, as in {name},label=NAME: up to 80 "
            "letters, digits and signs such as - . _ + ( )."
        )
    if group is not None and group not in GROUPS:
        raise ConfigError(
            f"{label} has the group {group!r}{nearest(str(group), GROUPS)}; use {', '.join(GROUPS)}."
        )
    options = values if isinstance(given, Mapping) else _typed(name, values)
    return Choice(name, label, options, group or _default_group(name), _price(label, price))


def _split(text: str) -> dict[str, Any]:
    """The name and `key=value` pairs of one word."""
    name, *pairs = text.split(",")
    values: dict[str, Any] = {"name": name.strip()}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.strip() or key.strip() == "name":
            raise ConfigError(
                f"{text!r}: {pair!r} is no option=value. A path with a comma goes into a YAML of --config, as "
                "{name: NAME, option: value}."
            )
        if key.strip() in values:
            raise ConfigError(f"{text!r} says {key.strip()} twice.")
        values[key.strip()] = value.strip()
    return values


def _typed(name: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Options from a command line: numbers and true or false where the loader takes them, else text."""
    if not values or name.startswith(ELSEWHERE):
        return dict(values)
    loader = find(name, values).loader
    try:
        hints = get_type_hints(loader)
    except Exception:  # a user's own function may be annotated with anything
        hints = {}
    return {key: _value(value, hints.get(key, Any)) for key, value in values.items()}


def _value(text: str, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if not {int, float, bool, Any}.intersection(kinds):
        return None if text in ("null", "none") and type(None) in kinds else text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _default_label(name: str) -> str:
    """The last part of a name or path: `runs/demo` -> `demo`, `http://host/v1#org/model` -> `model`."""
    text = name.removeprefix(HUB).removeprefix(ELSEWHERE)
    if is_own(text):
        return text.rpartition(":")[2]
    text = re.split(r"[/\\#]", text.rstrip("/\\"))[-1]
    return Path(text).stem if Path(text).suffix in (".csv", ".onnx") else text


def _default_group(name: str) -> Group:
    if is_own(name) or name.startswith(ELSEWHERE):
        return "other"
    entry = CLASSIFIERS.get(name.casefold())
    return "ours" if entry is None else entry.group


def _price(label: str, given: Any) -> float | None:
    if given is None:
        return None
    try:
        price = float(given)
    except (TypeError, ValueError):
        price = math.nan
    if isinstance(given, bool) or not 0 <= price < math.inf:
        raise ConfigError(f"{label}: price_per_1000 is {given!r}; give US dollars for 1,000 images, from 0.")
    return price


def _local(name: str) -> Path | None:
    """The file or folder of ours that a name stands for."""
    text = name.removeprefix(HUB)
    path = Path(base_path(text) if text in SHIPPED else run_path(text))
    return path if path.exists() else None
