"""Fixtures: the part of the Hugging Face hub's API that pushing and fetching use, on this machine and in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_stub_token_that_nobody_may_print"


class Hub:
    """Repositories in memory, behind the hub's addresses; `refuse` lets every request of a method and prefix fail."""

    def __init__(self):
        self.repositories = {}
        self.private = {}
        self.asked = []
        self.refuse = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self, "GET")

            def do_HEAD(self):
                hub.answer(self, "HEAD")

            def do_POST(self):
                hub.answer(self, "POST")

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def commit(self, name, files, branch="main"):
        """Make `files` (path -> bytes) the newest commit of a branch; gives its hash."""
        branches = self.repositories.setdefault(name, {})
        sha = hashlib.sha1(repr((name, branch, len(branches), sorted(files.items()))).encode()).hexdigest()
        branches[branch] = branches[sha] = (sha, dict(files))
        return sha

    def files(self, name, revision="main"):
        return self.repositories[name][revision][1]

    def answer(self, request, method):
        path = unquote(urlsplit(request.path).path)
        self.asked.append((method, path))
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        for (wanted, prefix), status in self.refuse.items():
            if method == wanted and path.startswith(prefix):
                return self.reply(request, status, {"error": f"refused with {TOKEN}"})
        if method == "POST" and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.reply(request, 401, {"error": "Invalid credentials"})
        for pattern, handle in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if found:
                return handle(self, request, body, **found.groupdict())
        return self.reply(request, 404, {"error": f"no such address: {path}"})

    def reply(self, request, status, content=b"", **headers):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key.replace("_", "-"), value)
        request.send_header("content-length", str(len(raw)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(raw)

    def missing(self, request, name, revision=None, sha=None):
        code = "RepoNotFound" if name not in self.repositories else "RevisionNotFound"
        if sha is not None:
            return self.reply(request, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        return self.reply(request, 404, {"error": "not found"}, X_Error_Code=code)

    def whoami(self, request, body):
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.reply(request, 401, {"error": "Invalid credentials"})
        return self.reply(request, 200, {"type": "user", "name": "user", "auth": {}, "orgs": []})

    def create(self, request, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.commit(name, {".gitattributes": b""})
        return self.reply(request, 200, {"url": f"{self.url}/{name}", "name": name, "id": name})

    def branch(self, request, body, name, revision):
        self.repositories[name].setdefault(revision, self.repositories[name]["main"])
        return self.reply(request, 200, {})

    def info(self, request, body, name, revision="main"):
        if revision not in self.repositories.get(name, {}):
            return self.missing(request, name, revision)
        sha, files = self.repositories[name][revision]
        about = {"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "downloads": 0}
        return self.reply(request, 200, {**about, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, request, body, name, revision, folder):
        if revision not in self.repositories.get(name, {}):
            return self.missing(request, name, revision)
        if folder is not None:  # nobody looks into one that is there
            return self.missing(request, name, sha=self.repositories[name][revision][0])
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.files(name, revision).items()
        ]
        return self.reply(request, 200, entries)

    def preupload(self, request, body, name, revision):
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]
        return self.reply(request, 200, {"files": files})

    def take_commit(self, request, body, name, revision):
        files = dict(self.files(name, revision))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.commit(name, files, revision)
        about = {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha}
        return self.reply(request, 200, {**about, "pullRequestUrl": None, "success": True})

    def resolve(self, request, body, name, revision, path):
        if revision not in self.repositories.get(name, {}):
            return self.missing(request, name, revision)
        sha, files = self.repositories[name][revision]
        if path not in files:
            return self.missing(request, name, sha=sha)
        data = files[path]
        return self.reply(request, 200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)

    def valid(self, request, body):
        return self.reply(request, 200, {"errors": [], "warnings": []})


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = {
    "/api/whoami-v2": Hub.whoami,
    "/api/repos/create": Hub.create,
    "/api/validate-yaml": Hub.valid,
    f"/api/models/{NAME}": Hub.info,
    f"/api/models/{NAME}/revision/(?P<revision>.+)": Hub.info,
    f"/api/models/{NAME}/branch/(?P<revision>.+)": Hub.branch,
    f"/api/models/{NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?": Hub.tree,
    f"/api/models/{NAME}/preupload/(?P<revision>.+)": Hub.preupload,
    f"/api/models/{NAME}/commit/(?P<revision>.+)": Hub.take_commit,
    f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": Hub.resolve,
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that the client talks to, logged in, with an empty cache."""
    from huggingface_hub import constants

    found = Hub()
    addresses = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, found.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", addresses)
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield found
    found.close()
