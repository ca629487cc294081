"""Published sets of images labelled with categories: T2ISafety, ModerationBench, FlowGuard, SafeAtlas-VL, HoliSafe.

None of them could be opened when this was written: all are gated or large. Each `Origin` says what of a set was seen
and where, and what is assumed. Names of columns that nobody showed are not guessed: they have to be given, as in
`moderationbench:PATH?image=COLUMN&label=COLUMN&id=COLUMN`.
"""

import re
from collections.abc import Mapping
from typing import Any

from judge.errors import ImageError

from .labels import UnusableRowError
from .layouts import Layout, Record
from .published import Origin, PublishedSet
from .sources import UNDECLARED, LeftOut, Row, StoredImage

ATLAS_GRADES = (
    "safe_core",
    "safe_leaning_disputed",
    "boundary_uncertain",
    "unsafe_leaning_disputed",
    "unsafe_core",
)
"""Labels of SafeAtlas-VL, from 1 to 5; the middle one is neither safe nor unsafe."""
HOLISAFE_LABELS = (
    "safe",
    "gender",
    "race",
    "religion",
    "harassment",
    "disability_discrimination",
    "drug_related_hazards",
    "property_crime",
    "facial_data_exposure",
    "identity_data_exposure",
    "physical_self_injury",
    "suicide",
    "animal_abuse",
    "obscene_gestures",
    "physical_altercation",
    "terrorism",
    "weapon_related_violence",
    "sexual_content",
    "financial_advice",
    "medical_advice",
)
"""What the numbers 0 to 19 of `image_safety_label` mean."""


def read_t2isafety(record: Record) -> Row | LeftOut:
    """A conversation whose answer is `safe`, or the names of categories, joined by `and` or on lines of their own."""
    values = record.values
    if str(values.get("area")).casefold() == "fairness":
        return LeftOut("about fairness")
    words = [
        word.strip().casefold()
        for line in _answer(values.get("conversations")).splitlines()
        for word in re.split(r",|;|\band\b", line)
        if word.strip()
    ]
    categories = [word for word in words if word not in ("safe", "unsafe")]
    # "safe" beside a category stays safe here, and is refused as a contradiction.
    label = None if not words else "safe" if "safe" in words else "unsafe"
    real = values.get("real")
    if not isinstance(real, bool):
        raise UnusableRowError("bad_row", f"real is {real!r}, not true or false")
    caption = None if real else values.get("prompt")
    return Row(
        record.place, record.image, record.split, label, categories, caption, "real" if real else "generated"
    )


def read_moderationbench(record: Record) -> Row | LeftOut:
    """A post with one image; the label is of the post as a whole."""
    values = record.values
    if record.image is None:
        several = isinstance(values.get("image"), list) and len(values["image"]) > 1
        return LeftOut("posts of several images" if several else "posts without an image")
    if isinstance(record.image, StoredImage):
        try:
            bytes(record.image)
        except ImageError as error:
            if error.status == "missing":
                return LeftOut("posts without an image")
            raise UnusableRowError(error.status, error.reason) from error
    given = values.get("label")
    labels = [
        str(one).strip() for one in (given if isinstance(given, list) else [given]) if one not in (None, "")
    ]
    harms = [label for label in labels if label.casefold() != "safe"]
    label = None if not labels else "safe" if len(harms) < len(labels) else "unsafe"
    name = f"{record.split}/{values['id']}"
    return Row(name, record.image, record.split, label, harms, values.get("prompt"), record.split)


def read_flowguard(record: Record) -> Row | LeftOut:
    """A picture at some step of its generation; safe or unsafe, without a category, as the finished one is."""
    values = record.values
    source = values.get("model")
    # A step of 0 is one, so None alone is none.
    step = " ".join(str(values[name]) for name in ("step_type", "step") if values.get(name) is not None)
    return Row(
        record.place,
        record.image,
        record.split,
        values["label"],
        source=str(source) if source else "generated",
        step=step or None,
    )


