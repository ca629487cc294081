"""A server that is killed while moderators decide: whatever it has answered is there."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from http.client import HTTPException
from pathlib import Path

from fixtures_server import PATIENCE, picture, wait_until

from judge.records.records import Records

ROOT = Path(__file__).resolve().parents[1]
MODERATORS = 4


class Moderator(threading.Thread):
    """Uploads, asks and decides until the server is gone; keeps what it was answered."""

    def __init__(self, address, number):
        super().__init__(daemon=True)
        self.address, self.number = address, number
        self.items, self.verdicts, self.decisions = [], [], []

    def run(self):
        try:
            for turn in range(10_000):
                self.decide(picture(red=turn % 256, green=self.number))
        except (OSError, HTTPException):  # the server is gone, perhaps in the middle of an answer
            pass

    def decide(self, image):
        form = (
            b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + image
            + b"\r\n--x--\r\n"
        )
        [item] = self.post("/v1/queue", form, "multipart/form-data; boundary=x")["items"]
        self.items.append(item)
        verdict = self.post(f"/v1/queue/{item['id']}/verdict", b"{}")
        self.verdicts.append(verdict)
        body = {"verdict_id": verdict["verdict_id"], "action": "agree", "moderator": str(self.number)}
        self.decisions.append(self.post(f"/v1/queue/{item['id']}/decision", json.dumps(body).encode()))

    def post(self, path, body, kind="application/json"):
        request = urllib.request.Request(self.address + path, body, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())


def test_a_killed_server_loses_nothing_that_it_answered(tmp_path):
    script = ROOT / "tests" / "data" / "serve_colours.py"
    words = [
        sys.executable,
        str(script),
        str(tmp_path),  # is there: the gate is open
        "serve",
        "--port",
        "0",
        "--decode-workers",
        "1",
        "--state",
        "state",
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with (tmp_path / "errors").open("w") as errors:
        server = subprocess.Popen(words, stderr=errors, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        told = (tmp_path / "errors").read_text
        wait_until(lambda: server.poll() is not None or "ready" in told())
        [address] = re.findall(r"(http://[\d.:]+)/v1", told())
        moderators = [Moderator(address, number) for number in range(MODERATORS)]
        for moderator in moderators:
            moderator.start()
        wait_until(lambda: sum(len(moderator.decisions) for moderator in moderators) >= 10)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    for moderator in moderators:
        moderator.join()

    records = Records.in_folder(tmp_path / "state")
    log = {decision.id: decision for decision in records.each_decision()}
    items = {item.id: item for item in records.items(limit=100_000)}
    answered = [decision for moderator in moderators for decision in moderator.decisions]
    assert [log[decision["id"]].to_dict() for decision in answered] == answered
    assert len(log) - len(answered) <= MODERATORS, "what was stored, and not answered any more"
    for moderator in moderators:
        assert all(items[item["id"]].sha256 == item["sha256"] for item in moderator.items)
        assert all(records.verdict(one["verdict_id"]).row == one["verdict"] for one in moderator.verdicts)
    for item in items.values():
        assert hashlib.sha256(records.image(item.sha256)).hexdigest() == item.sha256
        assert (item.state == "decided") == (item.id in {one.item.id for one in log.values()})
    records.close()
