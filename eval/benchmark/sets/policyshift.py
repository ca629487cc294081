"""PolicyShiftBench (arXiv 2607.05910): 2,000 rows on 265 images, each a policy and whether it blocks the image.

Terms: non-commercial research (TERMS.md of the data set, `PolicyShiftGuard/PolicyShiftBench` on the hub).

Columns, seen in `ssmisya/PolicyShiftGuard` @7359142, `vllm_guard/datasets/schema.py` and
`vllm_guard/data_curation/conversion.py`: question, image, answer, image_idx, section_id, section_title, policy_name,
tier, discrimination_score, policy_description, label (`block` or `pass`), split_type, violated_categories (numbers of
sections), and in training splits reason, reason_source, target_text. Splits (`docs/data.md` there): id_test, ood_test,
sft, sft_think, rl, and the first two with `_mini`; `test` stands for id_test and ood_test together. The files are
Parquet with embedded images (the data card). Assumed: that their names hold the split's.

A `question` lists one policy for each of seven risk areas. The label of a test row is that of its own policy; the
others were chosen to pass the image where one of them does (`sampling.py` there). So a row can be asked in two
forms: `policy`, its own policy alone, or `bundle`, all seven as published. A row whose label comes from another
area's policy is skipped in the first form.
"""

import re
from typing import Any, Literal

from judge.data.labels import UnusableRowError
from judge.data.layouts import Layout, Record
from judge.data.published import Origin
from judge.data.sources import split_in_path
from prompts.taxonomy import Category

from .rows import PolicyRow
from .texts import category, policy

Form = Literal["policy", "bundle"]
ORIGIN = Origin(
    hub="PolicyShiftGuard/PolicyShiftBench",
    access="non-commercial research only; accept its terms on the hub if it asks for them",
    licence="non-commercial research",
    verified="columns, types and splits: the authors' code; Parquet with embedded images: the data card",
    assumed="that files are named by split",
)
SPLITS = ("id_test", "ood_test", "sft", "sft_think", "rl", "id_test_mini", "ood_test_mini")
LAYOUT = Layout(
    columns={
        name: name
        for name in (
            "image",
            "image_idx",
            "section_id",
            "section_title",
            "policy_name",
            "policy_description",
            "label",
            "tier",
            "discrimination_score",
            "violated_categories",
            "question",
            "reason",
        )
    },
    required=(
        "image",
        "image_idx",
        "section_id",
        "section_title",
        "policy_name",
        "policy_description",
        "label",
    ),
    splits=SPLITS,
    use=lambda name: split_in_path(name, SPLITS) is not None,
)
PARTS = {"test": ("id_test", "ood_test")}
_LABELS = {"block": True, "pass": False}
_ENTRY = re.compile(
    r"\[Category ID\]:[ ]*(?P<area>\d+)\s+\[Category Name\]:[ ]*(?P<title>[^\n]+)\n"
    r"-- Policy:[ ]*(?P<name>[^\n]+)\n(?P<text>.*?)(?=\n-{20,}|\Z)",
    re.DOTALL,
)


def read_row(record: Record, form: Form) -> PolicyRow:
    """One row in the form asked for.

    Raises:
        UnusableRowError: a label, an area or a policy that cannot be understood, or that contradict each other.
    """
    values = record.values
    unsafe = _label(values["label"])
    area, image = _number(values["section_id"], "section_id"), _number(values["image_idx"], "image_idx")
    violated = _areas(values.get("violated_categories"))
    if violated is not None and bool(violated) is not unsafe:
        raise UnusableRowError(
            "contradictory_label", f"{values['label']}, yet violated areas are {sorted(violated)}"
        )
    own = category(values["section_title"], values["policy_description"], f"{area:02d}")
    if form == "bundle":
        policies = _bundle(values.get("question"))
        if area not in policies:
            raise UnusableRowError("bad_row", f"its question holds no policy for area {area}")
        blocked = {area} if violated is None and unsafe else violated or set()
    else:
        policies = {area: own}
        blocked = {area} if unsafe else set()
        if violated and area not in violated:
            raise UnusableRowError(
                "contradictory_label", f"blocked in area {min(violated)}, by another policy than its own"
            )
    unknown = blocked - policies.keys()
    if unknown:
        raise UnusableRowError("unknown_category", f"violated area {min(unknown)} is not in its question")
    name = str(values["policy_name"])
    return PolicyRow(
        id=f"{record.split}/{image}/{area}/{name}",
        image_id=str(image),
        image=record.image,
        split=record.split,
        taxonomy=policy(name, list(policies.values())),
        violates=frozenset(policies[number].key for number in blocked),
        area=str(area),
        facts={
            "tier": values.get("tier"),
            "section": values["section_title"],
            "discrimination_score": values.get("discrimination_score"),
            "violated_categories": sorted(violated or ()),
            "reason": values.get("reason"),
        },
    )


def _bundle(question: Any) -> dict[int, Category]:
    """Area -> its policy, of the prompt as published."""
    entries = list(_ENTRY.finditer(question)) if isinstance(question, str) else []
    if not entries:
        raise UnusableRowError("bad_row", "its question holds no list of policies")
    return {
        int(entry["area"]): category(entry["title"], entry["text"], f"{int(entry['area']):02d}")
        for entry in entries
    }


def _label(value: Any) -> bool:
    if value in (None, ""):
        raise UnusableRowError("no_label", "the row has no label")
    word = str(value).strip().casefold()
    if word not in _LABELS:
        raise UnusableRowError("bad_label", f"{value!r}; allowed: {', '.join(_LABELS)}")
    return _LABELS[word]


def _number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UnusableRowError("bad_row", f"{what} is {value!r}, not a whole number")
    return int(value)


def _areas(value: Any) -> set[int] | None:
    """Numbers of violated areas; None where the table does not say."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise UnusableRowError("bad_row", f"violated_categories is {value!r}, not a list of numbers")
    return {_number(number, "a violated category") for number in value}
