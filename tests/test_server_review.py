"""The review queue over HTTP: uploads, folders, the pixels that are judged, verdicts, decisions, exports."""

import csv
import io
import json
import math
import os
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest
from fixtures_server import (
    PATIENCE,
    ColourJudge,
    animation,
    client_of,
    colour_service,
    data_url,
    listening,
    picture,
    wait_until,
)
from PIL import Image

from judge import load_examples
from judge.records.errors import RecordsError
from judge.records.export import export_folder
from judge.records.records import Records
from judge.server.stored import THREADS
from prompts import load_taxonomy
from prompts.taxonomy_file import parse_taxonomy

RED, DARK, BLUE = picture(red=255), picture(red=20), picture(blue=255)


@pytest.fixture
def folder(tmp_path):
    """What may be imported; beside it lies what may not."""
    home = tmp_path / "uploads"
    (home / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture(red=77))
    return home


@pytest.fixture
def review(records, folder):
    """A client of a server with a review queue."""
    with client_of(colour_service(queue_folder=folder, max_images=8), records) as client:
        yield client


def upload(client, *files, prompt=None):
    """The items of some uploaded images."""
    parts = [("files", (name, data, "image/png")) for name, data in files]
    answer = client.post("/v1/queue", files=parts, data={} if prompt is None else {"prompt": prompt})
    assert answer.status_code == 201, answer.text
    return answer.json()["items"]


