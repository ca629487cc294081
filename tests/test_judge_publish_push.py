"""Pushing takes what belongs to a run, to a hub on this machine or a folder, and says the rest in one line."""

import json
import re
import stat
from pathlib import Path

import pytest
from fixtures_hub_server import TOKEN
from fixtures_publish import edit_manifest

from judge.errors import CheckpointError, ConfigError
from judge.publish.details import Details
from judge.publish.push import push
from judge.publish.repository import check_repository, split_revision
from judge.serve import cli

JUDGE = {
    "README.md",
    "run.json",
    "taxonomy.yaml",
    "metrics.json",
    "adapter/README.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/chat_template.jinja",
    "adapter/processor_config.json",
    "adapter/tokenizer.json",
    "adapter/tokenizer_config.json",
}


def shown(capsys):
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    return said.out, said.err


def test_only_what_belongs_to_a_judge_is_laid_out(shipped_judge, tmp_path, capsys):
    target = tmp_path / "repository"
    assert cli.main(["push", str(shipped_judge), f"folder:{target}"]) == 0
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == JUDGE
    out, _ = shown(capsys)
    for name, why in (
        ("rows/", "with prompts"),
        ("examples/", "pictures"),
        ("checkpoint-6/", "intermediate"),
    ):
        assert re.search(rf"{name} +.*{why}", out), name
    assert "Pushed 11 files" in out
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*") if path.is_file()} == {0o644}
    manifest = json.loads((target / "run.json").read_text())
    assert manifest["base"] == "org/tiny"
    assert "teacher" not in manifest
    assert (
        json.loads((target / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "org/tiny"
    )
    metrics = json.loads((target / "metrics.json").read_text())
    assert metrics["after"]["f1"] == 0.9
    for private in ("/home/me", "secret cpu", "a private prompt", str(tmp_path)):
        assert all(
            private not in path.read_text(errors="replace") for path in target.rglob("*") if path.is_file()
        )


def test_a_dry_run_shows_the_tree_and_changes_nothing(shipped_judge, hub, capsys):
    assert cli.main(["push", str(shipped_judge), "user/mine", "--dry-run"]) == 0
    out, _ = shown(capsys)
    assert re.search(r"adapter/adapter_model\.safetensors +\d+", out)
    assert "Would push 11 files" in out
    assert hub.asked == []
    assert hub.repositories == {}


def test_a_judge_is_pushed_in_one_commit(shipped_judge, hub, capsys):
    options = ["--private", "--license", "mit", "--json"]
    assert cli.main(["push", str(shipped_judge), "user/mine", *options]) == 0
    said = json.loads(shown(capsys)[0])
    assert set(hub.files("user/mine")) == JUDGE | {".gitattributes"}
    assert hub.private == {"user/mine": True}
    assert said["commit"] == hub.repositories["user/mine"]["main"][0]
    assert sum(method == "POST" and "/commit/" in path for method, path in hub.asked) == 1
    card = hub.files("user/mine")["README.md"].decode()
    assert 'load_classifier("hf:user/mine")' in card
    assert "license: mit" in card


def test_an_update_is_asked_for_and_replaces_the_run(shipped_judge, hub, capsys):
    old = {"run.json": b"{}", "encoder/config.json": b"{}", "notes.md": b"mine", "adapter/vocab.json": b"{}"}
    hub.commit("user/mine", old)
    assert cli.main(["push", str(shipped_judge), "user/mine"]) == 2
    assert "--update" in shown(capsys)[1]
    assert set(hub.files("user/mine")) == set(old)
    assert cli.main(["push", str(shipped_judge), "user/mine", "--update", "--revision", "next"]) == 0
    assert set(hub.files("user/mine", "next")) == JUDGE | {"notes.md"}
    assert set(hub.files("user/mine")) == set(old)


def test_an_update_takes_the_place_of_a_run_only(shipped_judge, hub, capsys):
    old = {"README.md": b"mine", "config.json": b"{}", "model.safetensors": b"another model"}
    hub.commit("user/model", old)
    assert cli.main(["push", str(shipped_judge), "user/model", "--update"]) == 2
    assert "holds config.json, model.safetensors, and no run" in shown(capsys)[1]
    assert set(hub.files("user/model")) == set(old)
    hub.commit("user/empty", {"README.md": b"made on the site"})
    assert cli.main(["push", str(shipped_judge), "user/empty", "--update"]) == 0


def test_examples_are_published_only_where_they_are_asked_for(shipped_judge):
    names = [name for name, _ in push(shipped_judge, "folder:nowhere", dry_run=True, examples=True).files]
    assert "examples/0-blood.png" in names
    assert not Path("nowhere").exists()


def test_a_base_in_a_folder_has_to_be_named(finished_judge, tmp_path, capsys):
    assert cli.main(["push", str(finished_judge), "user/mine", "--dry-run"]) == 2
    _, error = shown(capsys)
    assert "--base ORGANISATION/MODEL" in error
    assert error.count("\n") == 1
    target = tmp_path / "repository"
    assert cli.main(["push", str(finished_judge), f"folder:{target}", "--base", "org/tiny"]) == 0
    assert json.loads((target / "run.json").read_text())["base"] == "org/tiny"


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ((("GET", "/api/whoami-v2"), 401), "hf auth login"),
        ((("POST", "/api/repos/create"), 403), "write access"),
        ((("POST", "/api/models/user/mine/commit"), 500), "HTTP 500"),
        ((("POST", "/api/models/user/mine/preupload"), 400), "HTTP 400"),
    ],
)
def test_a_hub_that_refuses_is_one_line_without_the_token(shipped_judge, hub, capsys, refused, said):
    hub.refuse = dict([refused])
    assert cli.main(["push", str(shipped_judge), "user/mine"]) == 2
    _, error = shown(capsys)
    assert said in error
    assert error.count("\n") == 1


