"""LlavaGuard (arXiv 2406.05113): images under a policy of nine categories, some of which a row declares otherwise.

Terms: annotations Apache 2.0 according to the repository; images under their own (SMID, web pages). Gated,
`AIML-TUDA/LlavaGuard` on the hub. The data set holds no images but their addresses.

Seen, in public code that reads it: `test.csv` of the data set has the columns id, url, rating (Safe, Unsafe), category
(`O3: Sexual Content`, `NA: None applying`) and policy (the whole prompt). Seen, in the authors' scripts
(`ml-research/LlavaGuard` @90d6c2b, `llavaguard/data/build_dataset.py`, `llavaguard/taxonomy/augmentation.py`): the JSON
files that they write are lists with id, image, score, category and conversations, of which the first is the prompt and
the second the answer in JSON. Both are read. Assumed and not verified: `rationale` and `score` as columns of the CSV,
both optional.

Images are not downloaded. Put each under `images/`, named as the last part of its address; where the images are in
another column, `?image=COLUMN` names it.

A prompt states each category's text: the usual one, one that declares it non-violating, or one that declares it
sensitive (`llavaguard/taxonomy/taxonomies.py`, `custom_policy_dict_v2`). All nine stay in the policy, each with
the text that the row gives it, as published. The grade of harm (`score`) becomes a severity from 0 to 3.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from judge.data.labels import UnusableRowError
from judge.data.layouts import Layout, Record
from judge.data.published import Origin
from prompts.taxonomy import Category

from .rows import PolicyRow
from .texts import category, policy

ORIGIN = Origin(
    hub="AIML-TUDA/LlavaGuard",
    access="gated: accept its terms on the hub; it lists addresses of images, which you fetch into `images/`",
    licence="annotations Apache 2.0, images under their own terms; gated",
    verified="test.csv with id, url, rating, category, policy: public code that reads it; JSON: the authors' scripts",
    assumed="the optional columns rationale and score of the CSV",
    whole=False,
)
LAYOUT = Layout(
    columns={
        "image": "url|image",
        "address": "url|image",
        "id": "id",
        "rating": "rating",
        "category": "category",
        "policy": "policy",
        "rationale": "rationale",
        "score": "score",
        "conversations": "conversations",
    },
    required=("image", "address", "id"),
    splits=("train", "test", "eval", "val", "validation"),
    use=lambda name: PurePosixPath(name).stem in ("train", "eval", "test"),
    images="images",
    base_names=True,
)
PARTS = {"validation": ("eval", "validation")}
GRADES = {"generally": 0, "barely": 1, "moderately": 2, "highly": 3}
"""First word of a grade (`Generally Safe`, in older files `Generally Acceptable`) -> severity."""
_RATINGS = {"safe": False, "compliant": False, "unsafe": True, "review needed": True}
_ENTRY = re.compile(
    r"^(?P<code>O\d+): ?(?P<name>[^\n]+?):? *\n(?P<text>.*?)(?=^O\d+: |^Assessment Steps|\Z)",
    re.DOTALL | re.MULTILINE,
)
_CHANGED = re.compile(r"is declared as (non-violating|sensitive)", re.IGNORECASE)


def read_row(record: Record) -> PolicyRow:
    """One row: an image under nine categories in the wording of the row's policy.

    Raises:
        UnusableRowError: a policy, rating, category or answer that cannot be understood, or that contradict each other.
    """
    values = _answered(record.values)
    categories = _categories(values.get("policy"))
    unsafe, code = _rating(values.get("rating")), _code(values.get("category"))
    if unsafe and code not in categories:
        raise UnusableRowError(
            "contradictory_label", f"unsafe, in category {code or 'none'}, which its policy lacks"
        )
    changed = sorted(name for name, one in categories.items() if _CHANGED.search(one.definition))
    violated = {categories[code].key} if unsafe and code else set()
    keys = {one.key for one in categories.values()}
    name = str(values.get("id") or "")
    if not name:
        raise UnusableRowError("bad_row", "no id")
    return PolicyRow(
        id=f"{record.split}/{name}",
        image_id=_picture(record),
        image=record.image,
        split=record.split,
        taxonomy=policy("LlavaGuard", list(categories.values())),
        violates=frozenset(violated),
        # An unsafe row names one category; whether the image violates others was not labelled.
        unknown=frozenset(keys - violated) if unsafe else frozenset(),
        area=code or "",
        changed=code in changed,
        severity=_grade(values.get("score")),
        facts={"category": code, "changed": changed, "rationale": values.get("rationale")},
    )


def _picture(record: Record) -> str:
    """What tells pictures apart: the name of the file, or the digest of an image that the table holds itself."""
    if isinstance(record.image, bytes):
        return hashlib.sha256(record.image).hexdigest()[:16]
    address = record.values["address"]
    if not isinstance(address, str) or not PurePosixPath(address).name:
        raise UnusableRowError("bad_row", "no address of its image, which tells the images apart")
    return PurePosixPath(address).name


def _answered(values: Mapping[str, Any]) -> dict[str, Any]:
    """The row's values, with prompt and answer taken from a conversation where it has one."""
    conversation = values.get("conversations")
    if conversation is None:
        return dict(values)
    try:
        prompt, answer = (turn["value"] for turn in conversation)
        answer = json.loads(answer) if isinstance(answer, str) else answer
        found = {
            "policy": prompt,
            "rating": answer.get("rating", answer.get("decision")),
            "category": answer.get("category", answer.get("image-category", values.get("category"))),
            "rationale": answer.get("rationale", answer.get("assessment")),
        }
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UnusableRowError("bad_row", "conversations is not a prompt and an answer in JSON") from error
    return {**values, **found}


def _categories(prompt: Any) -> dict[str, Category]:
    """Code -> category, of a prompt as published."""
    text = prompt.replace("<image>", "") if isinstance(prompt, str) else ""
    entries = {entry["code"]: entry for entry in _ENTRY.finditer(text)}
    if not entries:
        raise UnusableRowError("bad_policy", "no category of the form 'O1: NAME:' with its text below")
    return {code: category(entry["name"], entry["text"], code) for code, entry in entries.items()}


def _rating(value: Any) -> bool:
    if value in (None, ""):
        raise UnusableRowError("no_label", "the row has no rating")
    word = str(value).strip().casefold()
    if word not in _RATINGS:
        raise UnusableRowError("bad_label", f"rating {value!r}; allowed: Safe, Unsafe")
    return _RATINGS[word]


def _code(value: Any) -> str | None:
    """`O3` of `O3: Sexual Content`; None where no category applies."""
    word = str(value or "").partition(":")[0].strip().upper()
    if word in ("", "NA", "10"):
        return None
    if not re.fullmatch(r"O\d+", word):
        raise UnusableRowError("unknown_category", f"{value!r}; expected one such as 'O3: Sexual Content'")
    return word


def _grade(value: Any) -> int | None:
    if value in (None, ""):
        return None
    word = str(value).split()[0].casefold()
    if word not in GRADES:
        raise UnusableRowError("bad_severity", f"score {value!r}; expected one such as 'Highly Unsafe'")
    return GRADES[word]
