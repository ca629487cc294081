"""Moderators who work at a real server while it, or its database, is killed; and what has to be there afterwards."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from fixtures_server import PATIENCE, picture, wait_until
from sqlalchemy import func, select

from judge.records.tables import DecisionRow, VerdictRow

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def killed_server(folder, *options):
    """The address of `arbiter serve` in a process of its own, which ends by SIGKILL, with its workers."""
    script = ROOT / "tests" / "data" / "serve_colours.py"
    words = [sys.executable, script, folder, "serve", "--port", "0", "--decode-workers", "1"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with (folder / "errors").open("w") as errors:
        server = subprocess.Popen(
            [*words, "--state", "state", *options],
            stderr=errors,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        told = (folder / "errors").read_text
        wait_until(lambda: server.poll() is not None or "ready" in told())
        [address] = re.findall(r"(http://[\d.:]+)/v1", told())
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Moderator(threading.Thread):
    """Uploads, asks and decides; keeps what it was answered, and goes on with another picture where it was not."""

    def __init__(self, crew, number):
        super().__init__(daemon=True)
        self.crew, self.number, self.address = crew, number, None
        self.items, self.verdicts, self.decisions, self.problems = [], [], [], Counter()

    def run(self):
        for turn in range(100_000):
            if self.crew.done.is_set():
                return
            try:
                self.decide(picture(red=turn % 256, blue=turn // 256, green=self.number))
            except urllib.error.HTTPError as error:
                with error:
                    self.problems[error.code, json.loads(error.read())["error"]["code"]] += 1
            except (
                OSError,
                HTTPException,
                ValueError,
            ):  # the server is gone, perhaps in the middle of an answer
                self.problems["gone"] += 1
            else:
                continue
            time.sleep(0.02)

    def decide(self, image):
        form = (
            b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + image
            + b"\r\n--x--\r\n"
        )
        [item] = self.post("/v1/queue", form, "multipart/form-data; boundary=x")["items"]
        self.items.append(item)
        verdict = self.post(f"/v1/queue/{item['id']}/verdict", b"{}")
        self.verdicts.append((item["id"], verdict))
        body = {"verdict_id": verdict["verdict_id"], "action": "agree", "moderator": str(self.number)}
        self.decisions.append(self.post(f"/v1/queue/{item['id']}/decision", json.dumps(body).encode()))

    def post(self, path, body, kind="application/json"):
        request = urllib.request.Request(self.address + path, body, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())


class Crew:
    """Moderators at one server after the other."""

    def __init__(self, size):
        self.done = threading.Event()
        self.moderators = [Moderator(self, number) for number in range(size)]

    def work_at(self, address, decisions):
        """Send all of them to a server, and return once that many more decisions were answered."""
        for moderator in self.moderators:
            moderator.address = address
            if moderator.ident is None:
                moderator.start()
        self.wait_for(decisions)

    def wait_for(self, decisions):
        wanted = self.decided + decisions
        wait_until(lambda: self.decided >= wanted)

    def stop(self):
        self.done.set()
        for moderator in self.moderators:
            moderator.join()

    @property
    def decided(self):
        return sum(len(moderator.decisions) for moderator in self.moderators)

    @property
    def problems(self):
        """Answers without success, and `gone` -> how many."""
        return sum((moderator.problems for moderator in self.moderators), Counter())

    def check(self, records):
        """Everything that was answered is there exactly once, and nothing is half done."""
        log = {decision.id: decision for decision in records.each_decision()}
        items = {item.id: item for item in records.items(limit=1_000_000)}
        answered = [decision for moderator in self.moderators for decision in moderator.decisions]
        assert [log[decision["id"]].to_dict() for decision in answered] == answered
        unanswered = self.problems.total()
        assert len(log) - len(answered) <= unanswered, "what was stored, and not answered any more"
        with records._database.read() as session:
            for table in (VerdictRow, DecisionRow):
                times = select(table.item_id, func.count()).group_by(table.item_id)
                assert set(dict(session.execute(times).all()).values()) == {1}, "nobody asked twice"
        for moderator in self.moderators:
            assert all(items[item["id"]].sha256 == item["sha256"] for item in moderator.items)
            for item_id, told in moderator.verdicts:
                stored = records.verdict(told["verdict_id"])
                assert (stored.item.id, stored.row) == (item_id, told["verdict"])
        for item in items.values():
            assert hashlib.sha256(records.image(item.sha256)).hexdigest() == item.sha256
            assert (item.state == "decided") == (item.id in {one.item.id for one in log.values()})
