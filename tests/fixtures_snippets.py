"""What stands in fences and backticks of README and docs/, and a folder in which it can run."""

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
OUTPUT = "text"
"""Language of what a program prints, and of drawings."""
PROGRAMS = ("arbiter", "accelerate", "python", "python3", "pip", "make")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMENT = re.compile(r"(^|\s)#\s.*$|(^|\s)#$")
_ENDS = {"|", "||", "&", "&&", ";"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1] or OUTPUT, found[2])
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def is_command(line: str) -> bool:
    """Whether a line starts like a command that these pages are about."""
    words = re.sub(r"^(\$ |(\w+=\S* )+|\.\w+/bin/)+", "", line.strip()).split()
    return len(words) > 1 and words[0] in PROGRAMS and words[1:] != ["launch"]


def inline_commands(page: Path) -> list[str]:
    """Commands in backticks inside the prose; three dots stand for more words."""
    return [text.replace("...", "") for text in _INLINE.findall(prose(page)) if is_command(text)]


def commands(text: str) -> Iterator[list[list[str]]]:
    """The pipelines of a shell text: lists of commands, each a list of words; comments are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(_COMMENT.sub("", line), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split, lexer.commenters = True, ""
        pipeline: list[list[str]] = [[]]
        for word in lexer:
            if word == "|":
                pipeline.append([])
            elif word in _ENDS:
                yield from _whole(pipeline)
                pipeline = [[]]
            else:
                pipeline[-1].append(word)
        yield from _whole(pipeline)


def _whole(pipeline: list[list[str]]) -> Iterator[list[list[str]]]:
    found = [_plain(words) for words in pipeline if words]
    if any(found):
        yield [words for words in found if words]


def _plain(words: list[str]) -> list[str]:
    """A command without the shell's words, variables, wrappers and folders of an environment before it."""
    while words and (words[0] in {"do", "timeout", "done", "for"} or re.match(r"[A-Z_]+=", words[0])):
        if words[0] in {"done", "for"}:
            return []
        words = words[2:] if words[0] == "timeout" else words[1:]
    return [words[0].rsplit("/bin/", 1)[-1], *words[1:]] if words else []


def make_workspace(folder: Path) -> Path:
    """A folder with what the pages talk of: runs, images, tables, a taxonomy; the repository's own folders are links."""
    for name in ("docs", "recipes", "scripts", "tests", "judge", "pyproject.toml", "mkdocs.yml"):
        (folder / name).symlink_to(ROOT / name)
    _write_images(folder)
    _write_taxonomies(folder)
    _write_runs(folder)
    _write_project(folder)
    _write_labels(folder)
    return folder


