"""Bases and adapters: LoRA lands where it should, nothing loads in part, nothing unsafe loads at all."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from judge import load_classifier
from judge.errors import CheckpointError, ConfigError
from judge.publish.merge import merge_run
from judge.runs.folder import RunDir
from judge.vlm.adapter import LoraOptions, add_lora, load_adapter
from judge.vlm.encode import ChatEncoder, Variant
from judge.vlm.load import BaseOptions, check_base, load_base
from judge.vlm.random_bases import RANDOM_BASES
from judge.vlm.score import VisionLanguageJudge, stack_visual
from judge.vlm.training.attention import register
from judge.vlm.training.collate import pack_groups
from judge.vlm.training.trainer import answer_loss
from prompts import Category, Taxonomy, render
from prompts.template import Chat

ROOT = Path(__file__).resolve().parent.parent
POLICY = Taxonomy("policy", "1", (Category("blood", "wounds"), Category("hate", "contempt for a group")))


def randomise_adapter(model, seed=0):
    """The adapted model with every trained tensor moved, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def save_run(base_folder, tmp_path):
    """`save_run(**lora_options)` -> a run folder of an adapter with random weights, and the adapted model."""

    def make(name="run", family="llava", **options):
        base = str(base_folder(family))
        model, _ = load_base(BaseOptions(model_name_or_path=base))
        model, _ = add_lora(model, LoraOptions(lora_r=4, **options), base=base)
        randomise_adapter(model)
        run = RunDir.create(tmp_path / name, kind="vlm", base=base, dtype="float32", template="policy_first")
        run.write_taxonomy(POLICY)
        model.save_pretrained(run.path / "adapter")
        return run.path, model.eval()

    return make


def scores(model, processor, images):
    return VisionLanguageJudge(model, processor).score(images, None, POLICY)


@pytest.mark.parametrize("family", RANDOM_BASES)
def test_lora_reaches_every_linear_layer_of_the_language_model_and_nothing_else(tiny_vlm, family):
    model, _ = tiny_vlm(family)
    model, counts = add_lora(model, LoraOptions(lora_r=4), base="tiny")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert counts["modules"] == 14
    assert counts["trainable"] == sum(p.numel() for p in trained.values())
    assert counts["all"] == sum(p.numel() for p in model.parameters())
    assert len(trained) == 28
    language = "text_model" if family in ("idefics3", "smolvlm") else "language_model"
    assert all(f"{language}.layers." in name and "lora_" in name for name in trained)
    assert not any("vision" in name or "visual" in name for name in trained)


def test_an_expression_that_matches_nothing_shows_names_that_exist(tiny_vlm):
    model, _ = tiny_vlm()
    with pytest.raises(ConfigError, match=r"matches no module.*lm_head"):
        add_lora(model, LoraOptions(lora_target_modules="q_proj"), base="tiny")


@pytest.mark.parametrize(
    ("family", "expression", "counts"),
    [
        ("llava", r".*\.(q|k|v|o)_proj", "14 modules, and 6 of them"),
        ("llava", r".*(language_model\.layers.*q_proj|multi_modal_projector.*)", "6 modules, and 4 of them"),
        (
            "llava",
            r".*vision_tower.*language_model_q_proj|.*vision_tower.*q_proj",
            "2 modules, and 2 of them",
        ),
        ("qwen2_vl", r".*(q_proj|qkv)", "4 modules, and 2 of them"),
    ],
)
def test_an_expression_that_reaches_beyond_the_language_model_is_refused(
    tiny_vlm, family, expression, counts
):
    with pytest.raises(ConfigError, match=rf"matches {counts} are outside the language model \(such as"):
        add_lora(tiny_vlm(family)[0], LoraOptions(lora_target_modules=expression), base="tiny")


def test_the_head_may_be_adapted_and_a_broken_expression_is_named(tiny_vlm):
    _, counts = add_lora(tiny_vlm()[0], LoraOptions(lora_target_modules="lm_head"), base="tiny")
    assert counts["modules"] == 1
    with pytest.raises(ConfigError, match="is not a regular expression"):
        add_lora(tiny_vlm()[0], LoraOptions(lora_target_modules="*q_proj"), base="tiny")


