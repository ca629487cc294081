"""Label Studio: tasks to import, the labelling configuration, and exported annotations.

Formats as documented at labelstud.io: guide/tasks (tasks: `data` with the keys that the configuration names),
guide/storage_local (`/data/local-files/?d=PATH`, below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT), tags/choices, and
guide/export (JSON: `annotations` with `completed_by`, `was_cancelled` and `result`; JSON-MIN: one record for each
annotation, the data beside the choices and `annotator`). Drafts and predictions are no answers of people.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.etree import ElementTree

from judge.errors import ConfigError
from judge.runs.files import nearest_path
from prompts.taxonomy import Taxonomy

from .images import Picture

LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio serves files of its own machine under."""
LABEL, CATEGORIES = "label", "categories"
"""Names of the two questions. JSON-MIN writes them beside the keys of `data`, so no key there may be the same."""
Row = tuple[str, dict[str, str | None]]
"""Where it stands, and its cells, as in a table of answers."""


def labelling_config(taxonomy: Taxonomy, *, only_categories: bool = False) -> str:
    """The XML to paste into the project's labelling interface.

    The definitions stand above the questions, as annotators have to read them first.

    Args:
        taxonomy: its categories can be chosen.
        only_categories: leave the question safe, unsafe or N/A out, for the second round.
    """
    view = ElementTree.Element("View")
    definitions = ElementTree.SubElement(
        ElementTree.SubElement(view, "Collapse"), "Panel", value="What is unsafe"
    )
    texts = ElementTree.SubElement(definitions, "View")
    for category in taxonomy:
        ElementTree.SubElement(texts, "Header", size="6", value=f"{category.name}: {category.definition}")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    when = {"required": "true"}
    if not only_categories:
        asked = {
            "name": LABEL,
            "toName": "image",
            "choice": "single-radio",
            "required": "true",
            "showInline": "true",
        }
        label = ElementTree.SubElement(view, "Choices", asked)
        for value in ("safe", "unsafe", "N/A"):
            ElementTree.SubElement(label, "Choice", value=value)
        when = {"visibleWhen": "choice-selected", "whenTagName": LABEL, "whenChoiceValue": "unsafe"}
    choices = ElementTree.SubElement(
        view, "Choices", {"name": CATEGORIES, "toName": "image", "choice": "multiple"} | when
    )
    for category in taxonomy:
        ElementTree.SubElement(choices, "Choice", value=category.name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def import_tasks(
    pictures: Sequence[Picture], annotators: Sequence[Sequence[str]], prefix: str = LOCAL_FILES
) -> list[dict[str, Any]]:
    """Tasks in Label Studio's basic JSON format.

    Args:
        pictures: one task each.
        annotators: of each picture; Label Studio shows them as a column and assigns nobody by it.
        prefix: of the image's address, in front of its percent-encoded name.
    """
    return [
        {
            "data": {
                "image": prefix + quote(picture.name),
                "path": picture.name,
                "source": picture.source,
                "collected_for": picture.collected_for,
                "annotators": ", ".join(names),
            }
        }
        for picture, names in zip(pictures, annotators, strict=True)
    ]


def read_export(path: Path) -> Iterator[Row]:
    """The annotations of an export, JSON or JSON-MIN, as rows of a table of answers.

    Those of one task come in the order in which they were made. One that was skipped is a row without an answer, and so
    is a task without annotations.

    Raises:
        ConfigError: the file is no such export; the message names the task.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{nearest_path(str(path))}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ConfigError(f"{path}: expected a list of tasks, as Label Studio exports to JSON and JSON-MIN.")
    for number, task in enumerate(tasks, start=1):
        where = f"{path.name}, task {number}"
        if "data" not in task and "annotations" not in task:
            yield where, _cells(task, task.get(LABEL), task.get(CATEGORIES), task.get("annotator"), where)
            continue
        data, annotations = task.get("data"), task.get("annotations")
        if not isinstance(data, dict) or not _is_list_of_objects(annotations):
            raise ConfigError(
                f"{where}: expected `data` and a list of `annotations`; export as JSON or JSON-MIN."
            )
        if not annotations:
            yield where, _cells(data, None, None, None, where)
        made = sorted(enumerate(annotations, start=1), key=lambda one: str(one[1].get("created_at") or ""))
        for place, annotation in made:
            yield (
                f"{where}, annotation {place}",
                _annotation(data, annotation, f"{where}, annotation {place}"),
            )


def _annotation(data: Mapping[str, Any], annotation: Mapping[str, Any], where: str) -> dict[str, str | None]:
    results = annotation.get("result") or []
    if not _is_list_of_objects(results):
        raise ConfigError(f"{where}: `result` is no list of choices.")
    chosen: dict[str, list[Any]] = {LABEL: [], CATEGORIES: []}
    skipped = annotation.get("was_cancelled") is True
    for result in [] if skipped else results:
        for name in chosen:
            if result.get("from_name") == name:
                chosen[name].append(result.get("value"))
    return _cells(data, chosen[LABEL], chosen[CATEGORIES], annotation.get("completed_by"), where)


def _cells(
    data: Mapping[str, Any], label: Any, categories: Any, annotator: Any, where: str
) -> dict[str, str | None]:
    labels = _choices(label, where)
    if len(labels) > 1:
        raise ConfigError(f"{where}: {len(labels)} labels, {', '.join(labels)}; expected one.")
    if isinstance(annotator, dict):
        annotator = annotator.get("email") or annotator.get("username") or annotator.get("id")
    return {
        "image": _path(data, where),
        "annotator": "" if annotator is None else str(annotator),
        "label": labels[0] if labels else "",
        "categories": ";".join(_choices(categories, where)),
        "source": _text(data.get("source")),
        "collected_for": _text(data.get("collected_for")),
    }


def _choices(value: Any, where: str) -> list[str]:
    """The texts of a `choices` value: a text, `{"choices": [...]}`, or a list of these, as the two formats write it."""
    found: list[str] = []
    for part in value if isinstance(value, list) else [value]:
        texts = part.get("choices") if isinstance(part, dict) else [] if part is None else [part]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"{where}: expected choices, got {str(part)[:60]!r}; use the configuration that was written."
            )
        found += filter(None, texts)
    return found


def _path(data: Mapping[str, Any], where: str) -> str:
    """The name of the image: what `import_tasks` wrote, else what the address of a local file says."""
    if isinstance(data.get("path"), str):
        return str(data["path"])
    address = data.get("image")
    if not isinstance(address, str):
        raise ConfigError(f"{where}: its data has neither `path` nor `image`.")
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("unreadable:")
    if parts.path == urlsplit(LOCAL_FILES).path:
        return "".join(parse_qs(parts.query).get("d", []))
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        raise ConfigError(
            f"{where}: which file {address[:80]!r} is, nobody can know; make the tasks with `arbiter annotate tasks`, "
            "which writes a `path` beside it."
        )
    return address


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
