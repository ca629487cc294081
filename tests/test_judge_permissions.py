"""What a run or a model consists of can be read by others, as far as the umask allows."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from judge.runs.files import share_files, write_atomically
from judge.runs.trainer import EvaluatingTrainer


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    """The umask while a test runs."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_weights_get_the_permissions_of_new_files(umask, tmp_path):
    (tmp_path / "adapter").mkdir()
    save_file({"w": torch.zeros(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert modes(tmp_path) == {0o600}, "safetensors no longer hides what it writes: `share_files` may go"
    write_atomically(tmp_path / "run.json", "{}")
    share_files(tmp_path)
    assert modes(tmp_path) == {0o666 & ~umask}
    assert not list(tmp_path.glob(".*")), "the probe is gone"


def test_links_are_left_alone(tmp_path):
    secret = tmp_path / "secret"
    write_atomically(secret, "x", mode=0o600)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(secret)
    share_files(tmp_path / "run")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_trainer_saves_what_others_can_read(umask, tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[])
    trainer = EvaluatingTrainer(model=torch.nn.Linear(2, 2), args=arguments)
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "model.safetensors").is_file()
    assert modes(tmp_path) == {0o666 & ~umask}