def test_nobody_logged_in_and_no_hub_are_one_line(shipped_judge, hub, capsys, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert cli.main(["push", str(shipped_judge), "user/mine"]) == 2
    assert "hf auth login" in shown(capsys)[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main(["push", str(shipped_judge), "user/mine"]) == 2
    assert "HF_HUB_OFFLINE" in shown(capsys)[1]


@pytest.mark.parametrize("name", ["mine", "user/", "user/a b", "a/b/c", "../x", "user/..", "https://x/y", ""])
def test_names_that_are_none_are_refused(shipped_judge, name, capsys):
    assert cli.main(["push", str(shipped_judge), name, "--dry-run"]) == 2
    assert "no name of a repository" in shown(capsys)[1]


def test_other_folders_and_unfinished_runs_are_refused(shipped_judge, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        push(shipped_judge, f"folder:{tmp_path / 'used'}")
    with pytest.raises(CheckpointError, match="does not exist"):
        push(tmp_path / "nothing", "folder:x")
    edit_manifest(shipped_judge, kind="benchmark")
    with pytest.raises(CheckpointError, match="cannot be published; those that can: vlm"):
        push(shipped_judge, "folder:x")
    edit_manifest(shipped_judge, kind="vlm")
    (shipped_judge / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="did not finish"):
        push(shipped_judge, "folder:x", dry_run=True)


def test_a_file_with_a_path_of_this_machine_is_not_published(shipped_judge, tmp_path):
    edit_manifest(shipped_judge, note=f"see {tmp_path}/runs/notes")
    with pytest.raises(CheckpointError, match=r"run\.json holds the path"):
        push(shipped_judge, "folder:x", dry_run=True)


def test_a_cascade_takes_its_stages_along(tiny_cascade, finished_judge, tmp_path):
    cascade = tiny_cascade(finished_judge)
    with pytest.raises(ConfigError, match=r"arbiter card .*my_judge --base"):
        push(cascade, "folder:x", dry_run=True)
    Details(base="org/tiny").save(finished_judge)
    target = tmp_path / "repository"
    push(cascade, f"folder:{target}")
    manifest = json.loads((target / "run.json").read_text())
    assert {manifest[part]["path"] for part in ("student", "judge")} == {"student", "judge"}
    assert (target / "judge" / "adapter" / "adapter_model.safetensors").is_file()
    assert not list(target.rglob("config.yaml"))
    assert not list(target.rglob("examples"))
    (finished_judge / "taxonomy.yaml").write_text("name: other")
    with pytest.raises(CheckpointError, match="not the judge that"):
        push(cascade, "folder:x", dry_run=True)


@pytest.mark.parametrize("served", ["model", "/data/secret/model"])
def test_the_address_of_a_served_judge_stays_private(tiny_cascade, tmp_path, served):
    cascade = tiny_cascade(f"http://10.1.2.3:8000/v1#{served}")
    push(cascade, f"folder:{tmp_path / 'repository'}")
    text = (tmp_path / "repository" / "run.json").read_text()
    assert "10.1.2.3" not in text
    assert "secret" not in text
    assert "#model" in text


def test_names_of_repositories_and_revisions():
    assert check_repository("user/my-judge.v2") == "user/my-judge.v2"
    assert split_revision("hf:user/mine") == ("user/mine", None)
    assert split_revision("hf:user/mine@v1.0") == ("user/mine", "v1.0")
    assert split_revision("hf:gpt2@refs/pr/1") == ("gpt2", "refs/pr/1")
    for name in ("hf:", "hf:user/mine@", "hf:user/mine@../x", "hf:/etc", "hf:user/mine@a b", "hf:a/../b"):
        with pytest.raises(CheckpointError, match="names nothing on the hub"):
            split_revision(name)
