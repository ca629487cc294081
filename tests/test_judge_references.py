"""Names in run folders: what ships, folders and hub ids are loaded; addresses never."""

import logging
from pathlib import Path

import pytest

from judge import load_classifier
from judge.errors import CheckpointError
from judge.publish.merge import merge_run
from judge.runs.folder import RunDir
from judge.runs.references import is_address, stored_model
from judge.vlm.adapter import load_adapter

ADDRESSES = [
    "http://evil.example/model",
    "HTTPS://evil.example",
    "s3://bucket/model",
    "hf://buckets/x",
    "//evil.example/share",
    "\\\\evil\\share",
]


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_are_refused(name: str) -> None:
    assert is_address(name)
    with pytest.raises(CheckpointError, match="never an address"):
        stored_model(name, Path("runs/x"))


@pytest.mark.parametrize(
    "name", [None, 7, "", ["a"], "../../somewhere", "a/b/c", "-rf", "a b", "x\x1b[2J", "gpt?x=1"]
)
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(CheckpointError, match="runs/x names the model"):
        stored_model(name, Path("runs/x"))


def test_hub_ids_go_on_working_and_are_said(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("llava-hf/llava-1.5-7b-hf", "openai/clip-vit-large-patch14-336", "gpt2", "https-models/x"):
        with caplog.at_level(logging.WARNING, "arbiter"):
            assert stored_model(name, Path("runs/x")) == name
        assert f"runs/x names the model {name}" in caplog.messages[-1]


def test_what_ships_and_folders_are_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("tiny-llava", "tiny-clip", str(tmp_path)):
        assert stored_model(name, Path("runs/x")) == name
    assert caplog.messages == []


def test_an_adapter_in_the_bases_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    with pytest.raises(CheckpointError, match="is an adapter"):
        stored_model(str(tmp_path), Path("runs/x"))


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("vlm", {"base": "http://evil.example/m", "dtype": "float32", "template": "policy_first"}),
        ("student", {"encoder": "http://evil.example/m"}),
        ("linear_probe", {"encoder": "http://evil.example/m", "hidden": 8}),
        ("pooled_attention", {"encoder": "http://evil.example/m"}),
    ],
)
def test_every_kind_of_run_is_asked(tmp_path: Path, kind: str, about: dict[str, object]) -> None:
    run = RunDir.create(tmp_path / "run", kind=kind, **about)
    with pytest.raises(CheckpointError, match="never an address"):
        load_classifier(run.path, device="cpu")
    if kind == "vlm":
        with pytest.raises(CheckpointError, match="never an address"):
            merge_run(run.path, tmp_path / "merged")


@pytest.mark.parametrize("config", ['{"peft_type": "PROMPT_TUNING"}', "{}", "[]", "no json", None])
def test_adapters_are_lora(tmp_path: Path, config: str | None) -> None:
    """Prompt tuning, for one, loads the tokenizer that its settings name, with remote code if they say so."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(CheckpointError, match="adapter"):
        load_adapter(None, tmp_path)
