"""The page's files over HTTP: headers, caching, and nothing but those files."""

import re
from pathlib import Path

import pytest
from fixtures_server import client_of, colour_service

from judge.server import page_routes
from judge.server.page_headers import PAGE_HEADERS

FILES = sorted(path.name for path in page_routes.PAGE.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]


def read(name: str) -> str:
    return (page_routes.PAGE / name).read_text(encoding="utf-8")


def test_the_page_runs_our_own_scripts_and_nothing_else(client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type_and_headers(client, name: str) -> None:
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(
        {
            ".js": "text/javascript",
            ".css": "text/css",
            ".svg": "image/svg+xml",
            ".html": "text/html",
        }[Path(name).suffix]
    )
    assert PAGE_HEADERS.items() <= dict(answer.headers).items()
    again = client.get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["app.py", "..%2fapp.py", "../app.py", "%2e%2e/app.py", "page", "", "nul%00"]
)
def test_nothing_else_is_served(client, name: str) -> None:
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_server_may_go_without_the_page() -> None:
    with client_of(colour_service(page=False)) as client:
        assert client.get("/").status_code == client.get("/static/page.js").status_code == 404


def test_the_page_is_public_and_the_rest_is_not() -> None:
    with client_of(colour_service(keys=("k" * 20,))) as client:
        assert client.get("/").status_code == client.get("/static/page.js").status_code == 200
        assert client.get("/v1/server").status_code == 401


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_never_write_markup(name: str) -> None:
    """Text of users becomes text nodes; a lint rule would say it, and this is one without a toolchain."""
    code = re.sub(r"/\*.*?\*/|//.*", "", read(name), flags=re.DOTALL)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc", code
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_there(name: str) -> None:
    for module in re.findall(r'from "\./([\w.]+)"', read(name)):
        assert module in FILES
        for names in re.findall(rf'import {{([^}}]*)}} from "\./{re.escape(module)}"', read(name)):
            for imported in names.split(","):
                word = imported.split(" as ")[0].strip()
                exported = rf"export (?:async )?(?:function|const|let|class) {word}\b"
                assert re.search(exported, read(module)), f"{name} imports {word} from {module}"


def test_markup_holds_no_script_no_style_and_no_address_of_others() -> None:
    page = read("index.html")
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="/static/page.js">']
    assert " style=" not in page
    assert "<style" not in page
    assert not re.search(r"\son\w+=", page)
    for name in FILES:
        found = set(re.findall(r"https?://[^\s\"'>]+", read(name))) - {"http://www.w3.org/2000/svg"}
        assert not found, name


def test_files_are_short() -> None:
    assert {name for name in FILES if len(read(name).splitlines()) > 400} == set()


def test_elements_that_scripts_name_exist_once() -> None:
    page = read("index.html")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    named = {found for name in SCRIPTS for found in re.findall(r'\bat\("([\w-]+)"\)', read(name))}
    assert named <= set(ids)
