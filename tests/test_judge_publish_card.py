"""A card says what the run recorded, runs as it stands, and names nothing of the machine it was made on."""

import getpass
import json
import platform
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from fixtures_publish import NASTY, edit_manifest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from judge.errors import ConfigError
from judge.publish.card import KINDS, write_card
from judge.publish.contents import CONTENTS, NEEDED
from judge.publish.details import Details, published_base
from judge.publish.markdown import code, escape
from judge.runs.folder import RunDir
from judge.serve import cli

MARKDOWN = MarkdownIt("gfm-like", {"linkify": False, "html": True})


def card_of(path, **options):
    written = write_card(RunDir(path), **options)
    assert written is not None
    _, front, text = written.read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_is_filled_from_the_run(shipped_judge):
    about, text = card_of(shipped_judge, details=Details(license="mit", data_license="CC BY 4.0"))
    assert about["base_model"] == "org/tiny"
    assert about["base_model_relation"] == "adapter"
    assert (about["library_name"], about["license"]) == ("peft", "mit")
    assert {"arbiter", "lora", "image-safety"} <= set(about["tags"])
    numbers = {entry["type"]: entry for entry in about["model-index"][0]["results"][0]["metrics"]}
    assert numbers["f1"]["value"] == 0.9
    assert numbers["f1"]["name"] == "F1, 95 % 0.800 to 0.960, n = 60"
    assert "**It learned.**" in text
    assert "| F1 | 0.500 | 0.900 | 0.800 to 0.960 | 60 |" in text
    assert "| blood | 0.910 | 0.700 to 0.970 | 12 of 40 |" in text
    for said in (
        "60 questions are few",
        "30 test images are few",
        "Fewer than 20 unsafe questions about blood",
    ):
        assert said in text
    assert "ROC curve of 0.510" in text
    assert "Not measured; `arbiter obedience`" in text
    assert "data: CC BY 4.0" in text
    assert "LoRA rank 4, seed 7" in text
    assert "contempt for a group" in text
    assert "| hate\\_signs | trained |" in text
    assert "More Information Needed" not in text
    assert (shipped_judge / "adapter" / "README.md").read_text() == (shipped_judge / "README.md").read_text()


def test_a_run_without_numbers_says_so(shipped_judge):
    for name in ("metrics.json", "environment.json", "config.yaml"):
        (shipped_judge / name).unlink()
    about, text = card_of(shipped_judge)
    assert "model-index" not in about
    assert "Nothing was measured in this run" in text
    assert "weights: not stated" in text


def test_nothing_of_this_machine_is_named(finished_judge):
    _, _ = card_of(finished_judge)
    text = (finished_judge / "README.md").read_text()
    private = {
        str(Path.home()),
        str(finished_judge),
        tempfile.gettempdir(),
        "/home/me",
        "secret cpu",
        str(Path.cwd()),
    }
    for word in private - {"/"}:
        assert word not in text, word
    for word in (platform.node(), getpass.getuser()):
        assert not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), word
    assert "base: not named by whoever made this run" in text


def test_the_code_of_a_card_runs(finished_judge, monkeypatch, capsys):
    _, text = card_of(finished_judge)
    monkeypatch.chdir(finished_judge)
    Image.new("RGB", (16, 16), "red").save("photo.jpg")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert re.match(r"0?\.\d+|[01]\.\d+|\d", capsys.readouterr().out)


def test_strangers_text_stays_text(shipped_judge):
    said = "<b>mine</b> | [a link](http://evil.example) \x1b[31m ![](http://evil.example/x.png)"
    _, text = card_of(shipped_judge, details=Details(data=said))
    html = MARKDOWN.render(text)
    assert "<b>" not in html
    assert "<img" not in html
    assert re.findall('<a href="([^"]*)"', html) == ["https://huggingface.co/org/tiny"]
    assert (
        "&lt;b&gt;mine&lt;/b&gt; | [a link](http://evil.example) \\x1b[31m ![](http://evil.example/x.png)"
        in html
    )
    shown = html.replace("&amp;", "&")
    assert NASTY in shown


@given(st.text(min_size=1, max_size=40))
def test_escaped_text_reads_as_it_was(text):
    from prompts.printable import printable

    shown = escape(text)
    assert "\n" not in shown
    row = MARKDOWN.parse(f"| a |\n| --- |\n| {shown} |\n")
    inline = [token for token in row if token.type == "inline"][1:]
    found = "".join(child.content for token in inline for child in token.children or ())
    assert {child.type for token in inline for child in token.children or ()} <= {"text", "text_special"}
    assert found == " ".join(printable(text).split())


def test_a_fence_holds_whatever_is_in_it():
    assert code("a\n````\nb")[0] == "`````"


def test_every_published_kind_has_a_card_and_says_when_it_is_finished():
    assert KINDS.keys() == CONTENTS.keys() == NEEDED.keys()


def test_other_runs_have_no_card(tmp_path):
    run = RunDir.create(tmp_path / "run", kind="benchmark")
    assert write_card(run) is None
    assert not (run.path / "README.md").exists()


def test_shipped_and_hub_bases_are_named_and_folders_are_not(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"_name_or_path": "org/model"}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_name_or_path": str(tmp_path)}))
    assert published_base(str(tmp_path / "base"), Details()) == "org/model"
    assert published_base(str(tmp_path / "other"), Details()) is None
    assert published_base(str(tmp_path / "gone"), Details()) is None
    assert published_base(str(tmp_path / "gone"), Details(base="org/model")) == "org/model"
    assert published_base("tiny-llava", Details()) == "tiny-llava"
    assert published_base("org/model", Details()) == "org/model"
    with pytest.raises(ConfigError, match="cannot be published as 'org/other'"):
        published_base("org/model", Details(base="org/other"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base": "/models/llava"}, "no hub id; write it like"),
        ({"base": "../llava"}, "no hub id"),
        ({"license": "do as you like"}, "no identifier such as mit"),
        ({"data": "  "}, "expected 1 to 2000 characters"),
    ],
)
def test_details_that_cannot_stand_in_a_card_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        Details(**given)


def test_what_was_said_once_is_kept(finished_judge, capsys):
    options = ["--base", "org/tiny", "--license", "mit", "--data", "photos of my cat"]
    assert cli.main(["card", str(finished_judge), *options]) == 0
    assert "README.md" in capsys.readouterr().out
    assert Details.of(finished_judge) == Details("org/tiny", "mit", None, "photos of my cat")
    assert cli.main(["card", str(finished_judge), "--license", "apache-2.0"]) == 0
    assert "photos of my cat" in (finished_judge / "README.md").read_text()
    (finished_judge / "card.yaml").write_text("base: [1]")
    assert cli.main(["card", str(finished_judge)]) == 2
    assert "card's base" in capsys.readouterr().err
    edit_manifest(finished_judge, kind="benchmark")
    assert cli.main(["card", str(finished_judge), "--base", "org/x"]) == 2
