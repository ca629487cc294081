"""Fixtures: a finished judge to publish, with numbers, on a tiny random base; and cascades of tiny stages."""

import json
import shutil
from pathlib import Path

import pytest

NASTY = "shows blood &lt;b&gt; `code` *stars* _lines_ ~~gone~~ $x$ http://evil.example/x www.evil.example"
"""As much markup as a definition may hold."""


def policy():
    from prompts import Category, Taxonomy

    return Taxonomy(
        "my policy", "3", (Category("blood", NASTY), Category("hate_signs", "contempt for a group"))
    )


def summary(**more):
    """Numbers as `summarise` gives them."""
    return {
        "rows": 60,
        "images": 30,
        "unsafe_rows": 30,
        "threshold": 0.5,
        "f1": 0.9,
        "precision": 0.95,
        "recall": 0.86,
        "accuracy": 0.9,
        "pair_score": 0.8,
        "unjudged": 0,
        "intervals": {"f1": [0.8, 0.96], "precision": [0.8, 0.99]},
        "by_category": {"blood": {"rows": 40, "unsafe_rows": 12, "f1": 0.91, "f1_interval": [0.7, 0.97]}},
        "by_source": {"/home/me/images": {"f1": 1.0}},
        **more,
    }


@pytest.fixture(scope="session")
def _finished_judge(base_folder, tmp_path_factory):
    import torch

    from judge.lessons.record import write_lessons
    from judge.runs.folder import RunDir
    from judge.vlm.adapter import LoraOptions, add_lora
    from judge.vlm.load import BaseOptions, load_base

    base = str(base_folder())
    model, processor = load_base(BaseOptions(base))
    model, _ = add_lora(model, LoraOptions(lora_r=4), base=base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    run = RunDir.create(
        tmp_path_factory.mktemp("finished") / "my_judge",
        **BaseOptions(base).to_manifest(),
        template="policy_first",
        teacher="/home/me/teacher",
    )
    run.write_taxonomy(policy())
    run.write_environment()
    run.write_config({"dataset": f"folder:{run.path}", "lora_r": 4, "seed": 7, "held_out": ["hate_signs"]})
    write_lessons(run, None, ["contempt for a group"])
    run.write_metrics(
        {
            "before": summary(f1=0.5),
            "after": summary(),
            "shortcut_auc": 0.51,
            "learned": {"learned": True, "sentence": "It learned.", "limits": ["30 test images are few"]},
            "machine": {"cpu": "secret cpu"},
        }
    )
    model.save_pretrained(run.path / "adapter")
    processor.save_pretrained(run.path / "adapter")
    run.write_rows("after", [{"prompt": "a private prompt"}])
    (run.path / "examples").mkdir()
    (run.path / "examples" / "0-blood.png").write_bytes(b"a picture")
    (run.path / "checkpoint-6").mkdir()
    shutil.copy(run.path / "adapter" / "adapter_model.safetensors", run.path / "checkpoint-6")
    (run.path / "checkpoint-6" / "optimizer.pt").write_bytes(b"a pickle")
    return run.path


@pytest.fixture
def finished_judge(_finished_judge, tmp_path):
    """A copy of a judge's run: adapter, numbers, rows, examples, a checkpoint; its base is a folder here."""
    return Path(shutil.copytree(_finished_judge, tmp_path / "runs" / "my_judge"))


@pytest.fixture
def shipped_judge(finished_judge):
    """The same, as if it had been trained on `org/tiny` of the hub."""
    edit_manifest(finished_judge, base="org/tiny")
    return finished_judge


def edit_manifest(run, **changes):
    path = Path(run) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def tiny_cascade(tmp_path):
    """`tiny_cascade(judge)` -> the run of a cascade with an untrained student on tiny-clip, and `judge` or none."""
    import torch

    from judge.cascade.saved import save_cascade
    from judge.cascade.settings import CascadeSettings
    from judge.cascade.similarity import Platt
    from judge.cascade.stages import NEVER, Cutoffs
    from judge.encoders.dual import DualEncoder
    from judge.runs.folder import RunDir
    from judge.student.head import CrossAttentionHead, HeadConfig
    from judge.student.student import Student, save_student

    def make(judge=None):
        torch.manual_seed(0)
        student = RunDir.create(tmp_path / "runs" / "student", kind="student", teacher=str(tmp_path))
        student.write_taxonomy(policy())
        student.write_config({"dataset": f"folder:{tmp_path}"})
        encoder = DualEncoder.load("tiny-clip")
        save_student(student, Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 4))))
        cutoffs = Cutoffs(NEVER, 0.3, 0.9, 0.4, 0.6, 0.5)
        if judge is None:
            cutoffs = cutoffs.without_judge()
        kept = CascadeSettings(Platt(0.0, 0.0), Platt(14.0, -2.0), cutoffs, judge is not None, 0.05, 0.05, 99)
        run = RunDir.create(tmp_path / "runs" / "cascade", kind="cascade")
        run.write_taxonomy(policy())
        save_cascade(run, kept, student=student.path, judge=judge)
        return run.path

    return make