def judged(client, item, **asked):
    """The answer to a request for a verdict."""
    answer = client.post(f"/v1/queue/{item['id']}/verdict", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def decided(client, item, verdict, answered=201, **words):
    """The answer to a decision."""
    body = {"verdict_id": verdict["verdict_id"], "moderator": "ada", **words}
    answer = client.post(f"/v1/queue/{item['id']}/decision", json=body)
    assert answer.status_code == answered, answer.text
    return answer.json() if answered == 201 else answer.json()["error"]


def problem(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_from_upload_to_decision(review):
    first, second = upload(review, ("a.png", RED), ("b.png", DARK), prompt="a prompt")
    assert (first["name"], first["state"], first["prompt"]) == ("a.png", "open", "a prompt")
    assert first["verdict"] is None
    verdict = judged(review, first)
    assert verdict["verdict"]["status"] == "unsafe"
    assert verdict["verdict"]["image"]["sha256"] == first["sha256"]
    assert verdict["verdict"]["image"]["path"] == "a.png"
    assert verdict["explanation"] is None
    [shown] = review.get("/v1/queue", params={"state": "open", "limit": 1}).json()["items"]
    assert shown["verdict"] == verdict["verdict"]
    assert shown["verdict_id"] == verdict["verdict_id"]
    decision = decided(review, first, verdict, action="agree", note="clear")
    assert decision["status"] == "unsafe"
    assert decision["categories"] == [load_taxonomy("digits").names[0]]
    assert decision["verdict"] == verdict["verdict"]
    queue = review.get("/v1/queue", params={"state": "open"}).json()
    assert [item["id"] for item in queue["items"]] == [second["id"]]
    assert queue["counts"] == {"open": 1, "decided": 1, "skipped": 0}
    assert review.get("/v1/decisions").json() == {"decisions": [decision]}
    assert review.get("/v1/decisions", params={"after": decision["id"]}).json() == {"decisions": []}
    assert review.get(f"/v1/queue/{first['id']}").json()["state"] == "decided"


def test_the_prompt_and_the_question_reach_the_judge(records):
    judge = ColourJudge()
    with client_of(colour_service(judge), records) as client:
        [item] = upload(client, ("a.png", RED), prompt="=cmd()")
        own = [{"name": "Red things", "definition": "anything red"}]
        verdict = judged(client, item, taxonomy=own, thresholds={"red things": 1.0})
        assert judge.calls[-1][1] == ["=cmd()"]
        assert judge.calls[-1][2].names == ("Red things",)
        assert verdict["verdict"]["thresholds"] == {"Red things": 1.0}
        answer = client.post(f"/v1/queue/{item['id']}/verdict", json={"taxonomy": own, "threshold": 0.5})
        assert problem(answer, 400)["code"] == "unknown_parameter"
        answer = client.post(f"/v1/queue/{item['id']}/verdict", json={"taxonomy": "nobodys"})
        assert problem(answer, 404)["code"] == "taxonomy_not_found"


def test_an_unjudged_verdict_needs_a_word_of_the_moderator(review):
    [item] = upload(review, ("a.png", BLUE))
    verdict = judged(review, item)
    assert verdict["verdict"]["status"] == "unjudged"
    error = decided(review, item, verdict, answered=400, action="agree")
    assert "was not judged" in error["message"]
    assert review.get("/v1/decisions").json() == {"decisions": []}
    assert decided(review, item, verdict, action="overrule", status="safe")["status"] == "safe"


def test_a_broken_image_is_an_unjudged_row(review):
    [item] = upload(review, ("half.png", picture(red=255, size=(64, 64))[:60]))
    verdict = judged(review, item)
    assert verdict["verdict"]["status"] == "unjudged"
    assert verdict["verdict"]["reason"]
    error = problem(review.get(f"/v1/queue/{item['id']}/image"), 422)
    assert error["code"] in ("truncated", "unreadable")


@pytest.mark.parametrize(
    ("words", "code", "param"),
    [
        ({"action": "agree", "moderator": ""}, "invalid_entry", None),
        ({"action": "agree", "moderator": 5}, "invalid_value", "moderator"),
        ({"action": "agre"}, "invalid_entry", None),
        ({"action": "overrule"}, "invalid_entry", None),
        ({"action": "overrule", "status": "unsafe"}, "invalid_entry", None),
        ({"action": "overrule", "status": "unsafe", "categories": ["no such"]}, "unknown_category", None),
        ({"action": "overrule", "status": "unsafe", "categories": "zero"}, "invalid_value", "categories"),
        ({"action": "skip", "note": "n" * 4001}, "invalid_entry", None),
        ({"action": "skip", "note": "\0"}, "invalid_entry", None),
        ({"action": "skip", "verdict_id": True}, "invalid_value", "verdict_id"),
        ({"action": "skip", "verdict_id": 2**64}, "invalid_value", "verdict_id"),
        ({"action": "skip", "verdict": 1}, "unknown_parameter", "verdict"),
    ],
)
def test_decisions_that_are_refused(review, words, code, param):
    [item] = upload(review, ("a.png", RED))
    verdict = judged(review, item)
    body = {"verdict_id": verdict["verdict_id"], "moderator": "ada", **words}
    error = problem(review.post(f"/v1/queue/{item['id']}/decision", json=body), 400)
    assert (error["code"], error["param"]) == (code, param)
    assert review.get("/v1/decisions").json() == {"decisions": []}


def test_what_does_not_exist(review):
    for method, path in (
        ("GET", "/v1/queue/7"),
        ("GET", "/v1/queue/7/image"),
        ("DELETE", "/v1/queue/7"),
        ("POST", "/v1/queue/7/verdict"),
    ):
        assert problem(review.request(method, path, json={}), 404)["code"] == "not_found"
    body = {"verdict_id": 1, "action": "skip", "moderator": "m"}
    assert problem(review.post("/v1/queue/7/decision", json=body), 404)["code"] == "not_found"
    for path in (
        "/v1/queue/x",
        f"/v1/queue/{2**63}",
        "/v1/queue?state=all",
        "/v1/queue?limit=0",
        "/v1/queue?after=-1",
    ):
        assert problem(review.get(path), 400)["code"] == "invalid_value"


def test_uploads_that_are_refused_store_nothing(review, records, tmp_path):
    def send(*files, **data):
        return review.post("/v1/queue", files=list(files), data=data)

    good = ("files", ("a.png", RED, "image/png"))
    error = problem(send(good, ("files", ("b.png", b"<svg onload=alert(1)>", "image/png"))), 415)
    assert (error["code"], error["param"]) == ("unsupported_format", "files[1]")
    error = problem(send(good, ("files", ("b.png", b"text", "image/png"))), 415)
    assert (error["code"], error["param"]) == ("not_an_image", "files[1]")
    assert problem(send(("files", ("b.png", b"", "image/png"))), 415)["code"] == "not_an_image"
    assert problem(send(*[good] * 9), 400)["code"] == "too_many_images"
    assert problem(send(*[good] * 12), 400)["code"] == "invalid_request"
    assert problem(review.post("/v1/queue", data={"prompt": "p"}), 400)["code"] == "image_required"
    assert problem(review.post("/v1/queue", data={"files": "text"}), 400)["param"] == "files[0]"
    assert problem(send(good, ("prompt", ("p.txt", b"p"))), 400)["param"] == "prompt"
    assert problem(send(good, other="x"), 400)["param"] == "other"
    assert problem(send(good, prompt="\0"), 400)["code"] == "invalid_entry"
    assert problem(send(good, prompt="p" * 100_001), 400)["code"] == "invalid_entry"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert review.post("/v1/queue", content=b"no form", headers=headers).status_code == 400
    assert records.items() == []
    assert list((tmp_path / "images").iterdir()) == []


def test_a_file_is_bounded(records, monkeypatch):
    from judge.data.images import ImageLimits

    monkeypatch.setattr("judge.server.uploads.DEFAULT_LIMITS", ImageLimits(max_bytes=len(DARK)))
    with client_of(colour_service(max_body_bytes=4096), records) as client:
        upload(client, ("a.png", DARK))
        longer = DARK + b"\0"
        answer = client.post("/v1/queue", files=[("files", ("a.png", longer))])
        assert problem(answer, 413)["code"] == "too_large"
        answer = client.post("/v1/queue", files=[("files", ("a.png", DARK + b"\0" * 4096))])
        assert problem(answer, 413)["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\Users\\me\\a.png", "a.png"),
        ("/", "image"),
        ("<script>alert(1)</script>.png", "script>.png"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_name_is_shown_and_never_a_path(review, given, shown, tmp_path):
    before = {path for path in tmp_path.rglob("*") if path.parent.name != "images"}
    [item] = upload(review, (given, RED))
    assert item["name"] == shown
    after = {path for path in tmp_path.rglob("*") if path.parent.name != "images"}
    assert {path.name for path in after - before} <= {"records.sqlite-wal", "records.sqlite-shm"}


def test_the_pixels_that_are_judged_are_shown(review):
    transparent = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(transparent, "PNG")
    polyglot = RED + b"PK\x03\x04<script>alert(1)</script>"
    items = upload(
        review, ("t.png", transparent.getvalue()), ("p.png", polyglot), ("g.gif", animation(10, 200, 90))
    )
    answer = review.get(f"/v1/queue/{items[0]['id']}/image")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(answer.content)).getpixel((0, 0)) == (255, 255, 255)
    assert b"script" not in review.get(f"/v1/queue/{items[1]['id']}/image").content
    frames = f"/v1/queue/{items[2]['id']}/image"
    assert review.get(frames).headers["x-frames"] == "3"
    reds = [
        Image.open(io.BytesIO(review.get(frames, params={"frame": n}).content)).getpixel((0, 0))[0]
        for n in range(3)
    ]
    assert sorted(reds) == pytest.approx([10, 90, 200], abs=8)
    assert problem(review.get(frames, params={"frame": 3}), 404)["code"] == "frame_not_found"


def test_the_log_is_read_forwards_and_backwards(review):
    items = upload(review, ("a.png", RED), ("b.png", RED), ("c.png", DARK))
    decisions = [decided(review, item, judged(review, item), action="skip") for item in items]
    ids = [decision["id"] for decision in decisions]

    def listed(**asked):
        return [one["id"] for one in review.get("/v1/decisions", params=asked).json()["decisions"]]

    assert listed() == ids
    assert listed(before=2**53 - 1) == ids[::-1]
    assert listed(before=ids[2], limit=1) == [ids[1]]
    assert listed(before=ids[2], after=ids[0]) == [ids[1]]
    assert listed(before=ids[0]) == []


def test_deleting_an_item_keeps_its_decisions(review, tmp_path):
    one, other = upload(review, ("a.png", RED), ("b.png", DARK))
    decision = decided(review, one, judged(review, one), action="skip")
    assert review.delete(f"/v1/queue/{one['id']}").json() == {"deleted": one["id"]}
    assert problem(review.get(f"/v1/queue/{one['id']}/image"), 404)["code"] == "not_found"
    assert {path.name for path in (tmp_path / "images").iterdir()} == {other["sha256"]}
    assert review.get("/v1/decisions").json() == {"decisions": [decision]}


def test_folders_are_imported(review, folder):
    (folder / "a.png").write_bytes(RED)
    (folder / "deep" / "b\n.png").write_bytes(DARK)
    (folder / "deep" / "copy.png").write_bytes(RED)
    (folder / "notes.txt").write_text("no image")
    answer = review.post("/v1/queue/folder", json={"path": "."})
    assert answer.status_code == 201
    assert [item["name"] for item in answer.json()["items"]] == ["a.png", r"deep/b\n.png"]
    assert answer.json()["known"] == 1, "equal images are looked at once"
    [refused] = answer.json()["refused"]
    assert (refused["name"], refused["code"]) == ("notes.txt", "not_an_image")
    again = review.post("/v1/queue/folder", json={"path": str(folder / "deep")}).json()
    assert (again["items"], again["known"]) == ([], 2)
    assert review.get("/v1/queue").json()["counts"]["open"] == 2


def test_nothing_outside_of_the_folder_is_imported(review, folder, tmp_path):
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "a.png").write_bytes(RED)
    os.mkfifo(folder / "pipe.png")
    for path in (
        "..",
        "../uploads/..",
        str(tmp_path),
        "out",
        "deep/../..",
        "/",
        "a.png",
        "missing",
        "loop",
        "a\0b",
    ):
        error = problem(review.post("/v1/queue/folder", json={"path": path}), 404)
        assert error["code"] == "folder_not_found"
        assert str(tmp_path) not in error["message"]
    for path in ("", None, 5, "x" * 5000):
        assert problem(review.post("/v1/queue/folder", json={"path": path}), 400)["param"] == "path"
    answer = review.post("/v1/queue/folder", json={"path": "."}).json()
    assert [item["name"] for item in answer["items"]] == ["a.png"]
    assert answer["known"] == 1, "the link that stays inside"
    assert {entry["name"] for entry in answer["refused"]} == {"link.png", "out", "loop", "pipe.png"}
    assert all(entry["code"] == "unreadable" for entry in answer["refused"])
    assert str(tmp_path) not in json.dumps(answer)


def test_folders_are_off_by_default(records):
    with client_of(colour_service(), records) as client:
        assert (
            problem(client.post("/v1/queue/folder", json={"path": "."}), 403)["code"] == "folders_not_allowed"
        )


def test_a_folder_may_be_too_large(review, folder, monkeypatch):
    monkeypatch.setattr("judge.server.uploads.MAX_FOLDER_FILES", 2)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(RED)
    assert "More than 2 files" in problem(review.post("/v1/queue/folder", json={"path": "."}), 400)["message"]


def test_what_if(review):
    for name, data in (("red", RED), ("dark", DARK), ("blue", BLUE)):
        [item] = upload(review, (name, data))
        judged(review, item)
    taxonomy = load_taxonomy("digits")
    body = {"taxonomy_hash": taxonomy.hash, "thresholds": {taxonomy.names[0]: 0.05}}
    told = review.post("/v1/what-if", json=body).json()
    assert (told["verdicts"], told["flagged_before"], told["flagged_after"]) == (3, 1, 2)
    [changed] = told["changed"]
    assert (changed["name"], changed["from"], changed["to"]) == ("dark", "safe", "unsafe")
    nothing = {"verdicts": 0, "flagged_before": 0, "flagged_after": 0, "changed": []}
    assert review.post("/v1/what-if", json={**body, "taxonomy_hash": "0" * 64}).json() == nothing
    for thresholds in ({"no such": 0.5}, 2, True, "0.5"):
        answer = review.post("/v1/what-if", json={**body, "thresholds": thresholds})
        assert problem(answer, 400)["param"] == "thresholds"
    assert problem(review.post("/v1/what-if", json={"thresholds": 0.5}), 400)["param"] == "taxonomy_hash"


def test_the_log_as_a_table_holds_no_formula(review):
    [item] = upload(review, ("=cmd|'calc'!A0", RED))
    verdict = judged(review, item)
    for moderator in ("@sum(1)", "+1", "-1", "\uff1d1", "ada"):
        decided(review, item, verdict, action="skip", moderator=moderator, note='=HYPERLINK("http://a")\n=1')
    answer = review.get("/v1/decisions.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["moderator"] for row in rows] == ["'@sum(1)", "'+1", "'-1", "'\uff1d1", "ada"]
    assert rows[0]["name"] == "'=cmd|'calc'!A0"
    assert rows[0]["note"] == '\'=HYPERLINK("http://a")\\n=1'
    assert rows[0]["taxonomy_hash"] == load_taxonomy("digits").hash
    assert json.loads(rows[0]["scores"]) == verdict["verdict"]["scores"]
    assert (rows[0]["verdict"], rows[0]["status"], rows[0]["model_sha256"]) == ("unsafe", "", "ab" * 32)
    for row in rows:
        assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_decisions_as_training_rows(review, tmp_path):
    items = upload(review, ("a.png", RED), ("b.png", DARK), ("g.gif", animation(10, 200)), ("s.png", BLUE))
    verdicts = [judged(review, item) for item in items]
    for item, verdict in zip(items[:3], verdicts, strict=False):
        decided(review, item, verdict, action="agree")
    decided(review, items[3], verdicts[3], action="skip")
    answer = review.get("/v1/decisions/training.zip")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "out")
    taxonomy = parse_taxonomy((tmp_path / "out" / "taxonomy.yaml").read_text(), "exported")
    assert taxonomy.hash == load_taxonomy("digits").hash
    found = load_examples(f"folder:{tmp_path / 'out'}", split="all", taxonomy=taxonomy, max_failures=0)
    assert {bytes(example.image.read_bytes()): set(example.violates) for example in found.examples} == {
        RED: {taxonomy.keys[0]},
        DARK: set(),
    }
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [left["name"] for left in about["left_out"]] == ["g.gif"]


def test_a_server_and_the_command_line_export_the_same(review, records, tmp_path):
    """Transparent pictures too, which are judged on two grounds."""
    transparent, deep = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (9, 7), (200, 10, 10, 100)).save(transparent, "PNG")
    Image.linear_gradient("L").resize((9, 7)).convert("I;16").save(deep, "PNG")
    for name, data in (("t.png", transparent.getvalue()), ("d.png", deep.getvalue()), ("r.png", RED)):
        [item] = upload(review, (name, data))
        decided(review, item, judged(review, item), action="overrule", status="unsafe", categories=["nine"])
    export_folder(records, tmp_path / "out")
    written = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")
    }
    with zipfile.ZipFile(io.BytesIO(review.get("/v1/decisions/training.zip").content)) as archive:
        zipped = {name: archive.read(name) for name in archive.namelist()}
    assert zipped.keys() == written.keys()
    assert zipped["labels.csv"].count(b"decision-") == 3
    assert [name for name in zipped if zipped[name] != written[name]] in ([], ["export.json"]), (
        "its time may differ"
    )


