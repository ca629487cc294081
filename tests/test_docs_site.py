"""The site of docs/: it builds without a warning, leads nowhere dead, asks no other host, and leaves no name out."""

import importlib
import inspect
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from judge.serve.recipe_files import recipe_names

ROOT = Path(__file__).parents[1]
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`|<!--.*?-->", re.MULTILINE | re.DOTALL)
GENERATED = {"docs/reference/commands.md"}
"""Pages that a build writes (`scripts/site_hooks.py`)."""


class Links(HTMLParser):
    """What a page leads to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.places |= {found[name] or "" for name in ("id", "name") if name in found}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag in {"img", "script", "iframe", "link"} and found.get("rel") != "canonical":
            self.loads += [str(found[name]) for name in ("src", "href") if found.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """File -> its links, of the built site."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        try:
            build(config)
        finally:
            logging.getLogger("mkdocs").handlers.clear()
    return {path: Links(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}


def page(site: dict[Path, Links], name: str) -> Links:
    [found] = [links for path, links in site.items() if path.as_posix().endswith(f"/{name}")]
    return found


def test_every_page_is_in_the_site(site: dict[Path, Links]) -> None:
    names = {path.name for path in site}
    assert {path.with_suffix(".html").name for path in MARKDOWN[2:]} <= names
    assert {"index.html", "contributing.html", "commands.html"} <= names


def test_no_link_is_dead(site: dict[Path, Links]) -> None:
    dead = []
    for path, found in site.items():
        if path.name == "404.html":  # its addresses start at the root of a host
            continue
        for link in [*found.links, *found.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and unquote(parts.fragment) not in site[target].places
            ):
                dead.append(f"{path.name}: {link}")
    assert not dead


def test_no_page_loads_anything_from_elsewhere(site: dict[Path, Links]) -> None:
    loaded = [(path.name, load) for path, found in site.items() for load in found.loads]
    assert len(loaded) > 20
    assert not [(name, load) for name, load in loaded if urlsplit(load).netloc]


@pytest.mark.parametrize("package", ["prompts", "judge", "eval"])
def test_every_public_name_is_in_the_reference(site: dict[Path, Links], package: str) -> None:
    module = importlib.import_module(package)
    names = {
        name
        for name in module.__all__
        if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name))
    }
    assert names
    assert not {f"{package}.{name}" for name in names} - page(site, "reference/python.html").places


def test_every_command_and_recipe_is_in_the_reference(site: dict[Path, Links]) -> None:
    places = page(site, "reference/commands.html").places
    assert {"arbiter-judge", "arbiter-taxonomy-check", "arbiter-attack"} <= places
    assert set(recipe_names()) <= places


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(path: Path) -> None:
    """As they are read in the repository, without a site."""
    dead = []
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in {"http", "https"}, link
            assert "." in parts.netloc, link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        if not target.exists() and str(target.relative_to(ROOT)) not in GENERATED:
            dead.append(link)
        elif parts.fragment and target.suffix == ".md" and target.parent.name != "reference":
            assert parts.fragment in headings(target), link
    assert not dead


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    from markdown.extensions.toc import slugify

    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {
        slugify(re.sub(r"[`*]", "", words), "-") for words in re.findall(r"^#{1,4} (.+)$", text, re.MULTILINE)
    }
