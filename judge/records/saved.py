"""Taxonomies in the database: versions saved under a name, and the wordings that verdicts were made by."""

from dataclasses import replace
from functools import lru_cache

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from judge.runs.machine import now
from prompts.errors import TaxonomyError
from prompts.names import check_name
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import parse_taxonomy

from .entries import SavedTaxonomy
from .errors import NotFoundError
from .tables import PolicyRow, SavedTaxonomyRow


def save_version(session: Session, name: str, taxonomy: Taxonomy, by: str | None) -> SavedTaxonomy:
    """See `Records.save_taxonomy`."""
    check_name(name, "the name of a taxonomy")
    if bad := sorted(set("@/?#") & set(name)):
        raise TaxonomyError(
            f"The name of a taxonomy is a part of addresses and cannot hold {' '.join(bad)}: {name!r}."
        )
    newest = session.scalars(_versions(name).limit(1)).first()
    if newest is not None and _saved(newest).taxonomy.categories == taxonomy.categories:
        return _saved(newest)
    version = 1 if newest is None else newest.version + 1
    taxonomy = replace(taxonomy, name=name, version=str(version))
    row = SavedTaxonomyRow(
        name=name, version=version, hash=taxonomy.hash, yaml=taxonomy.to_yaml(), saved_at=now(), saved_by=by
    )
    session.add(row)
    session.flush()
    return _saved(row)


def saved_version(session: Session, name: str, version: int | None) -> SavedTaxonomy:
    """See `Records.taxonomy`."""
    wanted = (
        _versions(name) if version is None else _versions(name).where(SavedTaxonomyRow.version == version)
    )
    row = session.scalars(wanted.limit(1)).first()
    if row is not None:
        return _saved(row)
    newest = session.scalars(_versions(name).limit(1)).first()
    if newest is not None:
        raise NotFoundError(f"Taxonomy {name!r} has no version {version}; there are 1 to {newest.version}.")
    known = ", ".join(repr(saved.name) for saved in newest_taxonomies(session)) or "none"
    raise NotFoundError(f"No taxonomy {name!r} is saved; saved are: {known}.")


def newest_taxonomies(session: Session) -> list[SavedTaxonomy]:
    """See `Records.taxonomies`."""
    # Versions of one name have rising ids.
    newest = select(func.max(SavedTaxonomyRow.id)).group_by(SavedTaxonomyRow.name)
    rows = select(SavedTaxonomyRow).where(SavedTaxonomyRow.id.in_(newest)).order_by(SavedTaxonomyRow.name)
    return [_saved(row) for row in session.scalars(rows)]


def save_policy(session: Session, taxonomy: Taxonomy) -> None:
    """Keep what a verdict is made by; of several taxonomies with one hash the first stays."""
    if session.get(PolicyRow, taxonomy.hash) is None:
        session.add(PolicyRow(hash=taxonomy.hash, yaml=taxonomy.to_yaml()))
        session.flush()


def policy(session: Session, taxonomy_hash: str) -> Taxonomy:
    """See `Records.policy`."""
    row = session.get(PolicyRow, taxonomy_hash)
    if row is None:
        raise NotFoundError(f"No verdict was made by a taxonomy with the hash {taxonomy_hash!r}.")
    return _parsed(row.yaml, f"the stored taxonomy {taxonomy_hash[:16]}")


@lru_cache(maxsize=256)
def _parsed(yaml: str, source: str) -> Taxonomy:
    """A stored taxonomy; parsing YAML takes a tenth of a second, and every decision needs one."""
    return parse_taxonomy(yaml, source)


def _versions(name: str) -> Select[SavedTaxonomyRow]:
    """The versions under a name, newest first."""
    return (
        select(SavedTaxonomyRow)
        .where(SavedTaxonomyRow.name == name)
        .order_by(SavedTaxonomyRow.version.desc())
    )


def _saved(row: SavedTaxonomyRow) -> SavedTaxonomy:
    taxonomy = _parsed(row.yaml, f"the saved taxonomy {row.name!r}")
    return SavedTaxonomy(row.name, row.version, taxonomy, row.saved_at, row.saved_by)