def test_one_export_at_a_time(review):
    review.app.state.exporting = True
    error = problem(review.get("/v1/decisions/training.zip"), 429)
    assert error["code"] == "busy"
    review.app.state.exporting = False
    for _ in range(2):
        assert review.get("/v1/decisions/training.zip").status_code == 200


def test_an_empty_log_is_an_empty_archive(review):
    with zipfile.ZipFile(io.BytesIO(review.get("/v1/decisions/training.zip").content)) as archive:
        assert archive.namelist() == ["export.json"]
    assert len(review.get("/v1/decisions.csv").text.splitlines()) == 1


def test_a_database_that_fails_is_no_secret_and_no_verdict(review, monkeypatch):
    def fail(*_, **__):
        raise RecordsError("disk full at /a/secret/path")

    [item] = upload(review, ("a.png", RED))
    monkeypatch.setattr(Records, "add_verdict", fail)
    answer = review.post(f"/v1/queue/{item['id']}/verdict", json={})
    error = problem(answer, 503)
    assert error["code"] == "records_unavailable"
    assert "secret" not in error["message"]
    assert answer.headers["retry-after"] == "5"


def test_a_database_that_does_not_answer_holds_up_nothing_else(records, monkeypatch):
    answers, real, asked = threading.Event(), Records.counts, []

    def hang(self):
        asked.append(self)
        assert answers.wait(PATIENCE)
        return real(self)

    monkeypatch.setattr(Records, "counts", hang)
    with listening(colour_service(), records) as address, ThreadPoolExecutor(THREADS) as moderators:
        waiting = [moderators.submit(urlopen, f"{address}/v1/queue") for _ in range(THREADS)]
        wait_until(lambda: len(asked) == THREADS)
        body = json.dumps({"images": [{"data": data_url(RED)}]}).encode()
        with urlopen(f"{address}/v1/verdicts", body) as judged, urlopen(f"{address}/metrics") as metrics:
            assert (judged.status, metrics.status) == (200, 200)
        assert not any(one.done() for one in waiting)
        answers.set()
        for one in waiting:
            with one.result(PATIENCE) as answer:
                assert answer.status == 200


