"""SafeEditBench (arXiv 2603.01228): 601 rows of unsafe images and their edited, safe twins under five policies.

Terms: CC BY 4.0, gated; its access form restricts it to research (`tyodd/SafeEditBench` on the hub).

Columns, seen in the front matter of the data card: image, image_path, safety_label (class label safe, unsafe),
policy_name (class label Policy L1 ... Policy L5), policy; one split, test, in `data/test-*.parquet`. The JSON lines of
the authors' evaluation (`adorableChowhound/SafeGuard-VL` @58efa9f, `eval/safeeditbench.py`) have image_path,
safety_label, policy and policy_level, and are read too.

Assumed: that a twin's file is named like its original with `_safe` appended, as the script that made them names it
(`data/safe_edit/safe_edit.py` there). Where that is wrong, twins are not found, and nothing else changes. The length of
the policies is not known; a text longer than a category's definition may be is a skipped row.
"""

from pathlib import PurePosixPath
from typing import Any

from judge.data.labels import UnusableRowError
from judge.data.layouts import Layout, Record
from judge.data.published import Origin

from .rows import PolicyRow
from .texts import category, one_line, policy

ORIGIN = Origin(
    hub="tyodd/SafeEditBench",
    access="gated: accept its terms on the hub, research only",
    licence="CC BY 4.0; gated for research",
    verified="columns, class names, split and files: the data card; JSON lines: the authors' evaluation",
    assumed="the names of twins, and that policies fit into a definition",
)
LAYOUT = Layout(
    columns={
        "image": "image|image_path",
        "path": "image_path",
        "label": "safety_label",
        "policy_name": "policy_name|policy_level",
        "policy": "policy",
    },
    required=("image", "path", "label", "policy_name", "policy"),
)
_LABELS = {"safe": False, "0": False, "unsafe": True, "1": True}
_EDITED = "_safe"


def read_row(record: Record) -> PolicyRow:
    """One row: an image under one of the five policies, as one category of that name.

    Raises:
        UnusableRowError: a label, a path or a policy that cannot be understood.
    """
    values = record.values
    path, level = values["path"], values["policy_name"]
    if not isinstance(path, str) or not path.strip():
        raise UnusableRowError("bad_row", "no image_path, which tells the images apart")
    if level in (None, ""):
        raise UnusableRowError("bad_row", "no policy_name")
    own = category(level, values["policy"])
    stem = PurePosixPath(path).stem
    return PolicyRow(
        id=f"{record.split}/{path}/{one_line(level)}",
        image_id=path,
        image=record.image,
        split=record.split,
        taxonomy=policy(level, [own]),
        violates=frozenset({own.key} if _label(values["label"]) else ()),
        facts={"level": str(level), "twin": stem.removesuffix(_EDITED), "edited": stem.endswith(_EDITED)},
    )


def _label(value: Any) -> bool:
    if value is None or value == "":
        raise UnusableRowError("no_label", "the row has no label")
    word = str(value).strip().casefold()
    if isinstance(value, bool) or word not in _LABELS:
        raise UnusableRowError("bad_label", f"{value!r}; allowed: {', '.join(_LABELS)}")
    return _LABELS[word]
