"""How far the numbers of a run are from published ones, and what differs in how they were measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from eval.reports.table import Table
from prompts import load_taxonomy

from .aligned import ALL
from .published import OVERALL, Literature, Published, literature
from .tables import SOURCES

Metrics = Mapping[str, Any]
_OF_CELLS = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false positive rate",
    "false_negative_rate": "false negative rate",
}
"""Published metric that a cell has -> what it is called."""
_COVERED = {"covered_f1": "F1, covered"}
_PROTOCOLS = {
    "paper": "the paper's protocol: one category a question, uncertain answers drawn at random",
    "default": "the default protocol: all categories in one question, uncertain is an error",
    None: "a protocol of its own",
}


def compare_published(metrics: Metrics, dataset: str | None = None) -> dict[str, Any]:
    """What of a run has a published counterpart, and the difference: the run minus what was published.

    A classifier is matched by its label, else by the name that it was loaded under, whatever the case and punctuation.

    Args:
        metrics: of `measure`.
        dataset: what the run was measured on, such as `unsafebench:PATH`; None: as the metrics say.

    Returns:
        As JSON types: `dataset`, the published one, or None where nothing is published on it; `categories` (key and
        name) of the run; `numbers`, records of `classifier` (the label), `published_as`, `metric`, `category` (a key
        or None), `images` (a source or `all`), `value`, `interval`, `published`, `difference`, `inside` (whether the
        published one lies in the interval, or None), `reference`, `differs` (what differs in how the two were measured
        -> a sentence about it) and `notes` (what its readers must know); and `others`, the published F1 of classifiers
        that are not in the run.
    """
    known = literature()
    key = known.dataset(dataset or metrics["dataset"])
    numbers, matched = [], set()
    for label, record in metrics["classifiers"].items():
        name = known.classifier(label, record["classifier"])
        for number in known.numbers if name and key else ():
            if (number.classifier, number.dataset) == (name, key):
                matched.add(name)
                numbers += _compare(metrics, label, number, known)
    return {
        "dataset": key,
        "categories": [{"key": one["key"], "name": one["name"]} for one in metrics["categories"]],
        "numbers": numbers,
        "others": [
            {
                "classifier": number.classifier,
                "published": number.value,
                "reference": number.reference,
                "notes": list(number.notes),
            }
            for number in known.numbers
            if number.dataset == key and number.classifier not in matched and _is_headline(number)
        ],
    }


def _is_headline(number: Published) -> bool:
    return number.metric == "f1" and number.category is None and number.images == ALL


def _compare(metrics: Metrics, label: str, number: Published, known: Literature) -> list[dict[str, Any]]:
    """The record of one published number; none where the run has no such number."""
    record = metrics["classifiers"][label]
    cell, name = _cell(record, number)
    value = cell.get(name)
    if value is None:
        return []
    interval = cell.get(f"{name}_interval")
    return [
        {
            "classifier": label,
            "published_as": number.classifier,
            "metric": number.metric,
            "category": number.category,
            "images": number.images,
            "value": value,
            "interval": interval,
            "published": number.value,
            "difference": value - number.value,
            "inside": interval[0] <= number.value <= interval[1] if interval else None,
            "reference": number.reference,
            "differs": dict(_differences(metrics, record, cell, number, known)),
            "notes": list(number.notes),
        }
    ]


def _cell(record: Metrics, number: Published) -> tuple[Mapping[str, Any], str]:
    """The run's cell that a published number is of, empty where there is none, and the name of the number in it."""
    if number.metric in _COVERED:
        return record["covered"].get(number.images, {}), "f1"
    if number.metric not in _OF_CELLS:
        return {}, number.metric
    cells = record["overall"] if number.category is None else record["cells"].get(number.category)
    return (cells or {}).get(number.images, {}), number.metric


