"""small-llava is put together from a GGUF language model, a tower and our weights, and refuses what does not fit."""

import importlib.util
import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from judge.errors import CheckpointError
from judge.standins import small_clip, small_llava
from judge.standins.small_llava import (
    LESSONS,
    add_image_token,
    apply_lessons,
    assemble,
    build_processor,
    load_gguf,
    save_lessons,
    write_small_llava,
)
from judge.vlm.encode import ChatEncoder
from judge.vlm.load import BaseOptions, load_base
from judge.vlm.score import VisionLanguageJudge
from prompts import load_taxonomy
from prompts.template import render

TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HIDDEN, INNER, LAYERS, HEADS = 32, 48, 2, 4
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As the GGUF file has it."""


def write_gguf(
    path: Path, *, architecture: str = "llama", special: tuple[str, ...] = TURNS
) -> dict[str, Any]:
    """Write a language model of random weights as small as it can be; returns its tensors."""
    random = np.random.default_rng(0)
    tokens = [*special, *sorted(ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    for number, add in enumerate((writer.add_unk_token_id, writer.add_bos_token_id, writer.add_eos_token_id)):
        add(number)
    writer.add_chat_template(SMOLLM2_TEMPLATE)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "ffn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (HIDDEN // 2, HIDDEN),
                "attn_v": (HIDDEN // 2, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_gate": (INNER, HIDDEN),
                "ffn_up": (INNER, HIDDEN),
                "ffn_down": (HIDDEN, INNER),
            }.items()
        }
    tensors = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def language_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def language(language_file: Path) -> tuple[Any, Any]:
    return load_gguf(language_file)


@pytest.fixture(scope="module")
def tower() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=56, patch_size=8)).eval()


@pytest.fixture(scope="module")
def image_processor() -> Any:
    side = {"height": 56, "width": 56}
    return CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)


def lessons(model: Any) -> dict[str, torch.Tensor]:
    """Weights of our part that fit `model`."""
    torch.manual_seed(1)
    projector = model.model.multi_modal_projector.state_dict()
    found = {f"projector.{name}": torch.randn(value.shape) for name, value in projector.items()}
    for name in ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj"):
        rows, columns = model.model.language_model.get_submodule(name).weight.shape
        found |= {f"{name}.A": torch.randn(3, columns), f"{name}.B": torch.randn(rows, 3)}
    return found


def test_a_language_model_comes_out_of_a_gguf_file_with_its_weights_and_tokens(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "one.gguf")
    model, tokenizer = load_gguf(tmp_path / "one.gguf")
    found = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_allclose(found, written["token_embd"], atol=0.01)  # bfloat16 has 8 bits
    np.testing.assert_allclose(
        model.model.layers[1].mlp.gate_proj.weight.detach().float().numpy(),
        written["blk.1.ffn_gate"],
        atol=0.01,
    )
    assert tokenizer.decode(tokenizer("nö knife").input_ids) == "nö knife"
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_model_of_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", architecture="qwen2")
    with pytest.raises(CheckpointError, match=r"architecture 'qwen2'.*'llama' only"):
        load_gguf(tmp_path / "other.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 20])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.gguf could not be read as a GGUF file"):
        load_gguf(tmp_path / "bad.gguf")


def test_a_missing_reader_of_gguf_is_named_with_its_command(
    language_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise ImportError("Please install gguf")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", missing)
    with pytest.raises(CheckpointError, match="pip install --no-deps gguf=="):
        load_gguf(language_file)


def test_a_vocabulary_without_turns_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "plain.gguf", special=("<unk>", "<s>", "</s>"))
    _, tokenizer = load_gguf(tmp_path / "plain.gguf")
    with pytest.raises(CheckpointError, match=r"lacks <\|im_start\|>, <\|im_end\|>, which"):
        add_image_token(tokenizer)


def test_a_vocabulary_without_the_image_token_is_refused(language: tuple[Any, Any], tower: Any) -> None:
    model, tokenizer = language
    with pytest.raises(CheckpointError, match=r"vocabulary of 260 tokens lacks the image token '<image>'"):
        assemble(model, tokenizer, tower)


def test_a_tokenizer_of_another_model_is_refused(language: tuple[Any, Any], tower: Any) -> None:
    model, tokenizer = language
    tokenizer.add_tokens(["<more>", "<and more>"])
    add_image_token(tokenizer)
    with pytest.raises(CheckpointError, match="belong to different models"):
        assemble(model, tokenizer, tower)


def test_the_assembled_model_speaks_as_its_language_model(language: tuple[Any, Any], tower: Any) -> None:
    model, tokenizer = language
    image = add_image_token(tokenizer)
    whole, model = assemble(model, tokenizer, tower).float(), model.float()
    ids = tokenizer("a knife and a beer", return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs = whole(input_ids=ids).logits, model(input_ids=ids).logits
        torch.testing.assert_close(ours[..., :image], theirs)
        # Image tokens are read through tower and projector.
        picture = torch.randn(1, 3, 56, 56)
        with_image = torch.cat([torch.full((1, 49), image), ids], dim=1)
        seen = [whole(input_ids=with_image, pixel_values=pixels).logits for pixels in (picture, -picture)]
    assert not torch.equal(*seen)


def test_lessons_add_their_update_and_replace_the_projector(language: tuple[Any, Any], tower: Any) -> None:
    model, tokenizer = language
    add_image_token(tokenizer)
    whole = assemble(model, tokenizer, tower)
    ours = lessons(whole)
    name = "layers.1.mlp.down_proj"
    before = whole.model.language_model.get_submodule(name).weight.clone()
    apply_lessons(whole, ours)
    after = whole.model.language_model.get_submodule(name).weight
    wanted = before.float() + torch.einsum("or,ri->oi", ours[f"{name}.B"], ours[f"{name}.A"])
    torch.testing.assert_close(after.float(), wanted, rtol=0.01, atol=0.01)  # bfloat16
    linear = whole.model.multi_modal_projector.linear_1
    torch.testing.assert_close(linear.weight.float(), ours["projector.linear_1.weight"], rtol=0.01, atol=0.01)


def test_lessons_that_do_not_fit_are_refused(language: tuple[Any, Any], tower: Any) -> None:
    model, tokenizer = language
    add_image_token(tokenizer)
    whole = assemble(model, tokenizer, tower)
    ours = lessons(whole)
    narrow = ours | {"projector.linear_1.weight": torch.zeros(HIDDEN, 16)}
    with pytest.raises(CheckpointError, match="tower of width 24 and a language model of width 32"):
        apply_lessons(whole, narrow)
    with pytest.raises(CheckpointError, match=r"projector .* does not fit: it has no weights"):
        apply_lessons(whole, {n: w for n, w in ours.items() if not n.startswith("projector")})
    name = "layers.0.self_attn.k_proj"
    with pytest.raises(CheckpointError, match=f"update of {name} does not fit"):
        apply_lessons(whole, ours | {f"{name}.A": torch.zeros(3, 7)})
    with pytest.raises(CheckpointError, match=f"update of {name} does not fit"):
        apply_lessons(whole, {n: w for n, w in ours.items() if n != f"{name}.B"})
    more = {f"layers.9.mlp.up_proj.{part}": torch.zeros(3, 3) for part in "AB"}
    with pytest.raises(CheckpointError, match=r"2 weights .* \(such as layers\.9\.mlp\.up_proj\.A\)"):
        apply_lessons(whole, ours | more)


def test_the_written_folder_is_a_base_of_a_judge(
    language_file: Path,
    tower: Any,
    image_processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(small_llava, "smollm2_file", lambda: language_file)
    shipped = ship(tmp_path, language_file, tower, image_processor)
    folder = tmp_path / "whole"
    write_small_llava(shipped, folder)
    loaded, processor = load_base(BaseOptions(str(folder), dtype="bfloat16"))
    taxonomy = load_taxonomy("digits").select(["one", "two"])
    judge = VisionLanguageJudge(loaded, processor)
    scores = judge.score([Image.new("RGB", (112, 112), "red")], ["a <|im_end|> knife"], taxonomy)
    assert np.isfinite(scores.unsafe).all()
    assert scores.categories.shape == (1, 2)
    encoder = ChatEncoder(processor)
    assert len(encoder.encode_image(Image.new("RGB", (30, 50)))[0]) == 49
    chat = render(taxonomy, "a photo")
    safe = encoder.answer_ids(encoder.text(chat), chat.answers[0])
    assert processor.tokenizer.decode(list(safe)) == "safe<|im_end|>"


def ship(folder: Path, language_file: Path, tower: Any, image_processor: Any) -> Path:
    """Our part of small-llava, beside that of small-clip."""
    small_clip.save_small_clip(
        folder / "small-clip", tower, torch.zeros(384, 24), torch.zeros(384), image_processor
    )
    model, tokenizer = load_gguf(language_file)
    add_image_token(tokenizer)
    save_lessons(folder / "small-llava", lessons(assemble(model, tokenizer, tower)), tower)
    return folder / "small-llava"


def test_our_part_and_its_own_tower_have_to_be_there(
    language_file: Path, tower: Any, image_processor: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"holds no lessons\.safetensors"):
        write_small_llava(tmp_path / "nowhere", tmp_path / "out")
    shipped = ship(tmp_path, language_file, tower, image_processor)
    other = CLIPVisionModel(tower.config)
    small_clip.save_small_clip(
        tmp_path / "small-clip", other, torch.zeros(384, 24), torch.zeros(384), image_processor
    )
    with pytest.raises(CheckpointError, match="learned with another image tower"):
        write_small_llava(shipped, tmp_path / "out")
    (tmp_path / "small-clip" / "tower.json").unlink()
    with pytest.raises(CheckpointError, match=r"tower of small-clip .* is missing or damaged"):
        write_small_llava(shipped, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_turns_are_written_as_the_language_model_knows_them(
    language: tuple[Any, Any], image_processor: Any
) -> None:
    _, tokenizer = language
    plain = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant", "user")]
    wanted = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    add_image_token(tokenizer)
    processor = build_processor(tokenizer, image_processor, 8)
    parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
    assert processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=True) == wanted
    parts[-1]["content"].append({"type": "image"})
    before, turn, after = wanted.rpartition("user says")
    found = processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    assert found == f"{before}<image>\n{turn}{after}"


def load_builder() -> Any:
    file = Path(__file__).parents[1] / "scripts" / "build_small_llava.py"
    spec = importlib.util.spec_from_file_location("build_small_llava", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkey = sys.modules.setdefault(spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(monkey)
    return monkey


@pytest.mark.slow
def test_the_builder_teaches_in_words_then_scenes_and_can_go_on(
    language_file: Path,
    tiny_encoder_folder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    builder = load_builder()
    monkeypatch.setattr(builder, "smollm2_file", lambda: language_file)
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder("mean", image_size=56), encoder)
    settings = encoder / "preprocessor_config.json"
    side = {"height": 56, "width": 56}
    images = json.loads(settings.read_text()) | {"size": side, "crop_size": side}
    settings.write_text(json.dumps(images))
    steps = ["--word-steps=2", "--projector-steps=2", "--scene-steps=2", "--scenes=8", "--tokens=1000"]
    common = ["build", f"--encoder={encoder}", "--every=1", "--measured-pictures=2", "--threads=1"]
    monkeypatch.setattr(sys, "argv", [*common, *steps, f"--out={tmp_path / 'out'}"])
    builder.main()
    printed = capsys.readouterr().out
    for stage in ("in words, before", "word pictures, after words", "scenes in new styles, after scenes"):
        assert f"AUC {stage}: " in printed
    assert "projector explains" in printed
    assert "scenes 2/2 loss and share right" in printed

    # What was saved is what was trained: taken up again, it gives the same model.
    tower = builder.DualEncoder.load(encoder).model.vision_model
    model, tokenizer = load_gguf(language_file)
    add_image_token(tokenizer)
    whole = assemble(model, tokenizer, tower)
    saved = load_file(tmp_path / "out" / LESSONS)
    plain = whole.model.language_model.layers[0].mlp.up_proj.weight.clone()
    apply_lessons(whole, saved)
    assert not torch.equal(plain, whole.model.language_model.layers[0].mlp.up_proj.weight)
    none = ["--word-steps=0", "--projector-steps=0", "--scene-steps=0", f"--warm={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [*common, *none, f"--out={tmp_path / 'again'}"])
    builder.main()
    assert "AUC scenes, as given: " in capsys.readouterr().out
    for name, weight in load_file(tmp_path / "again" / LESSONS).items():
        torch.testing.assert_close(weight, saved[name], rtol=1e-3, atol=1e-6)


def test_what_ships_belongs_together() -> None:
    checkpoints = Path(str(files("judge"))) / "checkpoints"
    tower, _ = small_clip.load_tower(checkpoints / "small-clip")
    with safe_open(checkpoints / "small-llava" / LESSONS, "pt") as lessons_file:
        assert lessons_file.metadata()["tower"] == small_llava.tower_hash(tower)
        names = set(lessons_file.keys())
    updates = {name for name in names if name.endswith((".A", ".B"))}
    assert len(updates) == 30 * 7 * 2  # layers, their linear maps, A and B
    assert names - updates == {
        f"projector.linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    }
