"""Which taxonomies a server knows by name: the judge's own, those that ship, and those that moderators saved."""

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from prompts.names import nearest
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy, shipped_taxonomies

from .errors import ApiError, bad_request

if TYPE_CHECKING:
    from judge.records.entries import SavedTaxonomy
    from judge.records.records import Records

    from .service import JudgeService

Source = Literal["judge", "shipped", "saved"]
_VERSIONS = 100
"""Versions of a saved taxonomy that are listed, the newest ones."""


class Known(NamedTuple):
    """A taxonomy and where it comes from."""

    taxonomy: Taxonomy
    source: Source
    versions: tuple[str, ...]
    """All that can be asked for, oldest first."""


class Taxonomies:
    """The taxonomies of one server, by name; a name of the judge or of the package hides a saved one.

    Args:
        service: whose default taxonomy is the judge's own.
        records: where saved ones are; None without.
    """

    def __init__(self, service: "JudgeService", records: "Records | None" = None) -> None:
        self._service = service
        self._records = records

    @property
    def default(self) -> Taxonomy:
        """The taxonomy of questions that name none."""
        return self._service.default_taxonomy

    async def every(self) -> list[Known]:
        """All of them, the judge's own first; of saved ones the newest version."""
        found = self._given()
        if self._records is not None:
            from .stored import ask_records

            names = {known.taxonomy.name for known in found}
            saved = map(_saved, await ask_records(self._records.taxonomies))
            found += [known for known in saved if known.taxonomy.name not in names]
        return found

    async def find(self, name: str) -> Known:
        """The taxonomy `name`, or `name@version`.

        Raises:
            ApiError: 404 `taxonomy_not_found`, proposing the closest one.
        """
        title, _, version = name.partition("@")
        for known in self._given():
            if known.taxonomy.name == title and version in ("", *known.versions):
                return known
        every = await self.every()
        newest = next((known for known in every if known.taxonomy.name == title), None)
        if newest is not None and version in ("", str(newest.taxonomy.version)):
            return newest
        if newest is not None and newest.source == "saved" and version.isdecimal():
            return await self._version(title, int(version[:9]))
        names = [known.taxonomy.name for known in every]
        there = f" in version {version[:40]!r}" if newest is not None else nearest(title[:100], names)
        raise ApiError(
            404,
            "taxonomy_not_found",
            f"No taxonomy {title[:100]!r}{there}. There are: {', '.join(names)}.",
            param="taxonomy",
        )

    async def save(self, name: str, taxonomy: Taxonomy, moderator: str | None) -> tuple[Known, bool]:
        """Save the next version under a name; whether it differs from the newest one, else nothing is saved.

        Raises:
            ApiError: 400 `name_taken` for a name of the judge's own or of one that ships; 404 without records.
        """
        if self._records is None:
            raise ApiError(404, "not_found", "This server keeps no records, so it saves no taxonomies.")
        if name in (known.taxonomy.name for known in self._given()):
            raise bad_request(
                f"{name!r} ships or is the judge's own; save it under another name.",
                param="name",
                code="name_taken",
            )
        from .stored import ask_records

        records = self._records
        before = next((s.version for s in await ask_records(records.taxonomies) if s.name == name), 0)
        saved = await ask_records(records.save_taxonomy, name, taxonomy, moderator)
        return _saved(saved), saved.version > before

    async def _version(self, name: str, version: int) -> Known:
        from .stored import ask_records

        if self._records is None:
            raise ApiError(404, "taxonomy_not_found", f"No taxonomy {name!r}.", param="taxonomy")
        return _saved(await ask_records(self._records.taxonomy, name, version))

    def _given(self) -> list[Known]:
        """The judge's own and those that ship; a shipped one that is the judge's own is not repeated."""
        own = self.default
        found = [Known(own, "judge", (str(own.version),))]
        for name in shipped_taxonomies():
            if name != own.name:
                one = shipped(name)
                found.append(Known(one, "shipped", (str(one.version),)))
        return found


def _saved(saved: "SavedTaxonomy") -> Known:
    versions = range(max(1, saved.version - _VERSIONS + 1), saved.version + 1)
    return Known(saved.taxonomy, "saved", tuple(map(str, versions)))


@cache
def shipped(name: str) -> Taxonomy:
    """A taxonomy that ships, read once."""
    return load_taxonomy(name)
