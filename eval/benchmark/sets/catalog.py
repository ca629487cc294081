"""Every published data set that can be read here: what kind it is, its terms, and what of its columns was verified."""

from dataclasses import dataclass
from typing import Literal

from judge.data.examples import EXTERNAL_SETS
from judge.data.published import Origin
from judge.data.published_sets import PUBLISHED_SETS

from .load import POLICY_SETS


@dataclass(frozen=True)
class ReadableSet:
    """One published data set."""

    name: str
    """What a spec begins with: `load_examples` reads categories, `load_policy_set` policies."""
    shape: Literal["categories", "policies"]
    """Images labelled with categories of one taxonomy, or rows that bring a policy each."""
    taxonomy: str | None
    """The shipped taxonomy of its categories."""
    origin: Origin


_UNSAFEBENCH = Origin(
    hub="yiting/UnsafeBench",
    access="gated: accept its terms on the hub",
    licence="research; a later data card allows responsible commercial use; gated",
    verified="columns, splits and names of categories: the data card and the authors' code",
    assumed="nothing",
)


def readable_sets() -> tuple[ReadableSet, ...]:
    """All of them, those with categories first."""
    externals = {
        name: Origin(
            hub, "public", "not stated on the data card", "index, image, label: the authors' code", "nothing"
        )
        for name, (hub, _) in EXTERNAL_SETS.items()
    }
    categories = [("unsafebench", _UNSAFEBENCH, "unsafebench")]
    categories += [(name, origin, "unsafebench") for name, origin in externals.items()]
    categories += [(name, one.origin, one.taxonomy) for name, one in PUBLISHED_SETS.items()]
    return (
        *(ReadableSet(name, "categories", taxonomy, origin) for name, origin, taxonomy in categories),
        *(ReadableSet(name, "policies", None, one.origin) for name, one in POLICY_SETS.items()),
    )