def test_dora_and_rslora_are_what_they_say(tiny_vlm):
    model, counts = add_lora(tiny_vlm()[0], LoraOptions(lora_r=4, use_dora=True), base="tiny")
    magnitudes = [name for name, p in model.named_parameters() if "magnitude" in name and p.requires_grad]
    assert len(magnitudes) == counts["modules"]
    for rslora, scaling in ((False, 32 / 4), (True, 32 / 2)):
        model, _ = add_lora(
            tiny_vlm()[0], LoraOptions(lora_r=4, lora_alpha=32, use_rslora=rslora), base="tiny"
        )
        found = {
            layer.scaling["default"]
            for layer in model.modules()
            if isinstance(getattr(layer, "scaling", None), dict) and layer.scaling
        }
        assert found == {scaling}


@pytest.mark.parametrize(
    ("family", "projector", "count"),
    [
        ("llava", "multi_modal_projector", 4),
        ("gemma3", "multi_modal_projector", 2),
        ("internvl", "multi_modal_projector", 6),
        ("smolvlm", "connector", 1),
    ],
)
def test_train_projector_trains_all_of_it(tiny_vlm, family, projector, count):
    model, _ = add_lora(tiny_vlm(family)[0], LoraOptions(lora_r=4, train_projector=True), base="tiny")
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
    assert len(trained) == count
    assert all(f"{projector}.modules_to_save" in name for name in trained)


def test_a_family_without_projector_says_so(tiny_vlm):
    with pytest.raises(ConfigError, match="no module named as a projector"):
        add_lora(tiny_vlm("qwen2_vl")[0], LoraOptions(train_projector=True), base="tiny")


def as_bytes(parameter):
    """A copy of its bytes: 4-bit weights are stored as floats, some of which are NaN and equal nothing."""
    return parameter.detach().clone().flatten().view(torch.uint8)


def train_step(model, processor, image):
    """One step of AdamW on one row; gives the names of the parameters that moved."""
    model.train()
    model.get_base_model().set_attn_implementation({"text_config": register()})
    encoder = ChatEncoder(processor)
    run, visual = encoder.encode_image(image)
    chat = render(POLICY)
    row = encoder.encode_row([Variant(Chat(chat.messages, chat.answers[1:2]))], run)
    batch = pack_groups(model, [row], 1, visual)
    labels = batch.pop("labels")
    before = {name: as_bytes(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    answer_loss(model(**batch, **stack_visual([visual]), use_cache=False), labels).backward()
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(as_bytes(p), before[name])}


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"train_projector": True}], ids=str)
def test_a_step_moves_what_is_trained_and_nothing_else(tiny_vlm, noise_image, options):
    model, processor = tiny_vlm()
    model, _ = add_lora(model, LoraOptions(lora_r=4, **options), base="tiny")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert train_step(model, processor, noise_image(0, (16, 16))) == trained


@pytest.mark.parametrize(
    ("family", "language", "projector"),
    [
        ("llava", "language_model", "multi_modal_projector.linear_1"),
        ("smolvlm", "text_model", "connector.modality_projection.proj"),
    ],
)
def test_four_bits_spare_tower_projector_and_head(base_folder, noise_image, family, language, projector):
    bitsandbytes = pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed: pip install '.[qlora]'"
    )
    options = BaseOptions(model_name_or_path=str(base_folder(family, width=64)), load_in_4bit=True)
    model, processor = load_base(options)
    quantised = {name for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert len(quantised) == 14
    assert all(name.startswith(f"model.{language}.layers.") for name in quantised)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - quantised
    assert {"lm_head", f"model.{projector}"} <= linear
    assert any("vision" in name for name in linear)
    image = noise_image(0, (16, 16))
    assert np.isfinite(scores(model, processor, [image]).unsafe).all()

    model, _ = add_lora(model, LoraOptions(lora_r=4), base="tiny")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    moved = train_step(model, processor, image)
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "use_rslora": True},
        *({"family": family, "train_projector": True} for family in ("llava", "gemma3", "smolvlm")),
    ],
    ids=str,
)
def test_a_run_loads_and_merges_to_the_same_scores(save_run, noise_image, tmp_path, options):
    path, model = save_run(**options)
    images = [noise_image(seed) for seed in range(3)]
    base, processor = load_base(BaseOptions(model_name_or_path=str(RunDir.open(path).manifest["base"])))
    expected = scores(model, processor, images)
    untouched = scores(base, processor, images)
    assert np.abs(expected.unsafe - untouched.unsafe).max() > 1e-3
    loaded = load_classifier(path)
    assert loaded.name == "run"
    assert loaded.default_taxonomy == POLICY
    found = loaded.score(images, None, POLICY)
    assert found.unsafe == pytest.approx(expected.unsafe, abs=1e-5)
    merged = load_classifier(merge_run(path, tmp_path / "merged")).score(images, None, POLICY)
    assert merged.unsafe == pytest.approx(expected.unsafe, abs=1e-5)
    assert merged.categories == pytest.approx(expected.categories, abs=1e-5)
    assert not list((tmp_path / "merged").glob("*.bin"))


