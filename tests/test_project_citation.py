"""CITATION.cff is what the format allows (version 1.2.0, the fields used here), and says what the package says."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from eval.modules import citations

ROOT = Path(__file__).resolve().parent.parent
CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
NEEDED = {"authors", "cff-version", "message", "title"}
ALLOWED = NEEDED | {"abstract", "type", "version", "license", "keywords", "references", "identifiers", "doi"}
NEEDED_OF_REFERENCE = {"authors", "title", "type"}
ALLOWED_OF_REFERENCE = NEEDED_OF_REFERENCE | {
    *("collection-title", "doi", "identifiers", "issue", "journal", "notes", "volume", "year", "start", "end")
}
TYPES_OF_REFERENCE = {"article", "book", "conference-paper", "data", "generic", "software"}
IDENTIFIERS = {"doi", "url", "swh", "other"}


def check_authors(authors):
    assert authors
    for author in authors:
        # A person has parts of a name, an entity one name.
        assert author.keys() <= {"family-names", "given-names"} or author.keys() == {"name"}
        assert all(isinstance(part, str) and part for part in author.values())


def test_the_file_has_the_fields_of_the_format():
    assert CFF.keys() >= NEEDED
    assert CFF.keys() <= ALLOWED
    assert (CFF["cff-version"], CFF["type"]) == ("1.2.0", "software")
    check_authors(CFF["authors"])


def test_it_says_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (str(CFF["version"]), CFF["license"]) == (project["version"], project["license"])


@pytest.mark.parametrize("work", CFF["references"], ids=lambda work: work["title"][:30])
def test_a_reference_has_the_fields_of_the_format(work):
    assert work.keys() >= NEEDED_OF_REFERENCE
    assert work.keys() <= ALLOWED_OF_REFERENCE
    assert work["type"] in TYPES_OF_REFERENCE
    assert isinstance(work["year"], int)
    check_authors(work["authors"])
    assert re.fullmatch(r"10\.\d{4,}/\S+", work.get("doi", "10.1000/none"))
    for identifier in work.get("identifiers", ()):
        assert identifier["type"] in IDENTIFIERS
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", identifier["value"])


@pytest.mark.parametrize("name", ["UNSAFEBENCH", "LLAVAGUARD", "WILSON"])
def test_what_a_metric_cites_is_in_the_file_with_the_same_facts(name):
    entry = getattr(citations, name)
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, re.MULTILINE))
    title = re.sub(r"[{}]", "", fields["title"])
    [work] = [work for work in CFF["references"] if work["title"] == title]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in work["authors"])
    assert (fields["author"], int(fields["year"]), fields.get("doi")) == (
        authors,
        work["year"],
        work.get("doi"),
    )
    if "eprint" in fields:
        assert work["identifiers"][0]["value"] == f"arXiv:{fields['eprint']}"
