"""Fixtures: students as ONNX files. Tracing one takes 15 seconds, so all workers share what one of them has traced."""

import os

import pytest


def make_student(folder):
    """An encoder with a head none of whose parameters is at its start."""
    import torch

    from judge.encoders.dual import DualEncoder
    from judge.student.head import CrossAttentionHead, HeadConfig
    from judge.student.student import Student
    from prompts import load_taxonomy

    encoder = DualEncoder.load(folder)
    torch.manual_seed(1)  # encoders of one width have the same head
    head = CrossAttentionHead(HeadConfig(width=encoder.width, inner=64, heads=2, rank=8))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        head.calibration.copy_(torch.tensor([[1.3, 0.2], [0.8, -0.4]]))
    return Student(encoder, head, default_taxonomy=load_taxonomy("digits"))


@pytest.fixture
def fresh_student(tiny_clip_folder):
    """A student as `exported("clip")` gives it, to be changed."""
    return make_student(tiny_clip_folder)


@pytest.fixture(scope="session")
def exported(tiny_encoder_folder, tmp_path_factory):
    """`exported(family)` -> the student in PyTorch, and the path of its image side; `tiny-clip` ships.

    Nothing may be written beside that path. All have joint spaces as wide as tiny-clip's and as many patches (25), and
    so the same head, of which the graphs are traced once; `export_student` compares every student with PyTorch.
    """
    import shutil

    from filelock import FileLock

    from judge.student import graphs
    from judge.student.export import export_student

    made, trace = {}, graphs._export
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def reuse(side, inputs, outputs, file, then):
        if not hasattr(side, "head"):
            return trace(side, inputs, outputs, file, then)
        known = shared / f"{type(side).__name__}.onnx"
        with FileLock(known.with_suffix(".lock")):
            if not known.exists():
                trace(side, inputs, outputs, known, then)
        shutil.copy(known, file)

    def make(family):
        if family not in made:
            random = {"width": 128, "patch_size": 3, "layers": 1}
            home = family if family == "tiny-clip" else tiny_encoder_folder(family, **random)
            student, path = make_student(home), shared / f"export-{family}" / "student.onnx"
            with FileLock(shared / f"export-{family}.lock"):
                if not path.exists():
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(graphs, "_export", reuse)
                        assert export_student(student, path).difference < 1e-4
            made[family] = student, path
        return made[family]

    return make