def test_merging_into_a_folder_in_use_is_refused(save_run, tmp_path):
    path, _ = save_run()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        merge_run(path, tmp_path / "used")


def test_an_adapter_of_another_base_is_refused(save_run, tiny_vlm):
    path, _ = save_run()
    model, _ = tiny_vlm(width=64)
    with pytest.raises(CheckpointError, match="does not fit this base"):
        load_adapter(model, path / "adapter")


@pytest.mark.parametrize("which", ["lora_A", "lora_B", "projector"])
def test_an_adapter_without_one_of_its_tensors_is_refused(save_run, tiny_vlm, which):
    path, _ = save_run(train_projector=True)
    file = path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    del state[next(name for name in state if which in name)]
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"in part: 1 of its tensors are missing|does not fit"):
        load_adapter(tiny_vlm()[0], path / "adapter")


def test_an_adapter_with_a_tensor_left_over_is_refused(save_run, tiny_vlm):
    path, _ = save_run()
    file = path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    save_file(state | {name.replace("layers.0", "layers.7"): state[name].clone()}, file)
    with pytest.raises(CheckpointError, match="1 left over"):
        load_adapter(tiny_vlm()[0], path / "adapter")


def test_pickled_adapters_are_never_loaded(save_run, tiny_vlm):
    path, _ = save_run()
    file = path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), path / "adapter" / "adapter_model.bin")
    file.unlink()
    with pytest.raises(CheckpointError, match="pickled adapters are never loaded"):
        load_adapter(tiny_vlm()[0], path / "adapter")
    with pytest.raises(CheckpointError, match="pickled"):
        load_classifier(path)


def test_pickled_bases_are_never_loaded(base_folder, tmp_path):
    folder = shutil.copytree(base_folder(), tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_base(BaseOptions(model_name_or_path=str(folder)))


def test_a_base_without_chat_template_is_refused(base_folder, tmp_path):
    folder = shutil.copytree(base_folder(), tmp_path / "mute")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        load_classifier(folder)


def test_a_chat_template_without_system_turns_is_named(base_folder, tmp_path, noise_image):
    folder = shutil.copytree(base_folder(), tmp_path / "strict")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + template
    )
    with pytest.raises(CheckpointError, match=r"refused.*no system turn.*perspective"):
        load_classifier(folder).score([noise_image(0)], None, POLICY)
    judge = load_classifier(folder, template="perspective", prompt_mode="ignore")
    assert judge.prompt_mode == "ignore"
    found = judge.score([noise_image(0)], None, POLICY)
    assert np.isfinite(found.unsafe).all()


def test_folders_that_are_no_model_say_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a run .*run\.json.* nor a model"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="could not be loaded as a vision-language model"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(CheckpointError, match="could not be loaded as a vision-language model"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"), [("tiny-lava", "did you mean 'tiny-llava'"), ("my model", "no base 'my model' here")]
)
def test_a_name_that_cannot_be_a_hub_id_is_not_looked_up(name, meant, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("asked"))
    for load in (check_base, load_base):
        with pytest.raises(CheckpointError, match=meant):
            load(BaseOptions(model_name_or_path=name))