def _write_images(folder: Path) -> None:
    from judge.standins.digits import digits_examples

    rows = []
    for split, count in (("train", 24), ("validation", 240), ("test", 12)):
        for number, example in enumerate(digits_examples(split, count=count)):
            rows.append((f"{split}-{number}.png", example, split))
    for name in ("my_images", "uploads"):
        (folder / name).mkdir()
    with (folder / "my_images" / "labels.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("path", "prompt", "label", "categories", "split"))
        for name, example, split in rows:
            example.image.save(folder / "my_images" / name)
            label, categories = "unsafe" if example.violates else "safe", ";".join(sorted(example.violates))
            writer.writerow((name, example.prompt, label, categories, split))
    for name, example, _ in rows[:3]:
        example.image.save(folder / "uploads" / name)
    rows[0][1].image.save(folder / "picture.png")
    (folder / "prompts.csv").write_text("path,prompt\n" + "".join(f"{row[0]},a photo\n" for row in rows[:3]))
    wanted = ";".join(sorted(rows[0][1].violates)) or "safe"
    (folder / "cases.csv").write_text(f"image,expected\npicture.png,{wanted}\n")


def _write_labels(folder: Path) -> None:
    from judge.serve.cli import main

    words = [
        str(folder / "uploads"),
        str(folder / "labels"),
        "--judge",
        "tiny-student",
        "--taxonomy",
        "digits",
    ]
    assert main(["label", *words, "--quiet"]) == 0


def _write_taxonomies(folder: Path) -> None:
    from prompts import load_taxonomy

    mine = load_taxonomy("digits")
    (folder / "my_taxonomy.yaml").write_text(mine.to_yaml())
    shutil.copytree(folder / "my_images", folder / "reviewed")
    shutil.copy(folder / "my_taxonomy.yaml", folder / "reviewed" / "taxonomy.yaml")
    (folder / "new_wording.yaml").write_text(mine.reword({"seven": "any 7 drawn by hand"}).to_yaml())
    ours = {**mine.select(["three", "seven"]).to_dict(), "name": "ours"}
    (folder / "ours.yaml").write_text(yaml.safe_dump(ours))
    own = "output_dir: runs/mine\ndataset: folder:my_images\ntaxonomy: my_taxonomy.yaml\n"
    (folder / "my.yaml").write_text(own)
    (folder / "my_rewordings.yaml").write_text("families: []\n")


def _write_runs(folder: Path) -> None:
    from judge.cascade.generation_stages import GenerationCutoffs
    from judge.cascade.saved import save_cascade
    from judge.cascade.settings import CascadeSettings
    from judge.cascade.similarity import Platt
    from judge.cascade.stages import NEVER, Cutoffs
    from judge.diffusion.generation_settings import GenerationSettings
    from judge.runs.folder import RunDir
    from judge.standins.shipped import checkpoint_path
    from judge.vlm.adapter import LoraOptions, add_lora
    from judge.vlm.load import BaseOptions, load_base
    from prompts import load_taxonomy

    runs = folder / "runs"
    about = {**BaseOptions().to_manifest(), "template": "policy_first"}
    demo = RunDir.create(runs / "demo", kind="vlm", **about)
    demo.write_taxonomy(load_taxonomy("digits"))
    model, _ = add_lora(load_base(BaseOptions(), device="cpu")[0], LoraOptions(lora_r=2), base="tiny-llava")
    model.save_pretrained(str(demo.path / "adapter"))
    demo.write_metrics({"before": None, "after": {}})
    shutil.copytree(folder / "uploads", demo.path / "examples")
    shutil.copytree(checkpoint_path("tiny-student"), runs / "student")
    _write_lessons(runs / "student" / "lessons")
    cascade = RunDir.create(runs / "cascade", kind="cascade")
    cascade.write_taxonomy(load_taxonomy("digits"))
    settings = CascadeSettings(
        Platt(0.0, 0.0), Platt(14.0, -2.0), Cutoffs(NEVER, 0.3, 0.9, 0.4, 0.6, 0.5), True, 0.05, 0.05, 99
    )
    save_cascade(cascade, settings, student=runs / "student", judge=demo.path)
    shutil.copytree(demo.path, runs / "my_judge")
    shutil.copytree(runs / "student", runs / "my_student")
    for name in ("unsafebench", "smid", "nsfw"):
        measured = RunDir.create(runs / name, kind="benchmark")
        ours = {"group": "ours", "overall": {"all": {"f1": 0.9}}}
        measured.write_metrics({"dataset": name, "classifiers": {"ours": ours}})
    looks = GenerationSettings(GenerationCutoffs(looks=(0.9,), student=(0.5, 0.5)), at=(4,))
    (folder / "generation.json").write_text(looks.to_json())


def _write_project(folder: Path) -> None:
    """What `arbiter init my_project --images my_images` writes, and the run that its training leaves."""
    import contextlib
    import io

    from judge.serve import cli

    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["init", "my_project", "--images", "my_images"]) == 0
    shutil.copytree(folder / "runs" / "demo", folder / "runs" / "my_project")


def _write_lessons(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    table = pa.table({"example": ["a"], "taxonomy": ["0" * 64], "unsafe": [0.5], "categories": [[0.5]]})
    pq.write_table(table, folder / "lessons-00000.parquet")
