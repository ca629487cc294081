"""Functions for the rules of Osprey: what the judge says of an event's image, asked once for all call sites.

Osprey constructs a function once for every place in the rules that calls it, so a function that loads a model loads as
many. These ask a server instead, through one client with one pool of connections, and an image that several rules ask
about is judged once.

The contract is that of roostorg/osprey as of August 2026 (after 1.2.0): `UDFBase[Arguments, Result]` with `execute`,
arguments by annotation, `ConstExpr` for what stands literally in a rule. A value that fails is None, a rule with a None
in it is skipped, and None in a comparison of numbers is false. So "could not be judged" must be something else:

- `ArbiterStatus` is never None: `safe`, `unsafe` or `unjudged`, also where the server is down.
- `ArbiterScore` is None where there is no score, never 0.0; its type makes the rule ask `!= None` first.
- `ArbiterLabels` holds `unjudged` where any category was not judged.
- `ArbiterReason` says why, for the description of a rule.
"""

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from cachetools import TTLCache

from judge.errors import ConfigError, MissingExtraError
from prompts.errors import TaxonomyError
from prompts.names import nearest
from prompts.printable import error_line, printable
from prompts.taxonomy import Taxonomy

from .verdict_client import VerdictClient

UNJUDGED = "unjudged"
"""The status, and the label, of what was not judged."""
_REMEMBERED = 4096
"""Images whose verdicts are kept, at most."""
_NO_OSPREY = (
    "These functions run inside Osprey's worker (github.com/roostorg/osprey), which is on no package index: "
    "install Arbiter into the environment of its plugins."
)
LOG = logging.getLogger("arbiter")


@dataclass(frozen=True)
class Seen:
    """What rules can see of a verdict."""

    status: str
    """`safe`, `unsafe` or `unjudged`."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Category -> score; one without a score was not judged."""
    labels: tuple[str, ...] = ()
    """The flagged categories, and `unjudged` where any was not judged."""
    reason: str = ""
    """Why something was not judged; empty where everything was."""
    categories: tuple[str, ...] | None = None
    """All that were asked about; None where there was no answer."""


