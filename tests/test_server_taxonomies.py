"""Taxonomies over HTTP: those that ship, the judge's own, and versions that moderators save."""

from collections.abc import Iterator
from typing import Any

import pytest
from fixtures_server import client_of, colour_service, data_url, picture
from starlette.testclient import TestClient

TOYS = [{"name": "Balloons", "definition": "Toy balloons of any colour."}]
MORE = [*TOYS, {"name": "Kites", "definition": "Kites, not of paper.", "examples": ["a red kite"]}]


@pytest.fixture
def server(records: Any) -> Iterator[TestClient]:
    with client_of(colour_service(), records) as client:
        yield client


def save(client: TestClient, name: str, categories: Any, status: int = 201, **extra: Any) -> dict[str, Any]:
    answer = client.put(f"/v1/taxonomies/{name}", json={"categories": categories, **extra})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def asked(client: TestClient, taxonomy: str) -> dict[str, Any]:
    body = {"images": [{"data": data_url(picture())}], "taxonomy": taxonomy}
    answer = client.post("/v1/verdicts", json=body)
    assert answer.status_code == 200, answer.text
    row: dict[str, Any] = answer.json()["verdicts"][0]
    return row


def test_versions_are_saved_listed_shown_and_judged_by(server: TestClient) -> None:
    first = save(server, "toys", TOYS, moderator="ada")
    assert (first["name"], first["version"], first["source"]) == ("toys", "1", "saved")
    assert save(server, "toys", TOYS, status=200) == first
    second = save(server, "toys", MORE)
    assert second["version"] == "2"
    listed = server.get("/v1/taxonomies").json()["taxonomies"]
    assert [(one["version"], one["categories"]) for one in listed if one["name"] == "toys"] == [("2", 2)]
    shown = server.get("/v1/taxonomies/toys").json()
    assert shown["versions"] == ["1", "2"]
    assert shown["hash"] == second["hash"]
    assert shown["cautions"] == [line for line in shown["cautions"] if line.startswith("Kites: ")] != []
    assert server.get("/v1/taxonomies/toys", params={"version": "1"}).json()["hash"] == first["hash"]
    for name, version, known in (("toys", "2", second), ("toys@1", "1", first), ("toys@2", "2", second)):
        row = asked(server, name)
        assert (row["taxonomy"]["version"], row["taxonomy"]["hash"]) == (version, known["hash"])


@pytest.mark.parametrize(
    "name", ["toys@3", "toys@x", "toys@", "tois", "toys@99999999999999999999", "digits@7"]
)
def test_what_does_not_exist_is_404(server: TestClient, name: str) -> None:
    save(server, "toys", TOYS)
    body = {"images": [{"data": data_url(picture())}], "taxonomy": name}
    answer = server.post("/v1/verdicts", json=body)
    assert answer.status_code == (200 if name == "toys@" else 404), answer.text


@pytest.mark.parametrize(
    ("name", "categories", "code"),
    [
        ("digits", TOYS, "name_taken"),
        ("unsafebench", TOYS, "name_taken"),
        ("toys", [], "invalid_value"),
        ("toys", [{"name": "A"}], "invalid_taxonomy"),
        ("toys", TOYS * 2, "invalid_taxonomy"),
        ("toys", None, "invalid_value"),
        ("a@b", TOYS, "unknown_category"),
    ],
)
def test_what_is_not_saved(server: TestClient, name: str, categories: Any, code: str) -> None:
    assert save(server, name, categories, status=400)["error"]["code"] == code


def test_without_records_nothing_is_saved(client: TestClient) -> None:
    assert save(client, "toys", TOYS, status=404)["error"]["code"] == "not_found"


def test_a_judges_own_taxonomy_hides_a_saved_one(records: Any) -> None:
    from judge.server.service import JudgeService, LoadedJudge
    from judge.server.settings import ServerSettings
    from prompts import Taxonomy

    with client_of(colour_service(), records) as client:
        save(client, "toys", TOYS)
    service = colour_service()
    loaded = service._load()
    own = Taxonomy.from_dict({"name": "toys", "version": "own", "categories": MORE})
    service = JudgeService(
        lambda: LoadedJudge(loaded.classifier, own, "colours"), ServerSettings(decode_workers=0)
    )
    with client_of(service, records) as client:
        listed = client.get("/v1/taxonomies").json()["taxonomies"]
        assert [one["source"] for one in listed if one["name"] == "toys"] == ["judge"]
        assert asked(client, "toys")["taxonomy"]["version"] == "own"
        assert save(client, "toys", TOYS, status=400)["error"]["code"] == "name_taken"