def test_a_text_model_is_no_judge(tmp_path, tiny_vlm):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    tiny_vlm()[1].tokenizer.save_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match="vision-language model"):
        load_classifier(tmp_path / "text")


def test_truncated_weights_are_an_error(base_folder, tmp_path):
    folder = shutil.copytree(base_folder(), tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_base(BaseOptions(model_name_or_path=str(folder)))


def test_a_run_whose_taxonomy_was_edited_is_refused(save_run):
    path, _ = save_run()
    file = path / "taxonomy.yaml"
    file.write_text(file.read_text().replace("wounds", "red paint"))
    with pytest.raises(CheckpointError, match="edited after the run"):
        load_classifier(path)


def test_a_run_keeps_its_template(save_run):
    path, _ = save_run()
    with pytest.raises(CheckpointError, match="trained with the template 'policy_first', not 'perspective'"):
        load_classifier(path, template="perspective")
    assert load_classifier(path, template="policy_first").template == "policy_first"


def test_a_run_of_another_kind_is_refused(tmp_path):
    RunDir.create(tmp_path / "other", kind="other")
    with pytest.raises(CheckpointError, match="kind 'other', not 'vlm'"):
        load_classifier(tmp_path / "other")


@pytest.mark.parametrize(
    "kind", ["student", "linear_probe", "prompt_learning", "pooled_attention", "cascade"]
)
def test_a_run_that_did_not_get_as_far_as_a_head(tmp_path, kind):
    RunDir.create(tmp_path / "run", kind=kind)
    with pytest.raises(CheckpointError, match=r"did not finish|may not have got|holds no"):
        load_classifier(tmp_path / "run")


def test_saving_an_adapter_asks_no_hub(tiny_vlm, base_folder, tmp_path):
    """peft looks its base up by the name it noted; a warning (an error here) tells that it found none."""
    model, _ = add_lora(tiny_vlm()[0], LoraOptions(lora_r=4), base=str(base_folder()))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(base_folder())


def test_a_truncated_adapter_is_an_error(save_run, tiny_vlm):
    path, _ = save_run()
    file = path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"does not fit"):
        load_adapter(tiny_vlm()[0], path / "adapter")


def test_remote_code_is_never_trusted_and_pickles_never_read():
    files = [
        f
        for folder in ("judge", "eval", "prompts", "recipes", "scripts")
        for f in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 20
    for file in files:
        text = file.read_text()
        for value in re.findall(r"trust_remote_code\W+(\w+)", text):
            assert value == "False", file
        if file.name == "convert_rival.py":  # published pickles become safetensors, once, as tensors alone
            text = text.replace('torch.load(path, map_location="cpu", weights_only=True)', "")
        if (
            file.name == "ray_engine.py"
        ):  # a stage that the driver of the same build has sent, as Ray itself sends all
            text = text.replace("pickle.loads(pickled)  # of our own driver", "")
        if file.name == "ray_data.py":  # what the driver and workers of one run send each other
            text = re.sub(r"pickle\.loads\(.*\)  # of our own driver", "", text)
        assert not re.search(r"\b(pickle|joblib)\.loads?\(|torch\.load\(|weights_only=False", text), file


def test_an_address_is_a_served_judge():
    pytest.importorskip("openai")
    with load_classifier("http://127.0.0.1:9/v1#ours", template="perspective", batch_size=3) as found:
        assert (type(found).__name__, found.model, found.template) == ("RemoteJudge", "ours", "perspective")
        assert found.concurrency == 3


def test_parameters_of_which_a_process_holds_a_part_count_as_a_whole(tiny_vlm):
    """As under ZeRO-3, where a parameter's own tensor is empty and `ds_numel` says what it is a part of."""
    import torch

    from judge.vlm.adapter import LoraOptions, add_lora

    _, whole = add_lora(tiny_vlm()[0], LoraOptions(lora_r=2), base="tiny")
    model, _ = tiny_vlm()
    table = model.get_input_embeddings().weight
    table.ds_numel = table.numel()
    table.data = torch.empty(0)
    _, parted = add_lora(model, LoraOptions(lora_r=2), base="tiny")
    assert parted == whole
