"""scripts/convert_rival.py reads arrays and tensors, and runs nothing that a pickle holds."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from judge.errors import CheckpointError


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_prompts_of_any_pickle_protocol_are_read_whole(convert_rival, tmp_path, protocol, order):
    prompts = np.asarray(np.random.default_rng(0).normal(size=(2, 8)), dtype=np.float16, order=order)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts, protocol=protocol))
    out = tmp_path / "q16.safetensors"
    convert_rival.main(["q16", str(tmp_path / "prompts.p"), str(out)])
    assert load_file(out)["prompts"].tolist() == prompts.astype(np.float32).tolist()


def test_prompts_written_by_an_older_numpy_are_read(convert_rival, tmp_path):
    """The published file names numpy.core, which numpy 2 calls numpy._core."""
    prompts = np.ones((2, 8), dtype=np.float16)
    written = pickle.dumps(prompts, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"cnumpy.core.multiarray\n" in written
    (tmp_path / "prompts.p").write_bytes(written)
    convert_rival.main(["q16", str(tmp_path / "prompts.p"), str(tmp_path / "q16.safetensors")])
    assert load_file(tmp_path / "q16.safetensors")["prompts"].shape == (2, 8)


def test_later_prompts_of_torch_are_read(convert_rival, tmp_path):
    torch.save(torch.nn.Parameter(torch.ones(2, 8)), tmp_path / "prompts.pt")
    convert_rival.main(["q16", str(tmp_path / "prompts.pt"), str(tmp_path / "q16.safetensors")])
    assert load_file(tmp_path / "q16.safetensors")["prompts"].tolist() == [[1.0] * 8] * 2


@pytest.mark.parametrize("rival", ["q16", "multiheaded", "nsfw_detector", "sd_filter"])
def test_a_harmful_pickle_runs_nothing(convert_rival, tmp_path, rival):
    left, source = tmp_path / "left", tmp_path / "source.p"
    content = pickle.dumps(Harmful(left))
    if rival == "multiheaded":
        source = tmp_path / "heads"
        source.mkdir()
        torch.save(Harmful(left), source / "sexual.pt")
    else:
        source.write_bytes(content)
    with pytest.raises(SystemExit, match="cannot be read as"):
        convert_rival.main([rival, str(source), str(tmp_path / "out.safetensors")])
    assert not left.exists()
    assert not list(tmp_path.glob("out*"))
    pickle.loads(content).close()  # it would have
    assert left.exists()


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (lambda: {"prompts": 1}, "holds dict, not an array"),
        (lambda: np.arange(4), "holds ndarray, not an array of floats"),
        (lambda: np.array([len, 1.0], dtype=object), "builtins.len"),
        (lambda: np.ones(4), "holds no weights of q16"),
        (lambda: np.ones((3, 4)), "holds no weights of q16"),
        (lambda: np.full((2, 4), np.nan), "not finite"),
        (lambda: np.float64(1), "numpy.*scalar"),
        (lambda: np.ma.ones((2, 2)), "numpy.ma"),
    ],
)
def test_other_contents_are_refused_and_leave_nothing(convert_rival, tmp_path, what, match):
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(what()))
    with pytest.raises(SystemExit, match=match):
        convert_rival.main(["q16", str(tmp_path / "prompts.p"), str(tmp_path / "q16.safetensors")])
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.p"]


def test_tensors_of_something_else_are_refused(convert_rival, published, tmp_path):
    out = tmp_path / "out.safetensors"
    for rival, source, match in (
        ("sd_filter", published / "nsfw.pth", "is no safety checker: it has no concept_embeds"),
        ("nsfw_detector", published / "checker" / "pytorch_model.bin", "no weights of nsfw_detector"),
        ("nsfw_detector", published / "nowhere.pth", "cannot be read as tensors alone"),
        ("multiheaded", published, "sexual.pt cannot be read as tensors alone: No such file"),
    ):
        with pytest.raises(CheckpointError, match=match):
            convert_rival.convert(rival, source, out)
        assert not list(tmp_path.iterdir())
    torch.save({"a": [1]}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds dict, not tensors by name"):
        convert_rival.convert("sd_filter", tmp_path / "a.pth", out)


def test_nothing_is_overwritten(convert_rival, published, tmp_path):
    for name in ("out.pt", "there.safetensors"):
        (tmp_path / "there.safetensors").write_bytes(b"mine")
        with pytest.raises(CheckpointError, match="exists, or does not end in"):
            convert_rival.convert("q16", published / "prompts.p", tmp_path / name)
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    assert not (tmp_path / "out.pt").exists()
