"""Two taxonomies -> what changed from one to the other, for people and programs."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from typing import Any

from judge.calibration.envelope import category_hash
from prompts.taxonomy import Category, Taxonomy

from .terminal import Segments

_FIELDS = ("examples", "code", "aliases", "rewordings", "members", "languages", "name_only")
"""What may change of a category besides name, key and definition."""


@dataclass
class TaxonomyDiff:
    """What changed; a category is the same one by its key, else its name, else its definition."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    """Old name -> new name."""
    reworded: dict[str, tuple[str, str]] = field(default_factory=dict)
    """New name -> the definition before and after."""
    changed: dict[str, list[str]] = field(default_factory=dict)
    """New name -> other fields that differ."""
    reordered: bool = False
    """Whether the categories that both have stand in another order."""
    kept: list[str] = field(default_factory=list)
    """Categories of which a judge reads the same as before, so that thresholds fitted to them hold."""

    @property
    def same(self) -> bool:
        """Whether both have equal categories in the same order."""
        changes = (self.added, self.removed, self.renamed, self.reworded, self.changed)
        return not any(changes) and not self.reordered

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        reworded = {name: {"from": old, "to": new} for name, (old, new) in self.reworded.items()}
        return {"same": self.same, **asdict(self), "reworded": reworded}


def compare_taxonomies(old: Taxonomy, new: Taxonomy) -> TaxonomyDiff:
    """What changed from the old taxonomy to the new one."""
    pairs = matching_categories(old, new)
    places = [old.index(before.name) for before, _ in pairs]
    found = TaxonomyDiff(reordered=places != sorted(places))
    matched_old, matched_new = ({pair[side].name for pair in pairs} for side in (0, 1))
    found.removed.extend(name for name in old.names if name not in matched_old)
    found.added.extend(name for name in new.names if name not in matched_new)
    for before, after in pairs:
        if before.name != after.name:
            found.renamed[before.name] = after.name
        if before.definition != after.definition:
            found.reworded[after.name] = (before.definition, after.definition)
        fields = [name for name in _FIELDS if getattr(before, name) != getattr(after, name)]
        # A category without a key of its own is its only member by its name, which was said.
        if before.key == before.name or after.key == after.name:
            fields = [name for name in fields if name != "members"]
        if fields:
            found.changed[after.name] = fields
        if category_hash(before) == category_hash(after):
            found.kept.append(after.name)
    return found


def matching_categories(old: Taxonomy, new: Taxonomy) -> list[tuple[Category, Category]]:
    """Pairs of old and new categories that are the same one, in the order of the new taxonomy."""
    pairs: dict[str, Category] = {}  # name in the new taxonomy -> its old category
    left = list(old)
    identities: tuple[Callable[[Category], str], ...] = (
        lambda category: category.key,
        lambda category: category.name.casefold(),
        lambda category: category.definition,
    )
    for identity in identities:
        known = {identity(category): category for category in left}
        for category in new:
            before = None if category.name in pairs else known.pop(identity(category), None)
            if before is not None:
                pairs[category.name] = before
                left.remove(before)
    return [(pairs[category.name], category) for category in new if category.name in pairs]


def diff_lines(diff: TaxonomyDiff, old: Taxonomy, new: Taxonomy) -> Iterator[Segments]:
    """The changes as lines: what was removed in `[-...-]`, what was added in `{+...+}`, as git shows words."""
    for name in diff.removed:
        yield (
            ("- removed   ", "red"),
            (name, "bold"),
            (f": {old.categories[old.index(name)].definition}", ""),
        )
    for name in diff.added:
        yield (
            ("+ added     ", "green"),
            (name, "bold"),
            (f": {new.categories[new.index(name)].definition}", ""),
        )
    for before, after in diff.renamed.items():
        yield (("~ renamed   ", "yellow"), (before, "bold"), (" -> ", ""), (after, "bold"))
    for name, (before, after) in diff.reworded.items():
        yield (("~ reworded  ", "yellow"), (name, "bold"), (": ", ""), *word_diff(before, after))
    for name, fields in diff.changed.items():
        yield (("~ changed   ", "yellow"), (name, "bold"), (f": {', '.join(fields)}", ""))
    if diff.reordered:
        yield (("~ reordered ", "yellow"), (", ".join(new.names), ""))
    again = [name for name in new.names if name not in diff.kept]
    yield (("thresholds  ", "dim"), (_thresholds(len(diff.kept), again), "dim"))


def word_diff(before: str, after: str) -> Iterator[tuple[str, str]]:
    """Segments of a text in which words were removed and added."""
    old, new = before.split(), after.split()
    space = ""
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield f"{space}{' '.join(old[a:b])}", ""
        else:
            if old[a:b]:
                yield f"{space}[-{' '.join(old[a:b])}-]", "red"
                space = "" if new[c:d] else space
            if new[c:d]:
                yield f"{space}{{+{' '.join(new[c:d])}+}}", "green"
        space = " "


def _thresholds(kept: int, again: list[str]) -> str:
    said = f"those fitted to {kept} unchanged categories hold"
    return f"{said}; fit again for {', '.join(again)}" if again else said
