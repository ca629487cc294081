"""Fixtures: a Label Studio that keeps its contract, as far as predictions are pushed, in our own words.

Read from HumanSignal/label-studio as of autumn 2026 (data_manager/api.py, data_import/api.py, tasks/api.py, jwt_auth) and
label-studio-sdk 2.1.2: addresses, pages, `{"created": N}` without ids, no key that makes a request idempotent, both
kinds of tokens. `trouble` is asked about every request and may delay, fail or cut it, before or after it took effect.
"""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(kind, number=0):
    """A token that says what it is; nobody checks its signature here."""
    parts = ({"alg": "HS256"}, {"token_type": kind, "exp": 2**33, "jti": str(number)})
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "signature"])


PERSONAL = jwt("refresh")


class CutError(Exception):
    """The connection ends without an answer."""


class StubLabelStudio:
    """Projects, tasks and predictions in memory; they outlive the server, which can be stopped and started."""

    def __init__(self):
        self.configs = {}
        self.tasks = {}
        self.predictions = {}
        self.asked = []
        self.connections = set()
        self.trouble = lambda method, path, when: None
        self.page_limit = 1000
        self.access, self.refreshed = None, 0
        self.lock = threading.RLock()
        self.server = None
        self.port = 0

    def add_project(self, number, config, names, key="image", prefix="/data/local-files/?d="):
        self.configs[number] = config
        for name in names:
            task = len(self.tasks) + 1
            data = {"image": prefix + name} if key == "image" else {key: name, "image": prefix + name}
            self.tasks[task] = {"id": task, "project": number, "data": data}

    def of_task(self, task):
        return [one for one in self.predictions.values() if one["task"] == task]

    def sent(self, method, ending):
        return [path for verb, path in self.asked if verb == method and path.endswith(ending)]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16  # head and body in one packet: two would wait for each other

            def do_GET(self):
                stub.answer(self)

            def do_POST(self):
                stub.answer(self)

            def do_DELETE(self):
                stub.answer(self)

            def log_message(self, *args):
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    # --- answers -------------------------------------------------------------------------------------------

    def answer(self, handler):
        parts = urlsplit(handler.path)
        size = int(handler.headers.get("content-length") or 0)
        raw = handler.rfile.read(size)
        body = json.loads(raw) if raw else None
        with self.lock:
            self.asked.append((handler.command, parts.path))
            self.connections.add(handler.client_address)
        try:
            told = self.trouble(handler.command, parts.path, "before")
            if told is None:
                told = self.route(handler, parts.path, parse_qs(parts.query), body)
                told = self.trouble(handler.command, parts.path, "after") or told
        except CutError:
            handler.close_connection = True
            return
        status, data, *headers = told
        text = b"" if data is None else json.dumps(data).encode()
        handler.send_response(status)
        for name, value in headers[0].items() if headers else ():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(text)))
        handler.end_headers()
        try:
            handler.wfile.write(text)
        except OSError:  # whoever asked did not wait
            handler.close_connection = True

    def route(self, handler, path, query, body):
        with self.lock:
            if path == "/api/token/refresh/":
                return self.refresh(body)
            if handler.headers.get("authorization") not in (f"Token {LEGACY}", f"Bearer {self.access}"):
                return 401, {"detail": "Invalid token.", "status_code": 401}
            words = path.strip("/").split("/")
            match (handler.command, *words[1:]):
                case ("GET", "projects", number) if int(number) in self.configs:
                    config = self.configs[int(number)]
                    return 200, {"id": int(number), "title": "Round 1", "label_config": config}
                case ("GET", "tasks"):
                    return self.list_tasks(query)
                case ("GET", "predictions"):
                    return 200, self.of_task(int(query["task"][0]))
                case ("DELETE", "predictions", number) if int(number) in self.predictions:
                    del self.predictions[int(number)]
                    return 204, None
                case ("POST", "projects", number, "import", "predictions"):
                    return self.store(int(number), body)
            return 404, {"detail": "Not found.", "status_code": 404}

    def refresh(self, body):
        if body != {"refresh": PERSONAL}:
            return 401, {"detail": "Token is invalid or expired", "code": "token_not_valid"}
        self.refreshed += 1
        self.access = jwt("access", self.refreshed)
        return 200, {"access": self.access}

    def list_tasks(self, query):
        assert query["fields"] == ["all"]
        mine = [task for task in self.tasks.values() if task["project"] == int(query["project"][0])]
        page, size = int(query["page"][0]), min(int(query["page_size"][0]), self.page_limit)
        some = mine[(page - 1) * size : page * size]
        if page > 1 and not some:
            return 404, {"detail": "Invalid page."}
        shown = [task | {"annotations": [], "predictions": self.of_task(task["id"])} for task in some]
        return 200, {
            "tasks": shown,
            "total": len(mine),
            "total_annotations": 0,
            "total_predictions": len(self.predictions),
        }

    def store(self, project, body):
        ids = {task["id"] for task in self.tasks.values() if task["project"] == project}
        for item in body:
            assert set(item) <= {"task", "result", "score", "model_version"}
            assert type(item["task"]) is int
            assert isinstance(item["result"], list)
            if item["task"] not in ids:
                return 400, {"validation_errors": [f"Invalid task ID {item['task']}"]}
        for item in body:
            number = max(self.predictions, default=0) + 1
            self.predictions[number] = {"id": number, "project": project, **item}
        return 201, {"created": len(body)}


@contextmanager
def running(stub):
    stub.start()
    try:
        yield stub
    finally:
        stub.stop()


@pytest.fixture
def label_studio(monkeypatch):
    """A Label Studio that runs, and whose legacy token is in the environment."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    with running(StubLabelStudio()) as stub:
        yield stub
