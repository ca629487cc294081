"""Which images a classifier was trained on, as far as its run folder says.

A run names its data set and limit in config.yaml, and what it was made from: a student its teacher, a cascade its
student and judge, a hardened judge the first one. All of them count. A run folder is a stranger's
(`judge.runs.references`), so no host is contacted for the data set that it names: one that is neither drawn here nor on
this disk is not known, unless it is the very one that is tested.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.classifiers import CLASSIFIERS
from judge.data.examples import SPECS
from judge.errors import first_line
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import is_address
from judge.standins.shipped import run_path
from prompts.errors import ArbiterError
from prompts.taxonomy import Taxonomy

SEEN_SPLITS = ("train", "validation")
"""Validation rows choose thresholds and cutoffs, so they were seen as well."""
DRAWN = ("digits", "signs")
"""Data sets that are drawn here."""
PUBLISHED = tuple(kind for kind in SPECS if kind not in (*DRAWN, "folder", "dataset"))
"""Data sets of which everyone has the same copy."""
_MADE_FROM = ("teacher", "judge", "student", "encoder", "base")
_NOTHING = (None, "none", "labels", "")


@dataclass(frozen=True)
class Source:
    """One split of a data set, as a run read it."""

    dataset: str
    """As `load_examples` takes it."""
    split: str
    limit: int | None
    taxonomy: Taxonomy

    @property
    def rows(self) -> tuple[str, ...]:
        """What says which rows there are, but for the limit; categories do not for data that are drawn here."""
        drawn = self.dataset.partition(":")[0] in DRAWN
        return (self.dataset, self.split, *([] if drawn else [self.taxonomy.hash]))

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for sources of the same rows."""
        return (*self.rows, self.limit)


@dataclass(frozen=True)
class KnownTraining:
    """What a classifier was trained on."""

    sources: tuple[Source, ...] = ()
    not_known: tuple[str, ...] = ()
    """What else it learned from, of which the images are not known: its name and the reason."""


def known_training(name: str | Path, tested: str = "") -> KnownTraining:
    """The splits that a classifier and all it was made from were trained on.

    Args:
        name: a name in `eval.classifiers`, or whatever `judge.load_classifier` takes.
        tested: the data set that is tested; only this one may be a name on the hub.
    """
    found = list(_each(name, tested, set()))
    sources = _without_parts([one for one in found if isinstance(one, Source)])
    return KnownTraining(tuple(sources), tuple(dict.fromkeys(one for one in found if isinstance(one, str))))


def _without_parts(sources: list[Source]) -> list[Source]:
    """The sources without those of which another one holds every row: the same rows with a higher limit, or none."""

    def holds(one: Source, other: Source) -> bool:
        return one.rows == other.rows and (one.limit or math.inf) > (other.limit or math.inf)

    found = {source.key: source for source in sources}.values()
    return [one for one in found if not any(holds(other, one) for other in found)]


def _each(name: str | Path, tested: str, visited: set[Path]) -> Iterator[Source | str]:
    """The sources of a classifier, and in words what is not known."""
    path = Path(run_path(str(name)))
    if str(name).casefold() in CLASSIFIERS or is_address(str(name)) or not _is_run(path):
        yield f"{name}: not recorded"
        return
    if path.name == "encoder":
        path = path.parent
    path = path.resolve()
    if path in visited:
        return
    visited.add(path)
    try:
        run = RunDir.open(path)
        about, config, taxonomy = run.manifest, run.config, run.taxonomy
    except (ArbiterError, yaml.YAMLError, TypeError, ValueError, UnicodeDecodeError) as error:
        yield f"{name}: {first_line(error)}"
        return
    yield from _own(str(name), config, taxonomy, tested)
    for other in _made_from(path, about, config):
        yield from _each(other, tested, visited)


def _is_run(path: Path) -> bool:
    """Whether this is a run folder, or the encoder inside the run that trained it."""
    return ((path.parent if path.name == "encoder" else path) / MANIFEST).is_file()


def _own(name: str, config: Mapping[str, Any], taxonomy: Taxonomy, tested: str) -> Iterator[Source | str]:
    """The splits that a run itself read."""
    named, limit = config.get("dataset"), config.get("limit")
    if not isinstance(named, str) or not (limit is None or (type(limit) is int and limit > 0)):
        yield f"{name}: its config.yaml names no data set"
        return
    dataset = _here(named, tested)
    if dataset is None:
        yield f"{name}: trained on {named}, which is not here"
        return
    for split in SEEN_SPLITS:
        yield Source(dataset, split, limit, taxonomy)
    drawn = config.get("feature_images")  # of recipes/adversarial_lora.py, which draws more digits
    if dataset.partition(":")[0] == "digits" and type(drawn) is int and drawn > 0:
        yield Source(f"digits:{drawn}", "train", None, taxonomy)


def _here(dataset: str, tested: str) -> str | None:
    """What to load for a data set that a run names, without asking any host; None where it is not here."""
    kind, _, where = dataset.partition(":")
    if dataset == tested or kind in DRAWN or Path(where or dataset).exists():
        return dataset
    # A published set is the same wherever its copy lies.
    return tested if kind in PUBLISHED and kind == tested.partition(":")[0] else None


def _made_from(path: Path, about: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str | Path]:
    """What a run was made from: other runs, and bases."""
    for stage in _MADE_FROM:
        value = about.get(stage, config.get(stage))
        if stage == "judge" and config.get("teacher") == "labels":
            continue  # a judge that could have been the teacher, and was not
        if isinstance(value, Mapping):  # a cascade's stage, relative to its own folder
            yield path / str(value["path"]) if "path" in value else str(value.get("name"))
        elif isinstance(value, str) and value not in _NOTHING:
            # Relative to where the recipe ran: here, or where the folder of all runs has been moved to.
            moved = path.parent.parent / value
            yield value if _is_run(Path(value)) or not _is_run(moved) else moved