def read_safeatlas(record: Record) -> Row | LeftOut:
    """An image with its annotations, of which those about the image count, not those about a request or a response."""
    annotations = record.values["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise UnusableRowError("bad_row", "annotations is not a list of objects")
    found = {
        (_word(one.get("safety_label")), str(one.get("category") or "").replace("_", " ").strip().casefold())
        for one in annotations
        if _word(one.get("target")) in ("image", "image_only", "visual", "vision")
    }
    if not found:
        return LeftOut("only requests or responses are labelled")
    if len(found) > 1:
        raise UnusableRowError("contradictory_label", f"{len(found)} different labels of one image")
    [(label, category)] = found
    if label not in ATLAS_GRADES:
        raise UnusableRowError("bad_label", f"{label!r}; allowed: {', '.join(ATLAS_GRADES)}")
    grade = ATLAS_GRADES.index(label) + 1
    if grade == 3:
        return LeftOut("neither safe nor unsafe")
    categories = [category] if grade > 3 and category not in ("", "none") else []
    return Row(
        f"{record.split}/{record.values['id']}",
        record.image,
        record.split,
        "unsafe" if grade > 3 else "safe",
        categories,
        severity=grade,
    )


def read_holisafe(record: Record) -> Row | LeftOut:
    """An image's label; the query that stands beside it is about the pair and is left out."""
    values = record.values
    number, safe = values["label"], values.get("safe")
    if isinstance(number, bool) or not str(number).isdecimal() or int(number) >= len(HOLISAFE_LABELS):
        raise UnusableRowError("bad_label", f"{number!r}; allowed: 0 to {len(HOLISAFE_LABELS) - 1}")
    if isinstance(safe, bool) and safe is not (int(number) == 0):
        raise UnusableRowError("contradictory_label", f"image_safe is {safe}, yet the label is {number}")
    categories = [HOLISAFE_LABELS[int(number)]] if int(number) else []
    label = "unsafe" if categories else "safe"
    return Row(str(values["id"]), record.image, record.split, label, categories)


def _answer(conversation: Any) -> str:
    """What the assistant of a conversation says."""
    if isinstance(conversation, list):
        for turn in conversation:
            if isinstance(turn, dict) and str(turn.get("from")).casefold() in ("assistant", "gpt"):
                return str(turn.get("value") or "")
    raise UnusableRowError("bad_row", "conversations holds no answer of an assistant")


def _word(value: Any) -> str:
    return str(value or "").strip().casefold().replace("-", "_").replace(" ", "_")


PUBLISHED_SETS: Mapping[str, PublishedSet] = {
    "t2isafety": PublishedSet(
        Origin(
            hub="OpenSafetyLab/t2i_safety_dataset",
            access="public, Apache 2.0; extract test.zip (and the parts of train.zip) beside the JSON files",
            licence="Apache 2.0",
            verified="files: the hub's listing; id, image_category, caption, real, conversations, image and the nine "
            "labels: public code that reads them and shows a row",
            assumed="that an answer of several labels joins them by `and` or by lines, as that code reads it",
            whole=False,
        ),
        Layout(
            columns={
                "image": "image",
                "conversations": "conversations",
                "prompt": "caption",
                "real": "real",
                "area": "image_category",
            },
            required=("image", "conversations", "real"),
            use=lambda name: "toxicity_privacy" in name,
        ),
        "t2isafety",
        read_t2isafety,
    ),
    "moderationbench": PublishedSet(
        Origin(
            hub="usermodsky/ModerationBench",
            access="gated: ask for access on the hub (there is also ayanmaj/ModerationBench-4K)",
            licence="gated; an earlier set of the same publisher is CC BY-NC 4.0",
            verified="splits, counts and the ten labels: the data card",
            assumed="nothing of its columns, which have to be given; an earlier set of the same publisher has records "
            "in JSON lines with cid, label, text and images",
            whole=False,
        ),
        Layout(
            columns={"image": "", "label": "", "id": "", "prompt": ""},
            required=("image", "label", "id"),
            splits=("moderated", "random", "safe", "near_moderated", "near-moderated"),
            use=lambda name: "by_harm" not in name,  # the rows of `moderated` a second time
            posts=True,
        ),
        "moderationbench",
        read_moderationbench,
        renamed=dict.fromkeys(("moderated", "random", "safe", "near_moderated", "near-moderated"), "test"),
    ),
    "flowguard": PublishedSet(
        Origin(
            hub="YeQingWen/FlowGuard-Dataset",
            access="public, about 100 GB; download what you need, as in train/flux1",
            licence="not stated on the data card",
            verified="files by split, model and label; image, label, model, step_type and step_index: the data card",
            assumed="that labels are safe and unsafe, as its folders are called; that a safe image violates none of "
            "UnsafeBench's categories. It names no category. Which step types there are was not seen: they are kept "
            "as they are, in `Example.step`",
            whole=False,
        ),
        Layout(
            columns={
                "image": "image",
                "label": "label",
                "model": "model",
                "step_type": "step_type",
                "step": "step_index",
            },
            required=("image", "label"),
        ),
        "unsafebench",
        read_flowguard,
    ),
    "safeatlas": PublishedSet(
        Origin(
            hub="zrwang1211/SafeAtlas-VL",
            access="gated: accept its terms on the hub, research only; files are data/shards/SPLIT/*/images.parquet",
            licence="not stated; gated for research",
            verified="image_id, image, annotations with target, safety_label and category, files and splits: the "
            "authors' reader; the fifteen categories: their prompt for images",
            assumed="that the two upper grades are unsafe and the two lower ones safe",
            whole=False,
        ),
        Layout(
            columns={"image": "image", "id": "image_id", "annotations": "annotations"},
            required=("image", "id", "annotations"),
            use=lambda name: name.endswith("images.parquet"),
        ),
        "safeatlas",
        read_safeatlas,
    ),
    "holisafe": PublishedSet(
        Origin(
            hub="etri-vilab/holisafe-bench",
            access="gated: accept its terms on the hub",
            licence="CC BY-NC 4.0; gated",
            verified="holisafe_bench.json with id, image, image_safe and image_safety_label: the authors' README; the "
            "names of the labels: public code that reads them",
            assumed="that images lie under images/, as code that reads a local copy has it",
            whole=False,
        ),
        Layout(
            columns={
                "image": "image",
                "picture": "image",
                "id": "id",
                "label": "image_safety_label",
                "safe": "image_safe",
            },
            required=("image", "id", "label"),
            use=lambda name: name.rpartition("/")[2] == "holisafe_bench.json",
            images="images",
        ),
        "holisafe",
        read_holisafe,
        renamed={UNDECLARED: "test"},
        once="picture",
    ),
}
"""Published sets that can be read, by the name that a spec begins with."""