def _differences(
    metrics: Metrics, record: Metrics, cell: Mapping[str, Any], number: Published, known: Literature
) -> Iterator[tuple[str, str]]:
    """What differs in how the two were measured, and a sentence about it."""
    if number.protocol != metrics["protocol"]:
        ours = _PROTOCOLS[metrics["protocol"]]
        yield "protocol", f"Published under {_PROTOCOLS[number.protocol]}; this run used {ours}."
    # The published sets have no validation split; ours is taken from their training split.
    splits = {"train" if split == "validation" else split for split in record["splits"]}
    if set(number.splits) != splits:
        yield "split", f"Published on {_and(number.splits)}; this run on {_and(record['splits'])}."
    if number.dataset != "unsafebench":
        return
    if metrics["taxonomy_hash"] != _published_hash():
        yield "taxonomy", "The words or categories of this run's taxonomy are not the published ones."
    images = _published_images(number, known)
    if images is not None and set(number.splits) == splits and images != cell["rows"]:
        yield "images", "Some numbers are of more or fewer images than published."


@cache
def _published_hash() -> str:
    return load_taxonomy("unsafebench").hash


def _published_images(number: Published, known: Literature) -> int | None:
    """How many images a published number is of; None where that is not known."""
    if number.metric in _COVERED:
        return None
    column = number.category or OVERALL
    if set(number.splits) == {"test"}:
        return sum(row[column] for row in known.test_split.values()) if number.images == ALL else None
    return sum(row[column] for row in known.images[number.images].values())


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def published_tables(compared: Mapping[str, Any]) -> list[Table]:
    """Tables of what `compare_published` returns; those without lines are left out."""
    found = [_by_category(compared), _one_by_one(compared), _others(compared)]
    return [table for table in found if table.lines]


def _by_category(compared: Mapping[str, Any]) -> Table:
    """Differences of F1 in the layout of the paper's Table 4."""
    numbers = [one for one in compared["numbers"] if one["metric"] == "f1" and one["category"] is not None]
    columns = [one["key"] for one in compared["categories"]]
    lines: list[tuple[str, Sequence[Any]]] = []
    for images in dict.fromkeys(one["images"] for one in numbers):
        block: dict[str, dict[str, float]] = {}
        for one in numbers:
            if one["images"] == images:
                block.setdefault(one["classifier"], {})[one["category"]] = one["difference"]
        for place, (label, found) in enumerate(block.items()):
            name = "" if place else SOURCES.get(images, images)
            lines.append((name, [label, *map(_signed, map(found.get, columns))]))
    heads = ["classifier", *(one["name"] for one in compared["categories"])]
    return Table("F1 by category, minus the published one", heads, lines, _remarks(numbers))


def _one_by_one(compared: Mapping[str, Any]) -> Table:
    """The published numbers that are not F1 of a category."""
    shown = [one for one in compared["numbers"] if one["metric"] != "f1" or one["category"] is None]
    lines = []
    for one in shown:
        metric = (_OF_CELLS | _COVERED)[one["metric"]]
        number = f"{metric}, {one['category']}" if one["category"] else metric
        cells = [
            number,
            SOURCES.get(one["images"], one["images"]),
            one["value"],
            one["interval"],
            one["published"],
        ]
        cells += [_signed(one["difference"]), ", ".join(one["differs"]) or None, one["reference"]]
        lines.append((one["classifier"], [*cells, "; ".join(one["notes"]) or None]))
    heads = ["number", "images", "this run", "95 %", "published", "difference", "other", "by", "remarks"]
    note = "Other: what was not the same when the published number was measured."
    return Table("Published numbers", heads, lines, " ".join([note, *_all_differences(shown)]))


def _others(compared: Mapping[str, Any]) -> Table:
    lines = [
        (one["classifier"], [one["published"], one["reference"], "; ".join(one["notes"]) or None])
        for one in sorted(compared["others"], key=lambda one: -one["published"])
    ]
    note = "Not measured in this run, and not by one protocol: these do not rank."
    return Table(f"Published F1 of others on {compared['dataset']}", ["F1", "by", "remarks"], lines, note)


def _remarks(numbers: Sequence[Mapping[str, Any]]) -> str:
    """What differs, and the notes with the classifiers that they are about."""
    notes: dict[str, dict[str, None]] = {}
    for one in numbers:
        for note in one["notes"]:
            notes.setdefault(note, {})[one["classifier"]] = None
    references = _and(list(dict.fromkeys(one["reference"] for one in numbers)))
    said = [f"{', '.join(labels)}: {note}." for note, labels in notes.items()]
    return " ".join([f"Published: {references}.", *_all_differences(numbers), *said])


def _all_differences(numbers: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(sentence for one in numbers for sentence in one["differs"].values()))


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.3f}"
