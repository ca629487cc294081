"""Which taxonomies a server knows by name: the judge's own, those that ship, and those that moderators saved."""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prompts.names import nearest
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy, shipped_taxonomies

from .errors import ApiError

if TYPE_CHECKING:
    from .service import JudgeService

Source = Literal["judge", "shipped", "saved"]


class Known(NamedTuple):
    """A taxonomy and where it comes from."""

    taxonomy: Taxonomy
    source: Source


class Taxonomies:
    """The taxonomies of one server, by name.

    Args:
        service: whose default taxonomy is the judge's own.
        records: where saved ones are; None without.
    """

    def __init__(self, service: "JudgeService", records: Any = None) -> None:
        self._service = service
        self._records = records

    @property
    def default(self) -> Taxonomy:
        """The taxonomy of questions that name none."""
        return self._service.default_taxonomy

    def every(self) -> list[Known]:
        """All of them, the judge's own first; a shipped one of the same name and hash is not repeated."""
        found = [Known(self.default, "judge")]
        found += [Known(shipped(name), "shipped") for name in shipped_taxonomies()]
        return found[:1] + [known for known in found[1:] if known.taxonomy.hash != self.default.hash]

    def find(self, name: str) -> Known:
        """The taxonomy `name`, or `name@version`.

        Raises:
            ApiError: 404 `taxonomy_not_found`, proposing the closest one.
        """
        title, at, version = name[:200].rpartition("@")
        title = title if at else version
        every = self.every()
        for known in every:
            if known.taxonomy.name == title and (not at or str(known.taxonomy.version) == version):
                return known
        names = [known.taxonomy.name for known in every]
        raise ApiError(
            404,
            "taxonomy_not_found",
            f"No taxonomy {name[:200]!r}{nearest(title, names)}. There are: {', '.join(names)}.",
            param="taxonomy",
        )


@cache
def shipped(name: str) -> Taxonomy:
    """A taxonomy that ships, read once."""
    return load_taxonomy(name)