class SharedVerdicts:
    """One question for all who ask about the same image within some seconds; never raises.

    Args:
        client: asked by as many threads or greenlets as there are.
        seconds: how long a verdict is kept, so that all rules of an event see the same one, whatever happens meanwhile.
    """

    def __init__(self, client: VerdictClient, seconds: float = 10.0) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._asked: TTLCache[bytes, Future[Seen]] = TTLCache(_REMEMBERED, seconds)

    def ask(self, image: str | None, prompt: str | None = None) -> Seen:
        """What is to be seen of an image, by its address, or as a data URL or base64."""
        if not image:
            return Seen(UNJUDGED, labels=(UNJUDGED,), reason="the event has no image")
        key = hashlib.sha256(repr((image, prompt)).encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            future = self._asked.get(key)
            mine = future is None
            if future is None:
                future = self._asked[key] = Future()
        if mine:
            # Resolved whatever happens, as others wait for it; also where a greenlet is killed in here.
            seen = Seen(UNJUDGED, labels=(UNJUDGED,), reason="the question was interrupted")
            try:
                seen = self._ask(image, prompt)
            finally:
                future.set_result(seen)
        return future.result()

    def _ask(self, image: str, prompt: str | None) -> Seen:
        try:
            return seen_of(self.client.ask(image, prompt))
        except Exception as error:
            # Raised, it would be a None, and the rules that should see it would be skipped.
            LOG.log(
                logging.ERROR if isinstance(error, ConfigError) else logging.WARNING,
                "An image was not judged: %s",
                error_line(error),
            )
            return Seen(UNJUDGED, labels=(UNJUDGED,), reason=error_line(error))


def seen_of(row: Mapping[str, Any]) -> Seen:
    """What rules can see of a verdict row (`docs/verdict_row.schema.json`)."""
    categories, scores = tuple(row["thresholds"]), dict(row["scores"])
    flagged = [name for name in categories if row["flags"].get(name)]
    whole = row["status"] != UNJUDGED and all(name in scores for name in categories)
    reason = "" if whole else printable(row.get("reason") or "no reason was given")
    labels = (*flagged, *(() if whole else (UNJUDGED,)))
    return Seen(str(row["status"]), scores, labels, reason, categories)


def make_udfs(client: VerdictClient, *, name: str = "Arbiter", seconds: float = 10.0) -> Sequence[type]:
    """The four functions, for the hook `register_udfs` of a plugin.

    Args:
        client: shared by all call sites. A short `patience`, such as 5 seconds: an event waits for it.
        name: what their names start with, where rules use several taxonomies: a client and a name for each.
        seconds: as in `SharedVerdicts`.

    Raises:
        MissingExtraError: Osprey is not installed.
        ConfigError: `name` cannot start the name of a function; or a category is called `unjudged`.
    """
    if not name.isidentifier() or not name[0].isupper():
        raise ConfigError(f"name {name!r}: give the start of a function's name, such as Arbiter.")
    taxonomy = client.taxonomy if isinstance(client.taxonomy, Taxonomy) else None
    if taxonomy is not None and UNJUDGED in map(str.casefold, taxonomy.names):
        raise ConfigError(
            "A category is called 'unjudged', which is the label of what was not judged; rename it."
        )
    made = _define(SharedVerdicts(client, seconds), taxonomy)
    for one in made:
        one.__name__ = name + one.__name__  # what rules call it by
    return made


def _define(verdicts: SharedVerdicts, taxonomy: Taxonomy | None) -> tuple[type, ...]:
    """The classes; defined here, as their base classes are Osprey's."""
    try:
        from osprey.engine.executor.execution_context import ExecutionContext
        from osprey.engine.udf.arguments import ArgumentsBase, ConstExpr
        from osprey.engine.udf.base import UDFBase
    except ImportError as error:
        raise MissingExtraError(_NO_OSPREY) from error

    # Osprey reads the fields of arguments from annotations, and what is said of them from this source.
    class ImageArguments(ArgumentsBase):  # type: ignore[misc]
        image: str | None
        """The image's address (http or https), or the image as a data URL or base64."""
        prompt: str | None = None
        """What the image was made from, where that is known."""

    class ScoreArguments(ImageArguments):
        category: ConstExpr[str]
        """One of the taxonomy's categories, literally."""

    class Status(UDFBase[ImageArguments, str]):  # type: ignore[misc]
        """What the judge says of an image: safe, unsafe or unjudged. Never None."""

        execute_async, category = True, "HTTP"

        def execute(self, execution_context: ExecutionContext, arguments: ImageArguments) -> str:
            return verdicts.ask(arguments.image, arguments.prompt).status

    class Score(UDFBase[ScoreArguments, float | None]):  # type: ignore[misc]
        """The score of a category, from 0 to 1; None where it was not judged."""

        execute_async, category = True, "HTTP"

        def __init__(self, validation_context: Any, arguments: ScoreArguments) -> None:
            super().__init__(validation_context, arguments)
            # A mistyped category is said when the rules are compiled, at its place in the rule.
            with arguments.category.attribute_errors():
                if taxonomy is not None:
                    taxonomy.index(arguments.category.value)

        def execute(self, execution_context: ExecutionContext, arguments: ScoreArguments) -> float | None:
            return score_of(verdicts.ask(arguments.image, arguments.prompt), arguments.category.value)

    class Labels(UDFBase[ImageArguments, list[str]]):  # type: ignore[misc]
        """The flagged categories; `unjudged` is among them where any category was not judged."""

        execute_async, category = True, "HTTP"

        def execute(self, execution_context: ExecutionContext, arguments: ImageArguments) -> list[str]:
            return list(verdicts.ask(arguments.image, arguments.prompt).labels)

    class Reason(UDFBase[ImageArguments, str]):  # type: ignore[misc]
        """Why the image, or a category, was not judged; empty where everything was."""

        execute_async, category = True, "HTTP"

        def execute(self, execution_context: ExecutionContext, arguments: ImageArguments) -> str:
            return verdicts.ask(arguments.image, arguments.prompt).reason

    return Status, Score, Labels, Reason


def score_of(seen: Seen, category: str) -> float | None:
    """The score of a category, case ignored; None where it was not judged.

    Raises:
        TaxonomyError: the server's taxonomy has no such category.
    """
    known = {} if seen.categories is None else {one.casefold(): one for one in seen.categories}
    if seen.categories is not None and category.casefold() not in known:
        raise TaxonomyError(f"No category {category!r}{nearest(category, seen.categories)}.")
    return seen.scores.get(known.get(category.casefold(), category))
