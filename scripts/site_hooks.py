"""What MkDocs does for the site of docs/ (`mkdocs.yml`): pages that are written elsewhere, and links that lead there.

README.md is the first page, CONTRIBUTING.md and CHANGELOG.md are pages, and the command reference is what `--help` says
on the day of the build, so nothing stands twice in the repository.
"""

import re
from pathlib import Path

from command_reference import command_reference  # beside this file, where MkDocs looks while it loads a hook
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File at the root -> its page."""
AS_THEY_ARE = ("CITATION.cff", "LICENSE")
"""Files at the root that pages lead to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that stand elsewhere."""
    for name, page in ELSEWHERE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for name in AS_THEY_ARE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "reference/commands.md", content=command_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their pages."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri in ELSEWHERE.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    for name, target in (ELSEWHERE | {name: name for name in AS_THEY_ARE}).items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}", f"]({up}{target}", markdown)
    return markdown
