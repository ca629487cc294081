"""The application around the routes: ids, errors in one form, limits, keys, health."""

import json
from typing import Any

import pytest
from fixtures_server import client_of, colour_service, image_part, picture
from starlette.testclient import TestClient

KEY = "a-key-of-enough-characters"


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_every_answer_has_an_id_and_a_callers_own_is_kept(client: TestClient) -> None:
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert client.get("/healthz", headers={"x-request-id": "mine.1"}).headers["x-request-id"] == "mine.1"
    odd = client.get("/healthz", headers={"x-request-id": "a\tb c"}).headers["x-request-id"]
    assert odd.startswith("req_")


def test_paths_and_methods_that_do_not_exist(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(client.get("/v1/moderations"), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b"[]", "array; send an object"),
        (b'"text"', "string; send an object"),
        (b"null", "null; send an object"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/verdicts"])
def test_malformed_bodies_are_400(client: TestClient, path: str, body: bytes, message: str) -> None:
    error = error_of(client.post(path, content=body), 400)
    assert error["code"] == "invalid_json"
    assert message in error["message"]


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/verdicts"])
def test_unknown_keys_are_named(client: TestClient, path: str) -> None:
    error = error_of(client.post(path, json={"threshold": 0.2}), 400)
    assert error["code"] == "unknown_parameter"
    assert error["param"] == "threshold"
    assert "did you mean 'thresholds'" in error["message"]


def test_bodies_have_a_limit_whether_announced_or_not() -> None:
    with client_of(colour_service(max_body_bytes=1000)) as client:
        assert error_of(client.post("/v1/verdicts", content=b" " * 1001), 413)["code"] == "body_too_large"

        def pieces() -> Any:
            yield from [b" " * 400] * 3

        assert error_of(client.post("/v1/verdicts", content=pieces()), 413)["code"] == "body_too_large"
        assert error_of(client.post("/v1/verdicts", content=b" " * 1000), 400)["code"] == "invalid_json"


def test_keys_guard_everything_but_health() -> None:
    with client_of(colour_service(keys=(KEY, KEY + "2"))) as client:
        for path in ("/v1/server", "/v1/taxonomies", "/v1/nothing", "/metrics", "/v1"):
            error = error_of(client.get(path), 401)
            assert error["code"] == "missing_api_key"
        for wrong in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer "):
            answer = client.post("/v1/moderations", headers={"authorization": wrong}, content=b"x")
            assert error_of(answer, 401)["type"] == "invalid_request_error"
        for key in (KEY, KEY + "2"):
            assert client.get("/v1/server", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_an_error_of_ours_is_500_with_an_id_and_no_detail(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("judge.server.taxonomy_routes._title", broken)
    answer = client.get("/v1/taxonomies")
    error = error_of(answer, 500)
    assert error["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]


def test_while_loading_only_health_answers() -> None:
    import threading

    from judge.server.service import JudgeService
    from judge.server.settings import ServerSettings

    done, real = threading.Event(), colour_service()

    def slow() -> Any:
        assert done.wait(60)
        return real._load()

    service = JudgeService(slow, ServerSettings(decode_workers=0))
    from judge.server.app import create_app

    with TestClient(create_app(service, service.settings)) as client:
        assert client.get("/healthz").status_code == 200
        for answer in (client.get("/readyz"), client.get("/v1/server"), client.post("/v1/verdicts")):
            assert error_of(answer, 503)["code"] == "loading"
            assert int(answer.headers["retry-after"]) >= 1
        done.set()


def test_what_the_server_is(client: TestClient) -> None:
    about = client.get("/v1/server").json()
    assert about["model"] == {"name": "colours", "sha256": "ab" * 32}
    assert about["default_taxonomy"] == "digits"
    assert about["records"] is False
    assert about["limits"]["max_images"] == 64
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "colours@abababababab"


def test_taxonomies_are_listed_and_shown(client: TestClient) -> None:
    listed = client.get("/v1/taxonomies").json()
    assert listed["default"] == "digits"
    assert [one["source"] for one in listed["taxonomies"]][:2] == ["judge", "shipped"]
    names = [one["name"] for one in listed["taxonomies"]]
    assert len(names) == len(set(names))
    shown = client.get("/v1/taxonomies/unsafebench").json()
    assert shown["source"] == "shipped"
    assert shown["categories"][0].keys() == {"name", "definition", "examples", "code", "key"}
    assert shown["yaml"].startswith("name: ")
    error = error_of(client.get("/v1/taxonomies/unsafebrench"), 404)
    assert error["code"] == "taxonomy_not_found"
    assert "did you mean 'unsafebench'" in error["message"]


def test_verdicts_are_rows(client: TestClient) -> None:
    import base64

    images = [
        {"data": base64.b64encode(picture(red=255)).decode(), "name": "red.png"},
        {"data": image_part(picture())["image_url"]["url"], "prompt": "a wall"},
        {"data": base64.b64encode(b"no image").decode()},
    ]
    answer = client.post("/v1/verdicts", json={"images": images, "thresholds": 0.9})
    assert answer.status_code == 200
    rows = answer.json()["verdicts"]
    assert [row["status"] for row in rows] == ["unsafe", "safe", "unjudged"]
    assert rows[0]["image"]["path"] == "red.png"
    assert rows[0]["model"] == {"name": "colours", "sha256": "ab" * 32}
    assert set(rows[0]["thresholds"].values()) == {0.9}
    assert "not_an_image" in rows[2]["reason"]
    assert json.dumps(rows)