def test_a_full_disk_is_no_mistake_of_ours(review, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("judge.server.decision_routes.export_training_rows", full)
        assert problem(review.get("/v1/decisions/training.zip"), 503)["code"] == "records_unavailable"
    assert review.get("/v1/decisions/training.zip").status_code == 200


def test_metrics_tell_free_space_and_whether_questions_are_accepted(review, monkeypatch):
    def value(name):
        return float(re.search(rf"^{name} (\S+)$", review.get("/metrics").text, re.MULTILINE)[1])

    def lost(_):
        raise OSError(116, "Stale file handle")

    assert value("arbiter_ready") == 1
    assert value("arbiter_state_free_bytes") > 2**20
    assert value("arbiter_records_errors_total") == 0
    monkeypatch.setattr("shutil.disk_usage", lost)
    assert math.isnan(value("arbiter_state_free_bytes"))
    service = review.app.state.service
    service.draining = True
    assert (value("arbiter_ready"), value("arbiter_draining")) == (0, 1)
    service.draining = False


def test_keys_guard_the_queue(records):
    with client_of(colour_service(keys=("k" * 20,)), records) as client:
        for path in (
            "/v1/queue",
            "/v1/decisions",
            "/v1/decisions.csv",
            "/v1/decisions/training.zip",
            "/v1/queue/1/image",
        ):
            assert client.get(path).status_code == 401
        assert client.get("/v1/queue", headers={"authorization": f"Bearer {'k' * 20}"}).status_code == 200
